//! A suite's jobs for other engines. In: a plan and the command that does it. Out: every job with its command, hash, state,
//! expected cost and what it waits for, as JSON; or a document that has Slurm, Kubernetes or Snakemake run them. The
//! engine needs no more than that: jobs are resumed, locked and never done twice by `sdclr repro` itself, which exits with 0
//! when a job is done, with 75 when it has to be run again; any other code is final.

mod kubernetes;
mod slurm;
mod snakemake;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::context::{Context, Scale};
use super::{PlannedEncoder, SuiteError, budget, finished, open, probed};
use crate::fs;
use crate::pretrain::run::{CHECKPOINT, ENCODER};
use crate::recipe::{JobId, Part, Suite};
use crate::record::{RecordError, mechanism};
use crate::text::shell_word;

/// The version of the JSON.
pub const FORMAT: u32 = 1;

/// For whom the jobs are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The contract: every job with its command, hash, state, cost and what it waits for
    Json,
    /// A job array for sbatch
    Slurm,
    /// An Indexed Job for kubectl apply
    Kubernetes,
    /// A Snakefile
    Snakemake,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    Done,
    /// It has a checkpoint.
    Resumable,
    Missing,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListedJob {
    pub id: JobId,
    /// The command that does this job alone.
    pub argv: Vec<String>,
    /// The recipe's hash as the job's record has it; `None` of a probe whose encoder is not trained yet, since the encoder's
    /// weights are a part of it.
    pub hash: Option<String>,
    pub state: JobState,
    /// What is left of it by the speeds in the records of the folder; `None` where they tell none.
    pub cost_seconds: Option<f64>,
    /// Jobs that have to be done before.
    pub after: Vec<JobId>,
}

/// All jobs of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobList {
    pub format: u32,
    pub suite: String,
    pub jobs: Vec<ListedJob>,
}

/// Where the jobs of a list work: what an engine has to know beside them.
#[derive(Debug, Clone)]
pub struct Place {
    /// The folder of the runs.
    pub folder: PathBuf,
    /// The folders that the command names to read from: data, and the suite's file.
    pub inputs: Vec<PathBuf>,
}

/// The jobs of `plan` in `folder`; `command` is that of the whole suite, program first. Nothing is written or trained, and no
/// GPU is needed.
///
/// # Errors
/// As [`super::run`]: jobs that would not be run there are not listed.
pub fn list(
    suite: &Suite,
    plan: &[PlannedEncoder],
    scale: Scale,
    folder: &Path,
    command: &[String],
) -> Result<JobList, SuiteError> {
    let mut list = JobList { format: FORMAT, suite: suite.name.clone(), jobs: Vec::new() };
    if plan.is_empty() {
        return Ok(list);
    }
    let context = open(plan, Scale { device: Some("cpu".to_owned()), ..scale }, folder)?;
    let mut costs = budget::recorded(&context, plan, folder).into_iter();
    for encoder in plan {
        for id in encoder.jobs() {
            let (state, hash) = look(&context, encoder, &id, folder)?;
            let waits = id.part != Part::Pretrain && encoder.pretrained_on().is_some();
            let cost = costs.next().and_then(|(_, seconds)| seconds);
            list.jobs.push(ListedJob {
                argv: command.iter().cloned().chain(["--job".to_owned(), id.to_string()]).collect(),
                hash,
                state,
                cost_seconds: if state == JobState::Done { Some(0.0) } else { cost },
                after: if waits { vec![encoder.id.pretrain()] } else { Vec::new() },
                id,
            });
        }
    }
    Ok(list)
}

/// How far a job is, and its hash.
fn look(
    context: &Context,
    encoder: &PlannedEncoder,
    job: &JobId,
    folder: &Path,
) -> Result<(JobState, Option<String>), SuiteError> {
    let path = folder.join(job.to_string());
    let pretraining = job.part == Part::Pretrain;
    let measured = encoder.pruned_as.is_none() || fs::exists(&path.join(mechanism::FILE))?;
    if let Ok(done) = finished(folder, job)
        && (!pretraining || measured && fs::exists(&path.join(ENCODER))?)
    {
        return Ok((JobState::Done, Some(done.header().recipe_hash.clone())));
    }
    // What a job lacks is that job's own failure.
    let header = match encoder.pretrained_on().filter(|_| pretraining) {
        Some(list) => context.pretraining(encoder, list).map(|(_, header)| header),
        None => probed(context, encoder, job, folder)
            .and_then(|(encoder, network)| context.probing(&encoder, job, &network, false))
            .map(|probing| probing.header),
    };
    let resumable = pretraining && fs::exists(&path.join(CHECKPOINT))?;
    let state = if resumable { JobState::Resumable } else { JobState::Missing };
    Ok((state, header.ok().map(|header| header.recipe_hash)))
}

/// One task of an array: an encoder's pre-training and what is done with it, in this order, by one command.
#[derive(Debug, PartialEq)]
struct Task<'a> {
    encoder: String,
    argv: Vec<&'a str>,
}

impl JobList {
    /// The list for `engine`.
    ///
    /// # Errors
    /// It cannot be written as JSON, or the folder's name not in a script of Slurm.
    pub fn write(&self, engine: Engine, place: &Place) -> Result<String, SuiteError> {
        let text = match engine {
            Engine::Json => serde_json::to_string_pretty(self).map(|text| text + "\n"),
            Engine::Slurm => return slurm::script(self, place),
            Engine::Kubernetes => kubernetes::job(self, place),
            Engine::Snakemake => snakemake::snakefile(self, place),
        };
        Ok(text.map_err(RecordError::Json)?)
    }

    /// The jobs that are not done, those of one encoder together: an array has no order among its tasks.
    fn tasks(&self) -> Vec<Task<'_>> {
        let mut tasks: Vec<Task> = Vec::new();
        for job in self.jobs.iter().filter(|job| job.state != JobState::Done) {
            let encoder = job.id.encoder.to_string();
            match tasks.last_mut().filter(|task| task.encoder == encoder) {
                // Of its command all is the same but the end: `--job ID`.
                Some(task) => task.argv.extend(job.argv.iter().skip(job.argv.len() - 2).map(String::as_str)),
                None => tasks.push(Task { encoder, argv: job.argv.iter().map(String::as_str).collect() }),
            }
        }
        tasks
    }
}

/// A name for the suite's run that engines accept: lower-case letters, digits and dashes, at most 50.
fn short_name(suite: &str) -> String {
    let plain = suite.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
    let name: String = "sdclr-".chars().chain(plain).take(50).collect();
    name.trim_end_matches('-').to_owned()
}

/// A command of a shell.
fn shell_command(argv: &[&str]) -> String {
    argv.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ")
}

/// The tasks as the branches of a shell's `case`.
fn branches(tasks: &[Task]) -> String {
    tasks
        .iter()
        .enumerate()
        .map(|(place, task)| format!("  {place}) exec {} ;;\n", shell_command(&task.argv)))
        .collect()
}
