//! `ci/libtorch`, which is `sdclr setup`: a half-made set-up is never taken for a whole one. The Python here is a script.

#![expect(clippy::disallowed_methods, reason = "files that exist for a test alone")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Has pip, which installs one file where `--target` says, or fails as `PIP` says.
const PYTHON: &str = r#"#!/bin/sh
echo "$@" >>"$LOG"
case "$*" in *--version*) exit 0 ;; esac
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/torch/lib"
echo new >"$2/torch/lib/libtorch_cpu.so"
case $PIP in killed) kill -KILL $PPID; exit 1 ;; failing) echo "no network" >&2; exit 1 ;; esac
"#;

struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("python"), PYTHON).unwrap();
        fs::set_permissions(root.join("python"), fs::Permissions::from_mode(0o755)).unwrap();
        Self(root)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn setup(&self, pip: &str) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/libtorch");
        let mut command = Command::new(script);
        command.arg(self.at("libtorch")).arg(self.at("python")).env("PIP", pip).env("LOG", self.at("log"));
        command.output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_complete_set_up_is_left_as_it_is() {
    let folder = Folder::new("complete");
    let output = folder.setup("");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("libtorch 2.11.0"));
    assert_eq!(fs::read_to_string(folder.at("libtorch/torch/lib/libtorch_cpu.so")).unwrap(), "new\n");
    assert!(!folder.at("libtorch.part").exists());
    let asked = fs::read_to_string(folder.at("log")).unwrap();
    assert!(asked.contains("--require-hashes"), "{asked}");
    assert!(folder.setup("failing").status.success());
    assert_eq!(fs::read_to_string(folder.at("log")).unwrap(), asked);
}

#[test]
fn what_fails_or_is_killed_is_done_again() {
    let folder = Folder::new("again");
    let output = folder.setup("failing");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("no network\nerror: pip could not install libtorch (its reason stands above)"), "{said}");
    assert!(!folder.at("libtorch").exists() && !folder.at("libtorch.part").exists());
    folder.setup("killed");
    assert!(!folder.at("libtorch").exists() && folder.at("libtorch.part").exists());
    assert!(folder.setup("").status.success());
    assert!(folder.at("libtorch/torch/lib/libtorch_cpu.so").exists() && !folder.at("libtorch.part").exists());
}

#[test]
fn a_folder_that_cannot_be_written_to_is_named() {
    let folder = Folder::new("refused");
    fs::write(folder.at("file"), "").unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/libtorch");
    let output = Command::new(script).arg(folder.at("file/libtorch")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = format!("error: cannot write to {}; run this as its owner, ", folder.at("file").display());
    assert!(text(&output.stderr).starts_with(&said), "{}", text(&output.stderr));
}
