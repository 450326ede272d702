//! What a command reads, so that no output of it replaces an input. In: the inputs, then each output. Out: an error where
//! an output would replace one, under whatever name. Called before any work.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{FsError, look_at};

/// An output would replace an input.
#[derive(Debug, thiserror::Error)]
pub enum ReplacesInput {
    #[error("{option} names {what} itself, {}; name another file", path.display())]
    Itself { option: String, what: String, path: PathBuf },
    #[error("{option} would replace {what}, {}; name another folder", path.display())]
    InFolder { option: String, what: String, path: PathBuf },
    #[error("{option} names {}, a file among {what} in {}; name a file elsewhere", path.display(), folder.display())]
    Among { option: String, what: String, path: PathBuf, folder: PathBuf },
    #[error(transparent)]
    File(#[from] FsError),
}

/// The inputs of a command: files and folders, each with what it is ("the checkpoint").
#[derive(Debug, Default)]
pub struct Inputs {
    files: Vec<(&'static str, PathBuf)>,
    folders: Vec<(&'static str, PathBuf)>,
}

impl Inputs {
    /// Adds a file, where one is named.
    pub fn file<'a>(mut self, what: &'static str, path: impl Into<Option<&'a Path>>) -> Self {
        self.files.extend(path.into().map(|path| (what, path.to_path_buf())));
        self
    }

    /// Adds a folder, where one is named: of data, logs or checkpoints, which lie in folders of it, never directly in it.
    pub fn folder<'a>(mut self, what: &'static str, path: impl Into<Option<&'a Path>>) -> Self {
        self.folders.extend(path.into().map(|path| (what, path.to_path_buf())));
        self
    }

    /// Refuses the file `output`, which `option` names, where it is one of the inputs.
    pub fn spare<'a>(&self, option: &str, output: impl Into<Option<&'a Path>>) -> Result<(), ReplacesInput> {
        let Some(output) = output.into() else { return Ok(()) };
        self.check(option, output, |option, what, path| ReplacesInput::Itself { option, what, path })
    }

    /// Refuses the folder `output`, which `option` names, where one of the files `names` that are written to it is an input.
    pub fn spare_in(&self, option: &str, output: &Path, names: &[&str]) -> Result<(), ReplacesInput> {
        let replaces = |option, what, path| ReplacesInput::InFolder { option, what, path };
        names.iter().try_for_each(|name| self.check(option, &output.join(name), replaces))
    }

    fn check(
        &self,
        option: &str,
        output: &Path,
        replaces: fn(String, String, PathBuf) -> ReplacesInput,
    ) -> Result<(), ReplacesInput> {
        let Some(found) = look_at(output)? else { return Ok(()) };
        let id = (found.dev(), found.ino());
        for (what, input) in &self.files {
            if look_at(input)?.is_some_and(|input| (input.dev(), input.ino()) == id) {
                return Err(replaces(option.to_owned(), (*what).to_owned(), output.to_path_buf()));
            }
        }
        // The name itself counts too: what is replaced is the link, not the file behind it.
        let resolved = output.canonicalize().ok();
        let named = super::parent(output).canonicalize().ok().zip(output.file_name()).map(|(to, name)| to.join(name));
        for (what, folder) in &self.folders {
            let Ok(root) = folder.canonicalize() else { continue };
            let inside = |path: &PathBuf| path.strip_prefix(&root).is_ok_and(|rest| rest.components().count() > 1);
            if found.is_file() && [&resolved, &named].into_iter().flatten().any(inside) {
                let (option, what) = (option.to_owned(), (*what).to_owned());
                return Err(ReplacesInput::Among { option, what, path: output.to_path_buf(), folder: folder.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(outcome: Result<(), ReplacesInput>, root: &Path) -> String {
        outcome
            .map_or_else(|error| error.to_string().replace(&root.display().to_string(), "DIR"), |()| "fine".to_owned())
    }

    #[test]
    fn an_input_is_known_under_every_name() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let at = |name: &str| root.join(name);
        for name in ["a.pt", "elsewhere.txt", "out/views.npy", "logs/run/log.txt", "logs/summary.json"] {
            super::super::write(&at(name), b"x").unwrap();
        }
        std::os::unix::fs::symlink(at("a.pt"), at("soft.pt")).unwrap();
        std::os::unix::fs::symlink(root, at("round")).unwrap();
        std::fs::hard_link(at("a.pt"), at("hard.pt")).unwrap();
        std::os::unix::fs::symlink(at("elsewhere.txt"), at("logs/run/linked.txt")).unwrap();
        let inputs = Inputs::default().file("the checkpoint", &*at("a.pt")).file("the recipe", None);
        for name in ["a.pt", "./a.pt", "out/../a.pt", "soft.pt", "hard.pt", "round/a.pt"] {
            let expected = format!("--out names the checkpoint itself, DIR/{name}; name another file");
            assert_eq!(said(inputs.spare("--out", &*at(name)), root), expected);
        }
        for name in ["new.pt", "elsewhere.txt", "nowhere/a.pt", "a.pt/b"] {
            assert_eq!(said(inputs.spare("--out", &*at(name)), root), "fine", "{name}");
        }
        assert_eq!(said(inputs.spare("--json", None), root), "fine");
        let inputs = Inputs::default().file("the images", &*at("out/views.npy")).folder("the logs", &*at("logs"));
        assert_eq!(
            said(inputs.spare_in("--out", &at("out"), &["views.png", "views.npy"]), root),
            "--out would replace the images, DIR/out/views.npy; name another folder"
        );
        assert_eq!(said(inputs.spare_in("--out", &at("new"), &["views.npy"]), root), "fine");
        for name in ["logs/run/log.txt", "round/logs/run/log.txt", "logs/run/linked.txt"] {
            let expected = format!("--json names DIR/{name}, a file among the logs in DIR/logs; name a file elsewhere");
            assert_eq!(said(inputs.spare("--json", &*at(name)), root), expected);
        }
        for name in ["logs/summary.json", "logs/run/new.json", "elsewhere.txt"] {
            assert_eq!(said(inputs.spare("--json", &*at(name)), root), "fine", "{name}");
        }
    }
}
