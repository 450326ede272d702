//! What happened, as data: the types of `run.jsonl` (one event a line) and `result.json`. Reports are pure functions
//! of these records; nothing here knows a tensor.

pub mod evidence;
pub mod mechanism;
pub mod power;
pub mod tensorboard;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::fs::{self, FsError, Journal};
use crate::recipe::{self, JobId, PretrainSplit, Protocol, PublishedKind};
use crate::scores::Scores;
use crate::text::plain_words;
use evidence::EvidenceRecord;
use mechanism::MechanismRecord;
use tensorboard::EventFile;

/// Stamped on every table, JSON and report of a scaled-down run.
pub const SMOKE_STAMP: &str = "smoke run, not a result";
/// Stamped where the lists or images differ from the published ones.
pub const UNOFFICIAL_STAMP: &str = "not the published lists or images";

/// What is stamped on everything made of such records.
pub fn stamp(smoke: bool, unofficial: bool) -> Option<String> {
    let stamps = [(smoke, SMOKE_STAMP), (unofficial, UNOFFICIAL_STAMP)];
    let stamps: Vec<&str> = stamps.into_iter().filter(|(applies, _)| *applies).map(|(_, stamp)| stamp).collect();
    (!stamps.is_empty()).then(|| stamps.join("; "))
}

/// The version of `result.json`, `run.jsonl` and `suite.json`.
pub const FORMAT: u32 = 2;

/// A record could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    File(#[from] FsError),
    #[error("{path} is not a record of this program ({reason}); delete it to have the job run again")]
    NotARecord { path: String, reason: String },
    #[error(
        "{path} has format {found}, but this version of sdclr reads format {FORMAT}; read it with the version that wrote it"
    )]
    Format { path: String, found: String },
    #[error("line {line} of {path} is damaged ({reason}); delete the job's folder to run it anew")]
    JournalLine { path: String, line: usize, reason: String },
    #[error("{path} is a record already; remove it, or name another folder")]
    Known { path: String },
    #[error("a record cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The machine and the program that ran a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// As CUDA names the device, or the CPU's model.
    pub device: String,
    /// Threads that one operation may use on the CPU.
    pub threads: usize,
    pub libtorch: String,
    /// Only algorithms that give the same bits every time were allowed (`--deterministic`). The CPU's always do.
    #[serde(default)]
    pub deterministic: bool,
    /// Training used libtorch's own operations alone (`--eager`), which in bf16 on a GPU round otherwise than ours.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub eager: bool,
    pub git_commit: Option<String>,
    pub sdclr: String,
}

/// One process's share of a job, which may take several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Epochs that were finished before it began.
    pub from_epoch: usize,
    /// Processes that computed each step together.
    #[serde(default = "recipe::one", skip_serializing_if = "recipe::is_one")]
    pub ranks: usize,
    pub environment: Environment,
}

/// What a job was asked to do and with what: the head of `run.jsonl` and of `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobHeader {
    /// [`FORMAT`].
    pub format: u32,
    pub suite: String,
    /// Folder of the job inside the suite's, e.g. `sdclr-D_i-split1` or `sdclr-D_i-split1/few`.
    pub job: JobId,
    /// Name of the encoder in its suite, e.g. `simclr-ts`.
    pub encoder: String,
    /// How tables call the encoder, e.g. `SimCLR`.
    pub label: String,
    /// Name of the method that trains the encoder, e.g. `simclr`; `random` of one that is not trained.
    pub method: String,
    /// Absent for an encoder that is not trained.
    pub pretrain_split: Option<PretrainSplit>,
    pub split: usize,
    /// Absent for pre-training.
    pub protocol: Option<Protocol>,
    pub recipe: serde_json::Value,
    /// sha256 of what the outcome depends on, which keys resume: the keys of the recipe that the job reads, the data, the
    /// lists, the limits and, of a probe, its network.
    pub recipe_hash: String,
    /// sha256 of the decoded images and labels.
    pub data_sha256: String,
    /// sha256 of each list read, by its published name.
    pub splits_sha256: BTreeMap<String, String>,
    /// Of pre-training or of the probe.
    pub seed: u64,
    /// Scaled down by `--limit-images` or `--limit-epochs`: no result.
    pub smoke: bool,
    /// Lists, by name, and images that differ from the published ones: what the job or its encoder's pre-training read.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unofficial: Vec<String>,
    /// That of [`stamp`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit_images: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit_epochs: Option<usize>,
    /// The file of an encoder that was trained elsewhere.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub checkpoint: Option<String>,
    /// sha256 of the backbone's tensors in that file; absent in records of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub checkpoint_sha256: Option<String>,
}

