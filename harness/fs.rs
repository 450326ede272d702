//! The one door to the disk: every file this program writes goes through here, so that a reader never sees half
//! of one and a crash never loses the version before.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}{}", path.display(), remedy(source))]
pub struct FsError {
    action: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; free some space and run the same command again: what was there before is unharmed"
        }
        std::io::ErrorKind::PermissionDenied => "; choose a folder that you may write to",
        std::io::ErrorKind::NotFound => "; check the path",
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

/// Creates the folder and its parents; no error where it exists.
pub fn create_folder(path: &Path) -> Result<(), FsError> {
    std::fs::create_dir_all(path).map_err(error("create the folder", path))
}

/// Replaces `path` by `bytes`, whole or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FsError> {
    write_with(path, |file| file.write_all(bytes))
}

/// Replaces `path` by what `body` writes, whole or not at all: a temporary file in the same folder, fsync, rename,
/// fsync of the folder. After an error the old file, if any, is untouched and the temporary one is gone.
pub fn write_with(
    path: &Path,
    body: impl FnOnce(&mut BufWriter<&mut File>) -> std::io::Result<()>,
) -> Result<(), FsError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_folder(folder)?;
    (|| {
        let mut temporary = tempfile::Builder::new()
            .prefix(".sdclr-")
            .suffix(".part")
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

/// An exclusive lock on a folder, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock (`.lock` inside `folder`, which is created). `None`: another process holds it.
    pub fn take(folder: &Path) -> Result<Option<Self>, FsError> {
        create_folder(folder)?;
        let path = folder.join(".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(error("open the lock", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(source)) => Err(error("lock", &path)(source)),
        }
    }
}
