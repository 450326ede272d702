//! Races our training, step, augmentation, loading, decoding, mask, probe, batch norm, reading of checkpoints and hashing against
//! programs that do the same work, in one run on one machine. In: what to race, and its size. Out: for each contestant, seconds per
//! iteration, the ratio to ours, the share of the device's matrix rate, and peak memory.

pub mod arithmetic;
pub mod cost;
mod hash;
pub mod load;
mod memory;
mod norm;
mod peer;
pub mod scaling;
pub mod table;
mod workload;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::checkpoint::CheckpointError;
use crate::dataset::{DatasetError, speed};
use crate::fs::FsError;
use crate::network::NetworkError;
use crate::pretrain::PretrainError;
use crate::probe::ProbeError;
use crate::recipe::{Depth, Precision, REFERENCE_SUITE, Recipe, RecipeError, Stem, name_of};
use crate::record::Environment;
use crate::split::SplitError;
use crate::suite::environment;
use arithmetic::MatrixRate;
use hash::Sha256sum;
use peer::Peer;
pub use workload::Kind;
use workload::Workload;

/// A race could not be held.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(
        "the PyTorch peer {command} failed: {reason}; make its environment with ci/oracle --env, or race alone with --no-peer"
    )]
    Peer { command: String, reason: String },
    #[error("the program {program} failed: {reason}; install it, or race alone with --no-peer")]
    Program { program: &'static str, reason: String },
    #[error("an epoch of {images} images has no whole batch of {batch}; use --images {batch} or more")]
    Images { images: usize, batch: usize },
    #[error("norm races kernels for a GPU, and the device is none; use --device cuda:0")]
    NoGpu,
    #[error("there is no {what} to read; name one with --file")]
    NoFile { what: &'static str },
    #[error("a JPEG could not be made: {reason}")]
    Jpeg { reason: String },
    #[error("{0}")]
    Device(String),
    #[error("a row of the table could not be measured in a process of its own: {reason}")]
    Row { reason: String },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Pretrain(#[from] PretrainError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    List(#[from] SplitError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    File(#[from] FsError),
    #[error("libtorch: {}", crate::native::said(.0))]
    Torch(#[from] tch::TchError),
}

/// What to race.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    pub kind: Kind,
    pub device: Device,
    pub network: Depth,
    /// The same bits in every run on one GPU.
    pub deterministic: bool,
    /// libtorch's own operations, launched one by one: no CUDA graphs, no batch norm of ours.
    pub eager: bool,
    /// Images per step, or per probe step.
    pub batch: usize,
    /// Side of the images in pixels.
    pub size: i64,
    /// Images of an epoch of training, of an augmentation iteration or of a probe epoch; `None`: four batches of
    /// training or loading, and 512 at least of all but training.
    pub images: Option<usize>,
    /// The checkpoint that is read, which the peer writes where there is none; or the list of the files that are loaded.
    pub file: Option<PathBuf>,
    /// Width of made-up files, where no list is named.
    pub file_width: usize,
    /// Processors that all contestants share; `None`: those of this process.
    pub cores: Option<usize>,
    /// `key=value` onto the recipe of our side, e.g. `precision=bf16`.
    pub overrides: Vec<String>,
    /// Counted rounds, after one that is not; in each, every contestant runs once.
    pub rounds: usize,
    /// Iterations of a round.
    pub iterations: usize,
    /// Whom to race; `None`: alone.
    pub peer: Option<Opponent>,
}

/// The other side of a race.
#[derive(Debug, Clone)]
pub enum Opponent {
    PyTorch(PeerProgram),
    /// The program of that name, which hashes files.
    Sha256sum,
}

/// Where the PyTorch side is.
#[derive(Debug, Clone)]
pub struct PeerProgram {
    pub python: PathBuf,
    /// `reference/torch/peer.py` of the checkout.
    pub script: PathBuf,
}

/// One contestant's times.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Contestant {
    pub name: String,
    /// Of its network; absent where none computes.
    pub precision: Option<Precision>,
    /// Seconds of one iteration, one entry per round.
    pub seconds: Vec<f64>,
    pub median_seconds: f64,
    /// Its time over ours, median of the rounds' ratios: above 1, ours is faster.
    pub ratio_to_ours: f64,
    pub images_per_second: Option<f64>,
    /// Where the race trains.
    pub steps_per_second: Option<f64>,
    /// The arithmetic of the step over its time, as a share of the matrix rate.
    pub share_of_matrix_rate: Option<f64>,
    /// Of its process, which does nothing else (workers of a data loader aside); `None` where that is not known.
    pub peak_rss_bytes: Option<u64>,
    /// The most memory that its libtorch held on a CUDA device.
    pub peak_device_bytes: Option<u64>,
}

/// A contestant that did not finish.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Absent {
    pub name: String,
    pub reason: String,
}

