//! CIFAR-10 and CIFAR-100 from the official binary version or from the python version that torchvision users have.

use std::path::Path;

use tch::Device;

use super::{Content, Dataset, DatasetError, Part, content_hash};
use crate::fs;
use crate::npy;
use crate::pickle::{self, Array, TensorSpec};
use crate::recipe::{DatasetName, name_of};
use crate::text::printable;

const PIXELS: usize = 3 * 32 * 32;
/// The largest official file has 161 MB.
const FILE_BYTES: u64 = 1 << 30;

/// What differs between the two data sets on disk.
struct Layout {
    binary: &'static str,
    python: &'static str,
    train: &'static [&'static str],
    test: &'static str,
    /// Bytes before the pixels of a binary record; the label is the last of them.
    label_bytes: usize,
    python_label: &'static str,
    classes: &'static [&'static str],
    /// Of the decoded official data (dataset::content_hash).
    sha256: &'static str,
}

const CIFAR10: Layout = Layout {
    binary: "cifar-10-batches-bin",
    python: "cifar-10-batches-py",
    train: &["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
    test: "test_batch",
    label_bytes: 1,
    python_label: "labels",
    classes: &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    sha256: "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493",
};

const CIFAR100: Layout = Layout {
    binary: "cifar-100-binary",
    python: "cifar-100-python",
    train: &["train"],
    test: "test",
    label_bytes: 2,
    python_label: "fine_labels",
    classes: &CIFAR100_CLASSES,
    sha256: "b41e29387b788506ced6a48cea527c65d6387e1598add60c84d6995abf0b21fa",
};

#[rustfmt::skip]
const CIFAR100_CLASSES: [&str; 100] = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
];

fn of(name: DatasetName) -> &'static Layout {
    if name == DatasetName::Cifar100 { &CIFAR100 } else { &CIFAR10 }
}

/// What the data folder should hold, for messages.
pub(super) fn layout(name: DatasetName) -> String {
    let Layout { binary, python, .. } = of(name);
    format!("{binary}/ (the official binary version) or {python}/ (the python version), and the lists under split/")
}

pub(super) fn load(
    name: DatasetName,
    folder: &Path,
    layout_text: String,
    device: Device,
) -> Result<Dataset, DatasetError> {
    let layout = of(name);
    let (binary, python) = (folder.join(layout.binary), folder.join(layout.python));
    // Images per file: all files of a part are of one size.
    let (train_rows, test_rows) = (50_000 / layout.train.len(), 10_000);
    let is_binary = fs::is_open_folder(&binary)?;
    let read = |file: &str, rows: usize| {
        if is_binary {
            read_binary(&binary.join(format!("{file}.bin")), rows, layout)
        } else {
            read_python(&python.join(file), rows, layout)
        }
    };
    if !is_binary && !fs::is_open_folder(&python)? {
        let (dataset, folder) = (name_of(&name), folder.to_path_buf());
        return Err(DatasetError::NotFound { dataset, folder, layout: layout_text });
    }
    let mut train = Part { pixels: Vec::with_capacity(50_000 * PIXELS), labels: Vec::with_capacity(50_000) };
    for file in layout.train {
        let part = read(file, train_rows)?;
        train.pixels.extend(part.pixels);
        train.labels.extend(part.labels);
    }
    let test = read(layout.test, test_rows)?;
    let sha256 = content_hash([&train, &test]);
    Ok(Dataset {
        name,
        classes: layout.classes.iter().map(|class| (*class).to_owned()).collect(),
        content: Content::Resident { train: train.into_images(32, device)?, test: test.into_images(32, device)? },
        official: sha256 == layout.sha256,
        sha256: Some(sha256),
        own: None,
    })
}

