//! Files to named tensors and training state, and back.
//!
//! In: PyTorch `.pt` files as REFERENCE.md "Networks" describes them (last two bullets), safetensors, and our own
//! training checkpoints, all treated as hostile: nothing in them is executed, and every size is bounded before memory
//! is taken for it. Out: a [`StateDict`] on the CPU, or a [`Training`] from which a run goes on bitwise.

pub mod export;
mod pt;
mod safetensors_file;
mod torch_pt;
mod torch_pt_writer;
mod training;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tch::{Device, Kind, TchError, Tensor};

use pt::Format;

pub use crate::network::StateDict;
use crate::pickle::bounds::{self, Exceeded};
pub use crate::pickle::{Array, Value};
use crate::text::{describe, printable};
pub use torch_pt::Object;
pub use torch_pt_writer::Root;
pub use training::{FORMAT, Training, TrainingMeta, UnderWay, read_training, write_training};

/// A checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    File(#[from] crate::fs::FsError),
    #[error("cannot read {}: {source}; check the path", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{} is not a checkpoint: it {found}; give a PyTorch .pt file or a .safetensors file", path.display())]
    NotACheckpoint { path: PathBuf, found: String },
    #[error("{} is cut short or damaged: {found}; copy or download it again", path.display())]
    Truncated { path: PathBuf, found: String },
    #[error("{} is refused: {what}: found {found}, allowed {allowed}; check where the file comes from", path.display())]
    Bound { path: PathBuf, what: String, found: u128, allowed: u128 },
    #[error(
        "{} is refused: byte {offset} of its pickle names '{global}', which no checkpoint of weights needs and which \
         could run code in PyTorch; load it where you trust it and save its state_dict alone", path.display()
    )]
    ForbiddenGlobal { path: PathBuf, global: String, offset: usize },
    #[error(
        "{} is refused: byte {offset} of its pickle holds the opcode {opcode}, which torch.save does not write; \
         save it again with a current PyTorch", path.display()
    )]
    ForbiddenOpcode { path: PathBuf, opcode: String, offset: usize },
    #[error("{} is malformed: {reason}; save or download it again", path.display())]
    Malformed { path: PathBuf, reason: String },
    #[error(
        "{} is legal for PyTorch, not read here: {found}; save its state_dict alone, where you have PyTorch",
        path.display()
    )]
    NotRead { path: PathBuf, found: String },
    #[error(
        "{} holds no tensors to load: {found}; expected a dictionary of tensors, bare or under 'state_dict'",
        path.display()
    )]
    NoTensors { path: PathBuf, found: String },
    #[error(
        "{} is no training checkpoint of this program: {found}; a run resumes only from what it wrote itself",
        path.display()
    )]
    NotTraining { path: PathBuf, found: String },
    #[error(
        "{} has training format {found}, this program reads and writes {expected}; use the version that wrote it, or \
         start the run anew", path.display()
    )]
    FormatVersion { path: PathBuf, found: u64, expected: u32 },
    #[error("{} is damaged: {found}; {OWN_REMEDY}", path.display())]
    OwnDamaged { path: PathBuf, found: String },
    #[error(
        "{} is not the file that was recorded: its tensors have the sha256 {found}, the record says {recorded}; {OWN_REMEDY}",
        path.display()
    )]
    OwnHash { path: PathBuf, found: String, recorded: String },
    #[error("the weights are of no use: {0}")]
    Insane(String),
    #[error(
        "{}: tensor '{name}' has the type {kind}, which checkpoints here cannot hold; convert it to float32 first",
        path.display()
    )]
    Kind { path: PathBuf, name: String, kind: String },
    #[error("tensor '{name}' cannot be copied to memory: {}; free some and try again", crate::native::said(source))]
    Copy { name: String, source: TchError },
}

/// What is done about a damaged file of one's own.
const OWN_REMEDY: &str = "delete it (or its folder) and run the same command again to train it anew";

/// The final state of a pre-training, in every finished folder.
pub const ENCODER: &str = "encoder.safetensors";

impl CheckpointError {
    /// The same damage in a file that this program wrote itself, which nobody can download again.
    fn of_own_file(self) -> Self {
        match self {
            Self::NotACheckpoint { path, found } => Self::OwnDamaged { path, found: format!("it {found}") },
            Self::Truncated { path, found } | Self::NoTensors { path, found } | Self::NotTraining { path, found } => {
                Self::OwnDamaged { path, found }
            }
            Self::Malformed { path, reason } => Self::OwnDamaged { path, found: reason },
            Self::Bound { path, what, found, allowed } => {
                Self::OwnDamaged { path, found: format!("{what}: found {found}, allowed {allowed}") }
            }
            other => other,
        }
    }
}

