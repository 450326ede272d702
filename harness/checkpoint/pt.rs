//! PyTorch's `.pt` files, read without PyTorch: the zip archive that torch.save writes since 1.6 (`NAME/data.pkl` and one
//! entry `NAME/data/KEY` per storage), and the stream of pickles and storages that it wrote before.
//!
//! In: any [`Source`] of bytes, treated as hostile. Out: a [`Checkpoint`]: a tree of plain values in which tensors stand as
//! descriptions, and the bytes of their storages, read on demand. The names of the authors' files stand in REFERENCE.md
//! "Networks", last bullet. The fuzz target under `fuzz/` compiles this file by itself.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};

use zip::{CompressionMethod, ZipArchive};

use crate::pickle::bounds::{self, Exceeded, check};
use crate::pickle::{Machine, Refusal, Storage, TensorSpec, Value, unfold};
use crate::text::printable;
use crate::zip_directory;

/// Bytes to be read at any position.
pub trait Source: Copy {
    fn length(&self) -> io::Result<u64>;

    /// Fills `bytes` from `offset` on.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Source for &std::fs::File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(*self, bytes, offset)
    }
}

impl Source for &[u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = start.checked_add(bytes.len()).and_then(|end| self.get(start..end));
        bytes.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// How a file before 1.6 begins: a pickle with torch.save's magic number, of protocol 2 unless told otherwise; from
/// protocol 4 on in a frame.
const STREAM_START: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
/// The version of that format, in its second pickle.
const STREAM_VERSION: i128 = 1001;
/// A TAR archive says so at byte 257, whatever its first file's name is.
const TAR_MAGIC: std::ops::Range<usize> = 257..262;
/// Bytes read and summed at a time: they stay in the processor's cache.
const CHUNK: usize = 256 << 10;

/// The two containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Zip,
    Stream,
}

impl Format {
    /// What a file's first 512 bytes say; `None`: it is neither. A stream that is a TAR archive at once is none.
    pub fn of(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"PK") {
            return Some(Self::Zip);
        }
        let pickle = match head {
            [0x80, 4 | 5, 0x95, rest @ ..] => rest.get(8..).unwrap_or_default(),
            [0x80, 2..=5, rest @ ..] => rest,
            _ => &[],
        };
        (pickle.starts_with(STREAM_START) && head.get(TAR_MAGIC) != Some(b"ustar")).then_some(Self::Stream)
    }
}

/// Where a storage's bytes are.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// As they are, from this byte on; with their checksum where there is one.
    Plain { offset: u64, checksum: Option<u32> },
    /// Compressed, in this entry of the archive.
    Packed { entry: usize },
}

/// An opened file: its objects, and its storages to be read.
#[derive(Debug)]
pub struct Checkpoint<S> {
    pub root: Value<TensorSpec>,
    pub storages: Vec<Storage>,
    places: Vec<Place>,
    source: S,
    archive: Option<ZipArchive<Positioned<S>>>,
    /// Words are to be turned around.
    foreign_order: bool,
}

impl<S: Source> Checkpoint<S> {
    /// Reads the pickle of a file in `format`, checks every tensor in it and finds every storage.
    pub fn open(source: S, format: Format) -> Result<Self, Refusal> {
        match format {
            Format::Zip => Self::open_zip(source),
            Format::Stream => Self::open_stream(source),
        }
    }

    fn open_zip(source: S) -> Result<Self, Refusal> {
        let length = source.length().map_err(Refusal::Io)?;
        let mut reader = Positioned { source, position: 0, length };
        let directory = zip_directory::End::read(&mut reader, length).map_err(|error| match error {
            zip_directory::Error::Io(error) => Refusal::Io(error),
            zip_directory::Error::Missing(what) => Refusal::Truncated(what.to_owned()),
        })?;
        check("number of zip entries", directory.entries, bounds::ZIP_ENTRIES)?;
        check("bytes of its zip directory", directory.bytes, bounds::ZIP_ENTRIES * zip_directory::ENTRY_BYTES)?;
        let mut archive = ZipArchive::new(reader).map_err(|error| {
            Refusal::Truncated(format!("the zip directory at its end is missing or broken ({})", said(&error)))
        })?;
        let entries = entries(&mut archive, length)?;
        let pickles: Vec<_> = entries.keys().filter(|name| *name == PICKLE || name.ends_with("/data.pkl")).collect();
        let [name] = pickles[..] else {
            let found = pickles.len();
            return Err(Refusal::Malformed(format!("it holds {found} entries data.pkl, one was expected")));
        };
        let folder = name[..name.len() - PICKLE.len()].to_owned();
        let pickle = &entries[name];
        check("bytes of its pickle", pickle.bytes, bounds::HEADER_BYTES)?;
        let pickle = whole(source, &mut archive, pickle, "its pickle")?;
        let foreign_order = match entries.get(&format!("{folder}byteorder")) {
            None => false,
            Some(order) => {
                check("bytes of its entry byteorder", order.bytes, 16)?;
                match whole(source, &mut archive, order, "its entry byteorder")?.as_slice() {
                    b"little" => false,
                    b"big" => true,
                    other => {
                        let other = printable(&String::from_utf8_lossy(other));
                        return Err(Refusal::Malformed(format!(
                            "its entry byteorder says '{other}', expected little or big"
                        )));
                    }
                }
            }
        };
        let (machine, root, _) = Machine::run(&pickle, 0)?;
        let (root, storages) = unfold(&machine, root, length)?;
        let mut places = Vec::with_capacity(storages.len());
        for storage in &storages {
            let key = printable(&storage.key);
            let entry = entries.get(&format!("{folder}data/{}", storage.key)).ok_or_else(|| {
                Refusal::Malformed(format!("its pickle speaks of 'data/{key}', which is not found in the archive"))
            })?;
            if entry.bytes != storage.bytes {
                let (found, expected) = (entry.bytes, storage.bytes);
                return Err(Refusal::Truncated(format!("its storage '{key}' has {found} bytes, expected {expected}")));
            }
            places.push(entry.place);
        }
        Ok(Self { root, storages, places, source, archive: Some(archive), foreign_order })
    }

