//! PIL's Gaussian blur: three passes of an extended box per axis, horizontal first, edges replicated, each pass rounded
//! to 8 bits (REFERENCE.md "Augmentation"; Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended
//! box filtering", 2011). In: uint8 images `[N, 3, H, W]` and one sigma each. Out: uint8 images of the same shape.

use tch::{Kind, Tensor};

use super::numbers::{Packer, Slot};

/// Largest standard deviation accepted, in pixels; far above any recipe, it bounds the border that is replicated.
pub const MAX_SIGMA: f64 = 100.0;

/// Box passes per axis.
const PASSES: usize = 3;

/// 2^24: PIL's fixed point.
const FIXED_POINT: f64 = (1 << 24) as f64;

/// Radius of the extended box: a whole part, and the share of the two pixels at its edges.
#[derive(Debug, Clone, Copy, PartialEq)]
struct BoxRadius {
    whole: i64,
    exact: f32,
}

impl BoxRadius {
    /// The radius that three passes need for a Gaussian of standard deviation `sigma`, in the C floats of PIL.
    fn of_sigma(sigma: f64) -> Self {
        let sigma = sigma as f32;
        let variance = sigma * sigma / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let mut part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
        part /= 6.0 * (variance - (whole + 1.0) * (whole + 1.0));
        let exact = whole + part;
        Self { whole: exact as i64, exact }
    }

    /// Weights of a pixel inside the box and of the two at its edges, in multiples of 2^-24.
    fn weights(self) -> (f64, f64) {
        let inside = (FIXED_POINT as f32 / (self.exact * 2.0 + 1.0)) as i64;
        let edge = ((1 << 24) - (2 * self.whole + 1) * inside) / 2;
        (inside as f64 / FIXED_POINT, edge as f64 / FIXED_POINT)
    }
}

/// The blur of images whose boxes have the same whole radius.
#[derive(Debug)]
pub struct Blur {
    whole: i64,
    /// float64 `[N]`, as [`BoxRadius::weights`] gives them.
    inside: Slot,
    edge: Slot,
}

impl Blur {
    pub fn allows(sigma: f64) -> bool {
        (0.0..=MAX_SIGMA).contains(&sigma)
    }

    pub fn whole_radius(sigma: f64) -> i64 {
        BoxRadius::of_sigma(sigma).whole
    }

    /// A sigma for each image; all have the same whole radius.
    pub fn new(numbers: &mut Packer, sigmas: &[f64]) -> Self {
        let radii: Vec<BoxRadius> = sigmas.iter().map(|&sigma| BoxRadius::of_sigma(sigma)).collect();
        let whole = radii.first().map_or(0, |radius| radius.whole);
        let (inside, edge): (Vec<f64>, Vec<f64>) = radii.iter().map(|radius| radius.weights()).unzip();
        Self { whole, inside: numbers.doubles(&inside), edge: numbers.doubles(&edge) }
    }

    /// Each image by its own sigma.
    pub fn apply(&self, images: &Tensor, numbers: &Tensor) -> Tensor {
        let [inside, edge] = [self.inside, self.edge].map(|weights| weights.of(numbers).view([-1, 1, 1, 1]));
        let mut pixels = images.to_kind(Kind::Double);
        for axis in [3, 2] {
            for _ in 0..PASSES {
                pixels = box_pass(&pixels, axis, self.whole, &inside, &edge);
            }
        }
        pixels.to_kind(Kind::Uint8)
    }
}

/// One box along `axis` over float64 images of whole numbers. Sums and products stay below 2^32 in units of 2^-24, which
/// float64 holds exactly.
fn box_pass(images: &Tensor, axis: i64, whole: i64, inside: &Tensor, edge: &Tensor) -> Tensor {
    let border = whole + 1;
    let length = images.size()[axis as usize];
    let padding = if axis == 3 { [border, border, 0, 0] } else { [0, 0, border, border] };
    let padded = images.replication_pad2d(padding);
    let shifted = |offset: i64| padded.narrow(axis, border + offset, length);
    let mut sum = shifted(-whole).copy();
    for offset in 1 - whole..=whole {
        sum += shifted(offset);
    }
    sum *= inside;
    sum += (shifted(-border) + shifted(border)) * edge;
    sum.g_add_scalar_(0.5).floor_()
}
