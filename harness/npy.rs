//! NumPy's `.npy` files (versions 1 to 3), read and written: lists, images, replays, views and features.
//!
//! The header is a Python literal of a dictionary. It is parsed here under bounds, and all of it is heeded: an array's
//! type, order and shape must be what the caller asks for, and fit the bytes that follow, before memory is taken.
//! Source: numpy.lib.format.

use std::io::Write;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use crate::fs::{self, FsError};
use crate::text::printable;

/// A `.npy` file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    #[error(transparent)]
    File(#[from] FsError),
    #[error("{} is not a .npy file of uint8: {source}", path.display())]
    NotBytes { path: PathBuf, source: FormatError },
    #[error("{} has shape {found:?}, expected {expected}", path.display())]
    Shape { path: PathBuf, found: Vec<usize>, expected: &'static str },
    #[error("a tensor of kind {0:?} cannot be written as .npy; uint8 and float32 can")]
    Kind(Kind),
    #[error("libtorch: {}", crate::native::said(.0))]
    Torch(#[from] tch::TchError),
}

/// Why bytes are not the `.npy` array that was asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("it does not begin as a .npy file does")]
    Magic,
    #[error("its format version is {0}.{1}; versions 1.0, 2.0 and 3.0 are read")]
    Version(u8, u8),
    #[error("its header is cut short")]
    CutShort,
    #[error("its header has {0} bytes, at most {HEADER_BYTES} are read")]
    HeaderLength(usize),
    #[error("its header is not a dictionary of descr, fortran_order and shape: {0}")]
    Header(String),
    #[error("its elements are of type '{found}', expected {expected}")]
    Type { found: String, expected: &'static str },
    #[error("its shape {0} is impossible")]
    Shape(String),
    #[error("its shape {shape} needs {expected} bytes, {found} follow")]
    Length { shape: String, expected: usize, found: usize },
}

/// More images than this are given in parts.
const FILE_BYTES: u64 = 64 << 30;
/// NumPy itself reads no header above 10,000 bytes.
const HEADER_BYTES: usize = 10_000;
/// As in NumPy 2.
const DIMENSIONS: usize = 64;
const MAGIC: &[u8] = b"\x93NUMPY";

/// A type of elements that files are read as.
pub trait Element: Copy {
    const NAME: &'static str;
    /// What a header may call it.
    const DESCR: &'static [&'static str];
    const BYTES: usize;
    /// Reads one element of [`Element::BYTES`] bytes.
    fn of(bytes: &[u8], big_endian: bool) -> Self;
}

impl Element for u8 {
    const NAME: &'static str = "uint8 ('|u1')";
    const DESCR: &'static [&'static str] = &["|u1", "<u1", ">u1"];
    const BYTES: usize = 1;

    fn of(bytes: &[u8], _: bool) -> Self {
        bytes[0]
    }
}

impl Element for i64 {
    const NAME: &'static str = "int64 ('<i8')";
    const DESCR: &'static [&'static str] = &["<i8", ">i8"];
    const BYTES: usize = 8;

    fn of(bytes: &[u8], big_endian: bool) -> Self {
        let number = bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        (if big_endian { number.swap_bytes() } else { number }) as i64
    }
}

/// An array in C order.
#[derive(Debug)]
pub struct Array<T> {
    pub shape: Vec<usize>,
    pub values: Vec<T>,
}

/// Parses a whole `.npy` file. Either byte order and either memory order is read.
///
/// # Errors
/// The bytes are not one array of `T`, or not all of it, or more follows.
pub fn parse<T: Element>(bytes: &[u8]) -> Result<Array<T>, FormatError> {
    let (header, data) = split(bytes)?;
    let Header { descr, fortran_order, shape } = Header::parse(header)?;
    if !T::DESCR.contains(&descr) {
        return Err(FormatError::Type { found: printable(descr), expected: T::NAME });
    }
    let shown = || printable(&format!("{shape:?}"));
    let count = element_count(&shape, T::BYTES).ok_or_else(|| FormatError::Shape(shown()))?;
    if data.len() != count * T::BYTES {
        return Err(FormatError::Length { shape: shown(), expected: count * T::BYTES, found: data.len() });
    }
    let big_endian = descr.starts_with('>');
    let values: Vec<T> = data.chunks_exact(T::BYTES).map(|element| T::of(element, big_endian)).collect();
    let values = if fortran_order { from_fortran_order(&values, &shape) } else { values };
    Ok(Array { shape, values })
}

