//! PyTorch `.pt` files: the zip archive that torch.save writes (`NAME/data.pkl` and one entry per storage), and the
//! stream of pickles that it wrote before 1.6.
//!
//! The unpickling is `pytorch-reader`'s, which executes nothing; what stands here are the bounds around it, checked
//! on the file before it sees it and on the shapes before any tensor is read.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use pytorch_reader::{DType, PickleError, PickleValue, PytorchError, PytorchReader};
use tch::Kind;
use zip::ZipArchive;

use super::pickle::{self, Refusal};
use super::{CheckpointError, StateDict, Weights, bounds};

/// Where a training checkpoint and a mask file keep their tensors.
const KEYS: [&str; 2] = ["state_dict", "pruneMask"];

/// How a file before 1.6 begins: a pickle of protocol 2 with torch.save's magic number.
const LEGACY_START: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// Pickles at the head of such a file: magic number, protocol, system, the object, the keys of the storages.
const LEGACY_PICKLES: usize = 5;
/// A TAR archive says so at byte 257, whatever its first file's name is.
const TAR_MAGIC: std::ops::Range<usize> = 257..262;

/// Whether the file is in the format before 1.6 (and not at once a TAR archive, for which the reader would take it).
pub(super) fn is_legacy(head: &[u8]) -> bool {
    head.starts_with(LEGACY_START) && head.get(TAR_MAGIC) != Some(b"ustar")
}

/// Reads the zip format. `length` is the file's, in bytes.
pub(super) fn read_zip(path: &Path, file: &File, length: u64) -> Result<Weights, CheckpointError> {
    let pickle = checked_pickle(path, file, length)?;
    let scan = pickle::scan(&pickle).map_err(|refusal| refused(path, refusal, 0))?;
    let order = scan.first_seen.iter().map(|(name, offset)| ((*name).to_owned(), *offset)).collect();
    load(path, length, &order)
}

/// Reads the format before 1.6. `length` is the file's, in bytes.
pub(super) fn read_legacy(path: &Path, mut file: &File, length: u64) -> Result<Weights, CheckpointError> {
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.take(bounds::HEADER_BYTES).read_to_end(&mut start))
        .map_err(|source| CheckpointError::Unreadable { path: path.into(), source })?;
    let mut order = HashMap::new();
    let mut offset = 0;
    for _ in 0..LEGACY_PICKLES {
        let scan = pickle::scan(&start[offset..]).map_err(|refusal| refused(path, refusal, offset))?;
        for (name, seen) in scan.first_seen {
            order.entry(name.to_owned()).or_insert(offset + seen);
        }
        offset += scan.end;
    }
    load(path, length, &order)
}

fn refused(path: &Path, refusal: Refusal, start: usize) -> CheckpointError {
    let path = path.to_path_buf();
    match refusal {
        Refusal::Global { global, offset } => CheckpointError::ForbiddenGlobal { path, global, offset: start + offset },
        Refusal::Opcode { opcode, offset } => CheckpointError::ForbiddenOpcode { path, opcode, offset: start + offset },
        Refusal::Truncated { offset } => {
            CheckpointError::Truncated { path, found: format!("its pickle ends within byte {}", start + offset) }
        }
        Refusal::Opcodes => CheckpointError::Bound {
            path,
            what: "opcodes of its pickle".into(),
            found: u128::from(bounds::OPCODES) + 1,
            allowed: bounds::OPCODES.into(),
        },
    }
}

/// Checks the archive's directory and gives the one pickle in it.
fn checked_pickle(path: &Path, file: &File, length: u64) -> Result<Vec<u8>, CheckpointError> {
    let malformed = |reason: String| CheckpointError::Malformed { path: path.into(), reason };
    let mut archive = ZipArchive::new(file).map_err(|error| CheckpointError::Truncated {
        path: path.into(),
        found: format!("the zip directory at its end is missing or broken ({error})"),
    })?;
    bounds::check(path, "number of zip entries", archive.len() as u64, bounds::ZIP_ENTRIES)?;
    if archive.has_duplicate_names() {
        return Err(malformed("two of its zip entries have the same name".into()));
    }
    let mut unfolded = 0u128;
    let mut pickles = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| malformed(error.to_string()))?;
        let name = entry.name().map_err(|error| malformed(error.to_string()))?;
        if name.starts_with('/') || name.contains(['\\', '\0']) || name.split('/').any(|part| part == "..") {
            return Err(malformed(format!("the zip entry '{}' leads out of the archive", super::printable(&name))));
        }
        unfolded += u128::from(entry.size());
        if name == "data.pkl" || name.ends_with("/data.pkl") {
            pickles.push((index, entry.size()));
        }
    }
    bounds::check(
        path,
        "bytes of its zip entries when unpacked, for a file of its size",
        unfolded,
        bounds::unfolded_bytes(length),
    )?;
    let [(index, size)] = pickles[..] else {
        return Err(malformed(format!("it holds {} entries data.pkl, one was expected", pickles.len())));
    };
    bounds::check(path, "bytes of its pickle", size, bounds::HEADER_BYTES)?;
    let mut pickle = Vec::new();
    let entry = archive.by_index(index).map_err(|error| malformed(error.to_string()))?;
    entry.take(bounds::HEADER_BYTES).read_to_end(&mut pickle).map_err(|error| unreadable(path, &error))?;
    Ok(pickle)
}