/// What [`read_weights`] finds.
#[derive(Debug)]
pub struct Weights {
    /// Names exactly as in the file; a prefix `module.` is kept.
    pub state: StateDict,
    /// The epoch that a training checkpoint says it finished.
    pub epoch: Option<i64>,
}

/// Reads the weights of a checkpoint; the content decides what it is, not the name.
///
/// PyTorch `.pt` (zip, and the older stream format): the tensors under `state_dict`, or under `pruneMask` for a mask
/// file, or else of the dictionary itself. Safetensors: all tensors; of our training checkpoints the weights alone.
/// Tensors saved on a GPU come back on the CPU; views and shared storages come back as separate contiguous tensors.
///
/// # Errors
/// One variant of [`CheckpointError`] per kind of damage; [`CheckpointError::NoTensors`] says where tensors stand that
/// lie deeper in the file. No file makes this run code, panic, or take memory out of proportion to the file's size.
pub fn read_weights(path: &Path) -> Result<Weights, CheckpointError> {
    let (file, length) = open(path)?;
    let head = head(&file, path)?;
    if let Some(format) = Format::of(&head) {
        torch_pt::read_weights(path, &file, format)
    } else if head.get(8) == Some(&b'{') {
        let contents = safetensors_file::read(path, &file, length)?;
        match training::meta_of(path, &contents)? {
            Some(meta) => {
                let epoch = i64::try_from(meta.epoch).ok();
                let [state, ..] = training::split(path, contents.state)?;
                Ok(Weights { state, epoch })
            }
            None if contents.state.is_empty() => {
                Err(CheckpointError::NoTensors { path: path.into(), found: "its safetensors header is empty".into() })
            }
            None => Ok(Weights { state: contents.state, epoch: None }),
        }
    } else {
        Err(CheckpointError::NotACheckpoint { path: path.into(), found: describe(&head) })
    }
}

/// Reads weights that this program wrote and recorded: their [`state_sha256`] must be `recorded`.
///
/// # Errors
/// As [`read_weights`], and where the tensors are others; the remedy is that for one's own file.
pub fn read_own_weights(path: &Path, recorded: &str) -> Result<Weights, CheckpointError> {
    let weights = read_weights(path).map_err(CheckpointError::of_own_file)?;
    let found = state_sha256(&weights.state)?;
    if found == recorded {
        return Ok(weights);
    }
    let [found, recorded] = [&found, recorded].map(|hash| printable(hash).chars().take(12).collect());
    Err(CheckpointError::OwnHash { path: path.into(), found, recorded })
}

/// Reads weights from anywhere; those of an [`ENCODER`] beside its `result.json` are compared with what that says.
///
/// # Errors
/// As [`read_weights`] and [`read_own_weights`].
pub fn read_encoder(path: &Path) -> Result<Weights, CheckpointError> {
    #[derive(serde::Deserialize)]
    struct Recorded {
        state_sha256: String,
    }
    let record = path.with_file_name("result.json");
    if path.file_name() != Some(ENCODER.as_ref()) || !record.is_file() {
        return read_weights(path);
    }
    let malformed =
        |error: serde_json::Error| CheckpointError::OwnDamaged { path: record.clone(), found: error.to_string() };
    let bytes = crate::fs::read_at_most(&record, RECORD_BYTES)?;
    let Recorded { state_sha256 } = serde_json::from_slice(&bytes).map_err(malformed)?;
    read_own_weights(path, &state_sha256)
}

/// More than any record has.
const RECORD_BYTES: u64 = 64 << 20;

/// The largest absolute value of a weight or running statistic that is taken for the outcome of training. It is far above
/// what trained networks hold; features computed from such weights still fit float32.
const SANE: f64 = 1e6;

/// Whether a network of these weights can be of use: every number is finite and at most 1e6.
///
/// # Errors
/// The first tensor that is not so.
pub fn sane(state: &StateDict) -> Result<(), CheckpointError> {
    for (name, tensor) in state.iter().filter(|(_, tensor)| tensor.is_floating_point() && tensor.numel() > 0) {
        let largest = tensor.abs().max().double_value(&[]);
        if largest.is_nan() || largest > SANE {
            let name = printable(name);
            return Err(CheckpointError::Insane(format!("'{name}' holds {largest:e}, at most {SANE:e} is sane")));
        }
    }
    Ok(())
}

