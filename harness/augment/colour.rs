//! Colour jitter and grayscale as PIL computes them (REFERENCE.md "Augmentation"). In: uint8 images `[N, 3, H, W]`
//! and one factor per image. Out: uint8 images of the same shape. Every operation ends in 8 bits.
//!
//! Where PIL computes in C floats we do in float32, where in doubles in float64, one rounding per operation as there:
//! multiplications and additions stay apart, since a fused one would round once.

use tch::{Kind, Tensor};

use super::numbers::{Packer, Slot};
use super::params::JitterOp;

/// One operation of the jitter with a factor for each image.
#[derive(Debug)]
pub struct Adjustment {
    operation: JitterOp,
    /// `[N]`: float32, as which PIL takes the factors of its enhancements; for hue uint8, turns truncated toward zero to
    /// steps of 1/255, then modulo 256.
    factors: Slot,
}

impl Adjustment {
    /// `factors` are turns of the colour circle for hue.
    pub fn new(numbers: &mut Packer, operation: JitterOp, factors: &[f64]) -> Self {
        let factors = match operation {
            JitterOp::Hue => {
                numbers.bytes(&factors.iter().map(|turns| (turns * 255.0) as i64 as u8).collect::<Vec<_>>())
            }
            _ => numbers.floats(&factors.iter().map(|&factor| factor as f32).collect::<Vec<_>>()),
        };
        Self { operation, factors }
    }

    /// Each image by its own factor.
    pub fn apply(&self, images: &Tensor, numbers: &Tensor) -> Tensor {
        let factors = self.factors.of(numbers).view([-1, 1, 1, 1]);
        match self.operation {
            JitterOp::Brightness => truncate(images.to_kind(Kind::Float) * factors),
            JitterOp::Contrast => contrast(images, &factors),
            JitterOp::Saturation => saturation(images, &factors),
            JitterOp::Hue => hue(images, &factors),
        }
    }
}

/// Three channels of L.
pub fn grayscale(images: &Tensor) -> Tensor {
    luma(&images.to_kind(Kind::Float)).to_kind(Kind::Uint8).expand_as(images).contiguous()
}

/// PIL's L, `(19595 R + 38470 G + 7471 B + 32768) >> 16`: float32 `[N, 3, H, W]` to whole numbers `[N, 1, H, W]`.
/// The weighted sum stays below 2^24, so float32 holds it exactly, and so it does scaled by 2^-16.
fn luma(images: &Tensor) -> Tensor {
    let weight = |channel: i64, weight: f64| images.narrow(1, channel, 1) * (weight / 65536.0);
    let mut sum = weight(0, 19595.0) + weight(1, 38470.0);
    sum += weight(2, 7471.0);
    sum.g_add_scalar_(0.5).floor_()
}

fn contrast(images: &Tensor, factors: &Tensor) -> Tensor {
    let pixels = images.to_kind(Kind::Float);
    let luma = luma(&pixels);
    let count = luma.size()[1..].iter().product::<i64>();
    // The mean, halves rounded up, in whole numbers: a device may divide by multiplying with a rounded reciprocal.
    let sum = luma.sum_dim_intlist([1i64, 2, 3].as_slice(), true, Kind::Double).to_kind(Kind::Int64);
    let grey = (sum * 2 + count).floor_divide_scalar(2 * count).to_kind(Kind::Float);
    blend(pixels, &grey, factors)
}

fn saturation(images: &Tensor, factors: &Tensor) -> Tensor {
    let pixels = images.to_kind(Kind::Float);
    let grey = luma(&pixels);
    blend(pixels, &grey, factors)
}

/// `grey + factor * (pixel - grey)`, truncated to 8 bits.
fn blend(mut pixels: Tensor, grey: &Tensor, factors: &Tensor) -> Tensor {
    pixels -= grey;
    pixels *= factors;
    pixels += grey;
    truncate(pixels)
}

fn truncate(mut pixels: Tensor) -> Tensor {
    pixels.clamp_(0.0, 255.0).to_kind(Kind::Uint8)
}

