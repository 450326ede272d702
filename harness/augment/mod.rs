//! Augmentation, batched on tensors, bit-exact with torchvision on 8-bit PIL images. (One exception: PIL resizes shrinking
//! crops over 100 times as tall as wide in the other order. No recipe draws such crops.)
//! In: uint8 images `[N, 3, H, W]`, or decoded files of any size end to end, on any device, and drawn parameters. Out: uint8
//! views `[N, 3, size, size]` on the same device. Implements REFERENCE.md "Augmentation" and the image transforms of
//! "Evaluation". Drawing ([`draw`], [`draw_shift`]), planning ([`Plan`]) and applying ([`views`], [`pad_crop_flip`]) are
//! separate, so that parameters can be recorded, replayed and checked, and one batch planned while another is computed.

mod blur;
mod params;
mod plan;
mod resize;

use tch::{Kind, Tensor};

use crate::native::{self, NativeError};
pub use params::{
    Crop, Jitter, JitterOp, ResizedCrop, Shift, ViewKey, ViewParams, draw, draw_resized_crop, draw_shift,
};
pub use plan::Plan;

/// Images and parameters that do not go together.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AugmentError {
    #[error("augmentation got images of kind {kind:?} and shape {shape:?}; pass uint8 images [N, 3, H, W], none empty")]
    Images { kind: Kind, shape: Vec<i64> },
    #[error("augmentation got {params} rows of parameters for {images} images; pass one row per image")]
    Count { images: i64, params: usize },
    #[error("the crop of image {index}, {crop:?}, leaves the image of {height} x {width}; draw it for this size")]
    Crop { index: usize, crop: Crop, height: i64, width: i64 },
    #[error("the shift of image {index}, {shift:?}, leaves the padded image; offsets from 0 to {} are needed", 2 * padding)]
    Shift { index: usize, shift: Shift, padding: i64 },
    #[error(
        "view {index} asks for a blur of sigma {sigma}; a standard deviation from 0 to {} pixels is needed",
        blur::MAX_SIGMA
    )]
    Sigma { index: usize, sigma: f64 },
    #[error("images of side {size} were asked for; a side of at least 1 pixel is needed")]
    Size { size: i64 },
    #[error("views of {} x {} were asked for; sides go up to {} pixels", .views.0, .views.1, plan::MAX_SIDE)]
    LargeViews { views: (i64, i64) },
    #[error("view {index} of {} x {} was asked for of an image of {} x {}; either takes at most 2 GiB", .views.0, .views.1,
        .image.0, .image.1)]
    TooLarge { index: usize, image: (i64, i64), views: (i64, i64) },
    #[error("view {index} was asked for of image {source_image}; images are counted from 0 and are fewer than 2^31")]
    Source { index: usize, source_image: i64 },
    #[error("view {index} was asked for {operation:?} twice; each operation of the jitter is done once")]
    Twice { index: usize, operation: JitterOp },
    #[error("a crop of side {size} was asked for from images of short side {short}; crop at most the short side")]
    Centre { size: i64, short: i64 },
    #[error("a border of {padding} pixels was asked for; 0 or more are needed")]
    Padding { padding: i64 },
    #[error(
        "views were planned of at least {end} bytes of uint8 images, {layout}, but {kind:?} {shape:?} is here; plan for these"
    )]
    OtherImages { kind: Kind, shape: Vec<i64>, layout: String, end: i64 },
    #[error(transparent)]
    Native(#[from] NativeError),
}

/// Applies `params` to `images` (uint8 `[N, 3, H, W]`): crop and bicubic resize, flip, colour jitter, grayscale, blur.
/// Each view depends on its own image and parameters only. Returns uint8 `[N, 3, size, size]` on the same device.
///
/// # Errors
/// The images have another kind or shape, there are more or fewer parameters than images, a crop leaves its image,
/// a sigma is out of range, or `size` is below 1.
pub fn views(images: &Tensor, params: &[ViewParams], size: i64) -> Result<Tensor, AugmentError> {
    let sides = check_images(images, params.len())?;
    let source: Vec<i64> = (0..params.len() as i64).collect();
    Plan::new(&source, params, sides, size, images.device())?.apply(images)
}

/// One operation of the colour jitter alone, with a factor per image: uint8 `[N, 3, H, W]` in and out.
///
/// # Errors
/// The images have another kind or shape, or there are more or fewer factors than images.
pub fn adjust(images: &Tensor, operation: JitterOp, factors: &[f64]) -> Result<Tensor, AugmentError> {
    let sides = check_images(images, factors.len())?;
    Plan::adjusting(operation, factors, sides, images.device())?.apply(images)
}

/// RandomCrop(H, padding) with black, then flip (the probe's augmentation): uint8 `[N, 3, H, W]` in and out.
///
/// # Errors
/// The images have another kind or shape, there are more or fewer shifts than images, `padding` is negative, or a
/// shift lies outside `0..=2 * padding`.
pub fn pad_crop_flip(images: &Tensor, shifts: &[Shift], padding: i64) -> Result<Tensor, AugmentError> {
    let (height, width) = check_images(images, shifts.len())?;
    if padding < 0 {
        return Err(AugmentError::Padding { padding });
    }
    let allowed = 0..=2 * padding;
    let outside = |shift: &Shift| !(allowed.contains(&shift.top) && allowed.contains(&shift.left));
    if let Some(index) = shifts.iter().position(outside) {
        return Err(AugmentError::Shift { index, shift: shifts[index], padding });
    }
    // Where each pixel of the result lies in the padded image: row offset [N, H, 1] plus column [N, 1, W].
    let count = shifts.len() as i64;
    let offsets: Vec<i64> = shifts.iter().flat_map(|shift| [shift.top, shift.left, i64::from(shift.flip)]).collect();
    let offsets = native::send(&Tensor::from_slice(&offsets), images.device())?.view([count, 3, 1]);
    let (top, left, flip) = (offsets.narrow(1, 0, 1), offsets.narrow(1, 1, 1), offsets.narrow(1, 2, 1));
    let rows = (top + Tensor::arange(height, (Kind::Int64, images.device())).view([height, 1])) * (width + 2 * padding);
    let columns = Tensor::arange(width, (Kind::Int64, images.device()));
    // Counted from the other side where flipped: x becomes (width - 1) - x.
    let columns = left + &columns + flip * (width - 1 - columns * 2);
    let source = (rows + columns).view([count, 1, height * width]).expand([count, 3, height * width], false);
    let padded = images.constant_pad_nd([padding, padding, padding, padding]).flatten(2, 3);
    Ok(padded.gather(2, &source, false).view([count, 3, height, width]))
}

/// Height and width of `images`, once they are known to be `count` uint8 images `[N, 3, H, W]`.
fn check_images(images: &Tensor, count: usize) -> Result<(i64, i64), AugmentError> {
    let (kind, shape) = (images.kind(), images.size());
    match shape[..] {
        [found, 3, height, width] if kind == Kind::Uint8 && found > 0 && height > 0 && width > 0 => {
            if found == count as i64 {
                return Ok((height, width));
            }
            Err(AugmentError::Count { images: found, params: count })
        }
        _ => Err(AugmentError::Images { kind, shape }),
    }
}
