//! A network under training, one epoch at a time. In: batches of views. Out: losses, and parameters that have moved. Everything
//! that trains goes through [`Trainer::epoch`].

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::optimizer::Optimizer;
use super::recorder::{Recorder, USUAL};
use super::schedule::Schedule;
use super::{Method, PretrainError, method_of};
use crate::native;
use crate::network::{Fused, Kept, Network, StateDict};
use crate::recipe::{Precision, Recipe};

/// A network, how it is trained, and how far that has come.
pub struct Trainer {
    /// Dropped before the network, whose group has the communicator that graphs exchange through.
    recorder: Option<Recorder>,
    pub network: Network,
    pub method: Box<dyn Method>,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    /// Optimiser steps taken.
    pub steps: u64,
    under_way: Option<UnderWay>,
}

/// The epoch that was begun last.
struct UnderWay {
    epoch: usize,
    /// Taken in it.
    steps: usize,
    kept: Option<Kept>,
}

/// What one call of [`Trainer::epoch`] did.
#[derive(Debug, Clone)]
pub struct EpochStats {
    /// One a step; none where the batches ended before the first.
    pub losses: Vec<f64>,
    /// The learning rate of each step.
    pub rates: Vec<f64>,
    /// Share of prunable weights that the epoch's mask keeps, where there is one.
    pub density: Option<f64>,
    /// Share of them that the mask of the epoch before kept too.
    pub overlap: Option<f64>,
    /// Of all ranks.
    pub images: i64,
    /// Images of the first step on each rank.
    pub slices: Vec<i64>,
    pub seconds: f64,
}

