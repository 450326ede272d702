//! The order of images, as PyTorch's DistributedSampler gives it (REFERENCE.md "Optimiser and schedule", Batches).

use crate::native::NativeError;
use crate::random::randperm;

/// Positions in the list that process `rank` of `world` visits in `epoch` (counted from 1): `randperm` of a CPU
/// generator seeded with 0 + epoch, padded to a multiple of `world` by its own beginning, every `world`-th from `rank`.
pub fn epoch_order(images: usize, epoch: usize, rank: usize, world: usize) -> Result<Vec<i64>, NativeError> {
    let order = randperm(images, epoch as u64)?;
    let padded = images.next_multiple_of(world);
    Ok(order.iter().cycle().take(padded).skip(rank).step_by(world).copied().collect())
}
