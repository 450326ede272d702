//! The one door to the disk: every file this program writes goes through here, so that a reader never sees half
//! of one and a crash never loses the version before.

mod inputs;
mod lock;
mod staging;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use inputs::{Inputs, ReplacesInput};
pub use lock::FolderLock;
pub use staging::{StagedFile, Staging};

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {} {}: {source}{}", action.words(), crate::text::shown(path), remedy(*action, source))]
pub struct FsError {
    action: Action,
    path: PathBuf,
    source: std::io::Error,
}

/// What was being done to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Read,
    LookAt,
    LookInto,
    List,
    FindFolder,
    AskForSpace,
    Write,
    Append,
    Open,
    Create,
    CreateFolder,
    CreateTemporaryFolder,
    CreateLink,
    MoveTo,
    Remove,
    SyncFolder,
    OpenLock,
    Lock,
}

impl Action {
    fn words(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::LookAt => "look at",
            Self::LookInto => "look into",
            Self::List => "list the folder",
            Self::FindFolder => "find the folder",
            Self::AskForSpace => "ask for the free space of",
            Self::Write => "write",
            Self::Append => "append to",
            Self::Open => "open",
            Self::Create => "create",
            Self::CreateFolder => "create the folder",
            Self::CreateTemporaryFolder => "create a temporary folder in",
            Self::CreateLink => "create the link",
            Self::MoveTo => "move a file or folder to",
            Self::Remove => "remove",
            Self::SyncFolder => "sync the folder",
            Self::OpenLock => "open the lock",
            Self::Lock => "lock",
        }
    }

    fn only_reads(self) -> bool {
        matches!(self, Self::Read | Self::LookAt | Self::LookInto | Self::List | Self::FindFolder | Self::AskForSpace)
    }
}

impl FsError {
    /// Whether this user may not write there, or nobody may.
    pub fn forbids_writing(&self) -> bool {
        matches!(self.source.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
    }

    /// Whether no file could be created there: it may not be, or there is no room.
    fn prevents_creation(&self) -> bool {
        use std::io::ErrorKind;
        let full = matches!(self.source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        !self.action.only_reads() && (full || self.forbids_writing())
    }

    /// Whether nothing lies at the path.
    pub fn is_absent(&self) -> bool {
        is_absent(&self.source)
    }

    /// Whether a folder with content was where something was to go.
    fn found_a_folder(&self) -> bool {
        matches!(self.source.kind(), std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists)
    }
}

fn remedy(action: Action, source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "; free some space and run the same command again: what was there before is unharmed"
        }
        ErrorKind::PermissionDenied if action.only_reads() => "; ask its owner to let you read it",
        ErrorKind::PermissionDenied => "; choose a folder that you may write to",
        ErrorKind::ReadOnlyFilesystem => {
            "; nobody may write to this file system: choose a folder elsewhere (of the cache: --cache DIR or SDCLR_CACHE)"
        }
        ErrorKind::FileTooLarge => {
            "; a limit on the size of files is set (ulimit -f), or the file system has one: raise it, or choose another folder"
        }
        ErrorKind::NotFound if action == Action::CreateTemporaryFolder => {
            "; set TMPDIR to a folder that is there, or unset it"
        }
        ErrorKind::NotFound => "; check the path",
        ErrorKind::CrossesDevices => {
            "; it lies on another disk: keep the whole cache there (SDCLR_CACHE or --cache DIR), or link all of data or published"
        }
        _ => "",
    }
}

fn error(action: Action, path: &Path) -> impl FnOnce(std::io::Error) -> FsError {
    let path = path.to_path_buf();
    move |source| FsError { action, path, source }
}

/// Nothing of that name, or a part of the path is a file.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// What lies at `path`, links followed; `None` where nothing does.
///
/// # Errors
/// A folder on the way may not be entered: what lies there cannot be told.
fn look_at(path: &Path) -> Result<Option<std::fs::Metadata>, FsError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(source) if is_absent(&source) => Ok(None),
        Err(source) => Err(error(Action::LookAt, path)(source)),
    }
}

/// Whether anything lies at `path`.
///
/// # Errors
/// A folder on the way may not be entered.
pub fn exists(path: &Path) -> Result<bool, FsError> {
    Ok(look_at(path)?.is_some())
}

/// Whether a file lies at `path`.
///
/// # Errors
/// A folder on the way may not be entered.
pub fn is_file(path: &Path) -> Result<bool, FsError> {
    Ok(look_at(path)?.is_some_and(|found| found.is_file()))
}

/// Whether a folder lies at `path`.
///
/// # Errors
/// A folder on the way may not be entered.
pub fn is_folder(path: &Path) -> Result<bool, FsError> {
    Ok(look_at(path)?.is_some_and(|found| found.is_dir()))
}