impl EpochStats {
    /// NaN without a step.
    pub fn mean_loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len() as f64
    }

    pub fn images_per_second(&self) -> f64 {
        self.images as f64 / self.seconds
    }
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
        if recipe.precision == Precision::Bf16 && !eager && network.group().is_single() {
            network.set_fused(Fused::OnCuda).map_err(PretrainError::Kernels)?;
        }
        let optimizer = Optimizer::new(recipe.optimizer, recipe.momentum, recipe.weight_decay, &network.parameters());
        let schedule = Schedule {
            name: recipe.schedule,
            lr: recipe.lr,
            warmup: (recipe.warmup_epochs * steps_per_epoch) as u64,
            total: (recipe.epochs * steps_per_epoch) as u64,
        };
        let recorder = match optimizer.is_recordable() && !eager && network.group().is_recordable() {
            true => Recorder::new(network.device())?,
            false => None,
        };
        let method = method_of(recipe)?;
        Ok(Self { recorder, network, method, optimizer, schedule, steps: 0, under_way: None })
    }

    /// Takes a step on each of `batches` (uint8 `[N, 2, 3, H, W]`, of several ranks each its slice). Begins `epoch`, unless it
    /// is the one under way: then the steps continue it. So `batches` may end early, where training has to stop, and the rest
    /// may follow in another call.
    ///
    /// The host queues the steps and looks at the device only after the last one: at all losses, and whether every parameter
    /// is finite.
    ///
    /// # Errors
    /// A batch cannot be loaded, or a loss or a parameter is not finite: such a state must not be saved.
    pub fn epoch(
        &mut self,
        epoch: usize,
        batches: impl IntoIterator<Item = Result<Tensor, PretrainError>>,
    ) -> Result<EpochStats, PretrainError> {
        let (stats, unloaded) = self.loaded_part(epoch, batches)?;
        unloaded.map_or(Ok(stats), Err)
    }

    /// As [`Trainer::epoch`], but the steps before a batch that this rank or another cannot load are kept, and why it cannot
    /// stands beside them. All ranks have taken the same steps.
    ///
    /// # Errors
    /// A rank is lost, or a loss or a parameter is not finite.
    pub fn loaded_part(
        &mut self,
        epoch: usize,
        batches: impl IntoIterator<Item = Result<Tensor, PretrainError>>,
    ) -> Result<(EpochStats, Option<PretrainError>), PretrainError> {
        let start = Instant::now();
        let (steps_before, kept) = self.begin(epoch)?;
        let _watch = self.network.group().watch();
        let (mut images, mut losses, mut rates) = (0, Vec::new(), Vec::new());
        let (mut slices_of_first, mut unloaded) = (None, None);
        for views in batches {
            let reason = views.as_ref().err().map(ToString::to_string);
            let rows = views.as_ref().map(|views| views.size()[0]);
            let begun = self.network.group().begin_step(rows.map_err(|_| reason.as_deref().unwrap_or_default()));
            let (views, slices) = match (views, begun) {
                (Ok(views), Ok(slices)) => (views, slices),
                (_, Err(lost)) if !lost.is_shared() => return Err(lost.into()),
                // Its own error says more than that a rank failed.
                (Err(own), _) => {
                    unloaded = Some(own);
                    break;
                }
                (_, Err(other)) => {
                    unloaded = Some(other.into());
                    break;
                }
            };
            rates.push(self.schedule.rate(self.steps + 1));
            losses.push(self.step_of_all(&views)?);
            images += slices.iter().sum::<i64>();
            slices_of_first.get_or_insert(slices);
        }
        let losses = read_losses(&losses);
        // The wait may have been ended because another rank was lost.
        self.network.group().check()?;
        let losses = losses?;
        if let Some(under_way) = &mut self.under_way {
            under_way.steps += losses.len();
        }
        let not_finite = |loss, index: usize| {
            let step = steps_before + index + 1;
            Err(PretrainError::NotFinite { loss, epoch, step, lr: rates[index], checkpoint: None })
        };
        if let Some(index) = losses.iter().position(|loss| !loss.is_finite()) {
            return not_finite(losses[index], index);
        }
        // A finite loss may still have had gradients that were not.
        if !losses.is_empty() && !self.parameters_are_finite()? {
            return not_finite(f64::NAN, losses.len() - 1);
        }
        let slices = slices_of_first.unwrap_or_default();
        let (density, overlap) = (kept.map(|kept| kept.density), kept.and_then(|kept| kept.overlap));
        let seconds = start.elapsed().as_secs_f64();
        Ok((EpochStats { losses, rates, density, overlap, images, slices, seconds }, unloaded))
    }

    /// Steps taken in `epoch` so far, and what its mask keeps.
    fn begin(&mut self, epoch: usize) -> Result<(usize, Option<Kept>), PretrainError> {
        if let Some(UnderWay { steps, kept, .. }) = self.under_way.as_ref().filter(|begun| begun.epoch == epoch) {
            return Ok((*steps, *kept));
        }
        let kept = self.method.begin_epoch(&self.network, epoch)?;
        self.under_way = Some(UnderWay { epoch, steps: 0, kept });
        Ok((0, kept))
    }

    /// Takes up `epoch` after `steps` of its steps (all of them, for the next epoch to follow), with the method's `state` of
    /// then; network, optimiser and [`Trainer::steps`] are restored by the caller.
    ///
    /// # Errors
    /// The state is not that of the method.
    pub fn continue_epoch(&mut self, epoch: usize, steps: usize, state: &StateDict) -> Result<(), PretrainError> {
        let kept = self.method.load(&self.network, epoch, state)?;
        self.under_way = Some(UnderWay { epoch, steps, kept });
        Ok(())
    }

    /// A step of which this process computes a slice; where another is lost in it, the error names that.
    fn step_of_all(&mut self, views: &Tensor) -> Result<Tensor, PretrainError> {
        if self.network.group().is_single() {
            return self.step(views);
        }
        let done = native::guarded(|| self.step(views)).map_err(PretrainError::from).flatten();
        done.map_err(|error| match error {
            PretrainError::Group(_) => error,
            other => self.network.group().cause().map_or(other, Into::into),
        })
    }

    /// One step: forward, one joint backward, update. Gives the loss, which stays on the device so that nobody waits for it.
    fn step(&mut self, views: &Tensor) -> Result<Tensor, PretrainError> {
        self.steps += 1;
        self.optimizer.begin_step(self.schedule.rate(self.steps))?;
        let Self { network, method, optimizer, recorder, .. } = self;
        let mut compute = |views: &Tensor| {
            let loss = method.loss(network, views)?;
            let gradients = Tensor::f_run_backward(&[&loss], optimizer.parameters(), false, false)?;
            let gradients = network.group().sum(gradients)?;
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
    fn parameters_are_finite(&self) -> Result<bool, PretrainError> {
        // Their memory as it lies, so that nothing is rearranged for it.
        let lines =
            self.optimizer.parameters().iter().map(|tensor| tensor.f_as_strided([tensor.numel() as i64], [1], None));
        let all = tch::no_grad(|| Tensor::f_cat(&lines.collect::<Result<Vec<_>, _>>()?, 0))?;
        Ok(all.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
    }
}

/// The values of losses, fetched from their device as one vector.
pub fn read_losses(losses: &[Tensor]) -> Result<Vec<f64>, PretrainError> {
    if losses.is_empty() {
        return Ok(Vec::new());
    }
    Ok(Vec::try_from(Tensor::f_stack(losses, 0)?.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?)?)
}
