//! Augmentation, batched on tensors, in arithmetic that reproduces torchvision on 8-bit PIL images to the bit.
//! In: uint8 images `[N, 3, H, W]` on any device and one row of drawn parameters per image. Out: uint8 views
//! `[N, 3, size, size]` on the same device. (Decoded files of any size have their own: [`resized_crop`] and
//! [`resize_centre_crop`].) Implements REFERENCE.md "Augmentation" and the image transforms of
//! "Evaluation". Drawing ([`draw`], [`draw_shift`]) and applying ([`views`], [`pad_crop_flip`]) are apart, so that
//! parameters can be recorded, replayed and checked.

mod blur;
mod colour;
mod groups;
mod params;
mod picture;
mod resize;

use tch::{Device, Kind, Tensor};

use crate::native::parallel_map;
use groups::by_group;
pub use params::{
    Crop, Jitter, JitterOp, ResizedCrop, Shift, ViewKey, ViewParams, draw, draw_resized_crop, draw_shift,
};
pub use picture::{resize_centre_crop, resized_crop};
use resize::{Filter, Resizer};

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
    #[error("a crop of side {size} was asked for from images of short side {short}; crop at most the short side")]
    Centre { size: i64, short: i64 },
    #[error("a border of {padding} pixels was asked for; 0 or more are needed")]
    Padding { padding: i64 },
}

/// Applies `params` to `images` (uint8 `[N, 3, H, W]`): crop and bicubic resize, flip, colour jitter, grayscale, blur.
/// Each view depends on its own image and parameters only. Returns uint8 `[N, 3, size, size]` on the same device.
///
/// # Errors
/// The images have another kind or shape, there are more or fewer parameters than images, a crop leaves its image,
/// a sigma is out of range, or `size` is below 1.
pub fn views(images: &Tensor, params: &[ViewParams], size: i64) -> Result<Tensor, AugmentError> {
    let (height, width) = check_images(images, params.len())?;
    if size < 1 {
        return Err(AugmentError::Size { size });
    }
    for (index, row) in params.iter().enumerate() {
        if !row.crop.lies_within(height, width) {
            return Err(AugmentError::Crop { index, crop: row.crop, height, width });
        }
        if let Some(sigma) = row.blur.filter(|sigma| !(0.0..=blur::MAX_SIGMA).contains(sigma)) {
            return Err(AugmentError::Sigma { index, sigma });
        }
    }
    let largest = (height * width).max(size * size) * 3;
    let chunk = (chunk_elements(images.device()) / largest).max(1);
    let lengths = params.iter().flat_map(|row| [row.crop.height, row.crop.width]);
    let resizer = Resizer::new(Filter::Bicubic, lengths, size);
    let chunks: Vec<(Tensor, &[ViewParams])> = params
        .chunks(chunk as usize)
        .zip((0..).step_by(chunk as usize))
        .map(|(rows, first)| (images.narrow(0, first, rows.len() as i64), rows))
        .collect();
    let work = |(images, rows): (Tensor, &[ViewParams])| chunk_views(&images, rows, &resizer);
    let results = match images.device() {
        Device::Cpu => parallel_map(chunks, work),
        _ => chunks.into_iter().map(work).collect(),
    };
    Ok(Tensor::cat(&results, 0))
}

fn chunk_views(images: &Tensor, params: &[ViewParams], resizer: &Resizer) -> Tensor {
    let mut pixels = resizer.crops(images, params);
    for position in 0..4 {
        pixels = by_group(
            &pixels,
            params,
            |row| row.jitter.map(|jitter| jitter.order[position]),
            |subset, operation, rows| colour::adjust(subset, operation, &factors(rows, operation)),
        );
    }
    pixels = by_group(&pixels, params, |row| row.grayscale.then_some(()), |subset, (), _| colour::grayscale(subset));
    by_group(
        &pixels,
        params,
        |row| row.blur.map(|sigma| blur::BoxRadius::of_sigma(sigma).whole),
        |subset, _, rows| blur::blur(subset, &rows.iter().filter_map(|row| row.blur).collect::<Vec<_>>()),
    )
}

/// The factors of `operation`, of the rows that have any jitter.
fn factors(rows: &[&ViewParams], operation: JitterOp) -> Vec<f64> {
    rows.iter().filter_map(|row| row.jitter).map(|jitter| jitter.factor(operation)).collect()
}

/// One operation of the colour jitter alone, with a factor per image: uint8 `[N, 3, H, W]` in and out.
///
/// # Errors
/// The images have another kind or shape, or there are more or fewer factors than images.
pub fn adjust(images: &Tensor, operation: JitterOp, factors: &[f64]) -> Result<Tensor, AugmentError> {
    check_images(images, factors.len())?;
    Ok(colour::adjust(images, operation, factors))
}

/// How many float64 values a chunk of images may take: on the CPU what stays in its caches, on an accelerator what
/// fills it without taking memory from the network.
fn chunk_elements(device: Device) -> i64 {
    match device {
        Device::Cpu => 1 << 18,
        _ => 1 << 24,
    }
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
    let padded_width = width + 2 * padding;
    let rows: Vec<i64> = shifts.iter().flat_map(|shift| (0..height).map(|y| (shift.top + y) * padded_width)).collect();
    let columns: Vec<i64> = shifts
        .iter()
        .flat_map(|shift| (0..width).map(|x| shift.left + if shift.flip { width - 1 - x } else { x }))
        .collect();
    let count = shifts.len() as i64;
    let rows = Tensor::from_slice(&rows).view([count, height, 1]).to_device(images.device());
    let columns = Tensor::from_slice(&columns).view([count, 1, width]).to_device(images.device());
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
