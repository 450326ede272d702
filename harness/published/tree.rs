//! Published files on disk. In: a folder that the authors' archives were unpacked to, at any depth within bounds. Out:
//! for each run what of it is there. Folders are known by their published names, whatever lies above them.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::{LOG, PublishedError, Run};
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
    pub path: Option<PathBuf>,
}

impl Tree {
    /// Looks through `root` for the folders of `runs`. Links to folders are followed.
    ///
    /// # Errors
    /// `root` cannot be listed or holds too much, a name occurs twice, or nothing of any run is there.
    pub fn open(root: &Path, suite: &str, runs: &[Run]) -> Result<Self, PublishedError> {
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
                    Err(source) if depth == 0 => return Err(PublishedError::Folder { source, example }),
                    // A folder that may not be read is as good as absent.
                    Err(_) => continue,
                };
                entries += listed.len();
                if entries > ENTRIES {
                    return Err(PublishedError::TooMany { folder: root.to_path_buf(), limit: ENTRIES });
                }
                for path in listed.into_iter().filter(|path| path.is_dir()) {
                    match path.file_name().and_then(|name| name.to_str()).filter(|name| names.contains(*name)) {
                        Some(name) => tree.folders.entry(name.to_owned()).or_default().push(path),
                        None => next.push(path),
                    }
                }
            }
            level = next;
        }
        match tree.folders.is_empty() {
            true => Err(PublishedError::Nothing { suite: suite.to_owned(), folder: root.to_path_buf(), example }),
            false => tree.unambiguous(),
        }
    }

    /// One place a name; two links to one folder are one.
    fn unambiguous(mut self) -> Result<Self, PublishedError> {
        for (name, paths) in &mut self.folders {
            let mut seen = HashSet::new();
            paths.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
            if paths.len() > 1 {
                let found = paths.iter().map(|path| path.display().to_string()).collect();
                return Err(PublishedError::Twice { name: name.clone(), found });
            }
        }
        Ok(self)
    }

    /// The pre-trained encoder of a run.
    pub fn encoder(&self, run: &Run) -> Found {
        self.find(run.parents().0, &run.pretrain_folder(), run.pretrain_file())
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
        let path = self.folders.get(folder).and_then(|paths| paths.first()).map(|path| path.join(file));
        Found { name: format!("{parent}/{folder}/{file}"), path: path.filter(|path| path.exists()) }
    }
}

fn names_of(run: &Run) -> [String; 3] {
    [run.pretrain_folder(), run.probe_folder(Protocol::Full), run.probe_folder(Protocol::Few)]
}
