//! A suite of published runs: the authors' logs read, their fine-tuned models evaluated, their pre-trained encoders
//! probed again. In: the folder that their archives were unpacked to, and what to leave out or override. Out: the
//! report's input. What is missing is listed; what is damaged is the failure of its own job. Several processes on one folder
//! divide the models and encoders.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::budget::Clock;
use super::context::{Context, Scale};
use super::folder::{refuse_other_report, refuse_other_scale};
use super::plan::{PlannedEncoder, Selection, recipe_of, splits};
use super::queue::{self, Task, Work};
use super::{SuiteError, report_lock};
use crate::artifact::hash::{Algorithm, hash_file};
use crate::authors::{self, AuthorsError, Found, PublishedMethod, Run, Tree};
use crate::checkpoint::{self, Weights};
use crate::fs::FolderLock;
use crate::progress::Progress;
use crate::recipe::{DatasetName, JobId, Part, PretrainSplit, Protocol, PublishedKind, Suite, name_of};
use crate::record::{Failure, Invocation, Outcome, PublishedOutcome, PublishedRecord};
use crate::scores::groups_of;

/// What there is to do with the published files of a suite.
#[derive(Debug)]
pub struct PublishedPlan {
    suite: Suite,
    /// `key=value`, for every recipe.
    overrides: Vec<String>,
    jobs: Vec<PublishedJob>,
}

/// One file of one run and what is done with it.
#[derive(Debug, Clone)]
pub struct PublishedJob {
    pub run: Run,
    pub protocol: Protocol,
    pub kind: PublishedKind,
    pub file: Found,
}

impl PublishedJob {
    /// Name of the job, e.g. `sdclr-D_i-split1/full-model`.
    pub fn id(&self) -> JobId {
        let part = Part::Published { protocol: self.protocol, kind: self.kind };
        JobId { encoder: self.run.encoder(), part }
    }

    fn outcome(&self, outcome: Outcome, file_sha256: String, sha256: String) -> PublishedOutcome {
        let Run { method, pretrain_split, split, .. } = self.run;
        PublishedOutcome {
            kind: self.kind,
            method: name_of(&method),
            pretrain_split,
            split,
            protocol: self.protocol,
            file: self.file.name.clone(),
            outcome,
            file_sha256,
            sha256,
            job: None,
        }
    }
}

/// Looks for the published files of `suite` under `root`. Jobs run split by split, logs before models.
///
/// # Errors
/// Nothing was published for the suite or for what was selected, or nothing of it lies under `root`.
pub fn plan(suite: &Suite, selection: &Selection, root: &Path) -> Result<PublishedPlan, SuiteError> {
    let dataset = authors::dataset_of(&suite.name)?;
    let methods = match selection.methods.as_slice() {
        [] => authors::methods_of(dataset).iter().map(|&method| (method, None)).collect(),
        chosen => chosen.iter().map(|name| named(suite, name)).collect::<Result<Vec<_>, _>>()?,
    };
    let lists = match selection.pretrain_splits.as_slice() {
        [] => vec![PretrainSplit::D_b, PretrainSplit::D_i],
        chosen => chosen.to_vec(),
    };
    let mut runs: Vec<Run> = Vec::new();
    for split in splits(suite, selection)? {
        for &(method, only) in &methods {
            for list in only.map_or_else(|| lists.clone(), |list| vec![list]) {
                let run = Run::new(dataset, method, list, split)?;
                // Named twice, it counts once.
                if !runs.contains(&run) {
                    runs.push(run);
                }
            }
        }
    }
    let tree = Tree::open(root, &suite.name, &runs)?;
    let jobs = runs.iter().flat_map(|run| jobs_of(suite, &tree, run)).collect();
    Ok(PublishedPlan { suite: suite.clone(), overrides: selection.overrides.clone(), jobs })
}

/// `sdclr`, or `sdclr-D_i`: on that list only.
fn named(suite: &Suite, name: &str) -> Result<(PublishedMethod, Option<PretrainSplit>), SuiteError> {
    let (encoder, list) = suite.encoder_and_list(name)?;
    Ok((authors::method_called(&encoder.name)?, list))
}

