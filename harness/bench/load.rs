//! The files of the races for loading and decoding: made up where none are named. In: a list, or a width. Out: a [`Subset`] of as
//! many images as the race asks for.

use std::path::{Path, PathBuf};

use super::BenchError;
use crate::dataset::speed;
use crate::fs;
use crate::split::{self, SplitError, Subset};

/// Made-up files.
const FILES: u64 = 16;

/// Writes JPEGs of `width` pixels, three quarters as high, into `folder`, and gives the list of them.
///
/// # Errors
/// libjpeg's or the disk's.
pub fn make_up(folder: &Path, width: usize) -> Result<PathBuf, BenchError> {
    let mut lines = String::new();
    for file in 0..FILES {
        let jpeg = speed::made_up_jpeg((width * 3).div_ceil(4), width, file);
        fs::write(&folder.join(format!("{file}.JPEG")), &jpeg.map_err(|reason| BenchError::Jpeg { reason })?)?;
        lines += &format!("{file}.JPEG 0\n");
    }
    let list = folder.join("list.txt");
    fs::write(&list, lines.as_bytes())?;
    Ok(list)
}

/// `images` of the files that `list` names: the first, or all of them in turn. Each image has views of its own.
///
/// # Errors
/// The list cannot be read.
pub(super) fn images(list: &Path, images: usize) -> Result<Subset, SplitError> {
    let all = split::read_files(list)?;
    let in_turn = |entries: &[i64]| entries.iter().copied().cycle().take(images).collect();
    let (rows, labels) = (in_turn(&all.rows), in_turn(&all.labels));
    Ok(Subset { rows, labels, addresses: (0..images as u64).collect(), ..all })
}
