//! The views of a batch, planned on the host by another thread while the device is busy. In: which image each view is made of
//! and its parameters. Out: uint8 views, which `harness/native/augment.cu` computes from the table that is packed
//! here.

use std::collections::HashMap;

use tch::{Device, Tensor};

use super::blur::ExtendedBox;
use super::params::{Crop, JitterOp, ViewParams};
use super::resize::Filter;
use super::{AugmentError, check_images};
use crate::native::{self, augment::VIEW_WORDS};

/// Largest side of images and of views: the kernels use 32-bit offsets within an image.
pub const MAX_SIDE: i64 = 1 << 14;

/// A planned batch, packed into one table on the host and sent to the device in one transfer: 80 bytes for each view, and taps
/// whose size depends only on the sizes of images and views.
#[derive(Debug)]
pub struct Plan {
    /// Height and width of the images, and of the views.
    sides: (i64, i64),
    view_sides: (i64, i64),
    /// One past the last image that a view is made of.
    end: i64,
    count: usize,
    table: Tensor,
}

impl Plan {
    /// Plans views of side `size`: view i is made of image `source[i]` of `height` x `width` pixels, by `params[i]`, on
    /// `device`.
    ///
    /// # Errors
    /// `source` and `params` differ in length, a source is negative, a crop leaves its image, an operation comes twice, a
    /// sigma is out of range, `size` is below 1, or a side is above `MAX_SIDE`.
    pub fn new(
        source: &[i64],
        params: &[ViewParams],
        sides: (i64, i64),
        size: i64,
        device: Device,
    ) -> Result<Self, AugmentError> {
        if source.len() != params.len() {
            return Err(AugmentError::Count { images: source.len() as i64, params: params.len() });
        }
        if size < 1 {
            return Err(AugmentError::Size { size });
        }
        let mut table = Table::new(params.len(), sides, (size, size))?;
        for (&source, params) in source.iter().zip(params) {
            let ViewParams { crop, flip, jitter, grayscale, blur } = params;
            let jitter = jitter.map(|jitter| jitter.order.map(|operation| (operation, jitter.factor(operation))));
            table.push(source, *crop, *flip, jitter.as_ref().map_or(&[], |jitter| jitter), *grayscale, *blur)?;
        }
        table.staged(device)
    }

    /// Plans one operation of the jitter for each image, and nothing else.
    pub(super) fn adjusting(
        operation: JitterOp,
        factors: &[f64],
        sides: (i64, i64),
        device: Device,
    ) -> Result<Self, AugmentError> {
        let mut table = Table::new(factors.len(), sides, sides)?;
        for (source, &factor) in (0..).zip(factors) {
            let whole = Crop { top: 0, left: 0, height: sides.0, width: sides.1 };
            table.push(source, whole, false, &[(operation, factor)], false, None)?;
        }
        table.staged(device)
    }

    /// The views of `images` (uint8 `[N, 3, H, W]`): uint8 `[views, 3, size, size]` on the same device.
    ///
    /// # Errors
    /// The images have another kind or shape than those planned for, or there are too few.
    pub fn apply(&self, images: &Tensor) -> Result<Tensor, AugmentError> {
        let count = images.size().first().copied().unwrap_or_default();
        let sides = check_images(images, count.max(0) as usize)?;
        if sides != self.sides || count < self.end {
            let (kind, shape) = (images.kind(), images.size());
            return Err(AugmentError::OtherImages { kind, shape, sides: self.sides, end: self.end });
        }
        let table = native::send(&self.table, images.device())?;
        // SAFETY: the table was made of `count` views of these sides, each of a crop within an image below `end`.
        Ok(unsafe { native::augment::views(images, &table, self.count, self.view_sides) }?)
    }
}

/// What `augment.cu` reads, as it is put together.
struct Table {
    sides: (i64, i64),
    view_sides: (i64, i64),
    end: i64,
    count: usize,
    views: Vec<i32>,
    /// Behind the views: how lines become those of a view, and where that stands for each length and side.
    taps: Vec<i32>,
    places: HashMap<(i64, i64), i32>,
}

