//! Where a zip archive's directory lies, and how large it says it is: read before the directory takes memory.

use std::io::{self, Read, Seek, SeekFrom};

/// Of an entry in a directory within bounds: a header of 46 bytes, the name, and fields for times and sizes.
pub const ENTRY_BYTES: u64 = 512;

/// The record at the end of the archive.
#[derive(Debug)]
pub struct End {
    pub entries: u64,
    /// Of the directory.
    pub bytes: u64,
    /// Where the directory starts.
    pub start: u64,
}

/// The record could not be read.
#[derive(Debug)]
pub enum Error {
    Io(io::Error),
    /// What is not there.
    Missing(&'static str),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

const BYTES: u64 = 22;
const SIGNATURE: &[u8] = b"PK\x05\x06";
/// The longest comment that may follow the record.
const COMMENT_BYTES: u64 = 0xffff;

impl End {
    /// Reads the record of an archive of `length` bytes.
    pub fn read(reader: &mut (impl Read + Seek), length: u64) -> Result<Self, Error> {
        reader.seek(SeekFrom::Start(length.saturating_sub(BYTES + COMMENT_BYTES)))?;
        let mut tail = Vec::new();
        reader.take(BYTES + COMMENT_BYTES).read_to_end(&mut tail)?;
        let is_end = |at: &usize| {
            let record = &tail[*at..];
            record.starts_with(SIGNATURE) && BYTES as usize + number(record, 20, 2) as usize == record.len()
        };
        let last = tail.len().checked_sub(BYTES as usize);
        let at = last.and_then(|last| (0..=last).rev().find(is_end));
        let at = at.ok_or(Error::Missing("no zip directory ends it"))?;
        let record = &tail[at..];
        let (entries, bytes, start) = (number(record, 10, 2), number(record, 12, 4), number(record, 16, 4));
        if entries != 0xffff && bytes != 0xffff_ffff && start != 0xffff_ffff {
            return Ok(Self { entries, bytes, start });
        }
        // The record of zip64 stands at the place that the 20 bytes before this one name.
        let locator = at.checked_sub(20).map(|start| &tail[start..at]).filter(|bytes| bytes.starts_with(b"PK\x06\x07"));
        let locator = locator.ok_or(Error::Missing("its zip64 directory is missing"))?;
        let mut large = [0; 56];
        reader.seek(SeekFrom::Start(number(locator, 8, 8)))?;
        reader.read_exact(&mut large)?;
        Ok(Self { entries: number(&large, 32, 8), bytes: number(&large, 40, 8), start: number(&large, 48, 8) })
    }
}

/// The little-endian number of `count` bytes at `start`.
fn number(bytes: &[u8], start: usize, count: usize) -> u64 {
    bytes[start..start + count].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
