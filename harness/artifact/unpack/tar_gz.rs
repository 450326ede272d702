//! `.tar.gz`: blocks of 512 bytes, each entry a header and its content, and two blocks of zeros at the end; the whole in
//! one gzip member.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;
use tar::{EntryType, Header};

use super::{Extraction, UnpackError, Unpacked, bounds};

const BLOCK: usize = 512;
/// Of entries, and of what describes them.
const HEADERS: u64 = 4 * bounds::ENTRIES;
/// Of the records of one PAX header; names, times and owners take some hundred bytes.
const PAX_BYTES: u64 = 64 << 10;
/// Zeros behind the last entry: programs pad to their blocking factor, usually 10 KiB.
const PADDING_BYTES: u64 = 1 << 20;

type Stream = GzDecoder<BufReader<File>>;

pub(super) fn extract(reader: BufReader<File>, mut extraction: Extraction) -> Result<Unpacked, UnpackError> {
    let mut stream = GzDecoder::new(reader);
    // The name that a header of GNU's gives to the entry after it.
    let mut long_name: Option<Vec<u8>> = None;
    let mut headers = 0;
    while let Some(header) = next_header(&mut stream, &extraction)? {
        headers += 1;
        extraction.archive.check("number of headers", headers, HEADERS)?;
        let size = header.entry_size().map_err(|error| extraction.archive.malformed(printable_error(&error)))?;
        match header.entry_type() {
            EntryType::GNULongName => {
                if long_name.is_some() {
                    return Err(extraction.archive.malformed("two long names stand before one entry".into()));
                }
                let what = "bytes of an entry's long name";
                let mut name = read_small(&mut stream, &extraction, what, size, bounds::NAME_BYTES as u64 + 1)?;
                name.pop_if(|last| *last == 0);
                long_name = Some(name);
            }
            EntryType::XHeader | EntryType::XGlobalHeader => {
                let records = read_small(&mut stream, &extraction, "bytes of a PAX header", size, PAX_BYTES)?;
                check_records(&records).map_err(|reason| extraction.archive.malformed(reason))?;
            }
            kind => {
                let name = long_name.take().unwrap_or_else(|| header.path_bytes().into_owned());
                entry(&mut stream, &mut extraction, &name, kind, size)?;
            }
        }
    }
    if long_name.is_some() {
        return Err(extraction.archive.malformed("a long name stands before no entry".into()));
    }
    check_end(stream, &extraction)?;
    extraction.finish()
}

/// The next entry's header; `None` at the block of zeros that ends the archive.
fn next_header(stream: &mut Stream, extraction: &Extraction) -> Result<Option<Header>, UnpackError> {
    let mut header = Header::new_old();
    stream.read_exact(header.as_mut_bytes()).map_err(|error| extraction.archive.unreadable(&error))?;
    let bytes = header.as_bytes();
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    // The checksum counts its own field as blanks.
    let sum: u32 =
        bytes.iter().enumerate().map(|(i, byte)| u32::from(if (148..156).contains(&i) { b' ' } else { *byte })).sum();
    if header.cksum().ok() != Some(sum) {
        return Err(extraction.archive.damaged("a header's checksum is wrong, or it holds no tar archive".into()));
    }
    Ok(Some(header))
}

/// Extracts a file or makes a folder; everything else is refused.
fn entry(
    stream: &mut Stream,
    extraction: &mut Extraction,
    name: &[u8],
    kind: EntryType,
    size: u64,
) -> Result<(), UnpackError> {
    let kind = match kind {
        EntryType::Regular => {
            let name = extraction.add(name, false)?;
            extraction.reserve(name, size)?;
            extraction.file(name, size, &mut *stream)?;
            return skip_padding(stream, extraction, size);
        }
        EntryType::Directory if size == 0 => {
            let name = extraction.add(name.strip_suffix(b"/").unwrap_or(name), true)?;
            return Ok(extraction.staging.folder(name)?);
        }
        EntryType::Directory => "a folder with content",
        EntryType::Symlink => "a symbolic link",
        EntryType::Link => "a hard link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a FIFO",
        EntryType::GNUSparse => "a sparse file",
        EntryType::GNULongLink => "a link with a long target",
        other => &format!("of the type {:?}", char::from(other.as_byte())),
    };
    Err(extraction.archive.kind(name, kind))
}

/// Reads the content of a header that describes another entry.
fn read_small(
    stream: &mut Stream,
    extraction: &Extraction,
    what: &str,
    size: u64,
    allowed: u64,
) -> Result<Vec<u8>, UnpackError> {
    extraction.archive.check(what, size, allowed)?;
    let mut bytes = vec![0; size as usize];
    stream.read_exact(&mut bytes).map_err(|error| extraction.archive.unreadable(&error))?;
    skip_padding(stream, extraction, size)?;
    Ok(bytes)
}

/// Content fills whole blocks.
fn skip_padding(stream: &mut Stream, extraction: &Extraction, size: u64) -> Result<(), UnpackError> {
    let mut block = [0; BLOCK];
    let padding = (size.next_multiple_of(BLOCK as u64) - size) as usize;
    stream.read_exact(&mut block[..padding]).map_err(|error| extraction.archive.unreadable(&error))
}

/// PAX records (`LENGTH KEY=VALUE\n`) may give times, owners and comments. Records that move or resize an entry are
/// refused, because some programs ignore them.
fn check_records(mut records: &[u8]) -> Result<(), String> {
    let malformed = || "a PAX header is malformed".to_owned();
    while !records.is_empty() {
        let blank = records.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = std::str::from_utf8(&records[..blank]).ok().and_then(|digits| digits.parse::<usize>().ok());
        let length = length.filter(|length| (blank + 1..=records.len()).contains(length)).ok_or_else(malformed)?;
        let (record, rest) = records.split_at(length);
        let record = record[blank + 1..].strip_suffix(b"\n").ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let key = String::from_utf8_lossy(&record[..equals]);
        if ["path", "linkpath", "size", "hdrcharset"].contains(&&*key) || key.starts_with("GNU.") {
            return Err(format!("a PAX header sets '{}'", crate::text::printable(&key)));
        }
        records = rest;
    }
    Ok(())
}

/// Behind the last entry: zeros, the end of the one gzip member (which proves its checksum), the end of the file.
fn check_end(mut stream: Stream, extraction: &Extraction) -> Result<(), UnpackError> {
    let mut buffer = vec![0; 16 << 10];
    let mut zeros = 0;
    loop {
        let count = stream.read(&mut buffer).map_err(|error| extraction.archive.unreadable(&error))?;
        if count == 0 {
            break;
        }
        if buffer[..count].iter().any(|byte| *byte != 0) {
            return Err(extraction.archive.malformed("there is data behind the end of its tar archive".into()));
        }
        zeros += count as u64;
        extraction.archive.check("bytes of zeros behind the last entry", zeros, PADDING_BYTES)?;
    }
    let mut reader = stream.into_inner();
    let behind = reader.fill_buf().map_err(|error| extraction.archive.unreadable(&error))?;
    if !behind.is_empty() {
        return Err(extraction.archive.malformed("there is data behind the end of its gzip stream".into()));
    }
    Ok(())
}

fn printable_error(error: &std::io::Error) -> String {
    format!("a header's size is no number ({})", crate::text::printable(&error.to_string()))
}