/// Records of label bytes and 3072 pixels (red, green, blue planes, rows from the top).
fn read_binary(path: &Path, rows: usize, layout: &Layout) -> Result<Part, DatasetError> {
    let bytes = fs::read_at_most(path, FILE_BYTES)?;
    let record = layout.label_bytes + PIXELS;
    check_size(path, bytes.len(), rows * record)?;
    let mut part = Part { pixels: Vec::with_capacity(rows * PIXELS), labels: Vec::with_capacity(rows) };
    for record in bytes.chunks_exact(record) {
        let (labels, pixels) = record.split_at(layout.label_bytes);
        part.labels.push(labels[layout.label_bytes - 1]);
        part.pixels.extend_from_slice(pixels);
    }
    check_labels(path, &part.labels, layout)?;
    Ok(part)
}

fn check_size(path: &Path, found: usize, expected: usize) -> Result<(), DatasetError> {
    if found == expected {
        return Ok(());
    }
    Err(DatasetError::Size { path: path.to_path_buf(), found, expected })
}

fn check_labels(path: &Path, labels: &[u8], layout: &Layout) -> Result<(), DatasetError> {
    let last = layout.classes.len() - 1;
    match labels.iter().position(|label| usize::from(*label) > last) {
        None => Ok(()),
        Some(index) => {
            Err(DatasetError::Label { path: path.to_path_buf(), index, found: u64::from(labels[index]), last })
        }
    }
}

type Value = pickle::Value<TensorSpec>;

/// A pickled dictionary whose `data` is a uint8 array `[rows, 3072]`, in either memory order.
fn read_python(path: &Path, rows: usize, layout: &Layout) -> Result<Part, DatasetError> {
    let bytes = fs::read_at_most(path, FILE_BYTES)?;
    let malformed = |reason: String| DatasetError::Batch { path: path.to_path_buf(), reason };
    let mut batch = match pickle::read(&bytes) {
        Ok(Value::Dict(entries)) => entries,
        Ok(_) => return Err(malformed("it holds no dictionary".to_owned())),
        Err(refusal) => return Err(malformed(refusal.to_string())),
    };
    let pixels = match take(&mut batch, "data") {
        Some(Value::Array(array)) => pixels_of(array, rows).map_err(malformed)?,
        _ => return Err(malformed("it has no array 'data'".to_owned())),
    };
    let Some(Value::List(labels)) = take(&mut batch, layout.python_label) else {
        return Err(malformed(format!("it has no list '{}'", layout.python_label)));
    };
    let labels: Vec<u8> = labels
        .iter()
        .map(|label| label.as_int().and_then(|label| u8::try_from(label).ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| malformed("a label is not a small number".to_owned()))?;
    if labels.len() != rows {
        return Err(malformed(format!("it has {} labels for {rows} images", labels.len())));
    }
    check_labels(path, &labels, layout)?;
    Ok(Part { pixels, labels })
}

/// The bytes of the array in C order.
fn pixels_of(array: Array, rows: usize) -> Result<Vec<u8>, String> {
    if array.dtype != "|u1" {
        return Err(format!("its array 'data' has the type {}, expected |u1 (uint8)", printable(&array.dtype)));
    }
    if array.shape != [rows as u64, PIXELS as u64] {
        let found = printable(&shape_text(&array.shape));
        return Err(format!("its array 'data' has shape {found}, expected ({rows}, {PIXELS})"));
    }
    match array.fortran_order {
        true => Ok(npy::from_fortran_order(&array.bytes, &[rows, PIXELS])),
        false => Ok(array.bytes),
    }
}

/// As Python writes a tuple.
fn shape_text(shape: &[u64]) -> String {
    let extents: Vec<_> = shape.iter().map(u64::to_string).collect();
    format!("({}{})", extents.join(", "), if shape.len() == 1 { "," } else { "" })
}

/// Removes a key, which Python 2 wrote as a string and Python 3 reads as bytes or as a string.
fn take(batch: &mut Vec<(Value, Value)>, key: &str) -> Option<Value> {
    let is_key = |found: &Value| match found {
        Value::Str(text) => text == key,
        Value::Bytes(bytes) => bytes == key.as_bytes(),
        _ => false,
    };
    let index = batch.iter().position(|(found, _)| is_key(found))?;
    Some(batch.swap_remove(index).1)
}
