//! A suite: the plan of jobs, run, resumed, and summed up. In: a suite's name and what to leave out or override.
//! Out: every job's records and the report's input.

pub mod budget;
pub mod context;
pub mod environment;
pub mod published;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::authors::AuthorsError;
use crate::checkpoint::{self, CheckpointError};
use crate::dataset::DatasetError;
use crate::fs::{self, FsError};
use crate::native::{self, NativeError};
use crate::network::NetworkError;
use crate::pretrain::PretrainError;
use crate::pretrain::run::ENCODER;
use crate::probe::ProbeError;
use crate::progress::{Jobs, Progress};
use crate::recipe::{EMBEDDED, PretrainSplit, Protocol, Recipe, RecipeError, name_of};
use crate::record::{self, Failure, JobResult, SuiteRecord};
use crate::split::{SplitError, published_splits};
use budget::Clock;
use context::{Context, Identity, Scale};

/// A suite or one of its jobs could not run.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    #[error("no suite is called '{found}'; known are {known}")]
    Unknown { found: String, known: String },
    #[error("no method is called '{found}'; known are simclr, sdclr, random, or one with its list: sdclr-D_i")]
    UnknownMethod { found: String },
    #[error("'{found}' names no device; use cpu, cuda or cuda:N")]
    DeviceName { found: String },
    #[error("device {found} is not there: {reason}; use --device cpu, or see sdclr doctor")]
    NoDevice { found: String, reason: String },
    #[error("{folder} holds {job} at another scale (a smoke run beside a whole one); choose another --out")]
    OtherScale { folder: String, job: String },
    #[error("{folder} holds the report of {found}, which this one would overwrite; choose another --out")]
    OtherReport { folder: String, found: &'static str },
    #[error(
        "pre-training on ImageNet is not built yet; sdclr repro {suite} --from-published [DIR] evaluates the published \
         checkpoints, and --methods random an untrained encoder"
    )]
    ImagenetPretraining { suite: String },
    #[error("not run: {job} failed")]
    NoEncoder { job: String },
    #[error("the record of {job} is not that of a probe; delete it to have the job run again")]
    NoOutcome { job: String },
    #[error(transparent)]
    Published(#[from] AuthorsError),
    #[error("not run: budget used up; the same command goes on")]
    Left,
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Split(#[from] SplitError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Pretrain(#[from] PretrainError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    File(#[from] FsError),
}

/// What to run of a suite; empty lists mean the suite's own choice.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// `simclr`, `sdclr`, `random`, or one with its only list, `sdclr-D_i`; in the order in which they run.
    pub methods: Vec<String>,
    pub splits: Vec<usize>,
    pub pretrain_splits: Vec<PretrainSplit>,
    /// `key=value`, for every recipe.
    pub overrides: Vec<String>,
}

/// An encoder to make (or, for `random`, to leave as it starts) and to probe both ways.
#[derive(Debug, Clone)]
pub struct PlannedEncoder {
    pub identity: Identity,
    pub recipe: Recipe,
}

/// The probes of every encoder, in order.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Full, Protocol::Few];

/// Recipe keys that mean something to SDCLR alone.
const SDCLR_KEYS: [&str; 3] = ["prune_ratio=", "random_prune_ratio=", "dual_bn="];

/// The names of all suites.
pub fn suites() -> Vec<&'static str> {
    let mut names: Vec<&str> = EMBEDDED.iter().filter_map(|(name, _)| Some(name.split_once('/')?.0)).collect();
    names.dedup();
    names
}

/// Whether `method` has a recipe in `suite`.
fn has_recipe(suite: &str, method: &str) -> bool {
    EMBEDDED.iter().any(|(name, _)| name.split_once('/') == Some((suite, method)))
}