/// A finished race.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BenchReport {
    pub kind: Kind,
    pub network: Depth,
    pub stem: Stem,
    pub precision: Precision,
    pub size: i64,
    pub batch: usize,
    pub images: usize,
    /// Whether our libjpeg uses SIMD, where files are decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jpeg_simd: Option<bool>,
    pub overrides: Vec<String>,
    pub rounds: usize,
    pub iterations: usize,
    pub environment: Environment,
    /// Additions and multiplications of a step, where the race trains.
    pub flop_per_step: Option<u64>,
    pub matrix_rate: Option<MatrixRate>,
    /// Ours first.
    pub contestants: Vec<Contestant>,
    pub absent: Vec<Absent>,
}

/// What one run of a contestant took.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Measured {
    pub seconds: f64,
    /// Of its process so far; `None` where that is not known.
    pub peak_rss_bytes: Option<u64>,
    #[serde(default)]
    pub peak_device_bytes: Option<u64>,
}

/// Whoever takes part.
pub trait Racer {
    fn name(&self) -> &str;

    /// Of its network; `None` where none computes.
    fn precision(&self) -> Option<Precision>;

    /// Runs `iterations`.
    fn run(&mut self, iterations: usize) -> Result<Measured, BenchError>;
}

/// All contestants, ours first. Each variant of the peer has its own process, so that its peak memory is its own.
///
/// # Errors
/// The peer does not start, or our own network cannot be made.
pub fn racers(options: &BenchOptions) -> Result<Vec<Box<dyn Racer>>, BenchError> {
    let mut peers: Vec<Box<dyn Racer>> = Vec::new();
    match &options.peer {
        Some(Opponent::PyTorch(program)) => {
            for variant in Peer::variants(program, options)? {
                peers.push(Box::new(Peer::start(program, options, variant)?));
            }
        }
        Some(Opponent::Sha256sum) => peers.push(Box::new(Sha256sum::new()?)),
        None => {}
    }
    // Ours reads what a peer may have written.
    let mut racers: Vec<Box<dyn Racer>> = vec![Box::new(Workload::new(options)?)];
    racers.extend(peers);
    Ok(racers)
}

/// A contestant and what it has shown.
struct Entry {
    racer: Box<dyn Racer>,
    runs: Vec<Measured>,
}

/// Runs the race: one warm-up round, then rounds in which every contestant runs once, so that drift in the machine's speed
/// affects all of them. If a peer fails, the race continues without it.
///
/// # Errors
/// The peer does not start, or our own work fails.
pub fn race(options: &BenchOptions) -> Result<BenchReport, BenchError> {
    let recipe = options.recipe()?;
    let mut entries: Vec<Entry> = racers(options)?.into_iter().map(|racer| Entry { racer, runs: Vec::new() }).collect();
    let mut absent = Vec::new();
    for round in 0..=options.rounds {
        let mut still_here = Vec::new();
        for mut entry in entries {
            match entry.racer.run(options.iterations) {
                Ok(measured) if round > 0 => entry.runs.push(measured),
                Ok(_) => {}
                Err(BenchError::Peer { reason, .. }) => {
                    absent.push(Absent { name: entry.racer.name().to_owned(), reason });
                    continue;
                }
                Err(error) => return Err(error),
            }
            still_here.push(entry);
        }
        entries = still_here;
    }
    let training = matches!(options.kind, Kind::Train | Kind::Step);
    let flop_per_step = training.then(|| arithmetic::flop_per_step(&recipe)).transpose()?;
    let matrix_rate = training.then(|| arithmetic::matrix_rate(options.device)).transpose()?;
    let work = Work {
        images: options.images_per_iteration(&recipe),
        steps: training.then(|| options.steps_per_iteration(&recipe)),
        share_of_step: flop_per_step.zip(matrix_rate.as_ref()).map(|(flop, rate)| flop as f64 / rate.flop_per_second),
        iterations: options.iterations,
    };
    let ours = entries.first().map(|entry| entry.runs.clone()).unwrap_or_default();
    Ok(BenchReport {
        kind: options.kind,
        network: recipe.network,
        stem: recipe.stem,
        precision: recipe.precision,
        size: recipe.augment.size,
        batch: recipe.batch_size,
        images: options.images(),
        jpeg_simd: options.kind.is_of_files().then(speed::uses_simd),
        overrides: options.overrides.clone(),
        rounds: options.rounds,
        iterations: options.iterations,
        environment: Environment {
            eager: options.eager,
            ..environment::describe(options.device).map_err(PretrainError::from)?
        },
        flop_per_step,
        matrix_rate,
        contestants: entries.iter().map(|entry| work.contestant(entry, &ours)).collect(),
        absent,
    })
}

