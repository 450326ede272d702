//! `sdclr bench`: races against PyTorch, and how the cost grows.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;
use clap::{Args, value_parser};
use serde::Serialize;

use super::output::out;
use super::{EngineArgs, OverrideArgs};
use crate::bench::scaling::{self, Grid};
use crate::bench::{self, BenchOptions, Kind, Opponent, load, table};
use crate::cores;
use crate::fs::{self, Inputs};
use crate::recipe::{Depth, name_of};
use crate::suite::environment;

/// Race our training, step, augmentation, loading, mask, probe, batch norm or reading of checkpoints against PyTorch, our
/// decoding against Pillow, or our hashing against sha256sum, in one run
///
/// The peer is reference/torch/peer.py with the environment of ci/oracle --env (or SDCLR_ORACLE_PYTHON); without them
/// ours runs alone. Several values of --network, --size, --batch, --cores or --file-width make a table of the growing cost
/// instead: every combination in a process of its own, load and decode with their peers, the others alone; what does not fit is
/// a row that says so.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr bench train --batch 512 --images 11165 --precision bf16
  sdclr bench augment --rounds 9 --json augment.json
  sdclr bench decode --file imagenet-sample/fullsize/train.txt
  sdclr bench load --batch 256 --file imagenet-sample/fullsize/train.txt
  sdclr bench load --cores 1,2,4 --batch 64,256 --file-width 250,500,1000 --markdown growth.md
  sdclr bench train --network resnet18,resnet50 --size 32,64,224 --batch 128,512,4096 --markdown growth.md")]
pub(super) struct BenchArgs {
    kind: Kind,
    /// cpu or cuda:N [default: CUDA where it is]
    #[arg(long)]
    device: Option<String>,
    #[arg(long, value_delimiter = ',', default_value = "resnet18", value_name = "NAMES")]
    network: Vec<Depth>,
    /// Same bits in every run on one GPU, at some cost in speed
    #[arg(long)]
    deterministic: bool,
    #[command(flatten)]
    engine: EngineArgs,
    /// Side of the images in pixels; over 64 they go through the ImageNet stem
    #[arg(long, value_delimiter = ',', default_value = "32", default_value_if("kind", "load", "224"), value_name = "PIXELS",
        value_parser = value_parser!(i64).range(1..))]
    size: Vec<i64>,
    /// Images per step
    #[arg(long, value_delimiter = ',', default_value = "64", value_name = "N", value_parser = counted())]
    batch: Vec<usize>,
    /// Processors that all contestants share [default: those that this process may use]
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = counted())]
    cores: Vec<usize>,
    /// Images of an iteration (train, augment, load, decode, probe) [default: four batches for train, 512 or four batches for
    /// load, else 512]
    #[arg(long, value_name = "N", value_parser = counted())]
    images: Option<usize>,
    /// The checkpoint to read (checkpoint) [default: one of a ResNet with momentum, written by PyTorch for the race]; the list of
    /// image files, lines PATH LABEL with paths relative to its folder, which are used in turn (load, decode) [default: made-up
    /// JPEGs]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Width of made-up JPEGs in pixels, three quarters as high (load, decode)
    #[arg(long, value_delimiter = ',', default_value = "500", value_name = "PIXELS", conflicts_with = "file",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    file_width: Vec<usize>,
    /// Counted rounds
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = counted())]
    rounds: usize,
    /// Iterations of a round
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = counted())]
    iterations: usize,
    // For our side; a peer that can follows its precision.
    #[command(flatten)]
    overrides: OverrideArgs,
    /// Run ours alone
    #[arg(long)]
    no_peer: bool,
    /// Write the race here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table here
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// A number of things of which there is at least one.
fn counted() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

impl BenchArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let named = if self.kind.is_of_files() { "the list" } else { "the checkpoint" };
        let inputs = Inputs::default().file(named, self.file.as_deref());
        inputs.spare("--json", self.json.as_deref())?;
        inputs.spare("--markdown", self.markdown.as_deref())?;
        let grid = Grid {
            networks: self.network.clone(),
            sizes: self.size.clone(),
            batches: self.batch.clone(),
            cores: if self.cores.is_empty() { vec![None] } else { self.cores.iter().copied().map(Some).collect() },
            file_widths: self.file_width.clone(),
        };
        let firsts = (grid.networks.first(), grid.sizes.first(), grid.batches.first(), grid.file_widths.first());
        let (Some(&network), Some(&size), Some(&batch), Some(&file_width)) = firsts else {
            anyhow::bail!("--network, --size, --batch and --file-width need a value each");
        };
        let cores = self.cores.first().copied();
        let growing = grid.rows() > 1;
        if growing && matches!(self.kind, Kind::Norm | Kind::Checkpoint | Kind::Hash) {
            anyhow::bail!(
                "there is no table of how {} grows; give one value each of --network, --size, --batch, --cores and --file-width",
                name_of(&self.kind)
            );
        }
        let alone = self.no_peer || growing && !self.kind.is_of_files();
        let peer = if alone { None } else { Opponent::find(self.kind, Path::new(".")) };
        if peer.is_none() && !alone {
            tracing::info!("no PyTorch to race in this folder (ci/oracle --env makes one); ours runs alone");
        }
        if let Some(count) = cores.filter(|_| !growing) {
            cores::restrict(count).map_err(|there| {
                anyhow::anyhow!("--cores {count}: this process may use {there} processors; name as many or fewer")
            })?;
        }
        let mut options = BenchOptions {
            kind: self.kind,
            device: environment::device(self.device.as_deref())?,
            network,
            deterministic: self.deterministic,
            eager: self.engine.eager,
            batch,
            size,
            images: self.images,
            file: self.file.clone(),
            file_width,
            cores,
            overrides: self.overrides.clone().overrides()?,
            rounds: self.rounds,
            iterations: self.iterations,
            peer,
        };
        if growing {
            let report = scaling::scaling(&options, &grid, |row| {
                let outcome = row.failure.as_deref().unwrap_or("measured");
                tracing::info!("{}: {outcome}", table::setting_text(self.kind, row));
            })?;
            self.write(&report, &table::scaling_markdown(&report))?;
            out!("{}", table::scaling_text(&report))?;
            return Ok(ExitCode::SUCCESS);
        }
        let scratch = fs::temporary_folder()?;
        options.file = match options.file {
            None if self.kind == Kind::Checkpoint && options.peer.is_none() => {
                anyhow::bail!("there is no PyTorch here to write a checkpoint for the race; name one with --file")
            }
            None if self.kind == Kind::Checkpoint => Some(scratch.path().join("checkpoint.pt")),
            None if self.kind.is_of_files() => Some(load::make_up(scratch.path(), file_width)?),
            named => named,
        };
        let report = bench::race(&options)?;
        self.write(&report, &table::markdown(&report))?;
        out!("{}", table::text(&report))?;
        Ok(if report.absent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn write(&self, report: &impl Serialize, markdown: &str) -> anyhow::Result<()> {
        if let Some(path) = &self.json {
            fs::write(path, (serde_json::to_string_pretty(report)? + "\n").as_bytes())?;
        }
        if let Some(path) = &self.markdown {
            fs::write(path, markdown.as_bytes())?;
        }
        Ok(())
    }
}