/// Whether the folder `path` is there and may be entered.
///
/// # Errors
/// It is there, and this user may not look into it.
pub fn is_open_folder(path: &Path) -> Result<bool, FsError> {
    if !is_folder(path)? {
        return Ok(false);
    }
    // To look up a name takes the same permission as to look up any other.
    match std::fs::metadata(path.join(".")) {
        Ok(_) => Ok(true),
        Err(source) => Err(error(Action::LookInto, path)(source)),
    }
}

/// The whole file.
pub fn read(path: &Path) -> Result<Vec<u8>, FsError> {
    std::fs::read(path).map_err(error(Action::Read, path))
}

/// The whole file as UTF-8 text.
pub fn read_to_string(path: &Path) -> Result<String, FsError> {
    std::fs::read_to_string(path).map_err(error(Action::Read, path))
}

/// The file's length in bytes.
pub fn length(path: &Path) -> Result<u64, FsError> {
    Ok(path.metadata().map_err(error(Action::Read, path))?.len())
}

/// Gives the whole file to `each`, in order, in pieces of at most 256 KiB: for files that are larger than the memory.
pub fn read_pieces(path: &Path, mut each: impl FnMut(&[u8])) -> Result<(), FsError> {
    let mut file = File::open(path).map_err(error(Action::Read, path))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => each(&buffer[..count]),
            Err(source) if source.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(error(Action::Read, path)(source)),
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
    .map_err(error(Action::Read, path))
}

/// The text of a regular file of at most `limit` bytes, in UTF-8 or UTF-16: what people write or get from others.
pub fn read_text(path: &Path, limit: u64) -> Result<String, FsError> {
    Ok(crate::text::decoded(&read_at_most(path, limit)?).into_owned())
}

/// What lies in a folder, in the order of the names.
pub fn list_folder(path: &Path) -> Result<Vec<PathBuf>, FsError> {
    let entries = std::fs::read_dir(path).map_err(error(Action::List, path))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(error(Action::List, path))?;
    paths.sort();
    Ok(paths)
}

/// The path from one folder to another, both of which are there: what a link between files in them begins with.
///
/// # Errors
/// One of the two cannot be found.
pub fn path_between(from: &Path, to: &Path) -> Result<PathBuf, FsError> {
    let whole = |path: &Path| path.canonicalize().map_err(error(Action::LookInto, path));
    let (from, to) = (whole(from)?, whole(to)?);
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| std::path::Component::ParentDir);
    Ok(up.chain(to.components().skip(shared)).collect())
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
        error(Action::CreateFolder, path)(reason)
    })
}

/// Replaces `path` by `bytes`, whole or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FsError> {
    write_with(path, |file| file.write_all(bytes))
}

/// Replaces `path` by what `body` writes, whole or not at all: a temporary file in the same folder, fsync, rename,
/// fsync of the folder. After an error the old file, if any, is untouched and the temporary one is gone; that of a process that
/// was killed is removed by a later write in the folder. A device or pipe is not replaced.
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
    .map_err(error(Action::Write, path))?;
    // The file itself is written, whatever comes of others.
    let _ = remove_half_written(folder, ABANDONED);
    Ok(())
}

/// How the name of what is not whole yet begins and ends.
const TEMPORARY: (&str, &str) = (".sdclr-", ".part");

/// A temporary file that nobody has written to for so long is a killed process's.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// Removes the temporary files in `folder` that nobody has written to for `age`.
fn remove_half_written(folder: &Path, age: Duration) -> Result<(), FsError> {
    for path in list_folder(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !(name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)) {
            continue;
        }
        let found = look_at(&path)?.filter(|found| found.is_file());
        let modified = found.and_then(|found| found.modified().ok());
        if modified.is_some_and(|modified| modified.elapsed().unwrap_or_default() >= age) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// The folder that `path` lies in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// An empty folder among the system's temporary ones, gone with all that it holds when it is dropped.
pub fn temporary_folder() -> Result<tempfile::TempDir, FsError> {
    let folder = std::env::temp_dir();
    // The error of the crate names a path below it, which nobody knows.
    std::fs::metadata(&folder).map_err(error(Action::CreateTemporaryFolder, &folder))?;
    tempfile::tempdir_in(&folder).map_err(error(Action::CreateTemporaryFolder, &folder))
}

/// Removes the file; no error where there is none.
pub fn remove(path: &Path) -> Result<(), FsError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(error(Action::Remove, path)(source)),
        _ => Ok(()),
    }
}

/// A file that grows: what was appended stays, whatever happens later.
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
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(error(Action::Open, path))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Appends one line with a single write.
    pub fn line(&mut self, text: &str) -> Result<(), FsError> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Appends bytes with a single write.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        self.file.write_all(bytes).map_err(error(Action::Append, &self.path))
    }
}

fn move_to(from: &Path, to: &Path) -> Result<(), FsError> {
    #[expect(clippy::disallowed_methods, reason = "the callers sync the folders")]
    std::fs::rename(from, to).map_err(error(Action::MoveTo, to))
}

