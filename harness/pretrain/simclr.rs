//! SimCLR: both views through one dense network as one batch (REFERENCE.md "Steps").

use serde::Deserialize;
use tch::Tensor;

use super::loss::nt_xent;
use super::{Marker, Method, MethodInfo, PretrainError};
use crate::network::{BnMode, Branch, Network, Pass};
use crate::recipe::{Precision, Recipe, RecipeError, check};

pub(super) const INFO: MethodInfo =
    MethodInfo { name: "simclr", label: "SimCLR", order: 1, marker: Marker::Circle, build: Some(build) };

fn build(recipe: &Recipe) -> Result<Box<dyn Method>, RecipeError> {
    recipe.method_keys::<Keys>()?;
    check("dual_bn", recipe.dual_bn.to_string(), !recipe.dual_bn, "simclr has one dense branch: use dual_bn=false")?;
    Ok(Box::new(SimClr { temperature: recipe.temperature, precision: recipe.precision }))
}

/// It has none of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {}

#[derive(Debug)]
pub struct SimClr {
    pub temperature: f64,
    pub precision: Precision,
}

impl Method for SimClr {
    fn smallest_batch(&self) -> usize {
        1
    }

    fn begin_epoch(&mut self, _network: &Network, _epoch: usize) -> Result<Option<f64>, PretrainError> {
        Ok(None)
    }

    fn loss(&self, network: &Network, views: &Tensor) -> Result<Tensor, PretrainError> {
        let (bn, precision) = (BnMode::Train { momentum: 0.1, updates: 1 }, self.precision);
        let weights = network.working_weights(precision, None)?.dense;
        let pass = Pass { branch: Branch::Dense, weights: Some(&weights), bn, precision };
        // (image 0 view 0, image 0 view 1, image 1 view 0, ...): batch norm sees all 2N at once.
        let features = network.forward(&views.flatten(0, 1), &pass);
        let features = features.view([-1, 2, features.size()[1]]);
        Ok(nt_xent(&features.select(1, 0), &features.select(1, 1), self.temperature))
    }
}
