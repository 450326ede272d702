//! The installed `sdclr`: finds libtorch and becomes the program beside it. The program is linked with libtorch, so the dynamic
//! loader needs libtorch before the program's first instruction, and on its own says only which file it did not find.
//!
//! In: the folders of the installation (`PREFIX/bin/sdclr` is this, `PREFIX/libexec/sdclr` holds the program), the
//! environment, and `python3`. Out: the program with `LD_LIBRARY_PATH` set, in this same process, or one error. Nothing is loaded
//! to look at it: PyTorch writes its version into a file.
//!
//! `sdclr setup` runs `ci/libtorch` of the repository, installed as `setup`, which fetches libtorch to where it is looked for first.

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The only version that the program works with: it calls functions that change with each.
const VERSION: &str = "2.11.0";

/// Prints the folder of the torch that this Python would import, without importing it; the current folder does not count.
const ASK_PYTHON: &str = "import sys; sys.path = [p for p in sys.path if p]; import importlib.util as u; \
    print(u.find_spec('torch').submodule_search_locations[0])";

const SETUP_HELP: &str = "\
Fetches libtorch from PyPI: 1.3 GB on disk, 6 GB where there is an NVIDIA driver. Needs python3 with pip or venv.
Set PIP_INDEX_URL for a mirror of PyPI. A setup that is complete is left as it is.

Usage: sdclr setup";

fn main() -> ExitCode {
    match start() {
        Ok(never) => match never {},
        Err(reason) => {
            eprintln!("error: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes the program, or the script that fetches libtorch.
fn start() -> Result<Infallible, String> {
    let launcher = env::current_exe().map_err(|error| format!("cannot tell where this program lies: {error}"))?;
    let prefix = launcher.ancestors().nth(2).unwrap_or(Path::new("/"));
    let installed = prefix.join("libexec/sdclr");
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "setup") {
        return setup(prefix, &installed, &arguments[1..]);
    }
    let libraries = env::join_paths([find(prefix, &installed)?].into_iter().chain(of_loader()))
        .map_err(|_| "the folder of libtorch has a colon in its name; rename it".to_owned())?;
    // The program tells by its first argument how to start it again.
    replace_with(
        Command::new(installed.join("sdclr")).arg0(&launcher).args(arguments).env("LD_LIBRARY_PATH", libraries),
    )
}

fn setup(prefix: &Path, installed: &Path, arguments: &[OsString]) -> Result<Infallible, String> {
    match arguments {
        [] => {
            let mut script = Command::new(installed.join("setup"));
            replace_with(script.arg(installed.join("libtorch")).arg(pythons(prefix).swap_remove(0)))
        }
        [word] if word == "--help" || word == "-h" => {
            println!("{SETUP_HELP}");
            std::process::exit(0)
        }
        _ => {
            eprintln!("error: sdclr setup takes no arguments\n\n{SETUP_HELP}");
            std::process::exit(2)
        }
    }
}

fn replace_with(command: &mut Command) -> Result<Infallible, String> {
    let error = command.exec();
    let program = Path::new(command.get_program()).display();
    Err(format!(
        "cannot start {program}: {error}; sdclr is bin/sdclr and libexec/sdclr of one folder, install both again"
    ))
}

/// An environment variable that says something.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// What lies in a folder that should be the `lib` of a PyTorch.
enum Found {
    Nothing,
    Right,
    /// As its files say, or `of an unknown version` where none says.
    Other(String),
}

/// The folder of libtorch to use: the first of the right version.
fn find(prefix: &Path, installed: &Path) -> Result<PathBuf, String> {
    let own = installed.join("libtorch/torch/lib");
    let mut others = Vec::new();
    let mut right = |lib: &PathBuf| match look(lib) {
        Found::Right => true,
        Found::Nothing => false,
        Found::Other(version) => {
            others.push(format!("{version} in {}", lib.display()));
            false
        }
    };
    if right(&own) {
        return Ok(own);
    }
    if let Some(folder) = variable("LIBTORCH").map(PathBuf::from) {
        return asked_for(&folder);
    }
    // One after another: asking a Python takes longer than all the rest.
    let asked = pythons(prefix).into_iter().filter_map(ask);
    if let Some(lib) = of_environment(prefix).into_iter().chain(asked).chain(of_loader()).find(right) {
        return Ok(lib);
    }
    others.dedup();
    let found = if others.is_empty() { "no libtorch".to_owned() } else { format!("PyTorch {}", others.join(" and ")) };
    Err(format!(
        "found {found}, expected that of PyTorch {VERSION} in {}, in LIBTORCH, in the Python environment {}, in that of python3, or in \
         LD_LIBRARY_PATH; run `sdclr setup`, which fetches it, or install torch=={VERSION} in that environment",
        own.display(),
        prefix.display(),
    ))
}

/// `LIBTORCH` is a choice: nothing takes its place where it cannot be used.
fn asked_for(folder: &Path) -> Result<PathBuf, String> {
    let lib = folder.join("lib");
    let found = match look(&lib) {
        Found::Right => return Ok(lib),
        Found::Nothing => "no lib/libtorch_cpu.so".to_owned(),
        Found::Other(version) => format!("PyTorch {version}"),
    };
    let folder = folder.display();
    Err(format!(
        "LIBTORCH={folder} holds {found}, expected PyTorch {VERSION}; name the folder of one, or unset LIBTORCH"
    ))
}

fn look(lib: &Path) -> Found {
    if !lib.join("libtorch_cpu.so").is_file() {
        return Found::Nothing;
    }
    match version(lib.parent().unwrap_or(lib)) {
        // What follows the + is the kind: +cpu, +cu130.
        Some(version) if version.split('+').next() == Some(VERSION) => Found::Right,
        Some(version) => Found::Other(version),
        None => Found::Other("of an unknown version".to_owned()),
    }
}

/// As `version.py` of a Python package says, or `build-version` of an archive from pytorch.org.
fn version(torch: &Path) -> Option<String> {
    if let Ok(text) = fs::read_to_string(torch.join("version.py")) {
        let value = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        return Some(value.trim().trim_matches(['\'', '"']).to_owned());
    }
    Some(fs::read_to_string(torch.join("build-version")).ok()?.trim().to_owned())
}

/// Each torch of the Python environment that the program is installed in: `PREFIX/lib/python3.X/site-packages/torch`.
fn of_environment(prefix: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten().map(|entry| entry.path());
    let pythons =
        entries.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"python3")));
    // Debian's own Python calls the folder dist-packages.
    let packages = |python: PathBuf| ["site-packages", "dist-packages"].map(|name| python.join(name).join("torch/lib"));
    let mut libs: Vec<PathBuf> = pythons.flat_map(packages).collect();
    libs.sort();
    libs
}

/// The Python of the environment that the program is installed in, if there is one, and that of `PATH`.
fn pythons(prefix: &Path) -> Vec<PathBuf> {
    let own = prefix.join("bin/python3");
    own.is_file().then_some(own).into_iter().chain([PathBuf::from("python3")]).collect()
}

fn ask(python: PathBuf) -> Option<PathBuf> {
    let output =
        Command::new(python).args(["-c", ASK_PYTHON]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let torch = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| Path::new(torch.trim_end_matches('\n')).join("lib"))
}

/// The folders that the dynamic loader would look through; an empty one, which to it is the current folder, does not count.
fn of_loader() -> Vec<PathBuf> {
    let path = variable("LD_LIBRARY_PATH").unwrap_or_default();
    env::split_paths(&path).filter(|lib| !lib.as_os_str().is_empty()).collect()
}
