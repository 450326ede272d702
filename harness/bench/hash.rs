//! The race of hashing: a file of 1 GiB in the page cache, hashed by us and by the program `sha256sum`.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use super::{BenchError, Measured, Racer};
use crate::artifact::hash::{Algorithm, hash_file};
use crate::fs;
use crate::recipe::Precision;

const BYTES: usize = 1 << 30;

/// A file with fixed contents. It is deleted when this is dropped.
pub(super) struct HashedFile {
    /// Removes the file.
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl HashedFile {
    pub fn new() -> Result<Self, BenchError> {
        let folder = fs::temporary_folder()?;
        let path = folder.path().join("hashed");
        let piece: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        fs::write_with(&path, |file| (0..BYTES / piece.len()).try_for_each(|_| file.write_all(&piece)))?;
        Ok(Self { _folder: folder, path })
    }

    pub fn hash(&self) -> Result<String, BenchError> {
        Ok(hash_file(&self.path, Algorithm::Sha256)?)
    }
}

/// The program `sha256sum`, started anew for each iteration.
pub(super) struct Sha256sum {
    file: HashedFile,
    expected: String,
}

impl Sha256sum {
    pub fn new() -> Result<Self, BenchError> {
        let file = HashedFile::new()?;
        Ok(Self { expected: file.hash()?, file })
    }
}

impl Racer for Sha256sum {
    fn name(&self) -> &str {
        "sha256sum"
    }

    fn precision(&self) -> Option<Precision> {
        None
    }

    fn run(&mut self, iterations: usize) -> Result<Measured, BenchError> {
        let failed = |reason: String| BenchError::Program { program: "sha256sum", reason };
        let start = Instant::now();
        for _ in 0..iterations {
            let output = Command::new("sha256sum").arg(&self.file.path).output();
            let output = output.map_err(|error| failed(error.to_string()))?;
            let said = String::from_utf8_lossy(&output.stdout);
            if !said.starts_with(&self.expected) {
                return Err(failed(format!("it said '{}', expected {}", said.trim(), self.expected)));
            }
        }
        // The system counts the memory of the parent process towards the peak of its child.
        Ok(Measured { seconds: start.elapsed().as_secs_f64(), peak_rss_bytes: None, peak_device_bytes: None })
    }
}
