//! Safetensors files: a length, a JSON header, the bytes. The `safetensors` crate checks the header (offsets
//! without holes or overlaps, sizes that fit the shapes); the file's length and our bounds are checked here.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use tch::{Kind, Tensor};

use super::{CheckpointError, StateDict, kind_error};
use crate::pickle::bounds;

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

/// Reads the file, whose length in bytes is `length`, from its start.
pub(super) fn read(path: &Path, mut file: &File, length: u64) -> Result<Contents, CheckpointError> {
    let unreadable = |source| CheckpointError::Unreadable { path: path.into(), source };
    let truncated = |found: String| CheckpointError::Truncated { path: path.into(), found };
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let mut header_bytes = [0; LENGTH_BYTES];
    file.read_exact(&mut header_bytes).map_err(unreadable)?;
    let header_bytes = u64::from_le_bytes(header_bytes);
    bounds::check("bytes of its header", header_bytes, bounds::HEADER_BYTES).map_err(super::too_large(path))?;
    let data_start = header_bytes + LENGTH_BYTES as u64;
    if data_start > length {
        return Err(truncated(format!("its header alone has {header_bytes} bytes, the file {length}")));
    }
    let mut bytes = vec![0; header_bytes as usize];
    file.read_exact(&mut bytes).map_err(unreadable)?;
    let not_json = |error: serde_json::Error| {
        let reason = format!("its header is not safetensors' JSON ({error})");
        CheckpointError::Malformed { path: path.into(), reason: super::printable(&reason) }
    };
    let _: NoKeyTwice = serde_json::from_slice(&bytes).map_err(not_json)?;
    let header: Metadata = serde_json::from_slice(&bytes).map_err(not_json)?;
    let data_bytes = header.data_len() as u64;
    if data_bytes != length - data_start {
        let found = length - data_start;
        return Err(truncated(format!("its header speaks of {data_bytes} bytes of tensors, there are {found}")));
    }
    let infos = header.tensors();
    let mut entries: Vec<_> = infos.iter().map(|(name, info)| (info.data_offsets, name.as_str(), *info)).collect();
    entries.sort_by_key(|(offsets, name, _)| (*offsets, *name));
    let mut sizes = bounds::Tensors::of(length);
    for (_, name, info) in &entries {
        let shape: Vec<u64> = info.shape.iter().map(|&extent| extent as u64).collect();
        sizes.add(&super::printable(name), &shape, info.dtype.bitsize() as u64 / 8).map_err(super::too_large(path))?;
    }
    let mut state = StateDict::new();
    // The offsets have no holes, so the tensors follow each other; one buffer serves them all.
    for ((start, end), name, info) in entries {
        let kind = KINDS.iter().find(|(_, dtype)| *dtype == info.dtype).map(|(kind, _)| *kind);
        let kind = kind.ok_or_else(|| kind_error(path, name, format!("{:?}", info.dtype)))?;
        bytes.resize(end - start, 0);
        file.read_exact(&mut bytes).map_err(unreadable)?;
        state.insert(name.to_owned(), super::tensor_of(path, name, &bytes, &info.shape, kind)?);
    }
    Ok(Contents { state, metadata: header.metadata().clone().unwrap_or_default() })
}

/// JSON in which no object has a key twice, of which readers would take one or the other.
struct NoKeyTwice;

impl<'de> Deserialize<'de> for NoKeyTwice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = NoKeyTwice;

    fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NoKeyTwice, A::Error> {
        let mut keys = HashSet::new();
        while let Some((key, NoKeyTwice)) = map.next_entry::<String, NoKeyTwice>()? {
            if let Some(twice) = keys.replace(key) {
                return Err(A::Error::custom(format_args!("'{twice}' stands twice")));
            }
        }
        Ok(NoKeyTwice)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<NoKeyTwice, A::Error> {
        while let Some(NoKeyTwice) = items.next_element()? {}
        Ok(NoKeyTwice)
    }

    fn visit_bool<E>(self, _: bool) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }

    fn visit_i64<E>(self, _: i64) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }

    fn visit_u64<E>(self, _: u64) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }

    fn visit_f64<E>(self, _: f64) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }

    fn visit_str<E>(self, _: &str) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }

    fn visit_unit<E>(self) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }
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
    bounds::check("bytes of its header", header.len() as u64, bounds::HEADER_BYTES).map_err(super::too_large(path))?;
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
