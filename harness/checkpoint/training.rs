//! Training checkpoints: weights, optimiser and progress in one safetensors file, so that they can never disagree.
//!
//! Tensors are named `state/NAME` and `optimizer/NAME`; the rest is JSON in the header's `__metadata__`. There is no
//! generator to save: every random number is addressed by (seed, epoch, image, ...), so that `seed` and `epoch` are the
//! whole state of randomness.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::safetensors_file::{self, Contents};
use super::{CheckpointError, StateDict};

/// The format that this program writes, and the only one that it reads.
pub const FORMAT: u32 = 2;

/// The key of the JSON in `__metadata__`.
const META: &str = "sdclr.training";
const STATE: &str = "state/";
const OPTIMIZER: &str = "optimizer/";
const METHOD: &str = "method/";

/// All that a run needs to go on as if it had never stopped.
#[derive(Debug)]
pub struct Training {
    /// Parameters and buffers of the network.
    pub state: StateDict,
    /// What the optimiser keeps per parameter; empty before the first step.
    pub optimizer: StateDict,
    /// What the method found at the beginning of the last epoch; empty before the first, and where it keeps nothing.
    pub method: StateDict,
    pub meta: TrainingMeta,
}

/// Where a run stands. `seed` and `epoch` are the whole state of its randomness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingMeta {
    /// [`FORMAT`].
    pub format: u32,
    /// The run that this belongs to; a resume under another recipe is refused by it.
    pub recipe_hash: String,
    /// Epochs finished.
    pub epoch: usize,
    /// Optimiser steps done.
    pub step: u64,
    pub seed: u64,
    /// Records of the finished epochs.
    pub epochs: Vec<crate::record::EpochRecord>,
    /// The processes that worked at it, in order.
    pub sessions: Vec<crate::record::Session>,
    /// Seconds of training over all sessions.
    pub seconds: f64,
    /// The epoch in whose middle training stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<UnderWay>,
}

/// The part of an epoch that is done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UnderWay {
    /// One a step.
    pub losses: Vec<f64>,
    pub images: i64,
    pub seconds: f64,
}

/// What stands in the header.
#[derive(Serialize, Deserialize)]
struct Sealed {
    /// Of all tensors under their names in the file.
    tensors_sha256: String,
    #[serde(flatten)]
    meta: TrainingMeta,
}

/// Writes a training checkpoint, whole or not at all.
///
/// # Errors
/// As [`super::write_weights`]; also where `meta` holds a number that JSON lacks (NaN or infinity).
pub fn write_training(path: &Path, training: &Training) -> Result<(), CheckpointError> {
    let malformed = |reason: String| CheckpointError::Malformed { path: path.into(), reason };
    let tensors: StateDict = [(STATE, &training.state), (OPTIMIZER, &training.optimizer), (METHOD, &training.method)]
        .into_iter()
        .flat_map(|(prefix, tensors)| tensors.with_prefix(prefix))
        .collect();
    let sealed = Sealed { tensors_sha256: super::state_sha256(&tensors)?, meta: training.meta.clone() };
    let text = serde_json::to_string(&sealed).map_err(|error| malformed(error.to_string()))?;
    // JSON turns NaN into null, which cannot be read back: better to keep the last good checkpoint.
    let _: Sealed = serde_json::from_str(&text)
        .map_err(|error| malformed(format!("its records hold a number that JSON cannot keep ({error})")))?;
    safetensors_file::write(path, Some((META, text)), tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor)))
}

/// Reads a training checkpoint that [`write_training`] wrote.
///
/// # Errors
/// A file of another kind or of another format version, and every damage that [`super::read_weights`] knows, with the
/// remedy for a file of one's own.
pub fn read_training(path: &Path) -> Result<Training, CheckpointError> {
    read(path).map_err(CheckpointError::of_own_file)
}

