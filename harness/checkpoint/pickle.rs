//! A guard before the unpickler: walks the opcodes of a pickle (protocols 0 to 5) without building anything, and
//! refuses every global outside a short list and every opcode that torch.save does not write.
//!
//! The reader behind it executes nothing either, but it accepts unknown globals in silence and keeps no bound on
//! what many small objects take; a file that would run code in PyTorch must not pass for a good one here.

use std::collections::HashMap;

use super::bounds;

/// Why a pickle is refused. Offsets count from the pickle's first byte.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Global { global: String, offset: usize },
    Opcode { opcode: String, offset: usize },
    Truncated { offset: usize },
    Opcodes,
}

/// What the walk learns of a pickle that it lets through.
#[derive(Debug, Default)]
pub(super) struct Scan<'a> {
    /// Length of the pickle, its STOP included.
    pub end: usize,
    /// Where each string first stands: the order of a dictionary's keys, which the unpickler forgets.
    pub first_seen: HashMap<&'a str, usize>,
}

/// The types of storages and of elements that tensors may have.
const STORAGES: [&str; 10] = [
    "FloatStorage",
    "DoubleStorage",
    "HalfStorage",
    "BFloat16Storage",
    "LongStorage",
    "IntStorage",
    "ShortStorage",
    "CharStorage",
    "ByteStorage",
    "BoolStorage",
];
const DTYPES: [&str; 10] =
    ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"];

/// The globals that training checkpoints hold: tensors, dictionaries, NumPy scalars (a learning rate after warm-up) and
/// the counter of a schedule's milestones.
fn allowed(module: &str, name: &str) -> bool {
    match module {
        "collections" => matches!(name, "OrderedDict" | "Counter" | "defaultdict"),
        "torch" => STORAGES.contains(&name) || DTYPES.contains(&name) || matches!(name, "Size" | "device"),
        "torch._utils" => matches!(name, "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_parameter"),
        "numpy.core.multiarray" | "numpy._core.multiarray" => name == "scalar",
        "numpy" => name == "dtype",
        "_codecs" => name == "encode",
        _ => false,
    }
}

/// What follows an opcode's byte.
enum Operand {
    /// This many bytes.
    Bytes(usize),
    /// Text up to the end of the line.
    Line,
    /// Two lines: module and name.
    Global,
    /// A length of this many bytes, little-endian, then so much text.
    Text(usize),
    /// A length of this many bytes, little-endian, then so many bytes.
    Blob(usize),
    /// Nothing that torch.save writes.
    Forbidden(&'static str),
}

fn operand(opcode: u8) -> Operand {
    use Operand::{Blob, Bytes, Forbidden, Global, Line, Text};
    match opcode {
        // MARK STOP POP POP_MARK DUP NONE REDUCE BUILD DICT LIST TUPLE SETITEM APPEND EMPTY_TUPLE EMPTY_LIST
        // EMPTY_DICT APPENDS SETITEMS BINPERSID
        b'(' | b'.' | b'0' | b'1' | b'2' | b'N' | b'R' | b'b' | b'd' | b'l' | b't' | b's' | b'a' | b')' | b']'
        | b'}' | b'e' | b'u' | b'Q' => Bytes(0),
        // NEWOBJ TUPLE1 TUPLE2 TUPLE3 NEWTRUE NEWFALSE EMPTY_SET ADDITEMS FROZENSET NEWOBJ_EX STACK_GLOBAL MEMOIZE
        0x81 | 0x85..=0x89 | 0x8f..=0x94 => Bytes(0),
        // BININT1 BINGET BINPUT PROTO
        b'K' | b'h' | b'q' | 0x80 => Bytes(1),
        // BININT2
        b'M' => Bytes(2),
        // BININT LONG_BINGET LONG_BINPUT
        b'J' | b'j' | b'r' => Bytes(4),
        // BINFLOAT FRAME
        b'G' | 0x95 => Bytes(8),
        // INT LONG FLOAT UNICODE GET PUT PERSID
        b'I' | b'L' | b'F' | b'V' | b'g' | b'p' | b'P' => Line,
        // GLOBAL INST
        b'c' | b'i' => Global,
        // SHORT_BINSTRING SHORT_BINUNICODE, BINSTRING BINUNICODE, BINUNICODE8
        b'U' | 0x8c => Text(1),
        b'T' | b'X' => Text(4),
        0x8d => Text(8),
        // LONG1 SHORT_BINBYTES, LONG4 BINBYTES, BINBYTES8 BYTEARRAY8
        0x8a | b'C' => Blob(1),
        0x8b | b'B' => Blob(4),
        0x8e | 0x96 => Blob(8),
        b'o' => Forbidden("OBJ"),
        b'S' => Forbidden("STRING"),
        0x82 => Forbidden("EXT1"),
        0x83 => Forbidden("EXT2"),
        0x84 => Forbidden("EXT4"),
        0x97 => Forbidden("NEXT_BUFFER"),
        0x98 => Forbidden("READONLY_BUFFER"),
        _ => Forbidden("unknown"),
    }
}

/// Walks one pickle at the start of `bytes`; what follows its STOP is not looked at.
pub(super) fn scan(bytes: &[u8]) -> Result<Scan<'_>, Refusal> {
    let mut walk = Walk { bytes, position: 0, memo: HashMap::new(), recent: [None, None] };
    let mut first_seen = HashMap::new();
    for _ in 0..bounds::OPCODES {
        let offset = walk.position;
        let opcode = walk.take(1)?[0];
        let text = match operand(opcode) {
            Operand::Bytes(count) => {
                let operand = walk.take(count)?;
                walk.track(opcode, operand, offset)?;
                None
            }
            Operand::Line => {
                let line = walk.line()?;
                if opcode != b'V' {
                    walk.track(opcode, line, offset)?;
                }
                (opcode == b'V').then_some(line)
            }
            Operand::Global => {
                let (module, name) = (walk.line()?, walk.line()?);
                check_global(module, name, offset)?;
                if opcode == b'i' {
                    return Err(Refusal::Opcode { opcode: "INST".into(), offset });
                }
                walk.recent = [None, None];
                None
            }
            Operand::Text(width) => Some(walk.prefixed(width)?),
            Operand::Blob(width) => {
                walk.prefixed(width)?;
                walk.recent = [None, None];
                None
            }
            Operand::Forbidden(name) => {
                return Err(Refusal::Opcode { opcode: format!("{name} (0x{opcode:02x})"), offset });
            }
        };
        if let Some(text) = text {
            walk.recent = [walk.recent[1], Some(text)];
            if let Ok(text) = std::str::from_utf8(text) {
                first_seen.entry(text).or_insert(offset);
            }
        }
        if opcode == b'.' {
            return Ok(Scan { end: walk.position, first_seen });
        }
    }
    Err(Refusal::Opcodes)
}

