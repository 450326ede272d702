//! report.json: the tables as numbers, unrounded, and the records they are made of.

use std::path::Path;

use serde::Serialize;

use super::summary::{Cell, Comparison, Summary, scores_of};
use super::{OutputFile, ReportError};
use crate::recipe::{PretrainSplit, Protocol};
use crate::record::evidence::EvidenceRecord;
use crate::record::mechanism::MechanismRecord;
use crate::record::{Failure, Invocation, JobRecord};
use crate::scores::MeanStd;

#[derive(Serialize)]
struct Document<'a> {
    suite: &'a str,
    invocation: &'a Invocation,
    smoke: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stamp: Option<String>,
    seconds: Option<f64>,
    settings: Vec<SettingRow<'a>>,
    differences: Vec<DifferenceRow<'a>>,
    failures: &'a [Failure],
    /// Pre-training and probe jobs, as their result.json files hold them.
    results: &'a [JobRecord],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    mechanisms: &'a [MechanismRecord],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    evidence: &'a [EvidenceRecord],
}

/// The version of what `sdclr repro --json` prints.
const FORMAT: u32 = 1;

/// The tables and the failures, without the records.
pub(super) fn summary(summary: &Summary, report: &Path) -> serde_json::Value {
    let suite = summary.suite;
    serde_json::json!({
        "format": FORMAT,
        "suite": suite.suite,
        "smoke": suite.smoke,
        "stamp": suite.stamp(),
        "report": report,
        "finished": suite.results.len(),
        "settings": summary.cells.iter().map(|cell| setting_row(summary, cell)).collect::<Vec<_>>(),
        "differences": summary.comparisons.iter().map(difference_row).collect::<Vec<_>>(),
        "failures": suite.failures,
    })
}

/// Scores in per cent, deviations in points.
#[derive(Serialize)]
pub(super) struct FiveScores<T> {
    all: T,
    many: T,
    medium: T,
    few: T,
    std: T,
}

impl<T> From<[T; 5]> for FiveScores<T> {
    fn from([all, many, medium, few, std]: [T; 5]) -> Self {
        Self { all, many, medium, few, std }
    }
}

#[derive(Serialize)]
struct SettingRow<'a> {
    encoder: &'a str,
    method: &'a str,
    pretrain_split: Option<PretrainSplit>,
    protocol: Protocol,
    /// How many different ones there are.
    encoders: usize,
    scores: FiveScores<MeanStd>,
    gain_over_random: Option<MeanStd>,
    splits: Vec<SplitRow<'a>>,
}

#[derive(Serialize)]
struct SplitRow<'a> {
    split: usize,
    seed: usize,
    probe_seed: usize,
    /// Path of the record, relative to the report.
    source: String,
    #[serde(flatten)]
    scores: FiveScores<f64>,
    per_class: &'a [f64],
}

#[derive(Serialize)]
struct DifferenceRow<'a> {
    name: &'a str,
    protocol: Protocol,
    scores: FiveScores<MeanStd>,
    splits: Vec<DifferenceOfSplit>,
}

#[derive(Serialize)]
struct DifferenceOfSplit {
    split: usize,
    seed: usize,
    probe_seed: usize,
    #[serde(flatten)]
    scores: FiveScores<f64>,
}

/// report.json.
pub(super) fn file(summary: &Summary) -> Result<OutputFile, ReportError> {
    let suite = summary.suite;
    let document = Document {
        suite: &suite.suite,
        invocation: &suite.invocation,
        smoke: suite.smoke,
        stamp: suite.stamp(),
        seconds: suite.seconds,
        settings: summary.cells.iter().map(|cell| setting_row(summary, cell)).collect(),
        differences: summary.comparisons.iter().map(difference_row).collect(),
        failures: &suite.failures,
        results: &suite.results,
        mechanisms: &suite.mechanisms,
        evidence: &suite.evidence,
    };
    Ok(OutputFile::new("report.json", serde_json::to_string_pretty(&document)? + "\n"))
}

fn setting_row<'a>(summary: &Summary, cell: &'a Cell) -> SettingRow<'a> {
    let splits = cell.runs.iter().map(|(&(split, seed, probe_seed), run)| SplitRow {
        split,
        seed,
        probe_seed,
        source: summary.source(&run.job),
        scores: scores_of(&run.outcome).map(|(_, score)| score).into(),
        per_class: &run.outcome.per_class,
    });
    SettingRow {
        encoder: &cell.setting.encoder,
        method: &cell.setting.method,
        pretrain_split: cell.setting.pretrain_split,
        protocol: cell.setting.protocol,
        encoders: cell.encoders(),
        scores: cell.scores().map(|(_, score)| score).into(),
        gain_over_random: cell.gain(),
        splits: splits.collect(),
    }
}

fn difference_row(comparison: &Comparison) -> DifferenceRow<'_> {
    let splits = comparison.splits.iter().map(|(&(split, seed, probe_seed), scores)| DifferenceOfSplit {
        split,
        seed,
        probe_seed,
        scores: scores.map(|(_, score)| score).into(),
    });
    DifferenceRow {
        name: &comparison.name,
        protocol: comparison.protocol,
        scores: comparison.scores().into(),
        splits: splits.collect(),
    }
}
