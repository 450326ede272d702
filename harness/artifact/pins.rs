//! Pins: sizes and hashes of archives for which nobody published any, as first downloaded. In and out: a TOML file that
//! can be shared and committed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::registry::RemoteFile;
use super::waiting::wait_for;
use super::{ArtifactError, Voice};
use crate::fs::{self, FolderLock};
use crate::text::{printable, toml_reason};

const HEADER: &str = "\
# Sizes and sha256 of archives that were published without a hash, as they were when somebody fetched them first with
# `sdclr fetch NAME --pin`. Give this file to others (--pins FILE): what they fetch must then be the same.
";

/// A pin has about 130 bytes.
const PINS_BYTES: u64 = 1 << 20;

/// What one archive was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    pub size: u64,
    pub sha256: String,
}

/// The pins by name of artefact, and where they are kept.
#[derive(Debug)]
pub struct Pins {
    pub path: PathBuf,
    pins: BTreeMap<String, Pin>,
}

impl Pins {
    /// Reads the file; where there is none, there are no pins yet. Hashes may be written in capitals.
    pub fn load(path: &Path) -> Result<Self, ArtifactError> {
        let mut pins: BTreeMap<String, Pin> = if path.exists() {
            let text = fs::read_text(path, PINS_BYTES)?;
            toml::from_str(&text)
                .map_err(|error| ArtifactError::Pins { path: path.to_path_buf(), reason: toml_reason(&text, &error) })?
        } else {
            BTreeMap::new()
        };
        for (name, pin) in &mut pins {
            pin.sha256.make_ascii_lowercase();
            if pin.sha256.len() != 64 || !pin.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                let reason = format!(
                    "the sha256 of {} is '{}', not 64 hexadecimal digits",
                    printable(name),
                    printable(&pin.sha256)
                );
                return Err(ArtifactError::Pins { path: path.to_path_buf(), reason });
            }
        }
        Ok(Self { path: path.to_path_buf(), pins })
    }

    pub fn has(&self, name: &str) -> bool {
        self.pins.contains_key(name)
    }

    /// `file` of the artefact `name` with what its pin knows; what the registry knows is never replaced.
    pub fn apply(&self, name: &str, file: &RemoteFile) -> RemoteFile {
        let mut file = file.clone();
        if let (None, Some(pin)) = (&file.sha256, self.pins.get(name)) {
            file.size = Some(pin.size);
            file.sha256 = Some(pin.sha256.clone());
        }
        file
    }

    /// Adds a pin to the file, under a lock that lies beside it: several caches may share it.
    ///
    /// # Errors
    /// Another pin of this name is there, or the file cannot be read or written.
    pub fn add(path: &Path, name: &str, pin: Pin, voice: &Voice) -> Result<(), ArtifactError> {
        let refuse = |reason: String| ArtifactError::Pins { path: path.to_path_buf(), reason };
        let _lock = wait_for(voice, || FolderLock::take_beside(path))?;
        let mut pins = Self::load(path)?.pins;
        if let Some(other) = pins.get(name).filter(|other| **other != pin) {
            let (known, found) = (&other.sha256, &pin.sha256);
            return Err(refuse(format!("{name} was pinned meanwhile, with the sha256 {known}; what came has {found}")));
        }
        pins.insert(name.to_owned(), pin);
        let text = toml::to_string(&pins).map_err(|error| refuse(error.to_string()))?;
        Ok(fs::write(path, format!("{HEADER}\n{text}").as_bytes())?)
    }
}
