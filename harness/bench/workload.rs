//! Our side of the races, on made-up data of the real shapes.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::arithmetic::synchronize;
use super::hash::HashedFile;
use super::{BenchError, BenchOptions, Body, Measured, Racer, memory, norm};
use crate::dataset::{ImageSet, Images};
use crate::native;
use crate::network::{Mask, Network, NetworkSpec};
use crate::pretrain::batches::{Views, ViewsAhead, ahead, batches_of};
use crate::pretrain::optimizer::Optimizer;
use crate::pretrain::{PretrainError, Trainer, read_losses, sdclr};
use crate::probe::{Classifier, train_epoch};
use crate::random;
use crate::recipe::{OptimizerName, Precision, Recipe};
use crate::split::IndexList;

/// What is raced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One epoch of SDCLR training, whole batches: mask, augmentation, steps
    Train,
    /// One SDCLR step at the published settings
    Step,
    /// Both CIFAR views of images
    Augment,
    /// The mask of an epoch
    Mask,
    /// One training epoch of the linear probe
    Probe,
    /// Every batch norm of a ResNet-18's backbone and what follows it, forward and backward in bf16, on a GPU
    Norm,
    /// Everything in a training checkpoint of PyTorch's, read
    Checkpoint,
    /// The sha256 of a file of 1 GiB, against the program sha256sum
    Hash,
}

/// Our own work.
pub(super) struct Workload {
    device: Device,
    precision: Option<Precision>,
    body: Body,
}

/// Deterministic noise: uint8 images `[n, 3, side, side]`.
fn noise(n: usize, side: i64, device: Device) -> Result<Tensor, BenchError> {
    let mut pixels = random::uniform(n as i64 * 3 * side * side, 0).map_err(crate::network::NetworkError::from)?;
    // In place: at 4096 images of 224 pixels it is gigabytes.
    let pixels = pixels.f_mul_scalar_(256.0)?;
    Ok(pixels.to_kind(tch::Kind::Uint8).f_view([-1, 3, side, side])?.f_to_device(device)?)
}

/// Noise with labels 0 to 9 in turn.
fn noise_set(n: usize, side: i64, device: Device) -> Result<ImageSet, BenchError> {
    let images = Images::Resident(noise(n, side, device)?);
    Ok(ImageSet { images, labels: (0..n as i64).map(|i| i % 10).collect() })
}

impl Workload {
    pub fn new(options: &BenchOptions) -> Result<Self, BenchError> {
        let recipe = options.recipe()?;
        native::set_deterministic(options.deterministic).map_err(PretrainError::from)?;
        let (device, images) = (options.device, options.images());
        let precision = match options.kind {
            Kind::Train | Kind::Step => Some(recipe.precision),
            Kind::Norm => Some(Precision::Bf16),
            // Whatever the encoder was trained in.
            Kind::Probe => Some(Precision::Fp32),
            Kind::Augment | Kind::Mask | Kind::Checkpoint | Kind::Hash => None,
        };
        let body = match options.kind {
            Kind::Train => train(recipe, images, device, options.eager)?,
            Kind::Step => step(recipe, device, options.eager)?,
            Kind::Augment => augment(recipe, images, device)?,
            Kind::Mask => {
                let network = network(&recipe, NetworkSpec::of_recipe(&recipe), device)?;
                let ratio = sdclr::Keys::of(&recipe)?.prune_ratio;
                Box::new(move || {
                    Mask::magnitude(&network.prunable(), ratio, 0.0, 0).map(drop).map_err(BenchError::from)
                })
            }
            Kind::Probe => probe(recipe, images, device)?,
            Kind::Norm => norm::body(recipe.batch_size, recipe.augment.size, device)?,
            Kind::Checkpoint => {
                let file = options.file.clone().unwrap_or_default();
                Box::new(move || crate::checkpoint::read_object(&file).map(drop).map_err(BenchError::from))
            }
            Kind::Hash => {
                let file = HashedFile::new()?;
                Box::new(move || file.hash().map(drop))
            }
        };
        Ok(Self { device, precision, body })
    }
}

fn network(recipe: &Recipe, spec: NetworkSpec, device: Device) -> Result<Network, BenchError> {
    Ok(Network::new(spec, recipe.seed, tch::Kind::Float, device)?)
}

/// A trainer in its warm-up, whose small rates keep the made-up task finite; its steps cost what all steps cost.
fn trainer(recipe: &Recipe, device: Device, eager: bool) -> Result<Trainer, BenchError> {
    Ok(Trainer::new(recipe, network(recipe, NetworkSpec::of_recipe(recipe), device)?, 1000, eager)?)
}

