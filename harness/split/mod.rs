//! Which images: the published lists of positions in the official training order, and those of ImageNet, which name files
//! and labels. In: a list's file and a data set. Out: a [`Subset`] in the file's order, every entry checked.

pub mod make;
mod text;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::Tensor;

use crate::artifact::registry::Registry;
use crate::artifact::{ArtifactError, check};
use crate::dataset::{Content, Dataset, DatasetError, ImageCache, ImageFiles, ImageSet};
use crate::fs::{self, FsError};
use crate::npy::{self, FormatError};
use crate::recipe::{DatasetName, OwnData, PretrainSplit, hash_bytes, name_of};
use crate::text::shown;

/// A list could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    #[error(
        "the lists of {dataset} are not here: run sdclr fetch {dataset}-splits, or name the folder that holds split/ with --data DIR (or SDCLR_DATA)"
    )]
    NoFolder { dataset: String },
    #[error("{dataset} has splits 1 to {last}, not {found}")]
    Number { dataset: String, found: usize, last: usize },
    #[error(
        "{source}; the published lists are expected under split/ of the data folder, and sdclr fetch splits brings them"
    )]
    File { source: FsError },
    #[error(
        "{source}; a suite with your own data needs the lists that sdclr split make writes, in the folder that its key lists names"
    )]
    OwnFile { source: FsError },
    #[error("{list} is not a .npy list of int64: {reason}; download or make it again")]
    Malformed { list: String, reason: FormatError },
    #[error("{list} has shape {found:?}, expected one dimension; download or make it again")]
    Shape { list: String, found: Vec<usize> },
    #[error(
        "{list}: entry {entry} is {found}, outside the {images} images of {dataset}; is the list of this data set?"
    )]
    OutOfRange { list: String, entry: usize, found: i64, images: usize, dataset: String },
    #[error("{list}: entry {entry} repeats image {found}; a list names every image once: download or make it again")]
    Repeated { list: String, entry: usize, found: i64 },
    #[error("{list}, line {line}: {found} {reason}; download or make the list again")]
    Line { list: String, line: usize, found: String, reason: String },
    #[error("{list} is empty")]
    Empty { list: String },
    #[error("{first} and {second} are both there; keep the one that is meant")]
    Both { first: String, second: String },
    #[error(
        "{list}, line {line}: {path:?} lies outside of {}, which the suite's file names; name the folder of these images there, or \
         make the lists again",
        shown(part)
    )]
    Outside { list: String, line: usize, path: String, part: PathBuf },
    #[error(
        "{list} names test images of {found} classes, the data have {expected}: a class was added after the lists were made, or \
         has no test image; make the lists again (sdclr split make)"
    )]
    TestClasses { list: String, found: usize, expected: usize },
    #[error(transparent)]
    Registry(#[from] ArtifactError),
}

/// One list of one data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListName {
    /// `D_i` or `D_b` of a split.
    Pretrain(PretrainSplit, usize),
    /// `S_b` of a split.
    FewShot(usize),
    /// Images of the full-shot probe.
    Train,
    Validation,
    /// All images of the test file, or the embedded test list of the digits.
    Test,
}

impl ListName {
    /// Those of a data set with so many splits.
    pub fn all(splits: usize) -> impl Iterator<Item = Self> {
        let of_split = |split| {
            let kinds = [PretrainSplit::D_i, PretrainSplit::D_b].map(|kind| Self::Pretrain(kind, split));
            kinds.into_iter().chain([Self::FewShot(split)])
        };
        (1..=splits).flat_map(of_split).chain([Self::Train, Self::Validation, Self::Test])
    }
}

/// Where the images of a list are.
#[derive(Debug)]
pub enum Images {
    /// On the device: the whole set that the list picks from, uint8 `[N, 3, H, W]`.
    Resident(Tensor),
    /// Files of any size, decoded when needed: one an entry of the whole list.
    Files(ImageFiles),
}

