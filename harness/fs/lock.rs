//! A folder or file for one process at a time. In: its path. Out: the lock, or nothing where another process holds it.
//!
//! The lock is the kernel's (flock). File systems without it (Lustre, CIFS, some NFS and FUSE) get a file instead, which
//! only one process can create; see [`marker`].

mod marker;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Once;

use super::{Action, FsError, TEMPORARY, create_folder, error, is_file, list_folder, parent, remove};
pub use marker::Holder;
use marker::Marker;

/// An exclusive lock on a folder or file, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
    _marker: Option<Marker>,
}

impl FolderLock {
    /// Takes the lock (`.lock` inside `folder`, which is created), and clears away what a killed holder had half written.
    /// `None`: another process holds it.
    pub fn take(folder: &Path) -> Result<Option<Self>, FsError> {
        let lock = Self::open(&lock_of(folder))?;
        if lock.is_some() {
            remove_half_written(folder)?;
        }
        Ok(lock)
    }

    /// Takes the lock on a file that is replaced when it is written (`FILE.lock` beside it, whose folder is created).
    pub fn take_beside(file: &Path) -> Result<Option<Self>, FsError> {
        Self::open(&file.with_added_extension("lock"))
    }

    /// Who holds the lock on `folder`, once [`FolderLock::take`] has given `None`; nobody where it was freed since.
    pub fn holder(folder: &Path) -> Option<Holder> {
        let lock = lock_of(folder);
        Holder::read(&marker::path_of(&lock)).or_else(|| Holder::read(&lock))
    }

    fn open(path: &Path) -> Result<Option<Self>, FsError> {
        create_folder(parent(path))?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(error(Action::OpenLock, path))?;
        match file.try_lock() {
            Ok(()) => {
                // For messages of those who wait; a disk that is full must not stop the holder.
                let _ = file.set_len(0).and_then(|()| file.write_all(Holder::this_process().to_line().as_bytes()));
                Ok(Some(Self { _file: file, _marker: None }))
            }
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(source)) if is_unsupported(&source) => {
                warn_once(path, &source);
                Ok(Marker::take(path)?.map(|marker| Self { _file: file, _marker: Some(marker) }))
            }
            Err(std::fs::TryLockError::Error(source)) => Err(error(Action::Lock, path)(source)),
        }
    }
}

fn lock_of(folder: &Path) -> PathBuf {
    folder.join(".lock")
}

/// The kernel's own code for "not supported", which some network file systems let through to programs.
const ENOTSUPP: i32 = 524;

/// Whether a file system says by this error that it has no flock.
fn is_unsupported(error: &std::io::Error) -> bool {
    let codes = [
        libc::ENOSYS,
        libc::EOPNOTSUPP,
        libc::ENOLCK,
        libc::EINVAL,
        libc::ENOTTY,
        libc::EPERM,
        libc::EPROTONOSUPPORT,
        libc::EBADF,
        libc::EREMOTEIO,
        ENOTSUPP,
    ];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

fn warn_once(path: &Path, reason: &std::io::Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            "the file system of {} has no locks ({reason}); lock files stand in for them, and the folder of a process that \
             was killed on another machine is free again after {} s",
            parent(path).display(),
            marker::STALE.as_secs()
        );
    });
}

/// Removes the temporary files in `folder`, in which nobody may be writing.
fn remove_half_written(folder: &Path) -> Result<(), FsError> {
    for path in list_folder(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1) && is_file(&path)? {
            remove(&path)?;
        }
    }
    Ok(())
}