/// RGB to 8-bit HSV, H moved by `steps` (uint8) modulo 256, and back.
fn hue(images: &Tensor, steps: &Tensor) -> Tensor {
    let pixels = images.to_kind(Kind::Float);
    let value = pixels.amax([1i64].as_slice(), true);
    let chroma = &value - pixels.amin([1i64].as_slice(), true);
    // PIL's s, truncated. Where black or grey pixels would divide by zero, 0 / 1 gives the 0 that PIL sets.
    let saturation = (&chroma / value.clamp_min(1.0)).g_mul_scalar_(255.0).floor_();
    // Addition in uint8 wraps around, as the colour circle does.
    let turned = hue_of(pixels, &value, chroma) + steps;
    from_hsv(&turned, &saturation, &value)
}

/// PIL's 8-bit H of float32 pixels `[N, 3, H, W]`: uint8 `[N, 1, H, W]`.
fn hue_of(pixels: Tensor, value: &Tensor, mut chroma: Tensor) -> Tensor {
    // How far each channel lies below the largest, as a share of the chroma.
    let below = (value - pixels) / chroma.clamp_min_(1.0);
    let largest = below.eq(0.0);
    let below = below.to_kind(Kind::Double);
    let (red, green, blue) = (below.narrow(1, 0, 1), below.narrow(1, 1, 1), below.narrow(1, 2, 1));
    let blue_largest = (&green + 4.0) - &red;
    let green_largest = (&red + 2.0) - &blue;
    let sixths = green_largest.where_self(&largest.narrow(1, 1, 1), &blue_largest);
    let sixths = (&blue - &green).where_self(&largest.narrow(1, 0, 1), &sixths);
    // PIL keeps both the sixths and the turns as C floats. Adding a whole turn makes negative hues positive.
    let mut sixths = sixths.to_kind(Kind::Float).to_kind(Kind::Double);
    let turns = sixths.g_div_scalar_(6.0).g_add_scalar_(1.0).frac_().to_kind(Kind::Float);
    turns.to_kind(Kind::Double).g_mul_scalar_(255.0).to_kind(Kind::Uint8)
}

/// 8-bit HSV (`hue` in uint8, the others whole numbers in float32, each `[N, 1, H, W]`) to uint8 RGB `[N, 3, H, W]`.
fn from_hsv(hue: &Tensor, saturation: &Tensor, value: &Tensor) -> Tensor {
    let mut fraction = hue.to_kind(Kind::Double).g_mul_scalar_(6.0).g_div_scalar_(255.0);
    let sector = fraction.floor();
    fraction -= &sector;
    let sector = sector.to_kind(Kind::Float);
    let odd = &sector - (&sector * 0.5).floor_().g_mul_scalar_(2.0);
    // The middle channel's way from the largest down to the smallest: all of it and then less in even sectors,
    // none of it and then more in odd ones.
    let way = (odd - 1.0 + fraction.to_kind(Kind::Float).to_kind(Kind::Double)).abs_();
    let share = (saturation / 255.0).to_kind(Kind::Double);
    let scaled = |mut share: Tensor| {
        let mut rest = share.neg_().g_add_scalar_(1.0);
        rest *= value;
        rest.g_add_scalar_(0.5).floor_().to_kind(Kind::Float)
    };
    let middle = scaled(way * &share);
    let smallest = scaled(share);
    // Around the circle each channel is the largest for two sectors, the middle one at either side of them, and the
    // smallest for the others: adding at least 256, 0, or at most -256 to the middle and clamping picks it. (H = 255
    // lies in sector 6, which is sector 0 again; the formulas hold there too.)
    let channel = |mut lift: Tensor| {
        lift = lift.g_mul_scalar_(256.0);
        lift += &middle;
        lift.minimum(value).maximum(&smallest)
    };
    let red = channel((&sector - 2.5).abs_().g_sub_scalar_(1.5));
    let green = channel((&sector - 1.5).abs_().neg_().g_add_scalar_(1.5));
    let blue = channel((&sector - 3.5).abs_().neg_().g_add_scalar_(1.5));
    Tensor::cat(&[red, green, blue], 1).to_kind(Kind::Uint8)
}
