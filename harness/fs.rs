//! The one door to the disk: every file this program writes goes through here, so that a reader never sees half
//! of one and a crash never loses the version before.

mod lock;
mod staging;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

pub use lock::FolderLock;
pub use staging::{StagedFile, Staging};

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}{}", path.display(), remedy(source))]
pub struct FsError {
    action: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

impl FsError {
    /// Whether this user may not write there, or nobody may.
    pub fn forbids_writing(&self) -> bool {
        matches!(self.source.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
    }

    /// Whether a folder with content was where something was to go.
    fn found_a_folder(&self) -> bool {
        matches!(self.source.kind(), std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists)
    }
}

fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; free some space and run the same command again: what was there before is unharmed"
        }
        std::io::ErrorKind::PermissionDenied => "; choose a folder that you may write to",
        std::io::ErrorKind::NotFound => "; check the path",
        std::io::ErrorKind::CrossesDevices => {
            "; it lies on another disk: keep the whole cache there (SDCLR_CACHE or --cache DIR), or link all of data or published"
        }
        _ => "",
    }
}

fn error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FsError {
    let path = path.to_path_buf();
    move |source| FsError { action, path, source }
}

/// The whole file.
pub fn read(path: &Path) -> Result<Vec<u8>, FsError> {
    std::fs::read(path).map_err(error("read", path))
}

/// The whole file as UTF-8 text.
pub fn read_to_string(path: &Path) -> Result<String, FsError> {
    std::fs::read_to_string(path).map_err(error("read", path))
}

/// Whether there is anything at `path`.
///
/// # Errors
/// That cannot be told: a folder on the way may not be entered.
pub fn exists(path: &Path) -> Result<bool, FsError> {
    path.try_exists().map_err(error("look for", path))
}

/// The file's length in bytes.
pub fn length(path: &Path) -> Result<u64, FsError> {
    Ok(path.metadata().map_err(error("read", path))?.len())
}

/// Gives the whole file to `each`, in order, in pieces of at most 256 KiB: for files that are larger than the memory.
pub fn read_pieces(path: &Path, mut each: impl FnMut(&[u8])) -> Result<(), FsError> {
    let mut file = File::open(path).map_err(error("read", path))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => each(&buffer[..count]),
            Err(source) if source.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(error("read", path)(source)),
        }
    }
}

/// The whole of a regular file that has at most `limit` bytes: what a hostile file may cost.
pub fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>, FsError> {
    (|| {
        // Opening a pipe would wait for its other end.
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::other("it is a folder or a device, not a file"));
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 <= limit {
            true => Ok(bytes),
            false => Err(std::io::Error::other(format!("it has more than the {limit} bytes allowed"))),
        }
    })()
    .map_err(error("read", path))
}

/// What lies in a folder, in the order of the names.
pub fn list_folder(path: &Path) -> Result<Vec<PathBuf>, FsError> {
    let entries = std::fs::read_dir(path).map_err(error("list the folder", path))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(error("list the folder", path))?;
    paths.sort();
    Ok(paths)
}

/// Creates the folder and its parents; no error where it exists.
pub fn create_folder(path: &Path) -> Result<(), FsError> {
    std::fs::create_dir_all(path).map_err(|reason| {
        let reason = match reason.kind() {
            std::io::ErrorKind::AlreadyExists => std::io::Error::other(
                "a part of the path is a file, or a link to what is not there; remove it, or mount the disk that it names",
            ),
            _ => reason,
        };
        error("create the folder", path)(reason)
    })
}

/// Replaces `path` by `bytes`, whole or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FsError> {
    write_with(path, |file| file.write_all(bytes))
}

/// Replaces `path` by what `body` writes, whole or not at all: a temporary file in the same folder, fsync, rename,
/// fsync of the folder. After an error the old file, if any, is untouched and the temporary one is gone. A device or pipe
/// is not replaced.
pub fn write_with(
    path: &Path,
    body: impl FnOnce(&mut BufWriter<&mut File>) -> std::io::Result<()>,
) -> Result<(), FsError> {
    let folder = parent(path);
    create_folder(folder)?;
    (|| {
        if std::fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
            return Err(std::io::Error::other("it is a device or a pipe, not a file; choose another name"));
        }
        let mut temporary = tempfile::Builder::new()
            .prefix(TEMPORARY.0)
            .suffix(TEMPORARY.1)
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder)?;
        let mut writer = BufWriter::new(temporary.as_file_mut());
        body(&mut writer)?;
        writer.flush()?;
        drop(writer);
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|failure| failure.error)?;
        File::open(folder)?.sync_all()
    })()
    .map_err(error("write", path))
}

