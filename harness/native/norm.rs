//! Batch norm by the batch's statistics, fused with the ReLU, or the addition and ReLU, that follows it: fewer and cheaper
//! passes over bfloat16 activations than libtorch's separate operations. `norm.cu` holds the kernels. They are for
//! CUDA; on a CPU they run as slow loops, which the tests use.

use std::ffi::{CString, c_char, c_void};
use std::ptr::null_mut;

use tch::{Device, Tensor};

use super::{NativeError, check};

unsafe extern "C" {
    fn sdclr_norm_load(device: i32, source: *const c_char) -> *mut c_char;
    fn sdclr_norm_takes(x: *mut c_void, out: *mut bool) -> *mut c_char;
    fn sdclr_norm(
        x: *mut c_void,
        parts: *const *mut c_void,
        residual: *mut c_void,
        relu: bool,
        epsilon: f64,
        momentum: f64,
        out: *mut c_void,
    ) -> *mut c_char;
}

/// What follows a batch norm.
#[derive(Debug, Clone, Copy)]
pub enum After<'a> {
    Nothing,
    Relu,
    /// A tensor is added, then ReLU.
    AddRelu(&'a Tensor),
}

/// The tensors of a batch norm, `[C]` in float32, and how it goes about.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a> {
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
    /// Moves by `momentum`.
    pub running_mean: &'a Tensor,
    /// Moves by `momentum` towards the unbiased variance.
    pub running_var: &'a Tensor,
    pub epsilon: f64,
    pub momentum: f64,
}

/// The source of the kernels, which NVRTC compiles.
const KERNELS: &str = include_str!("norm.cu");

/// Compiles the kernels for `device` unless that is done; nothing to do on the CPU.
///
/// # Errors
/// There is no run-time compiler beside libtorch, or it does not know the device.
pub fn load(device: Device) -> Result<(), NativeError> {
    let Device::Cuda(index) = device else { return Ok(()) };
    let source = CString::new(KERNELS).map_err(|error| NativeError(format!("the source of the kernels: {error}")))?;
    // SAFETY: a NUL-terminated string that outlives the call.
    check(unsafe { sdclr_norm_load(index as i32, source.as_ptr()) })
}

/// Whether [`batch_norm`] computes on `x`: `[N, C, H, W]` in bfloat16 and channels_last, C a multiple of 8 and more than
/// one number a channel.
///
/// # Panics
/// As tch's own queries do: where libtorch throws.
pub fn takes(x: &Tensor) -> bool {
    let mut takes = false;
    // SAFETY: the address of an at::Tensor that outlives the call, as `takes` does.
    match check(unsafe { sdclr_norm_takes(x.as_ptr() as *mut c_void, &raw mut takes) }) {
        Ok(()) => takes,
        Err(error) => panic!("{error}"),
    }
}

/// `x` normalised by its own statistics, and what follows: computed in float32, rounded to bfloat16 once. Autograd knows
/// it. On CUDA the kernels are [`load`]ed first.
///
/// # Panics
/// As tch's operations do: where memory is out, or tensors do not fit each other.
pub fn batch_norm(x: &Tensor, norm: &BatchNorm, after: After) -> Tensor {
    let parts = [norm.weight, norm.bias, norm.running_mean, norm.running_var].map(|part| part.as_ptr() as *mut c_void);
    let (residual, relu) = match after {
        After::Nothing => (null_mut(), false),
        After::Relu => (null_mut(), true),
        After::AddRelu(residual) => (residual.as_ptr() as *mut c_void, true),
    };
    let out = Tensor::new();
    // SAFETY: addresses of at::Tensors that outlive the call; `out` is nobody else's.
    let done = check(unsafe {
        sdclr_norm(
            x.as_ptr() as *mut c_void,
            parts.as_ptr(),
            residual,
            relu,
            norm.epsilon,
            norm.momentum,
            out.as_ptr() as *mut c_void,
        )
    });
    match done {
        Ok(()) => out,
        Err(error) => panic!("{error}"),
    }
}