fn sync_folder(path: &Path) -> Result<(), FsError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(error(Action::SyncFolder, path))
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
    let folder = folder.canonicalize().map_err(error(Action::FindFolder, folder))?;
    let staging = tempfile::Builder::new().prefix(TEMPORARY.0).suffix(TEMPORARY.1).tempdir_in(parent(link));
    let staging = staging.map_err(error(Action::CreateTemporaryFolder, parent(link)))?;
    let new = staging.path().join("link");
    std::os::unix::fs::symlink(&folder, &new).map_err(error(Action::CreateLink, link))?;
    move_to(&new, link)?;
    sync_folder(parent(link))
}

/// Bytes that this user may still write to the file system on which the folder `path` lies.
pub fn free_space(path: &Path) -> Result<u64, FsError> {
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|source| error(Action::AskForSpace, path)(source.into()))?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` ends with a zero byte and `answer` is as large as the call writes.
    if unsafe { libc::statvfs(name.as_ptr(), answer.as_mut_ptr()) } != 0 {
        return Err(error(Action::AskForSpace, path)(std::io::Error::last_os_error()));
    }
    // SAFETY: the call succeeded, so all of it is written.
    let answer = unsafe { answer.assume_init() };
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// [`free_space`] where the folder `path` will be made: of the nearest folder above it that is there.
pub fn free_space_for(path: &Path) -> Result<u64, FsError> {
    let there = path.ancestors().find(|folder| folder.is_dir());
    free_space(there.unwrap_or(Path::new(".")))
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
        Ok(Self { file: open().map_err(error(Action::Write, path))?, path: path.to_path_buf() })
    }

    pub fn append(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        self.file.write_all(bytes).map_err(error(Action::Write, &self.path))
    }

    /// Syncs the file.
    pub fn sync(&self) -> Result<(), FsError> {
        self.file.sync_all().map_err(error(Action::Write, &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_fits_what_was_being_done() {
        let said = |action, code| {
            let error = error(action, Path::new("X"))(std::io::Error::from_raw_os_error(code)).to_string();
            error.replace(&format!(" (os error {code})"), "")
        };
        let known = [
            (Action::Read, libc::EACCES, "cannot read X: Permission denied; ask its owner to let you read it"),
            (
                Action::List,
                libc::EACCES,
                "cannot list the folder X: Permission denied; ask its owner to let you read it",
            ),
            (Action::LookInto, libc::EACCES, "cannot look into X: Permission denied; ask its owner to let you read it"),
            (Action::Write, libc::EACCES, "cannot write X: Permission denied; choose a folder that you may write to"),
            (
                Action::OpenLock,
                libc::EACCES,
                "cannot open the lock X: Permission denied; choose a folder that you may write to",
            ),
            (
                Action::CreateFolder,
                libc::EROFS,
                "cannot create the folder X: Read-only file system; nobody may write to this file system: choose a folder \
                 elsewhere (of the cache: --cache DIR or SDCLR_CACHE)",
            ),
            (
                Action::Write,
                libc::EFBIG,
                "cannot write X: File too large; a limit on the size of files is set (ulimit -f), or the file system has one: \
                 raise it, or choose another folder",
            ),
            (Action::Read, libc::ENOENT, "cannot read X: No such file or directory; check the path"),
            (
                Action::CreateTemporaryFolder,
                libc::ENOENT,
                "cannot create a temporary folder in X: No such file or directory; set TMPDIR to a folder that is there, or \
                 unset it",
            ),
        ];
        for (action, code, text) in known {
            assert_eq!(said(action, code), text);
        }
    }

    #[test]
    fn a_write_removes_what_a_killed_one_left() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let left = [(".sdclr-old.part", 25), (".sdclr-new.part", 23), ("old.part", 25)];
        left.iter().for_each(|(name, _)| write(&at(name), b"").unwrap());
        for (name, hours) in left {
            let file = OpenOptions::new().write(true).open(at(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(hours * 60 * 60)).unwrap();
        }
        write(&at("file"), b"x").unwrap();
        assert_eq!(list_folder(folder.path()).unwrap(), [".sdclr-new.part", "file", "old.part"].map(at));
    }

    #[test]
    fn absent_is_what_is_known_to_be_absent() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        write(&at("file"), b"x").unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
        std::os::unix::fs::symlink(at("round"), at("round")).unwrap();
        let kinds = |path: &Path| (exists(path).unwrap(), is_file(path).unwrap(), is_folder(path).unwrap());
        assert_eq!(kinds(&at("file")), (true, true, false));
        assert_eq!(kinds(folder.path()), (true, false, true));
        for name in ["nowhere", "dangling", "file/below"] {
            assert_eq!(kinds(&at(name)), (false, false, false), "{name}");
        }
        let error = exists(&at("round")).unwrap_err().to_string();
        assert!(error.contains("cannot look at") && error.contains("symbolic links"), "{error}");
        assert!(is_open_folder(folder.path()).unwrap() && !is_open_folder(&at("file")).unwrap());
    }
}
