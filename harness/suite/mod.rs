//! A suite: the plan of jobs, run, resumed, and summed up. In: a suite and what to leave out or override. Out: every job's
//! records and the report's input.

pub mod budget;
pub mod context;
pub mod doctor;
pub mod environment;
mod folder;
pub mod forecast;
pub mod plan;
pub mod published;
mod queue;
mod read_back;
pub mod schedule;
mod together;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::authors::AuthorsError;
use crate::checkpoint::{self, CheckpointError};
use crate::dataset::DatasetError;
use crate::fs::{self, FolderLock, FsError};
use crate::native::group::GroupError;
use crate::native::{self, NativeError};
use crate::network::{Network, NetworkError};
use crate::paper::PaperError;
use crate::pretrain::PretrainError;
use crate::pretrain::run::ENCODER;
use crate::probe::ProbeError;
use crate::progress::Progress;
use crate::recipe::{JobId, Part, RecipeError, Suite};
use crate::record::{self, Failure, FolderRecord, Invocation, JobRecord, RecordError, SuiteRecord};
use crate::split::SplitError;
use crate::stop::{Request, Stop};
use crate::verdict::VerdictError;
use budget::Clock;
use context::{Context, Scale};
pub use forecast::forecast;
pub use plan::{Elsewhere, PlannedEncoder, Selection, plan, plan_elsewhere};
use queue::Task;
pub use read_back::{ReadBack, read_back};
pub use together::{Evidence, evidence, judged};