    /// Five pickles (magic number, version, system, the object, the keys of the storages), then for each key the number
    /// of elements and the elements, whose bytes are little-endian on every machine.
    fn open_stream(source: S) -> Result<Self, Refusal> {
        let length = source.length().map_err(Refusal::Io)?;
        let mut start = vec![0; length.min(bounds::HEADER_BYTES) as usize];
        source.read_at(&mut start, 0).map_err(Refusal::Io)?;
        let mut position = 0;
        let mut next = || {
            let (machine, root, bytes) = Machine::run(&start[position..], position)
                .map_err(|refusal| if (start.len() as u64) < length { too_long(refusal) } else { refusal })?;
            position += bytes;
            let (value, storages) = unfold(&machine, root, length)?;
            Ok::<_, Refusal>((value, storages, position))
        };
        next()?;
        let (version, ..) = next()?;
        if version != Value::Int(STREAM_VERSION) {
            let expected = STREAM_VERSION;
            return Err(Refusal::Malformed(format!("its format's version is not {expected}, the one that is read")));
        }
        next()?;
        let (root, storages, _) = next()?;
        let (keys, _, end) = next()?;
        let found = stream_places(source, length, keys.items().unwrap_or_default(), &storages, end as u64)?;
        let place = |storage: &Storage| {
            found.get(&storage.key).copied().ok_or_else(|| {
                let key = printable(&storage.key);
                Refusal::Malformed(format!("its pickle speaks of storage '{key}', which is not found behind it"))
            })
        };
        let places = storages.iter().map(place).collect::<Result<_, _>>()?;
        Ok(Self { root, storages, places, source, archive: None, foreign_order: false })
    }

    /// Fills `bytes`, as many as the storage has, in this machine's byte order.
    pub fn read(&mut self, storage: usize, bytes: &mut [u8]) -> Result<(), Refusal> {
        let Storage { key, word, .. } = &self.storages[storage];
        let what = format!("its storage '{}'", printable(key));
        match (self.places[storage], &mut self.archive) {
            (Place::Packed { entry }, Some(archive)) => unpack(archive, entry, bytes, &what)?,
            (Place::Plain { offset, checksum }, _) => read_plain(self.source, bytes, offset, checksum, &what)?,
            (Place::Packed { .. }, None) => return Err(Refusal::Malformed(format!("{what} is in no archive"))),
        }
        if self.foreign_order != cfg!(target_endian = "big") && *word > 1 {
            bytes.chunks_exact_mut(*word).for_each(<[u8]>::reverse);
        }
        Ok(())
    }
}

const PICKLE: &str = "data.pkl";

/// An entry of an archive.
struct Entry {
    bytes: u64,
    place: Place,
}

/// The archive's directory by name, checked.
fn entries<S: Source>(archive: &mut ZipArchive<Positioned<S>>, length: u64) -> Result<HashMap<String, Entry>, Refusal> {
    let malformed = |reason: String| Refusal::Malformed(reason);
    if archive.has_duplicate_names() {
        return Err(malformed("two of its zip entries have the same name".into()));
    }
    let mut unfolded = 0u128;
    let mut found = HashMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| malformed(said(&error)))?;
        let name = entry.name().map_err(|error| malformed(said(&error)))?.into_owned();
        let shown = printable(&name);
        if name.starts_with('/') || name.contains(['\\', '\0']) || name.split('/').any(|part| part == "..") {
            return Err(malformed(format!("the zip entry '{shown}' leads out of the archive")));
        }
        let bytes = entry.size();
        unfolded += u128::from(bytes);
        let place = match (entry.compression(), entry.data_start()) {
            (CompressionMethod::Stored, Some(offset)) if !entry.encrypted() && entry.compressed_size() == bytes => {
                // torch.save can be told to leave checksums out, and then writes 0.
                let checksum = (entry.crc32() != 0).then_some(entry.crc32());
                Place::Plain { offset, checksum }
            }
            (CompressionMethod::Stored, _) => {
                return Err(malformed(format!("the zip entry '{shown}' is encrypted or of two sizes")));
            }
            _ => Place::Packed { entry: index },
        };
        found.insert(name, Entry { bytes, place });
    }
    let what = "bytes of its zip entries when unpacked, for a file of its size";
    check(what, unfolded, bounds::unfolded_bytes(length))?;
    Ok(found)
}

