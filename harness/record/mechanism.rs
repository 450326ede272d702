//! What pruning does to a finished encoder, as data: `mechanism.json`, read and written.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Environment, Job, JobRecord, PretrainRecord, RecordError, read_json};
use crate::recipe::JobId;

/// What a mask keeps of one convolution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerKept {
    /// Name of its weight, e.g. `layer1.0.conv1.weight`.
    pub layer: String,
    pub weights: u64,
    pub kept: u64,
}

/// Which of a network's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Representation {
    /// The pooled feature, which probes see.
    Backbone,
    /// The output of the projection head, which the loss sees.
    Head,
}

/// By how much pruning changes the images of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassChange {
    pub class: usize,
    /// Images of the class in the whole long-tailed list.
    pub count: u64,
    /// Those of them that were looked at.
    pub images: u64,
    /// Mean over them of 1 - cosine of the dense and the pruned branch's representation.
    pub mean: f64,
    /// Those among the tenth of all images that changes most.
    pub most_changed: u64,
}

/// By how much pruning changes one representation, in class order; classes without an image are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub representation: Representation,
    pub classes: Vec<ClassChange>,
}

/// `mechanism.json` beside an encoder's `result.json`: what pruning does to it, by the images of the long-tailed list of its split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MechanismRecord {
    /// [`super::FORMAT`].
    pub format: u32,
    pub suite: String,
    /// The pre-training of the encoder.
    pub job: JobId,
    pub label: String,
    /// sha256 of the encoder's tensors, as its `result.json` has it.
    pub state_sha256: String,
    /// sha256 of all that this depends on: the encoder, the images, the list, and how it was pruned.
    pub mechanism_hash: String,
    pub data_sha256: String,
    /// sha256 of the list by its published name.
    pub splits_sha256: BTreeMap<String, String>,
    /// Share of the weights that the mask drops.
    pub prune_ratio: f64,
    /// Whether the encoder was trained with a pruned branch. One that was not is pruned likewise, as a contrast; its batch norm
    /// takes the statistics of the pruned weights on these images.
    pub trained_pruned: bool,
    pub smoke: bool,
    /// That of the encoder's record.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stamp: Option<String>,
    pub environment: Environment,
    pub seconds: f64,
    pub layers: Vec<LayerKept>,
    pub changes: Vec<Change>,
}

/// The name of a [`MechanismRecord`]'s file.
pub const FILE: &str = "mechanism.json";

/// Reads the [`FILE`] beside the record of a finished pre-training; `None` if there is none.
///
/// # Errors
/// As [`super::read_result`], and where it is of another encoder.
pub fn read(folder: &Path, pretrained: &Job) -> Result<Option<MechanismRecord>, RecordError> {
    let path = folder.join(FILE);
    match read_json::<MechanismRecord>(&path)? {
        Some(other) if other.state_sha256 != pretrained.state_sha256 => {
            let reason = "its encoder is another than that of result.json".to_owned();
            Err(RecordError::NotARecord { path: path.display().to_string(), reason })
        }
        record => Ok(record),
    }
}

/// The [`FILE`] of each pre-training among the `results` of a suite's folder, and those whose record does not read.
pub fn read_all(folder: &Path, results: &[JobRecord]) -> (Vec<MechanismRecord>, Vec<RecordError>) {
    let (mut mechanisms, mut damaged) = (Vec::new(), Vec::new());
    for result in results {
        let JobRecord::Pretrain(PretrainRecord { job, .. }) = result else { continue };
        match read(&folder.join(job.header.job.to_string()), job) {
            Ok(mechanism) => mechanisms.extend(mechanism),
            Err(error) => damaged.push(error),
        }
    }
    (mechanisms, damaged)
}
