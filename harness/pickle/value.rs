//! The tree of values that a checkpoint holds.

use std::fmt;

use crate::text::printable;

/// A Python object as data; `T` is what stands for a tensor.
///
/// Subclasses are what they derive from: `OrderedDict`, `Counter` and `defaultdict` are dictionaries, `torch.Size` is a
/// tuple, a `Parameter` a tensor, NumPy's scalars are numbers, its arrays
/// [`Array`]s. Attributes of dictionaries and tensors are dropped.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<T> {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Complex(f64, f64),
    Str(String),
    Bytes(Vec<u8>),
    List(Vec<Value<T>>),
    Tuple(Vec<Value<T>>),
    /// In the order of the file.
    Set(Vec<Value<T>>),
    /// In the order of the file; no key stands twice.
    Dict(Vec<(Value<T>, Value<T>)>),
    /// A type of elements, such as `float32`.
    Dtype(&'static str),
    /// Such as `cuda:0`.
    Device(String),
    Array(Array),
    Tensor(T),
}

/// NumPy's array.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// As in a `.npy` header: `|u1`, `<f8`.
    pub dtype: String,
    pub shape: Vec<u64>,
    /// The first index changes fastest.
    pub fortran_order: bool,
    /// Of the elements, as many as shape and type say.
    pub bytes: Vec<u8>,
}

impl<T> Value<T> {
    /// What stands under the text `key` of a dictionary.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.find(|known| matches!(known, Self::Str(known) if known == key))
    }

    /// What stands under the integer `key` of a dictionary.
    pub fn get_int(&self, key: i128) -> Option<&Self> {
        self.find(|known| matches!(known, Self::Int(known) if *known == key))
    }

    fn find(&self, is_key: impl Fn(&Self) -> bool) -> Option<&Self> {
        self.entries()?.iter().find(|(key, _)| is_key(key)).map(|(_, value)| value)
    }

    /// Of a dictionary.
    pub fn entries(&self) -> Option<&[(Self, Self)]> {
        match self {
            Self::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// Of a list, tuple or set.
    pub fn items(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Set(items) => Some(items),
            _ => None,
        }
    }

    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => i64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Of a number that is a float or an integer.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            Self::Int(value) => Some(*value as f64),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_tensor(&self) -> Option<&T> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The same tree with other tensors; `make` is told where each stands.
    pub fn try_map<U, E>(
        self,
        path: &Path<'_>,
        make: &mut impl FnMut(&Path<'_>, T) -> Result<U, E>,
    ) -> Result<Value<U>, E> {
        let mut list = |items: Vec<Self>| {
            let mapped = items.into_iter().enumerate();
            mapped.map(|(index, item)| item.try_map(&path.index(index), make)).collect::<Result<Vec<_>, E>>()
        };
        Ok(match self {
            Self::None => Value::None,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::Int(value),
            Self::Float(value) => Value::Float(value),
            Self::Complex(real, imaginary) => Value::Complex(real, imaginary),
            Self::Str(text) => Value::Str(text),
            Self::Bytes(bytes) => Value::Bytes(bytes),
            Self::List(items) => Value::List(list(items)?),
            Self::Tuple(items) => Value::Tuple(list(items)?),
            Self::Set(items) => Value::Set(list(items)?),
            Self::Dict(entries) => {
                let mut mapped = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    let value = value.try_map(&path.key(&key), make)?;
                    mapped.push((key.try_map(path, make)?, value));
                }
                Value::Dict(mapped)
            }
            Self::Dtype(name) => Value::Dtype(name),
            Self::Device(name) => Value::Device(name),
            Self::Array(array) => Value::Array(array),
            Self::Tensor(tensor) => Value::Tensor(make(path, tensor)?),
        })
    }

    /// Writes bytes that two keys share exactly when Python takes them for one. `false`: this cannot be a key.
    pub fn write_key(&self, bytes: &mut Vec<u8>) -> bool {
        let mut tagged = |tag: u8, content: &[u8]| {
            bytes.push(tag);
            bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
            bytes.extend_from_slice(content);
        };
        match self {
            Self::None => tagged(b'n', &[]),
            Self::Bool(value) => tagged(b'i', &i128::from(*value).to_le_bytes()),
            Self::Int(value) => tagged(b'i', &value.to_le_bytes()),
            Self::Float(value) if value.fract() == 0.0 && value.abs() < 1e18 => {
                tagged(b'i', &(*value as i128).to_le_bytes());
            }
            Self::Float(value) => tagged(b'f', &value.to_bits().to_le_bytes()),
            Self::Complex(..) | Self::List(_) | Self::Set(_) | Self::Dict(_) | Self::Array(_) | Self::Tensor(_) => {
                return false;
            }
            Self::Str(text) => tagged(b's', text.as_bytes()),
            Self::Bytes(content) => tagged(b'b', content),
            Self::Dtype(name) => tagged(b'd', name.as_bytes()),
            Self::Device(name) => tagged(b'v', name.as_bytes()),
            Self::Tuple(items) => {
                tagged(b't', &(items.len() as u64).to_le_bytes());
                return items.iter().all(|item| item.write_key(bytes));
            }
        }
        true
    }
}

/// Where a value stands: the keys and indices from the root, joined by `/` when it is displayed.
#[derive(Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Debug)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Number(i128),
    /// A key of another type.
    Other,
}

impl Path<'_> {
    pub const ROOT: Self = Self { parent: None, step: Step::Root };

    pub fn key<'a, T>(&'a self, key: &'a Value<T>) -> Path<'a> {
        let step = match key {
            Value::Str(text) => Step::Key(text),
            Value::Int(number) => Step::Number(*number),
            _ => Step::Other,
        };
        Path { parent: Some(self), step }
    }

    pub fn index(&self, index: usize) -> Path<'_> {
        Path { parent: Some(self), step: Step::Number(index as i128) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parent {
            None => return formatter.write_str("(root)"),
            Some(Path { parent: None, .. }) => {}
            Some(parent) => write!(formatter, "{parent}/")?,
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Key(text) => formatter.write_str(&printable(text)),
            Step::Number(number) => write!(formatter, "{number}"),
            Step::Other => formatter.write_str("?"),
        }
    }
}
