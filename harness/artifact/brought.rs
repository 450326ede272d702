//! What the user brings because nobody may hand it out: ImageNet. In: a folder with the published archives, or with the
//! unpacked images. Out: what was checked, against published hashes or published lists; images are then linked into the
//! cache, where other commands look for them.

use std::collections::HashSet;
use std::path::Path;

use super::cache::Cache;
use super::check;
use super::registry::{Artifact, Brought, Registry, RemoteFile};
use super::{ArtifactError, Voice, human};
use crate::fs;

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
    if ["train", "val"].iter().any(|part| from.join(part).is_dir()) {
        return check_tree(artifact, source, from, registry, cache, voice);
    }
    Err(ArtifactError::NotThere { folder: from.to_path_buf(), files: names(source) })
}

fn check_archive(file: &RemoteFile, path: &Path, voice: &Voice) -> Result<(), ArtifactError> {
    let found = fs::length(path)?;
    let wrong = match file.size {
        // No need to read hundreds of gigabytes that cannot be right.
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
    let mut missing: HashSet<String> = HashSet::new();
    let (mut listed, mut first) = (0, None);
    for artifact in registry.select(&source.lists, None)? {
        for file in artifact.files() {
            let path = cache.target(artifact, &file);
            if !path.is_file() {
                absent.push(file.path);
                continue;
            }
            let text = fs::read_to_string(&path)?;
            for image in text.lines().filter_map(|line| line.split_whitespace().next()) {
                listed += 1;
                if !folder.join(image).is_file() {
                    first.get_or_insert_with(|| (image.to_owned(), file.path.clone()));
                    missing.insert(image.to_owned());
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
    match first {
        None => {
            let link = cache.link(artifact);
            if !folder.starts_with(&link) {
                fs::link_folder(folder, &link)?;
            }
            let folder = folder.display();
            Ok(format!("{folder} has all {listed} images of {} lists; linked as {}", checked.len(), link.display()))
        }
        Some((first, list)) => {
            let (folder, missing) = (folder.to_path_buf(), missing.len());
            Err(ArtifactError::MissingImages { folder, missing, listed, first, list })
        }
    }
}
