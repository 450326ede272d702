//! The views of a batch, planned on the host by another thread while the device is busy. In: where the images lie that the
//! views are made of, and their parameters. Out: uint8 views, which `harness/native/augment.cu` computes from the table that is
//! packed here.

use std::collections::HashMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::blur::ExtendedBox;
use super::params::{Crop, JitterOp, ResizedCrop, ViewParams};
use super::resize::{Axis, Filter};
use super::{AugmentError, check_images};
use crate::dataset::Place;
use crate::native::augment::{Shape, VIEW_WORDS};
use crate::native::{self};

/// Largest side of views.
pub const MAX_SIDE: i64 = 1 << 14;

/// Longest line of an image whose rows are resized eight at once.
const LONGEST_LINE: i64 = 1 << 16;

/// How the pixels of images lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Images of one height and width, each channel by itself: `[N, 3, H, W]`.
    Planes { sides: (i64, i64) },
    /// Images of any sides, the channels of a pixel together, at places of their own.
    Pixels,
}

/// A planned batch, packed into one table on the host and sent to the device in one transfer: 88 bytes for each view, and taps
/// whose size depends only on the sizes of images and views.
#[derive(Debug)]
pub struct Plan {
    layout: Layout,
    /// One past the last byte of the images that a view is made of.
    end: i64,
    shape: Shape,
    table: Tensor,
}

impl Plan {
    /// Plans views of side `size` of a tensor of images: view i is made of image `source[i]` of `height` x `width` pixels,
    /// by `params[i]`, on `device`.
    ///
    /// # Errors
    /// `source` and `params` differ in length, a source is negative, a crop leaves its image, an operation comes twice, a
    /// sigma is out of range, `size` is below 1, or a side is too large.
    pub fn new(
        source: &[i64],
        params: &[ViewParams],
        sides: (i64, i64),
        size: i64,
        device: Device,
    ) -> Result<Self, AugmentError> {
        Self::views(Layout::Planes { sides }, &places_of(source, sides)?, params, size, device)
    }

