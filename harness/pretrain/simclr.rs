//! SimCLR: both views through one dense network (REFERENCE.md "Steps").

use serde::Deserialize;
use tch::Tensor;

use super::loss::nt_xent;
use super::temperature::Temperature;
use super::{Marker, Method, MethodInfo, PretrainError};
use crate::network::{BnMode, Branch, Kept, Network, Pass};
use crate::recipe::{Precision, Recipe, RecipeError, check};

pub(super) const INFO: MethodInfo =
    MethodInfo { name: "simclr", label: "SimCLR", order: 1, marker: Marker::Circle, build: Some(build) };

fn build(recipe: &Recipe) -> Result<Box<dyn Method>, RecipeError> {
    let Keys { bn_per_view } = recipe.method_keys()?;
    check("dual_bn", recipe.dual_bn.to_string(), !recipe.dual_bn, "simclr has one dense branch: use dual_bn=false")?;
    Ok(Box::new(SimClr { temperature: Temperature::new(recipe), precision: recipe.precision, bn_per_view }))
}

/// `[method.simclr]` of a suite.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    /// Whether batch norm sees the views one by one, as SDCLR's does: two passes of N images, view 0 first, each normalised by
    /// its own batch, and two updates of the running statistics a step. Otherwise both views are one batch of 2N.
    bn_per_view: bool,
}

#[derive(Debug)]
pub struct SimClr {
    temperature: Temperature,
    precision: Precision,
    bn_per_view: bool,
}

impl Method for SimClr {
    fn smallest_batch(&self) -> usize {
        // Batch norm of the head has no variance over one image's view; over its two views it has.
        if self.bn_per_view { 2 } else { 1 }
    }

    fn begin_epoch(&mut self, network: &Network, epoch: usize) -> Result<Option<Kept>, PretrainError> {
        self.temperature.begin_epoch(network, epoch)?;
        Ok(None)
    }

    fn loss(&self, network: &Network, views: &Tensor) -> Result<Tensor, PretrainError> {
        let (bn, precision) = (BnMode::Train { momentum: 0.1, updates: 1 }, self.precision);
        let weights = network.working_weights(precision, None)?.dense;
        let pass = Pass { branch: Branch::Dense, weights: Some(&weights), bn, precision };
        let features = if self.bn_per_view {
            // View 0 first: the running statistics move by its batch, then by that of view 1.
            [0, 1].map(|view| network.forward(&views.select(1, view), &pass))
        } else {
            // (image 0 view 0, image 0 view 1, image 1 view 0, ...): batch norm sees all 2N at once.
            let features = network.forward(&views.flatten(0, 1), &pass);
            let features = features.view([-1, 2, features.size()[1]]);
            [0, 1].map(|view| features.select(1, view))
        };
        let [first, second] = features;
        let group = network.group();
        Ok(nt_xent(&group.gather_rows(&first)?, &group.gather_rows(&second)?, self.temperature.current()?))
    }
}
