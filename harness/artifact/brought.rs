//! Data that the user must provide because its licence forbids redistribution: ImageNet. In: a folder with the published
//! archives, or with the unpacked images. Out: the result of checking it against published hashes or lists. Images are
//! then linked into the cache, where other commands look for them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::check;
use super::registry::{Artifact, Brought, Registry, RemoteFile};
use super::{ArtifactError, Voice, human};
use crate::fs::{self, FsError};
use crate::text::{printable, shown};

/// The longest published list has 7 MB.
const LIST_BYTES: u64 = 64 << 20;

pub(super) fn must_be_brought(artifact: &Artifact, source: &Brought) -> ArtifactError {
    ArtifactError::MustBeBrought { licence: artifact.licence.clone(), files: names(source) }
}

fn names(source: &Brought) -> String {
    source.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(" and ")
}

/// Checks what lies at `from`: one of the published archives, a folder with all of them, or the folder of `train/` and
/// `val/`. Gives what was checked, in words.
pub(super) fn check(
    artifact: &Artifact,
    source: &Brought,
    from: &Path,
    registry: &Registry,
    cache: &Cache,
    voice: &Voice,
) -> Result<String, ArtifactError> {
    if from.is_file() {
        let name = from.file_name().unwrap_or_default().to_string_lossy();
        let Some(file) = source.files.iter().find(|file| file.path == name) else {
            let (found, expected) = ("a file of another name".to_owned(), format!("{} or their folder", names(source)));
            return Err(ArtifactError::FromWhat { path: from.to_path_buf(), found, expected });
        };
        check_archive(file, from, voice)?;
        return Ok(format!("{name} is the published file"));
    }
    if source.files.iter().any(|file| from.join(&file.path).is_file()) {
        for file in &source.files {
            check_archive(file, &from.join(&file.path), voice)?;
        }
        return Ok(format!("{} are the published files", names(source)));
    }
    if !from.exists() {
        let (found, expected) = ("which does not exist".to_owned(), format!("the folder of {}", names(source)));
        return Err(ArtifactError::FromWhat { path: from.to_path_buf(), found, expected });
    }
    match image_root(from)? {
        Some(root) => check_tree(artifact, source, &root, registry, cache, voice),
        None => Err(ArtifactError::NotThere { folder: from.to_path_buf(), files: names(source) }),
    }
}

