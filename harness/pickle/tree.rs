//! The arena of a pickle to a tree of values, with everything checked that a tensor says of itself.

use std::collections::{BTreeMap, HashSet};

use super::Refusal;
use super::bounds::{self, NESTING, OBJECTS, TEXT_BYTES, check};
use super::dtype::Dtype;
use super::globals::Global;
use super::machine::{Id, Machine, Node, RawArray, RawTensor};
use super::value::{Array, Path, Value};
use crate::text::printable;

/// A tensor whose every element lies in its storage.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Index in the checkpoint's storages.
    pub storage: usize,
    pub dtype: Dtype,
    /// Elements before the first.
    pub offset: u64,
    /// As many strides (in elements) as extents.
    pub shape: Vec<u64>,
    pub stride: Vec<u64>,
}

/// A storage that some tensor lies in.
#[derive(Debug)]
pub struct Storage {
    pub key: String,
    pub bytes: u64,
    /// Bytes of one of the elements that the pickle counts.
    pub element_bytes: u64,
    /// Bytes that change places together between machines of either byte order.
    pub word: usize,
}

/// What a dictionary holds.
type Entries = Vec<(Value<TensorSpec>, Value<TensorSpec>)>;

/// The object `root` of a finished pickle with its storages, and what they are. `file_bytes` is what sizes are held
/// against.
pub fn unfold(machine: &Machine<'_>, root: Id, file_bytes: u64) -> Result<(Value<TensorSpec>, Vec<Storage>), Refusal> {
    let mut walk = Walk {
        machine,
        file_bytes,
        open: HashSet::new(),
        objects: 0,
        text_bytes: 0,
        tensors: bounds::Tensors::of(file_bytes),
        places: BTreeMap::new(),
        storages: Vec::new(),
    };
    let value = walk.value(root, &Path::ROOT)?;
    Ok((value, walk.storages))
}

struct Walk<'m, 'a> {
    machine: &'m Machine<'a>,
    file_bytes: u64,
    /// The containers around the current object.
    open: HashSet<Id>,
    objects: u64,
    text_bytes: u64,
    tensors: bounds::Tensors,
    /// Index in the machine's storages to index in ours.
    places: BTreeMap<usize, usize>,
    storages: Vec<Storage>,
}

impl Walk<'_, '_> {
    fn value(&mut self, id: Id, path: &Path<'_>) -> Result<Value<TensorSpec>, Refusal> {
        self.objects += 1;
        check("objects of its pickle, shared ones counted wherever they stand", self.objects, OBJECTS)?;
        let machine = self.machine;
        Ok(match &machine.nodes[id] {
            Node::None => Value::None,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::Int(*value),
            Node::Float(value) => Value::Float(*value),
            Node::Complex(real, imaginary) => Value::Complex(*real, *imaginary),
            Node::Text(text) => {
                self.count_text(text.len())?;
                Value::Str((*text).to_owned())
            }
            Node::Unpacked(text) => {
                self.count_text(text.len())?;
                Value::Str(text.clone())
            }
            Node::Bytes(bytes) => {
                self.count_text(bytes.len())?;
                Value::Bytes(bytes.to_vec())
            }
            Node::Device(name) => {
                self.count_text(name.len())?;
                Value::Device(name.clone())
            }
            Node::List(items) => Value::List(self.items(id, items, path)?),
            Node::Tuple(items) => Value::Tuple(self.items(id, items, path)?),
            Node::Set(items) => Value::Set(self.items(id, items, path)?),
            Node::Dict(dict) => Value::Dict(self.entries(id, &dict.entries, path)?),
            Node::Global(Global::Dtype(dtype)) => Value::Dtype(dtype.name),
            Node::Array(Some(array)) => Value::Array(self.array(array, path)?),
            Node::Tensor(tensor) => Value::Tensor(self.tensor(tensor, path)?),
            Node::Unreadable(sort) => {
                return Err(Refusal::Kind { name: path.to_string(), kind: (*sort).to_owned() });
            }
            other @ (Node::Global(Global::Inert) | Node::Storage(..)) => {
                return Err(Refusal::NotRead(format!("its object '{path}' is {}", other.describe())));
            }
            other @ (Node::Global(_) | Node::NumpyDtype { .. } | Node::Array(None)) => {
                let what = other.describe();
                return Err(Refusal::Malformed(format!("its object '{path}' is {what}, which is no value here")));
            }
        })
    }

