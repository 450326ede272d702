//! Checks a file against its expected length and hashes. In: its bytes, piece by piece, and what the registry or a pin knows.
//! Out: length and hashes, or the first of them that is wrong.

use std::path::Path;

use super::hash::{Algorithm, Hasher, hash_file};
use super::registry::RemoteFile;
use crate::fs::{self, FsError};

/// What a file was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    pub bytes: u64,
    pub sha256: String,
    /// Where one is expected.
    md5: Option<String>,
}

/// A length or hash that is not the expected one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("its {what} is {found}, expected {expected}")]
pub struct Mismatch {
    pub what: &'static str,
    pub found: String,
    pub expected: String,
}

/// Hashes while bytes pass by.
#[derive(Debug)]
pub struct Digester {
    bytes: u64,
    sha256: Hasher,
    md5: Option<Hasher>,
}

impl Digester {
    /// For `file`: always SHA-256, and MD5 where one is known.
    pub fn new(file: &RemoteFile) -> Self {
        let md5 = file.md5.is_some().then(|| Hasher::new(Algorithm::Md5, 0));
        Self { bytes: 0, sha256: Hasher::new(Algorithm::Sha256, 0), md5 }
    }

    pub fn update(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.sha256.update(piece);
        if let Some(md5) = &mut self.md5 {
            md5.update(piece);
        }
    }

    pub fn finish(self) -> Digests {
        Digests { bytes: self.bytes, sha256: self.sha256.finish(), md5: self.md5.map(Hasher::finish) }
    }
}

/// Reads the file at `path` once. `file` says which hashes are wanted.
pub fn digest(path: &Path, file: &RemoteFile) -> Result<Digests, FsError> {
    let mut digester = Digester::new(file);
    fs::read_pieces(path, |piece| digester.update(piece))?;
    Ok(digester.finish())
}

/// Holds everything that is known of `file` against what was found; `path` is where the content lies.
pub fn mismatch(path: &Path, found: &Digests, file: &RemoteFile) -> Result<Option<Mismatch>, FsError> {
    let differs = |what, found: &str, expected: Option<&str>| {
        let expected = expected.filter(|expected| *expected != found)?.to_owned();
        Some(Mismatch { what, found: found.to_owned(), expected })
    };
    let size = file.size.map(|size| format!("{size} bytes"));
    let wrong = differs("length", &format!("{} bytes", found.bytes), size.as_deref())
        .or_else(|| differs("sha256", &found.sha256, file.sha256.as_deref()))
        .or_else(|| found.md5.as_ref().and_then(|md5| differs("md5", md5, file.md5.as_deref())));
    if wrong.is_some() || file.git_blob.is_none() {
        return Ok(wrong);
    }
    // A git blob id hashes the length first, which is known only now; these files are small.
    Ok(differs("git blob id", &hash_file(path, Algorithm::GitBlob)?, file.git_blob.as_deref()))
}

/// The verdict on the file at `path`: what was found, and what is wrong with it.
pub fn check(path: &Path, file: &RemoteFile) -> Result<(Digests, Option<Mismatch>), FsError> {
    let found = digest(path, file)?;
    let wrong = mismatch(path, &found, file)?;
    Ok((found, wrong))
}

/// Whether `bytes` are `file`, by the first hash that is known of it.
pub fn is(bytes: &[u8], file: &RemoteFile) -> bool {
    let hashes = [(Algorithm::Sha256, &file.sha256), (Algorithm::Md5, &file.md5), (Algorithm::GitBlob, &file.git_blob)];
    let Some((algorithm, known)) = hashes.into_iter().find(|(_, known)| known.is_some()) else { return false };
    let mut hasher = Hasher::new(algorithm, bytes.len() as u64);
    hasher.update(bytes);
    known.as_ref() == Some(&hasher.finish())
}

/// Renames a file that must not be used, so that the new name contains its hash `found`. Returns the new name.
pub fn set_aside(path: &Path, found: &Digests) -> Result<std::path::PathBuf, FsError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".part").unwrap_or(&name).to_owned();
    let aside = path.with_file_name(format!("{name}.wrong-hash-{}", &found.sha256[..8]));
    fs::rename(path, &aside)?;
    Ok(aside)
}
