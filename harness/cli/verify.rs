//! `sdclr verify`: claims judged by the records of suites, or records judged by recorded ones.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::outln;
use super::pair::Pair;
use crate::fs::{self, Inputs};
use crate::paper::{Claims, Published};
use crate::record::power::{self, Power};
use crate::report::{self, Format, Report};
use crate::suite;
use crate::text::counted;
use crate::verdict;

/// Draws of a measured power.
const DRAWS: usize = 1000;

/// Judge the paper's claims by the records of suites, or a run by recorded runs
///
/// Reads records alone: nothing is trained. Exit code 0: every claim judged is reproduced, or better where the claim allows
/// it; 3: at least one is worse, or better where the claim forbids it; 4: otherwise. With --against: 0: nothing differs; 3:
/// something does; 4: something that was recorded could not be compared. reference/VERDICTS.md explains the statistics.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr verify runs/digits-lt
  sdclr verify runs/cifar10-lt runs/cifar10-lt-published --json verdicts.json --markdown verdicts.md
  sdclr verify runs/mine --published numbers.csv
  sdclr verify runs/gate-cpu --against reports/gate-cpu    # has the training code changed?")]
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
    /// Compare every score, final loss and overlap of masks with the recorded runs in this folder, two-sided
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["claims", "published"])]
    against: Option<PathBuf>,
    /// With --against: the chance that runs which do not differ are said to, for the whole comparison
    #[arg(long, value_name = "RATE", default_value_t = 0.01, requires = "against")]
    rate: f64,
    /// With --against: instead of one comparison, how many of 1,000 differ that draw this many seeds a split from the folders
    #[arg(long, value_name = "SEEDS", requires = "against", conflicts_with_all = ["json", "markdown"],
        value_parser = clap::value_parser!(u16).range(1..))]
    power: Option<u16>,
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
        let inputs = inputs.folder("the records", self.against.as_deref());
        inputs.spare("--json", self.json.as_deref())?;
        inputs.spare("--markdown", self.markdown.as_deref())?;
        if let Some(reference) = &self.against {
            return self.compare(reference);
        }
        let mut evidence = suite::evidence(&self.folders)?;
        if self.published.is_some() {
            // Whether one's own numbers are about these recipes is not known here.
            evidence.observations.iter_mut().for_each(|seen| seen.departs = None);
        }
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

    /// Judges the folders by the runs in `reference`.
    fn compare(&self, reference: &PathBuf) -> anyhow::Result<ExitCode> {
        let pair = Pair::read(&self.folders, std::slice::from_ref(reference))?;
        if let Some(seeds) = self.power {
            let [runs, reference] = &pair.samples;
            let alarms = verdict::alarms(runs, reference, seeds.into(), DRAWS, self.rate)?;
            outln!("{} of {} draws of {} a split differ", alarms.any, alarms.draws, counted(seeds.into(), "seed"))?;
            for (quantity, draws) in alarms.of {
                outln!("  {quantity}: {draws}")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut judged = verdict::judge_by(&pair.samples[0], &pair.samples[1], self.rate)?;
        let comparison = pair.comparison(&judged.scores, self.rate)?;
        let report = Report::of_comparison(&comparison)?;
        for (path, format) in [(&self.json, Format::Json), (&self.markdown, Format::Md)] {
            if let (Some(path), [file]) = (path, report.files(&[format]).as_slice()) {
                fs::write(path, file.text.as_bytes())?;
            }
        }
        if comparison.settings_differ() {
            let differ = "the recipes or the data are not those of the recorded runs (--markdown FILE tells which)";
            judged.open.push(differ.to_owned());
        }
        if let Some(stamp) = comparison.stamp() {
            outln!("({stamp})\n")?;
        }
        outln!("{}", report::comparison_table(&judged.scores)?)?;
        for line in &judged.open {
            outln!("{line}")?;
        }
        let (different, tested) = (judged.different(), counted(judged.tested(), "figure"));
        outln!("{different} of {tested} differ at a false-alarm rate of {} for all together", self.rate)?;
        for Power { defect, seeds, rate, draws, differ } in power::read(reference)? {
            outln!("of runs with {defect}, {differ} of {draws} differed ({seeds} seeds a split, at a rate of {rate})")?;
        }
        Ok(ExitCode::from(judged.exit_code()))
    }
}