fn jobs_of(suite: &Suite, tree: &Tree, run: &Run) -> impl Iterator<Item = PublishedJob> {
    suite.protocols.iter().flat_map(move |&protocol| {
        let found = [
            (PublishedKind::Log, tree.log(run, protocol)),
            (PublishedKind::Model, tree.model(run, protocol)),
            (PublishedKind::Probe, tree.encoder(run)),
        ];
        found.map(|(kind, file)| PublishedJob { run: *run, protocol, kind, file })
    })
}

impl PublishedPlan {
    /// How many files the plan asks for, and the published names of those that are not there, each once.
    fn files(&self) -> (usize, Vec<String>) {
        let mut files: Vec<&Found> = Vec::new();
        for job in &self.jobs {
            if !files.contains(&&job.file) {
                files.push(&job.file);
            }
        }
        let missing = files.iter().filter(|file| matches!(file.path(), Ok(None)));
        (files.len(), missing.map(|file| file.name.clone()).collect())
    }

    /// The plan in words: what is done with which file, then what is missing.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for job in &self.jobs {
            let what = match job.kind {
                PublishedKind::Log => "read    ",
                PublishedKind::Model => "evaluate",
                PublishedKind::Probe => "probe   ",
            };
            match job.file.path() {
                Ok(Some(_)) => text += &format!("{what} {} from {}\n", job.id(), job.file.name),
                Ok(None) => {}
                Err(error) => text += &format!("leave    {}: {error}\n", job.id()),
            }
        }
        let (files, missing) = self.files();
        text += &format!("\n{} of {files} files found\n", files - missing.len());
        missing.iter().for_each(|name| text += &format!("missing  {name}\n"));
        text
    }
}

/// Runs every job of `plan` under `folder` (one sub-folder a job). What was evaluated there already is read back, and what another
/// process evaluates is waited for; logs are read anew. The lock is to be held until the report is written.
///
/// # Errors
/// The folder holds results at another scale. Where the models cannot be run at all, for want of images, say, that is
/// one failure, and the logs are still read.
pub fn run(
    plan: &PublishedPlan,
    invocation: Invocation,
    scale: Scale,
    folder: &Path,
    progress: &Progress,
) -> Result<(PublishedRecord, FolderLock), SuiteError> {
    let start = Instant::now();
    let smoke = scale.is_smoke();
    refuse_other_report(folder, "results", "a suite that was trained")?;
    refuse_other_scale(folder, plan.jobs.iter().map(PublishedJob::id), smoke)?;
    let missing = plan.files().1;
    let mut record =
        PublishedRecord { suite: plan.suite.name.clone(), invocation, smoke, missing, ..PublishedRecord::default() };
    let (mut logs, mut models) = (Vec::new(), Vec::new());
    for job in &plan.jobs {
        match job.file.path() {
            Ok(Some(path)) if job.kind == PublishedKind::Log => logs.push((job, path)),
            Ok(Some(path)) => models.push((job, path)),
            Ok(None) => {}
            Err(error) => keep(&mut record, job, Err(error.into()), progress),
        }
    }
    for (job, path) in logs {
        let outcome = read_log(plan.suite.dataset, job, &path, scale.data.as_deref(), &mut record.warnings);
        keep(&mut record, job, outcome.map_err(SuiteError::from), progress);
    }
    if !models.is_empty() {
        match evaluate_all(plan, &models, &scale, folder, progress) {
            Ok(outcomes) => {
                for ((job, _), outcome) in models.iter().zip(outcomes) {
                    let outcome = outcome.map(|(outcome, warning)| {
                        // Both probes read the file.
                        let new = warning.filter(|warning| !record.warnings.contains(warning));
                        record.warnings.extend(new);
                        outcome
                    });
                    keep(&mut record, job, outcome, progress);
                }
            }
            Err(error) => {
                let job = "every model and encoder".to_owned();
                record.failures.push(Failure { job, error: error.to_string() });
            }
        }
    }
    let lock = report_lock(folder)?;
    record.seconds = Some(start.elapsed().as_secs_f64());
    Ok((record, lock))
}

fn keep(
    record: &mut PublishedRecord,
    job: &PublishedJob,
    outcome: Result<PublishedOutcome, SuiteError>,
    progress: &Progress,
) {
    match outcome {
        Ok(outcome) => record.outcomes.push(outcome),
        Err(error) => {
            progress.line(&format!("{}: {error}", job.id()));
            record.failures.push(Failure { job: job.id().to_string(), error: error.to_string() });
        }
    }
}

