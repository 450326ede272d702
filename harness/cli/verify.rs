//! `sdclr verify`: claims judged by the records of suites.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::outln;
use crate::fs::{self, Inputs};
use crate::paper::{Claims, Published};
use crate::report;
use crate::suite;
use crate::verdict;

/// Judge the paper's claims by the records of suites
///
/// Reads records alone: nothing is trained. Exit code 0: every claim judged is reproduced, or better where the claim allows
/// it; 3: at least one is worse, or better where the claim forbids it; 4: otherwise. reference/VERDICTS.md explains the
/// statistics.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr verify runs/digits-lt
  sdclr verify runs/cifar10-lt runs/cifar10-lt-published --json verdicts.json --markdown verdicts.md
  sdclr verify runs/mine --published numbers.csv")]
pub(super) struct VerifyArgs {
    /// Folders of suites, as sdclr repro leaves them
    #[arg(value_name = "FOLDER", required = true)]
    folders: Vec<PathBuf>,
    /// Judge the claims of this file [default: those of the paper about the suites in the folders]
    #[arg(long, value_name = "FILE.toml")]
    claims: Option<PathBuf>,
    /// Numbers to compare with, a CSV with the header of reference/published.csv; without --claims, every number in it whose
    /// row the records have is a claim [default: the paper's]
    #[arg(long, value_name = "FILE.csv")]
    published: Option<PathBuf>,
    /// Write the verdicts as JSON here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table of verdicts as Markdown here
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

impl VerifyArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let inputs = Inputs::default().file("the claims", self.claims.as_deref());
        let inputs = inputs.file("the published numbers", self.published.as_deref());
        let records = |inputs: Inputs, folder: &PathBuf| inputs.folder("the records", folder.as_path());
        let inputs = self.folders.iter().fold(inputs, records);
        inputs.spare("--json", self.json.as_deref())?;
        inputs.spare("--markdown", self.markdown.as_deref())?;
        let evidence = suite::evidence(&self.folders)?;
        let published = match &self.published {
            Some(path) => Published::read(path)?,
            None => Published::embedded()?,
        };
        let claims = match (&self.claims, &self.published) {
            (Some(path), _) => {
                let claims = Claims::read(path)?;
                claims.check_rows(&published, &evidence.rows(&claims)?)?;
                claims
            }
            (None, Some(path)) => {
                let rows: BTreeSet<_> = evidence.observations.iter().map(|seen| seen.row.clone()).collect();
                Claims::embedded()?.of_numbers(&published, &fs::read(path)?, &rows)
            }
            (None, None) => evidence.claims()?,
        };
        let verdicts = verdict::judge(&claims, &published, &evidence.observations, &evidence.authors)?;
        if let Some(path) = &self.json {
            fs::write(path, (serde_json::to_string_pretty(&verdicts)? + "\n").as_bytes())?;
        }
        if let Some(path) = &self.markdown {
            fs::write(path, report::verdicts_markdown(&verdicts)?.as_bytes())?;
        }
        outln!("{}", report::verdicts_table(&verdicts)?)?;
        Ok(ExitCode::from(verdicts.exit_code()))
    }
}
