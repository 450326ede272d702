//! The transforms of the ImageNet probe, on one decoded image of any size: its crop or its centre, resized to a square
//! (REFERENCE.md "Evaluation"). In: a [`Picture`]. Out: uint8 `[3, size, size]` on the CPU.
//!
//! The sums are PIL's own, in fixed point, tap by tap, as in the kernels for views. Each image is processed alone, since images
//! of different sizes do not fit into one tensor.

use std::ops::Range;

use tch::Tensor;

use super::params::ResizedCrop;
use super::resize::{Filter, Taps};
use super::{AugmentError, Crop};
use crate::dataset::Picture;

/// One axis: `length` pixels from `start` become `resized`, of which those at `kept` are computed.
struct Axis {
    start: i64,
    length: i64,
    resized: i64,
    kept: Range<i64>,
}

impl Axis {
    fn taps(&self) -> Vec<Taps> {
        let mut taps = Filter::Bilinear.taps(self.length, self.resized, self.kept.clone());
        taps.iter_mut().for_each(|taps| taps.first += self.start as usize);
        taps
    }
}

/// RandomResizedCrop with bilinear interpolation, then flip: uint8 `[3, size, size]`.
///
/// # Errors
/// The crop leaves the image, or `size` is below 1.
pub fn resized_crop(picture: &Picture, view: ResizedCrop, size: i64) -> Result<Tensor, AugmentError> {
    let ResizedCrop { crop, flip } = view;
    let &Picture { height, width, .. } = picture;
    if size < 1 {
        return Err(AugmentError::Size { size });
    }
    if !crop.lies_within(height, width) {
        return Err(AugmentError::Crop { index: 0, crop, height, width });
    }
    let Crop { top, left, height, width } = crop;
    let axis = |start, length| Axis { start, length, resized: size, kept: 0..size };
    Ok(resize(picture, &axis(top, height), &axis(left, width), flip))
}

/// The transform of validation and test images: short side to `short` (the other side in proportion, truncated), then
/// the central `size` x `size` pixels, half a pixel rounded up as the published programs' torchvision does (later ones round
/// half to even): uint8 `[3, size, size]`.
///
/// # Errors
/// Not `1 <= size <= short`.
pub fn resize_centre_crop(picture: &Picture, short: i64, size: i64) -> Result<Tensor, AugmentError> {
    if size < 1 {
        return Err(AugmentError::Size { size });
    }
    if size > short {
        return Err(AugmentError::Centre { size, short });
    }
    let shortest = picture.height.min(picture.width);
    let axis = |length: i64| {
        let resized = short * length / shortest;
        let first = (resized - size + 1) / 2;
        Axis { start: 0, length, resized, kept: first..first + size }
    };
    Ok(resize(picture, &axis(picture.height), &axis(picture.width), false))
}

/// Half a unit, which rounds.
const HALF: i32 = 1 << 21;

fn to_eight_bits(sum: i32) -> u8 {
    (sum >> 22).clamp(0, 255) as u8
}

/// Both passes, horizontal first, over the rows that the vertical one reads.
fn resize(picture: &Picture, rows: &Axis, columns: &Axis, flip: bool) -> Tensor {
    let (rows, columns) = (rows.taps(), columns.taps());
    let top = rows.iter().map(|line| line.first).min().unwrap_or_default();
    let end = rows.iter().map(|line| line.first + line.weights.len()).max().unwrap_or_default();
    let stride = 3 * picture.width as usize;
    let wide = 3 * columns.len();
    let mut narrowed = vec![0; (end - top) * wide];
    for (source, target) in picture.pixels.chunks_exact(stride).skip(top).zip(narrowed.chunks_exact_mut(wide)) {
        horizontal(source, &columns, target);
    }

    let (height, width) = (rows.len(), columns.len());
    let mut planes = vec![0; 3 * height * width];
    let mut sums = vec![0; wide];
    for (y, line) in rows.iter().enumerate() {
        sums.fill(HALF);
        let sources = narrowed.chunks_exact(wide).skip(line.first - top);
        for (source, weight) in sources.zip(&line.weights) {
            for (sum, &pixel) in sums.iter_mut().zip(source) {
                *sum += i32::from(pixel) * weight;
            }
        }
        for (channel, plane) in planes.chunks_exact_mut(height * width).enumerate() {
            let target = &mut plane[y * width..][..width];
            let pixels = sums.chunks_exact(3).map(|pixel| to_eight_bits(pixel[channel]));
            // Flipping after the resize is the same as writing the columns in reverse.
            match flip {
                false => target.iter_mut().zip(pixels).for_each(|(to, pixel)| *to = pixel),
                true => target.iter_mut().rev().zip(pixels).for_each(|(to, pixel)| *to = pixel),
            }
        }
    }
    Tensor::from_slice(&planes).view([3, height as i64, width as i64])
}

/// One row of pixels, red, green, blue each.
fn horizontal(source: &[u8], columns: &[Taps], target: &mut [u8]) {
    for (pixel, line) in target.chunks_exact_mut(3).zip(columns) {
        let mut sums = [HALF; 3];
        for (source, weight) in source[3 * line.first..].chunks_exact(3).zip(&line.weights) {
            for (sum, &value) in sums.iter_mut().zip(source) {
                *sum += i32::from(value) * weight;
            }
        }
        pixel.copy_from_slice(&sums.map(to_eight_bits));
    }
}
