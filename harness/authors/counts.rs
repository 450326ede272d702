//! Images of each class in the long-tailed lists, which make a class Many, Medium or Few. In: a data set and a split;
//! for ImageNet the list itself. Out: counts in class order. No image is read.

use std::path::Path;

use super::AuthorsError;
use super::names::unpublished;
use crate::artifact::hash::{Algorithm, Hasher};
use crate::fs;
use crate::recipe::DatasetName;

/// Facts about those published lists that were available: path, images, images of each class.
const TABLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/class_counts.csv"));

/// The list of full ImageNet. Only its git blob id is known.
const IMAGENET_LIST: (&str, &str) =
    ("ImageNet_LT/imageNet_LT_exp_train.txt", "690594bbb3961378319bb137b0ff657866130549");

/// The list is about 7 MB.
const LIST_BYTES: u64 = 64 << 20;

/// Images of each class in the long-tailed list of `split`, in class order. `data` is the folder that holds split/,
/// needed for [`DatasetName::Imagenet`] alone.
///
/// # Errors
/// Nothing was published for the data set; the list of ImageNet is not there or not the published one.
pub fn class_counts(dataset: DatasetName, split: usize, data: Option<&Path>) -> Result<Vec<u64>, AuthorsError> {
    let list = match dataset {
        DatasetName::Imagenet => return imagenet_counts(dataset, data),
        DatasetName::Imagenet100 => "imagenet-100/imageNet_100_LT_train.txt".to_owned(),
        DatasetName::Cifar100 => format!("cifar100_imbSub_with_subsets/cifar100_split{split}_D_i.npy"),
        DatasetName::Cifar10 => format!("cifar10_imbSub_with_subsets/split{split}_D_i.npy"),
        DatasetName::Digits | DatasetName::Folders | DatasetName::Arrays => return Err(unpublished(dataset)),
    };
    let row = TABLE.lines().map(|line| line.split(',').collect::<Vec<_>>()).find(|row| row[0] == list);
    let counts = row.and_then(|row| row.get(2)?.split_whitespace().map(|count| count.parse().ok()).collect());
    counts.ok_or(AuthorsError::NoCounts { list })
}

fn imagenet_counts(dataset: DatasetName, data: Option<&Path>) -> Result<Vec<u64>, AuthorsError> {
    let (list, expected) = IMAGENET_LIST;
    let path = data.ok_or(AuthorsError::NoList { dataset, list })?.join("split").join(list);
    if !path.exists() {
        return Err(AuthorsError::NoList { dataset, list });
    }
    let bytes = fs::read_at_most(&path, LIST_BYTES)?;
    let mut hasher = Hasher::new(Algorithm::GitBlob, bytes.len() as u64);
    hasher.update(&bytes);
    let found = hasher.finish();
    match found == expected {
        true => counts_of_list(&bytes, 1000),
        false => Err(AuthorsError::OtherList { path, found, expected }),
    }
}

/// Images of each of `classes` classes in a list whose lines are a path, a space and the class.
///
/// # Errors
/// A line does not end in a class.
pub fn counts_of_list(bytes: &[u8], classes: usize) -> Result<Vec<u64>, AuthorsError> {
    let mut counts = vec![0; classes];
    let text = crate::text::decoded(bytes);
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let class = line.trim_end().rsplit_once(' ').and_then(|(_, class)| class.parse::<usize>().ok());
        match class.and_then(|class| counts.get_mut(class)) {
            Some(count) => *count += 1,
            None => return Err(AuthorsError::ListLine { line: index + 1, last: classes.saturating_sub(1) }),
        }
    }
    Ok(counts)
}
