//! The folder that holds what was fetched, shared by every process of the user. In: an artefact. Out: where its parts
//! lie, what of it is there, and the lock on it.
//!
//! `downloads/` verified archives; `data/` the layout of `--data DIR`; `published/` the authors' checkpoints; `manifests/`
//! what each archive unpacked to; `locks/`; `pins.toml`. Unfinished files are in the folder of their final place, under a name
//! that no command looks for, so that each of these folders may be a link to another disk.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Voice;
use super::pins::Pins;
use super::registry::{Artifact, Place, RemoteFile, Source};
use super::waiting::wait_for;
use crate::fs::{self, FolderLock, FsError};

/// The cache's folder.
#[derive(Debug, Clone)]
pub struct Cache {
    pub root: PathBuf,
}

/// What an archive unpacked to, written once all of it is in place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the archive.
    pub size: u64,
    pub sha256: String,
    pub files: Vec<UnpackedFile>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnpackedFile {
    /// Below the folder that the archive is unpacked to.
    pub path: String,
    pub size: u64,
    pub sha256: String,
}

/// What of an artefact is there.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Missing,
    /// In words, e.g. `3 of 17 files`.
    Partial(String),
    Present,
}

impl Cache {
    /// The cache that `named` says; else `SDCLR_CACHE`; else the platform's cache folder. `None`: there is no such
    /// folder, since the user has no home.
    pub fn locate(named: Option<PathBuf>) -> Option<Self> {
        let from_variable = std::env::var_os("SDCLR_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from);
        let of_platform = || {
            use etcetera::BaseStrategy;
            Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("sdclr"))
        };
        Some(Self { root: named.or(from_variable).or_else(of_platform)? })
    }

    /// The folder of a place.
    pub fn place(&self, place: Place) -> PathBuf {
        self.root.join(match place {
            Place::Data => "data",
            Place::Published => "published",
        })
    }

    /// Where an archive is unpacked: data beside other data, each of the authors' archives in a folder of its own, so that
    /// two of them cannot replace each other's files.
    pub fn unpack_folder(&self, artifact: &Artifact) -> PathBuf {
        match artifact.place {
            Place::Data => self.place(Place::Data),
            Place::Published => self.place(Place::Published).join(&artifact.name),
        }
    }

    /// Where an archive is unpacked before it is moved into place. A killed process leaves it there, where no command
    /// reads it. Only the holder of the artefact's lock uses it.
    pub fn scratch(&self, artifact: &Artifact) -> PathBuf {
        self.place(artifact.place).join(".staging").join(&artifact.name)
    }

    /// Where images that the user brought are linked, for other commands to find.
    pub fn link(&self, artifact: &Artifact) -> PathBuf {
        self.place(artifact.place).join(&artifact.name)
    }

    /// Where a download ends up: an archive under `downloads/`, a list at its own path.
    pub fn target(&self, artifact: &Artifact, file: &RemoteFile) -> PathBuf {
        match artifact.source {
            Source::Lists(_) => self.place(artifact.place).join(&file.path),
            _ => self.root.join("downloads").join(&file.path),
        }
    }

    /// Where a download grows.
    pub fn part(&self, artifact: &Artifact, file: &RemoteFile) -> PathBuf {
        self.target(artifact, file).with_added_extension("part")
    }

    pub fn pins(&self) -> PathBuf {
        self.root.join("pins.toml")
    }

    /// What the archive of `name` unpacked to; `None` also where the record does not read, as after a crash of the disk.
    pub fn manifest(&self, name: &str) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(&self.manifest_path(name)).ok()?).ok()
    }

    pub fn write_manifest(&self, name: &str, manifest: &Manifest) -> Result<(), FsError> {
        fs::write_with(&self.manifest_path(name), |file| Ok(serde_json::to_writer_pretty(file, manifest)?))
    }

    pub fn forget_manifest(&self, name: &str) -> Result<(), FsError> {
        fs::remove(&self.manifest_path(name))
    }

    fn manifest_path(&self, name: &str) -> PathBuf {
        self.root.join("manifests").join(format!("{name}.json"))
    }

    /// The lock on an artefact, waited for as long as another process holds it.
    pub fn lock(&self, name: &str, voice: &Voice) -> Result<FolderLock, FsError> {
        let folder = self.root.join("locks").join(name);
        wait_for(voice, || FolderLock::take(&folder))
    }

    /// What of `artifact` is there, by names and lengths; `--verify` looks at the content.
    pub fn state(&self, artifact: &Artifact, pins: &Pins) -> State {
        match &artifact.source {
            Source::Archive(archive) => self.archive_state(artifact, &pins.apply(&artifact.name, &archive.file)),
            Source::Lists(_) => {
                let files = artifact.files();
                let there = files.iter().filter(|file| has_length(&self.target(artifact, file), file.size)).count();
                match there {
                    _ if there == files.len() => State::Present,
                    0 if !files.iter().any(|file| self.part(artifact, file).exists()) => State::Missing,
                    _ => State::Partial(format!("{there} of {} files", files.len())),
                }
            }
            Source::Brought(_) if self.link(artifact).is_dir() => State::Present,
            Source::Brought(_) => State::Missing,
        }
    }

    fn archive_state(&self, artifact: &Artifact, file: &RemoteFile) -> State {
        if let Some(manifest) = self.manifest(&artifact.name)
            && !manifest.files.is_empty()
            && file.sha256.as_ref().is_none_or(|expected| *expected == manifest.sha256)
        {
            let place = self.unpack_folder(artifact);
            let there =
                manifest.files.iter().filter(|file| has_length(&place.join(&file.path), Some(file.size))).count();
            return match manifest.files.len() {
                all if all != there => State::Partial(format!("{there} of {all} files")),
                // An archive without a published hash can only be checked against a pin.
                _ if !file.has_hash() => State::Partial("not pinned".to_owned()),
                _ => State::Present,
            };
        }
        if self.target(artifact, file).exists() {
            return State::Partial("not unpacked".to_owned());
        }
        match (fs::length(&self.part(artifact, file)), file.size) {
            (Ok(have), Some(size)) if size > 0 => State::Partial(format!("{} %", 100 * have / size)),
            (Ok(have), _) => State::Partial(super::human(have)),
            (Err(_), _) => State::Missing,
        }
    }
}

fn has_length(path: &Path, size: Option<u64>) -> bool {
    path.is_file() && size.is_none_or(|size| fs::length(path).is_ok_and(|length| length == size))
}
