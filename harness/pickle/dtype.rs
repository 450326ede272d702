//! The types of elements, in PyTorch's and in NumPy's terms.

/// A type of elements.
#[derive(Debug, PartialEq)]
pub struct Element {
    /// As in `torch.float32`.
    pub name: &'static str,
    /// The class that stands for a storage of such elements; empty where there is none.
    pub storage: &'static str,
    /// Of one element.
    pub bytes: u64,
    /// Bytes that change places together between machines of either byte order: half an element where it is complex.
    pub word: usize,
}

pub type Dtype = &'static Element;

const fn element(name: &'static str, storage: &'static str, bytes: u64, word: usize) -> Element {
    Element { name, storage, bytes, word }
}

/// Every type of PyTorch 2.11 whose elements are whole bytes each.
pub static ELEMENTS: [Element; 32] = [
    element("float32", "FloatStorage", 4, 4),
    element("float64", "DoubleStorage", 8, 8),
    element("float16", "HalfStorage", 2, 2),
    element("bfloat16", "BFloat16Storage", 2, 2),
    element("int64", "LongStorage", 8, 8),
    element("int32", "IntStorage", 4, 4),
    element("int16", "ShortStorage", 2, 2),
    element("int8", "CharStorage", 1, 1),
    element("uint8", "ByteStorage", 1, 1),
    element("bool", "BoolStorage", 1, 1),
    element("complex32", "ComplexHalfStorage", 4, 2),
    element("complex64", "ComplexFloatStorage", 8, 4),
    element("complex128", "ComplexDoubleStorage", 16, 8),
    element("uint16", "", 2, 2),
    element("uint32", "", 4, 4),
    element("uint64", "", 8, 8),
    element("float8_e5m2", "", 1, 1),
    element("float8_e4m3fn", "", 1, 1),
    element("float8_e5m2fnuz", "", 1, 1),
    element("float8_e4m3fnuz", "", 1, 1),
    element("float8_e8m0fnu", "", 1, 1),
    element("float4_e2m1fn_x2", "", 1, 1),
    element("qint8", "QInt8Storage", 1, 1),
    element("quint8", "QUInt8Storage", 1, 1),
    element("qint32", "QInt32Storage", 4, 4),
    element("quint4x2", "QUInt4x2Storage", 1, 1),
    element("quint2x4", "QUInt2x4Storage", 1, 1),
    element("bits8", "", 1, 1),
    element("bits16", "", 2, 2),
    element("bits1x8", "", 1, 1),
    element("bits2x4", "", 1, 1),
    element("bits4x2", "", 1, 1),
];

/// What an untyped storage holds: bytes, until a tensor says of which type they are.
pub fn untyped() -> Dtype {
    &ELEMENTS[8]
}

pub fn by_name(name: &str) -> Option<Dtype> {
    ELEMENTS.iter().find(|element| element.name == name)
}

pub fn by_storage(class: &str) -> Option<Dtype> {
    ELEMENTS.iter().find(|element| !element.storage.is_empty() && element.storage == class)
}

/// A number of NumPy's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Bool(bool),
    Int(i128),
    Float(f64),
    Complex(f64, f64),
}

/// The number that `bytes` hold under NumPy's code of a type (`f8`, `i4`, `b1`, ...); `None`: no such type or length.
pub fn numpy_number(code: &str, big_endian: bool, bytes: &[u8]) -> Option<Number> {
    let (letter, size) = code.split_at_checked(1)?;
    let size: usize = size.parse().ok()?;
    if bytes.len() != size || !matches!(size, 1 | 2 | 4 | 8 | 16) {
        return None;
    }
    let word = |part: &[u8]| {
        let join = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
        if big_endian { part.iter().fold(0, join) } else { part.iter().rev().fold(0, join) }
    };
    let float = |part: &[u8]| match part.len() {
        2 => Some(half(word(part) as u16)),
        4 => Some(f64::from(f32::from_bits(word(part) as u32))),
        8 => Some(f64::from_bits(word(part))),
        _ => None,
    };
    match letter {
        "b" if size == 1 => Some(Number::Bool(bytes[0] != 0)),
        "u" if size <= 8 => Some(Number::Int(i128::from(word(bytes)))),
        "i" if size <= 8 => {
            let shift = 64 - 8 * size as u32;
            Some(Number::Int(i128::from((word(bytes) << shift) as i64 >> shift)))
        }
        "f" => float(bytes).map(Number::Float),
        "c" if size >= 8 => Some(Number::Complex(float(&bytes[..size / 2])?, float(&bytes[size / 2..])?)),
        _ => None,
    }
}

/// The text of `size` characters that `bytes` hold, four each, padded with zeros; `None`: not so many, or no characters.
pub fn numpy_text(size: &str, big_endian: bool, bytes: &[u8]) -> Option<String> {
    let (characters, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || size.parse() != Ok(characters.len()) {
        return None;
    }
    let number = |&bytes: &[u8; 4]| if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
    let text: String = characters.iter().map(|bytes| char::from_u32(number(bytes))).collect::<Option<_>>()?;
    Some(text.trim_end_matches('\0').to_owned())
}

/// A half-precision number from its bits.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * f64::exp2(-24.0),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * f64::exp2(f64::from(exponent - 25)),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}
