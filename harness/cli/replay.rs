//! `sdclr replay`: training on given inputs, held against what another program did.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;

use super::output::out;
use crate::checkpoint;
use crate::fs::{self, Inputs};
use crate::pretrain::replay::{self, Comparison, ReplayReport, Tolerance};
use crate::suite::environment;

/// Train on given inputs and report what happened; compare with expected.json where there is one
///
/// DIR holds replay.toml, init.pt (a published-style training checkpoint) and views.npy (uint8 [steps_per_epoch, batch,
/// 2, 3, H, W]). Exits with 1 where a judged number differs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr replay DIR --out report.json --save final.safetensors
  sdclr replay DIR --loss-tolerance 1e-4")]
pub(super) struct ReplayArgs {
    dir: PathBuf,
    /// cpu or cuda:N [default: CUDA where it is]
    #[arg(long)]
    device: Option<String>,
    /// Write the report here instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the final state dict (names as in init.pt)
    #[arg(long, value_name = "FILE.safetensors")]
    save: Option<PathBuf>,
    #[command(flatten)]
    tolerance: Tolerance,
}

impl ReplayArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let read = ["replay.toml", "init.pt", "views.npy", "expected.json"];
        let inputs = read.iter().fold(Inputs::default(), |inputs, name| inputs.file(name, &*self.dir.join(name)));
        inputs.spare("--out", self.out.as_deref())?;
        inputs.spare("--save", self.save.as_deref())?;
        let device = environment::device(self.device.as_deref())?;
        let (report, state) = replay::run(&self.dir, device)?;
        let json = serde_json::to_string_pretty(&report)? + "\n";
        match &self.out {
            Some(path) => fs::write(path, json.as_bytes())?,
            None => out!("{json}")?,
        }
        if let Some(path) = &self.save {
            checkpoint::write_weights(path, &state)?;
        }
        let path = self.dir.join("expected.json");
        if !fs::exists(&path)? {
            return Ok(ExitCode::SUCCESS);
        }
        let expected: ReplayReport = serde_json::from_str(&fs::read_to_string(&path)?)
            .map_err(|error| anyhow!("{} has not the keys of a replay report: {error}", path.display()))?;
        let rows = replay::compare(&report, &expected, &self.tolerance);
        let differing = rows.iter().filter(|row| row.differs()).count();
        tracing::info!("{}", table(&rows).trim_end());
        if differing > 0 {
            tracing::info!("{differing} of {} numbers differ from {}", rows.len(), path.display());
            return Ok(ExitCode::FAILURE);
        }
        tracing::info!("all {} numbers agree with {}", rows.len(), path.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// What differs, or where nothing does, the largest difference of each judged kind; and the largest unjudged one.
fn table(rows: &[Comparison]) -> String {
    let kind = |row: &Comparison| row.what.split([' ', '[']).next().unwrap_or_default().to_owned();
    let mut shown: Vec<&Comparison> = rows.iter().filter(|row| row.differs()).collect();
    let mut worst: std::collections::BTreeMap<String, &Comparison> = std::collections::BTreeMap::new();
    for row in rows.iter().filter(|row| !row.differs()) {
        let entry = worst.entry(kind(row)).or_insert(row);
        if row.difference > entry.difference {
            *entry = row;
        }
    }
    shown.extend(worst.values());
    let width = shown.iter().map(|row| row.what.len()).max().unwrap_or(0);
    let mut text = format!("{:width$}  {:>16} {:>16} {:>11} {:>9}\n", "", "found", "expected", "difference", "allowed");
    for row in shown {
        let allowed = row.allowed.map_or("-".to_owned(), |allowed| format!("{allowed:.0e}"));
        let verdict = match (row.differs(), row.allowed) {
            (true, _) => "DIFFERS",
            (false, Some(_)) => "worst of its kind",
            (false, None) => "worst of its kind, not judged",
        };
        let Comparison { what, found, expected, difference, .. } = row;
        text +=
            &format!("{what:width$}  {found:>16.9e} {expected:>16.9e} {difference:>11.3e} {allowed:>9}  {verdict}\n");
    }
    text
}
