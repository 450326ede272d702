//! Which archive is this? In: several artefacts, and a file that the user brought for one of them. Out: which.

use std::path::Path;

use super::hash::{Algorithm, hash_file};
use super::pins::Pins;
use super::registry::{Archive, Artifact, Source};
use super::{ArtifactError, unpack};
use crate::progress::Progress;

/// Which of `chosen` the file `from` is: by a known hash, else by what is inside.
pub(super) fn identify<'a>(
    chosen: &[&'a Artifact],
    from: &Path,
    pins: &Pins,
    progress: &Progress,
) -> Result<&'a Artifact, ArtifactError> {
    let archives: Vec<(&'a Artifact, &Archive)> = chosen
        .iter()
        .filter_map(|artifact| match &artifact.source {
            Source::Archive(archive) => Some((*artifact, archive)),
            _ => None,
        })
        .collect();
    let sha256 = hash_file(from, Algorithm::Sha256)?;
    let by_hash = archives
        .iter()
        .find(|(artifact, archive)| pins.apply(&artifact.name, &archive.file).sha256.as_deref() == Some(&sha256));
    let names = names_inside(from);
    let mut by_mark = archives.iter().filter(|(_, archive)| is_marked(archive, &names));
    let found = match (by_hash, by_mark.next(), by_mark.next()) {
        (Some((artifact, _)), ..) | (None, Some((artifact, _)), None) => artifact,
        (None, one, _) => {
            let candidates = chosen.iter().map(|artifact| &*artifact.name).collect::<Vec<_>>().join(", ");
            let reason = match one {
                Some(_) => "what it holds fits several".to_owned(),
                None => format!("its sha256 is {sha256}, and nothing in it tells it from others"),
            };
            return Err(ArtifactError::Unidentified { path: from.to_path_buf(), candidates, reason });
        }
    };
    progress.say(&format!("{}: {} is taken for this archive", found.name, from.display()));
    Ok(found)
}

fn is_marked(archive: &Archive, names: &[String]) -> bool {
    archive.marks.iter().any(|mark| names.iter().any(|name| name.ends_with(mark)))
}

/// Whether `from`, of which no hash is known, is a zip file that holds nothing by which `archive` is known.
pub(super) fn is_another(archive: &Archive, from: &Path) -> bool {
    let names = names_inside(from);
    !archive.marks.is_empty() && !names.is_empty() && !is_marked(archive, &names)
}

/// Names of the entries of a zip file; none where it is no zip file, or one that would not be unpacked.
fn names_inside(path: &Path) -> Vec<String> {
    unpack::names_in_zip(path).unwrap_or_default()
}
