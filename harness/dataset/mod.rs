//! Images and labels. In: a folder in the layout that users have (or nothing, for the embedded digits). Out: uint8 images
//! `[N, 3, H, W]` in the official order, labels, class names, and a hash of the decoded content that is the same for
//! every packaging of the same data. ImageNet's images stay on disk: lists name them, and they are decoded when needed.

pub mod arrays;
mod cache;
mod cifar;
mod digits;
mod files;
pub mod folders;
mod imagenet;
mod packed;
mod picture;
pub mod speed;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tch::{Device, Tensor};

use crate::fs::{self, FsError};
use crate::native::NativeError;
use crate::recipe::{DatasetName, OwnData, Recipe, name_of};
use crate::scores::LEAST_CLASSES;
use crate::text::shown;
pub use cache::ImageCache;
pub use files::ImageFiles;
pub use packed::{Packed, Place};
pub use picture::{Picture, decode};

/// A data set could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error(
        "{dataset} is not here: run sdclr fetch {dataset} {dataset}-splits, or name its folder with --data DIR (or SDCLR_DATA); DIR holds {layout}"
    )]
    NoFolder { dataset: String, layout: String },
    #[error("there is no folder {}; name that of the data with --data DIR (or SDCLR_DATA)", shown(folder))]
    NoSuchFolder { folder: PathBuf },
    #[error("no {dataset} in {}: expected {layout}; sdclr fetch {dataset} brings it, or says how to", shown(folder))]
    NotFound { dataset: String, folder: PathBuf, layout: String },
    #[error(transparent)]
    File(#[from] FsError),
    #[error(
        "{} has {found} bytes, expected {expected}: it is cut short or not the official file; download it again",
        shown(path)
    )]
    Size { path: PathBuf, found: usize, expected: usize },
    #[error("{}: image {index} has label {found}, expected 0 to {last}; this is not the official file", shown(path))]
    Label { path: PathBuf, index: usize, found: u64, last: usize },
    #[error("{} is not a batch of the python version: {reason}; download it again", shown(path))]
    Batch { path: PathBuf, reason: String },
    #[error("{list}, line {line}: {source}; put the images there whole, each in the folder of its class")]
    ImageFile { list: String, line: usize, source: FsError },
    #[error(
        "{list}, line {line}: the image lies at {}, expected {}: the folder is not sorted by class; sort it \
         (for ImageNet, sdclr fetch imagenet --from DIR says how)",
        shown(found),
        shown(expected)
    )]
    Unsorted { list: String, line: usize, found: PathBuf, expected: PathBuf },
    #[error(
        "{list}, line {line}: {} cannot be decoded: {reason}; expected a whole JPEG, or a PNG of at most 8 bits a channel: restore or \
         convert the file",
        shown(path)
    )]
    Image { list: String, line: usize, path: PathBuf, reason: String },
    #[error(
        "your own images must be named in the suite's file: dataset = {{ kind = ..., train = ..., test = ..., lists = ... }}"
    )]
    NotNamed,
    #[error(
        "{} is not a part of a data set: {reason}; expected the arrays images (uint8 [N, S, S, 3]) and labels (int64 or uint8 [N])",
        shown(path)
    )]
    Arrays { path: PathBuf, reason: String },
    #[error(
        "{} and {} lie in two folders; the lists name files by their paths below one folder that holds both",
        shown(train),
        shown(test)
    )]
    Apart { train: PathBuf, test: PathBuf },
    #[error("there is no folder {}; set test in the suite's file to the folder of the test images", shown(folder))]
    NoTestFolder { folder: PathBuf },
    #[error(
        "{} holds {found} folders of classes, as torchvision's ImageFolder reads them; at least {LEAST_CLASSES} are needed, one for \
         each of the groups many, medium and few",
        shown(folder)
    )]
    Classes { folder: PathBuf, found: usize },
    #[error(
        "{} does not have an image extension; class folders may contain only .jpg, .jpeg and .png files",
        shown(path)
    )]
    NoImage { path: PathBuf },
    #[error(
        "{} has a name that a list cannot hold; rename it without control characters and backslashes, in UTF-8",
        shown(path)
    )]
    Name { path: PathBuf },
    #[error(
        "{what} needs images of one size, such as those of CIFAR or arrays of your own; these are files of any size"
    )]
    NotResident { what: &'static str },
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error("libtorch: {}", crate::native::said(.0))]
    Torch(#[from] tch::TchError),
}

