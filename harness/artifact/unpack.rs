//! Archives to files. In: a `.tar.gz` or `.zip` file, treated as hostile. Out: its files in a folder, all of them or
//! none.
//!
//! Only what the published archives need is unpacked: files and folders under plain relative names. What two programs
//! could read in two ways (PAX records that move an entry, zip headers that contradict each other, data behind the end)
//! is refused, so that the files whose archive has the right hash are the files that everybody has.

mod names;
mod tar_gz;
mod zip_file;

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use crate::fs::{FsError, Staging};
use crate::text::{printable, shown};
use names::{Refusal, Tree};

/// How large an archive and its parts may be. The published archives hold at most some hundred files of at most 0.3 GB;
/// each bound leaves room for what may come, and none of them lets a small archive fill the disk.
mod bounds {
    /// Entries, folders among them.
    pub const ENTRIES: u64 = 20_000;
    /// Of one unpacked file: as much as a checkpoint may have.
    pub const FILE_BYTES: u64 = 8 << 30;
    /// Of all unpacked files.
    pub const TOTAL_BYTES: u64 = 64 << 30;
    /// Of a whole path; Linux takes 4,096 with the folder that it is unpacked into.
    pub const NAME_BYTES: usize = 1024;
    /// Of a file's or a folder's own name, as file systems have it.
    pub const PART_BYTES: usize = 255;
    /// Parts of a path; the published checkpoints have 4.
    pub const DEPTH: usize = 16;

    /// Bytes that an archive of `packed` bytes may unpack to. CIFAR's grow by 1.08, checkpoints hardly, log files by
    /// 10; a bomb of zeros grows by 1,000.
    pub fn unpacked(packed: u64) -> u64 {
        (16 * packed + (1 << 20)).min(TOTAL_BYTES)
    }
}

/// An archive could not be unpacked. Nothing of it is left on the disk.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    File(#[from] FsError),
    #[error("cannot read {}: {source}; check the path", shown(path))]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{} is not an archive: it {found}; expected .tar.gz or .zip, download it again", shown(path))]
    NotAnArchive { path: PathBuf, found: String },
    #[error("{} is cut short or damaged: {found}; download it again", shown(path))]
    Damaged { path: PathBuf, found: String },
    #[error("{} is refused: {what}: found {found}, allowed {allowed}; check where the file comes from", shown(path))]
    Bound { path: PathBuf, what: String, found: u64, allowed: u64 },
    #[error(
        "{} is refused: its entry '{entry}' {reason}; expected plain relative names, check where the file comes from",
        shown(path)
    )]
    Name { path: PathBuf, entry: String, reason: &'static str },
    #[error(
        "{} is refused: its entry '{entry}' {reason}; expected each name once, check where the file comes from",
        shown(path)
    )]
    Duplicate { path: PathBuf, entry: String, reason: String },
    #[error(
        "{} is refused: its entry '{entry}' is {kind}; expected files and folders alone, check where the file comes from",
        shown(path)
    )]
    Kind { path: PathBuf, entry: String, kind: String },
    #[error("{} is refused: {reason}; check where the file comes from, or pack it anew", shown(path))]
    Malformed { path: PathBuf, reason: String },
}

/// What came out of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Paths within the folder, in the order of the archive.
    pub files: Vec<PathBuf>,
    /// Of all files.
    pub bytes: u64,
}

/// Unpacks a `.tar.gz` or `.zip` archive, told apart by content, into the folder `into`, which may hold other things:
/// a top-level entry of the archive replaces what has its name there, once everything is extracted, checked and synced.
/// Files get the permissions 0644, folders 0755 (less the umask), and the time of unpacking. Until then they lie in the
/// folder `scratch`, on the same file system, where nothing looks for files; it is emptied first, and gone afterwards.
///
/// # Errors
/// One variant of [`UnpackError`] per kind of damage or attack; a full disk is [`UnpackError::File`]. `into` is then as
/// it was, and no temporary file is left.
pub fn unpack(archive: &Path, into: &Path, scratch: &Path) -> Result<Unpacked, UnpackError> {
    let (archive, format, reader) = Archive::open(archive)?;
    let extraction = Extraction {
        archive,
        staging: Staging::new(scratch, into)?,
        tree: Tree::default(),
        entries: 0,
        unpacked: Unpacked { files: Vec::new(), bytes: 0 },
    };
    match format {
        Format::TarGz => tar_gz::extract(reader, extraction),
        Format::Zip => zip_file::extract(reader, extraction),
    }
}

/// The names of the entries of a zip file, under the bounds that it is unpacked under; none where it is no zip file.
///
/// # Errors
/// As those of [`unpack`], as far as the directory shows them.
pub fn names_in_zip(archive: &Path) -> Result<Vec<String>, UnpackError> {
    match Archive::open(archive)? {
        (archive, Format::Zip, reader) => zip_file::names(reader, &archive),
        _ => Ok(Vec::new()),
    }
}

/// Refuses a file that does not begin as an archive does.
pub(super) fn check_begin(archive: &Path) -> Result<(), UnpackError> {
    Archive::open(archive).map(|_| ())
}

/// By its first bytes.
enum Format {
    TarGz,
    Zip,
}

