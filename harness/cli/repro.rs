//! `sdclr repro`: a whole suite, from data to report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::output::{out, outln};
use super::{EngineArgs, Numbers, OverrideArgs, ScaleArgs, ShowArgs};
use crate::artifact;
use crate::network::Foreign;
use crate::progress::Progress;
use crate::recipe::{PretrainSplit, Suite};
use crate::record::{Invocation, PublishedRecord};
use crate::report::{self, Findings, Format, Report};
use crate::stop;
use crate::suite::context::Scale;
use crate::suite::{self, Elsewhere, Selection};

/// A length of time: `90s`, `25m`, `2h`.
#[derive(Debug, Clone)]
struct Budget(Duration);

impl std::str::FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [('s', 1), ('m', 60), ('h', 3600)];
        let (number, unit) =
            units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(*unit)?, seconds))).unzip();
        // A week is more than any sitting.
        match number
            .and_then(|number| number.parse::<u64>().ok())
            .zip(unit)
            .map(|(number, unit)| number.checked_mul(*unit))
        {
            Some(Some(seconds)) if (1..=604_800).contains(&seconds) => Ok(Self(Duration::from_secs(seconds))),
            _ => Err(format!("'{text}' is no length of time; use 90s, 25m or 2h, a week at most")),
        }
    }
}

/// Run a suite: pre-train, probe, sum up, report
///
/// Finished jobs are read back and interrupted ones go on where they were.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr repro digits-lt
  sdclr repro cifar10-lt --data DIR --device cuda:0
  sdclr repro cifar10-lt --data DIR --methods sdclr --splits 1 --limit-images 512 --limit-epochs 1 --out runs/smoke
  sdclr repro cifar10-lt --data DIR --methods sdclr-D_i,simclr-D_i,simclr-D_b --budget 25m
  sdclr repro cifar10-lt --data DIR --set epochs=500 --dry-run
  sdclr repro cifar10-lt --from-published DIR --data DIR")]
pub(super) struct ReproArgs {
    /// digits-lt (its images are embedded), cifar10-lt, cifar100-lt, imagenet100-lt, imagenet-lt-exp, or the path of a .toml
    /// file of your own
    suite: String,
    /// Train nothing but probes: read the authors' logs, evaluate their fine-tuned models and probe their encoders, all
    /// found by their published names under DIR [default: what sdclr fetch brought]
    #[arg(long, value_name = "DIR", num_args = 0..=1)]
    from_published: Option<Option<PathBuf>>,
    /// Train nothing: probe the encoders of your own method, checkpoints called NAME-D_i-split1.safetensors (or .pt) and so on
    /// in DIR, and set them beside what the suite's folder holds
    #[arg(long, value_name = "DIR", requires = "name", conflicts_with_all = ["from_published", "methods", "seeds"])]
    encoders: Option<PathBuf>,
    /// What those checkpoints' names begin with, and what tables call them
    #[arg(long, value_name = "NAME", requires = "encoders")]
    name: Option<String>,
    #[command(flatten)]
    foreign: Foreign,
    #[command(flatten)]
    scale: ScaleArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    show: ShowArgs,
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
    /// Pre-training seeds an encoder; the first is the recipe's
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    seeds: u16,
    /// Classifiers a probe, each by its own seed; the paper trained one
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    probe_seeds: u16,
    /// Folder of the runs and the report [default: runs/SUITE, or runs/SUITE-published]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Stop after about this time (90s, 25m, 2h), at an epoch's end with a checkpoint: exit code 75, and the same command
    /// goes on
    #[arg(long, value_name = "TIME", conflicts_with = "from_published")]
    budget: Option<Budget>,
    /// Jobs that run at once [default: as many as there are processors for the threads that the recipes give a job; else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), conflicts_with = "from_published")]
    jobs: Option<u16>,
    /// Print the plan and the resolved recipes, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Print what came out as JSON instead of a table
    #[arg(long, conflicts_with_all = ["from_published", "dry_run"])]
    json: bool,
}

