//! `sdclr fetch`: what the authors and others published, brought to this disk and verified.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::Args;

use super::output::{out, outln};
use crate::artifact::cache::{Cache, State};
use crate::artifact::fetch::{Fetcher, Options};
use crate::artifact::pins::Pins;
use crate::artifact::registry::{Artifact, Registry};
use crate::artifact::{ArtifactError, Voice, listing, verify};
use crate::fs::{self, Inputs};
use crate::progress::Progress;
use crate::text::message;

/// Fetch data, split lists and the authors' checkpoints, verified
///
/// What is fetched lies in a cache that all commands and processes share; they find it there without --data. A download
/// that was interrupted goes on where it was. A file whose hash is wrong is kept aside and never used.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr fetch --list
  sdclr fetch --suite cifar10-lt           # CIFAR-10 and its split lists
  sdclr fetch cifar100 cifar100-splits
  sdclr fetch cifar10-checkpoints --pin    # no hash is published: trust the first download
  sdclr fetch cifar10-checkpoints --from FILE.zip --pin    # from a file that a browser saved
  sdclr fetch imagenet --from DIR          # check its archives, or the folder of train/ and val/
  sdclr fetch --verify

The authors' archives lie on Google Drive, which may refuse; a browser often gets through.

Share the pins (pins.toml in the cache): whoever names them with --pins gets the same bytes or an error.")]
pub(super) struct FetchArgs {
    /// What to fetch: names and groups that --list shows
    names: Vec<String>,
    /// Fetch the data and the split lists of this suite (checkpoints only by name)
    #[arg(long, value_name = "SUITE")]
    suite: Option<String>,
    /// Show what there is to fetch and what is here, and fetch nothing
    #[arg(long, conflicts_with_all = ["verify", "from", "pin"])]
    list: bool,
    /// With --list: as JSON (format 1: cache, and for each artefact name, about, licence, groups, suites, bytes, state, pinned)
    #[arg(long, requires = "list")]
    json: bool,
    /// Read what is in the cache again and compare its hashes; move aside what is wrong
    #[arg(long, conflicts_with_all = ["from", "pin"])]
    verify: bool,
    /// Open no connection: use what is in the cache
    #[arg(long)]
    offline: bool,
    /// Accept an archive without a published hash, and write its size and sha256 to the pins
    #[arg(long)]
    pin: bool,
    /// Take it from this file (an archive) or folder (lists, ImageNet) instead of downloading it
    #[arg(long, value_name = "PATH")]
    from: Option<PathBuf>,
    /// Artefacts to fetch at once
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    jobs: u8,
    /// The cache [default: SDCLR_CACHE, else sdclr/ in the platform's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The pins [default: pins.toml in the cache]
    #[arg(long, value_name = "FILE")]
    pins: Option<PathBuf>,
    /// Another registry: a copy of fixtures/registry.toml with the urls of a mirror, say
    #[arg(long, value_name = "FILE")]
    registry: Option<PathBuf>,
}

impl FetchArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let registry = Registry::load(self.registry.as_deref())?;
        let cache = Cache::locate(self.cache.clone()).ok_or(ArtifactError::NoCache)?;
        let pins = match self.pins.clone() {
            Some(path) if !self.pin && !fs::exists(&path)? => return Err(ArtifactError::NoPins { path }.into()),
            named => named.unwrap_or_else(|| cache.pins()),
        };
        let inputs = Inputs::default()
            .file("the registry", self.registry.as_deref())
            .file("what --from names", self.from.as_deref())
            .folder("what --from names", self.from.as_deref());
        inputs.spare("--pins", &*pins)?;
        let named = !self.names.is_empty() || self.suite.is_some();
        let chosen = match named {
            true => registry.select(&self.names, self.suite.as_deref())?,
            false if self.list || self.verify => registry.artifacts.iter().collect(),
            false => {
                anyhow::bail!("nothing is named to fetch; name artefacts that sdclr fetch --list shows, or a --suite")
            }
        };
        if self.list {
            let pins = Pins::load(&pins)?;
            match self.json {
                true => outln!("{}", serde_json::to_string_pretty(&listing::json(&chosen, &cache, &pins))?)?,
                false => out!("{}", listing::table(&chosen, &cache, &pins))?,
            }
            return Ok(ExitCode::SUCCESS);
        }
        if self.verify {
            return verify_all(&chosen, &registry, &cache, &Pins::load(&pins)?, named);
        }
        let options = Options { offline: self.offline, pin: self.pin, from: self.from, jobs: self.jobs.into() };
        let progress = Progress::default();
        let (failures, unwritten) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        Fetcher::new(&registry, &cache, pins, options, &progress).run(&chosen, |artifact, outcome| match outcome {
            Ok(outcome) => {
                let written = outln!("{}: {outcome}", artifact.name);
                unwritten.lock().unwrap_or_else(PoisonError::into_inner).extend(written.err());
            }
            Err(error) => {
                failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!("{}", message(&format!("{}: {error}", artifact.name)));
            }
        })?;
        if let Some(error) = unwritten.into_inner().unwrap_or_else(PoisonError::into_inner).pop() {
            return Err(error.into());
        }
        Ok(if failures.into_inner() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Verifies what is there. What is not there counts only where it was `named`.
fn verify_all(
    chosen: &[&Artifact],
    registry: &Registry,
    cache: &Cache,
    pins: &Pins,
    named: bool,
) -> anyhow::Result<ExitCode> {
    let progress = Progress::default();
    let (mut seen, mut healthy) = (0, true);
    for artifact in chosen {
        if cache.state(artifact, pins) == State::Missing {
            if named {
                outln!("{}: missing; run sdclr fetch {}", artifact.name, artifact.name)?;
                healthy = false;
            }
            continue;
        }
        seen += 1;
        let voice = Voice { progress: &progress, name: &artifact.name };
        let verdict = match verify::verify(artifact, registry, cache, pins, &voice) {
            Ok(verdict) => verdict,
            Err(error) => {
                tracing::error!("{}", message(&format!("{}: {error}", artifact.name)));
                healthy = false;
                continue;
            }
        };
        for wrong in &verdict.wrong {
            outln!("{}: {wrong}", artifact.name)?;
        }
        if verdict.wrong.is_empty() {
            outln!("{}: fine, {}", artifact.name, verdict.right())?;
        } else {
            outln!("{}: mend it with sdclr fetch {}", artifact.name, artifact.name)?;
            healthy = false;
        }
    }
    if seen == 0 && healthy {
        outln!("nothing is in {} yet", cache.root.display())?;
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
