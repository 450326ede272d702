//! Copies to a GPU that the host does not wait for.

use std::ffi::{c_char, c_void};

use tch::{Device, Tensor};

use super::{NativeError, check};

unsafe extern "C" {
    fn sdclr_pin(tensor: *mut c_void) -> *mut c_char;
    fn sdclr_staging(bytes: i64, pinned: bool, out: *mut c_void) -> *mut c_char;
}

/// Bytes of the host that are filled here and then sent: for a GPU in page-locked memory.
#[derive(Debug)]
pub struct Staging(Tensor);

impl Staging {
    /// `bytes` bytes, of which nothing can be said before they are written.
    ///
    /// # Errors
    /// There is no room.
    pub fn new(bytes: usize, device: Device) -> Result<Self, NativeError> {
        let staging = Self(Tensor::new());
        // SAFETY: the address of the at::Tensor that tch owns, which the call fills, and nobody else can see.
        check(unsafe { sdclr_staging(bytes as i64, device.is_cuda(), staging.0.as_ptr() as *mut c_void) })?;
        Ok(staging)
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: memory of that many bytes, which libtorch's allocator gave and this value alone has until it is a tensor.
        unsafe { std::slice::from_raw_parts_mut(self.0.data_ptr().cast(), self.0.numel()) }
    }

    /// The bytes as a uint8 tensor of one dimension.
    pub fn into_tensor(self) -> Tensor {
        self.0
    }
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