impl ReproArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let selection = Selection {
            methods: self.methods,
            splits: self.splits.map(|splits| splits.0.iter().map(|n| *n as usize).collect()).unwrap_or_default(),
            pretrain_splits: self.pretrain_splits,
            overrides: self.overrides.overrides()?,
            seeds: self.seeds.into(),
            probe_seeds: self.probe_seeds.into(),
        };
        let suite = Suite::open(&self.suite)?;
        // What evaluates published files asks nobody: a signal ends it, and what was done is read back the next time.
        let stop = if self.from_published.is_some() { stop::Stop::default() } else { stop::Stop::on_signals()? };
        let scale = Scale { eager: self.engine.eager, tensorboard: self.show.tensorboard, stop, ..self.scale.into() };
        let invocation = suite::invocation(&self.suite, &selection, &scale);
        if let Some(folder) = self.from_published {
            let out = self.out.unwrap_or_else(|| PathBuf::from("runs").join(format!("{}-published", suite.name)));
            let folder = folder.or_else(artifact::published_folder).context(
                "no published checkpoint has been fetched; run sdclr fetch, or name the folder that the authors' archives \
                 were unpacked to: --from-published DIR",
            )?;
            let plan = suite::published::plan(&suite, &selection, &folder)?;
            if self.dry_run {
                out!("{}", plan.describe())?;
                return Ok(ExitCode::SUCCESS);
            }
            return published(&suite::published::run(&plan, invocation, scale, &out, &Progress::default())?, &out);
        }
        let elsewhere =
            self.encoders.zip(self.name).map(|(folder, name)| Elsewhere { folder, name, foreign: self.foreign });
        let (plan, missing) = match &elsewhere {
            None => (suite::plan(&suite, &selection)?, Vec::new()),
            Some(elsewhere) => suite::plan_elsewhere(&suite, &selection, elsewhere)?,
        };
        missing.iter().for_each(|name| tracing::warn!(label = "missing", "{name}"));
        let foreign = elsewhere.as_ref().map(|elsewhere| elsewhere.foreign.clone()).unwrap_or_default();
        let scale = Scale { foreign, ..scale };
        let encoders = elsewhere.map(|elsewhere| [elsewhere.folder.display().to_string(), elsewhere.name]);
        let invocation = Invocation { encoders, ..invocation };
        if let Some(first) = plan.first() {
            super::warn_of(&first.recipe, &selection.overrides);
        }
        if self.dry_run {
            out!("{}", describe(&plan)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let out = self.out.unwrap_or_else(|| PathBuf::from("runs").join(&suite.name));
        let pace = suite::Pace { budget: self.budget.map(|budget| budget.0), jobs: self.jobs.map(usize::from) };
        let run = suite::run(&suite, invocation, &plan, scale, &out, pace, &Progress::default())?;
        let record = run.record;
        let verdicts = suite::judged(&[&out]).map_err(|error| error.why_no_verdict());
        let findings = Findings { verdicts: verdicts.as_ref().map_err(String::as_str), ..Findings::of(&record) };
        let path = Report::of_suite(&findings)?.write(&out, &Format::DEFAULT)?;
        match self.json {
            true => outln!("{}", report::summary_json(&record, &path)?)?,
            false => outln!("{}", report::summary_table(&record))?,
        }
        let failures: Vec<_> = record
            .failures
            .iter()
            .filter(|failure| run.left.iter().all(|left| left.to_string() != failure.job))
            .collect();
        for failure in &failures {
            tracing::error!(label = "failed", "{}: {}", failure.job, failure.error);
        }
        if !self.json {
            outln!("report: {}", path.display())?;
        }
        if !run.left.is_empty() {
            tracing::info!("{} jobs left: run the same command again to continue", run.left.len());
        }
        Ok(match (failures.is_empty(), run.left.is_empty()) {
            (true, true) => ExitCode::SUCCESS,
            (true, false) => ExitCode::from(stop::EXIT_CODE),
            // What failed must not hide behind what was left.
            (false, _) => ExitCode::FAILURE,
        })
    }
}

/// Says what became of the published files of a suite, and writes the report.
fn published(record: &PublishedRecord, out: &Path) -> anyhow::Result<ExitCode> {
    let path = Report::of_authors(record, &BTreeMap::new())?.write(out, &Format::DEFAULT)?;
    outln!("{}", report::published_table(record)?)?;
    record.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    record.missing.iter().for_each(|name| tracing::warn!(label = "missing", "{name}"));
    record.failures.iter().for_each(|failure| tracing::error!(label = "failed", "{}: {}", failure.job, failure.error));
    outln!("report: {}", path.display())?;
    Ok(if record.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The plan in words: every job, then every distinct recipe.
fn describe(plan: &[suite::PlannedEncoder]) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut recipes: Vec<(&str, String)> = Vec::new();
    for encoder in plan {
        for job in encoder.jobs() {
            let (what, epochs) = match job.protocol() {
                Some(protocol) => ("probe   ", encoder.recipe.probe(protocol).epochs),
                None => ("pretrain", encoder.recipe.epochs),
            };
            text += &format!("{what} {job} ({epochs} epochs)\n");
        }
        if !recipes.iter().any(|(known, _)| *known == encoder.id.encoder) {
            let (own, shared) = (toml::to_string(&encoder.recipe.own)?, toml::to_string(&encoder.recipe)?);
            recipes.push((&encoder.id.encoder, own + &shared));
        }
    }
    for (encoder, recipe) in recipes {
        text += &format!("\n# recipe of {encoder}\n{recipe}");
    }
    Ok(text)
}
