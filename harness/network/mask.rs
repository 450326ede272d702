//! Which weights the pruned branch sees (REFERENCE.md "Pruning").

use tch::{Kind, Tensor};

use super::NetworkError;
use crate::native;

/// One mask over all prunable weights: per convolution, ones where the weight is kept.
#[derive(Debug)]
pub struct Mask {
    /// In the order of the convolutions, of their shape, kind and device.
    parts: Vec<Tensor>,
}

/// A share of `total` weights as a count: `ceil(share * total)` in float64, as the published code counts.
fn count(share: f64, total: i64) -> i64 {
    (share * total as f64).ceil() as i64
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
            let all = weights.iter().map(|weight| weight.abs().permute([0, 2, 3, 1]).flatten(0, -1));
            let all = Tensor::f_cat(&all.collect::<Vec<_>>(), 0)?;
            let total = all.size1()?;
            let magnitude_ratio = prune_ratio - random_ratio;
            // sorted[k] is the (k+1)-th smallest.
            let k = count(magnitude_ratio, total).min(total - 1);
            let (threshold, _) = all.f_kthvalue(k + 1, 0, false)?;
            drop(all);
            let keep = |weight: &Tensor| weight.abs().ge_tensor(&threshold);
            let mut parts: Vec<Tensor> = weights.iter().map(|weight| keep(weight).to_kind(weight.kind())).collect();

            let left = total - count(magnitude_ratio, total);
            if random_ratio > 0.0 && left > 0 {
                let dropped = count(random_ratio, total) as f64 / left as f64;
                let draws = native::uniform(total, seed)?.ge(dropped);
                let mut start = 0;
                for part in &mut parts {
                    let numel = part.numel() as i64;
                    let kept = draws.narrow(0, start, numel).view(part.size().as_slice()).to_device(part.device());
                    *part = &*part * kept.to_kind(part.kind());
                    start += numel;
                }
            }
            Ok(Self { parts })
        })
    }

    /// Takes the values of `other`, a mask of the same weights, and keeps its own place in memory, where a recorded step
    /// reads them.
    pub fn take(&mut self, other: &Self) {
        tch::no_grad(|| self.parts.iter_mut().zip(&other.parts).for_each(|(part, new)| part.copy_(new)));
    }

    /// Share of weights kept.
    pub fn density(&self) -> f64 {
        // Counted as integers: float32 sums are not exact at 11 million weights. One number comes back from the device.
        let kept: Vec<Tensor> = self.parts.iter().map(|part| part.to_kind(Kind::Bool).sum(Kind::Int64)).collect();
        let kept = if kept.is_empty() { 0 } else { Tensor::stack(&kept, 0).sum(Kind::Int64).int64_value(&[]) };
        let total: usize = self.parts.iter().map(Tensor::numel).sum();
        kept as f64 / total as f64
    }

    /// The mask of the convolution visited as number `index`.
    pub(super) fn of(&self, index: usize) -> &Tensor {
        &self.parts[index]
    }

    /// The masks in the order of the convolutions.
    pub fn parts(&self) -> &[Tensor] {
        &self.parts
    }
}
