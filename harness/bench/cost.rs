//! What a plan costs before it runs. In: the plan, and the data where they are. Out: arithmetic, memory of the device and, at
//! the device's matrix rate, the least time.

use std::collections::BTreeMap;
use std::fmt;

use tch::{Device, Kind};

use super::BenchError;
use super::arithmetic::{self, MatrixRate};
use crate::artifact::human;
use crate::dataset::Dataset;
use crate::network::{Network, NetworkSpec};
use crate::recipe::{OptimizerName, Precision, Recipe};
use crate::report::table::duration;
use crate::split;
use crate::suite::context::Scale;
use crate::suite::{PlannedEncoder, environment};
use crate::text::{counted, message};

/// Bytes of a place in a pool's input.
const PLACE: u64 = 8;

/// The cost of all jobs of a plan.
#[derive(Debug)]
pub struct Cost {
    /// Images that training and probing take, and their additions and multiplications; of the lists that are here.
    images: f64,
    flop: f64,
    /// Why the others could not be read, by their names.
    missing: BTreeMap<String, String>,
    /// Bytes on the device of the largest pre-training.
    device_bytes: u64,
    rate: MatrixRate,
    device: Device,
}

/// The cost of `plan`, `None` where it trains nothing.
///
/// # Errors
/// The device is not there, or a network cannot be made.
pub fn cost(plan: &[PlannedEncoder], scale: &Scale) -> Result<Option<Cost>, BenchError> {
    let Some(first) = plan.first() else { return Ok(None) };
    let device = environment::device(scale.device.as_deref()).map_err(|error| BenchError::Device(error.to_string()))?;
    let dataset =
        Dataset::of_recipe(&first.recipe, scale.data.as_deref(), Device::Cpu).map_err(|error| error.to_string());
    let (mut images, mut flop, mut device_bytes, mut missing) = (0.0, 0.0, 0, BTreeMap::new());
    for encoder in plan {
        let recipe = &encoder.recipe;
        let network = Network::new(NetworkSpec::of_recipe(recipe), recipe.seed, Kind::Float, Device::Cpu)?;
        if encoder.pretrained_on().is_some() {
            device_bytes = device_bytes.max(pretraining_bytes(recipe, &network));
        }
        for pass in encoder.passes() {
            let list = |set| split::read(set, scale.data.as_deref(), pass.list).map_err(|error| error.to_string());
            let read = match dataset.as_ref().map_err(String::clone).and_then(list) {
                Ok(read) => read,
                Err(reason) => {
                    missing.insert(split::name(recipe.dataset, pass.list), reason);
                    continue;
                }
            };
            let epochs = scale.limit_epochs.map_or(pass.epochs, |limit| pass.epochs.min(limit));
            let taken = (epochs * scale.limit_images.map_or(read.len(), |limit| read.len().min(limit))) as f64;
            images += taken;
            let one = arithmetic::flop_forward(&network, pass.side as u64) as f64;
            flop += taken * one * if pass.trains { arithmetic::PASSES_OF_TRAINING as f64 } else { 1.0 };
        }
    }
    Ok(Some(Cost { images, flop, missing, device_bytes, rate: arithmetic::matrix_rate(device)?, device }))
}

/// Bytes of weights, gradients and the optimiser's state, and of what a step saves of both views for its backward pass: the
/// network's input, the input and the output of every batch norm, and of the stem's pool the output and, of each number in
/// it, the place that it comes from. tests/cuda_path.rs says how much more libtorch takes.
fn pretraining_bytes(recipe: &Recipe, network: &Network) -> u64 {
    let parameters: u64 = network.parameters().iter().map(|(_, weight)| 4 * weight.numel() as u64).sum();
    let moments = if recipe.optimizer == OptimizerName::Adam { 2 } else { 1 };
    let number = if recipe.precision == Precision::Bf16 { 2 } else { 4 };
    let side = recipe.augment.size as u64;
    let (input, pooled) = (3 * side * side, arithmetic::pooled_numbers(network, side));
    let numbers = input + 2 * arithmetic::convolved_numbers(network, side) + pooled;
    let of_view = number * numbers + PLACE * pooled;
    parameters * (2 + moments) + 2 * recipe.batch_size as u64 * of_view
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { images, flop, missing, device_bytes, rate, device } = self;
        writeln!(f, "\n# memory: pre-training takes about {} of the device", human(*device_bytes))?;
        if let Some((_, reason)) = missing.first_key_value() {
            let lists = counted(missing.len(), "list");
            return writeln!(f, "# cost: unknown without {lists}: {}", message(reason));
        }
        writeln!(f, "# cost: {images:.0} images through the networks, {:.3} PFLOP", flop / 1e15)?;
        let (seconds, rate_of) = (flop / rate.flop_per_second, rate.flop_per_second / 1e12);
        writeln!(
            f,
            "# time: at least {} on {device:?}, at its {rate_of:.3} TFLOP/s for {} matrices measured now; sdclr bench train measures the \
             share of it that training reaches",
            duration(seconds),
            rate.precision
        )
    }
}