/// The images of one list, in the published order, and all that is needed to read them.
#[derive(Debug)]
pub struct Subset {
    /// Published relative path, e.g. `cifar10_imbSub_with_subsets/split1_D_i.npy`.
    pub name: String,
    /// sha256 of the file.
    pub sha256: String,
    /// Whether it is the published list, where one is published under its name.
    pub official: bool,
    pub images: Images,
    /// Of each entry: its place among `images`.
    pub rows: Vec<i64>,
    /// Of each entry, counted from 0.
    pub labels: Vec<i64>,
    /// Of each entry, what its random numbers are drawn by, the same in every list: its position in the official order, or a
    /// hash of its path.
    pub addresses: Vec<u64>,
}

macro_rules! digits_lists {
    ($($name:literal),* $(,)?) => {
        &[$((
            $name,
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/digits/split/", $name)).as_slice(),
        )),*]
    };
}
const DIGITS_LISTS: &[(&str, &[u8])] = digits_lists!(
    "trainIdxList.npy",
    "valIdxList.npy",
    "testIdxList.npy",
    "split1_D_i.npy",
    "split1_D_b.npy",
    "split1_S_b.npy",
    "split2_D_i.npy",
    "split2_D_b.npy",
    "split2_S_b.npy",
    "split3_D_i.npy",
    "split3_D_b.npy",
    "split3_S_b.npy",
    "split4_D_i.npy",
    "split4_D_b.npy",
    "split4_S_b.npy",
    "split5_D_i.npy",
    "split5_D_b.npy",
    "split5_S_b.npy",
);

/// How many splits of `dataset` are published.
pub fn published_splits(dataset: DatasetName) -> usize {
    match dataset {
        DatasetName::Digits | DatasetName::Cifar10 | DatasetName::Cifar100 => 5,
        DatasetName::Imagenet100 | DatasetName::Imagenet => 1,
        // As many as one has made.
        DatasetName::Folders | DatasetName::Arrays => usize::MAX,
    }
}

/// The published relative path of a list; `None` where the list is the whole test file.
fn relative_path(dataset: DatasetName, list: ListName) -> Option<String> {
    let (subsets, whole, prefix) = match dataset {
        DatasetName::Digits | DatasetName::Arrays => ("", "", ""),
        DatasetName::Cifar10 => ("cifar10_imbSub_with_subsets/", "cifar10/", ""),
        DatasetName::Cifar100 => ("cifar100_imbSub_with_subsets/", "cifar100/", "cifar100_"),
        DatasetName::Imagenet100 | DatasetName::Imagenet => return Some(imagenet_path(dataset, list)),
        DatasetName::Folders => return Some(folders_path(list)),
    };
    Some(match list {
        ListName::Pretrain(kind, split) => format!("{subsets}{prefix}split{split}_{}.npy", name_of(&kind)),
        ListName::FewShot(split) => format!("{subsets}{prefix}split{split}_S_b.npy"),
        ListName::Train => format!("{whole}{prefix}trainIdxList.npy"),
        ListName::Validation => format!("{whole}{prefix}valIdxList.npy"),
        ListName::Test if dataset == DatasetName::Digits => "testIdxList.npy".to_owned(),
        ListName::Test => return None,
    })
}

/// What a list is called: its published relative path, or `test` where it is the whole test file.
pub fn name(dataset: DatasetName, list: ListName) -> String {
    relative_path(dataset, list).unwrap_or_else(|| "test".to_owned())
}

/// The name of a list of one's own image files, after those of CIFAR and ImageNet.
fn folders_path(list: ListName) -> String {
    match list {
        ListName::Pretrain(kind, split) => format!("split{split}_{}.txt", name_of(&kind)),
        ListName::FewShot(split) => format!("split{split}_S_b.txt"),
        ListName::Train => "train.txt".to_owned(),
        ListName::Validation => "val.txt".to_owned(),
        ListName::Test => "test.txt".to_owned(),
    }
}

