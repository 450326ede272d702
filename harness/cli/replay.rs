//! `sdclr replay`: training on given inputs, held against what another program did.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::as_rank;
use super::output::out;
use crate::checkpoint;
use crate::fs::{self, Inputs};
use crate::native::group::Group;
use crate::pretrain::replay::{self, ReplayReport, Tolerance};
use crate::stop::Stop;
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
    /// Write what was compared, the largest difference and the outcome as a record into this folder, such as evidence/ of a
    /// suite's folder, whose report shows it
    #[arg(long, value_name = "FOLDER")]
    evidence: Option<PathBuf>,
    #[command(flatten)]
    tolerance: Tolerance,
}

impl ReplayArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        as_rank(&Stop::default(), self.device.clone(), |group, device| self.run_as(&group, device.as_deref()))
    }

    fn run_as(&self, group: &Group, device: Option<&str>) -> anyhow::Result<ExitCode> {
        let read = ["replay.toml", "init.pt", "views.npy", "expected.json"];
        let inputs = read.iter().fold(Inputs::default(), |inputs, name| inputs.file(name, &*self.dir.join(name)));
        inputs.spare("--out", self.out.as_deref())?;
        inputs.spare("--save", self.save.as_deref())?;
        let device = environment::device(device)?;
        let (report, state) = replay::run(&self.dir, device, group)?;
        if group.rank() > 0 {
            return Ok(ExitCode::SUCCESS);
        }
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
            anyhow::ensure!(self.evidence.is_none(), "--evidence needs {} to compare with", path.display());
            return Ok(ExitCode::SUCCESS);
        }
        let rows = replay::compare(&report, &ReplayReport::read(&path)?, &self.tolerance);
        let differing = rows.iter().filter(|row| row.differs()).count();
        if let Some(folder) = &self.evidence {
            let record = replay::evidence(&self.dir, &rows, environment::describe(device)?);
            record.write_new(folder)?;
        }
        tracing::info!("{}", replay::table(&rows).trim_end());
        if differing > 0 {
            tracing::info!("{differing} of {} numbers differ from {}", rows.len(), path.display());
            return Ok(ExitCode::FAILURE);
        }
        tracing::info!("all {} numbers agree with {}", rows.len(), path.display());
        Ok(ExitCode::SUCCESS)
    }
}
