//! Brings artefacts into the cache. In: which ones, and how. Out: for each what came of it, as it is done.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use reqwest::blocking::Client;

use super::cache::{Cache, Manifest, State, UnpackedFile};
use super::check::{self, Digester, Digests};
use super::download::{Download, DownloadError};
use super::identify::{identify, is_another};
use super::pins::{Pin, Pins};
use super::registry::{Archive, Artifact, Registry, RemoteFile, Source};
use super::{ArtifactError, Voice, brought, http, human, unpack};
use crate::fs::{self, Growing};
use crate::progress::Progress;
use crate::text::shown;

/// How to fetch.
#[derive(Debug, Default)]
pub struct Options {
    /// Open no connection.
    pub offline: bool,
    /// Trust what has no published hash, and write down what it was.
    pub pin: bool,
    /// Take it from this file or folder instead of downloading it.
    pub from: Option<PathBuf>,
    /// Artefacts at once.
    pub jobs: usize,
}

/// Everything that one command fetches with.
#[derive(Debug)]
pub struct Fetcher<'a> {
    pub registry: &'a Registry,
    pub cache: &'a Cache,
    /// Where pins are kept.
    pub pins: PathBuf,
    pub options: Options,
    pub progress: &'a Progress,
    client: OnceLock<Client>,
}

/// What came of an artefact that is there now.
#[derive(Debug)]
pub enum Outcome {
    Present {
        folder: PathBuf,
    },
    Fetched {
        bytes: u64,
        files: usize,
        folder: PathBuf,
        sha256: Option<String>,
        pinned: Option<PathBuf>,
    },
    /// What the user brought was checked.
    Checked(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present { folder } => write!(f, "already in {}", shown(folder)),
            Self::Checked(text) => f.write_str(text),
            Self::Fetched { bytes, files, folder, sha256, pinned } => {
                write!(f, "{} verified", human(*bytes))?;
                if let Some(sha256) = sha256 {
                    write!(f, " (sha256 {sha256})")?;
                }
                let plural = if *files == 1 { "" } else { "s" };
                write!(f, ", {files} file{plural} in {}", shown(folder))?;
                match pinned {
                    Some(pins) => write!(f, "; pinned in {}", shown(pins)),
                    None => Ok(()),
                }
            }
        }
    }
}

impl<'a> Fetcher<'a> {
    pub fn new(
        registry: &'a Registry,
        cache: &'a Cache,
        pins: PathBuf,
        options: Options,
        progress: &'a Progress,
    ) -> Self {
        Self { registry, cache, pins, options, progress, client: OnceLock::new() }
    }

    /// Fetches `chosen`, several at once, and tells `done` of each. One that fails does not stop the others.
    ///
    /// # Errors
    /// A file that was brought is none of several candidates.
    pub fn run(
        &self,
        chosen: &[&Artifact],
        done: impl Fn(&Artifact, Result<Outcome, ArtifactError>) + Sync,
    ) -> Result<(), ArtifactError> {
        let chosen = match &self.options.from {
            Some(from) if from.is_file() && chosen.len() > 1 => {
                vec![identify(chosen, from, &Pins::load(&self.pins)?, self.progress)?]
            }
            _ => chosen.to_vec(),
        };
        let queue: Mutex<VecDeque<&Artifact>> = Mutex::new(chosen.iter().copied().collect());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        std::thread::scope(|scope| {
            for _ in 0..self.options.jobs.min(chosen.len()) {
                scope.spawn(|| {
                    while let Some(artifact) = next() {
                        done(artifact, self.one(artifact));
                    }
                });
            }
        });
        Ok(())
    }

    /// Fetches one artefact.
    pub fn one(&self, artifact: &Artifact) -> Result<Outcome, ArtifactError> {
        let voice = Voice { progress: self.progress, name: &artifact.name };
        match &artifact.source {
            Source::Archive(archive) => self.archive(artifact, archive, &voice),
            Source::Lists(_) => self.lists(artifact, &voice),
            Source::Brought(source) => match &self.options.from {
                Some(from) => {
                    brought::check(artifact, source, from, self.registry, self.cache, &voice).map(Outcome::Checked)
                }
                None if self.cache.link(artifact).is_dir() => {
                    Ok(Outcome::Present { folder: self.cache.link(artifact) })
                }
                None => Err(brought::must_be_brought(artifact, source)),
            },
        }
    }

