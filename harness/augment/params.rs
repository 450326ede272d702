//! What happens to one view, drawn from its address. In: a recipe, a key (seed, epoch, image, view) and the size of
//! the image. Out: [`ViewParams`], the same for the same key whatever the batch, the device or the runs before.
//! Distributions as torchvision's transforms (REFERENCE.md "Augmentation").

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::recipe::AugmentRecipe;

/// The address of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ViewKey {
    pub seed: u64,
    pub epoch: u64,
    /// Position in the official training order, or a hash of the image's path.
    pub image: u64,
    pub view: u64,
}

/// A rectangle of the image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crop {
    pub top: i64,
    pub left: i64,
    pub height: i64,
    pub width: i64,
}

impl Crop {
    /// Whether it has at least one pixel and none outside an image of `height` x `width`.
    pub fn lies_within(&self, height: i64, width: i64) -> bool {
        let fits = |first: i64, length: i64, side: i64| {
            (0..side).contains(&first) && (1..=side).contains(&length) && first + length <= side
        };
        fits(self.top, self.height, height) && fits(self.left, self.width, width)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JitterOp {
    Brightness,
    Contrast,
    Saturation,
    Hue,
}

/// Colour jitter: four operations in the order given, each exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Jitter {
    pub order: [JitterOp; 4],
    /// Factors: 0 is black (grey for contrast and saturation), 1 the image itself.
    pub brightness: f64,
    pub contrast: f64,
    pub saturation: f64,
    /// Turns of the colour circle. At 0 the round trip through 8-bit HSV still takes place.
    pub hue: f64,
}

impl Jitter {
    /// The factor of one operation.
    pub fn factor(&self, operation: JitterOp) -> f64 {
        match operation {
            JitterOp::Brightness => self.brightness,
            JitterOp::Contrast => self.contrast,
            JitterOp::Saturation => self.saturation,
            JitterOp::Hue => self.hue,
        }
    }
}

/// Everything that is done to one view, in the order in which it is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewParams {
    pub crop: Crop,
    pub flip: bool,
    pub jitter: Option<Jitter>,
    pub grayscale: bool,
    /// Standard deviation of the blur in pixels.
    pub blur: Option<f64>,
}

/// RandomResizedCrop and flip: the training view of ImageNet's probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizedCrop {
    pub crop: Crop,
    pub flip: bool,
}

/// RandomCrop with padding and flip: offsets into the padded image, `0..=2 * padding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shift {
    pub top: i64,
    pub left: i64,
    pub flip: bool,
}

/// The generator at a view's address, and the distributions drawn from it.
struct Stream(ChaCha8Rng);

impl Stream {
    fn at(key: ViewKey) -> Self {
        let mut seed = [0; 32];
        for (bytes, word) in seed.chunks_exact_mut(8).zip([key.seed, key.epoch, key.image, key.view]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(seed))
    }

    /// Uniform in `[0, 1)`: the upper 53 bits of a word.
    fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (-53f64).exp2()
    }

    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform over `0..count`.
    fn below(&mut self, count: i64) -> i64 {
        (self.unit() * count as f64) as i64
    }

    fn happens(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }
}

/// The parameters of the view at `key` of an image of `height` x `width` pixels (both at least 1).
///
/// The stream is read in this order, and unused values are read too: flip; whether to jitter; its order; its brightness,
/// contrast, saturation and hue; whether to convert to grey; whether to blur; its sigma; and last the crop, because its
/// number of tries varies.
pub fn draw(recipe: &AugmentRecipe, key: ViewKey, height: i64, width: i64) -> ViewParams {
    let mut stream = Stream::at(key);
    let flip = stream.happens(recipe.flip_probability);
    let jittered = stream.happens(recipe.jitter_probability);
    let jitter = Jitter {
        order: nth_order(stream.below(24)),
        brightness: stream.uniform(1.0 - recipe.brightness, 1.0 + recipe.brightness),
        contrast: stream.uniform(1.0 - recipe.contrast, 1.0 + recipe.contrast),
        saturation: stream.uniform(1.0 - recipe.saturation, 1.0 + recipe.saturation),
        hue: stream.uniform(-recipe.hue, recipe.hue),
    };
    let grayscale = stream.happens(recipe.grayscale_probability);
    let blurred = stream.happens(recipe.blur_probability);
    let sigma = stream.uniform(recipe.blur_sigma[0], recipe.blur_sigma[1]);
    ViewParams {
        crop: draw_crop(&mut stream, recipe.scale, recipe.ratio, height, width),
        flip,
        jitter: jittered.then_some(jitter),
        grayscale,
        blur: blurred.then_some(sigma),
    }
}

/// The `index`-th (of 24) order of the four operations, counted in the order of [`JitterOp`].
fn nth_order(mut index: i64) -> [JitterOp; 4] {
    let mut left = vec![JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation, JitterOp::Hue];
    [6, 2, 1, 1].map(|orders_of_the_rest| {
        let operation = left.remove((index / orders_of_the_rest) as usize);
        index %= orders_of_the_rest;
        operation
    })
}

/// RandomResizedCrop: up to ten tries of area, ratio (log-uniform), top and left; then the largest central crop whose
/// ratio is allowed.
fn draw_crop(stream: &mut Stream, scale: [f64; 2], ratio: [f64; 2], height: i64, width: i64) -> Crop {
    let rounded = |length: f64| length.round_ties_even() as i64;
    for _ in 0..10 {
        let area = (height * width) as f64 * stream.uniform(scale[0], scale[1]);
        let aspect = stream.uniform(ratio[0].ln(), ratio[1].ln()).exp();
        let (crop_height, crop_width) = (rounded((area / aspect).sqrt()), rounded((area * aspect).sqrt()));
        if (1..=height).contains(&crop_height) && (1..=width).contains(&crop_width) {
            let top = stream.below(height - crop_height + 1);
            let left = stream.below(width - crop_width + 1);
            return Crop { top, left, height: crop_height, width: crop_width };
        }
    }
    let whole = width as f64 / height as f64;
    // At least one pixel: a very thin image has no crop of an allowed ratio.
    let crop_height = if whole < ratio[0] { rounded(width as f64 / ratio[0]).max(1) } else { height };
    let crop_width = if whole > ratio[1] { rounded(height as f64 * ratio[1]).max(1) } else { width };
    Crop { top: (height - crop_height) / 2, left: (width - crop_width) / 2, height: crop_height, width: crop_width }
}

/// The probe's shift at `key`: top, left, flip are read in this order.
pub fn draw_shift(key: ViewKey, padding: i64, flip_probability: f64) -> Shift {
    let mut stream = Stream::at(key);
    let top = stream.below(2 * padding + 1);
    let left = stream.below(2 * padding + 1);
    Shift { top, left, flip: stream.happens(flip_probability) }
}

/// The resized crop at `key` of an image of `height` x `width` pixels; flip, then the crop are read.
pub fn draw_resized_crop(
    key: ViewKey,
    scale: [f64; 2],
    ratio: [f64; 2],
    flip_probability: f64,
    height: i64,
    width: i64,
) -> ResizedCrop {
    let mut stream = Stream::at(key);
    let flip = stream.happens(flip_probability);
    ResizedCrop { crop: draw_crop(&mut stream, scale, ratio, height, width), flip }
}
