//! Checks everything that was fetched again. In: artefacts. Out: for each file with a known hash or length, whether it is
//! still right. A wrong file is renamed, so that nothing uses it and the next fetch replaces it; until then the artefact
//! is reported as incomplete. In a read-only cache the file stays where it is, and is reported.

use std::path::{Path, PathBuf};

use super::cache::{Cache, State};
use super::check;
use super::pins::Pins;
use super::registry::{Artifact, Registry, RemoteFile, Source};
use super::{ArtifactError, Voice, brought, human};
use crate::text::shown;

/// What is there of one artefact, as it was found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Files that are right, and their bytes.
    files: usize,
    bytes: u64,
    /// What the user brought, as it was checked.
    brought: Option<String>,
    /// One line for each file that is not right.
    pub wrong: Vec<String>,
    read_only: bool,
}

/// Reads all files of `artifact` in the cache, under its lock.
pub fn verify(
    artifact: &Artifact,
    registry: &Registry,
    cache: &Cache,
    pins: &Pins,
    voice: &Voice,
) -> Result<Verdict, ArtifactError> {
    let lock = match cache.lock(&artifact.name, voice) {
        Ok(lock) => Some(lock),
        Err(error) if error.forbids_writing() => None,
        Err(error) => return Err(error.into()),
    };
    let mut verdict = Verdict { read_only: lock.is_none(), ..Verdict::default() };
    if let Source::Brought(source) = &artifact.source {
        match brought::check(artifact, source, &cache.link(artifact), registry, cache, voice) {
            Ok(text) => verdict.brought = Some(text),
            Err(error) => verdict.wrong.push(error.to_string()),
        }
        return Ok(verdict);
    }
    for (path, file) in known_files(artifact, cache, pins) {
        verdict.look_at(&path, &file)?;
    }
    if let Source::Archive(archive) = &artifact.source
        && let Some(manifest) = cache.manifest(&artifact.name)
    {
        let place = cache.unpack_folder(artifact);
        for unpacked in &manifest.files {
            let file = RemoteFile {
                size: Some(unpacked.size),
                sha256: Some(unpacked.sha256.clone()),
                md5: archive.md5_inside.get(&unpacked.path).cloned(),
                ..RemoteFile::default()
            };
            verdict.look_at(&place.join(&unpacked.path), &file)?;
        }
    }
    if verdict.wrong.is_empty()
        && let State::Partial(what) = cache.state(artifact, pins)
    {
        verdict.wrong.push(format!("not whole: {what}"));
    }
    Ok(verdict)
}

/// The downloaded files that are there, each with what is known of it; every list once any of them is there.
fn known_files(artifact: &Artifact, cache: &Cache, pins: &Pins) -> Vec<(PathBuf, RemoteFile)> {
    let files = artifact.files().into_iter();
    let mut files: Vec<_> =
        files.map(|file| (cache.target(artifact, &file), pins.apply(&artifact.name, &file))).collect();
    let lists = matches!(artifact.source, Source::Lists(_));
    if !lists || !files.iter().any(|(path, _)| path.exists()) {
        files.retain(|(path, _)| path.exists());
    }
    files
}

impl Verdict {
    /// What is right, in words.
    pub fn right(&self) -> String {
        let plural = if self.files == 1 { "" } else { "s" };
        self.brought.clone().unwrap_or_else(|| format!("{} file{plural}, {}", self.files, human(self.bytes)))
    }

    fn look_at(&mut self, path: &Path, file: &RemoteFile) -> Result<(), ArtifactError> {
        if !path.is_file() {
            self.wrong.push(format!("{} is missing", shown(path)));
            return Ok(());
        }
        match check::check(path, file)? {
            (found, None) => {
                self.files += 1;
                self.bytes += found.bytes;
            }
            (_, Some(wrong)) if self.read_only => {
                self.wrong
                    .push(format!("{} is wrong: {wrong}; left there, since the cache may only be read", shown(path)));
            }
            (found, Some(wrong)) => {
                let aside = check::set_aside(path, &found)?;
                self.wrong.push(format!("{} is wrong: {wrong}; moved to {}", shown(path), shown(&aside)));
            }
        }
        Ok(())
    }
}
