//! Python's pickles, read without Python: what PyTorch and NumPy write becomes a tree of plain values, in which NumPy's
//! arrays stand whole and PyTorch's tensors as descriptions.
//!
//! In: bytes, treated as hostile. Out: a [`Value`]. Nothing is executed: the pickle runs on a stack machine of our own
//! that knows the opcodes these programs write and the globals of one list, and gives plain data for each. Every size is
//! checked before memory is taken for it.
//!
//! This folder knows neither libtorch nor the rest of the program (it takes `crate::text` alone), so that the fuzz target
//! under `fuzz/` can compile it by itself.

pub mod bounds;
mod call;
mod dtype;
mod globals;
mod machine;
mod opcode;
mod tree;
mod value;

pub use machine::Machine;
pub use tree::{Storage, TensorSpec, unfold};
pub use value::{Array, Path, Value};

/// Why a file is not read. Byte offsets count from the first byte of the pickle, in the format before 1.6 from the
/// first byte of the file.
#[derive(Debug)]
pub enum Refusal {
    Io(std::io::Error),
    /// It ends too early.
    Truncated(String),
    Bound(bounds::Exceeded),
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

impl From<bounds::Exceeded> for Refusal {
    fn from(exceeded: bounds::Exceeded) -> Self {
        Self::Bound(exceeded)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "it cannot be read ({error})"),
            Self::Truncated(found) | Self::Malformed(found) | Self::NotRead(found) => f.write_str(found),
            Self::Bound(bounds::Exceeded { what, found, allowed }) => {
                write!(f, "{what}: found {found}, allowed {allowed}")
            }
            Self::Global { global, offset } => write!(f, "byte {offset} of its pickle names '{global}'"),
            Self::Opcode { opcode, offset } => write!(f, "byte {offset} of its pickle holds the opcode {opcode}"),
            Self::Kind { name, kind } => write!(f, "its tensor '{name}' has the type {kind}"),
        }
    }
}

/// The object that a whole pickle holds, which may be as large as the pickle.
///
/// # Errors
/// It is damaged, too large, or holds what is not read.
pub fn read(pickle: &[u8]) -> Result<Value<TensorSpec>, Refusal> {
    let (machine, root, _) = Machine::run(pickle, 0)?;
    Ok(unfold(&machine, root, pickle.len() as u64)?.0)
}