    fn archive(&self, artifact: &Artifact, archive: &Archive, voice: &Voice) -> Result<Outcome, ArtifactError> {
        let folder = self.cache.unpack_folder(artifact);
        let present = |pins: &Pins| self.cache.state(artifact, pins) == State::Present;
        let before = Pins::load(&self.pins)?;
        if self.options.from.is_none() && present(&before) {
            return Ok(Outcome::Present { folder });
        }
        if !before.apply(&artifact.name, &archive.file).has_hash() && !self.options.pin {
            return Err(ArtifactError::NotPinned { pins: self.pins.clone() });
        }
        let _lock = self.cache.lock(&artifact.name, voice)?;
        // Another process may have fetched and pinned it meanwhile.
        let mut pins = Pins::load(&self.pins)?;
        if self.options.pin
            && self.options.from.is_none()
            && !pins.apply(&artifact.name, &archive.file).has_hash()
            && let Some(Manifest { size, sha256, .. }) = self.cache.manifest(&artifact.name)
        {
            voice.say(&format!("pinning what is in the cache in {}", shown(&self.pins)));
            Pins::add(&self.pins, &artifact.name, Pin { size, sha256 }, voice)?;
            pins = Pins::load(&self.pins)?;
        }
        let file = pins.apply(&artifact.name, &archive.file);
        let path = self.cache.target(artifact, &file);
        let there = present(&pins);
        let digests = match &self.options.from {
            Some(from) => self.bring(artifact, &file, from, &path, &pins)?,
            None if there => return Ok(Outcome::Present { folder }),
            None => match self.kept(&file, &path, voice)? {
                Some(digests) => digests,
                None => self.download(artifact, &file, archive.unpacked, voice)?,
            },
        };
        if there && self.cache.manifest(&artifact.name).is_some_and(|manifest| manifest.sha256 == digests.sha256) {
            return Ok(Outcome::Present { folder });
        }
        voice.say("unpacking");
        let pinned = !file.has_hash();
        let files = self.unpack(artifact, archive, &path).inspect_err(|error| {
            // Nothing shows that it is the right file, so remove it. An error of that would hide the reason; ignore it.
            if pinned && !error.is_of_this_machine() {
                let _ = check::set_aside(&path, &digests);
            }
        })?;
        let (size, sha256) = (digests.bytes, digests.sha256);
        // The pin first: the manifest says that all is done.
        if pinned {
            Pins::add(&self.pins, &artifact.name, Pin { size, sha256: sha256.clone() }, voice)?;
        }
        let pinned = pinned.then(|| self.pins.clone());
        let manifest = Manifest { size, sha256, files };
        self.cache.write_manifest(&artifact.name, &manifest)?;
        let Manifest { sha256, files, .. } = manifest;
        Ok(Outcome::Fetched { bytes: size, files: files.len(), folder, sha256: Some(sha256), pinned })
    }

    /// What is in the cache already, if it is right; a wrong file is renamed. An archive that is there but not yet pinned was
    /// downloaded completely, and only its unpacking was interrupted: it is the first download, which a pin records.
    fn kept(&self, file: &RemoteFile, path: &Path, voice: &Voice) -> Result<Option<Digests>, ArtifactError> {
        if !path.exists() {
            return Ok(None);
        }
        match check::check(path, file)? {
            (found, None) => Ok(Some(found)),
            (found, Some(wrong)) => {
                let aside = check::set_aside(path, &found)?;
                voice.say(&format!("{} is not the right file: {wrong}; moved to {}", shown(path), shown(&aside)));
                Ok(None)
            }
        }
    }

