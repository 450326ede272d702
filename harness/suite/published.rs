//! A suite of published runs: the authors' logs read, their fine-tuned models evaluated, their pre-trained encoders
//! probed again. In: the folder that their archives were unpacked to, and what to leave out or override. Out: the
//! report's input. What is missing is listed; what is damaged is the failure of its own job.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::context::{Context, Identity, Scale};
use super::{PROTOCOLS, Selection, SuiteError, guarded, recipes_of, refuse_other_scale};
use crate::progress::Progress;
use crate::published::{self, PublishedError, Run, Tree};
use crate::recipe::{DatasetName, MethodName, PretrainSplit, Protocol, Recipe, name_of};
use crate::record::{Failure, ProbeOutcome, PublishedKind, PublishedOutcome, PublishedRecord};
use crate::split::published_splits;
use crate::verdict::groups_of;

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
    /// Where the file is published, below the folder that the archives unpack to.
    pub file: String,
    /// Where it was found, if it was.
    pub path: Option<PathBuf>,
}

impl PublishedJob {
    /// Folder of the job inside the suite's, e.g. `sdclr-D_i-split1/full-model`.
    pub fn name(&self) -> String {
        format!("{}/{}-{}", self.run.job(), name_of(&self.protocol), name_of(&self.kind))
    }

    fn outcome(&self, outcome: ProbeOutcome, sha256: String) -> PublishedOutcome {
        let Run { method, pretrain_split, split, .. } = self.run;
        PublishedOutcome {
            kind: self.kind,
            method: name_of(&method),
            pretrain_split,
            split,
            protocol: self.protocol,
            file: self.file.clone(),
            outcome,
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
    let dataset = published::dataset_of(suite)?;
    let methods = match selection.methods.as_slice() {
        [] => published::methods_of(dataset).to_vec(),
        chosen => chosen.iter().map(|name| published::method_called(name)).collect::<Result<Vec<_>, _>>()?,
    };
    let lists = match selection.pretrain_splits.as_slice() {
        [] => vec![PretrainSplit::D_b, PretrainSplit::D_i],
        chosen => chosen.to_vec(),
    };
    let mut splits = match selection.splits.as_slice() {
        [] => (1..=published_splits(dataset)).collect(),
        chosen => chosen.to_vec(),
    };
    splits.sort_unstable();
    splits.dedup();
    let mut runs = Vec::new();
    for split in splits {
        for &method in &methods {
            for &list in &lists {
                runs.push(Run::new(dataset, method, list, split)?);
            }
        }
    }
    let tree = Tree::open(root, suite, &runs)?;
    let jobs = runs.iter().flat_map(|run| jobs_of(&tree, run)).collect();
    Ok(PublishedPlan { suite: suite.to_owned(), dataset, methods, overrides: selection.overrides.clone(), jobs })
}

fn jobs_of(tree: &Tree, run: &Run) -> impl Iterator<Item = PublishedJob> {
    PROTOCOLS.into_iter().flat_map(move |protocol| {
        let found = [
            (PublishedKind::Log, tree.log(run, protocol)),
            (PublishedKind::Model, tree.model(run, protocol)),
            (PublishedKind::Probe, tree.encoder(run)),
        ];
        found.map(|(kind, found)| PublishedJob { run: *run, protocol, kind, file: found.name, path: found.path })
    })
}

impl PublishedPlan {
    /// Files that were found and files that were not, by their published names, each once.
    pub fn files(&self) -> (Vec<&str>, Vec<&str>) {
        let mut names: Vec<(&str, bool)> = Vec::new();
        for job in &self.jobs {
            if !names.iter().any(|(name, _)| *name == job.file) {
                names.push((&job.file, job.path.is_some()));
            }
        }
        let (found, missing): (Vec<_>, Vec<_>) = names.into_iter().partition(|(_, found)| *found);
        let name = |(name, _)| name;
        (found.into_iter().map(name).collect(), missing.into_iter().map(name).collect())
    }

    /// The plan in words: what is done with which file, then what is missing.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for job in self.jobs.iter().filter(|job| job.path.is_some()) {
            let what = match job.kind {
                PublishedKind::Log => "read    ",
                PublishedKind::Model => "evaluate",
                PublishedKind::Probe => "probe   ",
            };
            text += &format!("{what} {} from {}\n", job.name(), job.file);
        }
        let (found, missing) = self.files();
        text += &format!("\n{} of {} files found\n", found.len(), found.len() + missing.len());
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
    refuse_other_scale(folder, plan.jobs.iter().map(PublishedJob::name), smoke)?;
    let missing = plan.files().1.into_iter().map(str::to_owned).collect();
    let mut record = PublishedRecord { suite: plan.suite.clone(), smoke, missing, ..PublishedRecord::default() };
    let (logs, models): (Vec<_>, Vec<_>) = plan
        .jobs
        .iter()
        .filter_map(|job| Some((job, job.path.as_deref()?)))
        .partition(|(job, _)| job.kind == PublishedKind::Log);
    for (job, path) in logs {
        let outcome = read_log(plan.dataset, job, path, scale.data.as_deref(), &mut record.warnings);
        keep(&mut record, job, outcome.map_err(SuiteError::from), progress);
    }
    if !models.is_empty() {
        match Evaluator::new(plan, scale) {
            Ok(evaluator) => {
                let bar = progress.bar(&plan.suite, "jobs", models.len(), 0);
                for (job, path) in models {
                    let outcome = guarded(|| evaluator.run(job, path, folder, progress));
                    keep(&mut record, job, outcome, progress);
                    bar.inc(1);
                }
                bar.finish_and_clear();
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
) -> Result<PublishedOutcome, PublishedError> {
    let class_counts = published::class_counts(dataset, job.run.split, data)?;
    let log = published::read_log(path, dataset, class_counts.len(), false)?;
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
    Ok(job.outcome(outcome, log.sha256))
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
        progress: &Progress,
    ) -> Result<PublishedOutcome, SuiteError> {
        let Run { method, pretrain_split, split, .. } = job.run;
        let method = name_of(&method);
        let recipe = self.recipes.iter().find(|(known, _)| *known == method).map(|(_, recipe)| recipe);
        let recipe = recipe.ok_or_else(|| SuiteError::UnknownMethod { found: method.clone() })?;
        let test_only = job.kind == PublishedKind::Model;
        let network = self.context.encoder(recipe, path, test_only)?;
        let pretrain_split = Some(pretrain_split);
        let identity = Identity { suite: self.suite.clone(), job: job.name(), method, pretrain_split, split };
        let folder = folder.join(job.name());
        let result =
            self.context.probe(&identity, recipe, job.protocol, &network, test_only, Some(&folder), progress)?;
        let outcome = result.probe.ok_or_else(|| SuiteError::NoOutcome { job: job.name() })?;
        Ok(PublishedOutcome { job: Some(result.header), ..job.outcome(outcome, result.state_sha256) })
    }
}
