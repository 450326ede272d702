//! The files of the race for loading: made up where none are named. In: a number. Out: JPEGs in a folder, and the list that names
//! them.

use std::path::{Path, PathBuf};

use super::BenchError;
use crate::dataset::speed;
use crate::fs;

/// Made-up files that differ; the others are their copies.
const DIFFERENT: usize = 16;

/// Writes `images` JPEGs of ImageNet's size into `folder`, and gives the list of them.
///
/// # Errors
/// libjpeg's or the disk's.
pub fn make_up(folder: &Path, images: usize) -> Result<PathBuf, BenchError> {
    let jpeg = |seed| speed::made_up_jpeg(seed).map_err(|reason| BenchError::Jpeg { reason });
    let files: Vec<Vec<u8>> = (0..images.min(DIFFERENT) as u64).map(jpeg).collect::<Result<_, _>>()?;
    let mut lines = String::new();
    for (image, file) in (0..images).zip(files.iter().cycle()) {
        fs::write(&folder.join(format!("{image}.JPEG")), file)?;
        lines += &format!("{image}.JPEG 0\n");
    }
    let list = folder.join("list.txt");
    fs::write(&list, lines.as_bytes())?;
    Ok(list)
}
