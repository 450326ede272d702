//! `sdclr probe`: a checkpoint judged by the linear probe.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::outln;
use super::{ScaleArgs, recipe_file};
use crate::checkpoint;
use crate::fs::{self, Inputs};
use crate::network::Foreign;
use crate::progress::Progress;
use crate::recipe::Protocol;
use crate::report;
use crate::split::ListName;
use crate::suite::PlannedEncoder;
use crate::suite::context::Context;

/// Probe a checkpoint: full-shot or few-shot linear evaluation
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr probe runs/mine/encoder.safetensors --recipe digits-lt/sdclr --split 1 --protocol few
  sdclr probe model_2000.pt --recipe cifar10-lt/sdclr --data DIR --split 1 --protocol full --json probe.json
  sdclr probe best_model.pt --recipe cifar10-lt/sdclr --data DIR --split 1 --protocol full --test-only")]
pub(super) struct ProbeArgs {
    /// A pre-training checkpoint (.pt or .safetensors); with --test-only a probed one (best_model.pt)
    checkpoint: PathBuf,
    /// SUITE/ENCODER, or FILE.toml:ENCODER
    #[arg(long)]
    recipe: String,
    #[command(flatten)]
    foreign: Foreign,
    #[command(flatten)]
    scale: ScaleArgs,
    /// Number of the published split
    #[arg(long, value_name = "N")]
    split: usize,
    /// full: all labelled training images; few: the balanced few-shot list
    #[arg(long)]
    protocol: Protocol,
    /// Evaluate the checkpoint's own classifier on the test set, without training
    #[arg(long)]
    test_only: bool,
    /// Override a recipe key
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
    set: Vec<String>,
    /// Write the record (the keys of result.json) here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl ProbeArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let data = self.scale.data.clone().or_else(crate::artifact::data_folder);
        let inputs = Inputs::default()
            .file("the checkpoint", &*self.checkpoint)
            .file("the recipe", recipe_file(&self.recipe))
            .folder("the data", data.as_deref());
        inputs.spare("--json", self.json.as_deref())?;
        let (protocol, test_only) = (self.protocol, self.test_only);
        let encoder = PlannedEncoder::of_recipe(&self.recipe, &self.set, None, self.split)?;
        let context = Context::open(&encoder.recipe, self.scale.into())?;
        let probed = PlannedEncoder { probes: vec![(protocol, 1)], ..encoder.clone() };
        let lists = probed.passes().into_iter().map(|pass| pass.list);
        context.check_data(lists.filter(|list| !test_only || *list == ListName::Test))?;
        let state = checkpoint::read_encoder(&self.checkpoint)?.state.encoder(&self.foreign)?;
        let network = context.encoder(&encoder.recipe, protocol, &state, test_only)?;
        let (job, progress) = (encoder.id.probe(protocol), Progress::default());
        let record =
            progress.job(&job.to_string(), || context.probe(&encoder, &job, &network, test_only, None, &progress))?;
        if let Some(path) = &self.json {
            let mut record = serde_json::to_value(&record)?;
            if let Some(normalization) = self.foreign.normalize {
                record["normalize"] = normalization.to_string().into();
            }
            fs::write(path, (serde_json::to_string_pretty(&record)? + "\n").as_bytes())?;
        }
        if let Some(normalization) = self.foreign.normalize {
            outln!("images normalised by {normalization}, as given")?;
        }
        outln!("{}", report::job_table(&record))?;
        Ok(ExitCode::SUCCESS)
    }
}
