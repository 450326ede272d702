//! A folder or file for one process at a time. In: its path. Out: the lock, or nothing where another process holds it.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use super::{FsError, TEMPORARY, create_folder, error, list_folder, parent, remove};

/// An exclusive lock on a folder or file, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock (`.lock` inside `folder`, which is created), and clears away what a killed holder had half written.
    /// `None`: another process holds it.
    pub fn take(folder: &Path) -> Result<Option<Self>, FsError> {
        let lock = Self::open(folder.join(".lock"))?;
        if lock.is_some() {
            remove_half_written(folder)?;
        }
        Ok(lock)
    }

    /// Takes the lock on a file that is replaced when it is written (`FILE.lock` beside it, whose folder is created).
    pub fn take_beside(file: &Path) -> Result<Option<Self>, FsError> {
        Self::open(file.with_added_extension("lock"))
    }

    fn open(path: PathBuf) -> Result<Option<Self>, FsError> {
        create_folder(parent(&path))?;
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

/// Removes the temporary files in `folder`, in which nobody may be writing.
fn remove_half_written(folder: &Path) -> Result<(), FsError> {
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1) && path.is_file()
    };
    list_folder(folder)?.iter().filter(|path| ours(path)).try_for_each(|path| remove(path))
}
