//! Published files on disk. In: a folder that the authors' archives were unpacked to, at any depth within bounds. Out:
//! which files of each run exist. Folders are recognised by their published names, wherever they are.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::{AuthorsError, LOG, Run};
use crate::fs;
use crate::recipe::Protocol;

/// The checkpoint that the published validation chose, in the folder of a probe.
const BEST: &str = "best_model.pt";

/// How deep under the folder a run may lie, and how much is looked at: an archive has two levels.
const DEPTH: usize = 5;
const ENTRIES: usize = 200_000;

/// Folders by their names.
#[derive(Debug)]
pub struct Tree {
    folders: BTreeMap<String, Vec<PathBuf>>,
}

/// A file of a run, if it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it is published, e.g. `checkpoints_tune/RUN/log.txt`.
    pub name: String,
    /// Every folder of its run; with more than one the file is ambiguous.
    folders: Vec<PathBuf>,
}

impl Found {
    /// Where the file is; `None` where it is not there.
    ///
    /// # Errors
    /// There are several folders of its run.
    pub fn path(&self) -> Result<Option<PathBuf>, AuthorsError> {
        let mut parts = self.name.rsplit('/');
        let (file, folder) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match self.folders.as_slice() {
            [] => Ok(None),
            [folder] => Ok(Some(folder.join(file)).filter(|path| path.exists())),
            several => {
                let found = several.iter().map(|path| crate::text::shown(path)).collect();
                Err(AuthorsError::Twice { name: folder.to_owned(), found })
            }
        }
    }
}

/// Folders that archives and unpackers leave behind: macOS metadata, hidden folders, our own unfinished ones.
fn stray(name: &str) -> bool {
    name == "__MACOSX" || name.starts_with('.')
}

impl Tree {
    /// Looks through `root` for the folders of `runs`. Links to folders are followed.
    ///
    /// # Errors
    /// `root` cannot be listed or holds too much, or nothing of any run is there.
    pub fn open(root: &Path, suite: &str, runs: &[Run]) -> Result<Self, AuthorsError> {
        let names: HashSet<String> = runs.iter().flat_map(names_of).collect();
        let example = runs.first().map(Run::pretrain_folder).unwrap_or_default();
        let mut tree = Self { folders: BTreeMap::new() };
        let mut entries = 0;
        let mut level = vec![root.to_path_buf()];
        for depth in 0..DEPTH {
            let mut next = Vec::new();
            for folder in level {
                let listed = match fs::list_folder(&folder) {
                    Ok(listed) => listed,
                    Err(source) if depth == 0 => return Err(AuthorsError::Folder { source, example }),
                    // A folder that may not be read is as good as absent.
                    Err(_) => continue,
                };
                entries += listed.len();
                if entries > ENTRIES {
                    return Err(AuthorsError::TooMany { folder: root.to_path_buf(), limit: ENTRIES });
                }
                for path in listed.into_iter().filter(|path| path.is_dir()) {
                    match path.file_name().and_then(|name| name.to_str()) {
                        Some(name) if stray(name) => {}
                        Some(name) if names.contains(name) => {
                            tree.folders.entry(name.to_owned()).or_default().push(path);
                        }
                        _ => next.push(path),
                    }
                }
            }
            level = next;
        }
        match tree.folders.is_empty() {
            true => Err(AuthorsError::Nothing { suite: suite.to_owned(), folder: root.to_path_buf(), example }),
            false => {
                // Two links to the same folder count once.
                for paths in tree.folders.values_mut() {
                    let mut seen = HashSet::new();
                    paths.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
                }
                Ok(tree)
            }
        }
    }

    /// The pre-trained encoder of a run.
    pub fn encoder(&self, run: &Run) -> Found {
        self.find(run.parents().0, &run.pretrain_folder(), &run.pretrain_file())
    }

    /// The fine-tuned model of a probe.
    pub fn model(&self, run: &Run, protocol: Protocol) -> Found {
        self.find(run.parents().1, &run.probe_folder(protocol), BEST)
    }

    /// The log of a probe.
    pub fn log(&self, run: &Run, protocol: Protocol) -> Found {
        self.find(run.parents().1, &run.probe_folder(protocol), LOG)
    }

    fn find(&self, parent: &str, folder: &str, file: &str) -> Found {
        let folders = self.folders.get(folder).cloned().unwrap_or_default();
        Found { name: format!("{parent}/{folder}/{file}"), folders }
    }
}

fn names_of(run: &Run) -> [String; 3] {
    [run.pretrain_folder(), run.probe_folder(Protocol::Full), run.probe_folder(Protocol::Few)]
}
