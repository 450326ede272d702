//! Which weights the pruned branch sees (REFERENCE.md "Pruning").

use tch::{Device, Kind, Tensor};

use super::NetworkError;
use crate::random;

/// One mask over all prunable weights: per convolution, ones where the weight is kept.
#[derive(Debug)]
pub struct Mask {
    /// All parts, one behind the other.
    flat: Tensor,
    /// In the order of the convolutions, of their shape, layout, kind and device; they share the memory of `flat`.
    parts: Vec<Tensor>,
}

/// How many weights a mask keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// Share of all prunable weights.
    pub density: f64,
    /// Share of the kept weights that the mask before kept too; none where there is none before. Independent masks share
    /// [`Kept::density`].
    pub overlap: Option<f64>,
}

/// A share of `total` weights as a count: `ceil(share * total)` in float64, as the published code counts.
fn count(share: f64, total: i64) -> i64 {
    (share * total as f64).ceil() as i64
}

/// A view of `flat` for each of `weights`, of its shape and layout.
fn parts_of(flat: &Tensor, weights: &[&Tensor]) -> Result<Vec<Tensor>, NetworkError> {
    let mut start = 0;
    let mut parts = Vec::new();
    for weight in weights {
        let (output, input, height, width) = weight.size4()?;
        let part = flat.f_narrow(0, start, weight.numel() as i64)?.f_view([output, height, width, input])?;
        parts.push(part.f_permute([0, 3, 1, 2])?);
        start += weight.numel() as i64;
    }
    Ok(parts)
}

impl Mask {
    /// The mask that drops a share `prune_ratio` of all weights, found on their device: the part
    /// `prune_ratio - random_ratio` by magnitude over all tensors together (ties with the threshold are kept), the rest
    /// by independent draws over all weights from the generator seeded with `seed`.
    ///
    /// # Errors
    /// There is nothing to prune, or libtorch fails (not enough memory).
    pub fn magnitude(
        weights: &[&Tensor],
        prune_ratio: f64,
        random_ratio: f64,
        seed: u64,
    ) -> Result<Self, NetworkError> {
        tch::no_grad(|| {
            let all = weights.iter().map(|weight| weight.permute([0, 2, 3, 1]).flatten(0, -1));
            let all = Tensor::f_cat(&all.collect::<Vec<_>>(), 0)?.f_abs_()?;
            let total = all.size1()?;
            let magnitude_ratio = prune_ratio - random_ratio;
            // sorted[k] is the (k+1)-th smallest.
            let k = count(magnitude_ratio, total).min(total - 1);
            let threshold = match all.device() {
                Device::Cpu => all.f_kthvalue(k + 1, 0, false)?.0,
                // There kthvalue reads its whole row sixteen times with a single block of threads.
                _ => all.f_sort(0, false)?.0.f_narrow(0, k, 1)?,
            };
            let flat = all.f_ge_tensor(&threshold)?.f_to_kind(all.kind())?;
            let mut parts = parts_of(&flat, weights)?;

            let left = total - count(magnitude_ratio, total);
            if random_ratio > 0.0 && left > 0 {
                let dropped = count(random_ratio, total) as f64 / left as f64;
                let draws = random::uniform(total, seed)?.f_ge(dropped)?.f_to_device(flat.device())?;
                let mut start = 0;
                for part in &mut parts {
                    let kept = draws.f_narrow(0, start, part.numel() as i64)?.f_view(part.size().as_slice())?;
                    drop(part.f_mul_(&kept)?);
                    start += part.numel() as i64;
                }
            }
            Ok(Self { flat, parts })
        })
    }

    /// The mask of `weights` that [`Mask::flat`] gave; `None` where it is of others.
    ///
    /// # Errors
    /// libtorch fails.
    pub fn of_flat(weights: &[&Tensor], flat: &Tensor) -> Result<Option<Self>, NetworkError> {
        let total: usize = weights.iter().map(|weight| weight.numel()).sum();
        let Some(first) = weights.first().filter(|_| flat.size() == [total as i64]) else {
            return Ok(None);
        };
        let flat = flat.f_to_device(first.device())?.f_to_kind(first.kind())?.copy();
        let parts = parts_of(&flat, weights)?;
        Ok(Some(Self { flat, parts }))
    }

    /// All of the mask as one vector, which shares its memory.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Takes the values of `other`, a mask of the same weights, and keeps its own place in memory, where a recorded step
    /// reads them.
    pub fn take(&mut self, other: &Self) {
        tch::no_grad(|| self.flat.copy_(&other.flat));
    }

    /// Share of weights kept.
    pub fn density(&self) -> f64 {
        self.kept(None).density
    }

    /// What it keeps, and how much of that `earlier`, a mask of the same weights, kept too.
    pub fn kept(&self, earlier: Option<&Self>) -> Kept {
        // Counted as integers: float32 sums are not exact at 11 million weights. One number comes back from the device, so that
        // the host waits once: both counts are below 2^31.
        let count = |flags: &Tensor| flags.sum(Kind::Int64);
        let now = self.flat.to_kind(Kind::Bool);
        let shared = earlier.map(|earlier| count(&now.logical_and(&earlier.flat.to_kind(Kind::Bool))));
        let both = match shared {
            Some(shared) => count(&now) * (1 << 32) + shared,
            None => count(&now) * (1 << 32),
        };
        let both = both.int64_value(&[]);
        let (kept, shared) = ((both >> 32) as f64, (both & 0xffff_ffff) as f64);
        let overlap = earlier.filter(|_| kept > 0.0).map(|_| shared / kept);
        Kept { density: kept / self.flat.numel() as f64, overlap }
    }

    /// The masks in the order of the convolutions.
    pub fn parts(&self) -> &[Tensor] {
        &self.parts
    }
}
