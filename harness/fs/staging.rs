//! Whole trees of files, all of them or none. In: folders and files, one by one. Out: the tree in its place.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Action, FsError, create_folder, error, list_folder, move_to, parent, sync_folder};

/// A tree of files that grows out of sight of the folder where it will appear. Dropped before [`Staging::commit`], it is
/// gone. Files have the permissions 0644, folders 0755 (less the umask).
#[derive(Debug)]
pub struct Staging {
    /// On the file system of `into`; holds the new tree (`new`), and what it replaces (`old`) until all is in place.
    scratch: PathBuf,
    new: PathBuf,
    into: PathBuf,
    /// What could not be put back lies in `scratch`.
    stranded: bool,
}

impl Staging {
    /// An empty tree that grows in the folder `scratch`, where no other process is at work (what a killed one left there
    /// is removed), and is to appear in `into`. The parents of both are created.
    pub fn new(scratch: &Path, into: &Path) -> Result<Self, FsError> {
        remove_tree(scratch)?;
        create_folder(parent(into))?;
        let (scratch, into) = (scratch.to_path_buf(), into.to_path_buf());
        let staging = Self { new: scratch.join("new"), scratch, into, stranded: false };
        staging.folder(Path::new(""))?;
        Ok(staging)
    }

    /// Adds the folder `relative` and its parents; no error where it exists.
    pub fn folder(&self, relative: &Path) -> Result<(), FsError> {
        let path = self.new.join(relative);
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(&path).map_err(error(Action::CreateFolder, &path))
    }

    /// Adds the empty file `relative`, which must not exist yet, and its parents.
    pub fn file(&self, relative: &Path) -> Result<StagedFile, FsError> {
        self.folder(parent(relative))?;
        let path = self.new.join(relative);
        let file = OpenOptions::new().create_new(true).write(true).mode(0o644).open(&path);
        let writer = BufWriter::with_capacity(256 << 10, file.map_err(error(Action::Create, &path))?);
        Ok(StagedFile { writer, path, bytes: 0 })
    }

    /// Moves the tree into place and syncs it. Where `into` does not exist it appears at once. Where it does, each
    /// top-level entry of the tree replaces what has its name, and everything else stays; a reader may meet the moment
    /// in which a replaced entry is absent, never a part of one. After an error `into` is as it was.
    pub fn commit(mut self) -> Result<(), FsError> {
        sync_file_system(&self.new)?;
        let absent = self.into.symlink_metadata().is_err();
        match absent.then(|| move_to(&self.new, &self.into)) {
            Some(Err(failure)) if !failure.found_a_folder() => return Err(failure),
            Some(Ok(())) => {}
            // It was there, or another process has put it there meanwhile.
            _ => {
                self.replace_entries()?;
                sync_folder(&self.into)?;
            }
        }
        sync_folder(parent(&self.into))
    }

    fn replace_entries(&mut self) -> Result<(), FsError> {
        let old = self.scratch.join("old");
        create_folder(&old)?;
        let mut touched = Vec::new();
        let result = list_folder(&self.new)?.into_iter().try_for_each(|path| {
            let name = path.file_name().unwrap_or_default().to_os_string();
            let target = self.into.join(&name);
            if target.symlink_metadata().is_ok() {
                move_to(&target, &old.join(&name))?;
            }
            touched.push(name);
            move_to(&path, &target)
        });
        if result.is_err() {
            for name in touched.iter().rev() {
                let (target, replaced) = (self.into.join(name), old.join(name));
                // The last of them may not have come so far.
                let _ = move_to(&target, &self.new.join(name));
                if replaced.symlink_metadata().is_ok() && move_to(&replaced, &target).is_err() {
                    // What could not be put back is not thrown away either.
                    self.stranded = true;
                }
            }
        }
        result
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.stranded {
            // What cannot be removed now, the next one removes or names.
            let _ = remove_tree(&self.scratch);
        }
    }
}

/// A file of so many bytes is synced by itself.
const LARGE: u64 = 1 << 20;

/// A file of a [`Staging`] tree.
#[derive(Debug)]
pub struct StagedFile {
    writer: BufWriter<File>,
    path: PathBuf,
    bytes: u64,
}

impl StagedFile {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        self.bytes += bytes.len() as u64;
        self.writer.write_all(bytes).map_err(error(Action::Write, &self.path))
    }

    /// Flushes, and syncs a large file; small ones, of which there may be thousands, [`Staging::commit`] syncs at once.
    pub fn finish(mut self) -> Result<(), FsError> {
        let large = self.bytes >= LARGE;
        let flushed = self.writer.flush();
        flushed
            .and_then(|()| if large { self.writer.get_ref().sync_all() } else { Ok(()) })
            .map_err(error(Action::Write, &self.path))
    }
}

/// Removes the folder and all that it holds; no error where there is none.
fn remove_tree(path: &Path) -> Result<(), FsError> {
    match std::fs::remove_dir_all(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(error(Action::Remove, path)(source)),
        _ => Ok(()),
    }
}

/// Syncs everything on the file system of the folder `path`: one call for a tree of thousands of files.
fn sync_file_system(path: &Path) -> Result<(), FsError> {
    let folder = File::open(path).map_err(error(Action::SyncFolder, path))?;
    // SAFETY: the descriptor is open for as long as `folder` lives.
    match unsafe { libc::syncfs(folder.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(error(Action::SyncFolder, path)(std::io::Error::last_os_error())),
    }
}
