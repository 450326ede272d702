//! `sdclr report`: a report made again from records alone, or two sets of records side by side.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::output::outln;
use super::pair::Pair;
use crate::fs::{self, Inputs};
use crate::report::{Findings, Format, Report};
use crate::suite::{self, ReadBack};
use crate::verdict;

/// Make the report of a suite again, or compare two suites
///
/// Reads records alone: nothing is trained. A folder need not be finished; the report says what is missing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr report runs/digits-lt
  sdclr report runs/cifar10-lt runs/cifar10-lt-published --out reports/cifar10
  sdclr report runs/digits-lt --format latex,csv --out tables
  sdclr report --compare runs/before runs/after --out reports/difference")]
pub(super) struct ReportArgs {
    /// Folders of one suite, as sdclr repro leaves them; several where their records belong together
    #[arg(value_name = "FOLDER", required_unless_present = "compare")]
    folders: Vec<PathBuf>,
    /// Set the records of two folders side by side
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with = "folders")]
    compare: Option<Vec<PathBuf>>,
    /// Where to write [default: the folder, if it is one]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What to write
    #[arg(long, value_name = "FORMATS", value_delimiter = ',', default_value = "md,html,json,csv")]
    format: Vec<Format>,
}

impl ReportArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let out = match (self.out.as_deref(), self.folders.as_slice()) {
            (Some(out), _) => out,
            (None, [folder]) => folder,
            (None, _) => anyhow::bail!("a report of several folders, or a comparison, needs --out DIR"),
        };
        let path = match &self.compare {
            Some(pair) => self.compare(pair, out)?,
            None => self.report(out)?,
        };
        outln!("report: {}", path.display())?;
        Ok(ExitCode::SUCCESS)
    }

    fn report(&self, out: &Path) -> anyhow::Result<PathBuf> {
        let found = suite::read_back(&self.folders)?;
        fs::create_folder(out)?;
        let places = found.places(out)?;
        let mut formats = self.format.clone();
        let report = match (&found.suite, &found.authors) {
            (Some(suite), authors) => {
                let verdicts = found.verdicts.as_ref().map_err(String::as_str);
                Report::of_suite(&Findings { suite, verdicts, authors: authors.as_ref(), places, formats: &formats })?
            }
            (None, Some(authors)) => {
                // There report.json is the record itself.
                if places.is_empty() {
                    formats.retain(|format| *format != Format::Json);
                }
                Report::of_authors(authors, &places)?
            }
            (None, None) => anyhow::bail!("there is nothing to report"),
        };
        write(&report, &formats, out, &[&found])
    }

    fn compare(&self, pair: &[PathBuf], out: &Path) -> anyhow::Result<PathBuf> {
        let pair = Pair::read(&pair[..1], &pair[1..])?;
        let scores = pair.compare(verdict::ALPHA)?;
        let report = Report::of_comparison(&pair.comparison(&scores, verdict::ALPHA)?)?;
        fs::create_folder(out)?;
        write(&report, &self.format, out, &pair.sides.iter().collect::<Vec<_>>())
    }
}

/// Writes `report` into `out`, where it replaces no record.
fn write(report: &Report, formats: &[Format], out: &Path, read: &[&ReadBack]) -> anyhow::Result<PathBuf> {
    let records = read.iter().flat_map(|found| &found.files);
    let inputs = records.fold(Inputs::default(), |inputs, file| inputs.file("a record", file.as_path()));
    let files = report.files(formats);
    inputs.spare_in("--out", out, &files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>())?;
    Ok(report.write(out, formats)?)
}
