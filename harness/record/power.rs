//! What reference runs catch, as data: `power.csv` beside them, as `ci/gate-power` writes it.

use std::path::Path;

use serde::Deserialize;

use super::RecordError;
use crate::fs;

/// How often runs with one planted defect differed from the reference runs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Power {
    pub defect: String,
    /// Runs of each split in a draw.
    pub seeds: u16,
    /// The false-alarm rate of each comparison.
    pub rate: f64,
    pub draws: usize,
    pub differ: usize,
}

/// Reads `power.csv` in `folder`; empty if there is none.
///
/// # Errors
/// The file cannot be read, or has other columns.
pub fn read(folder: &Path) -> Result<Vec<Power>, RecordError> {
    let path = folder.join("power.csv");
    if !fs::exists(&path)? {
        return Ok(Vec::new());
    }
    let read = csv::Reader::from_reader(fs::read(&path)?.as_slice()).deserialize().collect::<Result<_, _>>();
    read.map_err(|error| RecordError::NotARecord { path: path.display().to_string(), reason: error.to_string() })
}
