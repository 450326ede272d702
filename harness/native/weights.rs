//! The convolution weights that the branches of a step compute with, made of the trained ones all at once.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

use tch::Tensor;

use super::{NativeError, check, pointers};

unsafe extern "C" {
    fn sdclr_working_weights(
        weights: *mut *mut c_void,
        count: usize,
        masks: *mut *mut c_void,
        mask_count: usize,
        bf16: bool,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

/// The weights of the dense and of the pruned branch, each in the order of the trained ones.
#[derive(Debug)]
pub struct WorkingWeights {
    pub dense: Vec<Tensor>,
    /// Empty without masks.
    pub pruned: Vec<Tensor>,
}

/// `weights` as the branches want them, in bfloat16 or their own type, and differentiable: gradients arrive at the weights
/// in their type. As under PyTorch's autocast they are masked first and then cast (casting both and then masking gives the
/// same bits).
///
/// # Errors
/// There are masks, but not one of each weight's shape.
pub fn working_weights(weights: &[Tensor], masks: &[Tensor], bf16: bool) -> Result<WorkingWeights, NativeError> {
    let shapes = |tensors: &[Tensor]| tensors.iter().map(Tensor::size).collect::<Vec<_>>();
    if !masks.is_empty() && shapes(weights) != shapes(masks) {
        return Err(NativeError(format!("{} masks do not fit {} weights", masks.len(), weights.len())));
    }
    let mut out = vec![null_mut(); masks.len() + if bf16 { weights.len() } else { 0 }];
    if !out.is_empty() {
        let (mut w, mut m) = (pointers(weights), pointers(masks));
        // SAFETY: lists of as many addresses of at::Tensors as their lengths say, which outlive the call; `out` has room
        // for what it writes.
        check(unsafe {
            sdclr_working_weights(w.as_mut_ptr(), w.len(), m.as_mut_ptr(), m.len(), bf16, out.as_mut_ptr())
        })?;
    }
    // SAFETY: fresh at::Tensors, which tch frees.
    let mut made = out.into_iter().map(|tensor| unsafe { Tensor::from_ptr(tensor.cast()) });
    let dense = match bf16 {
        true => made.by_ref().take(weights.len()).collect(),
        false => weights.iter().map(Tensor::shallow_clone).collect(),
    };
    Ok(WorkingWeights { dense, pruned: made.collect() })
}
