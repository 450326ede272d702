//! The batches of a run. In: a list's images, which lie on the device or are files, and a recipe. Out: batch after batch of
//! views: files decoded and views planned ahead on the host by threads of their own, and views computed on a GPU beside the step
//! before.

use tch::{Device, Tensor};

use super::PretrainError;
use super::order::global_order;
use crate::ahead::Ahead;
use crate::augment::{self, Plan, ViewKey, ViewParams};
use crate::dataset::{ImageFiles, Packed, Place};
use crate::native;
use crate::native::graph::{Purpose, SideStream};
use crate::native::group::Group;
use crate::recipe::{AugmentRecipe, Recipe};
use crate::split::{Images, Subset};

/// Planned batches that wait at most, beside the one that the thread has in hand: enough to hide the drawing, while their
/// memory stays small.
const AHEAD: usize = 2;

/// Those of files, whose decoded images take about 600 KB each; two more are being decoded and planned.
const FILES_AHEAD: usize = 1;

/// The parameters of both views of the image at `address`, of `sides` (height and width) pixels, in `epoch`. An image that
/// comes again in an epoch, `repeat` times before, gets other ones.
pub fn draw_views(
    recipe: &AugmentRecipe,
    seed: u64,
    epoch: usize,
    (address, repeat): (u64, u64),
    (height, width): (i64, i64),
) -> [ViewParams; 2] {
    let key = |view| ViewKey { seed, epoch: epoch as u64, image: address, view: 2 * repeat + view };
    [0, 1].map(|view| augment::draw(recipe, key(view), height, width))
}

/// A batch of an epoch: positions in the list, and how often each image came before in the epoch.
#[derive(Debug)]
struct Batch {
    epoch: usize,
    entries: Vec<(i64, u64)>,
}

/// What the views of a list are drawn by: all that the planning threads have.
#[derive(Clone)]
struct Drawing {
    recipe: AugmentRecipe,
    seed: u64,
    batch_size: usize,
    /// Processes of the published sampler.
    world: usize,
    /// Computes its slice of each batch.
    group: Group,
    device: Device,
    /// Of each entry of the list.
    rows: Vec<i64>,
    addresses: Vec<u64>,
}

impl Drawing {
    /// The batches of `epochs`, in order.
    fn batches(self, epochs: impl Iterator<Item = usize>) -> impl Iterator<Item = Result<Batch, PretrainError>> {
        epochs.flat_map(move |epoch| {
            let images = self.rows.len();
            let (order, error) = match global_order(images, epoch, self.world) {
                Ok(order) => (order, None),
                Err(error) => (Vec::new(), Some(Err(error.into()))),
            };
            let entries: Vec<(i64, u64)> =
                order.into_iter().enumerate().map(|(place, position)| (position, (place / images) as u64)).collect();
            let batch = |all: &[(i64, u64)]| Batch { epoch, entries: all[self.group.slice(all.len())].to_vec() };
            let batches: Vec<_> = entries.chunks(self.batch_size).map(|entries| Ok(batch(entries))).collect();
            batches.into_iter().chain(error)
        })
    }

    /// The places of a batch's images among those of the list.
    fn rows(&self, batch: &Batch) -> Vec<i64> {
        batch.entries.iter().map(|&(position, _)| self.rows[position as usize]).collect()
    }

    /// The parameters of a batch's views, of images of the given sides: (entry 0 view 0, entry 0 view 1, entry 1 view 0, ...).
    fn draw(&self, batch: &Batch, sides: impl Iterator<Item = (i64, i64)>) -> Vec<ViewParams> {
        let Self { recipe, seed, addresses, .. } = self;
        let draw = |(&(position, repeat), sides): (&(i64, u64), (i64, i64))| {
            draw_views(recipe, *seed, batch.epoch, (addresses[position as usize], repeat), sides)
        };
        batch.entries.iter().zip(sides).flat_map(draw).collect()
    }

    /// Plans the views of images of one size, which lie on the device.
    fn plan(&self, batch: &Batch, images: &Tensor) -> Result<Loaded, PretrainError> {
        let (_, _, height, width) = images.size4()?;
        let sides = (height, width);
        let source: Vec<i64> = self.rows(batch).into_iter().flat_map(|row| [row; 2]).collect();
        let params = self.draw(batch, std::iter::repeat(sides));
        let plan = Plan::new(&source, &params, sides, self.recipe.size, self.device)?;
        Ok(Loaded { pixels: images.shallow_clone(), plan })
    }

    /// Plans the views of decoded files.
    fn plan_packed(&self, batch: &Batch, packed: Packed) -> Result<Loaded, PretrainError> {
        let params = self.draw(batch, packed.places.iter().map(|place| (place.height, place.width)));
        let places: Vec<Place> = packed.places.iter().flat_map(|&place| [place; 2]).collect();
        let plan = Plan::of_packed(&places, &params, self.recipe.size, self.device)?;
        Ok(Loaded { pixels: packed.pixels, plan })
    }
}

