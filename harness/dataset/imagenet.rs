//! ImageNet: files of any size under `train/` and `val/`, named by the published lists and opened only when needed.

use std::path::Path;

use super::{Content, Dataset, DatasetError};
use crate::artifact;
use crate::recipe::{DatasetName, name_of};

/// What the data folder should hold, for messages.
pub(super) fn layout(name: DatasetName) -> String {
    let lists = if name == DatasetName::Imagenet100 { "split/imagenet-100" } else { "split/ImageNet_LT" };
    format!("train/ and val/ of ILSVRC 2012 (itself or in imagenet/; val/ sorted by class), and the lists of {lists}/")
}

/// `imagenet/` of the data folder, or the folder itself where it holds `train/` or `val/`, directly or as Kaggle's archive
/// does.
pub(super) fn load(name: DatasetName, folder: &Path, layout: String) -> Result<Dataset, DatasetError> {
    let root = match artifact::image_root(&folder.join("imagenet"))? {
        Some(root) => Some(root),
        None => artifact::image_root(folder)?,
    };
    let root =
        root.ok_or_else(|| DatasetError::NotFound { dataset: name_of(&name), folder: folder.to_path_buf(), layout })?;
    let classes = if name == DatasetName::Imagenet100 { 100 } else { 1000 };
    Ok(Dataset {
        name,
        classes: (0..classes).map(|class| class.to_string()).collect(),
        content: Content::Folder(root),
        sha256: None,
        official: true,
        own: None,
    })
}
