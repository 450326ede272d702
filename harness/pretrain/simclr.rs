//! SimCLR: both views through one dense network as one batch (REFERENCE.md "Steps").

use tch::Tensor;

use super::loss::nt_xent;
use super::{Method, PretrainError};
use crate::network::{BnMode, Branch, Network, Pass};
use crate::recipe::Precision;

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
