//! Races: our step, augmentation, mask, probe and reading of checkpoints beside the same work in PyTorch, in one run on
//! one machine. In: what to race and how big. Out: seconds per iteration of each contestant, the ratio to ours, peak memory.

mod peer;
mod workload;

use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::Device;

use crate::checkpoint::CheckpointError;
use crate::network::NetworkError;
use crate::pretrain::PretrainError;
use crate::probe::ProbeError;
use crate::recipe::{Depth, Precision, RecipeError};
use crate::record::Environment;
use crate::suite::environment;
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
}

/// What to race.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    pub kind: Kind,
    pub device: Device,
    pub network: Depth,
    pub precision: Precision,
    /// Images per step, or per probe step.
    pub batch: usize,
    /// Images of an augmentation iteration or of a probe epoch.
    pub images: usize,
    /// The checkpoint that is read, which the peer writes where there is none.
    pub file: Option<PathBuf>,
    /// Counted rounds, after one that is not; in each, every contestant runs once.
    pub rounds: usize,
    /// Iterations of a round.
    pub iterations: usize,
    /// The PyTorch to race; `None`: alone.
    pub peer: Option<PeerProgram>,
}

/// Where the PyTorch side is.
#[derive(Debug, Clone)]
pub struct PeerProgram {
    pub python: PathBuf,
    /// `reference/torch/peer.py` of the checkout.
    pub script: PathBuf,
}

/// One contestant's times.
#[derive(Debug, Clone, Serialize)]
pub struct Contestant {
    pub name: String,
    /// Seconds of one iteration, one entry per round.
    pub seconds: Vec<f64>,
    pub median_seconds: f64,
    /// Its time over ours, median of the rounds' ratios: above 1, ours is faster.
    pub ratio_to_ours: f64,
    pub images_per_second: Option<f64>,
    /// Of its process, which does nothing else.
    pub peak_rss_bytes: u64,
}

/// A finished race.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    pub kind: Kind,
    pub network: Depth,
    pub precision: Precision,
    pub batch: usize,
    pub images: usize,
    pub rounds: usize,
    pub iterations: usize,
    pub environment: Environment,
    /// Ours first.
    pub contestants: Vec<Contestant>,
}

/// Whoever takes part.
pub trait Racer {
    fn name(&self) -> &str;

    /// Seconds of `iterations`, and the peak memory of its process so far in bytes.
    fn run(&mut self, iterations: usize) -> Result<(f64, u64), BenchError>;
}

/// Everybody who takes part, ours first; a process for each variant of the peer, so that its peak memory is its own.
///
/// # Errors
/// The peer does not start, or our own network cannot be made.
pub fn racers(options: &BenchOptions) -> Result<Vec<Box<dyn Racer>>, BenchError> {
    let mut peers: Vec<Box<dyn Racer>> = Vec::new();
    if let Some(program) = &options.peer {
        for variant in Peer::variants(program, options)? {
            peers.push(Box::new(Peer::start(program, options, &variant)?));
        }
    }
    // Ours reads what a peer may have written.
    let mut racers: Vec<Box<dyn Racer>> = vec![Box::new(Workload::new(options)?)];
    racers.extend(peers);
    Ok(racers)
}

/// Holds the race: after a round that warms up, everybody in turn, round by round, so that a machine whose speed drifts
/// slows all of them.
///
/// # Errors
/// The peer does not start or dies, or our own work fails.
pub fn race(options: &BenchOptions) -> Result<BenchReport, BenchError> {
    let mut racers = racers(options)?;
    let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); racers.len()];
    let mut peaks = vec![0; racers.len()];
    for round in 0..=options.rounds {
        for (i, racer) in racers.iter_mut().enumerate() {
            let (seconds, peak) = racer.run(options.iterations)?;
            peaks[i] = peak;
            if round > 0 {
                rounds[i].push(seconds / options.iterations as f64);
            }
        }
    }
    let images = options.images_per_iteration();
    let contestant = |i: usize| {
        let seconds = rounds[i].clone();
        let median_seconds = median(seconds.clone());
        Contestant {
            name: racers[i].name().to_owned(),
            median_seconds,
            ratio_to_ours: median(seconds.iter().zip(&rounds[0]).map(|(theirs, ours)| theirs / ours).collect()),
            images_per_second: images.map(|images| images as f64 / median_seconds),
            peak_rss_bytes: peaks[i],
            seconds,
        }
    };
    Ok(BenchReport {
        kind: options.kind,
        network: options.network,
        precision: options.precision,
        batch: options.batch,
        images: options.images,
        rounds: options.rounds,
        iterations: options.iterations,
        environment: environment::describe(options.device),
        contestants: (0..racers.len()).map(contestant).collect(),
    })
}

impl BenchOptions {
    /// Images that an iteration works on; the mask and a checkpoint see none.
    fn images_per_iteration(&self) -> Option<usize> {
        match self.kind {
            Kind::Step => Some(self.batch),
            Kind::Augment | Kind::Probe => Some(self.images),
            Kind::Mask | Kind::Checkpoint => None,
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

/// The largest resident size of this process so far, in bytes.
fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kib.unwrap_or(0) * 1024
}

impl PeerProgram {
    /// The peer of the checkout in `folder`, where both its program and an environment for it are there.
    pub fn find(folder: &Path) -> Option<Self> {
        let script = folder.join("reference/torch/peer.py");
        let python = match std::env::var_os("SDCLR_ORACLE_PYTHON") {
            Some(python) => PathBuf::from(python),
            None => folder.join(".oracle/bin/python"),
        };
        (script.exists() && python.exists()).then_some(Self { python, script })
    }
}