/// The file that is read.
struct Archive<'a> {
    path: &'a Path,
    /// Its length.
    packed: u64,
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path) -> Result<(Self, Format, BufReader<File>), UnpackError> {
        let unreadable = |source| UnpackError::Unreadable { path: path.into(), source };
        let mut file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            let found = "is a folder or a device, not a file".to_owned();
            return Err(UnpackError::NotAnArchive { path: path.into(), found });
        }
        let mut head = Vec::new();
        (&file).take(24).read_to_end(&mut head).map_err(unreadable)?;
        file.rewind().map_err(unreadable)?;
        let format = match head[..] {
            [0x1f, 0x8b, ..] => Format::TarGz,
            [b'P', b'K', 3 | 5, 4 | 6, ..] => Format::Zip,
            _ => return Err(UnpackError::NotAnArchive { path: path.into(), found: crate::text::describe(&head) }),
        };
        Ok((Self { path, packed: metadata.len() }, format, BufReader::with_capacity(256 << 10, file)))
    }

    fn check(&self, what: &str, found: u64, allowed: u64) -> Result<(), UnpackError> {
        if found <= allowed {
            return Ok(());
        }
        Err(UnpackError::Bound { path: self.path.into(), what: what.to_owned(), found, allowed })
    }

    /// An error while the archive was read: of its compression, or of the disk.
    fn unreadable(&self, source: &std::io::Error) -> UnpackError {
        if source.raw_os_error().is_some() {
            let source = std::io::Error::new(source.kind(), source.to_string());
            return UnpackError::Unreadable { path: self.path.into(), source };
        }
        self.damaged(match source.kind() {
            std::io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
            _ => printable(&source.to_string()),
        })
    }

    fn damaged(&self, found: String) -> UnpackError {
        UnpackError::Damaged { path: self.path.into(), found }
    }

    fn malformed(&self, reason: String) -> UnpackError {
        UnpackError::Malformed { path: self.path.into(), reason }
    }

    fn kind(&self, name: &[u8], kind: &str) -> UnpackError {
        let entry = printable(&String::from_utf8_lossy(name));
        UnpackError::Kind { path: self.path.into(), entry, kind: kind.to_owned() }
    }
}

/// Everything of an archive so far, out of sight.
struct Extraction<'a> {
    archive: Archive<'a>,
    staging: Staging,
    tree: Tree,
    entries: u64,
    unpacked: Unpacked,
}

impl Extraction<'_> {
    /// Checks an entry's name, against those before it too. The slash that ends a folder's name is gone.
    fn add<'n>(&mut self, name: &'n [u8], folder: bool) -> Result<&'n Path, UnpackError> {
        self.entries += 1;
        self.archive.check("number of entries", self.entries, bounds::ENTRIES)?;
        let name_of = |name: &[u8]| printable(&String::from_utf8_lossy(name));
        let added = names::check(name).and_then(|text| self.tree.add(text, folder).map(|()| text));
        added.map(Path::new).map_err(|refusal| {
            let (path, entry) = (self.archive.path.to_path_buf(), name_of(name));
            match refusal {
                Refusal::Name(reason) => UnpackError::Name { path, entry, reason },
                Refusal::Duplicate(reason) => UnpackError::Duplicate { path, entry, reason },
                Refusal::Bound { what, found, allowed } => {
                    let what = format!("{what} (entry '{entry}')");
                    UnpackError::Bound { path, what, found: found as u64, allowed: allowed as u64 }
                }
            }
        })
    }

    /// Checks what an entry says of its size before anything of it is written.
    fn reserve(&mut self, name: &Path, size: u64) -> Result<(), UnpackError> {
        let entry = printable(&name.to_string_lossy());
        self.archive.check(&format!("bytes of its entry '{entry}'"), size, bounds::FILE_BYTES)?;
        self.unpacked.bytes = self.unpacked.bytes.saturating_add(size);
        let allowed = bounds::unpacked(self.archive.packed);
        self.archive.check("bytes when unpacked, for a file of its size", self.unpacked.bytes, allowed)
    }

    /// Writes a file of `size` bytes.
    fn file(&mut self, name: &Path, size: u64, content: &mut dyn Read) -> Result<(), UnpackError> {
        let mut file = self.staging.file(name)?;
        let mut buffer = vec![0; 64 << 10];
        let mut left = size;
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match content.read(&mut buffer[..most]) {
                Ok(0) => {
                    let entry = printable(&name.to_string_lossy());
                    return Err(self.archive.damaged(format!("its entry '{entry}' ends {left} bytes early")));
                }
                Ok(count) => {
                    file.write(&buffer[..count])?;
                    left -= count as u64;
                }
                Err(source) if source.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.archive.unreadable(&source)),
            }
        }
        file.finish()?;
        self.unpacked.files.push(name.to_path_buf());
        Ok(())
    }

    /// Makes everything visible.
    fn finish(self) -> Result<Unpacked, UnpackError> {
        if self.unpacked.files.is_empty() {
            return Err(self.archive.malformed("it holds no file".to_owned()));
        }
        self.staging.commit()?;
        Ok(self.unpacked)
    }
}
