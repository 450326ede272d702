//! A suite of published runs: the authors' logs read, their fine-tuned models evaluated, their pre-trained encoders
//! probed again. In: the folder that their archives were unpacked to, and what to leave out or override. Out: the
//! report's input. What is missing is listed; what is damaged is the failure of its own job.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use super::context::{Context, Identity, Scale};
use super::{
    PROTOCOLS, Selection, SuiteError, guarded, method_and_list, recipes_of, refuse_other_report, refuse_other_scale,
};
use crate::artifact::hash::{Algorithm, hash_file};
use crate::authors::{self, AuthorsError, Found, Run, Tree};
use crate::checkpoint::{self, Weights};
use crate::progress::Progress;
use crate::recipe::{DatasetName, MethodName, PretrainSplit, Protocol, Recipe, name_of};
use crate::record::{Failure, ProbeOutcome, PublishedKind, PublishedOutcome, PublishedRecord};
use crate::scores::groups_of;
use crate::split::published_splits;

/// What there is to do with the published files of a suite.
#[derive(Debug)]
pub struct PublishedPlan {
    suite: String,
    dataset: DatasetName,
    methods: Vec<MethodName>,
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
    /// Folder of the job inside the suite's, e.g. `sdclr-D_i-split1/full-model`.
    pub fn name(&self) -> String {
        format!("{}/{}-{}", self.run.job(), name_of(&self.protocol), name_of(&self.kind))
    }

    fn outcome(&self, outcome: ProbeOutcome, file_sha256: String, sha256: String) -> PublishedOutcome {
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
pub fn plan(suite: &str, selection: &Selection, root: &Path) -> Result<PublishedPlan, SuiteError> {
    let dataset = authors::dataset_of(suite)?;
    let methods = match selection.methods.as_slice() {
        [] => authors::methods_of(dataset).iter().map(|&method| (method, None)).collect(),
        chosen => chosen.iter().map(|name| named(name)).collect::<Result<Vec<_>, _>>()?,
    };
    let lists = match selection.pretrain_splits.as_slice() {
        [] => vec![PretrainSplit::D_b, PretrainSplit::D_i],
        chosen => chosen.to_vec(),
    };
    let splits: Vec<usize> = match selection.splits.as_slice() {
        [] => (1..=published_splits(dataset)).collect(),
        chosen => chosen.to_vec(),
    };
    let mut runs: Vec<Run> = Vec::new();
    for split in BTreeSet::from_iter(splits) {
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
    let tree = Tree::open(root, suite, &runs)?;
    let jobs = runs.iter().flat_map(|run| jobs_of(&tree, run)).collect();
    let methods = methods.into_iter().map(|(method, _)| method).collect();
    Ok(PublishedPlan { suite: suite.to_owned(), dataset, methods, overrides: selection.overrides.clone(), jobs })
}

/// `sdclr`, or `sdclr-D_i`: on that list only.
fn named(name: &str) -> Result<(MethodName, Option<PretrainSplit>), SuiteError> {
    let (method, list) = method_and_list(name)?;
    Ok((authors::method_called(method)?, list))
}

fn jobs_of(tree: &Tree, run: &Run) -> impl Iterator<Item = PublishedJob> {
    PROTOCOLS.into_iter().flat_map(move |protocol| {
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
                Ok(Some(_)) => text += &format!("{what} {} from {}\n", job.name(), job.file.name),
                Ok(None) => {}
                Err(error) => text += &format!("leave    {}: {error}\n", job.name()),
            }
        }
        let (files, missing) = self.files();
        text += &format!("\n{} of {files} files found\n", files - missing.len());
        missing.iter().for_each(|name| text += &format!("missing  {name}\n"));
        text
    }
}

/// Runs every job of `plan` under `folder` (one sub-folder a job). What was evaluated there already is read back; logs
/// are read anew.
///
/// # Errors
/// The folder holds results at another scale. Where the models cannot be run at all, for want of images, say, that is
/// one failure, and the logs are still read.
pub fn run(
    plan: &PublishedPlan,
    scale: Scale,
    folder: &Path,
    progress: &Progress,
) -> Result<PublishedRecord, SuiteError> {
    let start = Instant::now();
    let smoke = scale.limit_images.is_some() || scale.limit_epochs.is_some();
    refuse_other_report(folder, "results", "a suite that was trained")?;
    refuse_other_scale(folder, plan.jobs.iter().map(PublishedJob::name), smoke)?;
    let missing = plan.files().1;
    let mut record = PublishedRecord { suite: plan.suite.clone(), smoke, missing, ..PublishedRecord::default() };
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
        let outcome = read_log(plan.dataset, job, &path, scale.data.as_deref(), &mut record.warnings);
        keep(&mut record, job, outcome.map_err(SuiteError::from), progress);
    }
    if !models.is_empty() {
        match Evaluator::new(plan, scale) {
            Ok(evaluator) => {
                let bar = progress.jobs(&plan.suite, models.len());
                for (job, path) in models {
                    let mut run = || evaluator.run(job, &path, folder, &mut record.warnings, progress);
                    let outcome = bar.run(|| guarded(&mut run));
                    keep(&mut record, job, outcome, progress);
                }
            }
            Err(error) => {
                let job = "every model and encoder".to_owned();
                record.failures.push(Failure { job, error: error.to_string() });
            }
        }
    }
    record.seconds = start.elapsed().as_secs_f64();
    Ok(record)
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
            progress.line(&format!("{}: {error}", job.name()));
            record.failures.push(Failure { job: job.name(), error: error.to_string() });
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
    let outcome = ProbeOutcome {
        best_epoch: None,
        best_validation_accuracy: None,
        per_class: log.blocks.concat(),
        class_counts,
        all: scores.all,
        many: scores.many,
        medium: scores.medium,
        few: scores.few,
        std: scores.std,
        class_std: scores.class_std,
    };
    Ok(job.outcome(outcome, log.sha256.clone(), log.sha256))
}

/// What evaluates models: images, device, and the recipe of each method.
struct Evaluator {
    suite: String,
    recipes: Vec<(String, Recipe)>,
    context: Context,
}

impl Evaluator {
    fn new(plan: &PublishedPlan, scale: Scale) -> Result<Self, SuiteError> {
        let methods: Vec<String> = plan.methods.iter().map(name_of).collect();
        let recipes = recipes_of(&plan.suite, &methods, &plan.overrides)?;
        let (_, first) = recipes.first().ok_or(SuiteError::UnknownMethod { found: String::new() })?;
        let context = Context::open(first, scale)?;
        Ok(Self { suite: plan.suite.clone(), recipes, context })
    }

