//! PIL's Gaussian blur: three passes of an extended box per axis (REFERENCE.md "Augmentation"; Gwosdek et al., "Theoretical
//! foundations of Gaussian convolution by extended box filtering", 2011). In: a sigma. Out: the box.

/// Largest standard deviation accepted, in pixels; far above any recipe, it bounds how many pixels a box adds up.
pub const MAX_SIGMA: f64 = 100.0;

/// Box passes per axis.
const PASSES: usize = 3;

/// 2^24: PIL's fixed point.
const FIXED_POINT: i32 = 1 << 24;

/// An extended box, whose radius has a whole part and a share of the two pixels at its edges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExtendedBox {
    pub whole: i32,
    /// Weights of a pixel inside the box and of the two at its edges, in multiples of 2^-24.
    pub inside: i32,
    pub edge: i32,
}

impl ExtendedBox {
    /// What three passes need for a Gaussian of standard deviation `sigma`, in the C floats of PIL; `None` out of range.
    pub fn of_sigma(sigma: f64) -> Option<Self> {
        if !(0.0..=MAX_SIGMA).contains(&sigma) {
            return None;
        }
        let sigma = sigma as f32;
        let variance = sigma * sigma / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let mut part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
        part /= 6.0 * (variance - (whole + 1.0) * (whole + 1.0));
        let radius = whole + part;
        let whole = radius as i32;
        let inside = (FIXED_POINT as f32 / (radius * 2.0 + 1.0)) as i32;
        Some(Self { whole, inside, edge: (FIXED_POINT - (2 * whole + 1) * inside) / 2 })
    }
}
