//! The fused optimiser.

use std::ffi::{c_char, c_void};

use tch::Tensor;

use super::{NativeError, check, pointers};

unsafe extern "C" {
    fn sdclr_fused_sgd(
        params: *mut *mut c_void,
        grads: *mut *mut c_void,
        count: usize,
        buffers: *mut *mut c_void,
        buffer_count: usize,
        weight_decay: f64,
        momentum: f64,
        lr: *mut c_void,
    ) -> *mut c_char;
}

/// One step of SGD with momentum over all tensors at once (`torch._fused_sgd_`, no Nesterov, no dampening):
/// `buffer = momentum * buffer + grad + weight_decay * param`, `param -= lr * buffer`. Without momentum the buffers are
/// left alone. The rate `lr` is one number, on the CPU or, in float32, where the parameters are, so that a
/// recorded step reads the current one.
///
/// # Errors
/// The lists differ in length, or the tensors of one parameter in shape, kind or device.
pub fn fused_sgd(
    params: &[Tensor],
    grads: &[Tensor],
    buffers: &[Tensor],
    weight_decay: f64,
    momentum: f64,
    lr: &Tensor,
) -> Result<(), NativeError> {
    if params.len() != grads.len() || params.len() != buffers.len() {
        return Err(NativeError(format!(
            "fused SGD wants one gradient and one buffer per parameter, got {} parameters, {} gradients, {} buffers",
            params.len(),
            grads.len(),
            buffers.len()
        )));
    }
    let grads =
        params.iter().zip(grads).map(|(param, grad)| laid_out_like(param, grad)).collect::<Result<Vec<_>, _>>()?;
    for (param, buffer) in params.iter().zip(buffers) {
        if !same_layout(param, buffer) || param.size() != buffer.size() || param.kind() != buffer.kind() {
            let (wanted, found) = (param.size(), buffer.size());
            return Err(NativeError(format!("a momentum buffer of shape {found:?} is not laid out as its {wanted:?}")));
        }
    }
    let count = params.len();
    let buffers = if momentum == 0.0 { &[] } else { buffers };
    let mut p = pointers(params);
    let mut g = pointers(&grads);
    let mut b = pointers(buffers);
    // SAFETY: lists of as many addresses of at::Tensors as their lengths say, which outlive the call; parameters,
    // gradients and buffers agree in shape, kind, device and memory layout, which the kernel takes for granted.
    check(unsafe {
        sdclr_fused_sgd(
            p.as_mut_ptr(),
            g.as_mut_ptr(),
            count,
            b.as_mut_ptr(),
            buffers.len(),
            weight_decay,
            momentum,
            lr.as_ptr() as *mut c_void,
        )
    })
}

/// Whether two tensors of one shape have the same memory layout. The stride of a dimension of size 1 does not matter.
fn same_layout(a: &Tensor, b: &Tensor) -> bool {
    let strides = |tensor: &Tensor| {
        let sides = tensor.size().into_iter().zip(tensor.stride());
        sides.filter(|(side, _)| *side != 1).map(|(_, stride)| stride).collect::<Vec<_>>()
    };
    strides(a) == strides(b)
}

/// `grad` in the memory layout of `param`, copied only where it differs.
fn laid_out_like(param: &Tensor, grad: &Tensor) -> Result<Tensor, NativeError> {
    if param.size() != grad.size() || param.kind() != grad.kind() || param.device() != grad.device() {
        let (wanted, found) = (param.size(), grad.size());
        return Err(NativeError(format!("a gradient of shape {found:?} does not fit its parameter of {wanted:?}")));
    }
    if same_layout(param, grad) {
        return Ok(grad.shallow_clone());
    }
    Ok(tch::no_grad(|| {
        let mut copy = param.empty_like();
        copy.copy_(grad);
        copy
    }))
}