    /// Plans views of side `size` of packed images: view i is made of the image at `places[i]`, by `params[i]`.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of_packed(places: &[Place], params: &[ViewParams], size: i64, device: Device) -> Result<Self, AugmentError> {
        Self::views(Layout::Pixels, places, params, size, device)
    }

    fn views(
        layout: Layout,
        places: &[Place],
        params: &[ViewParams],
        size: i64,
        device: Device,
    ) -> Result<Self, AugmentError> {
        let mut table = Table::new(layout, (places.len(), params.len()), (size, size))?;
        for (&place, params) in places.iter().zip(params) {
            let ViewParams { crop, flip, jitter, grayscale, blur } = params;
            let jitter = jitter.map(|jitter| jitter.order.map(|operation| (operation, jitter.factor(operation))));
            let jitter = jitter.as_ref().map_or(&[][..], |jitter| jitter);
            let work = Work { flip: *flip, jitter, grayscale: *grayscale, sigma: *blur };
            table.crop(place, *crop, Filter::Bicubic, work)?;
        }
        table.staged(device)
    }

    /// Plans one operation of the jitter for each image of a tensor, and nothing else.
    pub(super) fn adjusting(
        operation: JitterOp,
        factors: &[f64],
        sides: (i64, i64),
        device: Device,
    ) -> Result<Self, AugmentError> {
        let source: Vec<i64> = (0..factors.len() as i64).collect();
        let places = places_of(&source, sides)?;
        let mut table = Table::new(Layout::Planes { sides }, (places.len(), factors.len()), sides)?;
        for (&place, &factor) in places.iter().zip(factors) {
            let whole = Crop { top: 0, left: 0, height: sides.0, width: sides.1 };
            table.crop(place, whole, Filter::Bicubic, Work { jitter: &[(operation, factor)], ..Work::default() })?;
        }
        table.staged(device)
    }

    /// Plans the training views of ImageNet's probe, RandomResizedCrop with bilinear interpolation and flip: view i of the
    /// packed image at `places[i]`, by `crops[i]`.
    ///
    /// # Errors
    /// The two differ in length, a crop leaves its image, `size` is below 1, or a side is too large.
    pub fn of_crops(places: &[Place], crops: &[ResizedCrop], size: i64, device: Device) -> Result<Self, AugmentError> {
        let mut table = Table::new(Layout::Pixels, (places.len(), crops.len()), (size, size))?;
        for (&place, &ResizedCrop { crop, flip }) in places.iter().zip(crops) {
            table.crop(place, crop, Filter::Bilinear, Work { flip, ..Work::default() })?;
        }
        table.staged(device)
    }

    /// Plans the transform of validation and test images, for the packed images at `places`: short side to `short` (the
    /// other side in proportion, truncated), then the central `size` x `size` pixels, half a pixel rounded up as the published
    /// programs' torchvision does (later ones round half to even).
    ///
    /// # Errors
    /// Not `1 <= size <= short`, or a side is too large.
    pub fn of_centres(places: &[Place], short: i64, size: i64, device: Device) -> Result<Self, AugmentError> {
        let mut table = Table::new(Layout::Pixels, (places.len(), places.len()), (size, size))?;
        if size > short {
            return Err(AugmentError::Centre { size, short });
        }
        for &place in places {
            let shortest = place.height.min(place.width);
            let axis = |length: i64| {
                let resized = short * length / shortest;
                let first = (resized - size + 1) / 2;
                Axis { start: 0, length, resized, kept: first..first + size }
            };
            table.push(place, axis(place.height), axis(place.width), Filter::Bilinear, Work::default())?;
        }
        table.staged(device)
    }

    /// The views of `images`: of a tensor uint8 `[N, 3, H, W]`, or of packed ones. uint8 `[views, 3, size, size]` on the same
    /// device.
    ///
    /// # Errors
    /// The images have another kind or shape than those planned for, or there are too few.
    pub fn apply(&self, images: &Tensor) -> Result<Tensor, AugmentError> {
        let fits = match self.layout {
            Layout::Planes { sides } => {
                let count = images.size().first().copied().unwrap_or_default();
                check_images(images, count.max(0) as usize)? == sides
            }
            Layout::Pixels => images.kind() == Kind::Uint8 && images.dim() == 1,
        };
        if !fits || (images.numel() as i64) < self.end {
            let (kind, shape) = (images.kind(), images.size());
            return Err(AugmentError::OtherImages { kind, shape, layout: self.layout.to_string(), end: self.end });
        }
        let table = native::send(&self.table, images.device())?;
        let images = images.f_contiguous().map_err(native::NativeError::from)?;
        // SAFETY: the table was made of views of this shape, each of a crop within an image of this layout below `end`.
        Ok(unsafe { native::augment::views(&images, &table, self.shape) }?)
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Planes { sides: (height, width) } => write!(f, "[N, 3, {height}, {width}]"),
            Self::Pixels => f.write_str("images packed end to end"),
        }
    }
}

/// Where the images at `source` of a tensor of images of `sides` lie.
fn places_of(source: &[i64], (height, width): (i64, i64)) -> Result<Vec<Place>, AugmentError> {
    let place = |(index, &source): (usize, &i64)| match (0..i64::from(i32::MAX)).contains(&source) {
        // Sides too large for this are refused by the table.
        true => Ok(Place { offset: source.saturating_mul(3 * height * width), height, width }),
        false => Err(AugmentError::Source { index, source_image: source }),
    };
    source.iter().enumerate().map(place).collect()
}

/// What is done to a view after it was cut and resized.
#[derive(Default)]
struct Work<'a> {
    flip: bool,
    jitter: &'a [(JitterOp, f64)],
    grayscale: bool,
    sigma: Option<f64>,
}

/// The taps of a line in the table: where they stand, and which pixels of the line they weigh.
#[derive(Debug, Clone)]
struct Line {
    place: i32,
    read: Range<i64>,
}

/// What `augment.cu` reads, as it is put together.
struct Table {
    layout: Layout,
    view_sides: (i64, i64),
    end: i64,
    count: usize,
    /// Bytes of scratch memory: on the CPU of the view that needs most, and on CUDA of all so far.
    scratch: (i64, i64),
    views: Vec<i32>,
    /// Behind the views: how lines become those of a view, and where that stands for each filter, length, resized length and
    /// first pixel that is kept.
    taps: Vec<i32>,
    places: HashMap<(Filter, i64, i64, i64), Line>,
}

impl Table {
    /// A table of views of the given sides; `counts` are those of images and of parameters, one of each a view.
    fn new(layout: Layout, counts: (usize, usize), view_sides: (i64, i64)) -> Result<Self, AugmentError> {
        let (count, params) = counts;
        if count != params {
            return Err(AugmentError::Count { images: count as i64, params });
        }
        let size = view_sides.0.min(view_sides.1);
        if size < 1 {
            return Err(AugmentError::Size { size });
        }
        if view_sides.0.max(view_sides.1) > MAX_SIDE {
            return Err(AugmentError::LargeViews { views: view_sides });
        }
        let views = Vec::with_capacity(count * VIEW_WORDS);
        let (taps, places) = (Vec::new(), HashMap::new());
        Ok(Self { layout, view_sides, end: 0, count, scratch: (0, 0), views, taps, places })
    }

