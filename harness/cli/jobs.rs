//! The jobs that a command selects: suite, encoders, splits, overrides, folder. `repro` does them, `plan` lists them.

use std::path::PathBuf;

use clap::Args;

use super::{EngineArgs, Numbers, OverrideArgs, ScaleArgs};
use crate::network::Foreign;
use crate::recipe::{MOST_SEEDS, PretrainSplit, Suite};
use crate::record::Invocation;
use crate::stop::Stop;
use crate::suite::context::Scale;
use crate::suite::{self, Elsewhere, PlannedEncoder, Selection};

/// Every option that changes the jobs.
#[derive(Debug, Clone, Args)]
pub(super) struct JobsArgs {
    /// digits-lt (its images are embedded), cifar10-lt, cifar100-lt, imagenet100-lt, imagenet-lt-exp, the reference runs gate
    /// and gate-cpu, or the path of a .toml file of your own
    pub(super) suite: String,
    /// Train nothing: probe the encoders of your own method, checkpoints called NAME-D_i-split1.safetensors (or .pt) and so on
    /// in DIR, and set them beside what the suite's folder holds
    #[arg(long, value_name = "DIR", requires = "name", conflicts_with_all = ["methods", "seeds"])]
    encoders: Option<PathBuf>,
    /// What those checkpoints' names begin with, and what tables call them
    #[arg(long, value_name = "NAME", requires = "encoders")]
    name: Option<String>,
    #[command(flatten)]
    foreign: Foreign,
    #[command(flatten)]
    pub(super) scale: ScaleArgs,
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    /// Encoders of the suite, such as simclr, sdclr and random (untrained), in this order within a split; sdclr-D_i: on that
    /// list only [default: the suite's]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    methods: Vec<String>,
    /// Splits, e.g. 1-5 or 1,3 [default: all]
    #[arg(long, value_name = "RANGE")]
    splits: Option<Numbers>,
    /// Of D_i (long-tailed) and D_b (balanced) [default: the suite's]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pretrain_splits: Vec<PretrainSplit>,
    #[command(flatten)]
    overrides: OverrideArgs,
    /// Pre-training seeds per encoder; the first is the recipe's [default: the suite's]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_SEEDS)))]
    seeds: Option<u16>,
    /// Classifiers per probe, each with its own seed; the paper trained one
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_SEEDS)))]
    probe_seeds: u16,
    /// Folder of the runs and the report [default: runs/SUITE, or runs/SUITE-published]
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
}

/// The jobs that were asked for.
pub(super) struct Asked {
    pub suite: Suite,
    pub selection: Selection,
    pub scale: Scale,
    pub invocation: Invocation,
    pub plan: Vec<PlannedEncoder>,
    /// The folder of the runs.
    pub out: PathBuf,
}

impl JobsArgs {
    /// The folder of the data, if the command names one.
    pub(super) fn data(&self) -> Option<&PathBuf> {
        self.scale.data.as_ref()
    }

    /// What was selected, with `seeds` where the command names no number.
    pub(super) fn selection(&self, seeds: u16) -> anyhow::Result<Selection> {
        Ok(Selection {
            methods: self.methods.clone(),
            splits: self.splits.iter().flat_map(|splits| splits.0.iter().map(|n| *n as usize)).collect(),
            pretrain_splits: self.pretrain_splits.clone(),
            overrides: self.overrides.clone().overrides()?,
            seeds: self.seeds.unwrap_or(seeds).into(),
            probe_seeds: self.probe_seeds.into(),
        })
    }

    pub(super) fn asked(self, stop: Stop) -> anyhow::Result<Asked> {
        let suite = Suite::open(&self.suite)?;
        // What was trained elsewhere has one seed.
        let selection = self.selection(if self.encoders.is_none() { suite.seeds } else { 1 })?;
        let elsewhere =
            self.encoders.zip(self.name).map(|(folder, name)| Elsewhere { folder, name, foreign: self.foreign });
        let (plan, missing) = match &elsewhere {
            None => (suite::plan(&suite, &selection)?, Vec::new()),
            Some(elsewhere) => suite::plan_elsewhere(&suite, &selection, elsewhere)?,
        };
        missing.iter().for_each(|name| tracing::warn!(label = "missing", "{name}"));
        let foreign = elsewhere.as_ref().map(|elsewhere| elsewhere.foreign.clone()).unwrap_or_default();
        let scale = Scale { eager: self.engine.eager, stop, foreign, ..self.scale.into() };
        let encoders = elsewhere.map(|elsewhere| [elsewhere.folder.display().to_string(), elsewhere.name]);
        let invocation = Invocation { encoders, ..suite::invocation(&self.suite, &selection, &scale) };
        let out = self.out.unwrap_or_else(|| PathBuf::from("runs").join(&suite.name));
        Ok(Asked { suite, selection, scale, invocation, plan, out })
    }
}
