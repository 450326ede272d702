//! PIL's resize to the bit: separable, horizontal pass first, each pass rounded to 8 bits (REFERENCE.md
//! "Augmentation"; Pillow up to 12.2). In: uint8 images and what to cut from them. Out: uint8 images.
//!
//! PIL sums 8-bit pixels times weights in fixed point with 22 fractional bits. Those weights, and every partial sum of
//! such products, are multiples of 2^-22 below 2^11, so float64 holds them exactly in any order of summation: a
//! batched float64 matrix product gives PIL's sums on every device. (In float32 it would miss rounding ties.)

use std::collections::HashMap;
use std::ops::Range;

use tch::{Kind, Tensor};

use super::numbers::{Packer, Slot};
use super::params::{Crop, ViewParams};

/// 2^22: PIL's PRECISION_BITS for 8-bit images.
pub const FIXED_POINT: f64 = (1 << 22) as f64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    /// Keys' cubic with a = -0.5.
    Bicubic,
}

impl Filter {
    /// Half the width of the filter, in pixels of the coarser side.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The filter at distance `x`, in PIL's order of operations.
    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Self::Bicubic => 0.0,
        }
    }

    /// The taps of the pixels at `kept` of a line of `length` pixels resized to `resized`.
    pub fn taps(self, length: i64, resized: i64, kept: Range<i64>) -> Vec<Taps> {
        let scale = length as f64 / resized as f64;
        let widening = scale.max(1.0);
        let support = self.support() * widening;
        kept.map(|position| {
            let centre = (position as f64 + 0.5) * scale;
            // Truncation toward zero, as C casts.
            let first = ((centre - support + 0.5) as i64).max(0);
            let end = ((centre + support + 0.5) as i64).min(length);
            let raw: Vec<f64> =
                (first..end).map(|pixel| self.at((pixel as f64 - centre + 0.5) * (1.0 / widening))).collect();
            let sum: f64 = raw.iter().sum();
            // Rounded half away from zero to fixed point, then scaled back, which is exact.
            let fixed = |weight: f64| (weight / sum * FIXED_POINT + 0.5f64.copysign(weight)).trunc() / FIXED_POINT;
            Taps { first: first as usize, weights: raw.into_iter().map(fixed).collect() }
        })
        .collect()
    }
}

/// Where one pixel of the result comes from: weights (multiples of 2^-22) of neighbouring pixels from `first` on.
pub struct Taps {
    pub first: usize,
    pub weights: Vec<f64>,
}

/// A part of one axis of an image that becomes the whole axis of a view.
struct Line {
    start: i64,
    length: i64,
    reversed: bool,
}

/// Cuts, resizes to one size, and flips.
pub struct Resizer {
    size: i64,
    taps: HashMap<i64, Vec<Taps>>,
}

impl Resizer {
    /// Ready for lines of any of `lengths` pixels, to be resized to `size`.
    pub fn new(filter: Filter, lengths: impl Iterator<Item = i64>, size: i64) -> Self {
        let mut taps = HashMap::new();
        for length in lengths {
            taps.entry(length).or_insert_with(|| filter.taps(length, size, 0..size));
        }
        Self { size, taps }
    }

    /// The crop of each image, to be resized to `size` x `size` and flipped where asked. Crops lie within the images, and
    /// their sides are among the lengths known.
    pub fn crops(&self, numbers: &mut Packer, params: &[ViewParams]) -> Crops {
        let area = union(params.iter().map(|row| row.crop));
        // Flipping after the resize is the same as writing the columns in reverse.
        let columns = params.iter().map(|row| Line {
            start: row.crop.left - area.left,
            length: row.crop.width,
            reversed: row.flip,
        });
        let rows =
            params.iter().map(|row| Line { start: row.crop.top - area.top, length: row.crop.height, reversed: false });
        let columns = self.matrices(numbers, columns, area.width);
        Crops { area, columns, rows: self.matrices(numbers, rows, area.height) }
    }

    /// Row by row the weights that make each line within `extent` pixels into `size`.
    fn matrices(&self, numbers: &mut Packer, lines: impl ExactSizeIterator<Item = Line>, extent: i64) -> Matrices {
        let shape = [lines.len() as i64, self.size, extent];
        let (size, extent) = (self.size as usize, extent as usize);
        let (slot, weights) = numbers.zeros(lines.len() * size * extent);
        for (line, matrix) in lines.zip(weights.chunks_exact_mut(size * extent)) {
            let taps = self.taps.get(&line.length).into_iter().flatten();
            let from = |taps: &Taps| line.start as usize + taps.first;
            for (position, taps) in taps.enumerate() {
                let row = if line.reversed { size - 1 - position } else { position };
                matrix[row * extent + from(taps)..][..taps.weights.len()].copy_from_slice(&taps.weights);
            }
        }
        Matrices { slot, shape }
    }
}

/// float64 `[N, size, extent]` among the packed numbers.
#[derive(Debug, Clone, Copy)]
struct Matrices {
    slot: Slot,
    shape: [i64; 3],
}

impl Matrices {
    fn of(self, numbers: &Tensor) -> Tensor {
        self.slot.of(numbers).view(self.shape)
    }
}

/// A crop of each image, and how it becomes a view.
#[derive(Debug)]
pub struct Crops {
    /// What holds all crops: the rest of the images is not looked at.
    area: Crop,
    columns: Matrices,
    rows: Matrices,
}

impl Crops {
    /// uint8 `[N, 3, H, W]` to uint8 `[N, 3, size, size]`.
    pub fn apply(&self, images: &Tensor, numbers: &Tensor) -> Tensor {
        let Crop { top, left, height, width } = self.area;
        let images = images.narrow(2, top, height).narrow(3, left, width);
        separable(&images, &self.columns.of(numbers), &self.rows.of(numbers))
    }
}

/// The smallest rectangle that holds all crops.
fn union(crops: impl Iterator<Item = Crop> + Clone) -> Crop {
    let least = |value: fn(Crop) -> i64| crops.clone().map(value).min().unwrap_or_default();
    let most = |value: fn(Crop) -> i64| crops.clone().map(value).max().unwrap_or_default();
    let (top, left) = (least(|crop| crop.top), least(|crop| crop.left));
    let height = most(|crop| crop.top + crop.height) - top;
    let width = most(|crop| crop.left + crop.width) - left;
    Crop { top, left, height, width }
}

/// Both passes: uint8 `[N, 3, H, W]`, float64 `columns` `[N, X, W]` and `rows` `[N, Y, H]` to uint8 `[N, 3, Y, X]`.
fn separable(images: &Tensor, columns: &Tensor, rows: &Tensor) -> Tensor {
    let size = images.size();
    let (count, height, width) = (size[0], size[2], size[3]);
    let (out_width, out_height) = (columns.size()[1], rows.size()[1]);
    let lines = images.to_kind(Kind::Double).reshape([count, 3 * height, width]);
    // The result of the first pass is [N, X, 3, H], which lets the second sum over H without moving data.
    let mut horizontal = columns.bmm(&lines.transpose(1, 2));
    let lines = to_eight_bits(&mut horizontal).floor_().view([count, out_width * 3, height]);
    let mut vertical = rows.bmm(&lines.transpose(1, 2));
    let pixels = to_eight_bits(&mut vertical).to_kind(Kind::Uint8).view([count, out_height, out_width, 3]);
    pixels.permute([0, 3, 1, 2]).contiguous()
}

/// Adds the half that rounds and clips, in place; truncating is left to the caller.
fn to_eight_bits(sums: &mut Tensor) -> Tensor {
    sums.g_add_scalar_(0.5).clamp_(0.0, 255.0)
}