/// One epoch of pre-training or of a probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: usize,
    /// Mean over the epoch's steps.
    pub loss: f64,
    /// Rate of the epoch's last step.
    pub lr: f64,
    /// Share of prunable weights kept by the epoch's mask; absent where nothing is pruned.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub density: Option<f64>,
    /// Share of the kept weights that the mask of the epoch before kept too; absent in the first epoch.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub overlap: Option<f64>,
    /// Top-1 on the validation list in per cent, where it was validated.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_accuracy: Option<f64>,
    pub images_per_second: f64,
    pub seconds: f64,
}

/// What was found on the test set. Accuracies in per cent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Test accuracy of each class, in class order.
    pub per_class: Vec<f64>,
    /// Images of each class in the `D_i` list of the same split: what makes a class Many, Medium or Few.
    pub class_counts: Vec<u64>,
    #[serde(flatten)]
    pub scores: Scores,
}

/// What every finished job says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    #[serde(flatten)]
    pub header: JobHeader,
    /// The processes that worked at it, in order.
    pub sessions: Vec<Session>,
    /// Seconds of training and evaluation, over all sessions.
    pub seconds: f64,
    /// sha256 of the tensors of the final state (pre-training) or of the tested network, names, shapes and bytes.
    pub state_sha256: String,
    /// When it was finished, in UTC as RFC 3339 writes it; absent in records of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<String>,
}

/// A finished pre-training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PretrainRecord {
    #[serde(flatten)]
    pub job: Job,
    pub epochs: Vec<EpochRecord>,
}

/// A finished probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeRecord {
    #[serde(flatten)]
    pub job: Job,
    pub epochs: Vec<EpochRecord>,
    /// The epoch whose weights were tested: best on the validation list, strictly better only.
    pub best_epoch: usize,
    pub best_validation_accuracy: f64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A network tested as it is, without training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    #[serde(flatten)]
    pub job: Job,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// `result.json`: one finished job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum JobRecord {
    Pretrain(PretrainRecord),
    Probe(ProbeRecord),
    Evaluation(EvaluationRecord),
}

impl JobRecord {
    pub fn job(&self) -> &Job {
        match self {
            Self::Pretrain(record) => &record.job,
            Self::Probe(record) => &record.job,
            Self::Evaluation(record) => &record.job,
        }
    }

    pub fn header(&self) -> &JobHeader {
        &self.job().header
    }

    /// What kind of job it was, in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pretrain(_) => "pre-training",
            Self::Probe(_) => "probe",
            Self::Evaluation(_) => "evaluation",
        }
    }

    pub fn as_probe(&self) -> Option<&ProbeRecord> {
        if let Self::Probe(record) = self { Some(record) } else { None }
    }

    /// What was found on the test set; `None` of a pre-training.
    pub fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Pretrain(_) => None,
            Self::Probe(record) => Some(&record.outcome),
            Self::Evaluation(record) => Some(&record.outcome),
        }
    }
}

/// What tells the encoder of each probe and pre-training from the others: equal where the weights are. One that is not trained
/// is drawn by its recipe and its seed alone, whatever the split.
pub fn encoders(results: &[JobRecord]) -> BTreeMap<JobId, String> {
    let trained = results.iter().filter(|record| matches!(record, JobRecord::Pretrain(_)));
    let trained: BTreeMap<_, _> =
        trained.map(|record| (&record.header().job.encoder, &record.job().state_sha256)).collect();
    let of = |JobHeader { job, pretrain_split, recipe, checkpoint_sha256, .. }: &JobHeader| {
        let known = trained.get(&job.encoder).copied().or(checkpoint_sha256.as_ref());
        match (known, pretrain_split) {
            (Some(sha256), _) => sha256.clone(),
            (None, Some(_)) => job.encoder.to_string(),
            (None, None) => {
                let mut recipe = recipe.clone();
                recipe.as_object_mut().map(|keys| keys.remove("probe"));
                recipe::hash_json(&recipe)
            }
        }
    };
    results.iter().map(|record| (record.header().job.clone(), of(record.header()))).collect()
}

/// A job that did not finish, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub job: String,
    pub error: String,
}

/// What a command asked of a suite, as it was typed: what makes the report's command the one that was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invocation {
    /// The suite's name, or the path of its file.
    pub suite: String,
    /// The folder and the name of encoders that were trained elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoders: Option<[String; 2]>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub splits: Vec<usize>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pretrain_splits: Vec<PretrainSplit>,
    /// `key=value`, for every recipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<String>,
    /// Pre-training seeds an encoder.
    pub seeds: usize,
    /// Classifiers a probe.
    pub probe_seeds: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit_images: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit_epochs: Option<usize>,
}

