//! The views of a batch, worked out on the host before the images are touched: what is drawn ahead, by another thread,
//! while the device is busy. In: which image each view is made of and its parameters. Out: uint8 views.

use tch::{Device, Tensor};

use super::colour::{self, Adjustment};
use super::groups::Groups;
use super::numbers::{Packer, Slot};
use super::params::{JitterOp, ViewParams};
use super::resize::{Crops, Filter, Resizer};
use super::{AugmentError, blur::Blur, check_images};
use crate::native::{self, NativeError, parallel_map};

/// A planned batch; its numbers are packed into one tensor on the host, which one transfer brings to the device.
#[derive(Debug)]
pub struct Plan {
    /// Height and width of the images.
    sides: (i64, i64),
    /// One past the last image that a view is made of.
    end: i64,
    chunks: Vec<Chunk>,
    numbers: Tensor,
}

/// Views that are computed together.
#[derive(Debug)]
struct Chunk {
    source: Slot,
    crops: Crops,
    jitter: [Groups<Adjustment>; 4],
    grayscale: Groups<()>,
    blur: Groups<Blur>,
}

impl Plan {
    /// Plans views of side `size`: view i is made of image `source[i]` of `height` x `width` pixels, by `params[i]`, on
    /// `device`.
    ///
    /// # Errors
    /// `source` and `params` differ in length, a crop leaves its image, a sigma is out of range, or `size` is below 1.
    pub fn new(
        source: &[i64],
        params: &[ViewParams],
        (height, width): (i64, i64),
        size: i64,
        device: Device,
    ) -> Result<Self, AugmentError> {
        if source.len() != params.len() {
            return Err(AugmentError::Count { images: source.len() as i64, params: params.len() });
        }
        if size < 1 {
            return Err(AugmentError::Size { size });
        }
        for (index, row) in params.iter().enumerate() {
            if !row.crop.lies_within(height, width) {
                return Err(AugmentError::Crop { index, crop: row.crop, height, width });
            }
            if let Some(sigma) = row.blur.filter(|sigma| !Blur::allows(*sigma)) {
                return Err(AugmentError::Sigma { index, sigma });
            }
        }
        let largest = (height * width).max(size * size) * 3;
        let together = (chunk_elements(device) / largest).max(1) as usize;
        let lengths = params.iter().flat_map(|row| [row.crop.height, row.crop.width]);
        let resizer = Resizer::new(Filter::Bicubic, lengths, size);
        // The matrices of the resize are most of it; the rest takes a few numbers a view.
        let mut numbers = Packer::with_capacity(params.len() * (size * (height + width) + 32) as usize);
        let chunks = source
            .chunks(together)
            .zip(params.chunks(together))
            .map(|(source, params)| Chunk::new(&mut numbers, source, params, &resizer))
            .collect();
        let end = source.iter().max().map_or(0, |last| last + 1);
        Ok(Self { sides: (height, width), end, chunks, numbers: numbers.staged(device)? })
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
        let numbers = native::send(&self.numbers, images.device())?;
        let jobs: Vec<_> =
            self.chunks.iter().map(|chunk| (chunk, images.shallow_clone(), numbers.shallow_clone())).collect();
        let work = |(chunk, images, numbers): (&Chunk, Tensor, Tensor)| chunk.apply(&images, &numbers);
        let results = match images.device() {
            Device::Cpu => parallel_map(jobs, work),
            _ => jobs.into_iter().map(work).collect(),
        };
        Ok(Tensor::f_cat(&results, 0).map_err(NativeError::from)?)
    }
}

impl Chunk {
    fn new(numbers: &mut Packer, source: &[i64], params: &[ViewParams], resizer: &Resizer) -> Self {
        let factors = |rows: &[&ViewParams], operation: JitterOp| -> Vec<f64> {
            rows.iter().filter_map(|row| row.jitter).map(|jitter| jitter.factor(operation)).collect()
        };
        Self {
            source: numbers.integers(source),
            crops: resizer.crops(numbers, params),
            jitter: [0, 1, 2, 3].map(|position| {
                Groups::new(
                    numbers,
                    params,
                    |row| row.jitter.map(|jitter| jitter.order[position]),
                    |numbers, operation, rows| Adjustment::new(numbers, operation, &factors(rows, operation)),
                )
            }),
            grayscale: Groups::new(numbers, params, |row| row.grayscale.then_some(()), |_, (), _| ()),
            blur: Groups::new(
                numbers,
                params,
                |row| row.blur.map(Blur::whole_radius),
                |numbers, _, rows| Blur::new(numbers, &rows.iter().filter_map(|row| row.blur).collect::<Vec<_>>()),
            ),
        }
    }

    fn apply(&self, images: &Tensor, numbers: &Tensor) -> Tensor {
        let mut pixels = self.crops.apply(&images.index_select(0, &self.source.of(numbers)), numbers);
        for operation in &self.jitter {
            pixels = operation.apply(&pixels, numbers, |subset, adjustment| adjustment.apply(subset, numbers));
        }
        pixels = self.grayscale.apply(&pixels, numbers, |subset, ()| colour::grayscale(subset));
        self.blur.apply(&pixels, numbers, |subset, blur| blur.apply(subset, numbers))
    }
}

/// How many float64 values a chunk of images may take: on the CPU what stays in its caches, on an accelerator what
/// fills it without taking memory from the network.
fn chunk_elements(device: Device) -> i64 {
    match device {
        Device::Cpu => 1 << 18,
        _ => 1 << 24,
    }
}