    /// Adds a view of a crop, resized as a whole.
    fn crop(&mut self, place: Place, crop: Crop, filter: Filter, work: Work) -> Result<(), AugmentError> {
        let Place { height, width, .. } = place;
        if !crop.lies_within(height, width) {
            let index = self.views.len() / VIEW_WORDS;
            return Err(AugmentError::Crop { index, crop, height, width });
        }
        let axis = |start, length, resized| Axis { start, length, resized, kept: 0..resized };
        let rows = axis(crop.top, crop.height, self.view_sides.0);
        let columns = axis(crop.left, crop.width, self.view_sides.1);
        self.push(place, rows, columns, filter, work)
    }

    /// Adds a view, as the `View` of `augment.cu`. The axes lie within the image.
    fn push(
        &mut self,
        place: Place,
        rows: Axis,
        columns: Axis,
        filter: Filter,
        work: Work,
    ) -> Result<(), AugmentError> {
        let index = self.views.len() / VIEW_WORDS;
        let Work { flip, jitter, grayscale, sigma } = work;
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
        let (image_height, image_width) = (place.height, place.width);
        let views = self.view_sides;
        let too_large = || AugmentError::TooLarge { index, image: (image_height, image_width), views };
        let bytes = bytes_of(image_height, image_width).ok_or_else(too_large)?;
        let (top, left) = (rows.start, columns.start);
        let [rows, columns] = [self.place(filter, &rows), self.place(filter, &columns)];
        let height = rows.read.end - rows.read.start;
        // Each channel of the narrowed crop, and of the view while it is blurred.
        let scratch = bytes_of(height.max(views.0), views.1).ok_or_else(too_large)?;
        // Behind it on the CPU: eight rows side by side, as long as in the image and in the view, and one of the result; or a row
        // with the edges that a box reaches.
        let length = (columns.read.end - columns.read.start).min(LONGEST_LINE);
        let beside = (32 * (length + views.1) + 4 * views.1).max(views.1 + 2 * i64::from(blur.whole + 1));
        let (step, row, plane) = match self.layout {
            Layout::Planes { .. } => (1, image_width, image_height * image_width),
            Layout::Pixels => (3, 3 * image_width, 1),
        };
        let first = place.offset + (top + rows.read.start) * row + (left + columns.read.start) * step;
        self.end = self.end.max(place.offset.saturating_add(bytes));
        let (mut operations, mut factors) = ([0; 4], [0; 4]);
        for (place, &(operation, factor)) in jitter.iter().enumerate() {
            (operations[place], factors[place]) = coded(operation, factor);
        }
        self.views.extend([first, self.scratch.1].into_iter().flat_map(words));
        self.views.extend([row, plane, height].map(|number| number as i32));
        self.views.extend([rows.place, columns.place, i32::from(flip)]);
        self.views.extend(operations);
        self.views.extend(factors);
        self.views.extend([i32::from(grayscale), blur.whole, blur.inside, blur.edge]);
        self.scratch = (self.scratch.0.max(scratch + beside), self.scratch.1 + scratch);
        Ok(())
    }

    /// The taps of an axis. All pixels have the same number of taps; unused ones have a weight of 0.
    fn place(&mut self, filter: Filter, axis: &Axis) -> Line {
        let Self { count, taps: packed, places, .. } = self;
        let key = (filter, axis.length, axis.resized, axis.kept.start);
        let new = || {
            let place = (*count * VIEW_WORDS + packed.len()) as i32;
            let taps = filter.taps(axis);
            let most = taps.iter().map(|taps| taps.weights.len()).max().unwrap_or_default();
            let start = taps.iter().map(|taps| taps.first).min().unwrap_or_default();
            let end = taps.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or_default();
            let first = |taps: &super::resize::Taps| taps.first.min(end - most);
            packed.push(most as i32);
            packed.extend(taps.iter().map(|taps| (first(taps) - start) as i32));
            for taps in &taps {
                let end = packed.len() + most;
                packed.resize(packed.len() + taps.first - first(taps), 0);
                packed.extend(&taps.weights);
                packed.resize(end, 0);
            }
            Line { place, read: start as i64..end as i64 }
        };
        places.entry(key).or_insert_with(new).clone()
    }

