//! The embedded digits: the 1,797 8x8 images of the UCI optical-digits test set (fixtures/digits/README.md), shown at
//! 16x16 (every pixel doubled) in three equal channels.

use std::path::PathBuf;

use tch::Device;

use super::{Content, Dataset, DatasetError, ImageSet, Part, content_hash};
use crate::npy;
use crate::recipe::DatasetName;

const DIGITS: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/digits/digits.npy"));
const SIDE: usize = 8;
const SCALE: usize = 2;

pub(super) fn load(device: Device) -> Result<Dataset, DatasetError> {
    let rows = npy::parse::<u8>(DIGITS)
        .map_err(|error| DatasetError::Batch { path: PathBuf::from("digits.npy"), reason: error.to_string() })?;
    let mut all = Part { pixels: Vec::new(), labels: Vec::new() };
    for row in rows.values.chunks_exact(SIDE * SIDE + 1) {
        let grey = (0..SIDE * SCALE).flat_map(|y| (0..SIDE * SCALE).map(move |x| (y / SCALE) * SIDE + x / SCALE));
        // 0..=16 to 0..=255, rounded.
        let grey: Vec<u8> = grey.map(|pixel| ((u32::from(row[pixel]) * 255 + 8) / 16) as u8).collect();
        for _ in 0..3 {
            all.pixels.extend(&grey);
        }
        all.labels.push(row[SIDE * SIDE]);
    }
    let none = Part { pixels: Vec::new(), labels: Vec::new() };
    let sha256 = content_hash([&all, &none]);
    let train = all.into_images((SIDE * SCALE) as i64, device)?;
    // One official order; the test list picks from it.
    let test = ImageSet { images: train.images.shallow_clone(), labels: train.labels.clone() };
    let classes = (0..10).map(|digit: u8| digit.to_string()).collect();
    let content = Content::Resident { train, test };
    Ok(Dataset { name: DatasetName::Digits, classes, content, sha256: Some(sha256), official: true, own: None })
}
