//! The order of images, as PyTorch's DistributedSampler gives it (REFERENCE.md "Optimiser and schedule", Batches).

use crate::native::NativeError;
use crate::random::randperm;

/// Positions in the list that process `rank` of `world` visits in `epoch` (counted from 1): `randperm` of a CPU
/// generator seeded with 0 + epoch, padded to a multiple of `world` by its own beginning, every `world`-th from `rank`.
pub fn epoch_order(images: usize, epoch: usize, rank: usize, world: usize) -> Result<Vec<i64>, NativeError> {
    Ok(global_order(images, epoch, world)?.into_iter().skip(rank).step_by(world).collect())
}

/// The positions that all of `world` processes visit in `epoch`, one global batch after the other: the permutation, padded to
/// a multiple of `world` by its own beginning.
pub fn global_order(images: usize, epoch: usize, world: usize) -> Result<Vec<i64>, NativeError> {
    let order = randperm(images, epoch as u64)?;
    Ok(order.iter().cycle().take(epoch_images(images, world)).copied().collect())
}

/// Images of an epoch over a list of `images`, those that come again to make a multiple of `world` included.
pub fn epoch_images(images: usize, world: usize) -> usize {
    images.next_multiple_of(world)
}
