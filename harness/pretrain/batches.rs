//! The batches of a run, drawn ahead. In: which images, and the addresses that their views are drawn at. Out: batch after
//! batch, planned on the host by a thread of its own, and views after views, computed on a GPU beside the step before.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use tch::{Device, Tensor};

use super::PretrainError;
use super::order::epoch_order;
use crate::augment::{self, Plan, ViewKey, ViewParams};
use crate::dataset::ImageSet;
use crate::native::{
    self,
    graph::{Purpose, SideStream},
};
use crate::recipe::AugmentRecipe;

/// Batches that wait at most, beside the one that the thread has in hand: enough to hide the drawing, while their memory
/// stays small.
const AHEAD: usize = 2;

/// What the views of one training set are drawn by.
#[derive(Debug, Clone, Copy)]
pub struct Views<'a> {
    pub recipe: &'a AugmentRecipe,
    pub seed: u64,
    /// Height and width of the images.
    pub sides: (i64, i64),
    /// Where the images lie.
    pub device: Device,
}

impl<'a> Views<'a> {
    pub fn new(set: &ImageSet, recipe: &'a AugmentRecipe, seed: u64) -> Result<Self, PretrainError> {
        let images = set.resident("pre-training")?;
        let (_, _, height, width) = images.size4()?;
        Ok(Self { recipe, seed, sides: (height, width), device: images.device() })
    }

    /// Both views of the images at official `indices` in `epoch`, planned, and the parameters that were drawn: (image 0
    /// view 0, image 0 view 1, image 1 view 0, ...).
    pub fn plan(&self, epoch: usize, indices: &[i64]) -> Result<(Plan, Vec<ViewParams>), PretrainError> {
        let &Self { recipe, seed, sides: (height, width), device } = self;
        let source: Vec<i64> = indices.iter().flat_map(|&image| [image; 2]).collect();
        let draw = |(&image, view): (&i64, u64)| {
            augment::draw(recipe, ViewKey { seed, epoch: epoch as u64, image: image as u64, view }, height, width)
        };
        let params: Vec<ViewParams> = source.iter().zip([0, 1].into_iter().cycle()).map(draw).collect();
        Ok((Plan::new(&source, &params, self.sides, recipe.size, device)?, params))
    }

    /// The planned views of `set`: uint8 `[N, 2, 3, S, S]`.
    pub fn apply(&self, plan: &Plan, set: &ImageSet) -> Result<Tensor, PretrainError> {
        let size = self.recipe.size;
        Ok(plan.apply(set.resident("pre-training")?)?.f_view([-1, 2, 3, size, size])?)
    }
}

/// The official indices of an epoch, batch by batch.
pub fn batches_of(list: &[i64], batch_size: usize, epoch: usize) -> Result<Vec<Vec<i64>>, PretrainError> {
    let indices = |batch: &[i64]| batch.iter().map(|&position| list[position as usize]).collect();
    Ok(epoch_order(list.len(), epoch, 0, 1)?.chunks(batch_size).map(indices).collect())
}

/// A batch that waits to be computed.
#[derive(Debug)]
pub struct Batch {
    pub indices: Vec<i64>,
    pub plan: Plan,
}

/// Every batch of `epochs` in order, planned by a thread of `scope` that ends with them or when nobody receives any more.
/// After an error nothing follows.
pub fn ahead<'scope>(
    scope: &'scope Scope<'scope, '_>,
    views: Views<'scope>,
    epochs: impl Iterator<Item = usize> + Send + 'scope,
    batches_of: impl Fn(usize) -> Result<Vec<Vec<i64>>, PretrainError> + Send + 'scope,
) -> Receiver<Result<Batch, PretrainError>> {
    let (sender, receiver) = sync_channel(AHEAD);
    scope.spawn(move || {
        for epoch in epochs {
            let batches = match batches_of(epoch) {
                Ok(batches) => batches,
                Err(error) => return drop(sender.send(Err(error))),
            };
            for indices in batches {
                let plan = native::guarded(|| views.plan(epoch, &indices)).map_err(PretrainError::from).flatten();
                let last = plan.is_err();
                if sender.send(plan.map(|(plan, _)| Batch { indices, plan })).is_err() || last {
                    return;
                }
            }
        }
    });
    receiver
}

/// The views of planned batches, computed one batch ahead: on a GPU on a queue of their own, while the step on the views
/// before is under way. Uint8 `[N, 2, 3, S, S]` each.
#[derive(Debug)]
pub struct ViewsAhead<'a, B> {
    views: Views<'a>,
    set: &'a ImageSet,
    batches: B,
    side: Option<SideStream>,
    next: Option<Result<Tensor, PretrainError>>,
}

impl<'a, B: Iterator<Item = Result<Batch, PretrainError>>> ViewsAhead<'a, B> {
    /// Computes the first views at once.
    pub fn new(views: Views<'a>, set: &'a ImageSet, batches: B) -> Result<Self, PretrainError> {
        let mut ahead = Self { views, set, batches, side: SideStream::new(Purpose::Views, views.device)?, next: None };
        ahead.next = ahead.compute();
        Ok(ahead)
    }

    fn compute(&mut self) -> Option<Result<Tensor, PretrainError>> {
        let apply = |batch: Batch| self.views.apply(&batch.plan, self.set);
        let compute = |batch| match &self.side {
            Some(side) => side.run(|| apply(batch)).map_err(PretrainError::from).flatten(),
            None => apply(batch),
        };
        Some(self.batches.next()?.and_then(compute))
    }
}

impl<B: Iterator<Item = Result<Batch, PretrainError>>> Iterator for ViewsAhead<'_, B> {
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
