//! How the cost grows with network, image size, batch, cores and the size of image files: a race for every combination. Each
//! runs in its own process, so that its peak memory is its own and running out of memory fails only that row.

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
    /// `None`: all.
    pub cores: Vec<Option<usize>>,
    /// Of made-up files, in pixels.
    pub file_widths: Vec<usize>,
}

impl Grid {
    /// How many combinations there are.
    pub fn rows(&self) -> usize {
        self.networks.len() * self.sizes.len() * self.batches.len() * self.cores.len() * self.file_widths.len()
    }

    /// One value of everything that `options` leaves open, in order.
    fn combinations(&self, options: &BenchOptions) -> Vec<BenchOptions> {
        let mut all = Vec::new();
        for &network in &self.networks {
            for &size in &self.sizes {
                for &cores in &self.cores {
                    for &file_width in &self.file_widths {
                        for &batch in &self.batches {
                            all.push(BenchOptions { network, size, cores, file_width, batch, ..options.clone() });
                        }
                    }
                }
            }
        }
        all
    }
}

/// One combination.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScalingRow {
    pub network: Depth,
    pub size: i64,
    pub batch: usize,
    /// `None`: all.
    #[serde(default)]
    pub cores: Option<usize>,
    /// Of made-up files, where files are read.
    #[serde(default)]
    pub file_width: Option<usize>,
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
    for (row, options) in grid.combinations(options).into_iter().enumerate() {
        let (race, failure) = match measure(&options, &folder.path().join(format!("{row}.json")))? {
            Ok(race) => (Some(race), None),
            Err(failure) => (None, Some(failure)),
        };
        let BenchOptions { network, size, batch, cores, .. } = options;
        let file_width = (options.kind.is_of_files() && options.file.is_none()).then_some(options.file_width);
        let row = ScalingRow { network, size, batch, cores, file_width, race, failure };
        seen(&row);
        rows.push(row);
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
    command.args(["bench", &name_of(&options.kind), "--device", &device, "--json"]).arg(json);
    command.args(["--network".to_owned(), name_of(&options.network), "--size".into(), options.size.to_string()]);
    command.args(["--batch".to_owned(), options.batch.to_string()]);
    command.args(["--rounds".to_owned(), options.rounds.to_string()]);
    command.args(["--iterations".to_owned(), options.iterations.to_string()]);
    let alone = options.peer.is_none();
    let flags = [("--deterministic", options.deterministic), ("--eager", options.eager), ("--no-peer", alone)];
    command.args(flags.iter().filter(|(_, on)| *on).map(|(flag, _)| flag));
    if let Some(images) = options.images {
        command.args(["--images".to_owned(), images.to_string()]);
    }
    if let Some(cores) = options.cores {
        command.args(["--cores".to_owned(), cores.to_string()]);
    }
    match &options.file {
        Some(file) => command.arg("--file").arg(file),
        None => command.args(["--file-width".to_owned(), options.file_width.to_string()]),
    };
    for set in &options.overrides {
        command.args(["--set", set]);
    }
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    // It is there also where a peer failed.
    match std::fs::exists(json) {
        Ok(true) => Ok(serde_json::from_slice(&fs::read(json)?).map_err(|error| error.to_string())),
        _ => Ok(Err(failure(&output))),
    }
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
