//! SDCLR: view 0 through the dense network, view 1 through its pruned copy (REFERENCE.md "Pruning", "Steps").
//!
//! The published step runs the pruned branch twice, once without gradient. Its gradients are those of one joint loss,
//! which is what runs here; what its second pass leaves behind is that running statistics moved twice by 0.1.

use tch::Tensor;

use super::loss::nt_xent;
use super::{Method, PretrainError};
use crate::network::{BnMode, Branch, Mask, Network, Pass};
use crate::random::addressed_seed;
use crate::recipe::{Precision, Recipe};

#[derive(Debug)]
pub struct SdClr {
    temperature: f64,
    precision: Precision,
    prune_ratio: f64,
    random_prune_ratio: f64,
    seed: u64,
    mask: Option<Mask>,
}

impl SdClr {
    pub fn new(recipe: &Recipe) -> Self {
        Self {
            temperature: recipe.temperature,
            precision: recipe.precision,
            prune_ratio: recipe.prune_ratio,
            random_prune_ratio: recipe.random_prune_ratio,
            seed: recipe.seed,
            mask: None,
        }
    }

    /// The mask of the current epoch, once one has begun.
    pub fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref()
    }
}

impl Method for SdClr {
    fn smallest_batch(&self) -> usize {
        // Batch norm of a branch has no variance over one image.
        2
    }

    /// One global mask per epoch, always from the dense weights.
    fn begin_epoch(&mut self, network: &Network, epoch: usize) -> Result<Option<f64>, PretrainError> {
        let seed = addressed_seed(self.seed, &format!("prune/{epoch}"));
        let mask = Mask::magnitude(&network.prunable(), self.prune_ratio, self.random_prune_ratio, seed)?;
        let density = mask.density();
        match &mut self.mask {
            Some(earlier) => earlier.take(&mask),
            None => self.mask = Some(mask),
        }
        Ok(Some(density))
    }

    fn loss(&self, network: &Network, views: &Tensor) -> Result<Tensor, PretrainError> {
        // Published order of updates at momentum 0.1: pruned, dense, pruned. Dual BN: the pruned statistics keep
        // 0.9 * 0.9 of the old. Shared BN: 0.729 old + 0.181 pruned + 0.09 dense, reached by the dense pass first.
        let (dense, pruned) =
            if network.spec().dual_bn { ((0.1, 1), (1.0 - 0.9 * 0.9, 2)) } else { ((0.09 / 0.819, 1), (0.181, 2)) };
        let weights = network.working_weights(self.precision, self.mask.as_ref())?;
        let pass = |branch, weights, (momentum, updates)| {
            let bn = BnMode::Train { momentum, updates };
            Pass { branch, weights: Some(weights), bn, precision: self.precision }
        };
        // Before an epoch has begun there is no mask.
        let kept = if self.mask.is_some() { &weights.pruned } else { &weights.dense };
        let dense = network.forward(&views.select(1, 0), &pass(Branch::Dense, &weights.dense, dense));
        let pruned = network.forward(&views.select(1, 1), &pass(Branch::Pruned, kept, pruned));
        Ok(nt_xent(&dense, &pruned, self.temperature))
    }
}