/// What an iteration does, for speeds.
struct Work {
    images: Option<usize>,
    steps: Option<usize>,
    /// Seconds that a step would take at the matrix rate.
    share_of_step: Option<f64>,
    iterations: usize,
}

impl Work {
    fn contestant(&self, entry: &Entry, ours: &[Measured]) -> Contestant {
        let seconds: Vec<f64> = entry.runs.iter().map(|run| run.seconds / self.iterations as f64).collect();
        let median_seconds = median(seconds.clone());
        let steps_per_second = self.steps.map(|steps| steps as f64 / median_seconds);
        let last = entry.runs.last();
        Contestant {
            name: entry.racer.name().to_owned(),
            precision: entry.racer.precision(),
            ratio_to_ours: median(entry.runs.iter().zip(ours).map(|(run, our)| run.seconds / our.seconds).collect()),
            images_per_second: self.images.map(|images| images as f64 / median_seconds),
            steps_per_second,
            share_of_matrix_rate: steps_per_second.zip(self.share_of_step).map(|(steps, share)| steps * share),
            peak_rss_bytes: last.and_then(|run| run.peak_rss_bytes),
            peak_device_bytes: last.and_then(|run| run.peak_device_bytes),
            median_seconds,
            seconds,
        }
    }
}

impl BenchOptions {
    /// The recipe of our side: the published SDCLR on CIFAR-10-LT at the size that is asked for. Images over 64 pixels go
    /// through the ImageNet stem.
    ///
    /// # Errors
    /// An override is refused, or an epoch of training has no whole batch.
    pub fn recipe(&self) -> Result<Recipe, BenchError> {
        let stem = if self.size > 64 { Stem::Imagenet } else { Stem::Cifar };
        let mut set = vec![
            format!("network={}", name_of(&self.network)),
            format!("stem={}", name_of(&stem)),
            format!("batch_size={}", self.batch),
            format!("augment.size={}", self.size),
        ];
        set.extend(self.overrides.iter().cloned());
        // Views of files are those of ImageNet, with blur.
        let suite = if self.kind == Kind::Load { "imagenet100-lt" } else { REFERENCE_SUITE };
        let recipe = Recipe::resolve(&format!("{suite}/sdclr"), &set)?;
        if self.kind == Kind::Train && self.images() < recipe.batch_size {
            return Err(BenchError::Images { images: self.images(), batch: recipe.batch_size });
        }
        Ok(recipe)
    }

    /// Images there are.
    pub fn images(&self) -> usize {
        self.images.unwrap_or(match self.kind {
            Kind::Train => 4 * self.batch,
            // The loader holds up to four batches at once.
            Kind::Load => 512.max(4 * self.batch),
            _ => 512,
        })
    }

    fn steps_per_iteration(&self, recipe: &Recipe) -> usize {
        if self.kind == Kind::Train { self.images() / recipe.batch_size } else { 1 }
    }

    /// Images that an iteration works on; races of the mask, a checkpoint or a hash have none.
    fn images_per_iteration(&self, recipe: &Recipe) -> Option<usize> {
        match self.kind {
            Kind::Train | Kind::Step => Some(recipe.batch_size * self.steps_per_iteration(recipe)),
            Kind::Augment | Kind::Load | Kind::Decode | Kind::Probe => Some(self.images()),
            Kind::Norm => Some(recipe.batch_size),
            Kind::Mask | Kind::Checkpoint | Kind::Hash => None,
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

impl Opponent {
    /// The opponent in a race of `kind`; PyTorch only if `folder` is a checkout with an environment for it.
    pub fn find(kind: Kind, folder: &Path) -> Option<Self> {
        match kind {
            Kind::Hash => Some(Self::Sha256sum),
            _ => PeerProgram::find(folder).map(Self::PyTorch),
        }
    }
}

impl PeerProgram {
    /// The peer of the checkout in `folder`, where both its program and an environment for it are there.
    fn find(folder: &Path) -> Option<Self> {
        let script = folder.join("reference/torch/peer.py");
        let python = match std::env::var_os("SDCLR_ORACLE_PYTHON") {
            Some(python) => PathBuf::from(python),
            None => folder.join(".oracle/bin/python"),
        };
        (script.exists() && python.exists()).then_some(Self { python, script })
    }
}