/// Reads the tensors of a file that passed the checks. `order` says where each name first stands in its pickle.
fn load(path: &Path, length: u64, order: &HashMap<String, usize>) -> Result<Weights, CheckpointError> {
    let PickleValue::Dict(root) =
        PytorchReader::read_pickle_data(path, None).map_err(|error| unpickled(path, &error))?
    else {
        return Err(CheckpointError::NoTensors { path: path.into(), found: "its root is no dictionary".into() });
    };
    let key = KEYS.into_iter().find(|key| matches!(root.get(*key), Some(PickleValue::Dict(_))));
    check_flat(path, &root, key)?;
    let reader = match key {
        Some(key) => PytorchReader::with_top_level_key(path, key),
        None => PytorchReader::new(path),
    }
    .map_err(|error| unpickled(path, &error))?;
    let mut tensors: Vec<_> = reader.tensors().values().collect();
    tensors.sort_by_key(|tensor| (order.get(&tensor.name).copied().unwrap_or(usize::MAX), tensor.name.clone()));
    let shapes = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape(), tensor.dtype().size()));
    bounds::check_tensors(path, length, shapes)?;
    let mut state = StateDict::new();
    for tensor in tensors {
        let kind = kind_of(path, &tensor.name, tensor.dtype())?;
        let bytes = tensor.read().map_err(|error| unreadable(path, &error))?;
        state.insert(tensor.name.clone(), super::tensor_of(path, &tensor.name, &bytes, tensor.shape(), kind)?);
    }
    let epoch = match root.get("epoch") {
        Some(PickleValue::Int(epoch)) => Some(*epoch),
        _ => None,
    };
    Ok(Weights { state, epoch })
}

/// Checks that the dictionary read holds tensors, and none of them deeper down, where a joined name could stand for
/// two of them.
fn check_flat(path: &Path, root: &HashMap<String, PickleValue>, key: Option<&str>) -> Result<(), CheckpointError> {
    let read = match key.and_then(|key| root.get(key)) {
        Some(PickleValue::Dict(inner)) => inner,
        _ => root,
    };
    let found = match read.iter().find(|(_, value)| !is_tensor(value) && holds_tensor(value)) {
        Some((name, _)) => format!("tensors stand deeper down, under '{}'", super::printable(name)),
        None if read.values().any(is_tensor) => return Ok(()),
        None => {
            let mut names: Vec<_> = read.keys().map(|name| super::printable(name)).collect();
            names.sort_unstable();
            names.truncate(5);
            format!("its keys are {}", names.join(", "))
        }
    };
    Err(CheckpointError::NoTensors { path: path.into(), found })
}

fn is_tensor(value: &PickleValue) -> bool {
    matches!(value, PickleValue::Unsupported(python_type) if python_type == "torch.Tensor")
}

fn holds_tensor(value: &PickleValue) -> bool {
    match value {
        PickleValue::Dict(entries) => entries.values().any(holds_tensor),
        PickleValue::List(items) => items.iter().any(holds_tensor),
        other => is_tensor(other),
    }
}

fn kind_of(path: &Path, name: &str, dtype: DType) -> Result<Kind, CheckpointError> {
    Ok(match dtype {
        DType::F64 => Kind::Double,
        DType::F32 => Kind::Float,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        DType::I64 => Kind::Int64,
        DType::I32 => Kind::Int,
        DType::I16 => Kind::Int16,
        DType::I8 => Kind::Int8,
        DType::U8 => Kind::Uint8,
        DType::Bool => Kind::Bool,
        DType::U16 | DType::U32 | DType::U64 => {
            let (name, kind) = (super::printable(name), format!("{dtype:?}"));
            return Err(CheckpointError::Kind { path: path.into(), name, kind });
        }
    })
}

/// What the reader found wrong with the pickle or its container.
fn unpickled(path: &Path, error: &PytorchError) -> CheckpointError {
    match error {
        PytorchError::Io(error) | PytorchError::Pickle(PickleError::Io(error)) => unreadable(path, error),
        other => CheckpointError::Malformed { path: path.into(), reason: super::printable(&other.to_string()) },
    }
}

/// What reading an entry's bytes met.
fn unreadable(path: &Path, error: &std::io::Error) -> CheckpointError {
    let text = super::printable(&error.to_string());
    match error.kind() {
        ErrorKind::UnexpectedEof => CheckpointError::Truncated { path: path.into(), found: text },
        _ => CheckpointError::Malformed { path: path.into(), reason: text },
    }
}
