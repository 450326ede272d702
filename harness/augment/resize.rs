//! The weights of PIL's resize, to the bit (REFERENCE.md "Augmentation"; Pillow up to 12.2). In: the length of a line and what
//! it becomes. Out: weighted pixels for each pixel of the result.
//!
//! PIL sums 8-bit pixels times weights in fixed point with 22 fractional bits, and rounds each pass to 8 bits.

use std::ops::Range;

/// 2^22: PIL's PRECISION_BITS for 8-bit images.
const FIXED_POINT: f64 = (1 << 22) as f64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    Bilinear,
    /// Keys' cubic with a = -0.5.
    Bicubic,
}

impl Filter {
    /// Half the width of the filter, in pixels of the coarser grid.
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

    /// The taps of the pixels of `axis` that are kept; their places count from its start.
    pub fn taps(self, axis: &Axis) -> Vec<Taps> {
        let Axis { length, resized, .. } = *axis;
        let scale = length as f64 / resized as f64;
        let widening = scale.max(1.0);
        let support = self.support() * widening;
        let taps = |position: i64| {
            let centre = (position as f64 + 0.5) * scale;
            // Truncation toward zero, as C casts.
            let first = ((centre - support + 0.5) as i64).max(0);
            let end = ((centre + support + 0.5) as i64).min(length);
            let raw: Vec<f64> =
                (first..end).map(|pixel| self.at((pixel as f64 - centre + 0.5) * (1.0 / widening))).collect();
            let sum: f64 = raw.iter().sum();
            // Rounded half away from zero.
            let fixed = |weight: f64| (weight / sum * FIXED_POINT + 0.5f64.copysign(weight)) as i32;
            Taps { first: first as usize, weights: raw.into_iter().map(fixed).collect() }
        };
        axis.kept.clone().map(taps).collect()
    }
}

/// One axis: `length` pixels from `start` become `resized`, of which those at `kept` are computed.
#[derive(Debug, Clone)]
pub struct Axis {
    pub start: i64,
    pub length: i64,
    pub resized: i64,
    pub kept: Range<i64>,
}

/// Where one pixel of the result comes from: weights, in multiples of 2^-22, of neighbouring pixels from `first`
/// on.
pub struct Taps {
    pub first: usize,
    pub weights: Vec<i32>,
}
