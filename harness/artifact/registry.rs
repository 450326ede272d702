//! What can be fetched. In: `fixtures/registry.toml` (embedded) or a file of that form. Out: artefacts by name, by group
//! or by suite, with everything that is known of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ArtifactError;
use crate::text::{printable, shown, toml_reason};

/// The embedded registry has 20 KB.
const REGISTRY_BYTES: u64 = 4 << 20;
/// Of the name of an artefact or group.
const NAME_BYTES: usize = 64;

const EMBEDDED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/registry.toml"));

/// Every artefact, and how patient downloads are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    pub transfer: Transfer,
    #[serde(rename = "artifact")]
    pub artifacts: Vec<Artifact>,
}

/// Patience: seconds, bytes per second, counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Rounds over the mirrors, in a row, in which nothing is gained.
    pub attempts: u32,
    pub connect_seconds: f64,
    /// Without a byte.
    pub stall_seconds: f64,
    /// Over which the rate must reach `slow_bytes_per_second`.
    pub slow_window_seconds: f64,
    pub slow_bytes_per_second: u64,
    /// Before the second round; doubled each time, with jitter.
    pub backoff_seconds: f64,
    pub backoff_most_seconds: f64,
    /// A server's Retry-After counts up to this.
    pub retry_after_most_seconds: f64,
    pub redirects: usize,
}

/// One thing that has a name on the command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    pub name: String,
    pub about: String,
    /// Names under which several artefacts are fetched at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Suites that need it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suites: Vec<String>,
    pub place: Place,
    /// Licence or terms.
    pub licence: String,
    /// Where sizes and hashes come from.
    pub note: String,
    pub source: Source,
}

/// Folder of the cache that it ends up in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The layout of `--data DIR`.
    Data,
    /// The authors' checkpoints and logs as their archives unpack.
    Published,
}

/// Where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Archive(Archive),
    Lists(Lists),
    Brought(Brought),
}

/// A tar.gz or zip that is downloaded and unpacked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Its path is a bare file name.
    pub file: RemoteFile,
    /// Endings of names inside by which it is told from its siblings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<String>,
    /// About how many bytes it unpacks to.
    pub unpacked: Option<u64>,
    /// Known hashes of files inside, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub md5_inside: BTreeMap<String, String>,
}

/// Single files with one list of base urls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lists {
    /// Each ends with a slash; a file's path follows.
    pub base: Vec<String>,
    pub files: Vec<RemoteFile>,
}

/// Brought by the user and only checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Brought {
    /// Artefacts whose text lists name the files of an unpacked tree.
    pub lists: Vec<String>,
    /// The archives as they are published.
    pub files: Vec<RemoteFile>,
}

/// A file of which something is known. At least one hash, but for archives that are pinned by whoever is first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteFile {
    pub path: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    pub size: Option<u64>,
    /// A bound where the size is not known.
    pub at_most: Option<u64>,
    pub sha256: Option<String>,
    pub md5: Option<String>,
    /// The id under which git knows the file.
    pub git_blob: Option<String>,
}

impl RemoteFile {
    /// Whether anything but its length says that a file is this one.
    pub fn has_hash(&self) -> bool {
        self.sha256.is_some() || self.md5.is_some() || self.git_blob.is_some()
    }

    /// Most bytes that it may have.
    pub fn limit(&self) -> u64 {
        self.size.or(self.at_most).unwrap_or(0)
    }

    fn problem(&self) -> Option<String> {
        let relative = Path::new(&self.path).components().all(|part| matches!(part, Component::Normal(_)));
        let path = printable(&self.path);
        if !relative || self.path.is_empty() || path != self.path {
            return Some(format!("path '{path}' is not a plain relative path of at most 300 bytes"));
        }
        if self.size.is_none() && self.at_most.is_none() {
            return Some(format!("{} has neither size nor at_most", self.path));
        }
        for (name, hash, digits) in
            [("sha256", &self.sha256, 64), ("md5", &self.md5, 32), ("git_blob", &self.git_blob, 40)]
        {
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            if let Some(hash) = hash
                && !(hash.len() == digits && hash.bytes().all(is_digit))
            {
                return Some(format!(
                    "{name} of {path} is '{}', not {digits} lower-case hexadecimal digits",
                    printable(hash)
                ));
            }
        }
        let strange = self.urls.iter().find(|url| reqwest::Url::parse(url).is_err() || !url.starts_with("http"));
        strange.map(|url| format!("'{}' is no http or https url", printable(url)))
    }
}

impl Transfer {
    pub(super) fn seconds(value: f64) -> Duration {
        Duration::from_secs_f64(value)
    }

    fn problem(&self) -> Option<String> {
        let values = [
            ("connect_seconds", self.connect_seconds),
            ("stall_seconds", self.stall_seconds),
            ("slow_window_seconds", self.slow_window_seconds),
            ("backoff_seconds", self.backoff_seconds),
            ("backoff_most_seconds", self.backoff_most_seconds),
            ("retry_after_most_seconds", self.retry_after_most_seconds),
        ];
        let wrong = values.iter().find(|(_, value)| !(*value > 0.0 && *value <= 86_400.0));
        if let Some((key, value)) = wrong {
            return Some(format!("transfer.{key} is {value}; more than 0 and at most 86400 is expected"));
        }
        (self.attempts == 0).then(|| "transfer.attempts is 0; at least 1 is expected".to_owned())
    }
}