/// `suite.json`: what a suite's folder is about, written before its first job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FolderRecord {
    /// [`FORMAT`].
    pub format: u32,
    pub suite: String,
    pub title: String,
    /// What the last command asked for.
    pub invocation: Invocation,
}

/// Everything a report is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteRecord {
    pub suite: String,
    pub invocation: Invocation,
    /// True where any result is a scaled-down run.
    pub smoke: bool,
    pub results: Vec<JobRecord>,
    /// Of the encoders among the results, where the suite prunes.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub mechanisms: Vec<MechanismRecord>,
    /// Of the folder's [`evidence::FOLDER`]: agreement of bits and of steps, not of accuracies.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub evidence: Vec<EvidenceRecord>,
    pub failures: Vec<Failure>,
    /// Wall-clock seconds of this session, set-up and build aside; `None` where the records were read back.
    pub seconds: Option<f64>,
}

impl SuiteRecord {
    /// Lists and images that differ from the published ones.
    pub fn unofficial(&self) -> BTreeSet<&str> {
        self.results.iter().flat_map(|record| &record.header().unofficial).map(String::as_str).collect()
    }

    /// That of everything made of these records.
    pub fn stamp(&self) -> Option<String> {
        stamp(self.smoke, !self.unofficial().is_empty())
    }

    pub fn pretrainings(&self) -> impl Iterator<Item = &PretrainRecord> {
        self.results
            .iter()
            .filter_map(|record| if let JobRecord::Pretrain(record) = record { Some(record) } else { None })
    }

    pub fn probes(&self) -> impl Iterator<Item = &ProbeRecord> {
        self.results.iter().filter_map(JobRecord::as_probe)
    }
}

/// What one published file gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PublishedOutcome {
    pub kind: PublishedKind,
    pub method: String,
    pub pretrain_split: PretrainSplit,
    pub split: usize,
    pub protocol: Protocol,
    /// Where the file is published, e.g. `checkpoints_tune/RUN/log.txt`.
    pub file: String,
    pub outcome: Outcome,
    /// sha256 of the file's bytes.
    pub file_sha256: String,
    /// The same of a log; else sha256 of the tensors of the network that was tested.
    pub sha256: String,
    /// What was run, under which hash; absent for a log, which is only read.
    pub job: Option<Job>,
}

/// Everything a report on published runs is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PublishedRecord {
    pub suite: String,
    /// Absent from reports of the first version.
    #[serde(default)]
    pub invocation: Invocation,
    /// True where models were evaluated or probed on a part of the images or epochs. Logs are whole in any case.
    pub smoke: bool,
    pub outcomes: Vec<PublishedOutcome>,
    /// Published files that were not found, as [`PublishedOutcome::file`] names them.
    pub missing: Vec<String>,
    pub failures: Vec<Failure>,
    pub warnings: Vec<String>,
    /// Wall-clock seconds of this session; `None` where the record was read back.
    pub seconds: Option<f64>,
}

impl PublishedRecord {
    /// As [`SuiteRecord::unofficial`].
    pub fn unofficial(&self) -> BTreeSet<&str> {
        let jobs = self.outcomes.iter().filter_map(|outcome| outcome.job.as_ref());
        jobs.flat_map(|job| &job.header.unofficial).map(String::as_str).collect()
    }

    /// As [`SuiteRecord::stamp`].
    pub fn stamp(&self) -> Option<String> {
        stamp(self.smoke, !self.unofficial().is_empty())
    }
}

/// One line of `run.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A session begins.
    Start {
        #[serde(flatten)]
        header: Box<JobHeader>,
        #[serde(flatten)]
        session: Session,
    },
    Epoch(EpochRecord),
    Outcome(Outcome),
    Result {
        state_sha256: String,
        seconds: f64,
    },
    Failure {
        error: String,
    },
}

/// The growing `run.jsonl` of one job.
#[derive(Debug)]
pub struct RunLog {
    journal: Journal,
    /// What TensorBoard is shown.
    events: Option<EventFile>,
}

