//! Where the installed `sdclr` looks for libtorch, in which order, and what it says when there is none.
//!
//! The installation is made up: the program in it is bash, and each PyTorch is two files.

#![expect(clippy::disallowed_methods, reason = "files that exist for a test alone")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

struct Installation {
    root: PathBuf,
}

impl Installation {
    fn new(test: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        let _ = fs::remove_dir_all(&root);
        for folder in ["env/bin", "env/libexec/sdclr", "path"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        // As the launcher sees it.
        let root = root.canonicalize().unwrap();
        fs::copy(env!("CARGO_BIN_EXE_sdclr"), root.join("env/bin/sdclr")).unwrap();
        symlink("/bin/bash", root.join("env/libexec/sdclr/sdclr")).unwrap();
        Self { root }
    }

    /// A PyTorch of this version in `folder`.
    fn torch(&self, folder: &str, version: &str) -> &Self {
        self.file(&format!("{folder}/lib/libtorch_cpu.so"), "");
        self.file(
            &format!("{folder}/version.py"),
            &format!("from typing import Optional\n\n__version__ = '{version}'\n"),
        )
    }

    fn file(&self, path: &str, text: &str) -> &Self {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn script(&self, path: &str, text: &str) -> &Self {
        self.file(path, &format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn remove(&self, folder: &str) {
        fs::remove_dir_all(self.root.join(folder)).unwrap();
    }

    /// `python3` on `PATH` is a script of the test, if there is one.
    fn sdclr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.root.join("env/bin/sdclr"));
        command.args(arguments).env_clear().env("PATH", self.root.join("path")).current_dir(&self.root);
        command
    }

    /// The first entry of the `LD_LIBRARY_PATH` that the program starts with.
    fn chosen(&self, variables: &[(&str, &str)]) -> String {
        let mut command = self.sdclr(&["-c", "echo $LD_LIBRARY_PATH"]);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{}", self.text(&output.stderr));
        let path = self.text(&output.stdout);
        path.trim_end().split(':').next().unwrap().to_owned()
    }

    fn error(&self, variables: &[(&str, &str)]) -> String {
        let output = self.sdclr(&["doctor"]).envs(variables.iter().copied()).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        self.text(&output.stderr)
    }

    fn text(&self, bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap().replace(&self.root.display().to_string(), "ROOT")
    }
}

const OWN: &str = "env/libexec/sdclr/libtorch/torch";
const SITE: &str = "env/lib/python3.11/site-packages/torch";

#[test]
fn the_first_libtorch_of_the_right_version_is_used() {
    let at = Installation::new("order");
    at.torch(OWN, "2.11.0+cu130").torch("mine", "2.11.0").torch("loader", "2.11.0");
    at.torch("env/lib/python3.10/site-packages/torch", "2.10.0").torch(SITE, "2.11.0+cpu");
    at.torch("asked", "2.11.0").script("env/bin/python3", "echo ROOT/nowhere");
    at.script("path/python3", &format!("echo {}", at.root.join("asked").display()));
    let [mine, loader] = ["mine", "loader/lib"].map(|folder| at.root.join(folder).display().to_string());
    let all = [("LIBTORCH", mine.as_str()), ("LD_LIBRARY_PATH", &loader)];
    assert_eq!(at.chosen(&all), format!("ROOT/{OWN}/lib"));
    // To the dynamic loader an empty entry is the current folder.
    let output = at.sdclr(&["-c", "echo $LD_LIBRARY_PATH"]).env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert_eq!(at.text(&output.stdout), format!("ROOT/{OWN}/lib\n"));
    at.remove(OWN);
    assert_eq!(at.chosen(&all), "ROOT/mine/lib");
    let unset = [("LIBTORCH", ""), all[1]];
    assert_eq!(at.chosen(&unset), format!("ROOT/{SITE}/lib"));
    at.remove(SITE);
    assert_eq!(at.chosen(&unset), "ROOT/asked/lib");
    at.remove("asked");
    assert_eq!(at.chosen(&unset), "ROOT/loader/lib");
}

#[test]
fn an_archive_of_libtorch_tells_its_version_in_another_file() {
    let at = Installation::new("archive");
    at.file("mine/lib/libtorch_cpu.so", "").file("mine/build-version", "2.11.0+cpu\n");
    assert_eq!(at.chosen(&[("LIBTORCH", "mine")]), "mine/lib");
}

#[test]
fn the_program_takes_the_place_of_the_launcher() {
    let at = Installation::new("place");
    at.torch(OWN, "2.11.0");
    symlink(at.root.join("env/bin/sdclr"), at.root.join("sdclr")).unwrap();
    let mut command = Command::new(at.root.join("sdclr"));
    command.args(["-c", "echo $$ $0 $LD_LIBRARY_PATH; kill -TERM $$"]).env("LD_LIBRARY_PATH", "/a:/b");
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    let id = child.id();
    let output = child.wait_with_output().unwrap();
    assert_eq!(at.text(&output.stdout), format!("{id} ROOT/env/bin/sdclr ROOT/{OWN}/lib:/a:/b\n"));
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(15));
    assert_eq!(at.sdclr(&["-c", "exit 75"]).status().unwrap().code(), Some(75));
}

#[test]
fn one_sentence_says_what_was_found_and_what_to_do() {
    let at = Installation::new("errors");
    let rest = format!(
        "expected that of PyTorch 2.11.0 in ROOT/{OWN}/lib, in LIBTORCH, in the Python environment ROOT/env, in that of python3, or \
         in LD_LIBRARY_PATH; run `sdclr setup`, which fetches it, or install torch==2.11.0 in that environment\n"
    );
    assert_eq!(at.error(&[]), format!("error: found no libtorch, {rest}"));
    at.torch(SITE, "2.12.1+cu130").script("path/python3", &format!("echo {}", at.root.join(SITE).display()));
    assert_eq!(at.error(&[]), format!("error: found PyTorch 2.12.1+cu130 in ROOT/{SITE}/lib, {rest}"));
    at.file("loader/lib/libtorch_cpu.so", "");
    let loader = at.root.join("loader/lib").display().to_string();
    let both = format!("PyTorch 2.12.1+cu130 in ROOT/{SITE}/lib and of an unknown version in ROOT/loader/lib");
    assert_eq!(at.error(&[("LD_LIBRARY_PATH", &loader)]), format!("error: found {both}, {rest}"));
}

#[test]
fn a_libtorch_that_was_named_is_not_replaced_by_another() {
    let at = Installation::new("named");
    at.torch(SITE, "2.11.0").torch("mine", "2.10.0+cpu");
    let says = |name, found| {
        let what = format!("LIBTORCH={name} holds {found}, expected PyTorch 2.11.0");
        assert_eq!(
            at.error(&[("LIBTORCH", name)]),
            format!("error: {what}; name the folder of one, or unset LIBTORCH\n")
        );
    };
    says("mine", "PyTorch 2.10.0+cpu");
    says("nowhere", "no lib/libtorch_cpu.so");
}

#[test]
fn half_an_installation_says_so() {
    let at = Installation::new("half");
    at.torch(OWN, "2.11.0");
    fs::remove_file(at.root.join("env/libexec/sdclr/sdclr")).unwrap();
    let reason = "No such file or directory (os error 2)";
    let remedy = "sdclr is bin/sdclr and libexec/sdclr of one folder, install both again";
    assert_eq!(at.error(&[]), format!("error: cannot start ROOT/env/libexec/sdclr/sdclr: {reason}; {remedy}\n"));
}

#[test]
fn setup_runs_without_libtorch_and_takes_no_arguments() {
    let at = Installation::new("setup");
    at.script("env/libexec/sdclr/setup", "echo \"$@\"; exit 7");
    let run = |arguments: &[&str]| -> Output { at.sdclr(arguments).output().unwrap() };
    let output = run(&["setup"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(at.text(&output.stdout), "ROOT/env/libexec/sdclr/libtorch python3\n");
    at.script("env/bin/python3", "");
    assert_eq!(at.text(&run(&["setup"]).stdout), "ROOT/env/libexec/sdclr/libtorch ROOT/env/bin/python3\n");
    let output = run(&["setup", "--help"]);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    assert!(at.text(&output.stdout).ends_with("Usage: sdclr setup\n"));
    let output = run(&["setup", "cuda"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(at.text(&output.stderr).starts_with("error: sdclr setup takes no arguments\n"));
}

#[test]
fn the_versions_agree() {
    let of = |text: &str, key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
    let main = of(include_str!("../../Cargo.toml"), "version = ");
    assert_eq!(main, format!("\"{}\"", env!("CARGO_PKG_VERSION")));
    assert!(of(include_str!("../../ci/libtorch.txt"), "torch==").starts_with("2.11.0 "));
}