/// The encoders of `suite` in the order in which they run: split by split, so that an interrupted suite has whole splits.
///
/// # Errors
/// The suite, a method or a split does not exist, or a recipe refuses an override.
pub fn plan(suite: &str, selection: &Selection) -> Result<Vec<PlannedEncoder>, SuiteError> {
    if !suites().contains(&suite) {
        return Err(SuiteError::Unknown { found: suite.to_owned(), known: suites().join(", ") });
    }
    let digits = suite == "digits-lt";
    let methods: Vec<&str> = match selection.methods.as_slice() {
        [] if digits => vec!["random", "simclr", "sdclr"],
        [] => ["simclr", "sdclr"].into_iter().filter(|method| has_recipe(suite, method)).collect(),
        chosen => chosen.iter().map(String::as_str).collect(),
    };
    let pretrain_splits = match selection.pretrain_splits.as_slice() {
        [] => vec![PretrainSplit::D_b, PretrainSplit::D_i],
        chosen => chosen.to_vec(),
    };
    let methods = methods.into_iter().map(method_and_list).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = methods.iter().map(|(method, _)| (*method).to_owned()).collect();
    let known = recipes_of(suite, &names, &selection.overrides)?;
    let recipe_of = |method: &str| known.iter().find(|(known, _)| known == method).map(|(_, recipe)| recipe);
    let recipes: Vec<_> =
        methods.iter().filter_map(|&(method, only)| Some((method, only, recipe_of(method)?))).collect();
    let mut splits: Vec<usize> = match (selection.splits.as_slice(), recipes.first()) {
        ([], Some((_, _, recipe))) => (1..=published_splits(recipe.dataset)).collect(),
        (chosen, _) => chosen.to_vec(),
    };
    splits.sort_unstable();
    splits.dedup();
    for (_, _, recipe) in &recipes {
        let last = published_splits(recipe.dataset);
        if let Some(&found) = splits.iter().find(|split| !(1..=last).contains(*split)) {
            return Err(SplitError::Number { dataset: name_of(&recipe.dataset), found, last }.into());
        }
    }
    let mut encoders: Vec<PlannedEncoder> = Vec::new();
    for split in splits {
        for (method, only, recipe) in &recipes {
            let mut add = |pretrain_split: Option<PretrainSplit>| {
                let job = match &pretrain_split {
                    Some(list) => format!("{method}-{}-split{split}", name_of(list)),
                    None => format!("{method}-split{split}"),
                };
                let (suite, method) = (suite.to_owned(), (*method).to_owned());
                // Named twice, it runs once.
                if encoders.iter().all(|known| known.identity.job != job) {
                    let identity = Identity { suite, job, method, pretrain_split, split };
                    encoders.push(PlannedEncoder { identity, recipe: (*recipe).clone() });
                }
            };
            if *method == "random" {
                add(None);
                continue;
            }
            if let Some(list) = only {
                add(Some(*list));
                continue;
            }
            for &list in &pretrain_splits {
                // The small default suite compares SDCLR where it matters, on the long tail.
                let left_out = digits && *method == "sdclr" && list == PretrainSplit::D_b;
                if !left_out || !selection.pretrain_splits.is_empty() {
                    add(Some(list));
                }
            }
        }
    }
    Ok(encoders)
}

/// The recipe of each method of `suite`, once, with `overrides` applied.
fn recipes_of(suite: &str, methods: &[String], overrides: &[String]) -> Result<Vec<(String, Recipe)>, SuiteError> {
    let mut recipes: Vec<(String, Recipe)> = Vec::new();
    for method in methods {
        let name = match method.as_str() {
            // Its backbone and probe are those of SimCLR.
            "simclr" | "random" => format!("{suite}/simclr"),
            "sdclr" => format!("{suite}/sdclr"),
            other => return Err(SuiteError::UnknownMethod { found: other.to_owned() }),
        };
        // What only SDCLR has is overridden there alone, so that its ablations keep their baseline.
        let baseline = method != "sdclr" && methods.iter().any(|method| method == "sdclr");
        let mut overrides = overrides.to_vec();
        overrides.retain(|text| !baseline || !SDCLR_KEYS.iter().any(|key| text.starts_with(key)));
        if !recipes.iter().any(|(known, _)| known == method) {
            recipes.push((method.clone(), Recipe::resolve(&name, &overrides)?));
        }
    }
    Ok(recipes)
}

/// `sdclr` or `sdclr-D_i`.
fn method_and_list(name: &str) -> Result<(&str, Option<PretrainSplit>), SuiteError> {
    let Some((method, list)) = name.split_once('-') else {
        return Ok((name, None));
    };
    match PretrainSplit::from_str(list, false) {
        Ok(list) if method != "random" => Ok((method, Some(list))),
        _ => Err(SuiteError::UnknownMethod { found: name.to_owned() }),
    }
}

/// What came of a sitting.
#[derive(Debug)]
pub struct SuiteRun {
    pub record: SuiteRecord,
    /// Jobs that the budget left for the next sitting; the record has them among its failures.
    pub left: Vec<String>,
}

