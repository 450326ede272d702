//! Copies to a GPU that the host does not wait for.

use std::ffi::{c_char, c_void};

use tch::{Device, Tensor};

use super::{NativeError, check};

unsafe extern "C" {
    fn sdclr_pin(tensor: *mut c_void) -> *mut c_char;
}

/// `host` made ready to be sent to `device` without waiting: for CUDA in page-locked memory, else as it is.
pub fn staged(host: Tensor, device: Device) -> Result<Tensor, NativeError> {
    if device.is_cuda() {
        // SAFETY: the address of the at::Tensor that tch owns, which nobody else can see.
        check(unsafe { sdclr_pin(host.as_ptr() as *mut c_void) })?;
    }
    Ok(host)
}

/// `host` on `device`. From page-locked memory ([`staged`]) the copy is queued and the call returns at once; libtorch
/// keeps the memory until the copy is done.
pub fn send(host: &Tensor, device: Device) -> Result<Tensor, NativeError> {
    Ok(host.f_to_device_(device, host.kind(), true, false)?)
}