impl Table {
    fn new(count: usize, sides: (i64, i64), view_sides: (i64, i64)) -> Result<Self, AugmentError> {
        if [sides.0, sides.1, view_sides.0, view_sides.1].iter().any(|side| *side > MAX_SIDE) {
            return Err(AugmentError::TooLarge { images: sides, views: view_sides });
        }
        let views = Vec::with_capacity(count * VIEW_WORDS);
        Ok(Self { sides, view_sides, end: 0, count, views, taps: Vec::new(), places: HashMap::new() })
    }

    /// Adds a view, as the `View` of `augment.cu`.
    fn push(
        &mut self,
        source: i64,
        crop: Crop,
        flip: bool,
        jitter: &[(JitterOp, f64)],
        grayscale: bool,
        sigma: Option<f64>,
    ) -> Result<(), AugmentError> {
        let index = self.views.len() / VIEW_WORDS;
        let (height, width) = self.sides;
        if !crop.lies_within(height, width) {
            return Err(AugmentError::Crop { index, crop, height, width });
        }
        if !(0..i64::from(i32::MAX)).contains(&source) {
            return Err(AugmentError::Source { index, source_image: source });
        }
        let twice = |(i, (operation, _)): (usize, &(JitterOp, f64))| {
            jitter[..i].iter().any(|(earlier, _)| earlier == operation).then_some(*operation)
        };
        if let Some(operation) = jitter.iter().enumerate().find_map(twice) {
            return Err(AugmentError::Twice { index, operation });
        }
        let blur = match sigma {
            Some(sigma) => ExtendedBox::of_sigma(sigma).ok_or(AugmentError::Sigma { index, sigma })?,
            None => ExtendedBox { whole: -1, inside: 0, edge: 0 },
        };
        self.end = self.end.max(source + 1);
        let rows = self.place(crop.height, self.view_sides.0);
        let columns = self.place(crop.width, self.view_sides.1);
        let (mut operations, mut factors) = ([0; 4], [0; 4]);
        for (place, &(operation, factor)) in jitter.iter().enumerate() {
            (operations[place], factors[place]) = coded(operation, factor);
        }
        let Crop { top, left, height, width } = crop;
        self.views.extend([source, top, left, height, width].map(|number| number as i32));
        self.views.extend([rows, columns, i32::from(flip)]);
        self.views.extend(operations);
        self.views.extend(factors);
        self.views.extend([i32::from(grayscale), blur.whole, blur.inside, blur.edge]);
        Ok(())
    }

    /// Where the taps of a line of `length` pixels resized to `resized` lie. All pixels have the same number of taps; unused
    /// ones have a weight of 0.
    fn place(&mut self, length: i64, resized: i64) -> i32 {
        let Self { count, taps: packed, places, .. } = self;
        *places.entry((length, resized)).or_insert_with(|| {
            let place = *count * VIEW_WORDS + packed.len();
            let taps = Filter::Bicubic.taps(length, resized, 0..resized);
            let most = taps.iter().map(|taps| taps.weights.len()).max().unwrap_or_default();
            let first = |taps: &super::resize::Taps| taps.first.min(length as usize - most);
            packed.push(most as i32);
            packed.extend(taps.iter().map(|taps| first(taps) as i32));
            for taps in &taps {
                let end = packed.len() + most;
                packed.resize(packed.len() + taps.first - first(taps), 0);
                packed.extend(&taps.weights);
                packed.resize(end, 0);
            }
            place as i32
        })
    }

    fn staged(mut self, device: Device) -> Result<Plan, AugmentError> {
        self.views.append(&mut self.taps);
        let Self { sides, view_sides, end, count, .. } = self;
        Ok(Plan { sides, view_sides, end, count, table: native::staged(Tensor::from_slice(&self.views), device)? })
    }
}