impl Artifact {
    /// Its files with their urls; for an archive the archive itself.
    pub fn files(&self) -> Vec<RemoteFile> {
        match &self.source {
            Source::Archive(archive) => vec![archive.file.clone()],
            Source::Brought(brought) => brought.files.clone(),
            Source::Lists(lists) => {
                let with_urls = |file: &RemoteFile| {
                    let urls = lists.base.iter().map(|base| format!("{base}{}", file.path));
                    RemoteFile { urls: file.urls.iter().cloned().chain(urls).collect(), ..file.clone() }
                };
                lists.files.iter().map(with_urls).collect()
            }
        }
    }

    fn problem(&self) -> Option<String> {
        let plain = |name: &String| {
            (1..=NAME_BYTES).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        if let Some(name) = [&self.name].into_iter().chain(&self.groups).find(|name| !plain(name)) {
            let name = printable(name);
            return Some(format!(
                "'{name}' is no name: 1 to {NAME_BYTES} lower-case letters, digits and - are expected"
            ));
        }
        let files = self.files();
        if let Some(problem) = files.iter().find_map(RemoteFile::problem) {
            return Some(problem);
        }
        match &self.source {
            Source::Archive(archive) if archive.file.path.contains('/') => {
                Some(format!("{} is not a bare file name", archive.file.path))
            }
            Source::Lists(_) | Source::Brought(_) => {
                let unknown = files.iter().find(|file| !file.has_hash());
                unknown.map(|file| format!("{} has no hash", file.path))
            }
            Source::Archive(_) => None,
        }
    }
}

impl Registry {
    /// The registry in `file`, or the embedded one.
    ///
    /// # Errors
    /// The file cannot be read, is not of the form of `fixtures/registry.toml`, or contradicts itself.
    pub fn load(file: Option<&Path>) -> Result<Self, ArtifactError> {
        match file {
            None => Self::parse("fixtures/registry.toml", EMBEDDED),
            Some(path) => Self::parse(&shown(path), &crate::fs::read_text(path, REGISTRY_BYTES)?),
        }
    }

    /// The registry in `text`; `name` is for messages.
    pub fn parse(name: &str, text: &str) -> Result<Self, ArtifactError> {
        let refuse = |reason: String| ArtifactError::Registry { name: name.to_owned(), reason };
        let registry: Self = toml::from_str(text).map_err(|error| refuse(toml_reason(text, &error)))?;
        let mut problem = registry.transfer.problem();
        let (mut names, mut archives) = (BTreeSet::new(), BTreeSet::new());
        for artifact in &registry.artifacts {
            let own = artifact.problem().map(|problem| format!("artifact {}: {problem}", printable(&artifact.name)));
            if let Source::Archive(archive) = &artifact.source
                && !archives.insert(&archive.file.path)
            {
                problem = problem.or(Some(format!("two archives are called {}", archive.file.path)));
            }
            let twice = (!names.insert(&artifact.name))
                .then(|| format!("two artifacts are called {}", printable(&artifact.name)));
            problem = problem.or(own).or(twice);
        }
        let groups = registry.artifacts.iter().flat_map(|artifact| &artifact.groups);
        problem = problem.or(groups
            .filter(|group| names.contains(group))
            .map(|group| format!("{group} is the name of an artifact and of a group"))
            .next());
        problem.map_or(Ok(registry), |problem| Err(refuse(problem)))
    }

    /// The single file that is published as `path`, as `--data DIR` has it.
    pub fn file(&self, path: &str) -> Option<&RemoteFile> {
        let lists = self.artifacts.iter().filter_map(|artifact| match &artifact.source {
            Source::Lists(lists) => Some(&lists.files),
            _ => None,
        });
        lists.flatten().find(|file| file.path == path)
    }

    /// The artefacts that `names` (of artefacts or groups) and `suite` stand for, each once, in the registry's order.
    ///
    /// # Errors
    /// A name or the suite stands for nothing.
    pub fn select(&self, names: &[String], suite: Option<&str>) -> Result<Vec<&Artifact>, ArtifactError> {
        for name in names {
            if !self.artifacts.iter().any(|artifact| artifact.answers_to(name)) {
                let known = self.names();
                let near = crate::recipe::nearest(name, known.iter().copied());
                return Err(ArtifactError::UnknownName { found: name.clone(), near, known: known.join(", ") });
            }
        }
        let suites: BTreeSet<&str> =
            self.artifacts.iter().flat_map(|artifact| &artifact.suites).map(|s| &**s).collect();
        if let Some(found) = suite
            && !suites.contains(found)
        {
            let known = suites.into_iter().collect::<Vec<_>>().join(", ");
            return Err(ArtifactError::UnknownSuite { found: found.to_owned(), known });
        }
        let wanted = |artifact: &&Artifact| {
            names.iter().any(|name| artifact.answers_to(name))
                || suite.is_some_and(|suite| artifact.suites.iter().any(|own| own == suite))
        };
        Ok(self.artifacts.iter().filter(wanted).collect())
    }

    /// Names of artefacts, then of groups.
    fn names(&self) -> Vec<&str> {
        let groups: BTreeSet<&str> =
            self.artifacts.iter().flat_map(|artifact| &artifact.groups).map(|s| &**s).collect();
        self.artifacts.iter().map(|artifact| artifact.name.as_str()).chain(groups).collect()
    }
}

impl Artifact {
    fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.groups.iter().any(|group| group == name)
    }
}
