//! SDCLR: view 0 through the dense network, view 1 through its pruned copy (REFERENCE.md "Pruning", "Steps").
//!
//! The published step runs the pruned branch twice, once without gradient. Its gradients are those of one joint loss,
//! which is what runs here; what its second pass leaves behind is that running statistics moved twice by 0.1.

use serde::Deserialize;
use tch::{Kind, Tensor};

use super::loss::nt_xent;
use super::temperature::Temperature;
use super::{Marker, Method, MethodInfo, PretrainError};
use crate::network::{BnMode, Branch, Kept, Mask, Network, Pass, StateDict};
use crate::random::addressed_seed;
use crate::recipe::{Precision, Recipe, RecipeError, check, share};

pub(super) const INFO: MethodInfo =
    MethodInfo { name: "sdclr", label: "SDCLR", order: 2, marker: Marker::Square, build: Some(build) };

fn build(recipe: &Recipe) -> Result<Box<dyn Method>, RecipeError> {
    Ok(Box::new(SdClr::new(recipe)?))
}

/// `[method.sdclr]` of a suite.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// Share of the backbone's convolution weights dropped in the pruned branch.
    pub prune_ratio: f64,
    /// The part of `prune_ratio` that is drawn at random instead of by magnitude.
    pub random_prune_ratio: f64,
}

impl Keys {
    /// Those of `recipe`.
    ///
    /// # Errors
    /// A key is missing or unknown, or its value is not allowed.
    pub fn of(recipe: &Recipe) -> Result<Self, RecipeError> {
        let keys: Self = recipe.method_keys()?;
        share("prune_ratio", keys.prune_ratio)?;
        share("random_prune_ratio", keys.random_prune_ratio)?;
        let (found, part) = (keys.random_prune_ratio.to_string(), keys.random_prune_ratio <= keys.prune_ratio);
        check("random_prune_ratio", found, part, "it is a part of prune_ratio and cannot exceed it")?;
        Ok(keys)
    }
}

/// The names of the mask, and of how much of it the mask before kept, among the method's state.
const MASK: &str = "mask";
const OVERLAP: &str = "overlap";

#[derive(Debug)]
pub struct SdClr {
    temperature: Temperature,
    precision: Precision,
    keys: Keys,
    seed: u64,
    mask: Option<Mask>,
    /// [`Kept::overlap`] of the mask.
    overlap: Option<f64>,
}

impl SdClr {
    /// # Errors
    /// As [`Keys::of`].
    pub fn new(recipe: &Recipe) -> Result<Self, RecipeError> {
        Ok(Self {
            temperature: Temperature::new(recipe),
            precision: recipe.precision,
            keys: Keys::of(recipe)?,
            seed: recipe.seed,
            mask: None,
            overlap: None,
        })
    }

    /// Makes `mask` the current one, in the memory of the one before.
    fn take(&mut self, mask: Mask) {
        match &mut self.mask {
            Some(earlier) => earlier.take(&mask),
            None => self.mask = Some(mask),
        }
    }
}

impl Method for SdClr {
    fn smallest_batch(&self) -> usize {
        // Batch norm of a branch has no variance over one image.
        2
    }

    /// One global mask per epoch, always from the dense weights.
    fn begin_epoch(&mut self, network: &Network, epoch: usize) -> Result<Option<Kept>, PretrainError> {
        self.temperature.begin_epoch(network, epoch)?;
        let seed = addressed_seed(self.seed, &format!("prune/{epoch}"));
        let mask = Mask::magnitude(&network.prunable(), self.keys.prune_ratio, self.keys.random_prune_ratio, seed)?;
        let kept = mask.kept(self.mask.as_ref());
        self.overlap = kept.overlap;
        self.take(mask);
        Ok(Some(kept))
    }

    fn loss(&self, network: &Network, views: &Tensor) -> Result<Tensor, PretrainError> {
        // Published order of updates at momentum 0.1: pruned, dense, pruned. Dual BN: the pruned statistics keep
        // 0.9 * 0.9 of the old. Shared BN: 0.729 old + 0.181 pruned + 0.09 dense, reached by the dense pass first.
        let (dense, pruned) =
            if network.spec().dual_bn { ((0.1, 1), (1.0 - 0.9 * 0.9, 2)) } else { ((0.09 / 0.819, 1), (0.181, 2)) };
        let mask = self.mask.as_ref().ok_or(PretrainError::NoEpoch)?;
        let weights = network.working_weights(self.precision, Some(mask))?;
        let pass = |branch, weights, (momentum, updates)| {
            let bn = BnMode::Train { momentum, updates };
            Pass { branch, weights: Some(weights), bn, precision: self.precision }
        };
        let dense = network.forward(&views.select(1, 0), &pass(Branch::Dense, &weights.dense, dense));
        let pruned = network.forward(&views.select(1, 1), &pass(Branch::Pruned, &weights.pruned, pruned));
        let group = network.group();
        Ok(nt_xent(&group.gather_rows(&dense)?, &group.gather_rows(&pruned)?, self.temperature.current()?))
    }

    fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref()
    }

    fn prune_ratio(&self) -> Option<f64> {
        Some(self.keys.prune_ratio).filter(|ratio| *ratio > 0.0)
    }

    /// The mask, which later weights do not give again, and its overlap with the one before.
    fn state(&self) -> StateDict {
        let mask = self.mask.iter().map(|mask| (MASK.to_owned(), mask.flat().to_kind(Kind::Bool)));
        mask.chain(self.overlap.map(|overlap| (OVERLAP.to_owned(), Tensor::from(overlap)))).collect()
    }

    fn load(&mut self, network: &Network, epoch: usize, state: &StateDict) -> Result<Option<Kept>, PretrainError> {
        let missing = || PretrainError::MethodState { name: MASK.to_owned() };
        let flat = state.get(MASK).ok_or_else(missing)?;
        let mask = Mask::of_flat(&network.prunable(), flat)?.ok_or_else(missing)?;
        self.temperature.begin_epoch(network, epoch)?;
        self.overlap = state.get(OVERLAP).map(|overlap| overlap.f_double_value(&[])).transpose()?;
        let kept = Kept { overlap: self.overlap, ..mask.kept(None) };
        self.take(mask);
        Ok(Some(kept))
    }
}
