//! PyTorch `.pt` files to tensors: what [`super::pt`] describes, read into memory of libtorch's. Storages are read
//! straight into that memory, each once, and only those that are asked for.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path as FilePath;

use tch::{Device, Kind, TchError, Tensor};

use super::pt::{Checkpoint, Format};
use super::{CheckpointError, StateDict, Weights, too_large};
use crate::pickle::{Path, Refusal, TensorSpec, Value};
use crate::text::printable;

/// A Python object as data, its tensors on the CPU. Tensors of one storage share memory, as in PyTorch.
pub type Object = Value<Tensor>;

/// Where a training checkpoint and a mask file keep their tensors.
const KEYS: [&str; 2] = ["state_dict", "pruneMask"];

/// Reads everything.
pub(super) fn read_object(path: &FilePath, file: &File, format: Format) -> Result<Object, CheckpointError> {
    let (mut loader, root) = Loader::open(path, file, format)?;
    root.try_map(&Path::ROOT, &mut |place, spec| loader.tensor(place, &spec))
}

/// Reads the one dictionary of tensors that a checkpoint's weights are.
pub(super) fn read_weights(path: &FilePath, file: &File, format: Format) -> Result<Weights, CheckpointError> {
    let (mut loader, root) = Loader::open(path, file, format)?;
    let no_tensors = |found: String| CheckpointError::NoTensors { path: path.into(), found };
    let epoch = root.get("epoch").and_then(Value::as_int);
    let Value::Dict(mut entries) = root else {
        return Err(no_tensors("its root is no dictionary".into()));
    };
    let found = KEYS.iter().find_map(|name| {
        entries.iter().position(|(key, value)| key.as_str() == Some(name) && value.entries().is_some())
    });
    if let Some(index) = found
        && let (_, Value::Dict(inner)) = entries.swap_remove(index)
    {
        entries = inner;
    }
    check_flat(&entries).map_err(no_tensors)?;
    let tensors = named_tensors(path, entries)?;
    let mut users = HashMap::new();
    tensors.iter().for_each(|(_, spec)| *users.entry(spec.storage).or_insert(0) += 1);
    let mut state = StateDict::new();
    for (name, spec) in tensors {
        let tensor = loader.tensor(&Path::ROOT.key::<()>(&Value::Str(name.clone())), &spec)?;
        let alone = users[&spec.storage] == 1 && loader.fills_storage(&tensor, &spec);
        let tensor = if alone { Ok(tensor) } else { separate(&tensor) };
        let tensor = tensor.map_err(|source| CheckpointError::Copy { name: printable(&name), source })?;
        state.insert(name, tensor);
    }
    Ok(Weights { state, epoch })
}

type Entry = (Value<TensorSpec>, Value<TensorSpec>);

/// The tensors of a dictionary with their names.
fn named_tensors(path: &FilePath, entries: Vec<Entry>) -> Result<Vec<(String, TensorSpec)>, CheckpointError> {
    let tensors = entries.into_iter().filter_map(|entry| match entry {
        (Value::Str(name), Value::Tensor(spec)) => Some(Ok((name, spec))),
        (key, Value::Tensor(_)) => {
            let reason = format!("its tensor '{}' has a name that is no text", Path::ROOT.key(&key));
            Some(Err(CheckpointError::Malformed { path: path.into(), reason }))
        }
        _ => None,
    });
    tensors.collect()
}

/// Checks that a dictionary holds tensors, and none of them deeper down, where a joined name could stand for two of
/// them.
fn check_flat(entries: &[Entry]) -> Result<(), String> {
    let is_tensor = |value: &Value<_>| matches!(value, Value::Tensor(_));
    if let Some((key, _)) = entries.iter().find(|(_, value)| !is_tensor(value) && holds_tensor(value)) {
        return Err(format!("tensors stand deeper down, under '{}'", Path::ROOT.key(key)));
    }
    if entries.iter().any(|(_, value)| is_tensor(value)) {
        return Ok(());
    }
    let names: Vec<_> = entries.iter().take(5).map(|(key, _)| Path::ROOT.key(key).to_string()).collect();
    Err(format!("its keys are {}", names.join(", ")))
}

fn holds_tensor(value: &Value<TensorSpec>) -> bool {
    match value {
        Value::Tensor(_) => true,
        Value::Dict(entries) => entries.iter().any(|(_, value)| holds_tensor(value)),
        Value::List(items) | Value::Tuple(items) | Value::Set(items) => items.iter().any(holds_tensor),
        _ => false,
    }
}