/// Runs every job of `plan` under `folder` (one sub-folder a job). A job that fails does not stop the others; a job
/// that is finished there already is read back. With a `budget`, what will run is said first, and what does not fit is
/// left for the next time.
///
/// # Errors
/// The data cannot be loaded or the device is not there: then no job could run.
pub fn run(
    suite: &str,
    plan: &[PlannedEncoder],
    scale: Scale,
    folder: &Path,
    budget: Option<Duration>,
    progress: &Progress,
) -> Result<SuiteRun, SuiteError> {
    let start = Instant::now();
    let smoke = scale.limit_images.is_some() || scale.limit_epochs.is_some();
    let mut record =
        SuiteRecord { suite: suite.to_owned(), smoke, results: Vec::new(), failures: Vec::new(), seconds: 0.0 };
    let mut left = Vec::new();
    let Some(first) = plan.first() else {
        return Ok(SuiteRun { record, left });
    };
    for PlannedEncoder { identity, recipe } in plan {
        context::refuse_imagenet_pretraining(&identity.suite, recipe, identity.pretrain_split)?;
    }
    refuse_other_report(folder, "outcomes", "published runs")?;
    let jobs = plan.iter().map(|encoder| &encoder.identity.job);
    refuse_other_scale(folder, jobs.flat_map(|job| [job.clone(), format!("{job}/full")]), smoke)?;
    let mut context = Context::open(&first.recipe, scale)?;
    let mut clock = Clock::default();
    if let Some(budget) = budget {
        let deadline = start + budget;
        let plan = budget::plan(&context, plan, folder, budget, deadline);
        eprintln!("{plan}");
        clock = Clock::new(deadline, plan.jobs.into_iter().map(|(cost, _)| cost).collect());
        context.deadline = clock.deadline;
    }
    let jobs =
        plan.iter().map(|encoder| PROTOCOLS.len() + usize::from(encoder.identity.pretrain_split.is_some())).sum();
    let bar = progress.jobs(suite, jobs);
    for encoder in plan {
        for (job, outcome) in run_encoder(&context, encoder, folder, &mut clock, &bar, progress) {
            match outcome {
                Ok(result) => record.results.push(result),
                Err(error) => {
                    let later = matches!(error, SuiteError::Left | SuiteError::Pretrain(PretrainError::TimeUp { .. }));
                    match later {
                        true => left.push(job.clone()),
                        false => progress.line(&format!("{job}: {error}")),
                    }
                    record.failures.push(Failure { job, error: error.to_string() });
                }
            }
        }
    }
    drop(bar);
    record.seconds = start.elapsed().as_secs_f64();
    Ok(SuiteRun { record, left })
}

/// Refuses a folder whose finished jobs are of a smoke run while this is none, or the other way round: its report would
/// be lost to this one's.
fn refuse_other_scale(folder: &Path, jobs: impl Iterator<Item = String>, smoke: bool) -> Result<(), SuiteError> {
    for job in jobs {
        // A record that does not read is that job's own failure.
        if let Ok(Some(done)) = record::read_result(&folder.join(&job).join("result.json"))
            && done.header.smoke != smoke
        {
            return Err(SuiteError::OtherScale { folder: folder.display().to_string(), job });
        }
    }
    Ok(())
}

/// Refuses a folder whose report.json has `key`, which that of the `other` kind of suite alone has.
fn refuse_other_report(folder: &Path, key: &str, other: &'static str) -> Result<(), SuiteError> {
    // What does not read is no report of ours.
    let text = fs::read_to_string(&folder.join("report.json")).unwrap_or_default();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    match report.get(key) {
        Some(_) => Err(SuiteError::OtherReport { folder: folder.display().to_string(), found: other }),
        None => Ok(()),
    }
}

/// A job's outcome, also where libtorch stops it from inside.
fn guarded<T>(job: impl FnOnce() -> Result<T, SuiteError>) -> Result<T, SuiteError> {
    native::guarded(job)?
}

/// The pre-training of one encoder and its probes: each job's name and what came of it.
fn run_encoder(
    context: &Context,
    planned: &PlannedEncoder,
    folder: &Path,
    clock: &mut Clock,
    bar: &Jobs,
    progress: &Progress,
) -> Vec<(String, Result<JobResult, SuiteError>)> {
    let PlannedEncoder { identity, recipe } = planned;
    let folder: PathBuf = folder.join(&identity.job);
    let mut outcomes = Vec::new();
    let mut trained = true;
    if let Some(list) = identity.pretrain_split {
        let outcome = bar.run(|| match clock.may_start(&identity.job) {
            true => guarded(|| context.pretrain(identity, recipe, list, &folder, progress)),
            false => Err(SuiteError::Left),
        });
        trained = outcome.is_ok();
        clock.stopped |= matches!(outcome, Err(SuiteError::Pretrain(PretrainError::TimeUp { .. })));
        outcomes.push((identity.job.clone(), outcome));
    }
    for protocol in PROTOCOLS {
        let job = format!("{}/{}", identity.job, name_of(&protocol));
        let may_start = clock.may_start(&job);
        let outcome = bar.run(|| {
            guarded(|| {
                if !may_start {
                    return Err(SuiteError::Left);
                }
                if !trained {
                    return Err(SuiteError::NoEncoder { job: identity.job.clone() });
                }
                let network = match identity.pretrain_split {
                    Some(_) => {
                        let weights = checkpoint::read_weights(&folder.join(ENCODER))?;
                        context.encoder(recipe, protocol, &weights.state, false)?
                    }
                    None => context.random_encoder(recipe, protocol)?,
                };
                let identity = Identity { job: job.clone(), ..identity.clone() };
                let folder = folder.join(name_of(&protocol));
                context.probe(&identity, recipe, protocol, &network, false, Some(&folder), progress)
            })
        });
        outcomes.push((job, outcome));
    }
    outcomes
}
