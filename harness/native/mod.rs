//! The one door to what tch does not expose of libtorch: seeded generators, the fused optimiser, the switches for TF32
//! and determinism, page-locked memory, streams and graphs, groups of processes, working copies of weights, kernels of our own, and loading CUDA.
//! The C++ files implement them. Every function here is safe to call unless its documentation says otherwise.

pub mod augment;
mod autograd;
mod cuda;
pub(crate) mod generator;
pub mod graph;
pub mod group;
pub mod norm;
mod optimizer;
mod process;
mod switches;
mod transfer;
pub mod weights;

use std::ffi::{CStr, c_char, c_void};

use tch::Tensor;

pub use autograd::gradients;
pub use cuda::{CudaState, cuda_name, libtorch_folder, load_cuda};
pub use optimizer::fused_sgd;
pub use process::{guarded, is_output_closed, prepare};
pub use switches::{Determinism, determinism, set_deterministic, set_tf32, tf32};
pub use transfer::{Staging, send, staged};

/// A call into libtorch failed; the message is libtorch's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct NativeError(String);

impl NativeError {
    /// libtorch appends a C++ stack trace; its first line says what was wrong.
    pub(crate) fn of(text: &str) -> Self {
        Self(text.lines().next().unwrap_or_default().to_owned())
    }
}

impl From<tch::TchError> for NativeError {
    fn from(error: tch::TchError) -> Self {
        Self(said(&error))
    }
}

/// What libtorch said, without the C++ stack trace behind it.
pub(crate) fn said(error: &tch::TchError) -> String {
    match error {
        tch::TchError::Torch(text) => NativeError::of(text).0,
        other => NativeError::of(&other.to_string()).0,
    }
}

unsafe extern "C" {
    fn sdclr_free(message: *mut c_char);
    fn sdclr_torch_version() -> u32;
}

fn check(message: *mut c_char) -> Result<(), NativeError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns either null or a NUL-terminated string, which sdclr_free takes back once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        sdclr_free(message);
        text
    };
    Err(NativeError::of(&text))
}

/// The version of the libtorch that is loaded, e.g. `2.11.0`.
pub fn torch_version() -> String {
    // SAFETY: no pointers; it reads a constant of libtorch.
    let [_, major, minor, patch] = unsafe { sdclr_torch_version() }.to_be_bytes();
    format!("{major}.{minor}.{patch}")
}

fn pointers<T: std::borrow::Borrow<Tensor>>(tensors: &[T]) -> Vec<*mut c_void> {
    tensors.iter().map(|tensor| tensor.borrow().as_ptr() as *mut c_void).collect()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    unsafe extern "C" {
        fn sdclr_throw(number: bool) -> *mut c_char;
    }

    #[test]
    fn whatever_is_thrown_becomes_an_error() {
        for (number, message) in [(false, "libtorch: thrown"), (true, "libtorch: an exception of an unknown type")] {
            // SAFETY: no pointers.
            let error = check(unsafe { sdclr_throw(number) }).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    /// Out of memory comes with a page of C++.
    #[test]
    fn an_error_of_an_operation_is_one_line() {
        let error = Tensor::f_zeros([1 << 60], (Kind::Float, Device::Cpu)).unwrap_err();
        assert!(error.to_string().lines().count() > 1, "{error}");
        let error = crate::network::NetworkError::from(error).to_string();
        assert!(error.starts_with("libtorch: ") && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn the_loaded_libtorch_is_the_one_that_was_compiled_against() {
        assert_eq!(torch_version(), "2.11.0");
    }
}
