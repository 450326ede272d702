//! A folder or file for one process at a time. In: its path. Out: the lock, or nothing where another process holds it.
//!
//! Between processes that see one mount of the files, in containers too, its flock decides. Many cluster file systems grant flock on each host
//! separately (Lustre's `localflock`, NFS with `local_lock`), others have none (CIFS, some FUSE): between hosts, and
//! where there is no flock, a file decides that only one process can create; see [`marker`].

mod marker;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use super::{Action, FsError, create_folder, error, parent, remove_half_written};
use marker::{Holder, Marker, Taker};

/// An exclusive lock on a folder or file, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct FolderLock {
    /// Removed before flock is given back: the next process of this machine would take it for a dead one's. None where no
    /// file can be created, and hence no result written either.
    marker: Option<Marker>,
    file: File,
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        drop(self.marker.take());
        // At once, also where a program that is being started still has a copy of the descriptor. Closing it frees it at the latest.
        let _ = self.file.unlock();
    }
}

impl FolderLock {
    /// Takes the lock (`.lock` inside `folder`, which is created), and clears away what a killed holder had half written.
    /// `None`: another process holds it.
    pub fn take(folder: &Path) -> Result<Option<Self>, FsError> {
        let lock = Self::open(&lock_of(folder))?;
        if lock.is_some() {
            // Nobody else may be writing there.
            remove_half_written(folder, Duration::ZERO)?;
        }
        Ok(lock)
    }

    /// Takes the lock on a file that is replaced when it is written (`FILE.lock` beside it, whose folder is created).
    pub fn take_beside(file: &Path) -> Result<Option<Self>, FsError> {
        Self::open(&file.with_added_extension("lock"))
    }

    /// Who holds the lock on `folder`, in words, once [`FolderLock::take`] has given `None`.
    pub fn holder(folder: &Path) -> String {
        let holder = Holder::read(&marker::path_of(&lock_of(folder)));
        holder.map_or_else(|| "another process".to_owned(), |holder| holder.to_string())
    }

    /// Whether this process still holds it: while it was suspended, another host may have taken it for dead.
    pub fn is_held(&self) -> bool {
        self.marker.as_ref().is_none_or(Marker::is_held)
    }

    fn open(path: &Path) -> Result<Option<Self>, FsError> {
        create_folder(parent(path))?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(error(Action::OpenLock, path))?;
        let flocked = match file.try_lock() {
            Ok(()) => true,
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(source)) if is_unsupported(&source) => {
                warn_once(path, &source);
                false
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(error(Action::Lock, path)(source)),
        };
        let marker = match Taker::new(path, &file, flocked).take() {
            Ok(None) => return Ok(None),
            Ok(marker) => marker,
            Err(failure) if flocked && failure.prevents_creation() => None,
            Err(failure) => return Err(failure),
        };
        Ok(Some(Self { marker, file }))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::list_folder;

    #[test]
    fn a_copy_of_the_descriptor_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path()).unwrap().unwrap();
        let _copy = lock.file.try_clone().unwrap();
        drop(lock);
        assert!(FolderLock::take(folder.path()).unwrap().is_some());
    }

    #[test]
    fn a_lock_leaves_no_marker_and_names_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let held = FolderLock::take(folder.path()).unwrap().unwrap();
        assert!(held.is_held() && FolderLock::take(folder.path()).unwrap().is_none());
        let holder = FolderLock::holder(folder.path());
        assert!(holder.starts_with(&format!("process {} on ", std::process::id())), "{holder}");
        drop(held);
        assert_eq!(list_folder(folder.path()).unwrap(), [lock_of(folder.path())]);
        assert_eq!(FolderLock::holder(folder.path()), "another process");
    }

    /// A marker is gone before flock is free for the next.
    #[test]
    fn flock_and_markers_agree() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, turns) = (std::sync::atomic::AtomicUsize::new(0), 200);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut taken = 0;
                    while taken < turns {
                        let Some(lock) = FolderLock::take(folder.path()).unwrap() else { continue };
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        assert!(lock.is_held());
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        taken += 1;
                    }
                });
            }
        });
    }
}
