//! A pickle's bytes to opcodes with their operands (protocols 2 to 5, as far as torch.save writes them).

use super::Refusal;
use crate::text::printable;

/// One opcode and its operand.
#[derive(Debug)]
pub enum Op<'a> {
    /// PROTO, FRAME: nothing to do.
    Skip,
    Stop,
    Mark,
    Pop,
    PopMark,
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    EmptyList,
    EmptyDict,
    EmptySet,
    /// A tuple of this many objects; `None`: of all since the mark.
    Tuple(Option<usize>),
    FrozenSet,
    Append,
    Appends,
    SetItem,
    SetItems,
    AddItems,
    Global(&'a str, &'a str),
    StackGlobal,
    Reduce,
    Build,
    PersistentId,
    Get(u32),
    Put(u32),
    Memoize,
}

/// Reads opcodes one by one.
#[derive(Debug)]
pub struct Opcodes<'a> {
    bytes: &'a [u8],
    position: usize,
    /// Offset of the first byte in what errors count from.
    base: usize,
}

impl<'a> Opcodes<'a> {
    pub fn new(bytes: &'a [u8], base: usize) -> Self {
        Self { bytes, position: 0, base }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// The next opcode and its offset for errors.
    pub fn next(&mut self) -> Result<(usize, Op<'a>), Refusal> {
        let offset = self.base + self.position;
        let opcode = self.take(1)?[0];
        let op = match opcode {
            0x80 => self.protocol(offset)?,
            0x95 => self.take(8).map(|_| Op::Skip)?,
            b'.' => Op::Stop,
            b'(' => Op::Mark,
            b'0' => Op::Pop,
            b'1' => Op::PopMark,
            b'N' => Op::None,
            0x88 => Op::Bool(true),
            0x89 => Op::Bool(false),
            b'K' => Op::Int(self.unsigned(1)? as i128),
            b'M' => Op::Int(self.unsigned(2)? as i128),
            b'J' => Op::Int(i128::from(self.unsigned(4)? as u32 as i32)),
            0x8a => self.long(1, offset)?,
            0x8b => self.long(4, offset)?,
            b'G' => Op::Float(f64::from_bits(self.unsigned(8)?.swap_bytes())),
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
            0x8c => self.text(1, offset)?,
            b'X' => self.text(4, offset)?,
            0x8d => self.text(8, offset)?,
            // SHORT_BINSTRING, BINSTRING: Python 2's
            b'U' => self.prefixed(1).map(string)?,
            b'T' => self.prefixed(4).map(string)?,
            // SHORT_BINBYTES, BINBYTES, BINBYTES8 BYTEARRAY8
            b'C' => Op::Bytes(self.prefixed(1)?),
            b'B' => Op::Bytes(self.prefixed(4)?),
            0x8e | 0x96 => Op::Bytes(self.prefixed(8)?),
            b']' => Op::EmptyList,
            b'}' => Op::EmptyDict,
            0x8f => Op::EmptySet,
            b')' => Op::Tuple(Some(0)),
            0x85 => Op::Tuple(Some(1)),
            0x86 => Op::Tuple(Some(2)),
            0x87 => Op::Tuple(Some(3)),
            b't' => Op::Tuple(None),
            0x91 => Op::FrozenSet,
            b'a' => Op::Append,
            b'e' => Op::Appends,
            b's' => Op::SetItem,
            b'u' => Op::SetItems,
            0x90 => Op::AddItems,
            b'c' => Op::Global(self.line(offset)?, self.line(offset)?),
            b'i' => return Err(self.inst(offset)?),
            0x93 => Op::StackGlobal,
            b'R' => Op::Reduce,
            b'b' => Op::Build,
            b'Q' => Op::PersistentId,
            b'h' => Op::Get(self.unsigned(1)? as u32),
            b'j' => Op::Get(self.unsigned(4)? as u32),
            b'q' => Op::Put(self.unsigned(1)? as u32),
            b'r' => Op::Put(self.unsigned(4)? as u32),
            0x94 => Op::Memoize,
            other => return Err(Refusal::Opcode { opcode: format!("{} (0x{other:02x})", unused(other)), offset }),
        };
        Ok((offset, op))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let end = self.position.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.position..end));
        let taken = taken.ok_or_else(|| self.ended())?;
        self.position += count;
        Ok(taken)
    }

    fn ended(&self) -> Refusal {
        Refusal::Truncated(format!("its pickle ends within byte {}", self.base + self.position))
    }

    /// A little-endian number of up to 8 bytes.
    fn unsigned(&mut self, width: usize) -> Result<u64, Refusal> {
        Ok(self.take(width)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// What follows a little-endian length of `width` bytes.
    fn prefixed(&mut self, width: usize) -> Result<&'a [u8], Refusal> {
        let length = self.unsigned(width)?;
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn text(&mut self, width: usize, offset: usize) -> Result<Op<'a>, Refusal> {
        utf8(self.prefixed(width)?, offset).map(Op::Text)
    }

    /// The text up to the next newline, which is passed over.
    fn line(&mut self, offset: usize) -> Result<&'a str, Refusal> {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or_else(|| self.ended())?;
        self.position += length + 1;
        utf8(&rest[..length], offset)
    }

    /// A signed little-endian integer behind a length of `width` bytes.
    fn long(&mut self, width: usize, offset: usize) -> Result<Op<'a>, Refusal> {
        let bytes = self.prefixed(width)?;
        let sign = bytes.last().map_or(0, |&last| if last & 0x80 == 0 { 0 } else { 0xff });
        let mut wide = [sign; 16];
        match wide.get_mut(..bytes.len()) {
            Some(low) => low.copy_from_slice(bytes),
            None => {
                let found = bytes.len();
                return Err(Refusal::NotRead(format!(
                    "byte {offset} of its pickle holds an integer of {found} bytes, at most 16 are read"
                )));
            }
        }
        Ok(Op::Int(i128::from_le_bytes(wide)))
    }

    fn protocol(&mut self, offset: usize) -> Result<Op<'a>, Refusal> {
        match self.unsigned(1)? {
            2..=5 => Ok(Op::Skip),
            other => Err(Refusal::Malformed(format!(
                "byte {offset} of its pickle says protocol {other}, protocols 2 to 5 are read"
            ))),
        }
    }

    /// INST names what it would call: the name says more than the opcode.
    fn inst(&mut self, offset: usize) -> Result<Refusal, Refusal> {
        let (module, name) = (self.line(offset)?, self.line(offset)?);
        Ok(match super::globals::find(module, name) {
            None => Refusal::Global { global: printable(&format!("{module}.{name}")), offset },
            Some(_) => Refusal::Opcode { opcode: "INST".into(), offset },
        })
    }
}

/// What Python 2 called a string: bytes, which are text where they are ASCII.
fn string(bytes: &[u8]) -> Op<'_> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => Op::Text(text),
        _ => Op::Bytes(bytes),
    }
}

fn utf8(bytes: &[u8], offset: usize) -> Result<&str, Refusal> {
    std::str::from_utf8(bytes)
        .map_err(|_| Refusal::Malformed(format!("byte {offset} of its pickle holds text that is not UTF-8")))
}

/// Names of the opcodes that torch.save does not write.
fn unused(opcode: u8) -> &'static str {
    match opcode {
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'd' => "DICT",
        b'g' => "GET",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        0x81 => "NEWOBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x92 => "NEWOBJ_EX",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => "unknown",
    }
}
