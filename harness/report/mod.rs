//! What was found, for people and programs. In: records, verdicts, comparisons (plain data; no tensor reaches this room). Out:
//! tables for the terminal, and a report: one [`Document`] rendered as Markdown, HTML and LaTeX, and files of data. All of it is
//! a pure function of its input: the same records give the same bytes. Scores follow REFERENCE.md "Metrics".

mod analysis;
mod authors;
mod comparison;
mod csv;
mod document;
mod draw;
mod html;
mod json;
mod latex;
mod markdown;
mod plots;
mod quoted;
mod ro_crate;
mod run;
mod sections;
mod summary;
pub(crate) mod table;
mod text;
mod verdicts;

pub use analysis::analysis_table;
pub use authors::published_table;
pub use comparison::{Comparison, comparison_table};
pub use document::{Block, Document, Section};
pub(crate) use markdown::table as markdown_table;
pub use verdicts::{verdicts_markdown, verdicts_table};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::fs::{self, FsError};
use crate::paper::PaperError;
use crate::recipe::JobId;
use crate::record::{JobRecord, PublishedRecord, SuiteRecord};
use crate::verdict::{VerdictError, Verdicts};
use summary::Summary;
use table::Table;

/// A report could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error(transparent)]
    File(#[from] FsError),
    #[error("nothing is left to write: {folder}/report.json is the record itself; choose another --format or --out")]
    NoFile { folder: String },
    #[error("the plot {file} could not be drawn ({reason}); the records it is made of are unharmed")]
    Plot { file: String, reason: String },
    #[error("the report could not be written as JSON ({0}); the records it is made of are unharmed")]
    Json(#[from] serde_json::Error),
    #[error("a table could not be written as CSV: {0}")]
    Csv(#[from] ::csv::Error),
    #[error(transparent)]
    Paper(#[from] PaperError),
    #[error(transparent)]
    Verdict(#[from] VerdictError),
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

/// What a report can be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Format {
    /// report.md, with its figures in plots/
    Md,
    /// report.html: one page that needs nothing else
    Html,
    /// report.json: the tables in numbers, unrounded, and the records; in the suite's own folder also ro-crate-metadata.json
    Json,
    /// report.csv, per_class.csv and curves.csv: a row per probe, class and epoch
    Csv,
    /// report.tex, tables in booktabs
    Latex,
}

impl Format {
    /// What `sdclr repro` writes.
    pub const DEFAULT: [Self; 4] = [Self::Md, Self::Html, Self::Json, Self::Csv];
}

/// What a report on a suite is made of.
#[derive(Debug, Clone)]
pub struct Findings<'a> {
    pub suite: &'a SuiteRecord,
    /// The claims judged by these records, or why none could be.
    pub verdicts: Result<&'a Verdicts, &'a str>,
    /// What was found in the authors' files, where they were evaluated too.
    pub authors: Option<&'a PublishedRecord>,
    /// The folder of each job's suite, from the report's own; jobs that are not named lie in the report's.
    pub places: BTreeMap<JobId, String>,
    /// What the report will be written as: it refers to no other file.
    pub formats: &'a [Format],
}

impl<'a> Findings<'a> {
    /// Records alone, in the report's own folder, nothing judged.
    pub fn of(suite: &'a SuiteRecord) -> Self {
        Self {
            suite,
            verdicts: Err("no claim has been judged"),
            authors: None,
            places: BTreeMap::new(),
            formats: &Format::DEFAULT,
        }
    }
}

/// A report with its data, not written yet.
#[derive(Debug)]
pub struct Report {
    /// What the files are called, without an ending.
    name: &'static str,
    pub document: Document,
    json: Vec<OutputFile>,
    csv: Vec<OutputFile>,
}

impl Report {
    /// The report on a suite.
    ///
    /// # Errors
    /// A figure cannot be drawn, or a number not be written.
    pub fn of_suite(findings: &Findings) -> Result<Self, ReportError> {
        let summary = Summary::of(findings);
        let document = sections::document(&summary)?;
        let mut json = vec![json::file(&summary)?];
        // Its paths are those of the suite's own folder.
        if findings.places.is_empty() {
            json.extend(ro_crate::file(findings.suite, findings.formats)?);
        }
        Ok(Self { name: NAME, document, json, csv: csv::files(&summary)? })
    }

    /// The report on the authors' files, which lie or were run in the folder that `places` has for them.
    ///
    /// # Errors
    /// A number cannot be written.
    pub fn of_authors(record: &PublishedRecord, places: &BTreeMap<JobId, String>) -> Result<Self, ReportError> {
        Ok(Self {
            name: NAME,
            document: authors::document(record, places)?,
            json: vec![authors::json(record)?],
            csv: vec![authors::csv(record)?],
        })
    }

    /// Two sets of records side by side.
    ///
    /// # Errors
    /// An interval cannot be drawn, or a number not be written.
    pub fn of_comparison(comparison: &Comparison) -> Result<Self, ReportError> {
        let name = "compare";
        Ok(Self {
            name,
            document: comparison::document(comparison)?,
            json: vec![comparison::json(comparison, name)?],
            csv: vec![comparison::csv(comparison, name)?],
        })
    }

    /// Its files in the given formats, each once.
    pub fn files(&self, formats: &[Format]) -> Vec<OutputFile> {
        let mut files: Vec<OutputFile> = Vec::new();
        for format in formats {
            let more = match format {
                Format::Md => markdown::export(&self.document, self.name),
                Format::Html => vec![html::export(&self.document, self.name)],
                Format::Latex => latex::export(&self.document, self.name),
                Format::Json => self.json.clone(),
                Format::Csv => self.csv.clone(),
            };
            let new = |file: &OutputFile| files.iter().all(|known| known.path != file.path);
            let more: Vec<OutputFile> = more.into_iter().filter(new).collect();
            files.extend(more);
        }
        files
    }

    /// Writes its files into `folder` and returns the path of the first.
    ///
    /// # Errors
    /// There is none in these formats, or one cannot be written.
    pub fn write(&self, folder: &Path, formats: &[Format]) -> Result<PathBuf, ReportError> {
        let files = self.files(formats);
        for file in &files {
            fs::write(&folder.join(&file.path), file.text.as_bytes())?;
        }
        let first = files.first().ok_or_else(|| ReportError::NoFile { folder: folder.display().to_string() })?;
        Ok(folder.join(&first.path))
    }
}

/// What the files of a suite's report are called.
const NAME: &str = "report";

/// The pictures of a document as files.
fn pictures(document: &Document) -> Vec<OutputFile> {
    fn of(block: &Block) -> Vec<OutputFile> {
        match block {
            Block::Figure(figure) => figure
                .pictures
                .iter()
                .map(|picture| OutputFile::new(picture.path.clone(), picture.svg.clone()))
                .collect(),
            Block::Fold(_, blocks) => blocks.iter().flat_map(of).collect(),
            _ => Vec::new(),
        }
    }
    document.sections.iter().flat_map(|section| section.blocks.iter().flat_map(of)).collect()
}

/// The title with the stamp.
fn heading(document: &Document) -> String {
    format!("{}{}", document.title, stamp(document.stamp.as_deref()))
}

/// ` (smoke run, not a result)`, after the caption of everything that is one.
fn stamp(stamp: Option<&str>) -> String {
    stamp.map(|stamp| format!(" ({stamp})")).unwrap_or_default()
}

/// What the terminal shows at a suite's end: one row per method, pre-training list and probe.
pub fn summary_table(suite: &SuiteRecord) -> String {
    let findings = Findings::of(suite);
    let summary = Summary::of(&findings);
    let mut text = format!("{}: {}{}\n\n", suite.suite, caption(&summary), stamp(suite.stamp().as_deref()));
    match summary.cells.is_empty() {
        true => text += "no probe has finished\n",
        false => text += &main_table(&summary).to_text(),
    }
    text
}

/// What the terminal shows of one probe or evaluation.
pub fn job_table(record: &JobRecord) -> String {
    let header = record.header();
    let stamp = stamp(header.stamp.as_deref());
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
    Ok(serde_json::to_string_pretty(&json::summary(&Summary::of(&Findings::of(suite)), report))?)
}

/// What the numbers of the main table are.
fn caption(summary: &Summary) -> String {
    format!("test accuracy in per cent, mean ± population standard deviation over {}", summary.over())
}

/// One row per cell: the scores, and the gain over the random encoder where its probe was run on the same splits.
fn main_table(summary: &Summary) -> Table {
    let counts = summary.count_columns();
    let header = [&["method", "pre-trained on", "probe"], counts.as_slice(), &summary::SCORES, &["gain in All"]];
    let mut table = Table::new(&header.concat());
    for cell in &summary.cells {
        let mut row = cell.setting.words().to_vec();
        row.extend(summary.count_cells(cell));
        row.extend(cell.scores().iter().map(|(_, score)| table::plus_minus(score)));
        row.push(cell.gain().map(|gain| table::signed_plus_minus(&gain)).unwrap_or_else(|| "–".to_owned()));
        table.row(row);
    }
    table
}
