//! The kernels of `augment.cu`: a view's whole augmentation in 8-bit and 32-bit numbers. One source, compiled with the package
//! for the CPU, and at run time for CUDA.

use std::ffi::c_char;

use tch::{Kind, Tensor};

use super::{NativeError, check};

/// 32-bit words of a view in the table: the `View` of `augment.cu`.
pub const VIEW_WORDS: usize = 20;

/// The `Batch` of `augment.cu`.
#[repr(C)]
struct Batch {
    images: *const u8,
    table: *const i32,
    views: *mut u8,
    scratch: *mut u8,
    image_height: i32,
    image_width: i32,
    height: i32,
    width: i32,
    count: i32,
}

unsafe extern "C" {
    fn sdclr_augment_cpu(batch: *const Batch) -> *mut c_char;
}

/// Computes the views that `table` asks for of `images` (uint8 `[N, 3, H, W]`, on the same device): uint8
/// `[count, 3, height, width]`.
///
/// # Safety
/// The table begins with `count` views, whose crops and taps lie within images that are there.
pub unsafe fn views(
    images: &Tensor,
    table: &Tensor,
    count: usize,
    (height, width): (i64, i64),
) -> Result<Tensor, NativeError> {
    let images = images.f_contiguous()?;
    let (_, _, image_height, image_width) = images.size4()?;
    let views = Tensor::f_empty([count as i64, 3, height, width], (Kind::Uint8, images.device()))?;
    let batch = Batch {
        images: images.data_ptr() as *const u8,
        table: table.data_ptr() as *const i32,
        views: views.data_ptr() as *mut u8,
        scratch: std::ptr::null_mut(),
        image_height: image_height as i32,
        image_width: image_width as i32,
        height: height as i32,
        width: width as i32,
        count: count as i32,
    };
    // SAFETY: the caller vouches for the table; all tensors are contiguous, and outlive the call.
    check(unsafe { sdclr_augment_cpu(&raw const batch) })?;
    Ok(views)
}
