//! What follows the backbone under the name `fc` (REFERENCE.md "Networks", projection head).

use tch::Tensor;

use super::layers::{BatchNorm, Init, Linear, Visitor};
use super::{Fused, Head, NetworkError, NetworkSpec, Norming, Pass};
use crate::native::norm::After;

#[derive(Debug)]
pub(super) enum HeadLayers {
    /// Linear layers, each with a batch norm behind it, ReLU between them.
    Projection(Vec<(Linear, BatchNorm)>),
    Classifier(Linear),
}

impl HeadLayers {
    pub fn new(init: &Init, spec: &NetworkSpec) -> Result<Self, NetworkError> {
        let width = spec.feature_dim();
        let (count, output_dim) = match spec.head {
            Head::Classifier { classes } => {
                return Ok(Self::Classifier(Linear::classifier(init, "fc", width, classes)?));
            }
            Head::Projection { layers, output_dim } => (layers, output_dim),
            Head::None => return Ok(Self::Projection(Vec::new())),
        };
        let layers = (1..=count)
            .map(|i| {
                let output = if i == count { output_dim } else { width };
                let linear = Linear::new(init, &format!("fc.fc{i}"), width, output, i == 1)?;
                Ok((linear, BatchNorm::new(init, output, spec.dual_bn)))
            })
            .collect::<Result<_, NetworkError>>()?;
        Ok(Self::Projection(layers))
    }

    pub fn forward(&self, features: &Tensor, pass: &Pass, norming: &Norming) -> Tensor {
        let layers = match self {
            Self::Classifier(linear) => return linear.forward(features),
            Self::Projection(layers) => layers,
        };
        let norming = Norming { fused: Fused::Never, ..norming.clone() };
        let mut x = features.shallow_clone();
        for (i, (linear, bn)) in layers.iter().enumerate() {
            if i > 0 {
                x = x.relu_();
            }
            x = bn.forward(&linear.forward(&x), pass, &norming, After::Nothing);
        }
        x
    }

    pub fn visit<'a>(&'a self, visitor: Visitor<'_, 'a>) {
        match self {
            Self::Classifier(linear) => linear.visit("fc", visitor),
            Self::Projection(layers) => {
                for (i, (linear, bn)) in layers.iter().enumerate() {
                    linear.visit(&format!("fc.fc{}", i + 1), visitor);
                    bn.visit(&format!("fc.bn{}", i + 1), visitor);
                }
            }
        }
    }
}