/// Images of one size and their labels, in the official order.
#[derive(Debug)]
pub struct ImageSet {
    /// On the device: uint8 `[N, 3, H, W]`.
    pub images: Tensor,
    /// One per image, counted from 0.
    pub labels: Vec<i64>,
}

/// What the lists of a data set refer to.
#[derive(Debug)]
pub enum Content {
    /// Positions in two sets, read whole (for the digits the same images twice).
    Resident { train: ImageSet, test: ImageSet },
    /// Files of any size in this folder, which holds `train/` and `val/`: the lists name files and labels.
    Folder(PathBuf),
}

/// A data set as published.
#[derive(Debug)]
pub struct Dataset {
    pub name: DatasetName,
    pub classes: Vec<String>,
    pub content: Content,
    /// sha256 over images and labels of both parts, decoded, in official order. ImageNet, which is never read whole, has
    /// none: the lists say which images a job reads, and their hashes stand for it.
    pub sha256: Option<String>,
    /// Whether the content is that of the official download; files of ImageNet are taken to be until they are read.
    /// Nothing official is there for one's own images to differ from.
    pub official: bool,
    /// Where they and their lists lie, if they are one's own.
    pub own: Option<OwnData>,
}

/// Decoded bytes of one part: `N * 3 * H * W` pixels and `N` labels.
struct Part {
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl Part {
    fn into_images(self, side: i64, device: Device) -> Result<ImageSet, DatasetError> {
        let images = Tensor::f_from_slice(&self.pixels)?.f_view([-1, 3, side, side])?.f_to_device(device)?;
        Ok(ImageSet { images, labels: self.labels.into_iter().map(i64::from).collect() })
    }
}

fn content_hash(parts: [&Part; 2]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(&part.pixels);
        hash.update(&part.labels);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Dataset {
    /// The training images.
    ///
    /// # Errors
    /// They are files; `what` says what cannot work on those.
    pub fn train(&self, what: &'static str) -> Result<&ImageSet, DatasetError> {
        match &self.content {
            Content::Resident { train, .. } => Ok(train),
            Content::Folder(_) => Err(DatasetError::NotResident { what }),
        }
    }

    /// Loads the data of `recipe`: its own, or what it names from `data`.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    pub fn of_recipe(recipe: &Recipe, data: Option<&Path>, device: Device) -> Result<Self, DatasetError> {
        match &recipe.own_data {
            Some(own) if own.kind == DatasetName::Folders => folders::load(own),
            Some(own) => arrays::load(own, device),
            None => Self::load(recipe.dataset, data, device),
        }
    }

    /// A data set of one's own.
    fn of_own(own: &OwnData, classes: Vec<String>, content: Content, sha256: Option<String>) -> Self {
        Self { name: own.kind, classes, content, sha256, official: true, own: Some(own.clone()) }
    }

    /// Loads `name` from `data` onto `device`.
    ///
    /// # Errors
    /// A file is missing, of the wrong size, or holds labels that the data set does not have.
    pub fn load(name: DatasetName, data: Option<&Path>, device: Device) -> Result<Self, DatasetError> {
        let layout = match name {
            DatasetName::Digits => return digits::load(device),
            DatasetName::Cifar10 | DatasetName::Cifar100 => cifar::layout(name),
            DatasetName::Imagenet100 | DatasetName::Imagenet => imagenet::layout(name),
            DatasetName::Folders | DatasetName::Arrays => return Err(DatasetError::NotNamed),
        };
        let folder = data.ok_or_else(|| DatasetError::NoFolder { dataset: name_of(&name), layout: layout.clone() })?;
        if !fs::is_open_folder(folder)? {
            return Err(DatasetError::NoSuchFolder { folder: folder.to_path_buf() });
        }
        match name {
            DatasetName::Imagenet100 | DatasetName::Imagenet => imagenet::load(name, folder, layout),
            _ => cifar::load(name, folder, layout, device),
        }
    }
}
