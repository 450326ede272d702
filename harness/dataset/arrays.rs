//! Images and labels as NumPy arrays, as CIFAR is often passed on. In: an `.npz` file with `images` and `labels`, or a
//! folder with `images.npy` and `labels.npy`. Out: both, checked against each other.

use std::io::{Cursor, Read};
use std::path::Path;

use sha2::{Digest, Sha256};
use tch::{Device, Tensor};
use zip::ZipArchive;

use super::{Content, Dataset, DatasetError, ImageSet};
use crate::fs;
use crate::npy::{self, Array, FormatError};
use crate::recipe::OwnData;
use crate::scores::LEAST_CLASSES;
use crate::text::{hex, printable};
use crate::zip_directory;

/// Larger data sets are better kept as files.
const FILE_BYTES: u64 = 64 << 30;
/// NumPy writes one entry an array; more than this is no data set.
const MOST_ENTRIES: u64 = 1000;

/// One part, training or test.
#[derive(Debug)]
pub struct Arrays {
    /// `[N, side, side, 3]`, red, green, blue of each pixel.
    pixels: Vec<u8>,
    side: usize,
    /// One per image, none negative.
    pub labels: Vec<i64>,
}

/// Whether `path` looks like what [`read`] reads.
///
/// # Errors
/// A folder on the way may not be entered.
pub fn is_there(path: &Path) -> Result<bool, DatasetError> {
    let archive = path.extension().is_some_and(|ending| ending == "npz") && fs::is_file(path)?;
    Ok(archive || fs::is_file(&path.join("labels.npy"))?)
}

/// Reads the arrays at `path`.
///
/// # Errors
/// A file or array is missing, or an array has another type or shape than the other one requires.
pub fn read(path: &Path) -> Result<Arrays, DatasetError> {
    let [images, labels] = match fs::is_folder(path)? {
        true => [member(&path.join("images.npy"))?, member(&path.join("labels.npy"))?],
        false => from_archive(path)?,
    };
    arrays(&images, &labels).map_err(|reason| refused(path, reason))
}

fn refused(path: &Path, reason: String) -> DatasetError {
    DatasetError::Arrays { path: path.to_path_buf(), reason }
}

fn member(path: &Path) -> Result<Vec<u8>, DatasetError> {
    Ok(fs::read_at_most(path, FILE_BYTES)?)
}

/// The arrays `images` and `labels` of an `.npz` file, which is a zip of `.npy` files.
fn from_archive(path: &Path) -> Result<[Vec<u8>; 2], DatasetError> {
    let bytes = fs::read_at_most(path, FILE_BYTES)?;
    let length = bytes.len() as u64;
    let mut reader = Cursor::new(bytes);
    let refuse = |reason: &str| refused(path, format!("it is not a whole zip archive ({})", printable(reason)));
    let end = zip_directory::End::read(&mut reader, length).map_err(|error| match error {
        zip_directory::Error::Io(error) => refuse(&error.to_string()),
        zip_directory::Error::Missing(what) => refuse(what),
    })?;
    // Before the directory takes memory.
    if end.bytes > MOST_ENTRIES * zip_directory::ENTRY_BYTES {
        return Err(refuse("its directory is too large"));
    }
    let mut archive = ZipArchive::new(reader).map_err(|error| refuse(&error.to_string()))?;
    let mut array = |name: &str| -> Result<Vec<u8>, DatasetError> {
        let lacks = |_| refused(path, format!("it lacks the array '{}'", name.trim_end_matches(".npy")));
        let entry = archive.by_name(name).map_err(lacks)?;
        let mut bytes = Vec::new();
        entry.take(FILE_BYTES).read_to_end(&mut bytes).map_err(|error| refuse(&error.to_string()))?;
        Ok(bytes)
    };
    Ok([array("images.npy")?, array("labels.npy")?])
}

/// Both arrays, or what is wrong with them.
fn arrays(images: &[u8], labels: &[u8]) -> Result<Arrays, String> {
    let images = npy::parse::<u8>(images).map_err(|reason| format!("images: {reason}"))?;
    let side = match images.shape[..] {
        [_, height, width, 3] if height == width && height > 0 => height,
        _ => return Err(format!("images has shape {}", printable(&format!("{:?}", images.shape)))),
    };
    let labels = match npy::parse::<i64>(labels) {
        Err(FormatError::Type { .. }) => npy::parse::<u8>(labels)
            .map(|Array { shape, values }| Array { shape, values: values.into_iter().map(i64::from).collect() }),
        read => read,
    };
    let labels = labels.map_err(|reason| match reason {
        FormatError::Type { found, .. } => format!("labels has elements of type '{found}'"),
        reason => format!("labels: {reason}"),
    })?;
    // Keras keeps labels as a column.
    if !matches!(labels.shape[..], [count] | [count, 1] if count == images.shape[0]) {
        let found = printable(&format!("{:?}", labels.shape));
        return Err(format!("labels has shape {found} for {} images", images.shape[0]));
    }
    if labels.values.is_empty() {
        return Err("it holds no image".to_owned());
    }
    if let Some(index) = labels.values.iter().position(|label| !(0..MOST_CLASSES).contains(label)) {
        return Err(format!(
            "image {index} has label {}; 0 to {} are possible",
            labels.values[index],
            MOST_CLASSES - 1
        ));
    }
    Ok(Arrays { pixels: images.values, side, labels: labels.values })
}

/// What comes of labels takes memory by the largest of them.
const MOST_CLASSES: i64 = 1_000_000;

impl Arrays {
    /// One more than the largest label.
    pub fn classes(&self) -> usize {
        self.labels.iter().max().map_or(0, |last| *last as usize + 1)
    }

    /// On `device`, as uint8 `[N, 3, side, side]`.
    pub fn into_images(self, device: Device) -> Result<ImageSet, DatasetError> {
        let side = self.side as i64;
        let images = Tensor::f_from_slice(&self.pixels)?.f_view([-1, side, side, 3])?;
        let images = images.f_permute([0, 3, 1, 2])?.f_contiguous()?.f_to_device(device)?;
        Ok(ImageSet { images, labels: self.labels })
    }
}

/// Loads both parts onto `device`.
pub(super) fn load(own: &OwnData, device: Device) -> Result<Dataset, DatasetError> {
    let (train, test) = (read(&own.train)?, read(&own.test)?);
    if test.side != train.side {
        let reason = format!("its images have sides of {}, those of the training part {}", test.side, train.side);
        return Err(refused(&own.test, reason));
    }
    if train.classes() < LEAST_CLASSES {
        let found = train.classes();
        let reason = format!(
            "it has {found} classes; at least {LEAST_CLASSES} are needed, one for each of the groups many, medium and few"
        );
        return Err(refused(&own.train, reason));
    }
    if test.classes() > train.classes() {
        let reason = format!("it has the label {}, of which there is no training image", test.classes() - 1);
        return Err(refused(&own.test, reason));
    }
    let sha256 = content_hash([&train, &test]);
    let classes = (0..train.classes()).map(|class| class.to_string()).collect();
    let content = Content::Resident { train: train.into_images(device)?, test: test.into_images(device)? };
    Ok(Dataset::of_own(own, classes, content, Some(sha256)))
}

/// sha256 over sides, pixels and labels of both parts.
fn content_hash(parts: [&Arrays; 2]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.side as u64).to_le_bytes());
        hash.update((part.labels.len() as u64).to_le_bytes());
        hash.update(&part.pixels);
        part.labels.iter().for_each(|label| hash.update(label.to_le_bytes()));
    }
    hex(&hash.finalize())
}
