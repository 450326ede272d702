//! `.zip`: a header before each entry's content, and a directory at the end that repeats them all. Readers differ in
//! which they believe, so both must say the same, and every byte of content may belong to one entry only.

use std::fs::File;
use std::io::{BufReader, Read};

use flate2::Crc;
use flate2::bufread::DeflateDecoder;
use zip::read::ZipFileEntry;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::{Archive, Extraction, UnpackError, Unpacked, bounds};
use crate::text::printable;
use crate::zip_directory::{self, End};

type ZipFile = ZipArchive<BufReader<File>>;

pub(super) fn extract(reader: BufReader<File>, mut extraction: Extraction) -> Result<Unpacked, UnpackError> {
    let mut archive = open(reader, &extraction.archive)?;
    let mut first = u64::MAX;
    for index in 0..archive.len() {
        let entry = archive.by_index_data(index).map_err(|error| zip_error(&extraction.archive, &error))?;
        first = first.min(entry.header_start());
        check_entry(&entry, &mut extraction)?;
    }
    if first > 0 && !archive.is_empty() {
        return Err(extraction.archive.malformed(format!("{first} bytes stand before its first entry")));
    }
    // Headers before the entries against the directory, entries that share bytes, entries that the directory omits.
    archive.validate_header_consistency().map_err(|error| zip_error(&extraction.archive, &error))?;
    for index in 0..archive.len() {
        extract_entry(&mut archive, index, &mut extraction)?;
    }
    extraction.finish()
}

/// The names of its entries that are text; nothing else of them is looked at.
pub(super) fn names(reader: BufReader<File>, file: &Archive) -> Result<Vec<String>, UnpackError> {
    let archive = open(reader, file)?;
    Ok(archive.file_names().filter_map(|name| Some(name.ok()?.into_owned())).collect())
}

/// Reads the directory, which must be within bounds, and the only one that can be read.
fn open(mut reader: BufReader<File>, file: &Archive) -> Result<ZipFile, UnpackError> {
    let end = End::read(&mut reader, file.packed).map_err(|error| match error {
        zip_directory::Error::Io(error) => file.unreadable(&error),
        zip_directory::Error::Missing(what) => file.damaged(what.into()),
    })?;
    file.check("number of entries", end.entries, bounds::ENTRIES)?;
    file.check("bytes of its zip directory", end.bytes, bounds::ENTRIES * zip_directory::ENTRY_BYTES)?;
    let archive = ZipArchive::new(reader).map_err(|error| zip_error(file, &error))?;
    if archive.offset() != 0 || archive.central_directory_start() != end.start {
        return Err(file.malformed("its zip directory can be read in two ways".into()));
    }
    if archive.has_duplicate_names() {
        return Err(file.malformed("two of its zip entries have the same name".into()));
    }
    if archive.len() as u64 != end.entries {
        let (found, said) = (archive.len(), end.entries);
        return Err(file.malformed(format!("its zip directory has {found} entries and says {said}")));
    }
    Ok(archive)
}

/// Checks what the directory says of an entry.
fn check_entry(entry: &ZipFileEntry, extraction: &mut Extraction) -> Result<(), UnpackError> {
    /// Bits of a file's kind in a Unix mode, and the kinds.
    const KIND: u32 = 0o170_000;
    const FOLDER: u32 = 0o040_000;
    const REGULAR: u32 = 0o100_000;
    let raw = entry.name_raw();
    let (name, is_folder) = raw.strip_suffix(b"/").map_or((raw, false), |name| (name, true));
    let kind = match (entry.external_attributes() >> 16) & KIND {
        0 => None,
        REGULAR if !is_folder => None,
        FOLDER if is_folder => None,
        REGULAR | FOLDER => Some("a file to some programs and a folder to others"),
        0o120_000 => Some("a symbolic link"),
        0o010_000 => Some("a FIFO"),
        _ => Some("a device or a socket"),
    };
    let kind = match entry.compression() {
        _ if kind.is_some() => kind,
        _ if entry.encrypted() => Some("encrypted"),
        CompressionMethod::Stored if entry.size() != entry.compressed_size() => Some("stored with two sizes"),
        CompressionMethod::Stored | CompressionMethod::Deflated => None,
        _ => Some("compressed by another method than deflate"),
    };
    if let Some(kind) = kind {
        return Err(extraction.archive.kind(raw, kind));
    }
    let path = extraction.add(name, is_folder)?;
    if is_folder && entry.size() > 0 {
        return Err(extraction.archive.kind(raw, "a folder with content"));
    }
    extraction.reserve(path, entry.size())
}

/// Extracts an entry that was checked; its content must have the size and checksum that the directory says.
fn extract_entry(archive: &mut ZipFile, index: usize, extraction: &mut Extraction) -> Result<(), UnpackError> {
    let entry = archive.by_index_raw(index).map_err(|error| zip_error(&extraction.archive, &error))?;
    let raw = entry.name_raw().to_vec();
    let name = String::from_utf8_lossy(&raw);
    if let Some(folder) = name.strip_suffix('/') {
        return Ok(extraction.staging.folder(folder.as_ref())?);
    }
    let (size, packed, crc) = (entry.size(), entry.compressed_size(), entry.crc32());
    let method = entry.compression();
    let mut content = Checked { content: BufReader::new(entry), crc: Crc::new() };
    let path = name.as_ref().as_ref();
    if method == CompressionMethod::Stored {
        extraction.file(path, size, &mut content)?;
        return content.check(extraction, &name, crc);
    }
    let mut content = Checked { content: DeflateDecoder::new(content.content), crc: content.crc };
    extraction.file(path, size, &mut content)?;
    // The stream must end here: with its last byte of output, and with the last byte of its input.
    let more = content.content.read(&mut [0]).map_err(|error| extraction.archive.unreadable(&error))?;
    if more > 0 || content.content.total_in() != packed {
        return Err(extraction.archive.malformed(format!("the sizes of its entry '{}' are wrong", printable(&name))));
    }
    content.check(extraction, &name, crc)
}

/// A reader that sums up what it gives.
struct Checked<R> {
    content: R,
    crc: Crc,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.crc.update(&buffer[..count]);
        Ok(count)
    }
}

impl<R> Checked<R> {
    fn check(&self, extraction: &Extraction, name: &str, expected: u32) -> Result<(), UnpackError> {
        let found = self.crc.sum();
        if found == expected {
            return Ok(());
        }
        let name = printable(name);
        Err(extraction.archive.damaged(format!("its entry '{name}' has the checksum {found:08x}, not {expected:08x}")))
    }
}

fn zip_error(file: &Archive, error: &ZipError) -> UnpackError {
    match error {
        ZipError::Io(error) => file.unreadable(error),
        _ => file.malformed(printable(&error.to_string())),
    }
}
