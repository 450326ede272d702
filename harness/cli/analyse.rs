//! `sdclr analyse`: published logs, summed up as the original script does.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::output::out;
use crate::authors::{self, PublishedMethod, Question};
use crate::fs::{self, Inputs};
use crate::recipe::{DatasetName, PretrainSplit, Protocol};
use crate::report;

/// Sum up published logs: All, Many, Medium, Few and the deviations, per split and over the splits
///
/// LOGDIR holds the run folders directly, as checkpoints_tune does. No image is needed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr analyse checkpoints_tune --dataset cifar10 --method sdclr --pretrain-split D_i --protocol full
  sdclr analyse checkpoints_imagenet_tune --dataset imagenet100 --method simclr --pretrain-split D_b --protocol few \\
    --json summary.json")]
pub(super) struct AnalyseArgs {
    /// The folder of the run folders
    #[arg(value_name = "LOGDIR")]
    folder: PathBuf,
    #[arg(long)]
    dataset: LogDataset,
    #[arg(long)]
    method: PublishedMethod,
    /// What the encoder was pre-trained on: D_i (long-tailed) or D_b (balanced)
    #[arg(long, value_name = "LIST")]
    pretrain_split: PretrainSplit,
    /// full: all labelled training images; few: the balanced few-shot list
    #[arg(long)]
    protocol: Protocol,
    /// Folder that holds split/; only imagenet needs it, for the list that makes its groups
    #[arg(long, value_name = "DIR", env = "SDCLR_DATA")]
    data: Option<PathBuf>,
    /// Write the summary here: all, class_std, group_std, many, medium and few, each with mean, std and per_split
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Read as the published script does: the last lines alone, and several results there taken together
    #[arg(long)]
    strict_original: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogDataset {
    Cifar10,
    Cifar100,
    Imagenet100,
    Imagenet,
}

impl AnalyseArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let dataset = match self.dataset {
            LogDataset::Cifar10 => DatasetName::Cifar10,
            LogDataset::Cifar100 => DatasetName::Cifar100,
            LogDataset::Imagenet100 => DatasetName::Imagenet100,
            LogDataset::Imagenet => DatasetName::Imagenet,
        };
        let Self { method, pretrain_split, protocol, strict_original, .. } = self;
        let question = Question { dataset, method, pretrain_split, protocol, strict_original };
        let data = self.data.or_else(crate::artifact::data_folder);
        let inputs = Inputs::default().folder("the logs", &*self.folder).folder("the data", data.as_deref());
        inputs.spare("--json", self.json.as_deref())?;
        let analysis = authors::analyse(&self.folder, question, data.as_deref())?;
        for warning in &analysis.warnings {
            tracing::warn!("{warning}");
        }
        for (split, error) in &analysis.failures {
            tracing::error!(label = "failed", "split {split}: {error}");
        }
        let failed = analysis.failures.len();
        if let Some(path) = self.json.as_ref().filter(|_| failed == 0) {
            fs::write(path, (serde_json::to_string_pretty(&analysis.summary())? + "\n").as_bytes())?;
        }
        out!("{}", report::analysis_table(&analysis))?;
        if failed == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        let unwritten = self.json.map(|path| format!("; {} was not written", path.display())).unwrap_or_default();
        bail!("{failed} of {} logs could not be read, for the reasons above{unwritten}", analysis.expected)
    }
}
