//! How large a file and its parts may be. The largest published checkpoint (ResNet-50 with dual BN and momentum)
//! has 0.3 GB, 1,000 tensors and a pickle of 0.2 MB; each bound leaves room for what may come, and none of them
//! lets a small file take much memory or time.

use std::fmt::Display;

pub const FILE_BYTES: u64 = 8 << 30;
/// Entries of a zip archive.
pub const ZIP_ENTRIES: u64 = 20_000;
pub const TENSORS: u64 = 20_000;
/// Dimensions of a tensor.
pub const RANK: u64 = 16;
/// Of the pickle in a `.pt` file, and of the JSON header of a safetensors file.
pub const HEADER_BYTES: u64 = 16 << 20;
/// Opcodes of a pickle: each may leave an object of some ten bytes in memory.
pub const OPCODES: u64 = 1_000_000;
/// Objects of a pickle, one that stands in several places counted in each.
pub const OBJECTS: u64 = 500_000;
/// Bytes of text in a pickle's objects, counted likewise.
pub const TEXT_BYTES: u64 = 64 << 20;
/// Objects around an object.
pub const NESTING: u64 = 64;

/// Something is larger than it may be.
#[derive(Debug)]
pub struct Exceeded {
    pub what: String,
    pub found: u128,
    pub allowed: u128,
}

/// Bytes that a file of `length` may unfold to, by compression or by views that repeat elements: torch.save does not
/// compress, and weights shared between names unfold to a few times their size.
pub fn unfolded_bytes(length: u64) -> u64 {
    16 * length + (1 << 20)
}

/// An error that names `what` where `found` exceeds `allowed`.
pub fn check(what: &str, found: impl Into<u128>, allowed: u64) -> Result<(), Exceeded> {
    let (found, allowed) = (found.into(), u128::from(allowed));
    if found <= allowed {
        return Ok(());
    }
    Err(Exceeded { what: what.to_owned(), found, allowed })
}

/// Checks the shapes of tensors before any of them takes memory: their number, their ranks, their extents (also where
/// another extent is 0), and their sum in bytes against the length of the file.
#[derive(Debug)]
pub struct Tensors {
    file_bytes: u64,
    count: u64,
    total: u128,
}

impl Tensors {
    /// For a file of so many bytes.
    pub fn of(file_bytes: u64) -> Self {
        Self { file_bytes, count: 0, total: 0 }
    }

    /// Before the extents of a tensor take memory.
    pub fn check_rank(&self, name: &dyn Display, rank: usize) -> Result<(), Exceeded> {
        if rank as u64 <= RANK {
            return Ok(());
        }
        check(&format!("dimensions of tensor '{name}'"), rank as u64, RANK)
    }

    pub fn add(&mut self, name: &dyn Display, shape: &[u64], element_bytes: u64) -> Result<(), Exceeded> {
        self.check_rank(name, shape.len())?;
        let product = |extent: fn(u64) -> u64| {
            shape.iter().fold(u128::from(element_bytes), |product, &size| product.saturating_mul(extent(size).into()))
        };
        let (widest, allowed) = (product(|size| size.max(1)), unfolded_bytes(self.file_bytes).max(FILE_BYTES));
        if widest > allowed.into() {
            check(&format!("bytes of tensor '{name}' (an extent of 0 taken for 1)"), widest, allowed)?;
        }
        self.count += 1;
        self.total = self.total.saturating_add(product(|size| size));
        check("number of tensors", self.count, TENSORS)?;
        check("bytes of all tensors, for a file of its size", self.total, unfolded_bytes(self.file_bytes))
    }
}
