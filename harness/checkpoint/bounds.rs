//! How large a file and its parts may be. The largest published checkpoint (ResNet-50 with dual BN and momentum)
//! has 0.3 GB, 1,000 tensors and a pickle of 0.2 MB; each bound leaves room for what may come, and none of them
//! lets a small file take much memory or time.

use std::path::Path;

use super::CheckpointError;

pub(super) const FILE_BYTES: u64 = 8 << 30;
/// Entries of a zip archive.
pub(super) const ZIP_ENTRIES: u64 = 20_000;
pub(super) const TENSORS: u64 = 20_000;
/// Dimensions of a tensor.
pub(super) const RANK: u64 = 16;
/// Of the pickle in a `.pt` file, and of the JSON header of a safetensors file.
pub(super) const HEADER_BYTES: u64 = 16 << 20;
/// Opcodes of a pickle: each may leave an object of some hundred bytes in memory.
pub(super) const OPCODES: u64 = 1_000_000;

/// Bytes that a file of `length` may unfold to, by compression or by views that repeat elements: torch.save does not
/// compress, and weights shared between names unfold to a few times their size.
pub(super) fn unfolded_bytes(length: u64) -> u64 {
    16 * length + (1 << 20)
}

/// An error that names `what` where `found` exceeds `allowed`.
pub(super) fn check(path: &Path, what: &str, found: impl Into<u128>, allowed: u64) -> Result<(), CheckpointError> {
    let (found, allowed) = (found.into(), u128::from(allowed));
    if found <= allowed {
        return Ok(());
    }
    Err(CheckpointError::Bound { path: path.into(), what: what.to_owned(), found, allowed })
}

/// Checks the shapes of all tensors before any of them takes memory: their number, their ranks, their extents (also
/// where another extent is 0), and their sum in bytes against the `length` of the file.
pub(super) fn check_tensors<'a>(
    path: &Path,
    length: u64,
    tensors: impl ExactSizeIterator<Item = (&'a str, &'a [usize], usize)>,
) -> Result<(), CheckpointError> {
    check(path, "number of tensors", tensors.len() as u64, TENSORS)?;
    let mut total = 0u128;
    for (name, shape, element_bytes) in tensors {
        let name = super::printable(name);
        check(path, &format!("dimensions of tensor '{name}'"), shape.len() as u64, RANK)?;
        let product = |extent: fn(usize) -> u128| {
            shape.iter().fold(element_bytes as u128, |product, &size| product.saturating_mul(extent(size)))
        };
        let what = format!("bytes of tensor '{name}' (an extent of 0 taken for 1)");
        check(path, &what, product(|size| size.max(1) as u128), unfolded_bytes(length).max(FILE_BYTES))?;
        total = total.saturating_add(product(|size| size as u128));
    }
    check(path, "bytes of all tensors, for a file of its size", total, unfolded_bytes(length))
}
