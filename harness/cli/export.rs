//! `sdclr export`: our encoders in the form that other programs take.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::{out, outln};
use crate::checkpoint::export::{Export, Format, Names};
use crate::checkpoint::{self, Root};
use crate::fs::Inputs;

/// Write a checkpoint so that PyTorch and torchvision load it
///
/// Takes every checkpoint of a ResNet that the other commands read, and prints the lines of Python that load the result.
///
/// torchvision's networks do not normalise their input as ours do: with --names torchvision, images in [0, 1] must go
/// through transforms.Normalize first. Its ResNets have a 7x7 stem: for CIFAR's 3x3 stem, the lines printed change it.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  sdclr export encoder.safetensors --format torch-pt --names torchvision --out encoder.pt")]
pub(super) struct ExportArgs {
    /// A checkpoint, .pt or .safetensors
    checkpoint: PathBuf,
    #[arg(long)]
    format: Format,
    #[arg(long)]
    names: Names,
    /// What stands before conv1.weight in the checkpoint, where it is not found by itself
    #[arg(long, value_name = "NAMES")]
    prefix: Option<String>,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl ExportArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        Inputs::default().file("the checkpoint", &*self.checkpoint).spare("--out", &*self.out)?;
        let mut weights = checkpoint::read_encoder(&self.checkpoint)?;
        super::warn_not_finite(&weights.state);
        weights.state = weights.state.resnet(self.prefix.as_deref())?;
        let export = Export::new(&weights, self.names)?;
        export.write(&self.out, self.format)?;
        let (count, bytes) = (export.state.len(), export.bytes());
        outln!("{}: {count} tensors, {bytes} bytes, of a {}", self.out.display(), export.spec)?;
        if let (Root::Checkpoint { epoch: None }, Format::TorchPt) = (export.root, self.format) {
            outln!("its epoch is None: the checkpoint does not tell")?;
        }
        out!("in Python:\n{}", export.python(&self.out, self.format))?;
        Ok(ExitCode::SUCCESS)
    }
}