/// The accuracies that a log reports, as the outcome of the probe that wrote it.
fn read_log(
    dataset: DatasetName,
    job: &PublishedJob,
    path: &Path,
    data: Option<&Path>,
    warnings: &mut Vec<String>,
) -> Result<PublishedOutcome, AuthorsError> {
    let class_counts = authors::class_counts(dataset, job.run.split, data)?;
    let log = authors::read_log(path, dataset, class_counts.len(), false)?;
    let scores = log.scores(&groups_of(dataset, &class_counts))?;
    warnings.extend(log.warnings);
    let outcome = Outcome { per_class: log.blocks.concat(), class_counts, scores };
    Ok(job.outcome(outcome, log.sha256.clone(), log.sha256))
}

/// An outcome, and what is to be said of its file.
type Evaluated = (PublishedOutcome, Option<String>);

/// The outcome of each of `models`, of which there is one at least.
///
/// # Errors
/// There are no images or no device to evaluate any of them.
fn evaluate_all(
    plan: &PublishedPlan,
    models: &[(&PublishedJob, PathBuf)],
    scale: &Scale,
    folder: &Path,
    progress: &Progress,
) -> Result<Vec<Result<Evaluated, SuiteError>>, SuiteError> {
    let encoder = plan.suite.encoder(&models[0].0.run.encoder().encoder)?;
    let recipe = recipe_of(&plan.suite, encoder, &plan.overrides)?;
    let context = Context::open(&recipe, scale.clone())?;
    let tasks = models.iter().map(|(job, path)| {
        let run = Box::new(move |context: &Context| evaluate(plan, context, job, path, folder, progress));
        Task { id: job.id(), needs: None, run }
    });
    let work = Work { tasks: tasks.collect(), recipe: &recipe, scale, folder, deadline: None };
    let bar = progress.jobs(&plan.suite.name, models.len());
    let outcomes = queue::run(&work, Clock::default(), context, 1, &bar)?;
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

/// Evaluates or probes one model.
fn evaluate(
    plan: &PublishedPlan,
    context: &Context,
    job: &PublishedJob,
    path: &Path,
    folder: &Path,
    progress: &Progress,
) -> Result<Evaluated, SuiteError> {
    let test_only = job.kind == PublishedKind::Model;
    let file_sha256 = hash_file(path, Algorithm::Sha256)?;
    let weights = checkpoint::read_weights(path)?;
    let warning = if test_only { None } else { other_run(&job.run, &weights, path) };
    let encoder = PlannedEncoder::published(&plan.suite, &job.run.encoder(), &plan.overrides)?;
    let network = context.encoder(&encoder.recipe, job.protocol, &weights.state, test_only)?;
    let id = job.id();
    let folder = folder.join(id.to_string());
    let record = context.probe(&encoder, &id, &network, test_only, Some(&folder), progress)?;
    let outcome = record.outcome().ok_or(SuiteError::NoOutcome { job: id })?.clone();
    let done = record.job().clone();
    let state_sha256 = done.state_sha256.clone();
    let outcome = PublishedOutcome { job: Some(done), ..job.outcome(outcome, file_sha256, state_sha256) };
    Ok((outcome, warning))
}

/// What in a pre-training checkpoint is not as its run's name says.
fn other_run(run: &Run, weights: &Weights, path: &Path) -> Option<String> {
    let words = |dual: bool| if dual { "two batch norms a layer (SDCLR)" } else { "one batch norm a layer (SimCLR)" };
    let dual = weights.state.names().any(|name| name.contains(".bn_list."));
    let expected = run.method == PublishedMethod::Sdclr;
    let mut found = Vec::new();
    if dual != expected {
        found.push(format!("has {}, not {}", words(dual), words(expected)));
    }
    if let Some(epoch) = weights.epoch.filter(|epoch| *epoch != run.epochs()) {
        found.push(format!("is of epoch {epoch}, not {}", run.epochs()));
    }
    let told = format!("{} {}: is it the file that its folder names?", path.display(), found.join(" and "));
    (!found.is_empty()).then_some(told)
}