    fn download(
        &self,
        artifact: &Artifact,
        file: &RemoteFile,
        room: Option<u64>,
        voice: &Voice,
    ) -> Result<Digests, ArtifactError> {
        if self.options.offline {
            return Err(ArtifactError::Offline { what: file.path.clone(), cache: self.cache.root.clone() });
        }
        let size = file.size.map(|size| format!(" ({})", human(size))).unwrap_or_default();
        voice.say(&format!("downloading {}{size}", file.path));
        let (part, target) = (self.cache.part(artifact, file), self.cache.target(artifact, file));
        let download = Download {
            client: self.client()?,
            transfer: &self.registry.transfer,
            voice,
            file,
            part: &part,
            target: &target,
            room,
        };
        download.run().map_err(|error| match error {
            DownloadError::File(error) => error.into(),
            DownloadError::NoSpace { .. } => ArtifactError::Space(error),
            DownloadError::Refused { .. } => {
                ArtifactError::Download { reason: error.to_string(), remedy: self.remedy(artifact, file) }
            }
        })
    }

    /// How to get a file that no mirror gave.
    fn remedy(&self, artifact: &Artifact, file: &RemoteFile) -> String {
        let name = &artifact.name;
        if matches!(artifact.source, Source::Lists(_)) {
            return format!("clone the repository of the lists and run sdclr fetch {name} --from DIR");
        }
        let url = file.urls.first().map(String::as_str).unwrap_or_default();
        let pin = if file.has_hash() { "" } else { " --pin" };
        let mut remedy = format!("save {url} with a browser and run sdclr fetch {name} --from FILE{pin}");
        if Pins::load(&self.pins).is_ok_and(|pins| pins.has(name)) {
            let pins = shown(&self.pins);
            remedy +=
                &format!("; the expected hash is pinned in {pins}: delete it there if the authors replaced the file");
        }
        remedy
    }

    /// Made when the first connection is needed, so never with `--offline`.
    fn client(&self) -> Result<&Client, ArtifactError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = http::client(&self.registry.transfer)?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Copies a file that the user has, if it is the right one.
    fn bring(
        &self,
        artifact: &Artifact,
        file: &RemoteFile,
        from: &Path,
        path: &Path,
        pins: &Pins,
    ) -> Result<Digests, ArtifactError> {
        if !from.is_file() {
            let found = what_is(from);
            let expected = format!("the archive {} itself", file.path);
            return Err(ArtifactError::FromWhat { path: from.to_path_buf(), found: found.to_owned(), expected });
        }
        // Of an archive with a hash, the hash tells.
        let unknown = match &artifact.source {
            Source::Archive(archive) if !file.has_hash() => Some(archive),
            _ => None,
        };
        if unknown.is_some() {
            unpack::check_begin(from)?;
        }
        if let Some(archive) = unknown.filter(|archive| is_another(archive, from)) {
            let found = format!("an archive without any {}", archive.marks.join(" or "));
            let expected = format!("the archive {} itself", file.path);
            return Err(ArtifactError::FromWhat { path: from.to_path_buf(), found, expected });
        }
        let part = path.with_added_extension("brought");
        let mut digester = Digester::new(file);
        let mut growing = Growing::open(&part, 0)?;
        let mut failure = None;
        fs::read_pieces(from, |piece| {
            digester.update(piece);
            if failure.is_none() {
                failure = growing.append(piece).err();
            }
        })?;
        let digests = digester.finish();
        let outcome = match failure {
            Some(failure) => Err(failure.into()),
            None => match check::mismatch(&part, &digests, file)? {
                Some(wrong) => Err(ArtifactError::Brought {
                    path: from.to_path_buf(),
                    expected_name: file.path.clone(),
                    wrong: Box::new(wrong),
                    pins: pins.has(&artifact.name).then(|| pins.path.clone()),
                }),
                None => Ok(digests),
            },
        };
        if outcome.is_err() {
            fs::remove(&part)?;
            return outcome;
        }
        growing.sync()?;
        fs::rename(&part, path)?;
        // What a download left unfinished is of no use any more.
        fs::remove(&self.cache.part(artifact, file))?;
        outcome
    }