/// A batch that only the device has still to compute.
#[derive(Debug)]
struct Loaded {
    /// Its decoded images, or all of the list's where they lie on the device.
    pixels: Tensor,
    plan: Plan,
}

/// The views of every batch of some epochs in the order of PyTorch's DistributedSampler: uint8 `[N, 2, 3, S, S]` each, of
/// which the last of an epoch may hold fewer. They are computed one batch ahead.
#[derive(Debug)]
pub struct Loader {
    device: Device,
    /// Side of the views.
    size: i64,
    /// On a GPU the queue where views are computed.
    side: Option<SideStream>,
    loaded: Ahead<Result<Loaded, PretrainError>>,
    next: Option<Result<Tensor, PretrainError>>,
}

impl Loader {
    /// The batches of `epochs` over `subset` on `device`, of which the first is computed at once.
    ///
    /// # Errors
    /// There is no side stream on the GPU.
    pub fn new(
        subset: &Subset,
        recipe: &Recipe,
        device: Device,
        epochs: impl Iterator<Item = usize> + Send + 'static,
    ) -> Result<Self, PretrainError> {
        Self::of_rank(subset, recipe, device, Group::default(), epochs, 0)
    }

    /// Of each batch the slice of this process in `group`; the first `taken` batches are left out.
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn of_rank(
        subset: &Subset,
        recipe: &Recipe,
        device: Device,
        group: Group,
        epochs: impl Iterator<Item = usize> + Send + 'static,
        taken: usize,
    ) -> Result<Self, PretrainError> {
        let drawing = Drawing {
            recipe: recipe.augment.clone(),
            seed: recipe.seed,
            batch_size: recipe.batch_size,
            world: recipe.sampler_world,
            group,
            device,
            rows: subset.rows.clone(),
            addresses: subset.addresses.clone(),
        };
        let side = SideStream::new(Purpose::Views, device)?;
        let batches = drawing.clone().batches(epochs).skip(taken);
        let loaded = match &subset.images {
            Images::Resident(images) => {
                let images = images.shallow_clone();
                ahead(AHEAD, batches, move |batch: Result<Batch, _>| drawing.plan(&batch?, &images))
            }
            Images::Files(files) => of_files(files.clone(), drawing, batches),
        };
        let mut loader = Self { device, size: recipe.augment.size, side, loaded, next: None };
        loader.next = loader.compute();
        Ok(loader)
    }

    fn compute(&mut self) -> Option<Result<Tensor, PretrainError>> {
        let loaded = self.loaded.next()?;
        let apply = |Loaded { pixels, plan }: Loaded| {
            let views = plan.apply(&native::send(&pixels, self.device)?)?;
            Ok(views.f_view([-1, 2, 3, self.size, self.size])?)
        };
        Some(loaded.and_then(|loaded| match &self.side {
            Some(side) => side.run(|| apply(loaded)).map_err(PretrainError::from).flatten(),
            None => apply(loaded),
        }))
    }
}

/// The batches of files: one thread has them decoded, another plans what is decoded.
fn of_files(
    files: ImageFiles,
    drawing: Drawing,
    batches: impl Iterator<Item = Result<Batch, PretrainError>> + Send + 'static,
) -> Ahead<Result<Loaded, PretrainError>> {
    let decoding = drawing.clone();
    let decode = move |batch: Result<Batch, PretrainError>| {
        let batch = batch?;
        let packed = files.packed(&decoding.rows(&batch), decoding.device)?;
        Ok((batch, packed))
    };
    let decoded = ahead(0, batches, decode);
    let plan = move |decoded: Result<(Batch, Packed), PretrainError>| {
        let (batch, packed) = decoded?;
        drawing.plan_packed(&batch, packed)
    };
    ahead(FILES_AHEAD, decoded, plan)
}

/// What `make` makes of each batch, ahead, up to and with the first error.
fn ahead<J: 'static, T: Send + 'static>(
    waiting: usize,
    batches: impl Iterator<Item = J> + Send + 'static,
    make: impl FnMut(J) -> Result<T, PretrainError> + Send + 'static,
) -> Ahead<Result<T, PretrainError>> {
    Ahead::new(waiting, batches, make, |panic| Err(panic.into()))
}

impl Iterator for Loader {
    type Item = Result<Tensor, PretrainError>;

    /// The next views. Those before must be given to their step and dropped by then: their memory may be used again.
    fn next(&mut self) -> Option<Self::Item> {
        let ready = self.next.take()?;
        if let Some(Err(error)) = self.side.as_ref().map(SideStream::join) {
            return Some(Err(error.into()));
        }
        if ready.is_ok() {
            self.next = self.compute();
        }
        Some(ready)
    }
}