impl RunLog {
    /// Opens `path` so that it goes on after epoch `session.from_epoch`: epochs past it, which a killed session logged but
    /// did not save, are dropped, as is a last line that was cut short. From epoch 0 the file starts anew. The epochs are also
    /// shown in the folder `tensorboard`, where one is given.
    ///
    /// # Errors
    /// A line before the last is damaged, or a file cannot be written.
    pub fn open(
        path: &Path,
        header: &JobHeader,
        session: &Session,
        tensorboard: Option<&Path>,
    ) -> Result<Self, RecordError> {
        let (mut kept, mut epochs) = (String::new(), Vec::new());
        if session.from_epoch > 0 && fs::exists(path)? {
            for (event, line) in read_events(path)? {
                match event {
                    Event::Epoch(record) if record.epoch > session.from_epoch => {}
                    Event::Result { .. } => {}
                    Event::Epoch(record) => {
                        kept += &format!("{line}\n");
                        epochs.push(record);
                    }
                    _ => kept += &format!("{line}\n"),
                }
            }
        }
        fs::write(path, kept.as_bytes())?;
        let events = tensorboard.map(|folder| EventFile::open(folder, header, &epochs)).transpose()?;
        let mut log = Self { journal: Journal::open(path)?, events };
        log.event(&Event::Start { header: Box::new(header.clone()), session: session.clone() })?;
        Ok(log)
    }

    /// Appends one event.
    pub fn event(&mut self, event: &Event) -> Result<(), RecordError> {
        if let (Some(events), Event::Epoch(epoch)) = (&mut self.events, event) {
            events.epoch(epoch)?;
        }
        Ok(self.journal.line(&serde_json::to_string(event)?)?)
    }
}

/// Every event of a `run.jsonl` beside its line; a last line that was cut short is left out.
///
/// # Errors
/// The file cannot be read, or a line before the last is damaged.
pub fn read_events(path: &Path) -> Result<Vec<(Event, String)>, RecordError> {
    let bytes = fs::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    (1..)
        .zip(whole.lines())
        .map(|(line, text)| match serde_json::from_str(text) {
            Ok(event) => Ok((event, text.to_owned())),
            Err(error) => {
                let (path, reason) = (path.display().to_string(), plain_words(&error.to_string()));
                Err(RecordError::JournalLine { path, line, reason })
            }
        })
        .collect()
}

/// Writes a record as indented JSON.
pub fn write_json(path: &Path, record: &impl Serialize) -> Result<(), RecordError> {
    let text = serde_json::to_string_pretty(record)? + "\n";
    Ok(fs::write(path, text.as_bytes())?)
}

/// Writes `result.json`.
pub fn write_result(path: &Path, result: &JobRecord) -> Result<(), RecordError> {
    write_json(path, result)
}

/// Reads `result.json`; `None` where there is none.
///
/// # Errors
/// It is not a record, of another format, or any part of it does not parse.
pub fn read_result(path: &Path) -> Result<Option<JobRecord>, RecordError> {
    read_json(path)
}

/// Reads a record with a `format`; `None` where there is no file.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    if !fs::exists(path)? {
        return Ok(None);
    }
    let damaged =
        |reason: String| RecordError::NotARecord { path: path.display().to_string(), reason: plain_words(&reason) };
    let value: serde_json::Value =
        serde_json::from_slice(&fs::read(path)?).map_err(|error| damaged(error.to_string()))?;
    match value.get("format") {
        Some(format) if *format == serde_json::json!(FORMAT) => {}
        // The first version wrote none.
        None if value.get("recipe_hash").is_none() => return Err(damaged("it has no format".to_owned())),
        found => {
            let found = found.map_or_else(|| "1".to_owned(), ToString::to_string);
            return Err(RecordError::Format { path: path.display().to_string(), found });
        }
    }
    serde_json::from_value(value).map(Some).map_err(|error| damaged(error.to_string()))
}

/// The name of a [`FolderRecord`]'s file.
pub const FOLDER: &str = "suite.json";

/// What a suite's folder is about; `None` where it does not say.
///
/// # Errors
/// The file is not such a record, or of another format.
pub fn read_folder(folder: &Path) -> Result<Option<FolderRecord>, RecordError> {
    read_json(&folder.join(FOLDER))
}

/// Every finished job under a suite's folder, in the order of their names, and those whose record does not read.
///
/// # Errors
/// The folder cannot be listed.
pub fn read_results(folder: &Path) -> Result<(Vec<JobRecord>, Vec<RecordError>), RecordError> {
    let (mut results, mut damaged) = (Vec::new(), Vec::new());
    let mut take = |path: &Path| match read_result(&path.join("result.json")) {
        Ok(result) => results.extend(result),
        Err(error) => damaged.push(error),
    };
    let folders = |path: &Path| Ok::<_, FsError>(fs::list_folder(path)?.into_iter().filter(|path| path.is_dir()));
    for encoder in folders(folder)? {
        take(&encoder);
        folders(&encoder)?.for_each(|probe| take(&probe));
    }
    Ok((results, damaged))
}
