//! Numbers from CPU generators that are seeded for one draw. The global generator is never touched.

use std::ffi::{c_char, c_void};

use tch::{Device, Kind, Tensor};

use super::{NativeError, check};

unsafe extern "C" {
    fn sdclr_randperm(n: i64, seed: u64, out: *mut i64) -> *mut c_char;
    fn sdclr_uniform(out: *mut c_void, seed: u64) -> *mut c_char;
    fn sdclr_normal(out: *mut c_void, seed: u64) -> *mut c_char;
}

/// `torch.randperm(n)` of a fresh CPU generator seeded with `seed`; the global generator is not touched.
pub fn randperm(n: usize, seed: u64) -> Result<Vec<i64>, NativeError> {
    let mut order = vec![0; n];
    // SAFETY: `order` has room for exactly n values.
    check(unsafe { sdclr_randperm(n as i64, seed, order.as_mut_ptr()) })?;
    Ok(order)
}

/// Uniform numbers in `[0, 1)` of a fresh CPU generator seeded with `seed`: float32 `[n]` on the CPU.
pub fn uniform(n: i64, seed: u64) -> Result<Tensor, NativeError> {
    let out = Tensor::empty([n], (Kind::Float, Device::Cpu));
    // SAFETY: `as_ptr` is the address of the at::Tensor that tch owns, alive during the call.
    check(unsafe { sdclr_uniform(out.as_ptr() as *mut c_void, seed) })?;
    Ok(out)
}

/// Standard normal numbers of a fresh CPU generator seeded with `seed`: float32 `[n]` on the CPU.
pub fn normal(n: i64, seed: u64) -> Result<Tensor, NativeError> {
    let out = Tensor::empty([n], (Kind::Float, Device::Cpu));
    // SAFETY: as in `uniform`.
    check(unsafe { sdclr_normal(out.as_ptr() as *mut c_void, seed) })?;
    Ok(out)
}
