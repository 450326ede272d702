//! The hashes by which published files are known. In: bytes, piece by piece. Out: lower-case hexadecimal digits.

use std::path::Path;

use sha2::Digest;

use crate::fs::{self, FsError};
use crate::text;

/// How a file's hash was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Sha256,
    Md5,
    /// The id under which git knows a file: SHA-1 of `blob LENGTH`, a zero byte, and the content.
    GitBlob,
}

/// A hash that grows. SHA-256 and SHA-1 use the processor's own instructions where it has them.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(sha2::Sha256),
    Md5(md5::Md5),
    GitBlob(sha1::Sha1),
}

impl Hasher {
    /// `length`: of all the bytes that will come; a git blob id depends on it from the start, the others do not.
    pub fn new(algorithm: Algorithm, length: u64) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Md5 => State::Md5(md5::Md5::new()),
            Algorithm::GitBlob => State::GitBlob(sha1::Sha1::new_with_prefix(format!("blob {length}\0"))),
        })
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Md5(state) => state.update(bytes),
            State::GitBlob(state) => state.update(bytes),
        }
    }

    /// Lower-case hexadecimal digits.
    pub fn finish(self) -> String {
        match self.0 {
            State::Sha256(state) => text::hex(&state.finalize()),
            State::Md5(state) => text::hex(&state.finalize()),
            State::GitBlob(state) => text::hex(&state.finalize()),
        }
    }
}

/// The hash of a file, read piece by piece: memory does not grow with the file.
///
/// # Errors
/// The file cannot be read.
pub fn hash_file(path: &Path, algorithm: Algorithm) -> Result<String, FsError> {
    let mut hasher = Hasher::new(algorithm, fs::length(path)?);
    fs::read_pieces(path, |piece| hasher.update(piece))?;
    Ok(hasher.finish())
}