/// The number of elements, where neither it nor a part of it overflows. An extent of 0 is taken for 1 on the way: what
/// comes of the shape must not overflow either.
fn element_count(shape: &[usize], element_bytes: usize) -> Option<usize> {
    let fits = |product: &usize| *product <= isize::MAX as usize;
    shape
        .iter()
        .try_fold(element_bytes, |product, extent| product.checked_mul((*extent).max(1)).filter(fits))
        .map(|_| shape.iter().product())
}

/// Elements whose first index changes fastest, in C order. There are as many as the shape says.
pub(crate) fn from_fortran_order<T: Copy>(values: &[T], shape: &[usize]) -> Vec<T> {
    let mut strides = vec![1; shape.len()];
    for axis in 1..shape.len() {
        strides[axis] = strides[axis - 1] * shape[axis - 1];
    }
    let mut index = vec![0; shape.len()];
    let mut position = 0;
    let mut ordered = Vec::with_capacity(values.len());
    for _ in 0..values.len() {
        ordered.push(values[position]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            position += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            position -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    ordered
}

/// The header's text and what follows it.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), FormatError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(FormatError::Magic)?;
    let (&[major, minor], rest) = rest.split_first_chunk().ok_or(FormatError::CutShort)?;
    let (length, rest) = match (major, minor) {
        (1, 0) => {
            let (length, rest) = rest.split_first_chunk().ok_or(FormatError::CutShort)?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        (2 | 3, 0) => {
            let (length, rest) = rest.split_first_chunk().ok_or(FormatError::CutShort)?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        _ => return Err(FormatError::Version(major, minor)),
    };
    if length > HEADER_BYTES {
        return Err(FormatError::HeaderLength(length));
    }
    rest.split_at_checked(length).ok_or(FormatError::CutShort)
}

/// What the header says.
struct Header<'a> {
    descr: &'a str,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl<'a> Header<'a> {
    fn parse(header: &'a [u8]) -> Result<Self, FormatError> {
        let text = std::str::from_utf8(header).map_err(|_| FormatError::Header("it is not text".into()))?;
        Self::of_literal(text).map_err(FormatError::Header)
    }

    /// `{'descr': '|u1', 'fortran_order': False, 'shape': (4, 3), }` in any order, each key once.
    fn of_literal(text: &'a str) -> Result<Self, String> {
        let mut literal = Literal { rest: text };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        literal.expect("{")?;
        while !literal.takes("}") {
            let key = literal.string()?;
            literal.expect(":")?;
            let twice = match key {
                "descr" => descr.replace(literal.string()?).is_some(),
                "fortran_order" => fortran_order.replace(literal.boolean()?).is_some(),
                "shape" => shape.replace(literal.tuple()?).is_some(),
                _ => return Err(format!("it has the key '{}'", printable(key))),
            };
            if twice {
                return Err(format!("'{key}' stands twice"));
            }
            if !literal.takes(",") {
                literal.expect("}")?;
                break;
            }
        }
        if !literal.rest.trim_ascii().is_empty() {
            return Err(format!("'{}' follows it", printable(literal.rest.trim_ascii())));
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Self { descr, fortran_order, shape }),
            _ => Err("a key is missing".to_owned()),
        }
    }
}

/// The part of a Python literal that is still to be read.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn takes(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_ascii_start();
        let after = rest.strip_prefix(token);
        self.rest = after.unwrap_or(rest);
        after.is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.takes(token) { Ok(()) } else { Err(self.unexpected(&format!("'{token}'"))) }
    }

    fn unexpected(&self, expected: &str) -> String {
        let found: String = self.rest.chars().take(24).collect();
        format!("expected {expected}, found '{}'", printable(&found))
    }

    /// Between single or double quotes, without escapes.
    fn string(&mut self) -> Result<&'a str, String> {
        let quote = ['\'', '"'].into_iter().find(|quote| self.takes(quote.encode_utf8(&mut [0; 4])));
        let quote = quote.ok_or_else(|| self.unexpected("a string"))?;
        let end = self.rest.find([quote, '\\', '\n']).filter(|end| self.rest[*end..].starts_with(quote));
        let end = end.ok_or_else(|| self.unexpected("the end of a string"))?;
        let text = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        if self.takes("True") {
            return Ok(true);
        }
        if self.takes("False") { Ok(false) } else { Err(self.unexpected("True or False")) }
    }

    /// A tuple of extents; one alone has a comma behind it.
    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut extents = Vec::new();
        self.expect("(")?;
        while !self.takes(")") {
            if extents.len() == DIMENSIONS {
                return Err(format!("its shape has more than {DIMENSIONS} dimensions"));
            }
            extents.push(self.extent()?);
            if !self.takes(",") {
                self.expect(")")?;
                if extents.len() == 1 {
                    return Err("its shape is a number, expected a tuple".to_owned());
                }
                break;
            }
        }
        Ok(extents)
    }

    /// Digits, behind which Python 2 could write an L.
    fn extent(&mut self) -> Result<usize, String> {
        let rest = self.rest.trim_ascii_start();
        let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        let extent = rest[..end].parse().map_err(|_| self.unexpected("an extent"))?;
        self.rest = rest[end..].strip_prefix('L').unwrap_or(&rest[end..]);
        Ok(extent)
    }
}

