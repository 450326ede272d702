//! Colour jitter and grayscale as PIL computes them (REFERENCE.md "Augmentation"). In: uint8 images `[N, 3, H, W]`
//! and one factor per image. Out: uint8 images of the same shape. Every operation ends in 8 bits.
//!
//! Where PIL computes in C floats we do in float32, where in doubles in float64, one rounding per operation as there:
//! multiplications and additions stay apart, since a fused one would round once.

use tch::{Kind, Tensor};

use super::params::JitterOp;

/// Applies `operation` to each image with its own factor (for hue: turns of the colour circle).
pub fn adjust(images: &Tensor, operation: JitterOp, factors: &[f64]) -> Tensor {
    // PIL takes its factors as C floats; hue is truncated toward zero to steps of 1/255 and wraps around.
    let factors: Vec<f32> = match operation {
        JitterOp::Hue => factors.iter().map(|turns| ((turns * 255.0) as i64).rem_euclid(256) as f32).collect(),
        _ => factors.iter().map(|&factor| factor as f32).collect(),
    };
    let factors = Tensor::from_slice(&factors).view([-1, 1, 1, 1]).to_device(images.device());
    match operation {
        JitterOp::Brightness => brightness(images, &factors),
        JitterOp::Contrast => contrast(images, &factors),
        JitterOp::Saturation => saturation(images, &factors),
        JitterOp::Hue => hue(images, &factors),
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

fn brightness(images: &Tensor, factors: &Tensor) -> Tensor {
    let mut pixels = images.to_kind(Kind::Float);
    pixels *= factors;
    truncate(&mut pixels)
}

fn contrast(images: &Tensor, factors: &Tensor) -> Tensor {
    let pixels = images.to_kind(Kind::Float);
    let mean = luma(&pixels).mean_dim([1i64, 2, 3].as_slice(), true, Kind::Double);
    let grey = (mean + 0.5).floor_().to_kind(Kind::Float);
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
    truncate(&mut pixels)
}

fn truncate(pixels: &mut Tensor) -> Tensor {
    pixels.clamp_(0.0, 255.0).to_kind(Kind::Uint8)
}

/// RGB to 8-bit HSV, H moved by `steps` (0 to 255) modulo 256, and back.
fn hue(images: &Tensor, steps: &Tensor) -> Tensor {
    let pixels = images.to_kind(Kind::Float);
    let value = pixels.amax([1i64].as_slice(), true);
    let chroma = &value - pixels.amin([1i64].as_slice(), true);
    // PIL's s, truncated. Where black or grey pixels would divide by zero, 0 / 1 gives the 0 that PIL sets.
    let saturation = (&chroma / value.clamp_min(1.0) * 255.0).floor_();
    let hue = hue_of(&pixels, &value, &chroma);
    let turned = (hue + steps).remainder(256.0);
    from_hsv(&turned, &saturation, &value)
}

/// PIL's 8-bit H of float32 pixels `[N, 3, H, W]`: float32 `[N, 1, H, W]`.
fn hue_of(pixels: &Tensor, value: &Tensor, chroma: &Tensor) -> Tensor {
    // How far each channel lies below the largest, as a share of the chroma.
    let below = (value - pixels) / chroma.clamp_min(1.0);
    let share = |channel: i64| below.narrow(1, channel, 1).to_kind(Kind::Double);
    let (red, green, blue) = (share(0), share(1), share(2));
    let otherwise = (&green + 4.0) - &red;
    let green_largest = (&red + 2.0) - &blue;
    let sixths = (&blue - &green)
        .where_self(&red.eq(0.0), &green_largest.where_self(&green.eq(0.0), &otherwise))
        .to_kind(Kind::Float)
        .to_kind(Kind::Double);
    // A negative hue becomes the positive one of the same colour; PIL keeps the fraction as a C float.
    let turns = (sixths / 6.0 + 1.0).frac_().to_kind(Kind::Float).to_kind(Kind::Double);
    (turns * 255.0).floor_().to_kind(Kind::Float)
}

/// 8-bit HSV (float32 whole numbers `[N, 1, H, W]`) to uint8 RGB `[N, 3, H, W]`.
fn from_hsv(hue: &Tensor, saturation: &Tensor, value: &Tensor) -> Tensor {
    let sixths = hue.to_kind(Kind::Double) * 6.0 / 255.0;
    let sector = sixths.floor();
    let fraction = (sixths - &sector).to_kind(Kind::Float).to_kind(Kind::Double);
    // Even sectors rise from the smallest channel to the largest, odd ones fall.
    let odd = sector.remainder(2.0);
    let distance = &odd * &fraction + (1.0 - odd) * (1.0 - fraction);
    let share = (saturation / 255.0).to_kind(Kind::Double);
    let value64 = value.to_kind(Kind::Double);
    let scaled = |share: Tensor| ((share.neg() + 1.0) * &value64 + 0.5).floor_().to_kind(Kind::Float);
    let smallest = scaled(share.shallow_clone());
    let middle = scaled(share * distance);
    // H = 255 lies in sector 6, which is sector 0.
    let sector = sector.remainder(6.0).to_kind(Kind::Float);
    // Around the circle each channel is the largest for two sectors, the middle one at either side of them, and the
    // smallest for the other two: adding 256 or more, 0, or -256 or less to the middle and clamping picks it.
    let channel = |lift: Tensor| (lift * 256.0 + &middle).minimum(value).maximum(&smallest);
    let red = channel((&sector - 2.5).abs() - 1.5);
    let green = channel(1.5 - (&sector - 1.5).abs());
    let blue = channel(1.5 - (&sector - 3.5).abs());
    Tensor::cat(&[red, green, blue], 1).to_kind(Kind::Uint8)
}