    fn staged(mut self, device: Device) -> Result<Plan, AugmentError> {
        self.views.append(&mut self.taps);
        let Self { layout, view_sides: sides, end, count, scratch, .. } = self;
        let step = if layout == Layout::Pixels { 3 } else { 1 };
        let table = native::staged(Tensor::from_slice(&self.views), device)?;
        Ok(Plan { layout, end, shape: Shape { count, sides, step, scratch }, table })
    }
}

/// Bytes of an image of these sides; `None` where the kernels' 32-bit offsets within an image do not reach.
fn bytes_of(height: i64, width: i64) -> Option<i64> {
    let bytes = height.checked_mul(width)?.checked_mul(3)?;
    i32::try_from(bytes).is_ok().then_some(bytes)
}

/// A 64-bit number as the two words that make it in memory.
fn words(number: i64) -> [i32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_ne_bytes();
    [i32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h])]
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
    use super::super::blur::MAX_SIGMA;
    use super::super::{ViewKey, draw};
    use super::*;
    use crate::dataset;
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
            let packed = pack(&images);
            let places: Vec<Place> = source.iter().map(|&source| packed.places[source as usize]).collect();
            let of_packed = Plan::of_packed(&places, &params, size, Device::Cpu).unwrap();
            assert_eq!(of_packed.apply(&packed.pixels).unwrap(), alone, "packed, {sides:?} {size}");
            for backwards in [false, true] {
                // SAFETY: the table and the shape of one plan, and images that it is for.
                let together =
                    unsafe { native::augment::views_like_cuda(&images, &plan.table, plan.shape, block, backwards) };
                assert_eq!(together.unwrap(), alone, "{sides:?} {size} {block:?} {backwards}");
                let apart = unsafe {
                    native::augment::views_like_cuda(
                        &packed.pixels,
                        &of_packed.table,
                        of_packed.shape,
                        block,
                        backwards,
                    )
                };
                assert_eq!(apart.unwrap(), alone, "packed, {sides:?} {size} {block:?} {backwards}");
            }
        }
    }

    /// Lines on either side of the length up to which rows are resized eight at once.
    #[test]
    fn long_lines_give_what_planes_give() {
        for width in [LONGEST_LINE, LONGEST_LINE + 1] {
            let images = Tensor::arange(3 * 9 * width, (Kind::Int64, Device::Cpu)).remainder(251).to_kind(Kind::Uint8);
            let images = images.view([1, 3, 9, width]);
            let crop = Crop { top: 0, left: 0, height: 9, width };
            let params = [ViewParams { crop, flip: true, jitter: None, grayscale: false, blur: None }];
            let packed = pack(&images);
            let of_packed = Plan::of_packed(&packed.places, &params, 8, Device::Cpu).unwrap();
            let of_planes = Plan::new(&[0], &params, (9, width), 8, Device::Cpu).unwrap();
            assert_eq!(of_packed.apply(&packed.pixels).unwrap(), of_planes.apply(&images).unwrap(), "{width}");
        }
    }

    /// As many bright pixels as a box can add up.
    #[test]
    fn a_white_view_stays_white_under_the_widest_box() {
        let images = Tensor::full([1, 3, 300, 300], 255, (Kind::Uint8, Device::Cpu));
        let crop = Crop { top: 0, left: 0, height: 300, width: 300 };
        let params = ViewParams { crop, flip: false, jitter: None, grayscale: false, blur: Some(MAX_SIGMA) };
        let plan = Plan::new(&[0], &[params], (300, 300), 300, Device::Cpu).unwrap();
        assert_eq!(plan.apply(&images).unwrap(), images);
    }

    /// The images as a decoder packs them.
    fn pack(images: &Tensor) -> dataset::Packed {
        let (count, _, height, width) = images.size4().unwrap();
        let picture = |index| {
            let pixels = images.get(index).permute([1, 2, 0]).contiguous().flatten(0, -1);
            dataset::Picture { height, width, pixels: pixels.try_into().unwrap() }
        };
        let pictures: Vec<_> = (0..count).map(picture).collect();
        dataset::Packed::of(&pictures, Device::Cpu).unwrap()
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
            let most = 88 * views as i64 + lengths * 4 * (1 + size * (1 + taps));
            let bytes = 4 * plan.table.numel() as i64;
            assert!(bytes <= most, "{bytes} bytes for {views} views of {side} to {size} pixels");
        }
    }
}
