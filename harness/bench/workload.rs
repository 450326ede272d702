//! Our side of the races, on made-up data of the real shapes.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::arithmetic::synchronize;
use super::hash::HashedFile;
use super::{BenchError, BenchOptions, Measured, Racer, load, memory, norm};
use crate::dataset::ImageSet;
use crate::native;
use crate::network::{Mask, Network, NetworkSpec};
use crate::pretrain::loader::Loader;
use crate::pretrain::optimizer::Optimizer;
use crate::pretrain::{PretrainError, Trainer, sdclr};
use crate::probe::{Classifier, train_epoch};
use crate::random;
use crate::recipe::{OptimizerName, Precision, Recipe};
use crate::split::{Images, Subset};

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
    /// Both views of ImageNet's image files, decoded and augmented
    Load,
    /// ImageNet's image files decoded, one after the other on one thread, against Pillow
    Decode,
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

impl Kind {
    /// Whether it reads image files.
    pub fn is_of_files(self) -> bool {
        matches!(self, Self::Load | Self::Decode)
    }
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
fn noise_set(n: usize, side: i64, device: Device) -> Result<Subset, BenchError> {
    let set = ImageSet { images: noise(n, side, device)?, labels: (0..n as i64).map(|i| i % 10).collect() };
    Ok(Subset::of("noise".to_owned(), String::new(), &set, (0..n as i64).collect()))
}

/// Does as many iterations as it is told.
type Body = Box<dyn FnMut(usize) -> Result<(), BenchError>>;

/// A body that does one iteration after the other.
fn each(mut iteration: impl FnMut() -> Result<(), BenchError> + 'static) -> Body {
    Box::new(move |iterations| (0..iterations).try_for_each(|_| iteration()))
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
            Kind::Augment | Kind::Load | Kind::Decode | Kind::Mask | Kind::Checkpoint | Kind::Hash => None,
        };
        let body = match options.kind {
            Kind::Train => train(recipe, images, device, options.eager)?,
            Kind::Step => step(recipe, device, options.eager)?,
            Kind::Augment => augment(noise_set(images, recipe.augment.size, device)?, recipe, device),
            Kind::Load | Kind::Decode => {
                let list = options.file.as_deref().ok_or(BenchError::NoFile { what: "list of files" })?;
                let set = load::images(list, images)?;
                match options.kind {
                    Kind::Load => augment(set, recipe, device),
                    _ => decode(set),
                }
            }
            Kind::Mask => {
                let network = network(&recipe, NetworkSpec::of_recipe(&recipe), device)?;
                let ratio = sdclr::Keys::of(&recipe)?.prune_ratio;
                each(move || Mask::magnitude(&network.prunable(), ratio, 0.0, 0).map(drop).map_err(BenchError::from))
            }
            Kind::Probe => probe(recipe, images, device)?,
            Kind::Norm => each(norm::body(recipe.batch_size, recipe.augment.size, device)?),
            Kind::Checkpoint => {
                let file = options.file.clone().ok_or(BenchError::NoFile { what: "checkpoint" })?;
                each(move || crate::checkpoint::read_object(&file).map(drop).map_err(BenchError::from))
            }
            Kind::Hash => {
                let file = HashedFile::new()?;
                each(move || file.hash().map(drop))
            }
        };
        Ok(Self { device, precision, body })
    }
}

fn network(recipe: &Recipe, spec: NetworkSpec, device: Device) -> Result<Network, BenchError> {
    Ok(Network::new(spec, recipe.seed, tch::Kind::Float, device)?)
}

/// A trainer in its warm-up: the small learning rates keep the loss on made-up data finite, and a step costs the same.
fn trainer(recipe: &Recipe, device: Device, eager: bool) -> Result<Trainer, BenchError> {
    Ok(Trainer::new(recipe, network(recipe, NetworkSpec::of_recipe(recipe), device)?, 1000, eager)?)
}

/// An epoch as `pretrain::run` goes through it, without the last short batch, so that every step does the same work.
fn train(recipe: Recipe, images: usize, device: Device, eager: bool) -> Result<Body, BenchError> {
    let steps = images / recipe.batch_size;
    let set = noise_set(steps * recipe.batch_size, recipe.augment.size, device)?;
    let mut trainer = trainer(&recipe, device, eager)?;
    let slow_steps = trainer.slow_steps();
    let mut epoch = 0;
    let mut train = each(move || {
        epoch += 1;
        trainer.epoch(epoch, Loader::new(&set, &recipe, device, epoch..=epoch)?)?;
        Ok(())
    });
    // The uncounted round takes an epoch more.
    train(slow_steps.div_ceil(steps) - 1)?;
    Ok(train)
}

fn step(recipe: Recipe, device: Device, eager: bool) -> Result<Body, BenchError> {
    let mut trainer = trainer(&recipe, device, eager)?;
    let size = recipe.augment.size;
    let views = noise(2 * recipe.batch_size, size, device)?.f_view([-1, 2, 3, size, size])?;
    let mut steps = move |count| {
        trainer.epoch(1, (0..count).map(|_| Ok(views.shallow_clone())))?;
        Ok(trainer.slow_steps())
    };
    // The uncounted round takes the last of the slow ones.
    let slow_steps = steps(0)?;
    steps(slow_steps - 1)?;
    Ok(Box::new(move |iterations| steps(iterations).map(drop)))
}

/// As training takes them: batch by batch, drawn ahead, uint8.
fn augment(set: Subset, recipe: Recipe, device: Device) -> Body {
    let mut epoch = 0;
    each(move || {
        epoch += 1;
        Loader::new(&set, &recipe, device, epoch..=epoch)?.try_for_each(|views| views.map(drop))?;
        Ok(())
    })
}

fn decode(set: Subset) -> Body {
    each(move || {
        let Images::Files(files) = &set.images else { return Err(BenchError::NoFile { what: "list of files" }) };
        Ok(set.rows.iter().try_for_each(|&row| files.read(row).map(drop))?)
    })
}

fn probe(recipe: Recipe, images: usize, device: Device) -> Result<Body, BenchError> {
    let network = network(&recipe, NetworkSpec::of_recipe(&recipe).probe(10), device)?;
    let set = noise_set(images, recipe.augment.size, device)?;
    let classifier = Classifier::of(&network);
    let mut optimizer = Optimizer::new(OptimizerName::Sgd, 0.9, 0.0, classifier.parameters());
    let probe = recipe.probe.full;
    Ok(each(move || {
        train_epoch(&network, &set, &probe, &mut optimizer, 1, 30.0)?;
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
        (self.body)(iterations)?;
        synchronize(self.device);
        let seconds = start.elapsed().as_secs_f64();
        let peak_device_bytes = native::graph::peak_bytes(self.device).map_err(PretrainError::from)?;
        Ok(Measured { seconds, peak_rss_bytes: memory::peak_rss(), peak_device_bytes })
    }
}
