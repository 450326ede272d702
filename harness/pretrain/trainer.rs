//! A network under training, one step at a time. In: views. Out: losses, and parameters that have moved.

use tch::Tensor;

use super::optimizer::Optimizer;
use super::recorder::{Recorder, USUAL};
use super::schedule::Schedule;
use super::{Method, PretrainError, method_of};
use crate::native;
use crate::network::{Fused, Network};
use crate::recipe::{Precision, Recipe};

/// A network, how it is trained, and how far that has come.
pub struct Trainer {
    pub network: Network,
    pub method: Box<dyn Method>,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    /// Optimiser steps taken.
    pub steps: u64,
    recorder: Option<Recorder>,
}

impl Trainer {
    /// A trainer of `network` as `recipe` says, for epochs of `steps_per_epoch` steps. Sets the process to the recipe's
    /// TF32. On a GPU steps are launched as graphs and in bf16 kernels of ours compute batch norm, unless training is to be
    /// `eager`: libtorch's own operations, one by one, on views that our kernel computes.
    pub fn new(
        recipe: &Recipe,
        mut network: Network,
        steps_per_epoch: usize,
        eager: bool,
    ) -> Result<Self, PretrainError> {
        native::set_tf32(recipe.precision == Precision::Tf32)?;
        if recipe.precision == Precision::Bf16 && !eager {
            network.set_fused(Fused::OnCuda).map_err(PretrainError::Kernels)?;
        }
        let optimizer = Optimizer::new(recipe.optimizer, recipe.momentum, recipe.weight_decay, &network.parameters());
        let schedule = Schedule {
            name: recipe.schedule,
            lr: recipe.lr,
            warmup: (recipe.warmup_epochs * steps_per_epoch) as u64,
            total: (recipe.epochs * steps_per_epoch) as u64,
        };
        let recorder = match optimizer.is_recordable() && !eager {
            true => Recorder::new(network.device())?,
            false => None,
        };
        Ok(Self { network, method: method_of(recipe)?, optimizer, schedule, steps: 0, recorder })
    }

    /// One step on `views` (`[N, 2, 3, H, W]` in `[0, 1]`): forward, one joint backward, update. Gives the loss, which
    /// stays on the device so that nobody waits for it ([`read_losses`](super::read_losses) fetches many at once). A loss
    /// that is not finite spoils the parameters: look before they are saved.
    pub fn step(&mut self, views: &Tensor) -> Result<Tensor, PretrainError> {
        self.steps += 1;
        self.optimizer.begin_step(self.schedule.rate(self.steps))?;
        let Self { network, method, optimizer, recorder, .. } = self;
        let mut compute = |views: &Tensor| {
            let loss = method.loss(network, views)?;
            let gradients = Tensor::f_run_backward(&[&loss], optimizer.parameters(), false, false)?;
            optimizer.update(&gradients)?;
            Ok(loss.detach())
        };
        match recorder {
            Some(recorder) => recorder.step(network, views, compute),
            None => compute(views),
        }
    }

    /// How many of the first steps on a shape of batch are slower than all later ones.
    pub fn slow_steps(&self) -> usize {
        if self.recorder.is_some() { USUAL + 1 } else { 1 }
    }

    /// Whether every parameter is a finite number; one answer comes back from the device.
    pub fn parameters_are_finite(&self) -> Result<bool, PretrainError> {
        // Their memory as it lies, so that nothing is rearranged for it.
        let lines =
            self.optimizer.parameters().iter().map(|tensor| tensor.f_as_strided([tensor.numel() as i64], [1], None));
        let all = tch::no_grad(|| Tensor::f_cat(&lines.collect::<Result<Vec<_>, _>>()?, 0))?;
        Ok(all.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
    }
}