/// The folder of `train/` and `val/`: `folder` itself; the one below it where Kaggle's archive has them; or the one above,
/// where `folder` is one of the two.
///
/// # Errors
/// A folder on the way may not be entered.
pub fn image_root(folder: &Path) -> Result<Option<PathBuf>, FsError> {
    let below = ["", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC"].map(|path| folder.join(path));
    let is_part = folder.file_name().is_some_and(|name| name == "train" || name == "val");
    let above = folder.parent().filter(|_| is_part).map(Path::to_path_buf);
    for root in below.into_iter().chain(above) {
        if fs::is_open_folder(&root.join("train"))? || fs::is_open_folder(&root.join("val"))? {
            // `folder.join("")` ends in a slash.
            return Ok(Some(if root == folder { folder.to_path_buf() } else { root }));
        }
    }
    Ok(None)
}

fn check_archive(file: &RemoteFile, path: &Path, voice: &Voice) -> Result<(), ArtifactError> {
    let found = fs::length(path)?;
    let wrong = match file.size {
        // A wrong size already shows that the file is wrong; do not read hundreds of gigabytes.
        Some(size) if size != found => {
            Some(check::Mismatch { what: "length", found: format!("{found} bytes"), expected: format!("{size} bytes") })
        }
        _ => {
            voice.say(&format!("reading {} ({}), which takes a while", path.display(), human(found)));
            check::check(path, file)?.1
        }
    };
    let (path, expected_name) = (path.to_path_buf(), file.path.clone());
    match wrong.map(Box::new) {
        Some(wrong) => Err(ArtifactError::Brought { path, expected_name, wrong, pins: None }),
        None => Ok(()),
    }
}

/// Looks for every image that the published lists name.
fn check_tree(
    artifact: &Artifact,
    source: &Brought,
    folder: &Path,
    registry: &Registry,
    cache: &Cache,
    voice: &Voice,
) -> Result<String, ArtifactError> {
    let (mut checked, mut absent) = (Vec::new(), Vec::new());
    let (mut listed, mut missing) = (HashSet::new(), Vec::new());
    for artifact in registry.select(&source.lists, None)? {
        for file in artifact.files() {
            let path = cache.target(artifact, &file);
            if !path.is_file() {
                absent.push(file.path);
                continue;
            }
            let text = fs::read_text(&path, LIST_BYTES)?;
            for image in text.lines().filter_map(|line| line.split_whitespace().next()) {
                // Several lists name the same image.
                if listed.insert(image.to_owned()) && !folder.join(image).is_file() {
                    missing.push(Missing { image: image.to_owned(), list: file.path.clone(), path: path.clone() });
                }
            }
            checked.push(file.path);
        }
    }
    if checked.is_empty() {
        return Err(ArtifactError::NoLists { lists: source.lists.join(" ") });
    }
    if !absent.is_empty() {
        voice.say(&format!("not checked, since these lists are not in the cache: {}", absent.join(", ")));
    }
    let listed = listed.len();
    match missing.first() {
        None => {
            let link = cache.link(artifact);
            if !folder.starts_with(&link) {
                fs::link_folder(folder, &link)?;
            }
            let (folder, link) = (shown(folder), shown(&link));
            Ok(format!("{folder} has all {listed} images of {} lists; linked as {link}", checked.len()))
        }
        Some(Missing { image, list, .. }) => Err(ArtifactError::MissingImages {
            folder: folder.to_path_buf(),
            missing: missing.len(),
            listed,
            first: printable(image),
            list: list.clone(),
            remedy: remedy(folder, &missing),
        }),
    }
}

/// An image that a list names and that is not there.
struct Missing {
    image: String,
    list: String,
    /// Of the list.
    path: PathBuf,
}

/// What makes the missing images appear: in `val/` sorting what lies there without the folders of the classes, as
/// `ILSVRC2012_img_val.tar` unpacks; in `train/` unpacking the archives of the classes; or unpacking again.
fn remedy(folder: &Path, missing: &[Missing]) -> String {
    let name = |image: &str| image.rsplit('/').next().unwrap_or_default().to_owned();
    let is_flat = |image: &str| {
        let part = image.split('/').next().unwrap_or_default();
        folder.join(part).join(name(image)).is_file()
    };
    let flat: Vec<&Missing> = missing.iter().filter(|missing| is_flat(&missing.image)).collect();
    let class_archive = |missing: &Missing| {
        let class = missing.image.rsplit_once('/').map(|(class, _)| format!("{class}.tar"));
        class.is_some_and(|class| folder.join(class).is_file())
    };
    let mut steps = Vec::new();
    if let Some(Missing { image, path, .. }) = flat.first() {
        let part = image.split('/').next().unwrap_or_default();
        steps.push(format!(
            "{} of them lie in {part}/ itself, not in the folders of their classes: sort them with (cd '{}' && grep '^{part}/' \
             '{}' | cut -d' ' -f1 | while read -r image; do mkdir -p \"${{image%/*}}\" && mv -n \"{part}/${{image##*/}}\" \
             \"$image\"; done)",
            flat.len(),
            shown(folder),
            shown(&path.canonicalize().unwrap_or_else(|_| path.clone()))
        ));
    }
    if missing.iter().any(class_archive) {
        steps.push("train/ holds archives of classes: unpack each into a folder of its name".to_owned());
    }
    if steps.is_empty() {
        steps.push("unpack the archives there again".to_owned());
    }
    steps.join("; ")
}
