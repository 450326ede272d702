//! Lists of one's own. In: the labels of a data set, and how long-tailed its lists should be. Out: the lists that a suite
//! needs, in the published format: `D_i`, `D_b` and `S_b` of each split, and those of training, validation and test images.
//!
//! As in the published CIFAR lists, the images of a class are put in an order of their own for each split, and `D_i`, `D_b`
//! and `S_b` each take so many from its beginning: `S_b` lies inside both others.

use std::path::{Path, PathBuf};

use super::{ListName, relative_path};
use crate::dataset::{DatasetError, arrays, folders};
use crate::fs::{self, FsError, Staging};
use crate::native::NativeError;
use crate::npy;
use crate::random::{addressed_seed, randperm};
use crate::recipe::{DatasetName, PretrainSplit, hash_bytes};
use crate::scores::LEAST_CLASSES;
use crate::text::{printable, shown};

/// Lists could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error(
        "{} holds no data set: expected a folder with train/CLASS/*.jpg and test/ or val/, an .npz file with the arrays images \
         and labels, or a folder with images.npy and labels.npy",
        shown(data)
    )]
    NoData { data: PathBuf },
    #[error("{} has other classes than train/ ({found} and {expected}): both need the same folders", shown(folder))]
    OtherClasses { folder: PathBuf, found: String, expected: String },
    #[error("--ratio is {found}, expected at least 1: the most frequent class over the rarest")]
    Ratio { found: f64 },
    #[error(
        "{count} classes are too few: at least {LEAST_CLASSES} are needed, one for each of the groups many, medium and few"
    )]
    Classes { count: usize },
    #[error(
        "class '{class}' has no training image; add some, or remove the class (in arrays, number the labels without a gap)"
    )]
    Empty { class: String },
    #[error(
        "class '{class}' has {found} images, {needed} are needed ({per_class} for training, as --per-class says, and {validation} \
         for validation); lower --per-class or --validation"
    )]
    TooFew { class: String, found: usize, needed: usize, per_class: usize, validation: usize },
    #[error(
        "{per_class} images a class at a ratio of {ratio} leave the rarest class none; raise --per-class or lower --ratio"
    )]
    NoTail { per_class: usize, ratio: f64 },
    #[error("{} is there already, and lists are never overwritten; give --out the name of a new folder", shown(out))]
    Exists { out: PathBuf },
    #[error(transparent)]
    Data(#[from] DatasetError),
    #[error(transparent)]
    File(#[from] FsError),
    #[error(transparent)]
    Native(#[from] NativeError),
}

/// How the number of images falls from the most frequent class to the rarest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Decay {
    /// By the same factor from class to class, as in CIFAR-10-LT and CIFAR-100-LT
    Exp,
    /// As the quantiles of a Pareto distribution of power 6, which ImageNet-LT was drawn from
    Pareto,
}

/// Of ImageNet-LT (Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019).
const PARETO_POWER: f64 = 6.0;

impl Decay {
    /// Images of each of `classes` classes, the most frequent first, rounded down: from `most` to `most / ratio`.
    ///
    /// Exponential: `most * ratio^(-c / (C - 1))` for class c of C, the counts of the published CIFAR lists.
    /// Pareto: `least + (most - least) * (q(c) - q(C - 1)) / (q(0) - q(C - 1))` with `least = most / ratio` and
    /// `q(c) = ((c + 1/2) / C)^(-1/6)`, the quantiles of that distribution stretched to the two ends.
    pub fn counts(self, classes: usize, most: usize, ratio: f64) -> Vec<usize> {
        let (most, last) = (most as f64, classes.saturating_sub(1).max(1) as f64);
        let least = most / ratio;
        let quantile = |class: f64| ((class + 0.5) / (last + 1.0)).powf(-1.0 / PARETO_POWER);
        let count = |class: usize| {
            let class = class as f64;
            match self {
                Self::Exp => most / ratio.powf(class / last),
                Self::Pareto => {
                    let share = (quantile(class) - quantile(last)) / (quantile(0.0) - quantile(last));
                    least + (most - least) * share
                }
            }
        };
        // A whole number may come out a rounding error below itself.
        (0..classes).map(|class| (count(class) * (1.0 + 1e-12)).floor() as usize).collect()
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub decay: Decay,
    /// Images of the most frequent class over those of the rarest.
    pub ratio: f64,
    /// Images of the most frequent class of `D_i`.
    pub per_class: usize,
    /// Images of each class that are kept for validation; by default a tenth of the smallest class.
    pub validation: Option<usize>,
    /// How many splits.
    pub splits: usize,
    pub seed: u64,
}

/// The images that lists are made of.
#[derive(Debug)]
pub struct Source {
    /// Class names in the order of their labels.
    pub classes: Vec<String>,
    /// The training images of each class.
    train: Vec<Vec<usize>>,
    /// Of image files their paths, training images first.
    paths: Option<Vec<String>>,
    /// Of image files, the label of each.
    labels: Vec<usize>,
}

impl Source {
    /// Looks at the data in `data`.
    ///
    /// # Errors
    /// It holds no data set, or one that is not whole.
    pub fn open(data: &Path) -> Result<Self, MakeError> {
        if arrays::is_there(data)? {
            return Ok(Self::of_labels(&arrays::read(data)?.labels));
        }
        let train = data.join("train");
        let test = if fs::is_folder(&data.join("test"))? { data.join("test") } else { data.join("val") };
        if !fs::is_folder(&train)? || !fs::is_folder(&test)? {
            return Err(MakeError::NoData { data: data.to_path_buf() });
        }
        Self::of_folders(&train, test)
    }

    /// Images that are known by their positions alone.
    pub fn of_labels(labels: &[i64]) -> Self {
        let labels: Vec<usize> = labels.iter().map(|&label| label as usize).collect();
        let classes = labels.iter().max().map_or(0, |last| last + 1);
        let mut train = vec![Vec::new(); classes];
        labels.iter().enumerate().for_each(|(image, &label)| train[label].push(image));
        Self { classes: (0..classes).map(|class| class.to_string()).collect(), train, paths: None, labels }
    }

    fn of_folders(train: &Path, test: PathBuf) -> Result<Self, MakeError> {
        let classes = folders::classes(train)?;
        let of_test = folders::classes(&test)?;
        if of_test != classes {
            let [found, expected] = [&of_test, &classes].map(|classes| printable(&classes.join(", ")));
            return Err(MakeError::OtherClasses { folder: test, found, expected });
        }
        let (mut of_class, mut paths, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for folder in [train, &test] {
            for (label, class) in classes.iter().enumerate() {
                let images = folders::images(folder, class)?;
                if folder == train {
                    of_class.push((paths.len()..paths.len() + images.len()).collect());
                }
                labels.extend(images.iter().map(|_| label));
                paths.extend(images);
            }
        }
        Ok(Self { classes, train: of_class, paths: Some(paths), labels })
    }

    /// What names the lists.
    fn kind(&self) -> DatasetName {
        if self.paths.is_some() { DatasetName::Folders } else { DatasetName::Arrays }
    }

    /// Those of the test folder; arrays have a file of their own for them.
    fn test(&self) -> Vec<usize> {
        let count = self.paths.as_ref().map_or(0, Vec::len);
        (self.train.iter().map(Vec::len).sum()..count).collect()
    }

    /// The file of a list: lines `PATH LABEL`, or positions as int64.
    fn file(&self, images: &[usize]) -> Vec<u8> {
        match &self.paths {
            Some(paths) => {
                let line = |&image: &usize| format!("{} {}\n", paths[image], self.labels[image]);
                images.iter().map(line).collect::<String>().into_bytes()
            }
            None => npy::list_bytes(&images.iter().map(|&image| image as i64).collect::<Vec<_>>()),
        }
    }
}

/// A list that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeList {
    /// Name of its file.
    pub name: String,
    pub bytes: Vec<u8>,
    /// Images of each class.
    pub class_counts: Vec<usize>,
}

impl MadeList {
    /// sha256 of its file, as records name it.
    pub fn sha256(&self) -> String {
        hash_bytes(&self.bytes)
    }
}

/// `images` in an order of their own for `seed` and `address`.
fn shuffled(images: &[usize], seed: u64, address: &str) -> Result<Vec<usize>, NativeError> {
    let order = randperm(images.len(), addressed_seed(seed, address))?;
    Ok(order.into_iter().map(|place| images[place as usize]).collect())
}

/// All lists of `source`: the same for the same seed.
///
/// # Errors
/// The ratio is below 1, or a class has too few images.
pub fn make(source: &Source, wanted: &Wanted) -> Result<Vec<MadeList>, MakeError> {
    let Wanted { decay, ratio, per_class, splits, seed, .. } = *wanted;
    if !(ratio >= 1.0 && ratio.is_finite()) {
        return Err(MakeError::Ratio { found: ratio });
    }
    let classes = source.classes.len();
    if classes < LEAST_CLASSES {
        return Err(MakeError::Classes { count: classes });
    }
    let smallest = source.train.iter().map(Vec::len).min().unwrap_or(0);
    let validation = wanted.validation.unwrap_or((smallest / 10).max(1));
    if let Some((class, _)) = source.classes.iter().zip(&source.train).find(|(_, images)| images.is_empty()) {
        return Err(MakeError::Empty { class: printable(class) });
    }
    // A class may be the most frequent one in one split and the rarest in another.
    let needed = per_class.saturating_add(validation);
    if let Some((class, images)) = source.classes.iter().zip(&source.train).find(|(_, images)| images.len() < needed) {
        let (class, found) = (printable(class), images.len());
        return Err(MakeError::TooFew { class, found, needed, per_class, validation });
    }
    let counts = decay.counts(classes, per_class, ratio);
    let rarest = counts[classes - 1];
    if rarest == 0 {
        return Err(MakeError::NoTail { per_class, ratio });
    }
    let balanced = counts.iter().sum::<usize>() / classes;

    // Those for validation are the same in every split.
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for (class, images) in source.train.iter().enumerate() {
        let mut images = shuffled(images, seed, &format!("validation/class{class}"))?;
        held_out.extend(images.drain(..validation));
        train.push(images);
    }
    let mut made = Vec::new();
    let mut add = |name: ListName, images: &[usize]| -> Result<(), MakeError> {
        // The whole test file of arrays needs no list.
        let Some(name) = relative_path(source.kind(), name) else { return Ok(()) };
        let images = shuffled(images, seed, &name)?;
        let mut class_counts = vec![0; classes];
        images.iter().for_each(|&image| class_counts[source.labels[image]] += 1);
        made.push(MadeList { bytes: source.file(&images), name, class_counts });
        Ok(())
    };
    add(ListName::Train, &train.concat())?;
    add(ListName::Validation, &held_out)?;
    add(ListName::Test, &source.test())?;
    for split in 1..=splits {
        // The most frequent class first.
        let ranked = shuffled(&(0..classes).collect::<Vec<_>>(), seed, &format!("split{split}/classes"))?;
        let mut parts: [Vec<usize>; 3] = Default::default();
        for (rank, class) in ranked.into_iter().enumerate() {
            let images = shuffled(&train[class], seed, &format!("split{split}/class{class}"))?;
            for (part, count) in parts.iter_mut().zip([counts[rank], balanced, rarest]) {
                part.extend(&images[..count]);
            }
        }
        let [tail, even, few] = parts;
        add(ListName::Pretrain(PretrainSplit::D_i, split), &tail)?;
        add(ListName::Pretrain(PretrainSplit::D_b, split), &even)?;
        add(ListName::FewShot(split), &few)?;
    }
    Ok(made)
}

/// Writes all `lists` into the new folder `out`, or none of them.
///
/// # Errors
/// `out` is there, or cannot be written.
pub fn write(lists: &[MadeList], out: &Path) -> Result<(), MakeError> {
    if fs::exists(out)? {
        return Err(MakeError::Exists { out: out.to_path_buf() });
    }
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let staging = Staging::new(&out.with_file_name(format!(".{name}.sdclr-part")), out)?;
    for list in lists {
        let mut file = staging.file(Path::new(&list.name))?;
        file.write(&list.bytes)?;
        file.finish()?;
    }
    Ok(staging.commit()?)
}
