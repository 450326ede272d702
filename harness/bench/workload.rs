//! Our side of the races, on made-up data of the real shapes.

use std::time::Instant;

use serde::Serialize;
use tch::{Device, Tensor};

use super::{BenchError, BenchOptions, Racer, peak_rss};
use crate::dataset::{ImageSet, Images};
use crate::native;
use crate::network::{Mask, Network, NetworkSpec};
use crate::pretrain::Trainer;
use crate::pretrain::batches::{Views, ahead};
use crate::pretrain::optimizer::Optimizer;
use crate::probe::{Classifier, train_epoch};
use crate::recipe::{OptimizerName, Recipe};
use crate::split::IndexList;

/// What is raced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One SDCLR step at the published settings
    Step,
    /// Both CIFAR views of images
    Augment,
    /// The mask of an epoch
    Mask,
    /// One training epoch of the linear probe
    Probe,
    /// Everything in a training checkpoint of PyTorch's, read
    Checkpoint,
}

/// Our own work.
pub(super) struct Workload {
    device: Device,
    body: Box<dyn FnMut() -> Result<(), BenchError>>,
}

/// Deterministic noise: uint8 images `[n, 3, 32, 32]`.
fn noise(n: usize, device: Device) -> Result<Tensor, BenchError> {
    let pixels = native::uniform((n * 3 * 32 * 32) as i64, 0).map_err(crate::network::NetworkError::from)? * 256.0;
    Ok(pixels.to_kind(tch::Kind::Uint8).view([-1, 3, 32, 32]).to_device(device))
}

/// Noise with labels 0 to 9 in turn.
fn noise_set(n: usize, device: Device) -> Result<ImageSet, BenchError> {
    let images = Images::Resident(noise(n, device)?);
    Ok(ImageSet { images, labels: (0..n as i64).map(|i| i % 10).collect() })
}

impl Workload {
    pub fn new(options: &BenchOptions) -> Result<Self, BenchError> {
        let &BenchOptions { kind, device, network, precision, batch, images, .. } = options;
        let recipe = Recipe { network, precision, ..Recipe::resolve("cifar10-lt/sdclr", &[])? };
        let spec = NetworkSpec::of_recipe(&recipe);
        let make = |spec| Network::new(spec, recipe.seed, tch::Kind::Float, device);
        let body: Box<dyn FnMut() -> Result<(), BenchError>> = match kind {
            Kind::Step => {
                // Steps of warm-up, whose small rates keep the made-up task finite; they cost what all steps cost.
                let mut trainer = Trainer::new(&recipe, make(spec)?, 1000)?;
                trainer.method.begin_epoch(&trainer.network, 1)?;
                let views = noise(2 * batch, device)?.to_kind(tch::Kind::Float) / 255.0;
                let views = views.view([-1, 2, 3, 32, 32]);
                Box::new(move || trainer.step(&views).map(drop).map_err(BenchError::from))
            }
            Kind::Augment => {
                let set = noise_set(images, device)?;
                let indices: Vec<i64> = (0..images as i64).collect();
                let mut epoch = 0;
                Box::new(move || {
                    epoch += 1;
                    // As training takes them: batch by batch, drawn ahead, as floats.
                    std::thread::scope(|scope| {
                        let views = Views::new(&set, &recipe.augment, recipe.seed)?;
                        let batches: Vec<Vec<i64>> = indices.chunks(batch).map(<[i64]>::to_vec).collect();
                        for batch in ahead(scope, views, epoch..=epoch, move |_| Ok(batches.clone())) {
                            drop(views.apply(&batch?.plan, &set)?.to_kind(tch::Kind::Float) / 255.0);
                        }
                        Ok::<_, BenchError>(())
                    })?;
                    Ok(())
                })
            }
            Kind::Mask => {
                let network = make(spec)?;
                Box::new(move || {
                    Mask::magnitude(&network.prunable(), recipe.prune_ratio, 0.0, 0).map(drop).map_err(BenchError::from)
                })
            }
            Kind::Probe => {
                let network = make(spec.probe(10))?;
                let set = noise_set(images, device)?;
                let indices = (0..images as i64).collect();
                let list = IndexList { name: "noise".to_owned(), indices, sha256: String::new(), own: None };
                let classifier = Classifier::of(&network);
                let mut optimizer = Optimizer::new(OptimizerName::Sgd, 0.9, 0.0, classifier.parameters());
                let probe = recipe.probe.full;
                Box::new(move || {
                    train_epoch(&network, &set, &list, &probe, &mut optimizer, 1, 30.0)?;
                    Ok(())
                })
            }
            Kind::Checkpoint => {
                let file = options.file.clone().unwrap_or_default();
                Box::new(move || crate::checkpoint::read_object(&file).map(drop).map_err(BenchError::from))
            }
        };
        Ok(Self { device, body })
    }

    fn synchronize(&self) {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
    }
}

impl Racer for Workload {
    fn name(&self) -> &str {
        "sdclr"
    }

    fn run(&mut self, iterations: usize) -> Result<(f64, u64), BenchError> {
        self.synchronize();
        let start = Instant::now();
        for _ in 0..iterations {
            (self.body)()?;
        }
        self.synchronize();
        Ok((start.elapsed().as_secs_f64(), peak_rss()))
    }
}
