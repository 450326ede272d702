//! `sdclr repro`: a whole suite, from data to report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::ShowArgs;
use super::as_rank;
use super::jobs::{Asked, JobsArgs};
use super::output::{out, outln};
use crate::artifact;
use crate::bench::cost;
use crate::fs::FolderLock;
use crate::launch::{Devices, launch};
use crate::progress::Progress;
use crate::ranks::place;
use crate::recipe::{JobId, Suite};
use crate::record::PublishedRecord;
use crate::report::{self, Findings, Format, Report};
use crate::stop::{self, Stop};
use crate::suite;
use crate::suite::context::Scale;
use crate::suite::environment;
use crate::text::counted;

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
    #[command(flatten)]
    jobs_of: JobsArgs,
    /// Train nothing but probes: read the authors' logs, evaluate their fine-tuned models and probe their encoders, all
    /// found by their published names under DIR [default: what sdclr fetch brought]
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with_all = ["encoders", "check_data"])]
    from_published: Option<Option<PathBuf>>,
    #[command(flatten)]
    show: ShowArgs,
    /// Stop after about this time (90s, 25m, 2h), at an epoch's end with a checkpoint: exit code 75, and the same command
    /// goes on
    #[arg(long, value_name = "TIME", conflicts_with = "from_published")]
    budget: Option<Budget>,
    /// Jobs that run at once [default: as many as there are processors for the threads that the recipes give a job; else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), conflicts_with = "from_published")]
    jobs: Option<u16>,
    /// Start a process on each of these devices of this machine: cuda:0-7, or cuda:0,cuda:2. Every run gets a device of its own
    /// first; devices that are left over join a run
    #[arg(long, value_name = "DEVICES", conflicts_with_all = ["device", "dry_run", "jobs"])]
    devices: Option<Devices>,
    /// Run only these jobs, named as in the plan (sdclr-D_i-split1, sdclr-D_i-split1/few); exits with 0 when they are done
    #[arg(long, value_delimiter = ',', value_name = "IDS", conflicts_with_all = ["from_published", "budget", "dry_run"])]
    job: Vec<JobId>,
    /// Print the plan, the resolved recipes, the power of each claim, disk use, memory and least time, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Print what came out as JSON instead of a table
    #[arg(long, conflicts_with_all = ["from_published", "dry_run"])]
    json: bool,
}

impl ReproArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if let (Some(place), true) = (place()?, self.dry_run) {
            place.refuse()?;
        }
        if let Some(folder) = self.from_published {
            return published(self.jobs_of, folder, self.devices.as_ref(), self.dry_run);
        }
        let asked = self.jobs_of.asked(Stop::on_signals()?)?;
        if let Some(first) = asked.plan.first() {
            super::warn_of(&first.recipe, &asked.selection.overrides);
        }
        let jobs = self.jobs.map(usize::from);
        if self.dry_run {
            let Asked { scale, plan, out, .. } = asked;
            suite::check_own(&plan, &scale)?;
            out!("{}\n{}", describe(&plan)?, suite::forecast(&plan, &scale, &out, jobs)?)?;
            if let Some(cost) = cost::cost(&plan, &scale)? {
                out!("{cost}")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(devices) = &self.devices {
            let runs = suite::unfinished(&asked.plan, &asked.out, &self.job)?;
            return launched(devices, runs, &asked.scale.stop);
        }
        let pace = suite::Pace { budget: self.budget.map(|budget| budget.0), jobs, only: self.job };
        let scale = Scale { tensorboard: self.show.tensorboard, ..asked.scale.clone() };
        as_rank(&scale.stop.clone(), scale.device.clone(), |group, device| {
            let scale = Scale { stop: scale.stop.clone().with_waiting(&group), group, device, ..scale };
            run(Asked { scale, ..asked }, pace, self.json)
        })
    }
}

/// Has what was asked for, of which `runs` are to be trained, run by processes on several devices.
fn launched(devices: &Devices, runs: usize, stop: &Stop) -> anyhow::Result<ExitCode> {
    if let Some(place) = place()? {
        place.refuse()?;
    }
    devices.0.iter().try_for_each(|device| environment::device(Some(device)).map(drop))?;
    let status = launch(devices, runs, stop)?;
    Ok(status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)))
}

