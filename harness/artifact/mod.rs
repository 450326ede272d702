//! Published data, downloaded to this disk and verified. In: the name of an artefact in the registry
//! (`fixtures/registry.toml`). Out: its files in the cache, where every command looks for data; or one clear error.

mod brought;
pub mod cache;
pub mod check;
mod download;
pub mod drive;
pub mod fetch;
pub mod hash;
mod http;
mod identify;
pub mod listing;
mod page;
pub mod pins;
pub mod registry;
pub mod unpack;
pub mod verify;
mod waiting;

use std::path::PathBuf;

use crate::fs::FsError;
use crate::progress::Progress;
use crate::text::{message, shown};
pub use brought::image_root;
use cache::Cache;
use registry::Place;

/// An artefact could not be had, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error("registry {name} is refused: {reason}; see fixtures/registry.toml for its form")]
    Registry { name: String, reason: String },
    #[error("pins {} are refused: {reason}; mend the file or delete it", shown(path))]
    Pins { path: PathBuf, reason: String },
    #[error("there are no pins {}; check the path, or run with --pin to begin them there", shown(path))]
    NoPins { path: PathBuf },
    #[error("nothing to fetch is called '{found}'{}; known are {known}", near.as_ref().map(|near| format!(" (did you mean '{near}'?)")).unwrap_or_default())]
    UnknownName { found: String, near: Option<String>, known: String },
    #[error("no suite called '{found}' has anything to fetch; known are {known} (digits-lt is embedded)")]
    UnknownSuite { found: String, known: String },
    #[error("there is no cache folder, since no home folder is known; name one with --cache DIR or SDCLR_CACHE")]
    NoCache,
    #[error(
        "cannot set up downloads: {reason}; are the system's root certificates installed (package ca-certificates)?"
    )]
    Client { reason: String },
    #[error(
        "{what} is not in {}, and --offline forbids to download it; run again without --offline, or bring it with --from",
        shown(cache)
    )]
    Offline { what: String, cache: PathBuf },
    #[error("{reason}; run the same command again later, or {remedy}")]
    Download { reason: String, remedy: String },
    #[error(
        "nobody published a size or hash of this archive, so nothing proves that what comes is what the authors uploaded; run again with --pin to trust what comes first and write its hash to {}, or name the pins of somebody you trust with --pins FILE",
        shown(pins)
    )]
    NotPinned { pins: PathBuf },
    #[error(
        "{} is not {expected_name}: {wrong}{}; get it again from where it is published",
        shown(path),
        pins.as_ref().map(|pins| format!(" (pinned in {})", shown(pins))).unwrap_or_default()
    )]
    Brought { path: PathBuf, expected_name: String, wrong: Box<check::Mismatch>, pins: Option<PathBuf> },
    #[error("{} is none of {candidates}: {reason}; name one of them to say which it is", shown(path))]
    Unidentified { path: PathBuf, candidates: String, reason: String },
    #[error("--from names {}, {found}; expected {expected}", shown(path))]
    FromWhat { path: PathBuf, found: String, expected: String },
    #[error("{file} of the archive is not the published one: {wrong}; it is kept as {} and is not used", shown(kept))]
    Inside { file: String, wrong: Box<check::Mismatch>, kept: PathBuf },
    #[error("the archive lacks {file}; expected all of {expected}")]
    Lacks { file: String, expected: String },
    #[error(
        "it cannot be downloaded for you ({licence}); get {files} there and name their folder, or that of the unpacked images, with --from DIR"
    )]
    MustBeBrought { licence: String, files: String },
    #[error("{} holds neither {files} nor the folders train/ and val/; name the folder that does", shown(folder))]
    NotThere { folder: PathBuf, files: String },
    #[error(
        "{missing} of {listed} listed images are missing in {} (first: {first}, of {list}); {remedy}",
        shown(folder)
    )]
    MissingImages { folder: PathBuf, missing: usize, listed: usize, first: String, list: String, remedy: String },
    #[error("{} lacks {first}{}; {remedy}", shown(folder), and_more(*more))]
    LacksLists { folder: PathBuf, first: String, more: usize, remedy: String },
    #[error("the published lists to check against are not in the cache; run sdclr fetch {lists} first")]
    NoLists { lists: String },
    #[error(transparent)]
    Space(download::DownloadError),
    #[error(transparent)]
    Unpack(#[from] unpack::UnpackError),
    #[error(transparent)]
    File(#[from] FsError),
}

fn and_more(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" (and {count} more)") }
}

impl ArtifactError {
    /// Whether a disk of this machine failed or is full, so that the artefact itself may be fine.
    fn is_of_this_machine(&self) -> bool {
        use unpack::UnpackError::{File, Unreadable};
        matches!(self, Self::File(_) | Self::Unpack(File(_) | Unreadable { .. }))
    }
}

/// Who speaks: lines are headed by the artefact's name.
#[derive(Debug)]
pub struct Voice<'a> {
    pub progress: &'a Progress,
    pub name: &'a str,
}

impl Voice<'_> {
    pub fn say(&self, text: &str) {
        self.progress.say(&message(&format!("{}: {text}", self.name)));
    }
}

/// The folder of fetched data, in the layout of `--data DIR`; `None` where nothing was fetched.
pub fn data_folder() -> Option<PathBuf> {
    existing(Place::Data)
}

/// The folder of the authors' fetched checkpoints and logs, as their archives unpack; `None` where none was fetched.
pub fn published_folder() -> Option<PathBuf> {
    existing(Place::Published)
}

fn existing(place: Place) -> Option<PathBuf> {
    Some(Cache::locate(None)?.place(place)).filter(|folder| folder.is_dir())
}

/// A number of bytes as people say it.
pub fn human(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