fn check_global(module: &[u8], name: &[u8], offset: usize) -> Result<(), Refusal> {
    match (std::str::from_utf8(module), std::str::from_utf8(name)) {
        (Ok(module), Ok(name)) if allowed(module, name) => Ok(()),
        _ => {
            let (module, name) = (String::from_utf8_lossy(module), String::from_utf8_lossy(name));
            Err(Refusal::Global { global: super::printable(&format!("{module}.{name}")), offset })
        }
    }
}

struct Walk<'a> {
    bytes: &'a [u8],
    position: usize,
    /// The strings among what was memoised; `None` for anything else.
    memo: HashMap<u32, Option<&'a [u8]>>,
    /// The two values on top of the stack where they are strings, the uppermost last: what STACK_GLOBAL takes.
    recent: [Option<&'a [u8]>; 2],
}

impl<'a> Walk<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let end = self.position.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.position..end));
        let taken = taken.ok_or(Refusal::Truncated { offset: self.position })?;
        self.position += count;
        Ok(taken)
    }

    /// The text up to the next newline, which is passed over.
    fn line(&mut self) -> Result<&'a [u8], Refusal> {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or(Refusal::Truncated { offset: self.position })?;
        self.position += length + 1;
        Ok(&rest[..length])
    }

    /// What follows a little-endian length of `width` bytes.
    fn prefixed(&mut self, width: usize) -> Result<&'a [u8], Refusal> {
        let length = self.take(width)?.iter().rev().fold(0u64, |length, &byte| length << 8 | u64::from(byte));
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// Follows the strings on top of the stack through the memo, and checks what STACK_GLOBAL makes of them. A
    /// pickler writes the two names, or fetches them, right before it; names come about in no other way.
    fn track(&mut self, opcode: u8, operand: &'a [u8], offset: usize) -> Result<(), Refusal> {
        let index = || match opcode {
            b'g' | b'p' => std::str::from_utf8(operand).ok()?.trim_end().parse().ok(),
            _ => Some(operand.iter().rev().fold(0u32, |index, &byte| index << 8 | u32::from(byte))),
        };
        match opcode {
            // BINGET LONG_BINGET GET
            b'h' | b'j' | b'g' => {
                let fetched = index().and_then(|index| self.memo.get(&index).copied().flatten());
                self.recent = [self.recent[1], fetched];
            }
            // BINPUT LONG_BINPUT PUT
            b'q' | b'r' | b'p' => {
                if let Some(index) = index() {
                    self.memo.insert(index, self.recent[1]);
                }
            }
            // MEMOIZE
            0x94 => {
                self.memo.insert(self.memo.len() as u32, self.recent[1]);
            }
            // PROTO FRAME
            0x80 | 0x95 => {}
            // STACK_GLOBAL
            0x93 => {
                let [Some(module), Some(name)] = self.recent else {
                    return Err(Refusal::Opcode { opcode: "STACK_GLOBAL of a computed name".into(), offset });
                };
                check_global(module, name, offset)?;
                self.recent = [None, None];
            }
            _ => self.recent = [None, None],
        }
        Ok(())
    }
}