    fn count_text(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.text_bytes += bytes as u64;
        let allowed = TEXT_BYTES.max(self.file_bytes);
        Ok(check("bytes of text in its objects, shared ones counted wherever they stand", self.text_bytes, allowed)?)
    }

    /// Goes into a container that is not around us already.
    fn enter(&mut self, id: Id, path: &Path<'_>) -> Result<(), Refusal> {
        if !self.open.insert(id) {
            return Err(Refusal::Malformed(format!("its object '{path}' holds itself")));
        }
        Ok(check("nesting of its objects", self.open.len() as u64, NESTING)?)
    }

    fn items(&mut self, id: Id, items: &[Id], path: &Path<'_>) -> Result<Vec<Value<TensorSpec>>, Refusal> {
        self.enter(id, path)?;
        let mut values = Vec::new();
        for (index, &item) in items.iter().enumerate() {
            values.push(self.value(item, &path.index(index))?);
        }
        self.open.remove(&id);
        Ok(values)
    }

    fn entries(&mut self, id: Id, entries: &[(Id, Id)], path: &Path<'_>) -> Result<Entries, Refusal> {
        self.enter(id, path)?;
        let mut values = Vec::new();
        let mut seen = HashSet::new();
        for &(key, value) in entries {
            let key = self.value(key, path)?;
            let place = path.key(&key);
            let mut bytes = Vec::new();
            if matches!(key, Value::Complex(..)) {
                return Err(Refusal::NotRead(format!("a key of its dictionary '{path}' is a complex number")));
            }
            if !key.write_key(&mut bytes) {
                let what = self.machine.nodes[entries[values.len()].0].describe();
                return Err(Refusal::Malformed(format!("a key of its dictionary '{path}' is {what}")));
            }
            if !seen.insert(bytes) {
                return Err(Refusal::Malformed(format!("the key '{place}' stands twice in its dictionary")));
            }
            let value = self.value(value, &place)?;
            values.push((key, value));
        }
        self.open.remove(&id);
        Ok(values)
    }

    /// An array whose bytes are as many as its shape and type say.
    fn array(&mut self, raw: &RawArray<'_>, path: &Path<'_>) -> Result<Array, Refusal> {
        let shape = self.extents(raw.shape, "extent", path)?;
        let bytes = match &self.machine.nodes[raw.bytes] {
            Node::Bytes(bytes) => bytes.as_ref(),
            // Of Python 2; ASCII characters are bytes.
            Node::Text(text) if text.is_ascii() => text.as_bytes(),
            other => {
                let found = format!("its array '{path}' of type {} holds {}", printable(raw.code), other.describe());
                return Err(Refusal::NotRead(found));
            }
        };
        let element_bytes: Option<u64> = raw.code.get(1..).and_then(|size| size.parse().ok());
        let expected =
            element_bytes.and_then(|size| shape.iter().try_fold(size, |size, &extent| size.checked_mul(extent)));
        if expected != Some(bytes.len() as u64) {
            let (code, found) = (printable(raw.code), bytes.len());
            return Err(Refusal::Malformed(format!(
                "its array '{path}' of type {code} and shape {} has {found} bytes",
                printable(&format!("{shape:?}"))
            )));
        }
        self.count_text(bytes.len())?;
        let order = match (element_bytes, raw.big_endian) {
            (Some(1), _) => '|',
            (_, true) => '>',
            (_, false) => '<',
        };
        let dtype = format!("{order}{}", raw.code);
        Ok(Array { dtype, shape, fortran_order: raw.fortran_order, bytes: bytes.to_vec() })
    }

