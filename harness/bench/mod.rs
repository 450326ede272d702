//! Races: our step, augmentation, mask and probe beside the same work in PyTorch, in one run on one machine. In: what to
//! race and how big. Out: seconds per iteration of each contestant, the ratio to ours, peak memory.

mod peer;
mod workload;

use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::Device;

use crate::network::NetworkError;
use crate::pretrain::PretrainError;
use crate::probe::ProbeError;
use crate::recipe::{Depth, RecipeError};
use crate::record::Environment;
use crate::suite::environment;
use peer::Peer;
pub use workload::{Kind, Workload};

/// A race could not be held.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("the PyTorch peer {command} failed: {reason}; make its environment with ci/oracle --env, or race alone with --no-peer")]
    Peer { command: String, reason: String },
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
    /// Images per step, or per probe step.
    pub batch: usize,
    /// Images of an augmentation iteration or of a probe epoch.
    pub images: usize,
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
    pub batch: usize,
    pub images: usize,
    pub rounds: usize,
    pub iterations: usize,
    pub environment: Environment,
    /// Ours first.
    pub contestants: Vec<Contestant>,
}

/// Holds the race: after a round that warms up, all contestants in turn, round by round, so that a machine whose speed
/// drifts slows all of them.
///
/// # Errors
/// The peer does not start or dies, or our own work fails.
pub fn race(options: &BenchOptions) -> Result<BenchReport, BenchError> {
    let mut ours = Workload::new(options)?;
    let mut peers = Vec::new();
    if let Some(program) = &options.peer {
        for variant in Peer::variants(program, options)? {
            // A process each, so that its peak memory is its own.
            peers.push((variant.clone(), Peer::start(program, options, &variant)?));
        }
    }
    let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); 1 + peers.len()];
    let mut peaks = vec![0; 1 + peers.len()];
    for round in 0..=options.rounds {
        let iterations = options.iterations;
        let mut measured = vec![(ours.run(iterations)?, peak_rss())];
        for (_, peer) in &mut peers {
            measured.push(peer.run(ours.peer_count(iterations))?);
        }
        for (i, (seconds, peak)) in measured.into_iter().enumerate() {
            peaks[i] = peak;
            if round > 0 {
                rounds[i].push(seconds / iterations as f64);
            }
        }
    }
    let names = std::iter::once("sdclr".to_owned()).chain(peers.into_iter().map(|(name, _)| format!("PyTorch {name}")));
    let contestants = names
        .zip(&rounds)
        .zip(peaks)
        .map(|((name, seconds), peak_rss_bytes)| {
            let median_seconds = median(seconds.clone());
            let ratios = seconds.iter().zip(&rounds[0]).map(|(theirs, ours)| theirs / ours).collect();
            Contestant {
                name,
                median_seconds,
                ratio_to_ours: median(ratios),
                images_per_second: ours.images().map(|images| images as f64 / median_seconds),
                peak_rss_bytes,
                seconds: seconds.clone(),
            }
        })
        .collect();
    Ok(BenchReport {
        kind: options.kind,
        network: options.network,
        batch: options.batch,
        images: options.images,
        rounds: options.rounds,
        iterations: options.iterations,
        environment: environment::describe(options.device),
        contestants,
    })
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