/// Runs what was asked for, writes the report and prints what came out; of several processes rank 0 does the latter two.
fn run(asked: Asked, pace: suite::Pace, json: bool) -> anyhow::Result<ExitCode> {
    let Asked { suite, scale, invocation, plan, out, .. } = asked;
    let rank = scale.group.rank();
    let run = suite::run(&suite, invocation, &plan, scale, &out, pace, &Progress::default())?;
    if rank > 0 {
        return Ok(if run.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(stop::EXIT_CODE) });
    }
    let mut record = run.record;
    let verdicts = suite::judged(&[&out]).map_err(|error| error.why_no_verdict());
    let findings = Findings { verdicts: verdicts.as_ref().map_err(String::as_str), ..Findings::of(&record) };
    let path = Report::of_suite(&findings)?.write(&out, &Format::DEFAULT)?;
    drop(run.report_lock);
    // The report counts every job of the suite; what is printed answers what was asked for.
    record.failures.retain(|failure| run.not_asked.iter().all(|job| job.to_string() != failure.job));
    match json {
        true => outln!("{}", report::summary_json(&record, &path)?)?,
        false => outln!("{}", report::summary_table(&record))?,
    }
    let failures: Vec<_> =
        record.failures.iter().filter(|failure| run.left.iter().all(|job| job.to_string() != failure.job)).collect();
    for failure in &failures {
        tracing::error!(label = "failed", "{}: {}", failure.job, failure.error);
    }
    if !json {
        outln!("report: {}", path.display())?;
    }
    if !run.waits.is_empty() {
        let needed = run.waits.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        tracing::info!("probes wait for {needed}; run this command again when that is finished");
    } else if !run.left.is_empty() {
        let jobs = counted(run.left.len(), "job");
        tracing::info!("{jobs} left: run the same command again to continue");
    }
    Ok(match (failures.is_empty(), run.left.is_empty()) {
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::from(stop::EXIT_CODE),
        // What failed must not hide behind what was left.
        (false, _) => ExitCode::FAILURE,
    })
}

/// Evaluates and probes the published files in `folder`, by default those that were fetched, and writes the report. Ranks divide
/// the files as other processes on one folder do. A signal ends it, and what was done is read back the next time.
fn published(
    jobs: JobsArgs,
    folder: Option<PathBuf>,
    devices: Option<&Devices>,
    dry_run: bool,
) -> anyhow::Result<ExitCode> {
    let (selection, suite) = (jobs.selection(1)?, Suite::open(&jobs.suite)?);
    let scale = Scale { eager: jobs.engine.eager, ..jobs.scale.into() };
    let invocation = suite::invocation(&jobs.suite, &selection, &scale);
    let out = jobs.out.unwrap_or_else(|| PathBuf::from("runs").join(format!("{}-published", suite.name)));
    let folder = folder.or_else(artifact::published_folder).context(
        "no published checkpoint has been fetched; run sdclr fetch, or name the folder that the authors' archives were \
         unpacked to: --from-published DIR",
    )?;
    let plan = suite::published::plan(&suite, &selection, &folder)?;
    if dry_run {
        out!("{}", plan.describe())?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(devices) = devices {
        return launched(devices, 0, &Stop::default());
    }
    as_rank(&Stop::default(), scale.device.clone(), |group, device| {
        let scale = Scale { device, ..scale };
        let (record, lock) = suite::published::run(&plan, invocation, scale, &out, &Progress::default())?;
        if group.rank() == 0 {
            tell_published(&record, lock, &out)?;
        }
        Ok(if record.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// Says what became of the published files of a suite, and writes the report.
fn tell_published(record: &PublishedRecord, lock: FolderLock, out: &Path) -> anyhow::Result<()> {
    let path = Report::of_authors(record, &BTreeMap::new())?.write(out, &Format::DEFAULT)?;
    drop(lock);
    outln!("{}", report::published_table(record)?)?;
    record.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    record.missing.iter().for_each(|name| tracing::warn!(label = "missing", "{name}"));
    record.failures.iter().for_each(|failure| tracing::error!(label = "failed", "{}: {}", failure.job, failure.error));
    outln!("report: {}", path.display())?;
    Ok(())
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
