//! Gradients from a given output gradient.

use std::ffi::{c_char, c_void};

use tch::Tensor;

use super::{NativeError, check, pointers};

unsafe extern "C" {
    fn sdclr_gradients(
        output: *mut c_void,
        gradient: *mut c_void,
        inputs: *mut *mut c_void,
        count: usize,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

/// The gradient of each of the `inputs`, given the gradient of `output` (`torch.autograd.grad`). tch only differentiates
/// scalars.
///
/// # Errors
/// `output` does not come from one of them.
pub fn gradients(output: &Tensor, gradient: &Tensor, inputs: &[&Tensor]) -> Result<Vec<Tensor>, NativeError> {
    let gradients: Vec<Tensor> = inputs.iter().map(|_| Tensor::new()).collect();
    let (mut from, mut to) = (pointers(inputs), pointers(&gradients));
    // SAFETY: addresses of at::Tensors, as many as said, which outlive the call; those written are nobody else's.
    check(unsafe {
        sdclr_gradients(
            output.as_ptr() as *mut c_void,
            gradient.as_ptr() as *mut c_void,
            from.as_mut_ptr(),
            inputs.len(),
            to.as_mut_ptr(),
        )
    })?;
    Ok(gradients)
}