/// Whether both paths lead to one file, which is there.
pub fn same_file(one: &Path, other: &Path) -> bool {
    one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

/// How the name of what is not whole yet begins and ends.
const TEMPORARY: (&str, &str) = (".sdclr-", ".part");

/// The folder that `path` lies in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// An empty folder among the system's temporary ones, gone with all that it holds when it is dropped.
pub fn temporary_folder() -> Result<tempfile::TempDir, FsError> {
    tempfile::tempdir().map_err(error("create a temporary folder in", &std::env::temp_dir()))
}

/// Removes the file; no error where there is none.
pub fn remove(path: &Path) -> Result<(), FsError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(error("remove", path)(source)),
        _ => Ok(()),
    }
}

/// A file of lines that grows: what was appended stays, whatever happens later.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens `path` for appending, creating it and its folder where needed.
    pub fn open(path: &Path) -> Result<Self, FsError> {
        if let Some(folder) = path.parent() {
            create_folder(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(error("open", path))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Appends one line with a single write.
    pub fn line(&mut self, text: &str) -> Result<(), FsError> {
        self.file.write_all(format!("{text}\n").as_bytes()).map_err(error("append to", &self.path))
    }
}

fn move_to(from: &Path, to: &Path) -> Result<(), FsError> {
    #[expect(clippy::disallowed_methods, reason = "the callers sync the folders")]
    std::fs::rename(from, to).map_err(error("move a file or folder to", to))
}

fn sync_folder(path: &Path) -> Result<(), FsError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(error("sync the folder", path))
}

/// Moves a file to `to` (in the same file system, whose folder is created), replacing what is there, and syncs the folder.
pub fn rename(from: &Path, to: &Path) -> Result<(), FsError> {
    create_folder(parent(to))?;
    move_to(from, to)?;
    sync_folder(parent(to))
}

/// Makes `link` lead to `folder`, replacing a link that is there.
pub fn link_folder(folder: &Path, link: &Path) -> Result<(), FsError> {
    create_folder(parent(link))?;
    let folder = folder.canonicalize().map_err(error("find the folder", folder))?;
    let staging = tempfile::Builder::new().prefix(TEMPORARY.0).suffix(TEMPORARY.1).tempdir_in(parent(link));
    let staging = staging.map_err(error("create a temporary folder in", parent(link)))?;
    let new = staging.path().join("link");
    std::os::unix::fs::symlink(&folder, &new).map_err(error("create the link", link))?;
    move_to(&new, link)?;
    sync_folder(parent(link))
}

/// Bytes that this user may still write to the file system on which the folder `path` lies.
pub fn free_space(path: &Path) -> Result<u64, FsError> {
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|source| error("ask for the free space of", path)(source.into()))?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` ends with a zero byte and `answer` is as large as the call writes.
    if unsafe { libc::statvfs(name.as_ptr(), answer.as_mut_ptr()) } != 0 {
        return Err(error("ask for the free space of", path)(std::io::Error::last_os_error()));
    }
    // SAFETY: the call succeeded, so all of it is written.
    let answer = unsafe { answer.assume_init() };
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// A file that grows where anybody may look, and takes its place only when it is whole: what a crash leaves of it can be
/// gone on with.
#[derive(Debug)]
pub struct Growing {
    file: File,
    path: PathBuf,
}

impl Growing {
    /// Opens `path` (its folder is created) and keeps the first `keep` bytes of what is there.
    pub fn open(path: &Path, keep: u64) -> Result<Self, FsError> {
        create_folder(parent(path))?;
        let open = || {
            let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
            file.set_len(keep)?;
            file.seek(std::io::SeekFrom::Start(keep))?;
            Ok(file)
        };
        Ok(Self { file: open().map_err(error("write", path))?, path: path.to_path_buf() })
    }

    pub fn append(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        self.file.write_all(bytes).map_err(error("write", &self.path))
    }

    /// Syncs the file.
    pub fn sync(&self) -> Result<(), FsError> {
        self.file.sync_all().map_err(error("write", &self.path))
    }
}
