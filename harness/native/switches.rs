//! The switches of the whole process that decide how a GPU rounds: TF32 and determinism.

use std::ffi::c_char;

use super::{NativeError, check};

unsafe extern "C" {
    fn sdclr_set_tf32(allow: bool) -> *mut c_char;
    fn sdclr_tf32(out: *mut i32) -> *mut c_char;
    fn sdclr_set_deterministic(on: bool) -> *mut c_char;
    fn sdclr_determinism(out: *mut i32) -> *mut c_char;
}

/// Whether float32 matrix products (cuBLAS) and convolutions (cuDNN) on CUDA use TF32, in the whole process. Off is the
/// faithful setting: the paper's GPUs had none, and cuDNN's default is on. Read back from libtorch before it is believed.
///
/// # Errors
/// libtorch keeps another setting, or the environment overrides it inside NVIDIA's libraries.
pub fn set_tf32(allow: bool) -> Result<(), NativeError> {
    // The libraries read the variable themselves, whatever libtorch asks for: 0 turns TF32 off everywhere.
    if let Some(text) = std::env::var_os("NVIDIA_TF32_OVERRIDE")
        && (text == "0") == allow
    {
        let (text, state) = (text.to_string_lossy(), if allow { "on" } else { "off" });
        return Err(NativeError(format!("NVIDIA_TF32_OVERRIDE={text} would override TF32, wanted {state}; unset it")));
    }
    // SAFETY: no pointers.
    check(unsafe { sdclr_set_tf32(allow) })?;
    match tf32()? {
        found if found == [allow; 2] => Ok(()),
        [blas, dnn] => Err(NativeError(format!("TF32 was set to {allow}, but is {blas} in cuBLAS and {dnn} in cuDNN"))),
    }
}

/// Whether TF32 is allowed for matrix products (cuBLAS) and for convolutions (cuDNN).
///
/// # Errors
/// libtorch's older and newer settings disagree.
pub fn tf32() -> Result<[bool; 2], NativeError> {
    let mut bits = 0;
    // SAFETY: `bits` outlives the call.
    check(unsafe { sdclr_tf32(&raw mut bits) })?;
    Ok([bits & 1 != 0, bits & 2 != 0])
}

/// The workspaces with which cuBLAS sums in the same order every time.
pub(super) const CUBLAS_WORKSPACE: (&str, &str) = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8");

/// Whether the process keeps to algorithms that give the same bits every time. Without, cuDNN tries which algorithm is
/// fastest for each shape. Runs on the CPU give the same bits either way.
///
/// # Errors
/// libtorch keeps another setting, or the environment gives cuBLAS a workspace that is not deterministic.
pub fn set_deterministic(on: bool) -> Result<(), NativeError> {
    let (name, wanted) = CUBLAS_WORKSPACE;
    if let Some(text) = std::env::var_os(name).filter(|text| on && text != wanted && text != ":16:8") {
        let text = text.to_string_lossy();
        return Err(NativeError(format!("{name}={text} is not deterministic; unset it, or set it to {wanted}")));
    }
    // SAFETY: no pointers.
    check(unsafe { sdclr_set_deterministic(on) })?;
    let wanted = Determinism { algorithms: on, cudnn: on, benchmark: !on };
    match determinism()? {
        found if found == wanted => Ok(()),
        found => Err(NativeError(format!("determinism was set to {wanted:?}, but libtorch keeps {found:?}"))),
    }
}

/// libtorch's switches that decide whether two runs give the same bits on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Determinism {
    /// An operation without a deterministic algorithm is an error.
    pub algorithms: bool,
    pub cudnn: bool,
    /// cuDNN tries which algorithm is fastest.
    pub benchmark: bool,
}

/// How those switches stand.
pub fn determinism() -> Result<Determinism, NativeError> {
    let mut bits = 0;
    // SAFETY: `bits` outlives the call.
    check(unsafe { sdclr_determinism(&raw mut bits) })?;
    Ok(Determinism { algorithms: bits & 1 != 0, cudnn: bits & 2 != 0, benchmark: bits & 4 != 0 })
}