/// An epoch as `pretrain::run` goes through it, without the last short batch, so that every step does the same work.
fn train(recipe: Recipe, images: usize, device: Device, eager: bool) -> Result<Body, BenchError> {
    let set = noise_set(images, recipe.augment.size, device)?;
    let mut trainer = trainer(&recipe, device, eager)?;
    let list: Vec<i64> = (0..images as i64).collect();
    let (steps, slow_steps) = (images / recipe.batch_size, trainer.slow_steps());
    let mut epoch = 0;
    let mut train = move || {
        epoch += 1;
        std::thread::scope(|scope| {
            let views = Views::new(&set, &recipe.augment, recipe.seed)?;
            let batches = ahead(scope, views, epoch..=epoch, |epoch| batches_of(&list, recipe.batch_size, epoch));
            let batches = ViewsAhead::new(views, &set, batches.iter().take(steps))?;
            trainer.method.begin_epoch(&trainer.network, epoch)?;
            let mut losses = Vec::new();
            for views in batches {
                losses.push(trainer.step(&(views?.to_kind(tch::Kind::Float) / 255.0))?);
            }
            // As training does at an epoch's end.
            read_losses(&losses)?;
            Ok(())
        })
    };
    // The uncounted round takes an epoch more.
    for _ in 1..slow_steps.div_ceil(steps) {
        train()?;
    }
    Ok(Box::new(train))
}

fn step(recipe: Recipe, device: Device, eager: bool) -> Result<Body, BenchError> {
    let mut trainer = trainer(&recipe, device, eager)?;
    trainer.method.begin_epoch(&trainer.network, 1)?;
    let size = recipe.augment.size;
    let views = noise(2 * recipe.batch_size, size, device)?.to_kind(tch::Kind::Float) / 255.0;
    let views = views.f_view([-1, 2, 3, size, size])?;
    // The uncounted round takes the last of them.
    for _ in 1..trainer.slow_steps() {
        drop(trainer.step(&views)?);
    }
    Ok(Box::new(move || trainer.step(&views).map(drop).map_err(BenchError::from)))
}

fn augment(recipe: Recipe, images: usize, device: Device) -> Result<Body, BenchError> {
    let set = noise_set(images, recipe.augment.size, device)?;
    let indices: Vec<i64> = (0..images as i64).collect();
    let mut epoch = 0;
    Ok(Box::new(move || {
        epoch += 1;
        // As training takes them: batch by batch, drawn ahead, as floats.
        std::thread::scope(|scope| {
            let views = Views::new(&set, &recipe.augment, recipe.seed)?;
            let batches: Vec<Vec<i64>> = indices.chunks(recipe.batch_size).map(<[i64]>::to_vec).collect();
            for batch in ahead(scope, views, epoch..=epoch, move |_| Ok(batches.clone())) {
                drop(views.apply(&batch?.plan, &set)?.to_kind(tch::Kind::Float) / 255.0);
            }
            Ok(())
        })
    }))
}

fn probe(recipe: Recipe, images: usize, device: Device) -> Result<Body, BenchError> {
    let network = network(&recipe, NetworkSpec::of_recipe(&recipe).probe(10), device)?;
    let set = noise_set(images, recipe.augment.size, device)?;
    let indices = (0..images as i64).collect();
    let list = IndexList { name: "noise".to_owned(), indices, sha256: String::new(), own: None };
    let classifier = Classifier::of(&network);
    let mut optimizer = Optimizer::new(OptimizerName::Sgd, 0.9, 0.0, classifier.parameters());
    let probe = recipe.probe.full;
    Ok(Box::new(move || {
        train_epoch(&network, &set, &list, &probe, &mut optimizer, 1, 30.0)?;
        Ok(())
    }))
}

impl Racer for Workload {
    fn name(&self) -> &str {
        "sdclr"
    }

    fn precision(&self) -> Option<Precision> {
        self.precision
    }

    fn run(&mut self, iterations: usize) -> Result<Measured, BenchError> {
        synchronize(self.device);
        let start = Instant::now();
        for _ in 0..iterations {
            (self.body)()?;
        }
        synchronize(self.device);
        let seconds = start.elapsed().as_secs_f64();
        let peak_device_bytes = native::graph::peak_bytes(self.device).map_err(PretrainError::from)?;
        Ok(Measured { seconds, peak_rss_bytes: memory::peak_rss(), peak_device_bytes })
    }
}