/// All bytes of a small entry.
fn whole<S: Source>(
    source: S,
    archive: &mut ZipArchive<Positioned<S>>,
    entry: &Entry,
    what: &str,
) -> Result<Vec<u8>, Refusal> {
    let mut bytes = vec![0; entry.bytes as usize];
    match entry.place {
        Place::Packed { entry } => unpack(archive, entry, &mut bytes, what)?,
        Place::Plain { offset, checksum } => read_plain(source, &mut bytes, offset, checksum, what)?,
    }
    Ok(bytes)
}

fn unpack<S: Source>(
    archive: &mut ZipArchive<Positioned<S>>,
    entry: usize,
    bytes: &mut [u8],
    what: &str,
) -> Result<(), Refusal> {
    let mut entry = archive.by_index(entry).map_err(|error| Refusal::Malformed(said(&error)))?;
    // The archive's reader checks the checksum once it meets the end.
    entry.read_exact(bytes).and_then(|()| entry.read(&mut [0])).map_err(|error| damaged(&error, what))?;
    Ok(())
}

fn read_plain(
    source: impl Source,
    bytes: &mut [u8],
    offset: u64,
    checksum: Option<u32>,
    what: &str,
) -> Result<(), Refusal> {
    let mut sum = crc32fast::Hasher::new();
    let mut position = offset;
    for chunk in bytes.chunks_mut(CHUNK) {
        source.read_at(chunk, position).map_err(|error| damaged(&error, what))?;
        if checksum.is_some() {
            sum.update(chunk);
        }
        position = position.saturating_add(chunk.len() as u64);
    }
    match checksum {
        Some(expected) if expected != sum.finalize() => {
            Err(Refusal::Malformed(format!("the bytes of {what} do not fit their checksum")))
        }
        _ => Ok(()),
    }
}

/// Where the storages of a stream lie, by key. `position` is that of the first one's number of elements.
fn stream_places(
    source: impl Source,
    length: u64,
    keys: &[Value<TensorSpec>],
    storages: &[Storage],
    mut position: u64,
) -> Result<HashMap<String, Place>, Refusal> {
    let known: HashMap<&str, &Storage> = storages.iter().map(|storage| (storage.key.as_str(), storage)).collect();
    let mut places = HashMap::new();
    for key in keys {
        let storage = key.as_str().and_then(|key| known.get(key));
        let storage = storage
            .ok_or_else(|| Refusal::Malformed("its list of storages names one that no tensor lies in".to_owned()))?;
        let what = format!("its storage '{}'", printable(&storage.key));
        let mut count = [0; 8];
        source.read_at(&mut count, position).map_err(|error| damaged(&error, &what))?;
        let offset = position + count.len() as u64;
        let count = u64::from_le_bytes(count);
        if u128::from(count) * u128::from(storage.element_bytes) != u128::from(storage.bytes) {
            let expected = storage.bytes / storage.element_bytes;
            return Err(Refusal::Malformed(format!("{what} says that it has {count} elements, expected {expected}")));
        }
        position = offset.saturating_add(storage.bytes);
        if position > length {
            return Err(Refusal::Truncated(format!("{what} should end at byte {position}, the file ends at {length}")));
        }
        if places.insert(storage.key.clone(), Place::Plain { offset, checksum: None }).is_some() {
            return Err(Refusal::Malformed(format!("{what} stands twice")));
        }
    }
    Ok(places)
}

/// What reading bytes of `what` met.
fn damaged(error: &io::Error, what: &str) -> Refusal {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Refusal::Truncated(format!("the file ends within {what}")),
        _ => Refusal::Malformed(format!("{what} cannot be read ({})", printable(&error.to_string()))),
    }
}

/// A pickle at the head of a long file that did not end within what may be read of it.
fn too_long(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Truncated(_) => {
            let (what, allowed) = ("bytes of its pickles".to_owned(), u128::from(bounds::HEADER_BYTES));
            Refusal::Bound(Exceeded { what, found: allowed + 1, allowed })
        }
        other => other,
    }
}

fn said(error: &zip::result::ZipError) -> String {
    printable(&error.to_string())
}

/// A source with a position, as the archive's reader wants it.
#[derive(Debug, Clone, Copy)]
struct Positioned<S> {
    source: S,
    position: u64,
    length: u64,
}

impl<S: Source> Read for Positioned<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = (bytes.len() as u64).min(self.length.saturating_sub(self.position)) as usize;
        self.source.read_at(&mut bytes[..count], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl<S> Seek for Positioned<S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
