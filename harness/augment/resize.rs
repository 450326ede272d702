//! PIL's resize to the bit: separable, horizontal pass first, each pass rounded to 8 bits (REFERENCE.md
//! "Augmentation"; Pillow up to 12.2). In: uint8 images and what to cut from them. Out: uint8 images.
//!
//! PIL sums 8-bit pixels times weights in fixed point with 22 fractional bits. Those weights, and every partial sum of
//! such products, are multiples of 2^-22 below 2^11, so float64 holds them exactly in any order of summation: a
//! batched float64 matrix product gives PIL's sums on every device. (In float32 it would miss rounding ties.)

use std::collections::HashMap;

use tch::{Kind, Tensor};

use super::params::{Crop, ViewParams};

/// 2^22: PIL's PRECISION_BITS for 8-bit images.
const FIXED_POINT: f64 = (1 << 22) as f64;

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

    /// The taps of a line of `length` pixels resized to `resized`.
    fn taps(self, length: i64, resized: i64) -> Vec<Taps> {
        let scale = length as f64 / resized as f64;
        let widening = scale.max(1.0);
        let support = self.support() * widening;
        (0..resized)
            .map(|position| {
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
struct Taps {
    first: usize,
    weights: Vec<f64>,
}

/// One axis of a resize that keeps a window of the result: `length` pixels to `resized`, of which `size` from `first`.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    pub length: i64,
    pub resized: i64,
    pub first: i64,
    pub size: i64,
}

/// A part of one axis of an image that becomes the whole axis of a view.
struct Line {
    start: i64,
    length: i64,
    reversed: bool,
}

/// Resizes with one filter; remembers the taps of the lengths it has met.
pub struct Resizer {
    filter: Filter,
    taps: HashMap<(i64, i64), Vec<Taps>>,
}

impl Resizer {
    pub fn new(filter: Filter) -> Self {
        Self { filter, taps: HashMap::new() }
    }

    /// The crop of each image, resized to `size` x `size` and flipped where asked: uint8 `[N, 3, H, W]` to
    /// uint8 `[N, 3, size, size]`. Crops lie within the images.
    pub fn crops(&mut self, images: &Tensor, params: &[ViewParams], size: i64) -> Tensor {
        let area = union(params.iter().map(|row| row.crop));
        let images = images.narrow(2, area.top, area.height).narrow(3, area.left, area.width);
        // Flipping after the resize is the same as writing the columns in reverse.
        let columns = params.iter().map(|row| Line {
            start: row.crop.left - area.left,
            length: row.crop.width,
            reversed: row.flip,
        });
        let columns = self.matrices(columns, area.width, size);
        let rows =
            params.iter().map(|row| Line { start: row.crop.top - area.top, length: row.crop.height, reversed: false });
        let rows = self.matrices(rows, area.height, size);
        separable(&images, &columns, &rows)
    }

    /// The same window of every image: uint8 `[N, 3, H, W]` to uint8 `[N, 3, rows.size, columns.size]`.
    pub fn window(&mut self, images: &Tensor, rows: Fit, columns: Fit) -> Tensor {
        let count = images.size()[0];
        let mut matrix = |fit: Fit| {
            let line = Line { start: 0, length: fit.length, reversed: false };
            let whole = self.matrices(std::iter::once(line), fit.length, fit.resized);
            whole.narrow(1, fit.first, fit.size).expand([count, fit.size, fit.length], false)
        };
        separable(images, &matrix(columns), &matrix(rows))
    }

    /// float64 `[N, size, extent]`: row by row the weights that make each line of `extent` pixels into `size`.
    fn matrices(&mut self, lines: impl ExactSizeIterator<Item = Line>, extent: i64, size: i64) -> Tensor {
        let shape = [lines.len() as i64, size, extent];
        let mut weights = vec![0.0; lines.len() * (size * extent) as usize];
        for (line, matrix) in lines.zip(weights.chunks_exact_mut((size * extent) as usize)) {
            let filter = self.filter;
            let taps = self.taps.entry((line.length, size)).or_insert_with(|| filter.taps(line.length, size));
            for (position, taps) in taps.iter().enumerate() {
                let position = if line.reversed { size as usize - 1 - position } else { position };
                let from = position * extent as usize + line.start as usize + taps.first;
                matrix[from..from + taps.weights.len()].copy_from_slice(&taps.weights);
            }
        }
        Tensor::from_slice(&weights).view(shape)
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
    let mut horizontal = columns.to_device(images.device()).bmm(&lines.transpose(1, 2));
    let lines = to_eight_bits(&mut horizontal).floor_().view([count, out_width * 3, height]);
    let mut vertical = rows.to_device(images.device()).bmm(&lines.transpose(1, 2));
    let pixels = to_eight_bits(&mut vertical).to_kind(Kind::Uint8).view([count, out_height, out_width, 3]);
    pixels.permute([0, 3, 1, 2]).contiguous()
}

/// Adds the half that rounds and clips, in place; truncating is left to the caller.
fn to_eight_bits(sums: &mut Tensor) -> Tensor {
    sums.g_add_scalar_(0.5).clamp_(0.0, 255.0)
}
