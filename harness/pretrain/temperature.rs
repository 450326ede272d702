//! The temperature of the loss over the epochs (REFERENCE.md "Temperature schedules"). In: a recipe's keys. Out: a tensor on
//! the network's device, which keeps its place in memory, so that a recorded step reads the current value.

use std::f64::consts::PI;

use tch::Tensor;

use super::PretrainError;
use crate::network::Network;
use crate::recipe::{Recipe, TemperatureSchedule};

/// The temperature of the epoch under way.
#[derive(Debug)]
pub struct Temperature {
    schedule: TemperatureSchedule,
    /// The value of a constant schedule, and the minimum of the cosine.
    min: f64,
    max: f64,
    t_max: usize,
    /// One number, of the kind of the network's outputs; `None` before the first epoch.
    current: Option<Tensor>,
}

impl Temperature {
    /// The schedule of `recipe`, before its first epoch.
    pub fn new(recipe: &Recipe) -> Self {
        Self {
            schedule: recipe.temperature_schedule,
            min: recipe.temperature,
            max: recipe.temperature_max,
            t_max: recipe.temperature_t_max,
            current: None,
        }
    }

    /// The temperature of `epoch`, counted from 1: constant within an epoch.
    fn at(&self, epoch: usize) -> f64 {
        match self.schedule {
            TemperatureSchedule::Constant => self.min,
            TemperatureSchedule::Cosine => {
                let progress = epoch as f64 / self.t_max as f64;
                self.min + (self.max - self.min) * 0.5 * (1.0 + (PI * progress).cos())
            }
        }
    }

    /// Makes that of `epoch` the current one, in place.
    pub fn begin_epoch(&mut self, network: &Network, epoch: usize) -> Result<(), PretrainError> {
        let value = self.at(epoch);
        match &mut self.current {
            Some(current) => drop(current.f_fill_(value)?),
            None => self.current = Some(Tensor::f_full([], value, (network.kind(), network.device()))?),
        }
        Ok(())
    }

    /// The current one: a tensor without dimensions.
    ///
    /// # Errors
    /// No epoch has begun.
    pub fn current(&self) -> Result<&Tensor, PretrainError> {
        self.current.as_ref().ok_or(PretrainError::NoEpoch)
    }
}