fn read(path: &Path) -> Result<Training, CheckpointError> {
    let (file, length) = super::open(path)?;
    let head = super::head(&file, path)?;
    if head.get(8) != Some(&b'{') {
        let found = format!("it {}", super::describe(&head));
        return Err(CheckpointError::NotTraining { path: path.into(), found });
    }
    let contents = safetensors_file::read(path, &file, length)?;
    let Some(meta) = meta_of(path, &contents)? else {
        let found = format!("its safetensors header has no '{META}'");
        return Err(CheckpointError::NotTraining { path: path.into(), found });
    };
    let [state, optimizer, method] = split(path, contents.state)?;
    Ok(Training { state, optimizer, method, meta })
}

/// The JSON of a training checkpoint; `None` for a file of weights alone.
pub(super) fn meta_of(path: &Path, contents: &Contents) -> Result<Option<TrainingMeta>, CheckpointError> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u64,
    }
    let Some(text) = contents.metadata.get(META) else {
        return Ok(None);
    };
    let malformed = |error: serde_json::Error| CheckpointError::Malformed {
        path: path.into(),
        reason: format!("its '{META}' does not parse ({error})"),
    };
    let Versioned { format } = serde_json::from_str(text).map_err(malformed)?;
    if format != u64::from(FORMAT) {
        return Err(CheckpointError::FormatVersion { path: path.into(), found: format, expected: FORMAT });
    }
    let Sealed { tensors_sha256, meta } = serde_json::from_str(text).map_err(malformed)?;
    let found = super::state_sha256(&contents.state)?;
    if found != tensors_sha256 {
        let [found, recorded] = [&found, &tensors_sha256].map(|hash| super::printable(hash).chars().take(12).collect());
        return Err(CheckpointError::OwnHash { path: path.into(), found, recorded });
    }
    check_counters(&meta).map_err(|found| CheckpointError::OwnDamaged { path: path.into(), found })?;
    Ok(Some(meta))
}

/// Whether the counters agree: `epoch` records, numbered from 1, and at least a step in each.
fn check_counters(meta: &TrainingMeta) -> Result<(), String> {
    let TrainingMeta { epoch, step, epochs, under_way, .. } = meta;
    let begun = under_way.as_ref().map_or(0, |under_way| under_way.losses.len());
    if *epoch != epochs.len() {
        return Err(format!("it says that {epoch} epochs are finished and holds the records of {}", epochs.len()));
    }
    if let Some((index, record)) = epochs.iter().enumerate().find(|(index, record)| record.epoch != index + 1) {
        return Err(format!("the record of its epoch {} is numbered {}", index + 1, record.epoch));
    }
    if *step < (*epoch + begun) as u64 || *step > MAX_STEPS {
        return Err(format!("it says that {step} steps made {epoch} epochs"));
    }
    Ok(())
}

/// More steps than any run has: above it they are no longer exact in a float64.
const MAX_STEPS: u64 = 1 << 53;

/// The tensors of a training checkpoint as network, optimiser and method, without their prefixes.
pub(super) fn split(path: &Path, tensors: StateDict) -> Result<[StateDict; 3], CheckpointError> {
    let [mut state, mut optimizer, mut method] = [StateDict::new(), StateDict::new(), StateDict::new()];
    for (name, tensor) in tensors {
        if let Some(name) = name.strip_prefix(STATE) {
            state.insert(name.to_owned(), tensor);
        } else if let Some(name) = name.strip_prefix(OPTIMIZER) {
            optimizer.insert(name.to_owned(), tensor);
        } else if let Some(name) = name.strip_prefix(METHOD) {
            method.insert(name.to_owned(), tensor);
        } else {
            let name = super::printable(&name);
            let reason = format!("its tensor '{name}' belongs to none of '{STATE}', '{OPTIMIZER}' and '{METHOD}'");
            return Err(CheckpointError::Malformed { path: path.into(), reason });
        }
    }
    Ok([state, optimizer, method])
}
