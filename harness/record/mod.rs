//! What happened, as data: the types of `run.jsonl` (one event a line) and `result.json`. Reports are pure functions
//! of these records; nothing here knows a tensor.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::fs::{self, FsError, Journal};
use crate::recipe::{PretrainSplit, Protocol};

/// Stamped on every table, JSON and report of a scaled-down run.
pub const SMOKE_STAMP: &str = "smoke run, not a result";

/// A record could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    File(#[from] FsError),
    #[error("{path} is not a record of this program ({reason}); delete it to have the job run again")]
    Malformed { path: String, reason: String },
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

/// What a job was asked to do and with what: the head of `run.jsonl` and of `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobHeader {
    pub suite: String,
    /// Folder of the job inside the suite's, e.g. `sdclr-D_i-split1` or `sdclr-D_i-split1/few`.
    pub job: String,
    /// `simclr`, `sdclr`; `random` for the probe of an untrained encoder.
    pub method: String,
    /// Absent for the untrained encoder.
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
    pub seed: u64,
    pub environment: Environment,
    /// Scaled down by `--limit-images` or `--limit-epochs`: no result.
    pub smoke: bool,
    /// [`SMOKE_STAMP`] where `smoke`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit_images: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit_epochs: Option<usize>,
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
    /// Top-1 on the validation list in per cent, where it was validated.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_accuracy: Option<f64>,
    pub images_per_second: f64,
    pub seconds: f64,
}

/// What a probe found on the test set. Accuracies in per cent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeOutcome {
    /// The epoch whose weights were tested: best on the validation list, strictly better only. Absent with `--test-only`.
    pub best_epoch: Option<usize>,
    pub best_validation_accuracy: Option<f64>,
    /// Test accuracy of each class, in class order.
    pub per_class: Vec<f64>,
    /// Images of each class in the `D_i` list of the same split: what makes a class Many, Medium or Few.
    pub class_counts: Vec<u64>,
    /// Mean over the classes.
    pub all: f64,
    pub many: f64,
    pub medium: f64,
    pub few: f64,
    /// Population standard deviation of (many, medium, few), in points.
    pub std: f64,
    /// Population standard deviation over the classes, in points.
    pub class_std: f64,
}

/// `result.json`: one finished job, pre-training (no `probe`) or probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    #[serde(flatten)]
    pub header: JobHeader,
    pub epochs: Vec<EpochRecord>,
    /// Seconds of training and evaluation, over all sittings.
    pub seconds: f64,
    /// sha256 of the tensors of the final state (pre-training) or of the tested classifier (probe), names, shapes and bytes.
    pub state_sha256: String,
    #[serde(flatten)]
    pub probe: Option<ProbeOutcome>,
}

/// A job that did not finish, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub job: String,
    pub error: String,
}

/// Everything a report is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteRecord {
    pub suite: String,
    /// True where any result is a scaled-down run.
    pub smoke: bool,
    pub results: Vec<JobResult>,
    pub failures: Vec<Failure>,
    /// Wall-clock seconds of this sitting, set-up and build aside.
    pub seconds: f64,
}

/// Where numbers about a published run come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishedKind {
    /// The authors' log.
    Log,
    /// The authors' fine-tuned model, evaluated by this program.
    Model,
    /// The authors' pre-trained encoder, probed by this program.
    Probe,
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
    pub outcome: ProbeOutcome,
    /// sha256 of the file's bytes.
    pub file_sha256: String,
    /// The same of a log; else sha256 of the tensors of the network that was tested.
    pub sha256: String,
    /// What was run, under which hash; absent for a log, which is only read.
    pub job: Option<JobHeader>,
}

/// Everything a report on published runs is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PublishedRecord {
    pub suite: String,
    /// True where models were evaluated or probed on a part of the images or epochs. Logs are whole in any case.
    pub smoke: bool,
    pub outcomes: Vec<PublishedOutcome>,
    /// Published files that were not found, as [`PublishedOutcome::file`] names them.
    pub missing: Vec<String>,
    pub failures: Vec<Failure>,
    pub warnings: Vec<String>,
    /// Wall-clock seconds of this sitting.
    pub seconds: f64,
}

/// One line of `run.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A sitting begins; `from_epoch` epochs were done before (0: from the start).
    Start {
        #[serde(flatten)]
        header: Box<JobHeader>,
        from_epoch: usize,
    },
    Epoch(EpochRecord),
    Probe(ProbeOutcome),
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
}

impl RunLog {
    /// Opens `path` so that it goes on after epoch `from_epoch`: epochs past it, which a killed sitting logged but
    /// did not save, are dropped, as is a line cut short. From epoch 0 the file starts anew.
    pub fn open(path: &Path, header: &JobHeader, from_epoch: usize) -> Result<Self, FsError> {
        let mut kept = String::new();
        if from_epoch > 0 && path.exists() {
            for line in fs::read_to_string(path)?.lines() {
                match serde_json::from_str::<Event>(line) {
                    Ok(Event::Epoch(record)) if record.epoch > from_epoch => {}
                    Ok(Event::Result { .. }) | Err(_) => {}
                    Ok(_) => kept += &format!("{line}\n"),
                }
            }
        }
        fs::write(path, kept.as_bytes())?;
        let mut log = Self { journal: Journal::open(path)? };
        log.event(&Event::Start { header: Box::new(header.clone()), from_epoch })?;
        Ok(log)
    }

    /// Appends one event.
    pub fn event(&mut self, event: &Event) -> Result<(), FsError> {
        self.journal.line(&serde_json::to_string(event).unwrap_or_default())
    }
}

/// Writes `result.json`.
pub fn write_result(path: &Path, result: &JobResult) -> Result<(), FsError> {
    fs::write_with(path, |file| {
        serde_json::to_writer_pretty(&mut *file, result)?;
        std::io::Write::write_all(file, b"\n")
    })
}

/// Reads `result.json`; `None` where there is none.
pub fn read_result(path: &Path) -> Result<Option<JobResult>, RecordError> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(path)?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| RecordError::Malformed { path: path.display().to_string(), reason: error.to_string() })
}
