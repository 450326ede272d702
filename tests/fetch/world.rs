//! A cache and a registry of one test, and the program run with them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sdclr::artifact::hash::{Algorithm, Hasher};
use tempfile::TempDir;

use crate::server::Server;

/// Short patience, so that the tests are quick.
pub const TRANSFER: &str = "
[transfer]
attempts = 3
connect_seconds = 2.0
stall_seconds = 0.6
slow_window_seconds = 0.4
slow_bytes_per_second = 1000
backoff_seconds = 0.02
backoff_most_seconds = 0.1
retry_after_most_seconds = 1.2
redirects = 5
";

pub fn sha256(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha256, 0);
    hasher.update(bytes);
    hasher.finish()
}

pub fn md5(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(Algorithm::Md5, 0);
    hasher.update(bytes);
    hasher.finish()
}

/// Bytes that no compression and no repetition makes easy, the same each time.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// An artefact of one list, `split/NAME.bin`, at every one of `servers`.
pub fn list(name: &str, servers: &[&Server], body: &[u8]) -> String {
    let base: Vec<String> = servers.iter().map(|server| format!("{}/", server.url)).collect();
    let (size, hash) = (body.len(), sha256(body));
    format!(
        "[[artifact]]\nname = '{name}'\nabout = 'a list'\nplace = 'data'\nlicence = 'none'\nnote = ''\n\
         [artifact.source.lists]\nbase = {base:?}\n\
         [[artifact.source.lists.files]]\npath = 'split/{name}.bin'\nsize = {size}\nsha256 = '{hash}'\n"
    )
}

/// An artefact of one archive; `more` are further keys of its file.
pub fn archive(name: &str, place: &str, path: &str, url: &str, marks: &[&str], more: &str) -> String {
    format!(
        "[[artifact]]\nname = '{name}'\nabout = 'an archive'\nplace = '{place}'\ngroups = ['all']\nlicence = 'none'\nnote = ''\n\
         [artifact.source.archive]\nmarks = {marks:?}\n[artifact.source.archive.file]\npath = '{path}'\nurls = ['{url}']\n{more}\n"
    )
}

/// A zip file of these entries.
pub fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    zip_with(entries, zip::CompressionMethod::Deflated)
}

/// A zip file as large as what it holds.
pub fn stored_zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    zip_with(entries, zip::CompressionMethod::Stored)
}

fn zip_with(entries: &[(&str, &[u8])], method: zip::CompressionMethod) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, body) in entries {
        writer.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
        writer.write_all(body).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Two archives without a published hash, as the authors' are.
pub fn checkpoints(url: &str) -> [String; 2] {
    [("pretrain", "/model_2000.pt"), ("tune", "/best_model.pt")].map(|(kind, mark)| {
        let (name, path) = (format!("checkpoints-{kind}"), format!("checkpoints-{kind}.zip"));
        archive(&name, "published", &path, &format!("{url}/{kind}?id=1"), &[mark], "at_most = 100000")
    })
}

/// A cache and a registry of one test.
pub struct World {
    pub folder: TempDir,
}

impl World {
    pub fn new(artifacts: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("{TRANSFER}\n{}", artifacts.join("\n"));
        sdclr::fs::write(&folder.path().join("registry.toml"), text.as_bytes()).unwrap();
        Self { folder }
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = plain(&["fetch"]);
        command.args(arguments);
        command.arg("--cache").arg(self.path("cache")).arg("--registry").arg(self.path("registry.toml"));
        command
    }

    pub fn fetch(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments).output().unwrap(), self.folder.path())
    }

    /// Fetches and must succeed.
    pub fn good(&self, arguments: &[&str]) -> Said {
        let said = self.fetch(arguments);
        assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
        said
    }

    /// Fetches and must fail with one error, which it gives.
    pub fn error(&self, arguments: &[&str]) -> String {
        let said = self.fetch(arguments);
        assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
        let errors: Vec<&str> = said.err.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(errors.len(), 1, "{}", said.err);
        errors[0].to_owned()
    }

    pub fn cached(&self, relative: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path("cache").join(relative)).ok()
    }

    /// Every file of the cache but locks, as relative paths.
    pub fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path) }
            }
        }
        let (mut found, root) = (Vec::new(), self.path("cache"));
        walk(&root, &mut found);
        let mut names: Vec<String> =
            found.iter().map(|path| path.strip_prefix(&root).unwrap().display().to_string()).collect();
        names.retain(|name| !name.starts_with("locks/"));
        names.sort();
        names
    }
}

/// The program with nothing of this user's surroundings.
pub fn plain(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"));
    for name in ["SDCLR_DATA", "SDCLR_CACHE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.env("COLUMNS", "110").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a command said, without what differs from run to run.
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: Output, folder: &Path) -> Self {
        let clean = |bytes: &[u8]| clean(&String::from_utf8_lossy(bytes), folder);
        Self { code: output.status.code(), out: clean(&output.stdout), err: clean(&output.stderr) }
    }
}

/// Ports, folders and chance taken out.
pub fn clean(text: &str, folder: &Path) -> String {
    let text = text.replace(&folder.display().to_string(), "[DIR]");
    let mut clean = String::new();
    for line in text.lines() {
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("127.0.0.1:") {
            clean += before;
            clean += "[SERVER]";
            rest = after.trim_start_matches(|letter: char| letter.is_ascii_digit());
        }
        match rest.split_once("next try in ") {
            Some((before, _)) => clean += &format!("{before}next try in [TIME]"),
            None => clean += rest,
        }
        clean.push('\n');
    }
    clean
}