/// A suite or one of its jobs could not run.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    #[error("the encoder {encoder} has no lists to be pre-trained on; add lists to it in the suite's file")]
    NoLists { encoder: String },
    #[error(
        "'{name}' cannot name encoders from elsewhere in {suite}: it is one of the suite's own, or not letters, digits, '-', '_' and \
         '.'; choose another --name"
    )]
    NotANewName { name: String, suite: String },
    #[error(
        "{folder} holds no checkpoint called {example}.safetensors or .pt, nor one of another list or split; name them like that"
    )]
    NoneElsewhere { folder: String, example: String },
    #[error("{found} are two files for one encoder; keep one")]
    TwiceElsewhere { found: String },
    #[error("the suite {suite} has no split {found}; it has {known}")]
    UnknownSplit { suite: String, found: usize, known: String },
    #[error("'{found}' names no device; use cpu, cuda or cuda:N")]
    DeviceName { found: String },
    #[error("device {found} is not there: {reason}; use --device cpu, or see sdclr doctor")]
    NoDevice { found: String, reason: String },
    #[error("{folder} holds {job} at another scale (a smoke run beside a whole one); choose another --out")]
    OtherScale { folder: String, job: String },
    #[error(
        "{folder} holds {job} with other settings: {difference}; choose another --out, or delete that job's folder to run it anew"
    )]
    OtherSettings { folder: String, job: String, difference: String },
    #[error("{folder} holds the report of {found}, which this one would overwrite; choose another --out")]
    OtherReport { folder: String, found: &'static str },
    #[error("the encoders {} have different threads; run them by commands of their own (--methods)", encoders.join(" and "))]
    Threads { encoders: [String; 2] },
    #[error("--jobs {jobs} needs the CPU: a GPU does one job at a time; leave it out, or give --device cpu")]
    JobsOnGpu { jobs: usize },
    #[error("--jobs {jobs} needs one process: {ranks} that compute together do one job at a time; leave it out")]
    JobsOnRanks { jobs: usize, ranks: usize },
    #[error("rank 0 begins {job}, which is not in the plan of rank {rank}; start every rank with the same command")]
    OtherPlan { job: String, rank: usize },
    #[error("not run: {job} has no trained encoder")]
    NoEncoder { job: JobId },
    #[error("not run: {job} is not finished; run this again when it is")]
    Waits { job: JobId },
    #[error("{suite} has no job {found} with these options; it has {known}")]
    UnknownJob { suite: String, found: JobId, known: String },
    #[error("the record of {job} is not that of a probe; delete it to have the job run again")]
    NoOutcome { job: JobId },
    #[error(
        "{folder} holds no finished probe and no report on published files; name the folder of a suite, such as runs/digits-lt"
    )]
    NoEvidence { folder: String },
    #[error("these records do not belong together: {difference}; verify one of them alone")]
    NotTogether { difference: String },
    #[error("{folders} hold records of several suites ({suites}); make a report of each")]
    SeveralSuites { folders: String, suites: String },
    #[error("{folder} holds no record of a suite; name the folder of a suite, such as runs/digits-lt")]
    NoRecord { folder: String },
    #[error(
        "an #SBATCH line cannot hold the folder {folder}; name a folder without quotes, backslashes and line breaks"
    )]
    SlurmFolder { folder: String },
    #[error("{path} was measured with other settings (of pruning or of the scale); delete it to have it measured anew")]
    OtherMechanism { path: String },
    #[error("image files cannot be used:\n{}", files.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Damaged { files: Vec<DatasetError> },
    #[error(transparent)]
    Published(#[from] AuthorsError),
    #[error("not run: left for the next time; run the same command again")]
    Left,
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error(transparent)]
    Record(#[from] RecordError),
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
    Group(#[from] GroupError),
    #[error(transparent)]
    Pretrain(#[from] PretrainError),
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Paper(#[from] PaperError),
    #[error(transparent)]
    Verdict(#[from] VerdictError),
    #[error(transparent)]
    File(#[from] FsError),
}

impl SuiteError {
    /// Why a report has no verdict.
    pub fn why_no_verdict(&self) -> String {
        match self {
            Self::NoEvidence { .. } => "no probe has finished".to_owned(),
            other => other.to_string(),
        }
    }

    /// Whether nothing is wrong, and the same command continues where this one ended.
    fn is_for_later(&self) -> bool {
        match self {
            Self::Left | Self::Waits { .. } => true,
            Self::Pretrain(error) => error.is_for_later(),
            Self::Probe(error) => matches!(error, ProbeError::Stopped { .. }),
            _ => false,
        }
    }
}

/// What came of a session.
#[derive(Debug)]
pub struct SuiteRun {
    pub record: SuiteRecord,
    /// Jobs that the budget or a stop left for the next session; the record has them among its failures.
    pub left: Vec<JobId>,
    /// The pre-trainings that jobs among these wait for, which were not asked for.
    pub waits: Vec<JobId>,
    /// Jobs that were not asked for and are not finished; the record has them among its failures too.
    pub not_asked: Vec<JobId>,
    /// To be held until the report is written: of several processes, the one that writes the last report knows of the jobs of
    /// all.
    pub report_lock: Option<FolderLock>,
}

/// What a command asks of a suite, as records keep it.
pub fn invocation(typed: &str, selection: &Selection, scale: &Scale) -> Invocation {
    let Selection { methods, splits, pretrain_splits, overrides, seeds, probe_seeds } = selection.clone();
    let Scale { limit_images, limit_epochs, .. } = *scale;
    Invocation {
        suite: typed.to_owned(),
        encoders: None,
        methods,
        splits,
        pretrain_splits,
        overrides,
        seeds,
        probe_seeds,
        limit_images,
        limit_epochs,
    }
}

/// How much of a suite a session does, and how.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// After which it stops; `None`: when everything is done.
    pub budget: Option<Duration>,
    /// Jobs that run at once; `None`: as many as there are processors for their threads.
    pub jobs: Option<usize>,
    /// The jobs to do, of those of the plan; empty: all.
    pub only: Vec<JobId>,
}

/// Runs every job of `plan` under `folder` (one sub-folder a job). A job that fails does not stop the others; a job
/// that is finished there already is read back. With a budget, what will run is said first, and what does not fit is
/// left for the next time. Other processes may work on the same folder: the jobs are divided, and each process ends when all
/// are finished.
///
/// # Errors
/// The data cannot be loaded, the device is not there, or the folder holds jobs of another scale or with other settings: then
/// no job has run and nothing was written.
pub fn run(
    suite: &Suite,
    invocation: Invocation,
    plan: &[PlannedEncoder],
    scale: Scale,
    folder: &Path,
    pace: Pace,
    progress: &Progress,
) -> Result<SuiteRun, SuiteError> {
    let start = Instant::now();
    let mut record = SuiteRecord {
        suite: suite.name.clone(),
        invocation,
        smoke: scale.is_smoke(),
        results: Vec::new(),
        mechanisms: Vec::new(),
        evidence: Vec::new(),
        failures: Vec::new(),
        seconds: None,
    };
    let (mut left, mut waits, mut not_asked) = (Vec::new(), Vec::new(), Vec::new());
    if plan.is_empty() {
        return Ok(SuiteRun { record, left, waits, not_asked, report_lock: None });
    }
    plan::check_names(suite, plan, &pace.only)?;
    let context = open(plan, scale.clone(), folder)?;
    if scale.group.rank() > 0 {
        left = follow(&context, plan, folder, &scale.stop, progress)?;
        return Ok(SuiteRun { record, left, waits, not_asked, report_lock: None });
    }
    let asked = |job: &JobId| pace.only.is_empty() || pace.only.contains(job);
    let due = |job: &JobId| asked(job) && finished(folder, job).is_err();
    let jobs = plan.iter().flat_map(|encoder| encoder.jobs().map(move |job| (encoder, job)));
    let passes = jobs.filter(|(_, job)| due(job)).flat_map(|(encoder, job)| encoder.passes_of(&job));
    context.check_data(passes.map(|pass| pass.list))?;
    let jobs = match pace.jobs {
        Some(jobs) if jobs > 1 && context.device.is_cuda() => return Err(SuiteError::JobsOnGpu { jobs }),
        Some(jobs) if jobs > 1 && !scale.group.is_single() => {
            return Err(SuiteError::JobsOnRanks { jobs, ranks: scale.group.size() });
        }
        Some(jobs) => jobs,
        None if !scale.group.is_single() => 1,
        None => queue::at_once(plan, context.device),
    };
    let about = FolderRecord {
        format: record::FORMAT,
        suite: suite.name.clone(),
        title: suite.title.clone(),
        invocation: record.invocation.clone(),
    };
    record::write_json(&folder.join(record::FOLDER), &about)?;
    let (mut clock, mut deadline_of_all) = (Clock::default(), None);
    if let Some(budget) = pace.budget {
        let deadline = start + budget;
        let plan = budget::plan(&context, plan, folder, budget, deadline, jobs);
        progress.say(&plan.to_string());
        clock = Clock::new(deadline, plan.jobs.into_iter().map(|(cost, _)| cost).collect());
        deadline_of_all = clock.deadline;
    }
    let all = plan.iter().flat_map(PlannedEncoder::jobs);
    let bar = progress.jobs(&suite.name, all.clone().filter(asked).count());
    let tasks = tasks(plan, &pace.only, folder, progress);
    let work = queue::Work { tasks, recipe: &plan[0].recipe, scale: &scale, folder, deadline: deadline_of_all };
    let mut outcomes: BTreeMap<JobId, _> = queue::run(&work, clock, context, jobs, &bar)?.into_iter().collect();
    let report_lock = Some(report_lock(folder)?);
    for job in all {
        let outcome = match outcomes.remove(&job).unwrap_or(Err(SuiteError::Left)) {
            // Another process, or an earlier session, may have finished it.
            Err(SuiteError::Left) => finished(folder, &job),
            Err(SuiteError::NoEncoder { job: needed }) if !asked(&needed) && !has_record(folder, &needed)? => {
                Err(SuiteError::Waits { job: needed })
            }
            other => other,
        };
        match outcome {
            Ok(result) => record.results.push(result),
            Err(error) => {
                match &error {
                    SuiteError::Waits { job: needed } if !waits.contains(needed) => waits.push(needed.clone()),
                    _ => {}
                }
                match error.is_for_later() {
                    true if asked(&job) => left.push(job.clone()),
                    true => not_asked.push(job.clone()),
                    false => progress.line(&format!("{job}: {error}")),
                }
                record.failures.push(Failure { job: job.to_string(), error: error.to_string() });
            }
        }
    }
    drop(bar);
    let told = left.iter().fold(ALL_DONE.to_owned(), |told, job| format!("{told} {job}"));
    if let Err(error) = scale.group.tell_others(&told) {
        tracing::debug!("the other ranks do not hear that no job is left: {error}");
    }
    if plan.iter().any(|encoder| encoder.checkpoint.is_some()) {
        record.results.extend(folder::others(folder, &record)?);
    }
    let (mechanisms, damaged) = record::mechanism::read_all(folder, &record.results);
    damaged.iter().for_each(|error| tracing::warn!("{error}"));
    record.mechanisms = mechanisms;
    let (evidence, damaged) = record::evidence::read(folder)?;
    damaged.iter().for_each(|error| tracing::warn!("{error}"));
    record.evidence = evidence;
    record.seconds = Some(start.elapsed().as_secs_f64());
    Ok(SuiteRun { record, left, waits, not_asked, report_lock })
}

/// What the jobs of `plan`, of which there is one at least, share, once it is sure that they may run in `folder`.
fn open(plan: &[PlannedEncoder], scale: Scale, folder: &Path) -> Result<Context, SuiteError> {
    folder::refuse_other_report(folder, "outcomes", "published runs")?;
    folder::refuse_other_scale(folder, plan.iter().flat_map(PlannedEncoder::jobs), scale.is_smoke())?;
    let first = &plan[0];
    if let Some(other) = plan.iter().find(|encoder| encoder.recipe.threads != first.recipe.threads) {
        let encoders = [&first.id.encoder, &other.id.encoder].map(String::clone);
        return Err(SuiteError::Threads { encoders });
    }
    let context = Context::open(&first.recipe, scale)?;
    context.check_own_lists(plan)?;
    folder::refuse_other_settings(&context, plan, folder)?;
    Ok(context)
}

/// Refuses data and lists of one's own from which `plan` cannot be run.
///
/// # Errors
/// The data cannot be loaded, or a list does not belong to them.
pub fn check_own(plan: &[PlannedEncoder], scale: &Scale) -> Result<(), SuiteError> {
    let Some(first) = plan.first().filter(|encoder| encoder.recipe.own_data.is_some()) else { return Ok(()) };
    let scale = Scale { device: Some("cpu".to_owned()), ..scale.clone() };
    Context::open(&first.recipe, scale)?.check_own_lists(plan)
}

/// The lock on the report of `folder`. A process has it for moments.
fn report_lock(folder: &Path) -> Result<FolderLock, SuiteError> {
    loop {
        match FolderLock::take_beside(&folder.join(".report"))? {
            Some(lock) => return Ok(lock),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Whether there is a record of the job, readable or not.
fn has_record(folder: &Path, job: &JobId) -> Result<bool, SuiteError> {
    Ok(fs::exists(&folder.join(job.to_string()).join("result.json"))?)
}

/// Pre-trainings of `plan` that have no record in `folder`; those of `only`, unless that is empty.
///
/// # Errors
/// The folder cannot be read.
pub fn unfinished(plan: &[PlannedEncoder], folder: &Path, only: &[JobId]) -> Result<usize, SuiteError> {
    let pretrainings = plan.iter().filter(|encoder| encoder.pretrained_on().is_some());
    let jobs = pretrainings.map(|encoder| encoder.id.pretrain()).filter(|job| only.is_empty() || only.contains(job));
    let mut recorded = jobs.map(|job| has_record(folder, &job));
    recorded.try_fold(0, |count, recorded| Ok(count + usize::from(!recorded?)))
}

/// What rank 0 tells the others when it begins no other job; behind it stand those that are left.
const ALL_DONE: &str = "done:";

/// As a rank other than 0: computes its slices of the pre-trainings that rank 0 begins, until it is done; while it waits, rank 0
/// hears of a request to `stop`. Gives the jobs that are left.
fn follow(
    context: &Context,
    plan: &[PlannedEncoder],
    folder: &Path,
    stop: &Stop,
    progress: &Progress,
) -> Result<Vec<JobId>, SuiteError> {
    loop {
        let told = context.group().from_first(&|| Request::number(stop.requested()))?;
        if let Some(left) = told.strip_prefix(ALL_DONE) {
            return Ok(left.split_whitespace().filter_map(|job| job.parse().ok()).collect());
        }
        let known = plan.iter().find(|encoder| encoder.id.pretrain().to_string() == told);
        let Some((encoder, list)) = known.and_then(|encoder| Some((encoder, encoder.pretrained_on()?))) else {
            return Err(SuiteError::OtherPlan { job: told, rank: context.group().rank() });
        };
        match guarded(|| context.pretrain(encoder, list, &folder.join(encoder.id.to_string()), progress)) {
            // Rank 0 sees the same error, and reports it.
            Err(SuiteError::Group(error)) if error.is_shared() => tracing::debug!("{told}: {error}"),
            Err(SuiteError::Pretrain(error)) if !error.is_apart() => tracing::debug!("{told}: {error}"),
            outcome => drop(outcome?),
        }
    }
}

/// The record of a job that this session did not begin, if it is there.
fn finished(folder: &Path, job: &JobId) -> Result<JobRecord, SuiteError> {
    match record::read_result(&folder.join(job.to_string()).join("result.json")) {
        Ok(Some(done)) => Ok(done),
        _ => Err(SuiteError::Left),
    }
}

/// A job's outcome, also where libtorch stops it from inside.
fn guarded<T>(job: impl FnOnce() -> Result<T, SuiteError>) -> Result<T, SuiteError> {
    native::guarded(job)?
}

/// The jobs of `plan` under `folder`: those of `only`, or all where that is empty.
fn tasks<'a>(
    plan: &'a [PlannedEncoder],
    only: &[JobId],
    folder: &'a Path,
    progress: &'a Progress,
) -> Vec<Task<'a, JobRecord>> {
    let mut tasks: Vec<Task<JobRecord>> = Vec::new();
    for encoder in plan {
        let mut pretraining = None;
        for id in encoder.jobs().filter(|id| only.is_empty() || only.contains(id)) {
            let needs = if id.part == Part::Pretrain { None } else { pretraining };
            if id.part == Part::Pretrain {
                pretraining = Some(tasks.len());
            }
            let job = id.clone();
            let run = Box::new(move |context: &Context| run_job(context, encoder, &job, folder, progress));
            tasks.push(Task { id, needs, run });
        }
    }
    tasks
}

/// Runs one job of `encoder` under the suite's `folder`, or reads it back where it is finished.
fn run_job(
    context: &Context,
    encoder: &PlannedEncoder,
    job: &JobId,
    folder: &Path,
    progress: &Progress,
) -> Result<JobRecord, SuiteError> {
    let trained = folder.join(encoder.id.to_string());
    if job.part == Part::Pretrain {
        let list = encoder.pretrained_on().ok_or_else(|| SuiteError::NoEncoder { job: job.clone() })?;
        context.group().tell_others(&job.to_string())?;
        let done = context.pretrain(encoder, list, &trained, progress)?;
        context.mechanism(encoder, &done, &trained)?;
        return Ok(JobRecord::Pretrain(done));
    }
    let (encoder, network) = probed(context, encoder, job, folder)?;
    context.probe(&encoder, job, &network, false, Some(&trained.join(job.subfolder())), progress)
}

/// The encoder by the seed of the probe `job`, and the network that is probed.
fn probed(
    context: &Context,
    encoder: &PlannedEncoder,
    job: &JobId,
    folder: &Path,
) -> Result<(PlannedEncoder, Network), SuiteError> {
    let trained = folder.join(encoder.id.to_string());
    let Part::Probe { protocol, seed } = job.part else {
        return Err(SuiteError::NoOutcome { job: job.clone() });
    };
    let recipe = context::by_seed(&encoder.recipe, protocol, seed);
    let encoder = PlannedEncoder { recipe, ..encoder.clone() };
    let network = match (&encoder.checkpoint, encoder.id.list) {
        (Some(path), _) => {
            let state = checkpoint::read_encoder(path)?.state.encoder(&context.foreign)?;
            context.encoder(&encoder.recipe, protocol, &state, false)?
        }
        (None, None) => context.random_encoder(&encoder.recipe, protocol)?,
        (None, Some(_)) => {
            let Ok(Some(JobRecord::Pretrain(done))) = record::read_result(&trained.join("result.json")) else {
                return Err(SuiteError::NoEncoder { job: encoder.id.pretrain() });
            };
            let weights = checkpoint::read_own_weights(&trained.join(ENCODER), &done.job.state_sha256)?;
            context.encoder(&encoder.recipe, protocol, &weights.state, false)?
        }
    };
    Ok((encoder, network))
}
