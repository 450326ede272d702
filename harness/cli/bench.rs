//! `sdclr bench`: races against PyTorch.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::bench::{self, BenchOptions, BenchReport, Kind, PeerProgram};
use crate::fs;
use crate::native;
use crate::recipe::{Depth, Precision, name_of};
use crate::suite::environment;

/// Race our step, augmentation, mask, probe or reading of checkpoints against PyTorch in one run
///
/// The peer is reference/torch/peer.py with the environment of ci/oracle --env (or SDCLR_ORACLE_PYTHON); without them
/// ours runs alone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr bench step
  sdclr bench augment --rounds 9 --json augment.json")]
pub(super) struct BenchArgs {
    kind: Kind,
    /// cpu or cuda:N [default: CUDA where it is]
    #[arg(long)]
    device: Option<String>,
    #[arg(long, default_value = "resnet18")]
    network: Depth,
    /// Precision of the step
    #[arg(long, default_value = "fp32")]
    precision: Precision,
    /// Same bits in every run on one GPU, at some cost in speed
    #[arg(long)]
    deterministic: bool,
    /// Images per step
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Images of an iteration (augment, probe)
    #[arg(long, default_value_t = 512)]
    images: usize,
    /// The checkpoint to read (checkpoint) [default: one of a ResNet with momentum, written by PyTorch for the race]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Counted rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Iterations of a round
    #[arg(long, default_value_t = 3)]
    iterations: usize,
    /// Run ours alone
    #[arg(long)]
    no_peer: bool,
    /// Write the race here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl BenchArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let device = environment::device(self.device.as_deref())?;
        native::set_deterministic(self.deterministic)?;
        let peer = if self.no_peer { None } else { PeerProgram::find(Path::new(".")) };
        if peer.is_none() && !self.no_peer {
            eprintln!("no PyTorch to race in this folder (ci/oracle --env makes one); ours runs alone");
        }
        let Self { kind, network, precision, batch, images, rounds, iterations, .. } = self;
        let scratch = tempfile::tempdir()?;
        let file = match self.file {
            None if kind == Kind::Checkpoint && peer.is_none() => {
                anyhow::bail!("there is no PyTorch here to write a checkpoint for the race; name one with --file")
            }
            None if kind == Kind::Checkpoint => Some(scratch.path().join("checkpoint.pt")),
            named => named,
        };
        let options = BenchOptions { kind, device, network, precision, batch, images, file, rounds, iterations, peer };
        let report = bench::race(&options)?;
        print!("{}", table(&report));
        if let Some(path) = &self.json {
            fs::write(path, (serde_json::to_string_pretty(&report)? + "\n").as_bytes())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(report: &BenchReport) -> String {
    let BenchReport { kind, network, precision, batch, environment, .. } = report;
    let mut text = format!(
        "{}, {}, {}, batch {batch}, {} ({} threads), libtorch {}\n{:28} {:>12} {:>10} {:>12} {:>10}\n",
        name_of(kind),
        name_of(network),
        name_of(precision),
        environment.device,
        environment.threads,
        environment.libtorch,
        "",
        "s/iteration",
        "ratio",
        "images/s",
        "peak MiB"
    );
    for contestant in &report.contestants {
        let images = contestant.images_per_second.map_or("-".to_owned(), |images| format!("{images:.1}"));
        let mebibytes = contestant.peak_rss_bytes >> 20;
        let (name, seconds, ratio) = (&contestant.name, contestant.median_seconds, contestant.ratio_to_ours);
        text += &format!("{name:28} {seconds:>12.4} {ratio:>10.3} {images:>12} {mebibytes:>10}\n");
    }
    text + "ratio: its time over ours, median of the rounds; above 1 ours is faster\n"
}
