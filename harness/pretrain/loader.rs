//! The batches of a run. In: a list's images, which lie on the device, and a recipe. Out: batch after batch of views, planned
//! on the host by a thread of its own, and computed on a GPU beside the step before.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use tch::{Device, Tensor};

use super::PretrainError;
use super::order::epoch_order;
use crate::augment::{self, Plan, ViewKey, ViewParams};
use crate::native::graph::{Purpose, SideStream};
use crate::native::guarded;
use crate::recipe::{AugmentRecipe, Recipe};
use crate::split::Subset;

/// Planned batches that wait at most, beside the one that the thread has in hand: enough to hide the drawing, while their
/// memory stays small.
const AHEAD: usize = 2;

/// The parameters of both views of the image at `address`, of `sides` (height and width) pixels, in `epoch`.
pub fn draw_views(
    recipe: &AugmentRecipe,
    seed: u64,
    epoch: usize,
    address: u64,
    (height, width): (i64, i64),
) -> [ViewParams; 2] {
    let key = |view| ViewKey { seed, epoch: epoch as u64, image: address, view };
    [0, 1].map(|view| augment::draw(recipe, key(view), height, width))
}

/// What the views of a list are drawn by: all that the planning thread has.
struct Drawing {
    recipe: AugmentRecipe,
    seed: u64,
    batch_size: usize,
    /// Height and width of the images, and where they lie.
    sides: (i64, i64),
    device: Device,
    /// Of each entry of the list.
    rows: Vec<i64>,
    addresses: Vec<u64>,
}

impl Drawing {
    /// The views of the entries at `positions` of the list: (entry 0 view 0, entry 0 view 1, entry 1 view 0, ...).
    fn plan(&self, epoch: usize, positions: &[i64]) -> Result<Plan, PretrainError> {
        let Self { recipe, seed, sides, device, .. } = self;
        let source: Vec<i64> = positions.iter().flat_map(|&position| [self.rows[position as usize]; 2]).collect();
        let draw = |&position: &i64| draw_views(recipe, *seed, epoch, self.addresses[position as usize], *sides);
        let params: Vec<ViewParams> = positions.iter().flat_map(draw).collect();
        Ok(Plan::new(&source, &params, *sides, recipe.size, *device)?)
    }

    /// Sends the plan of every batch of `epochs`, until nobody receives any more. After an error nothing follows.
    fn send_all(&self, epochs: impl Iterator<Item = usize>, sender: &SyncSender<Result<Plan, PretrainError>>) {
        for epoch in epochs {
            let order = match epoch_order(self.rows.len(), epoch, 0, 1) {
                Ok(order) => order,
                Err(error) => return drop(sender.send(Err(error.into()))),
            };
            for positions in order.chunks(self.batch_size) {
                let plan = guarded(|| self.plan(epoch, positions)).map_err(PretrainError::from).flatten();
                let last = plan.is_err();
                if sender.send(plan).is_err() || last {
                    return;
                }
            }
        }
    }
}

/// The views of every batch of some epochs in the order of PyTorch's DistributedSampler: uint8 `[N, 2, 3, S, S]` each, of
/// which the last of an epoch may hold fewer. They are computed one batch ahead.
#[derive(Debug)]
pub struct Loader {
    images: Tensor,
    /// Side of the views.
    size: i64,
    /// On a GPU the queue where views are computed.
    side: Option<SideStream>,
    /// `None` when the loader is dropped, which ends the thread.
    plans: Option<Receiver<Result<Plan, PretrainError>>>,
    thread: Option<JoinHandle<()>>,
    next: Option<Result<Tensor, PretrainError>>,
}

impl Loader {
    /// The batches of `epochs` over `subset`, of which the first is computed at once.
    ///
    /// # Errors
    /// The images are files, or there is no side stream on the GPU.
    pub fn new(
        subset: &Subset,
        recipe: &Recipe,
        epochs: impl Iterator<Item = usize> + Send + 'static,
    ) -> Result<Self, PretrainError> {
        let images = subset.resident("pre-training")?.shallow_clone();
        let (_, _, height, width) = images.size4()?;
        let drawing = Drawing {
            recipe: recipe.augment.clone(),
            seed: recipe.seed,
            batch_size: recipe.batch_size,
            sides: (height, width),
            device: images.device(),
            rows: subset.rows.clone(),
            addresses: subset.addresses.clone(),
        };
        let side = SideStream::new(Purpose::Views, images.device())?;
        let (sender, plans) = sync_channel(AHEAD);
        let thread = std::thread::spawn(move || drawing.send_all(epochs, &sender));
        let (plans, thread) = (Some(plans), Some(thread));
        let mut loader = Self { images, size: recipe.augment.size, side, plans, thread, next: None };
        loader.next = loader.compute();
        Ok(loader)
    }

    fn compute(&self) -> Option<Result<Tensor, PretrainError>> {
        let plan = self.plans.as_ref()?.recv().ok()?;
        let apply = |plan: Plan| Ok(plan.apply(&self.images)?.f_view([-1, 2, 3, self.size, self.size])?);
        Some(plan.and_then(|plan| match &self.side {
            Some(side) => side.run(|| apply(plan)).map_err(PretrainError::from).flatten(),
            None => apply(plan),
        }))
    }
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

impl Drop for Loader {
    fn drop(&mut self) {
        drop(self.plans.take());
        // The thread catches its panics.
        drop(self.thread.take().map(JoinHandle::join));
    }
}