/// Reads all that a PyTorch `.pt` file holds (zip, and the older stream format), as `torch.load` with
/// `map_location="cpu"` gives it: nested containers in their order, tensors with the strides and the shared storages of
/// the file.
///
/// # Errors
/// As [`read_weights`]; also where an object is no plain data, or a tensor is of a type that tch lacks (quantised,
/// `uint16`, ...), or sparse, nested or without values.
pub fn read_object(path: &Path) -> Result<Object, CheckpointError> {
    let (file, _) = open(path)?;
    let head = head(&file, path)?;
    match Format::of(&head) {
        Some(format) => torch_pt::read_object(path, &file, format),
        None => Err(CheckpointError::NotACheckpoint { path: path.into(), found: describe(&head) }),
    }
}

/// Writes `state` as safetensors, whole or not at all. Tensors on a GPU are copied to the CPU, strided ones made
/// contiguous; the tensors of wider types stand first, otherwise the order of `state` is kept.
///
/// # Errors
/// A tensor of a type that safetensors or PyTorch lacks, and everything the disk may refuse.
pub fn write_weights(path: &Path, state: &StateDict) -> Result<(), CheckpointError> {
    safetensors_file::write(path, None, state.iter().map(|(name, tensor)| (name.to_owned(), tensor)))
}

/// Lower-case hexadecimal sha256 over names, types, shapes and bytes, in the order of the names: equal for two states
/// exactly when they hold the same bits under the same names, whatever their order, device or memory layout.
pub fn state_sha256(state: &StateDict) -> Result<String, CheckpointError> {
    let mut entries: Vec<_> = state.iter().collect();
    entries.sort_by_key(|(name, _)| *name);
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for (name, tensor) in entries {
        let head = format!("{}:{name}:{:?}:{:?}:", name.len(), tensor.kind(), tensor.size());
        hash.update(head.as_bytes());
        copy_bytes(name, tensor, &mut bytes)?;
        hash.update(&bytes);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Fills `bytes` with the tensor's elements in row-major order.
fn copy_bytes(name: &str, tensor: &Tensor, bytes: &mut Vec<u8>) -> Result<(), CheckpointError> {
    let failed = |source| CheckpointError::Copy { name: name.to_owned(), source };
    let tensor = tensor.f_to_device(Device::Cpu).and_then(|tensor| tensor.f_contiguous()).map_err(failed)?;
    let count = tensor.numel();
    bytes.resize(count * tensor.kind().elt_size_in_bytes(), 0);
    tensor.f_copy_data_u8(bytes, count).map_err(failed)
}

/// A tensor of row-major `bytes`, which must be as long as `shape` and `kind` ask.
fn tensor_of(path: &Path, name: &str, bytes: &[u8], shape: &[usize], kind: Kind) -> Result<Tensor, CheckpointError> {
    let count = shape.iter().product::<usize>();
    let name = printable(name);
    if bytes.len() != count * kind.elt_size_in_bytes() {
        let reason = format!("tensor '{name}' has {} bytes for {count} elements of {kind:?}", bytes.len());
        return Err(CheckpointError::Malformed { path: path.into(), reason });
    }
    let shape: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
    Tensor::f_from_data_size(bytes, &shape, kind).map_err(|source| CheckpointError::Copy { name, source })
}

fn kind_error(path: &Path, name: &str, kind: String) -> CheckpointError {
    CheckpointError::Kind { path: path.into(), name: printable(name), kind }
}

/// Opens a regular file within [`bounds::FILE_BYTES`]; gives its length too.
fn open(path: &Path) -> Result<(File, u64), CheckpointError> {
    let unreadable = |source| CheckpointError::Unreadable { path: path.into(), source };
    // Before it is opened: opening a pipe would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        let found = "is a folder or a device, not a file".to_owned();
        return Err(CheckpointError::NotACheckpoint { path: path.into(), found });
    }
    let file = File::open(path).map_err(unreadable)?;
    bounds::check("the file in bytes", metadata.len(), bounds::FILE_BYTES).map_err(too_large(path))?;
    Ok((file, metadata.len()))
}

/// The first bytes, enough to tell the formats apart.
fn head(file: &File, path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let mut head = Vec::new();
    file.take(512)
        .read_to_end(&mut head)
        .map_err(|source| CheckpointError::Unreadable { path: path.into(), source })?;
    Ok(head)
}

fn too_large(path: &Path) -> impl Fn(Exceeded) -> CheckpointError {
    move |Exceeded { what, found, allowed }| CheckpointError::Bound { path: path.into(), what, found, allowed }
}