/// An operation's number in `augment.cu`, and the bits of its factor: a float32, the type that PIL's enhancements use;
/// for hue, turns truncated toward zero to steps of 1/255, then modulo 256.
fn coded(operation: JitterOp, factor: f64) -> (i32, i32) {
    let (operation, factor) = match operation {
        JitterOp::Brightness => (1, factor as f32),
        JitterOp::Contrast => (2, factor as f32),
        JitterOp::Saturation => (3, factor as f32),
        JitterOp::Hue => (4, f32::from((factor * 255.0) as i64 as u8)),
    };
    (operation, factor.to_bits().cast_signed())
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::super::{ViewKey, draw};
    use super::*;
    use crate::recipe::{AugmentRecipe, Recipe};

    /// Tests without a GPU that the threads of a block divide a view correctly: every pixel is computed, and no thread reads
    /// what another writes in the same phase, since otherwise the order of threads would change the result.
    #[test]
    fn threads_of_a_block_compute_what_one_thread_does() {
        let mut recipe = Recipe::resolve("cifar10-lt/sdclr", &[]).unwrap().augment;
        recipe.blur_probability = 0.5;
        let block = (32, 8);
        for (sides, size, block) in [
            ((32, 32), 32, block),
            ((32, 32), 32, (5, 3)),
            ((40, 23), 24, block),
            ((9, 70), 1, block),
            ((1, 1), 5, block),
            ((80, 64), 70, block),
        ] {
            let (height, width) = sides;
            let images = Tensor::arange(4 * 3 * height * width, (Kind::Int64, Device::Cpu));
            let images = (&images * &images * 40_503).remainder(65_521).remainder(256).to_kind(Kind::Uint8);
            let images = images.view([4, 3, height, width]);
            let source: Vec<i64> = (0..48).map(|view| view % 4).collect();
            let mut params: Vec<ViewParams> = (0..48)
                .map(|image| draw(&recipe, ViewKey { seed: 3, epoch: 1, image, view: 0 }, height, width))
                .collect();
            // A box wider than the view.
            params[0].blur = Some(25.0);
            let plan = Plan::new(&source, &params, sides, size, Device::Cpu).unwrap();
            let alone = plan.apply(&images).unwrap();
            for backwards in [false, true] {
                let Plan { table, count, view_sides, .. } = &plan;
                // SAFETY: the table, the count and the sides of one plan, and images that it is for.
                let together =
                    unsafe { native::augment::views_like_cuda(&images, table, *count, *view_sides, block, backwards) };
                assert_eq!(together.unwrap(), alone, "{sides:?} {size} {block:?} {backwards}");
            }
        }
    }

    #[test]
    fn a_plan_takes_few_bytes_a_view() {
        let cifar = Recipe::resolve("cifar10-lt/sdclr", &[]).unwrap().augment;
        // (side of the images, of the views, number of views), and the most taps that a pixel has.
        for (side, size, views, taps) in [(32, 32, 1024, 5), (224, 224, 8192, 5), (500, 224, 1024, 10), (9, 40, 1, 5)] {
            let recipe = AugmentRecipe { size, scale: [0.08, 1.0], blur_probability: 0.5, ..cifar.clone() };
            let key = |image| ViewKey { seed: 1, epoch: 1, image, view: 0 };
            let params: Vec<ViewParams> = (0..views).map(|image| draw(&recipe, key(image), side, side)).collect();
            let source: Vec<i64> = (0..views as i64).collect();
            let plan = Plan::new(&source, &params, (side, side), size, Device::Cpu).unwrap();
            // Each length that occurs has a place and weights for every pixel of the views.
            let lengths = side.min(2 * views as i64);
            let most = 80 * views as i64 + lengths * 4 * (1 + size * (1 + taps));
            let bytes = 4 * plan.table.numel() as i64;
            assert!(bytes <= most, "{bytes} bytes for {views} views of {side} to {size} pixels");
        }
    }
}
