//! ImageNet: files of any size under `train/` and `val/`, named by the published lists and opened only when needed.

use std::path::{Path, PathBuf};

use super::picture::{Picture, decode};
use super::{Content, Dataset, DatasetError};
use crate::artifact;
use crate::fs;
use crate::recipe::{DatasetName, name_of};

/// The images of one list, on disk.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    /// The folder that holds `train/` and `val/`.
    root: PathBuf,
    /// The list that names them, for messages.
    list: String,
    /// One a line of the list, relative to the folder.
    paths: Vec<Box<str>>,
}

impl ImageFiles {
    /// The files in `root` that `list` names by `paths`.
    pub fn new(root: &Path, list: &str, paths: Vec<Box<str>>) -> Self {
        Self { root: root.to_path_buf(), list: list.to_owned(), paths }
    }

    /// Reads and decodes the image at `index` of the list.
    ///
    /// # Errors
    /// The file is missing or no whole image; the error names list, line and path.
    pub fn read(&self, index: i64) -> Result<Picture, DatasetError> {
        let path = self.root.join(&*self.paths[index as usize]);
        let place = || (self.list.clone(), index as usize + 1);
        let file = fs::read(&path).map_err(|source| {
            let (list, line) = place();
            let name = path.file_name().unwrap_or_default();
            let part = self.paths[index as usize].split('/').next().unwrap_or_default();
            match Some(self.root.join(part).join(name)).filter(|flat| flat.is_file()) {
                Some(found) => DatasetError::Unsorted { list, line, found, expected: path.clone() },
                None => DatasetError::ImageFile { list, line, source },
            }
        })?;
        decode(&file).map_err(|reason| {
            let (list, line) = place();
            DatasetError::Image { list, line, path, reason }
        })
    }

    /// What tells the image from every other, whatever list names it: the first bytes of its path's sha256.
    pub fn address(&self, index: i64) -> u64 {
        use sha2::{Digest, Sha256};
        let hash = Sha256::digest(self.paths[index as usize].as_bytes());
        hash.iter().take(8).fold(0, |address, byte| address << 8 | u64::from(*byte))
    }
}

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
    })
}
