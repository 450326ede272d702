//! Images in torchvision's ImageFolder layout: one folder a class. In: that of a part, such as `train/`. Out: class names in
//! the order of their labels, and the files of each.

use std::path::Path;

use super::{Content, Dataset, DatasetError};
use crate::fs;
use crate::recipe::OwnData;
use crate::scores::LEAST_CLASSES;

/// What is decoded.
const ENDINGS: [&str; 3] = ["jpg", "jpeg", "png"];

/// The data set of the files that lists name, which are opened only when needed.
pub(super) fn load(own: &OwnData) -> Result<Dataset, DatasetError> {
    let classes = classes(&own.train)?;
    // As the path says, whatever links there are.
    let [root, of_test] = [&own.train, &own.test].map(|part| part.parent().unwrap_or(Path::new(".")));
    if !fs::path_between(root, of_test)?.as_os_str().is_empty() {
        return Err(DatasetError::Apart { train: own.train.clone(), test: own.test.clone() });
    }
    if !fs::is_folder(&own.test)? {
        return Err(DatasetError::NoTestFolder { folder: own.test.clone() });
    }
    Ok(Dataset::of_own(own, classes, Content::Folder(root.to_path_buf()), None))
}

/// The classes of the part `folder`: the names of its folders, sorted.
///
/// # Errors
/// It cannot be listed, holds fewer than [`LEAST_CLASSES`], or one whose name a list cannot hold.
pub fn classes(folder: &Path) -> Result<Vec<String>, DatasetError> {
    let mut classes = Vec::new();
    for path in fs::list_folder(folder)? {
        if fs::is_folder(&path)? && !is_hidden(&path) {
            classes.push(name_of(&path)?);
        }
    }
    // Bytewise, as Python sorts what is ASCII.
    classes.sort();
    match classes.len() {
        found if found < LEAST_CLASSES => Err(DatasetError::Classes { folder: folder.to_path_buf(), found }),
        _ => Ok(classes),
    }
}

/// The images of `class` in the part `folder`, sorted: their paths below the folder that the part lies in.
///
/// # Errors
/// The folder cannot be listed, or holds a file without the extension of a JPEG or PNG.
pub fn images(folder: &Path, class: &str) -> Result<Vec<String>, DatasetError> {
    let mut found = Vec::new();
    walk(&folder.join(class), &format!("{}/{class}", name_of(folder)?), &mut found)?;
    Ok(found)
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) -> Result<(), DatasetError> {
    for path in fs::list_folder(folder)? {
        if is_hidden(&path) {
            continue;
        }
        let below = format!("{prefix}/{}", name_of(&path)?);
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if fs::is_folder(&path)? {
            walk(&path, &below, found)?;
        } else if ENDINGS.contains(&&*ending) {
            found.push(below);
        } else {
            return Err(DatasetError::NoImage { path });
        }
    }
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// The last part of a path, as a list holds it.
fn name_of(path: &Path) -> Result<String, DatasetError> {
    let name = path.file_name().and_then(|name| name.to_str());
    let plain = name.filter(|name| !name.contains(|character: char| character.is_control() || character == '\\'));
    plain.map(str::to_owned).ok_or_else(|| DatasetError::Name { path: path.to_path_buf() })
}