    fn tensor(&mut self, raw: &RawTensor, path: &Path<'_>) -> Result<TensorSpec, Refusal> {
        let wrong = |what: String| Refusal::Malformed(format!("its tensor '{path}' {what}"));
        if raw.lazy {
            let kind = format!("{} to be conjugated or negated", raw.dtype.name);
            return Err(Refusal::Kind { name: path.to_string(), kind });
        }
        let shape = self.extents(raw.shape, "extent", path)?;
        let stride = self.extents(raw.stride, "stride", path)?;
        if shape.len() != stride.len() {
            return Err(wrong(format!("has {} extents and {} strides", shape.len(), stride.len())));
        }
        self.tensors.add(path, &shape, raw.dtype.bytes)?;
        let storage = self.storage(raw.storage, raw.dtype)?;
        let (key, bytes) = (&self.storages[storage].key, self.storages[storage].bytes);
        let held = i128::from(bytes / raw.dtype.bytes);
        let reach = |(&extent, &stride): (&u64, &u64)| (i128::from(extent) - 1) * i128::from(stride);
        let needed = match shape.contains(&0) {
            true => 0,
            // No extent is above 2^40 by now, so that the sum is far from overflowing; the offset may be anything.
            false => 1 + shape.iter().zip(&stride).map(reach).sum::<i128>(),
        };
        match u64::try_from(raw.offset) {
            Ok(offset) if needed.checked_add(raw.offset).is_some_and(|end| end <= held) => {
                Ok(TensorSpec { storage, dtype: raw.dtype, offset, shape, stride })
            }
            _ => {
                let (offset, key) = (raw.offset, printable(key));
                let held = format!("storage '{key}' has {held}");
                Err(wrong(format!("reaches over {needed} elements from element {offset}, its {held}")))
            }
        }
    }

    /// The numbers of a tuple, none of them negative.
    fn extents(&self, tuple: Id, what: &str, path: &Path<'_>) -> Result<Vec<u64>, Refusal> {
        let Node::Tuple(extents) = &self.machine.nodes[tuple] else {
            return Err(Refusal::Malformed(format!("'{path}' has no tuple of {what}s")));
        };
        self.tensors.check_rank(path, extents.len())?;
        let wrong = |found: &str| Refusal::Malformed(format!("'{path}' has the {what} {found}"));
        let extent = |&id: &Id| match &self.machine.nodes[id] {
            // libtorch counts in signed integers.
            Node::Int(extent) if (0..=i64::MAX.into()).contains(extent) => Ok(*extent as u64),
            Node::Int(extent) => Err(wrong(&extent.to_string())),
            other => Err(wrong(other.describe())),
        };
        extents.iter().map(extent).collect()
    }

    /// The place of a storage in our list, which it joins when its first tensor comes.
    fn storage(&mut self, raw: usize, dtype: Dtype) -> Result<usize, Refusal> {
        let named = &self.machine.storages[raw];
        let place = *self.places.entry(raw).or_insert(self.storages.len());
        if place == self.storages.len() {
            let key = named.key.to_owned();
            let (count, name) = (named.count, printable(&key));
            let Ok(count) = u64::try_from(count) else {
                return Err(Refusal::Malformed(format!("its storage '{name}' has {count} elements")));
            };
            let element_bytes = named.dtype.bytes;
            let bytes = u128::from(count) * u128::from(element_bytes);
            check(&format!("bytes of storage '{name}'"), bytes, bounds::unfolded_bytes(self.file_bytes))?;
            self.storages.push(Storage { key, bytes: bytes as u64, element_bytes, word: named.dtype.word });
        }
        // An untyped storage is of words as long as its tensors'.
        let word = &mut self.storages[place].word;
        *word = dtype.word.max(*word);
        Ok(place)
    }
}
