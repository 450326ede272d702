//! Safetensors files: a length, a JSON header, the bytes. The header is checked by the `safetensors` crate (offsets
//! without holes or overlaps, sizes that fit the shapes, the end at the end of the file) and against our bounds.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use tch::{Kind, Tensor};

use super::{CheckpointError, StateDict, bounds};

/// Bytes of the header's length.
const LENGTH_BYTES: usize = 8;
/// The header's one name that is no tensor's.
const RESERVED: &str = "__metadata__";

/// Each type of element in PyTorch's and in safetensors' terms.
const KINDS: [(Kind, Dtype); 10] = [
    (Kind::Double, Dtype::F64),
    (Kind::Float, Dtype::F32),
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

/// All that a file holds.
pub(super) struct Contents {
    /// In the order of their bytes.
    pub state: StateDict,
    pub metadata: HashMap<String, String>,
}

pub(super) fn read(path: &Path) -> Result<Contents, CheckpointError> {
    let bytes = crate::fs::read(path)?;
    let malformed = |error: SafeTensorError| match error {
        SafeTensorError::HeaderTooSmall
        | SafeTensorError::InvalidHeaderLength
        | SafeTensorError::MetadataIncompleteBuffer => CheckpointError::Truncated {
            path: path.into(),
            found: format!("its header and its {} bytes do not agree ({error})", bytes.len()),
        },
        other => CheckpointError::Malformed { path: path.into(), reason: super::printable(&other.to_string()) },
    };
    if let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() {
        bounds::check(path, "bytes of its header", u64::from_le_bytes(*length), bounds::HEADER_BYTES)?;
    }
    let (header_bytes, header) = SafeTensors::read_metadata(&bytes).map_err(malformed)?;
    let infos = header.tensors();
    let mut entries: Vec<_> = infos.iter().map(|(name, info)| (info.data_offsets, name.as_str(), *info)).collect();
    entries.sort_by_key(|(offsets, name, _)| (*offsets, *name));
    let shapes = entries.iter().map(|(_, name, info)| (*name, info.shape.as_slice(), info.dtype.bitsize() / 8));
    bounds::check_tensors(path, bytes.len() as u64, shapes)?;
    let data = &bytes[LENGTH_BYTES + header_bytes..];
    let mut state = StateDict::new();
    for ((start, end), name, info) in entries {
        let kind = KINDS.iter().find(|(_, dtype)| *dtype == info.dtype).map(|(kind, _)| *kind);
        let unknown = || kind_error(path, name, format!("{:?}", info.dtype));
        let tensor = super::tensor_of(path, name, &data[start..end], &info.shape, kind.ok_or_else(unknown)?)?;
        state.insert(name.to_owned(), tensor);
    }
    Ok(Contents { state, metadata: header.metadata().clone().unwrap_or_default() })
}

/// Writes the file whole or not at all, tensor by tensor. Wider types stand first, so that every tensor is aligned
/// for readers that map the file; otherwise the order is kept.
pub(super) fn write<'a>(
    path: &Path,
    metadata: Option<(&str, String)>,
    tensors: impl Iterator<Item = (String, &'a Tensor)>,
) -> Result<(), CheckpointError> {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_by_key(|(_, tensor)| Reverse(tensor.kind().elt_size_in_bytes()));
    let mut offset = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for (name, tensor) in &tensors {
        let info = info_of(path, name, tensor, offset)?;
        offset = info.data_offsets.1;
        infos.push((name.clone(), info));
    }
    // One key at most: a map of several would be written in an order that changes from run to run.
    let metadata = metadata.map(|(key, value)| HashMap::from([(key.to_owned(), value)]));
    let malformed = |reason: String| CheckpointError::Malformed { path: path.into(), reason };
    let header = Metadata::new(metadata, infos).map_err(|error| malformed(error.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| malformed(error.to_string()))?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    bounds::check(path, "bytes of its header", header.len() as u64, bounds::HEADER_BYTES)?;
    let mut bytes = Vec::new();
    Ok(crate::fs::write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (name, tensor) in &tensors {
            super::copy_bytes(name, tensor, &mut bytes).map_err(std::io::Error::other)?;
            file.write_all(&bytes)?;
        }
        Ok(())
    })?)
}

fn info_of(path: &Path, name: &str, tensor: &Tensor, start: usize) -> Result<TensorInfo, CheckpointError> {
    if name == RESERVED {
        let reason = format!("a tensor cannot be called '{RESERVED}' in safetensors");
        return Err(CheckpointError::Malformed { path: path.into(), reason });
    }
    if tensor.is_sparse() {
        return Err(kind_error(path, name, "sparse".into()));
    }
    let kind = tensor.kind();
    let dtype = KINDS.iter().find(|(known, _)| *known == kind).map(|(_, dtype)| *dtype);
    let dtype = dtype.ok_or_else(|| kind_error(path, name, format!("{kind:?}")))?;
    let shape = tensor.size().iter().map(|&extent| extent as usize).collect();
    let end = start + tensor.numel() * kind.elt_size_in_bytes();
    Ok(TensorInfo { dtype, shape, data_offsets: (start, end) })
}

fn kind_error(path: &Path, name: &str, kind: String) -> CheckpointError {
    CheckpointError::Kind { path: path.into(), name: super::printable(name), kind }
}
