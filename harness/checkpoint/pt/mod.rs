//! PyTorch's `.pt` files, read without PyTorch: what torch.save wrote from its first releases to 2.11 becomes a tree of
//! plain values in which tensors stand as descriptions, and the bytes of their storages are read on demand.
//!
//! In: any [`container::Source`] of bytes, treated as hostile. Out: a [`Checkpoint`]. Nothing is executed: the pickle runs on a
//! stack machine of our own that knows the opcodes torch.save writes and the globals of one list, and gives plain data
//! for each. Every size is checked before memory is taken for it. The names of the authors' files stand in REFERENCE.md
//! "Networks", last bullet.
//!
//! This folder knows neither libtorch nor the rest of the program (it takes `super::bounds`, `crate::text` and two
//! crates), so that the fuzz target under `fuzz/` can compile it by itself.

mod call;
mod container;
mod dtype;
mod globals;
mod machine;
mod opcode;
mod tree;
mod value;

pub use container::{Checkpoint, Format};
pub use tree::TensorSpec;
pub use value::{Path, Value};

/// Why a file is not read. Byte offsets count from the first byte of the pickle, in the format before 1.6 from the
/// first byte of the file.
#[derive(Debug)]
pub enum Refusal {
    Io(std::io::Error),
    /// It ends too early.
    Truncated(String),
    Bound(super::bounds::Exceeded),
    Global {
        global: String,
        offset: usize,
    },
    Opcode {
        opcode: String,
        offset: usize,
    },
    Malformed(String),
    /// Nothing is wrong with it, but this is not read.
    NotRead(String),
    /// A tensor of a sort that is known and not read.
    Kind {
        name: String,
        kind: String,
    },
}

impl From<super::bounds::Exceeded> for Refusal {
    fn from(exceeded: super::bounds::Exceeded) -> Self {
        Self::Bound(exceeded)
    }
}
