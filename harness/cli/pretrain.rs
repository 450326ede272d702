//! `sdclr pretrain`: one encoder.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{EngineArgs, OverrideArgs, ScaleArgs};
use crate::pretrain::run::ENCODER;
use crate::progress::Progress;
use crate::recipe::{PretrainSplit, Recipe, name_of};
use crate::suite::context::{Context, Identity, Scale};

/// Pre-train one encoder
///
/// Leaves encoder.safetensors and its records in the folder; the same command again resumes or finds it done.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr pretrain --recipe digits-lt/sdclr --split 1 --pretrain-split D_i --out runs/mine
  sdclr pretrain --recipe cifar10-lt/sdclr --data DIR --split 1 --pretrain-split D_i --out runs/c10 --set seed=11")]
pub(super) struct PretrainArgs {
    /// SUITE/METHOD, or a .toml file
    #[arg(long)]
    recipe: String,
    #[command(flatten)]
    scale: ScaleArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Number of the published split
    #[arg(long, value_name = "N")]
    split: usize,
    /// D_i (long-tailed) or D_b (balanced)
    #[arg(long)]
    pretrain_split: PretrainSplit,
    /// Folder of the run
    #[arg(long, value_name = "RUN")]
    out: PathBuf,
    #[command(flatten)]
    overrides: OverrideArgs,
}

impl PretrainArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let recipe = Recipe::resolve(&self.recipe, &self.overrides.overrides()?)?;
        let scale = Scale { eager: self.engine.eager, ..self.scale.into() };
        let context = Context::open(&recipe, scale)?;
        let identity = Identity::of_command(&self.recipe, &recipe, Some(self.pretrain_split), self.split);
        let result = context.pretrain(&identity, &recipe, self.pretrain_split, &self.out, &Progress::default())?;
        if let Some(stamp) = &result.header.stamp {
            println!("{stamp}");
        }
        if let (Some(first), Some(last)) = (result.epochs.first(), result.epochs.last()) {
            println!(
                "{} on {}, split {}: loss {:.4} -> {:.4} in {} epochs, {:.0} s",
                result.header.method,
                name_of(&self.pretrain_split),
                self.split,
                first.loss,
                last.loss,
                last.epoch,
                result.seconds
            );
        }
        println!("encoder: {}", self.out.join(ENCODER).display());
        Ok(ExitCode::SUCCESS)
    }
}