/// Reads a uint8 array whose shape `fits`; `expected` says in words what does.
pub fn read_uint8(path: &Path, expected: &'static str, fits: impl Fn(&[usize]) -> bool) -> Result<Tensor, NpyError> {
    let bytes = fs::read_at_most(path, FILE_BYTES)?;
    let Array { shape, values } =
        parse::<u8>(&bytes).map_err(|source| NpyError::NotBytes { path: path.to_path_buf(), source })?;
    if !fits(&shape) {
        return Err(NpyError::Shape { path: path.to_path_buf(), found: shape, expected });
    }
    let shape: Vec<i64> = shape.into_iter().map(|extent| extent as i64).collect();
    Ok(Tensor::f_from_slice(&values)?.f_view(shape.as_slice())?)
}

/// A list of int64 as numpy.save writes it.
pub fn list_bytes(values: &[i64]) -> Vec<u8> {
    let header = header("<i8", &format!("{},", values.len()));
    header.into_iter().chain(values.iter().flat_map(|value| value.to_le_bytes())).collect()
}

/// All that precedes the elements; `extents` are those of the shape, as a tuple lists them.
fn header(descr: &str, extents: &str) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({extents}), }}");
    let start = MAGIC.len() + 4;
    let padded = (start + header.len() + 1).next_multiple_of(64) - start;
    let header = format!("{header:<0$}\n", padded - 1);
    [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat()
}

/// Writes a uint8 or float32 tensor as numpy.save does.
pub fn write(path: &Path, tensor: &Tensor) -> Result<(), NpyError> {
    let descr = match tensor.kind() {
        Kind::Uint8 => "|u1",
        Kind::Float => "<f4",
        other => return Err(NpyError::Kind(other)),
    };
    let extents: String = tensor.size().iter().map(|extent| format!("{extent}, ")).collect();
    // NumPy ends a tuple of one with a comma, longer ones without.
    let extents = extents.trim_end_matches(if tensor.dim() == 1 { " " } else { ", " });
    let header = header(descr, extents);
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(fs::write_with(path, |file| {
        file.write_all(&header)?;
        file.write_all(&bytes)
    })?)
}