    /// Unpacks a verified archive, checks what is known of the files inside, and gives what there is.
    fn unpack(&self, artifact: &Artifact, archive: &Archive, path: &Path) -> Result<Vec<UnpackedFile>, ArtifactError> {
        let place = self.cache.unpack_folder(artifact);
        self.cache.forget_manifest(&artifact.name)?;
        let unpacked = unpack::unpack(path, &place, &self.cache.scratch(artifact))?;
        let mut files = Vec::new();
        for path in &unpacked.files {
            let name = path.to_string_lossy().into_owned();
            let known = RemoteFile { md5: archive.md5_inside.get(&name).cloned(), ..RemoteFile::default() };
            let found = check::digest(&place.join(path), &known)?;
            if let Some(wrong) = check::mismatch(&place.join(path), &found, &known)? {
                let kept = check::set_aside(&place.join(path), &found)?;
                return Err(ArtifactError::Inside { file: name, wrong: Box::new(wrong), kept });
            }
            files.push(UnpackedFile { path: name, size: found.bytes, sha256: found.sha256 });
        }
        if let Some(file) = archive.md5_inside.keys().find(|name| !files.iter().any(|file| file.path == **name)) {
            let expected = archive.md5_inside.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(ArtifactError::Lacks { file: file.clone(), expected });
        }
        Ok(files)
    }

    fn lists(&self, artifact: &Artifact, voice: &Voice) -> Result<Outcome, ArtifactError> {
        let folder = self.cache.place(artifact.place);
        let pins = Pins::load(&self.pins)?;
        if self.options.from.is_none() && self.cache.state(artifact, &pins) == State::Present {
            return Ok(Outcome::Present { folder });
        }
        let _lock = self.cache.lock(&artifact.name, voice)?;
        let (mut bytes, mut files) = (0, 0);
        if let Some(from) = &self.options.from {
            check_lists(artifact, from)?;
        }
        for file in artifact.files() {
            let path = self.cache.target(artifact, &file);
            let digests = match &self.options.from {
                Some(from) => self.bring(artifact, &file, &from.join(&file.path), &path, &pins)?,
                None => match self.kept(&file, &path, voice)? {
                    Some(digests) => digests,
                    None => self.download(artifact, &file, Some(0), voice)?,
                },
            };
            bytes += digests.bytes;
            files += 1;
        }
        Ok(Outcome::Fetched { bytes, files, folder, sha256: None, pinned: None })
    }
}

/// What the user named instead of what was expected: goes on after "--from names PATH,".
fn what_is(path: &Path) -> &'static str {
    match path {
        _ if path.is_dir() => "a folder",
        _ if path.exists() => "which is no plain file",
        _ => "which does not exist",
    }
}

/// Refuses a folder `from` that lacks lists of `artifact`, before any of them is copied.
fn check_lists(artifact: &Artifact, from: &Path) -> Result<(), ArtifactError> {
    let files = artifact.files();
    if !from.is_dir() {
        let found = if from.is_file() { "a file" } else { what_is(from) }.to_owned();
        let first = files.first().map(|file| file.path.as_str()).unwrap_or_default();
        let expected = format!("a folder that holds {first} and its siblings");
        return Err(ArtifactError::FromWhat { path: from.to_path_buf(), found, expected });
    }
    let missing: Vec<&RemoteFile> = files.iter().filter(|file| !from.join(&file.path).is_file()).collect();
    let Some(first) = missing.first() else { return Ok(()) };
    // `from` may be the folder that the paths begin with.
    let top = first.path.split('/').next().unwrap_or_default();
    let remedy = match first.path.strip_prefix(top).map(|rest| from.join(rest.trim_start_matches('/'))) {
        Some(path) if path.is_file() => format!("name the folder that holds {top}/, which is one level above"),
        _ => format!("name the folder that holds {top}/ with all of its lists"),
    };
    let (folder, more) = (from.to_path_buf(), missing.len() - 1);
    Err(ArtifactError::LacksLists { folder, first: first.path.clone(), more, remedy })
}
