//! How the cost grows with network, image size and batch: a race without peers for every combination. Each runs in its own
//! process, so that its peak memory is its own and running out of memory fails only that row.

use std::path::Path;
use std::process::{Command, Output};

use serde::{Deserialize, Serialize};
use tch::Device;

use super::{BenchError, BenchOptions, BenchReport, Kind};
use crate::fs;
use crate::pretrain::PretrainError;
use crate::recipe::{Depth, name_of};
use crate::record::Environment;
use crate::suite::environment;

/// Every combination is measured, in this order of nesting.
#[derive(Debug, Clone)]
pub struct Grid {
    pub networks: Vec<Depth>,
    /// Pixels.
    pub sizes: Vec<i64>,
    pub batches: Vec<usize>,
}

/// One combination.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScalingRow {
    pub network: Depth,
    pub size: i64,
    pub batch: usize,
    /// Absent where it failed.
    pub race: Option<BenchReport>,
    /// `out of memory`, or what else stopped it.
    pub failure: Option<String>,
}

/// The whole table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScalingReport {
    pub kind: Kind,
    pub overrides: Vec<String>,
    pub environment: Environment,
    pub rows: Vec<ScalingRow>,
}

/// Measures every combination of `grid` on what `options` says of the rest, telling each row to `seen` as it is there.
///
/// # Errors
/// No process can be started. A combination that fails is a row that says so.
pub fn scaling(
    options: &BenchOptions,
    grid: &Grid,
    mut seen: impl FnMut(&ScalingRow),
) -> Result<ScalingReport, BenchError> {
    let folder = crate::fs::temporary_folder()?;
    let mut rows = Vec::new();
    for &network in &grid.networks {
        for &size in &grid.sizes {
            for &batch in &grid.batches {
                let options = BenchOptions { network, size, batch, peer: None, ..options.clone() };
                let row = match measure(&options, &folder.path().join("race.json"))? {
                    Ok(race) => ScalingRow { network, size, batch, race: Some(race), failure: None },
                    Err(failure) => ScalingRow { network, size, batch, race: None, failure: Some(failure) },
                };
                seen(&row);
                rows.push(row);
            }
        }
    }
    let environment =
        Environment { eager: options.eager, ..environment::describe(options.device).map_err(PretrainError::from)? };
    Ok(ScalingReport { kind: options.kind, overrides: options.overrides.clone(), environment, rows })
}

/// This program on one combination; the inner error says why there is no race.
fn measure(options: &BenchOptions, json: &Path) -> Result<Result<BenchReport, String>, BenchError> {
    let failed = |reason: String| BenchError::Row { reason };
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let device = match options.device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    };
    let mut command = Command::new(program);
    command.args(["bench", &name_of(&options.kind), "--no-peer", "--device", &device, "--json"]).arg(json);
    command.args(["--network".to_owned(), name_of(&options.network), "--size".into(), options.size.to_string()]);
    command.args(["--batch".to_owned(), options.batch.to_string()]);
    command.args(["--rounds".to_owned(), options.rounds.to_string()]);
    command.args(["--iterations".to_owned(), options.iterations.to_string()]);
    let flags = [("--deterministic", options.deterministic), ("--eager", options.eager)];
    command.args(flags.iter().filter(|(_, on)| *on).map(|(flag, _)| flag));
    if let Some(images) = options.images {
        command.args(["--images".to_owned(), images.to_string()]);
    }
    for set in &options.overrides {
        command.args(["--set", set]);
    }
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Ok(Err(failure(&output)));
    }
    Ok(serde_json::from_slice(&fs::read(json)?).map_err(|error| error.to_string()))
}

/// Why a process ended, in a few words.
fn failure(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let lower = said.to_lowercase();
    // As CUDA's and the CPU's allocators say it, and as the kernel does: without a word.
    let starved = ["out of memory", "not enough memory", "allocate memory"].iter().any(|words| lower.contains(words));
    if starved || std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(libc::SIGKILL) {
        return "out of memory".to_owned();
    }
    let error = said.lines().find_map(|line| line.strip_prefix("error: "));
    error.map_or_else(|| output.status.to_string(), str::to_owned)
}