/// The published relative path of a list of ImageNet.
fn imagenet_path(dataset: DatasetName, list: ListName) -> String {
    // Folder, what follows `imageNet_` and `ImageNet_`, what names the long tail's own lists, and the two held out.
    let (folder, number, tail, held_out) = match dataset {
        DatasetName::Imagenet100 => ("imagenet-100", "100_", "", "100"),
        _ => ("ImageNet_LT", "", "exp_", "LT"),
    };
    let file = match list {
        ListName::Pretrain(PretrainSplit::D_i, _) => format!("imageNet_{number}LT_{tail}train.txt"),
        ListName::Pretrain(PretrainSplit::D_b, _) => format!("imageNet_{number}BL_{tail}train.txt"),
        ListName::FewShot(_) => format!("imageNet_{number}sub_balance_train_0.01.txt"),
        ListName::Train => format!("ImageNet_{number}train.txt"),
        ListName::Validation => format!("ImageNet_{held_out}_val.txt"),
        ListName::Test => format!("ImageNet_{held_out}_test.txt"),
    };
    format!("{folder}/{file}")
}

/// Reads `list` of `dataset` from `data`/split, or from the folder of one's own lists, and checks every entry.
///
/// # Errors
/// The file is missing or not a list, an entry is malformed, out of range or repeated, or the split does not exist.
pub fn read(dataset: &Dataset, data: Option<&Path>, list: ListName) -> Result<Subset, SplitError> {
    if let ListName::Pretrain(_, split) | ListName::FewShot(split) = list {
        let last = published_splits(dataset.name);
        if !(1..=last).contains(&split) {
            return Err(SplitError::Number { dataset: name_of(&dataset.name), found: split, last });
        }
    }
    let file = |name: &str| -> Result<(Vec<u8>, bool), SplitError> {
        if let Some(OwnData { lists, .. }) = &dataset.own {
            let bytes = fs::read(&lists.join(name)).map_err(|source| SplitError::OwnFile { source })?;
            return Ok((bytes, true));
        }
        let folder = data.ok_or_else(|| SplitError::NoFolder { dataset: name_of(&dataset.name) })?;
        let bytes = fs::read(&folder.join("split").join(name)).map_err(|source| SplitError::File { source })?;
        let registry = Registry::load(None)?;
        let official = registry.file(&format!("split/{name}")).is_some_and(|known| check::is(&bytes, known));
        Ok((bytes, official))
    };
    let set = match &dataset.content {
        Content::Folder(root) => {
            let name = name(dataset.name, list);
            let (bytes, official) = file(&name)?;
            let subset = Subset { official, ..text::parse(name, &bytes, root, dataset.classes.len())? };
            return match (&dataset.own, list) {
                // Those for validation may lie in a folder of their own.
                (None, _) | (_, ListName::Validation) => Ok(subset),
                (Some(own), ListName::Test) => inside(subset, &own.test),
                (Some(own), _) => inside(subset, &own.train),
            };
        }
        Content::Resident { test, .. } if list == ListName::Test => test,
        Content::Resident { train, .. } => train,
    };
    let Some(mut name) = relative_path(dataset.name, list) else {
        let sha256 = dataset.sha256.clone().unwrap_or_default();
        return Ok(Subset::of("test".to_owned(), sha256, set, (0..set.labels.len() as i64).collect()));
    };
    if let Some(OwnData { lists, .. }) = &dataset.own {
        name = of_either_form(lists, name)?;
    }
    let embedded = DIGITS_LISTS.iter().find(|(known, _)| dataset.name == DatasetName::Digits && *known == name);
    let (bytes, official) = match embedded {
        Some((_, bytes)) => (bytes.to_vec(), true),
        None => file(&name)?,
    };
    let entries = parse(&name, &bytes, set.labels.len(), &name_of(&dataset.name))?;
    Ok(Subset { official, ..Subset::of(name, hash_bytes(&bytes), set, entries) })
}

/// The same list, all of whose files lie in `part`, the folder of the training or of the test images.
fn inside(subset: Subset, part: &Path) -> Result<Subset, SplitError> {
    let Images::Files(files) = &subset.images else { return Ok(subset) };
    match files.first_outside(part) {
        Some((line, path)) => Err(SplitError::Outside { list: subset.name, line, path, part: part.to_path_buf() }),
        None => Ok(subset),
    }
}

