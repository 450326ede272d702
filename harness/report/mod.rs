//! What a suite found, for people and programs. In: a [`SuiteRecord`] (plain data; no tensor reaches this room). Out: a
//! table for the terminal, and report.md, report.json, report.csv, per_class.csv, curves.csv and plots/*.svg. All of it
//! is a pure function of the record: the same record gives the same bytes. Scores follow REFERENCE.md "Metrics".

mod analysis;
mod csv;
mod json;
mod markdown;
mod plots;
mod published;
mod run;
mod side_by_side;
mod summary;
pub(crate) mod table;
mod verdicts;

pub use analysis::analysis_table;
pub use side_by_side::{published_table, render_published};
pub use verdicts::{verdicts_markdown, verdicts_table};

use std::path::{Path, PathBuf};

use crate::fs::{self, FsError};
use crate::record::{JobRecord, PublishedRecord, SMOKE_STAMP, SuiteRecord};
use summary::Summary;
use table::Table;

/// A report could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error(transparent)]
    File(#[from] FsError),
    #[error("the plot {file} could not be drawn ({reason}); the records it is made of are unharmed")]
    Plot { file: String, reason: String },
    #[error("the report could not be written as JSON ({0}); the records it is made of are unharmed")]
    Json(#[from] serde_json::Error),
    #[error("a table could not be read or written as CSV: {0}")]
    Csv(#[from] ::csv::Error),
}

/// One file of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile {
    /// Relative to the report's folder.
    pub path: String,
    pub text: String,
}

impl OutputFile {
    fn new(path: impl Into<String>, text: String) -> Self {
        Self { path: path.into(), text }
    }
}

/// One format of the report; one file of this room each.
trait Exporter {
    fn export(&self, summary: &Summary) -> Result<Vec<OutputFile>, ReportError>;
}

const EXPORTERS: [&dyn Exporter; 4] = [&markdown::Markdown, &json::Json, &csv::Csv, &plots::Plots];

/// Every file of the report, nothing written.
pub fn render(suite: &SuiteRecord) -> Result<Vec<OutputFile>, ReportError> {
    let summary = Summary::of(suite);
    let mut files = Vec::new();
    for exporter in EXPORTERS {
        files.extend(exporter.export(&summary)?);
    }
    Ok(files)
}

/// Writes the report into `folder`, the suite's own (the jobs' folders lie beside it, which makes the links of report.md
/// work), and returns the path of report.md.
pub fn write(folder: &Path, suite: &SuiteRecord) -> Result<PathBuf, ReportError> {
    write_files(folder, &render(suite)?)
}

/// Writes the report on published runs likewise.
pub fn write_published(folder: &Path, record: &PublishedRecord) -> Result<PathBuf, ReportError> {
    write_files(folder, &render_published(record)?)
}

fn write_files(folder: &Path, files: &[OutputFile]) -> Result<PathBuf, ReportError> {
    for file in files {
        fs::write(&folder.join(&file.path), file.text.as_bytes())?;
    }
    Ok(folder.join(markdown::FILE))
}

/// What the terminal shows at a suite's end: one row per method, pre-training list and probe.
pub fn summary_table(suite: &SuiteRecord) -> String {
    let summary = Summary::of(suite);
    let mut text = format!("{}: {CAPTION}{}\n\n", suite.suite, stamp(suite));
    match summary.cells.is_empty() {
        true => text += "no probe has finished\n",
        false => text += &main_table(&summary).to_text(),
    }
    text
}

/// What the terminal shows of one probe or evaluation.
pub fn job_table(record: &JobRecord) -> String {
    let header = record.header();
    let stamp = if header.smoke { format!(" ({SMOKE_STAMP})") } else { String::new() };
    let mut table = Table::new(&["method", "probe", "split", "All", "Many", "Medium", "Few", "Std"]);
    if let (Some(outcome), Some(protocol)) = (record.outcome(), header.protocol) {
        let mut row = vec![header.label.clone(), summary::probe_label(protocol).to_owned(), header.split.to_string()];
        row.extend(outcome.scores.shown().map(|score| format!("{score:.2}")));
        table.row(row);
    }
    format!("{}: test accuracy in per cent{stamp}\n\n{}", header.suite, table.to_text())
}

/// What [`summary_table`] shows, for programs: the settings with their scores, and what failed.
///
/// # Errors
/// A number cannot be written as JSON.
pub fn summary_json(suite: &SuiteRecord, report: &Path) -> Result<String, ReportError> {
    Ok(serde_json::to_string_pretty(&json::summary(&Summary::of(suite), report))?)
}

/// What the numbers of the main table are.
const CAPTION: &str = "test accuracy in per cent, mean ± population standard deviation over splits";

/// ` (smoke run, not a result)` after the caption of everything that is one.
fn stamp(suite: &SuiteRecord) -> String {
    if suite.smoke { format!(" ({SMOKE_STAMP})") } else { String::new() }
}

/// One row per cell: the scores, and the gain over the random encoder where its probe was run on the same splits.
fn main_table(summary: &Summary) -> Table {
    let mut table = Table::new(&[
        "method",
        "pre-trained on",
        "probe",
        "splits",
        "All",
        "Many",
        "Medium",
        "Few",
        "Std",
        "gain in All",
    ]);
    for cell in &summary.cells {
        let mut row = cell.setting.words().to_vec();
        row.push(cell.runs.len().to_string());
        row.extend(cell.scores().iter().map(|(_, score)| table::plus_minus(score)));
        row.push(cell.gain().map(|gain| table::signed_plus_minus(&gain)).unwrap_or_else(|| "–".to_owned()));
        table.row(row);
    }
    table
}
