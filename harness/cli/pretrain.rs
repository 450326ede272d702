//! `sdclr pretrain`: one encoder.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::outln;
use super::{EngineArgs, OverrideArgs, ScaleArgs, ShowArgs, as_rank, warn_of};
use crate::pretrain::run::ENCODER;
use crate::progress::Progress;
use crate::recipe::{PretrainSplit, name_of};
use crate::split::ListName;
use crate::stop::{self, Stop};
use crate::suite::context::{Context, Scale};
use crate::suite::{PlannedEncoder, SuiteError};

/// Pre-train one encoder
///
/// Leaves encoder.safetensors and its records in the folder; the same command again resumes or finds it done.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr pretrain --recipe digits-lt/sdclr --split 1 --pretrain-split D_i --out runs/mine
  sdclr pretrain --recipe cifar10-lt/sdclr --data DIR --split 1 --pretrain-split D_i --out runs/c10 --set seed=11")]
pub(super) struct PretrainArgs {
    /// SUITE/ENCODER, or FILE.toml:ENCODER
    #[arg(long)]
    recipe: String,
    #[command(flatten)]
    scale: ScaleArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    show: ShowArgs,
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
        let (eager, tensorboard) = (self.engine.eager, self.show.tensorboard.clone());
        let scale = Scale { eager, tensorboard, stop: Stop::on_signals()?, ..self.scale.clone().into() };
        as_rank(&scale.stop.clone(), scale.device.clone(), |group, device| {
            self.run_as(Scale { group, device, ..scale })
        })
    }

    fn run_as(&self, scale: Scale) -> anyhow::Result<ExitCode> {
        let (list, overrides) = (self.pretrain_split, self.overrides.clone().overrides()?);
        let encoder = PlannedEncoder::of_recipe(&self.recipe, &overrides, Some(list), self.split)?;
        warn_of(&encoder.recipe, &overrides);
        let rank = scale.group.rank();
        let context = Context::open(&encoder.recipe, scale)?;
        if rank == 0 {
            context.check_data([ListName::Pretrain(list, self.split)].into_iter())?;
            context.group().tell_others("the data can be read")?;
        } else {
            // Pre-training asks for a stop itself.
            context.group().from_first(&|| 0)?;
        }
        let progress = Progress::default();
        let outcome = progress.job(&encoder.id.to_string(), || context.pretrain(&encoder, list, &self.out, &progress));
        let record = match outcome {
            Err(SuiteError::Pretrain(stopped)) if stopped.is_for_later() => {
                tracing::info!("{stopped}");
                return Ok(ExitCode::from(stop::EXIT_CODE));
            }
            outcome => outcome?,
        };
        if rank > 0 {
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(stamp) = &record.job.header.stamp {
            outln!("{stamp}")?;
        }
        if let (Some(first), Some(last)) = (record.epochs.first(), record.epochs.last()) {
            outln!(
                "{} on {}, split {}: loss {:.4} -> {:.4} in {} epochs, {:.0} s",
                record.job.header.label,
                name_of(&list),
                self.split,
                first.loss,
                last.loss,
                last.epoch,
                record.job.seconds
            )?;
        }
        outln!("encoder: {}", self.out.join(ENCODER).display())?;
        Ok(ExitCode::SUCCESS)
    }
}