/// A contiguous copy in memory of its own.
fn separate(tensor: &Tensor) -> Result<Tensor, TchError> {
    let mut copy = Tensor::f_empty(tensor.size(), (tensor.kind(), Device::Cpu))?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

/// An open file and the storages read so far.
struct Loader<'a> {
    path: &'a FilePath,
    checkpoint: Checkpoint<&'a File>,
    /// As bytes.
    storages: Vec<Option<Tensor>>,
}

impl<'a> Loader<'a> {
    fn open(path: &'a FilePath, file: &'a File, format: Format) -> Result<(Self, Value<TensorSpec>), CheckpointError> {
        let mut checkpoint = Checkpoint::open(file, format).map_err(|refusal| refused(path, refusal))?;
        let root = std::mem::replace(&mut checkpoint.root, Value::None);
        let storages = checkpoint.storages.iter().map(|_| None).collect();
        Ok((Self { path, checkpoint, storages }, root))
    }

    /// The tensor as the file describes it, a view of its storage.
    fn tensor(&mut self, place: &Path<'_>, spec: &TensorSpec) -> Result<Tensor, CheckpointError> {
        let kind = kind_of(spec.dtype.name).ok_or_else(|| CheckpointError::Kind {
            path: self.path.into(),
            name: place.to_string(),
            kind: spec.dtype.name.into(),
        })?;
        let failed = |source| CheckpointError::Copy { name: place.to_string(), source };
        let storage = match &mut self.storages[spec.storage] {
            Some(storage) => storage,
            empty => {
                let bytes = self.checkpoint.storages[spec.storage].bytes;
                let mut storage = Tensor::f_empty([bytes as i64], (Kind::Uint8, Device::Cpu)).map_err(failed)?;
                let read = self.checkpoint.read(spec.storage, bytes_of(&mut storage));
                read.map_err(|refusal| refused(self.path, refusal))?;
                empty.insert(storage)
            }
        };
        let signed = |numbers: &[u64]| numbers.iter().map(|&number| number as i64).collect::<Vec<_>>();
        let whole = storage.numel() - storage.numel() % kind.elt_size_in_bytes();
        storage
            .f_narrow(0, 0, whole as i64)
            .and_then(|bytes| bytes.f_view_dtype(kind))
            .and_then(|flat| flat.f_as_strided(signed(&spec.shape), signed(&spec.stride), spec.offset as i64))
            .map_err(failed)
    }

    /// Whether the tensor is its whole storage, in order.
    fn fills_storage(&self, tensor: &Tensor, spec: &TensorSpec) -> bool {
        let bytes = (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        tensor.is_contiguous() && bytes == self.checkpoint.storages[spec.storage].bytes
    }
}

/// The memory of a fresh tensor of bytes.
fn bytes_of(tensor: &mut Tensor) -> &mut [u8] {
    if tensor.numel() == 0 {
        return &mut [];
    }
    // SAFETY: `numel` bytes of libtorch's, which nobody else knows yet; any byte is a u8, and they are written before
    // they are read.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

/// tch's name for a type of elements; `None`: it has none, or elements that are not what they look like (quantised).
fn kind_of(dtype: &str) -> Option<Kind> {
    Some(match dtype {
        "float64" => Kind::Double,
        "float32" => Kind::Float,
        "float16" => Kind::Half,
        "bfloat16" => Kind::BFloat16,
        "int64" => Kind::Int64,
        "int32" => Kind::Int,
        "int16" => Kind::Int16,
        "int8" => Kind::Int8,
        "uint8" => Kind::Uint8,
        "bool" => Kind::Bool,
        "complex32" => Kind::ComplexHalf,
        "complex64" => Kind::ComplexFloat,
        "complex128" => Kind::ComplexDouble,
        "float8_e5m2" => Kind::Float8e5m2,
        "float8_e4m3fn" => Kind::Float8e4m3fn,
        "float8_e5m2fnuz" => Kind::Float8e5m2fnuz,
        "float8_e4m3fnuz" => Kind::Float8e4m3fnuz,
        _ => return None,
    })
}

fn refused(path: &FilePath, refusal: Refusal) -> CheckpointError {
    let path = path.to_path_buf();
    match refusal {
        Refusal::Io(source) => CheckpointError::Unreadable { path, source },
        Refusal::Truncated(found) => CheckpointError::Truncated { path, found },
        Refusal::Bound(exceeded) => too_large(&path)(exceeded),
        Refusal::Global { global, offset } => CheckpointError::ForbiddenGlobal { path, global, offset },
        Refusal::Opcode { opcode, offset } => CheckpointError::ForbiddenOpcode { path, opcode, offset },
        Refusal::Malformed(reason) => CheckpointError::Malformed { path, reason },
        Refusal::NotRead(found) => CheckpointError::NotRead { path, found },
        Refusal::Kind { name, kind } => CheckpointError::Kind { path, name, kind },
    }
}
