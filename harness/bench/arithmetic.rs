//! The arithmetic of a step, and the rate at which a device can do it. Together they turn a time into a share of the limit.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::BenchError;
use crate::network::{Network, NetworkError, NetworkSpec};
use crate::random;
use crate::recipe::{Recipe, Stem};

/// Passes that training costs per view, in forwards: one forward, and a backward for inputs and for weights.
const PASSES: u64 = 3;
const VIEWS: u64 = 2;
/// Forwards that an image costs in pre-training.
pub(super) const PASSES_OF_TRAINING: u64 = PASSES * VIEWS;

/// Additions and multiplications of one training step of `recipe`'s batch: convolutions and linear layers, three
/// forwards a view. Batch norm, loss, optimiser and augmentation are not counted.
///
/// # Errors
/// The network cannot be made.
pub fn flop_per_step(recipe: &Recipe) -> Result<u64, BenchError> {
    let network = Network::new(NetworkSpec::of_recipe(recipe), recipe.seed, Kind::Float, Device::Cpu)?;
    Ok(PASSES_OF_TRAINING * recipe.batch_size as u64 * flop_forward(&network, recipe.augment.size as u64))
}

/// Of one image of `side` pixels through `network`, read off the names and shapes of its weights.
pub(super) fn flop_forward(network: &Network, side: u64) -> u64 {
    let flop = |(pixels, shape): (u64, Vec<i64>)| 2 * pixels * shape.iter().product::<i64>() as u64;
    layers(network, side).into_iter().map(flop).sum()
}

/// Numbers that the convolutions of `network` make of one image of `side` pixels.
pub(super) fn convolved_numbers(network: &Network, side: u64) -> u64 {
    let convolutions = layers(network, side).into_iter().filter(|(_, shape)| shape.len() == 4);
    convolutions.map(|(pixels, shape)| pixels * shape[0] as u64).sum()
}

/// Numbers that the pool of the ImageNet stem gives for one image of `side` pixels; the CIFAR stem has none.
pub(super) fn pooled_numbers(network: &Network, side: u64) -> u64 {
    match network.spec().stem {
        Stem::Imagenet => network.spec().width as u64 * side.div_ceil(4).pow(2),
        Stem::Cifar => 0,
    }
}

/// Pixels of the result and shape of the weight of every convolution and linear layer.
fn layers(network: &Network, side: u64) -> Vec<(u64, Vec<i64>)> {
    let imagenet = network.spec().stem == Stem::Imagenet;
    // A stage from the second on halves the sides, as do the ImageNet stem and its pool; padding rounds up.
    let halved = |times: u32| side.div_ceil(1 << times);
    let (stem, first) = if imagenet { (halved(1), 2) } else { (side, 0) };
    let parameters = network.parameters();
    let layer = |(name, weight): (&str, &Tensor)| {
        let shape = weight.size();
        let pixels = match (shape.len(), stage_and_place(name)) {
            (2, _) => 1,
            (4, None) => stem * stem,
            (4, Some((stage, place))) => {
                // A bottleneck's first 1x1 convolution comes before the stride.
                let before = place == "0.conv1" && shape[2] == 1 && stage > 1;
                let side = halved(first + stage - 1 - u32::from(before));
                side * side
            }
            _ => return None,
        };
        Some((pixels, shape))
    };
    parameters.iter().filter_map(|(name, weight)| layer((name, weight))).collect()
}

/// `layer2.0.conv1.weight`: stage 2, place `0.conv1`; `None` outside the stages.
fn stage_and_place(name: &str) -> Option<(u32, &str)> {
    let (stage, rest) = name.strip_prefix("layer")?.split_once('.')?;
    Some((stage.parse().ok()?, rest.strip_suffix(".weight")?))
}

/// How fast a device multiplies large matrices: the limit that a step is measured against.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MatrixRate {
    /// `bf16` on CUDA, `fp32` on the CPU.
    pub precision: String,
    /// Side of the square matrices.
    pub side: i64,
    /// The best of several, in additions and multiplications a second.
    pub flop_per_second: f64,
}

/// Measures the matrix rate of `device`.
///
/// # Errors
/// The device has no room for three matrices.
pub fn matrix_rate(device: Device) -> Result<MatrixRate, BenchError> {
    let (precision, kind, side, repeats) = match device {
        Device::Cuda(_) => ("bf16", Kind::BFloat16, 8192, 20),
        _ => ("fp32", Kind::Float, 1024, 1),
    };
    // Noise: on constants a device draws less power and clocks higher than it ever does at work.
    let noise = random::uniform(side * side, 0).map_err(NetworkError::from)? - 0.5;
    let a = noise.f_view([side, side])?.f_to_device(device)?.f_to_kind(kind)?;
    let b = a.f_tr()?;
    let mut out = a.f_matmul(&b)?;
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        synchronize(device);
        let start = Instant::now();
        for _ in 0..repeats {
            out = out.f_matmul_out(&a, &b)?;
        }
        synchronize(device);
        best = best.min(start.elapsed().as_secs_f64() / f64::from(repeats));
    }
    Ok(MatrixRate { precision: precision.to_owned(), side, flop_per_second: 2.0 * (side as f64).powi(3) / best })
}

/// Waits until `device` has done all that was asked of it.
pub(super) fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    fn flop(set: &[&str]) -> f64 {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        flop_per_step(&Recipe::resolve("cifar10-lt/sdclr", &set).unwrap()).unwrap() as f64
    }

    #[test]
    fn published_step_is_3_42_teraflop() {
        assert_eq!(format!("{:.2}", flop(&[]) / 1e12), "3.42");
    }

    /// Counted by hand: multiply-adds of a forward, as torchvision's documentation gives them for 224 pixels (1.81 and
    /// 4.09 G with a classifier of 1000 classes, which costs 0.5 and 2 M), and the three-layer heads of dual BN.
    #[test]
    fn known_networks() {
        let forward = |network: &str| {
            let set = [&format!("network={network}"), "stem=imagenet", "augment.size=224", "batch_size=2"];
            flop(&set.map(|text| text)) / 12.0 / 2e9
        };
        assert!((forward("resnet18") - 1.814).abs() < 0.002, "{}", forward("resnet18"));
        assert!((forward("resnet50") - 4.096).abs() < 0.005, "{}", forward("resnet50"));
    }

    #[test]
    fn twice_the_side_or_batch_costs_as_it_must() {
        let head = flop(&["augment.size=1"]);
        assert_eq!(flop(&["batch_size=1024"]), 2.0 * flop(&[]));
        let growth = flop(&["augment.size=64"]) / flop(&[]);
        assert!((3.99..4.0).contains(&growth) && head > 0.0, "{growth}");
    }

    #[test]
    fn matrices_are_multiplied() {
        let rate = matrix_rate(Device::Cpu).unwrap();
        assert!(rate.precision == "fp32" && rate.flop_per_second > 1e8, "{rate:?}");
    }
}