    fn run(
        &self,
        job: &PublishedJob,
        path: &Path,
        folder: &Path,
        warnings: &mut Vec<String>,
        progress: &Progress,
    ) -> Result<PublishedOutcome, SuiteError> {
        let Run { method, pretrain_split, split, .. } = job.run;
        let method = name_of(&method);
        let recipe = self.recipes.iter().find(|(known, _)| *known == method).map(|(_, recipe)| recipe);
        let recipe = recipe.ok_or_else(|| SuiteError::UnknownMethod { found: method.clone() })?;
        let test_only = job.kind == PublishedKind::Model;
        let file_sha256 = hash_file(path, Algorithm::Sha256)?;
        let weights = checkpoint::read_weights(path)?;
        if !test_only {
            let other = other_run(&job.run, &weights, path);
            // Both probes read the file.
            warnings.extend(other.filter(|warning| !warnings.contains(warning)));
        }
        let network = self.context.encoder(recipe, job.protocol, &weights.state, test_only)?;
        let pretrain_split = Some(pretrain_split);
        let identity = Identity { suite: self.suite.clone(), job: job.name(), method, pretrain_split, split };
        let folder = folder.join(job.name());
        let result =
            self.context.probe(&identity, recipe, job.protocol, &network, test_only, Some(&folder), progress)?;
        let outcome = result.probe.ok_or_else(|| SuiteError::NoOutcome { job: job.name() })?;
        Ok(PublishedOutcome { job: Some(result.header), ..job.outcome(outcome, file_sha256, result.state_sha256) })
    }
}

/// What in a pre-training checkpoint is not as its run's name says.
fn other_run(run: &Run, weights: &Weights, path: &Path) -> Option<String> {
    let words = |dual: bool| if dual { "two batch norms a layer (SDCLR)" } else { "one batch norm a layer (SimCLR)" };
    let dual = weights.state.names().any(|name| name.contains(".bn_list."));
    let expected = run.method == MethodName::Sdclr;
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
