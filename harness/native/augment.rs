//! The kernels of `augment.cu`: a view's whole augmentation in 8-bit and 32-bit numbers. One source, compiled with the package
//! for the CPU, and at run time for CUDA.

use std::ffi::{CStr, c_char};

use tch::{Device, Kind, Tensor};

use super::{NativeError, check};

/// 32-bit words of a view in the table: the `View` of `augment.cu`.
pub const VIEW_WORDS: usize = 22;

/// What is compiled for CUDA.
const SOURCE: &CStr = match CStr::from_bytes_with_nul(concat!(include_str!("augment.cu"), "\0").as_bytes()) {
    Ok(source) => source,
    Err(_) => panic!("a byte 0 in augment.cu"),
};

/// The `Batch` of `augment.cu`.
#[repr(C)]
struct Batch {
    images: *const u8,
    table: *const i32,
    views: *mut u8,
    scratch: *mut u8,
    scratch_most: i64,
    scratch_all: i64,
    step: i32,
    height: i32,
    width: i32,
    count: i32,
}

/// The numbers that say how a table is read.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub count: usize,
    /// Height and width of the views.
    pub sides: (i64, i64),
    /// Bytes from one pixel of an image to the next: 1 where channels lie apart, 3 where they are interleaved.
    pub step: i32,
    /// Bytes of scratch memory: on the CPU of the view that needs most, and on CUDA of all.
    pub scratch: (i64, i64),
}

unsafe extern "C" {
    fn sdclr_augment_cpu(batch: *const Batch) -> *mut c_char;
    fn sdclr_augment_cuda(batch: *const Batch, device: i32, source: *const c_char) -> *mut c_char;
}

/// Computes the views that `table` asks for of `images` (uint8, contiguous, on the same device, where the work is queued):
/// uint8 `[count, 3, height, width]`.
///
/// # Safety
/// The table begins with `count` views, whose crops and taps lie within the images, and whose scratch memory lies apart
/// and is no more than `shape` says.
pub unsafe fn views(images: &Tensor, table: &Tensor, shape: Shape) -> Result<Tensor, NativeError> {
    // SAFETY: the caller vouches for the table.
    compute(images, table, shape, |batch| match images.device() {
        Device::Cuda(index) => unsafe { sdclr_augment_cuda(batch, index as i32, SOURCE.as_ptr()) },
        _ => unsafe { sdclr_augment_cpu(batch) },
    })
}

fn compute(
    images: &Tensor,
    table: &Tensor,
    shape: Shape,
    kernel: impl FnOnce(*const Batch) -> *mut c_char,
) -> Result<Tensor, NativeError> {
    let Shape { count, sides: (height, width), step, scratch: (scratch_most, scratch_all) } = shape;
    let views = Tensor::f_empty([count as i64, 3, height, width], (Kind::Uint8, images.device()))?;
    // All three tensors are contiguous, and outlive the call; what CUDA queues, frees memory in its own order.
    let batch = Batch {
        images: images.data_ptr() as *const u8,
        table: table.data_ptr() as *const i32,
        views: views.data_ptr() as *mut u8,
        scratch: std::ptr::null_mut(),
        scratch_most,
        scratch_all,
        step,
        height: height as i32,
        width: width as i32,
        count: count as i32,
    };
    check(kernel(&raw const batch))?;
    Ok(views)
}

/// The same as CUDA computes it, by loops over the threads of a block, in either order.
///
/// # Safety
/// As for [`views`].
#[cfg(test)]
pub unsafe fn views_like_cuda(
    images: &Tensor,
    table: &Tensor,
    shape: Shape,
    (columns, rows): (i32, i32),
    backwards: bool,
) -> Result<Tensor, NativeError> {
    unsafe extern "C" {
        fn sdclr_augment_like_cuda(batch: *const Batch, columns: i32, rows: i32, backwards: bool) -> *mut c_char;
    }
    // SAFETY: as in `views`.
    compute(images, table, shape, |batch| unsafe { sdclr_augment_like_cuda(batch, columns, rows, backwards) })
}