/// A list of image files, lines `PATH LABEL`, whose paths are relative to its folder.
///
/// # Errors
/// As [`read`].
pub fn read_files(list: &Path) -> Result<Subset, SplitError> {
    let bytes = fs::read(list).map_err(|source| SplitError::OwnFile { source })?;
    let root = list.parent().unwrap_or(Path::new(""));
    text::parse(list.display().to_string(), &bytes, root, usize::MAX)
}

/// The name of one's own list of positions: that ending in `.npy`, or the same in `.txt` where that is the one in `folder`.
fn of_either_form(folder: &Path, name: String) -> Result<String, SplitError> {
    let Some(text) = name.strip_suffix(".npy").map(|stem| format!("{stem}.txt")) else { return Ok(name) };
    let there = |name: &str| fs::exists(&folder.join(name)).map_err(|source| SplitError::OwnFile { source });
    match (there(&name)?, there(&text)?) {
        (true, true) => Err(SplitError::Both { first: shown(&folder.join(name)), second: text }),
        (false, true) => Ok(text),
        (_, false) => Ok(name),
    }
}

/// The entries of a list from the bytes of its file, `.npy` or one a line in `.txt`, checked against `images`.
fn parse(name: &str, bytes: &[u8], images: usize, dataset: &str) -> Result<Vec<i64>, SplitError> {
    let list_name = || name.to_owned();
    let list = match name.ends_with(".txt") {
        true => text::positions(name, bytes)?,
        false => {
            let malformed = |reason| SplitError::Malformed { list: list_name(), reason };
            let npy::Array { shape, values } = npy::parse::<i64>(bytes).map_err(malformed)?;
            if shape.len() != 1 {
                return Err(SplitError::Shape { list: list_name(), found: shape });
            }
            values
        }
    };
    if list.is_empty() {
        return Err(SplitError::Empty { list: list_name() });
    }
    let mut seen = HashSet::new();
    for (entry, &found) in list.iter().enumerate() {
        if !usize::try_from(found).is_ok_and(|index| index < images) {
            return Err(SplitError::OutOfRange {
                list: list_name(),
                entry,
                found,
                images,
                dataset: dataset.to_owned(),
            });
        }
        if !seen.insert(found) {
            return Err(SplitError::Repeated { list: list_name(), entry, found });
        }
    }
    Ok(list)
}

impl Subset {
    /// The images of `set` at `entries`, positions in its order that are there.
    pub fn of(name: String, sha256: String, set: &ImageSet, entries: Vec<i64>) -> Self {
        let labels = entries.iter().map(|&entry| set.labels[entry as usize]).collect();
        let addresses = entries.iter().map(|&entry| entry as u64).collect();
        let images = Images::Resident(set.images.shallow_clone());
        Self { name, sha256, official: true, images, rows: entries, labels, addresses }
    }

    /// Entries of the list.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// No published list is.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The list's first `limit` entries.
    pub fn limited(mut self, limit: Option<usize>) -> Self {
        let limit = limit.unwrap_or(usize::MAX);
        self.rows.truncate(limit);
        self.labels.truncate(limit);
        self.addresses.truncate(limit);
        self
    }

    /// The same list; where its images are files, they are kept in `cache` once they are decoded.
    pub fn cached(mut self, cache: Option<&Arc<ImageCache>>) -> Self {
        if let (Images::Files(files), Some(cache)) = (&mut self.images, cache) {
            *files = files.clone().cached(cache.clone());
        }
        self
    }

    /// The errors of the files at `rows` that cannot be read; images on the device have none.
    ///
    /// # Errors
    /// A thread panicked.
    pub fn damaged(&self, rows: &[i64]) -> Result<Vec<DatasetError>, DatasetError> {
        match &self.images {
            Images::Resident(_) => Ok(Vec::new()),
            Images::Files(files) => files.damaged(rows),
        }
    }

    /// Entries of each class.
    pub fn class_counts(&self, classes: usize) -> Vec<u64> {
        let mut counts = vec![0; classes];
        for &label in &self.labels {
            counts[label as usize] += 1;
        }
        counts
    }
}
