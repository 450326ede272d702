//! Evidence that is not about accuracies: that two computations gave the same bits, or that a step agrees with PyTorch's within a
//! tolerance. In: comparisons, as a test or `sdclr replay` makes them. Out: a record of its own kind, a file each, which is never
//! mixed with a verdict on accuracies.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Environment, FORMAT, RecordError, read_json, write_json};
use crate::clock;
use crate::fs::{self, FsError};

/// The folder of a suite's folder in which its report looks for evidence.
pub const FOLDER: &str = "evidence";

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Bitwise,
    StepTolerance,
}

/// The comparison that came closest to its tolerance, or went furthest beyond it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Closest {
    pub what: String,
    /// Relative, but absolute where the allowed difference is (densities, counts).
    pub difference: f64,
    /// 0 of bits.
    pub allowed: f64,
}

/// One file of evidence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvidenceRecord {
    /// [`FORMAT`].
    pub format: u32,
    pub kind: Kind,
    /// Of the test, or of what was replayed.
    pub name: String,
    /// What was compared with what.
    pub compared: String,
    pub comparisons: usize,
    pub closest: Option<Closest>,
    pub environment: Environment,
    /// In UTC as RFC 3339 writes it.
    pub ended: String,
}

impl EvidenceRecord {
    /// A record without a comparison yet.
    pub fn new(kind: Kind, name: &str, compared: &str, environment: Environment) -> Self {
        let (name, compared) = (name.to_owned(), compared.to_owned());
        let ended = clock::now();
        Self { format: FORMAT, kind, name, compared, comparisons: 0, closest: None, environment, ended }
    }

    /// Whether there is a comparison, and every difference was allowed.
    pub fn holds(&self) -> bool {
        self.closest.as_ref().is_some_and(|closest| closest.difference <= closest.allowed)
    }

    /// Adds a comparison.
    pub fn add(&mut self, what: &str, difference: f64, allowed: f64) {
        self.comparisons += 1;
        let share = |difference: f64, allowed: f64| match (difference.is_nan(), difference == 0.0) {
            (true, _) => f64::INFINITY,
            (_, true) => 0.0,
            _ => difference / allowed,
        };
        let closer = |closest: &Closest| share(difference, allowed) > share(closest.difference, closest.allowed);
        // JSON has no NaN and no infinity.
        if self.closest.as_ref().is_none_or(closer) {
            // Nor is a difference that is not a number allowed.
            let difference = if difference.is_finite() { difference } else { f64::MAX };
            self.closest = Some(Closest { what: what.to_owned(), difference, allowed });
        }
        self.ended = clock::now();
    }

    /// Writes it as `NAME.json` into `folder`, where there is no such file.
    ///
    /// # Errors
    /// There is one, or it cannot be written.
    pub fn write_new(&self, folder: &Path) -> Result<(), RecordError> {
        let path = folder.join(self.file());
        if fs::exists(&path)? {
            return Err(RecordError::Known { path: path.display().to_string() });
        }
        self.write(folder)
    }

    /// Likewise, also in place of an earlier one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), RecordError> {
        write_json(&folder.join(self.file()), self)
    }

    /// The name of its file.
    pub fn file(&self) -> String {
        let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '-' };
        format!("{}.json", self.name.chars().map(plain).collect::<String>())
    }
}

/// The files of evidence of a suite's `folder`.
///
/// # Errors
/// Its [`FOLDER`] cannot be listed.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, FsError> {
    let folder = folder.join(FOLDER);
    if !fs::exists(&folder)? {
        return Ok(Vec::new());
    }
    let is_record = |path: &PathBuf| path.extension().is_some_and(|end| end == "json");
    Ok(fs::list_folder(&folder)?.into_iter().filter(is_record).collect())
}

/// The evidence of a suite's `folder`, by the names of its files, and the files that do not read.
///
/// # Errors
/// As [`files`].
pub fn read(folder: &Path) -> Result<(Vec<EvidenceRecord>, Vec<RecordError>), FsError> {
    let (mut evidence, mut damaged) = (Vec::new(), Vec::new());
    for path in files(folder)? {
        match read_json(&path) {
            Ok(record) => evidence.extend(record),
            Err(error) => damaged.push(error),
        }
    }
    Ok((evidence, damaged))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_comparison_is_kept() {
        let environment = Environment {
            device: String::new(),
            threads: 1,
            libtorch: String::new(),
            deterministic: false,
            eager: false,
            git_commit: None,
            sdclr: String::new(),
        };
        let mut record = EvidenceRecord::new(Kind::StepTolerance, "a::b c", "a with b", environment);
        let mut add = |what: &str, difference, allowed| {
            record.add(what, difference, allowed);
            (record.closest.clone().unwrap().what, record.holds())
        };
        assert_eq!(add("same", 0.0, 0.0), ("same".to_owned(), true));
        assert_eq!(add("half", 0.5, 1.0), ("half".to_owned(), true));
        assert_eq!(add("third", 1.0, 3.0), ("half".to_owned(), true));
        assert_eq!(add("a bit", 1.0, 0.0), ("a bit".to_owned(), false));
        assert!(!add("not a number", f64::NAN, 1.0).1);
        assert_eq!((record.comparisons, record.file()), (5, "a--b-c.json".to_owned()));
        // It can be read back.
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<EvidenceRecord>(&text).unwrap(), record);
    }
}
