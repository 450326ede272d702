//! The report on the authors' files. In: a [`PublishedRecord`]. Out: a table for the terminal, a document, report.json and
//! report.csv, pure functions of the record. Per setting, side by side: the paper's table, the authors' logs, their
//! fine-tuned models as this program evaluates them, and their encoders as this program probes them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::document::{Block, Document, Section};
use super::json::FiveScores;
use super::quoted::{Quoted, quoted};
use super::summary::{SCORES, Setting, scores_of, source};
use super::table::{Table, one_line, plus_minus};
use super::text::{Text, Tone, marked};
use super::{OutputFile, ReportError, csv as csv_file, run, stamp};
use crate::paper::{Published, PublishedRow};
use crate::recipe::{JobId, PretrainSplit, Protocol, PublishedKind, name_of};
use crate::record::{Failure, Invocation, Job, PublishedOutcome, PublishedRecord};
use crate::scores::{MeanStd, mean_std};

/// What the terminal shows: per setting one row of the paper, the logs, the models and our probes each.
///
/// # Errors
/// The paper's numbers cannot be read, which a test excludes.
pub fn published_table(record: &PublishedRecord) -> Result<String, ReportError> {
    let table = side_by_side(record, &cells(record), |paper| paper.confidence)?;
    let text = match table.is_empty() {
        true => "nothing could be read\n".to_owned(),
        false => table.to_text(),
    };
    Ok(format!("published runs of {}: {CAPTION}{}\n\n{text}", record.suite, stamp(record.stamp().as_deref())))
}

const CAPTION: &str = "test accuracy in per cent, mean ± population standard deviation over splits";

/// The outcomes of one setting by kind, in the order of their splits.
type Cells<'a> = BTreeMap<Setting, BTreeMap<PublishedKind, Vec<&'a PublishedOutcome>>>;

fn cells(record: &PublishedRecord) -> Cells<'_> {
    let mut cells = Cells::new();
    for outcome in &record.outcomes {
        cells.entry(setting_of(outcome)).or_default().entry(outcome.kind).or_default().push(outcome);
    }
    cells.values_mut().flat_map(BTreeMap::values_mut).for_each(|of_kind| of_kind.sort_by_key(|outcome| outcome.split));
    cells
}

fn setting_of(outcome: &PublishedOutcome) -> Setting {
    Setting::published(&outcome.method, outcome.pretrain_split, outcome.protocol)
}

/// Mean and deviation over splits of All, Many, Medium, Few, Std.
fn over_splits(outcomes: &[&PublishedOutcome]) -> [MeanStd; 5] {
    [0, 1, 2, 3, 4].map(|score| {
        let values: Vec<f64> = outcomes.iter().map(|outcome| scores_of(&outcome.outcome)[score].1).collect();
        mean_std(&values)
    })
}

fn source_words(kind: PublishedKind) -> &'static str {
    match kind {
        PublishedKind::Log => "published log",
        PublishedKind::Model => "published model, evaluated here",
        PublishedKind::Probe => "published encoder, probed here",
    }
}

fn stamp_of(outcome: &PublishedOutcome) -> Option<&str> {
    outcome.job.as_ref()?.header.stamp.as_deref()
}

fn how_sure(outcomes: &[&PublishedOutcome]) -> String {
    match outcomes {
        [first, ..] if first.kind == PublishedKind::Log => "read from the logs".to_owned(),
        _ => format!("measured{}", stamp(outcomes.iter().find_map(|outcome| stamp_of(outcome)))),
    }
}

fn side_by_side(record: &PublishedRecord, cells: &Cells, sure: fn(Quoted) -> String) -> Result<Table, ReportError> {
    let header = [["method", "pre-trained on", "probe", "source", "splits"].as_slice(), &SCORES, &["how sure"]];
    let mut table = Table::new(&header.concat());
    let published = Published::embedded()?;
    for (setting, by_kind) in cells {
        let row = |source: &str, splits: String| {
            let mut row = setting.words().to_vec();
            row.extend([source.to_owned(), splits]);
            row
        };
        if let Some(paper) = quoted(&published, &record.suite, setting) {
            let mut cells = row("paper", paper.splits.clone());
            cells.extend(paper.scores.clone());
            cells.push(sure(paper));
            table.row(cells);
        }
        for (kind, outcomes) in by_kind {
            let mut cells = row(source_words(*kind), outcomes.len().to_string());
            cells.extend(over_splits(outcomes).iter().map(plus_minus));
            cells.push(how_sure(outcomes));
            table.row(cells);
        }
    }
    Ok(table)
}

/// The whole report.
pub(super) fn document(record: &PublishedRecord, places: &BTreeMap<JobId, String>) -> Result<Document, ReportError> {
    let sections = sections(record, &|job| source(places, job))?;
    Ok(Document { title: format!("{}: the published runs", record.suite), stamp: record.stamp(), sections })
}

/// Its sections; `source` finds the record of a job.
pub(super) fn sections(record: &PublishedRecord, source: &dyn Fn(&Job) -> String) -> Result<Vec<Section>, ReportError> {
    let cells = cells(record);
    let code = |names: &[String]| names.iter().map(|name| Text::code(name.as_str())).collect();
    let failure = |failure: &Failure| Text::code(failure.job.as_str()).and(format!(": {}", one_line(&failure.error)));
    let mut sections = vec![
        Section::new("", introduction(record)),
        listed(
            "Failures",
            "These files could not be read or run; what depends on them is missing below.",
            record.failures.iter().map(failure).collect(),
        ),
        listed("Warnings", "", record.warnings.iter().map(|warning| one_line(warning).into()).collect()),
        means(record, &cells)?,
        logs_and_models(&cells),
        per_split(&cells, source),
        what_was_run(record),
        listed("Missing files", "Not found in the folder:", code(&record.missing)),
    ];
    sections.retain(|section| !section.blocks.is_empty());
    Ok(sections)
}

fn introduction(record: &PublishedRecord) -> Vec<Block> {
    let count = |kind| record.outcomes.iter().filter(|outcome| outcome.kind == kind).count();
    let summary = format!(
        "The files that SDCLR's authors published: {} logs read, {} fine-tuned models evaluated, {} probes of pre-trained encoders; \
         {} failures, {} files missing.",
        count(PublishedKind::Log),
        count(PublishedKind::Model),
        count(PublishedKind::Probe),
        record.failures.len(),
        record.missing.len(),
    );
    let smoke = "Models and encoders were run on a part of the images or epochs: this shows that everything runs, and nothing else. \
                 The logs are whole.";
    let smoke = record.smoke.then(|| Block::Note(smoke.into()));
    let others = run::unofficial(&record.unofficial());
    smoke.into_iter().chain(others).chain([Block::Paragraph(summary.into())]).collect()
}

/// A section with a list; nothing where the list is empty.
fn listed(title: &str, introduction: &str, points: Vec<Text>) -> Section {
    if points.is_empty() {
        return Section::default();
    }
    let introduction = (!introduction.is_empty()).then(|| Block::Paragraph(introduction.into()));
    Section::new(title, introduction.into_iter().chain([Block::List(points)]).collect())
}

fn means(record: &PublishedRecord, cells: &Cells) -> Result<Section, ReportError> {
    let table = side_by_side(record, cells, |paper| paper.provenance)?;
    if table.is_empty() {
        return Ok(Section::new("Side by side", vec![Block::Paragraph("Nothing could be read.".into())]));
    }
    let points = vec![
        marked(
            "**paper**: the published table. Not all of its numbers could be checked against the paper's text; the last column says \
             of each how it came here.",
        ),
        marked("**published log**: what the authors' log.txt reports, its last complete result."),
        marked(
            "**published model, evaluated here**: their best_model.pt on the test images, without training. It should repeat the \
             log.",
        ),
        marked(
            "**published encoder, probed here**: their pre-training checkpoint under our linear probe, whose order of images is not \
             theirs; it should agree within the deviations.",
        ),
        marked(
            "**All** is the mean over the classes; **Many**, **Medium** and **Few** are means over the classes that are frequent, \
             middling and rare in `D_i` of the same split; **Std** is the population standard deviation of the three: lower is \
             better balanced.",
        ),
    ];
    let caption = "Test accuracy in per cent, mean ± population standard deviation over splits";
    Ok(Section::new("Side by side", vec![Block::Table(caption.into(), table), Block::List(points)]))
}

/// Logs have accuracies to two places of a per cent.
const LOG_ROUNDING: f64 = 0.0051;

/// Where a log and its model are both there: how far apart they are.
fn logs_and_models(cells: &Cells) -> Section {
    let mut table =
        Table::new(&["method", "pre-trained on", "probe", "split", "All, log", "All, model", "largest of a class", ""]);
    for (setting, by_kind) in cells {
        let of = |kind| by_kind.get(&kind).map_or(&[][..], Vec::as_slice);
        for log in of(PublishedKind::Log) {
            let Some(model) = of(PublishedKind::Model).iter().find(|model| model.split == log.split) else { continue };
            let classes = log.outcome.per_class.iter().zip(&model.outcome.per_class);
            let apart = classes.map(|(log, model)| (log - model).abs()).fold(0.0, f64::max);
            let mut row: Vec<Text> = setting.words().map(Text::from).into();
            row.push(log.split.to_string().into());
            let numbers = [log.outcome.scores.all, model.outcome.scores.all, apart];
            row.extend(numbers.map(|value| format!("{value:.2}").into()));
            row.push(if apart > LOG_ROUNDING { Text::strong("differs", Tone::Bad) } else { Text::new() });
            table.row(row);
        }
    }
    if table.is_empty() {
        return Section::default();
    }
    let caption =
        "Accuracy in per cent, and the largest difference of a class in points; logs are rounded to two places";
    Section::new("Do the models repeat their logs?", vec![Block::Table(caption.into(), table)])
}

fn per_split(cells: &Cells, source: &dyn Fn(&Job) -> String) -> Section {
    let header = [["method", "pre-trained on", "probe", "split", "source"].as_slice(), &SCORES, &["from"]];
    let mut table = Table::new(&header.concat());
    for (setting, by_kind) in cells {
        let mut outcomes: Vec<&PublishedOutcome> = by_kind.values().flatten().copied().collect();
        outcomes.sort_by_key(|outcome| (outcome.split, outcome.kind));
        for outcome in outcomes {
            let mut row: Vec<Text> = setting.words().map(Text::from).into();
            row.extend([outcome.split.to_string().into(), source_words(outcome.kind).into()]);
            row.extend(scores_of(&outcome.outcome).iter().map(|(_, score)| format!("{score:.2}").into()));
            row.push(match &outcome.job {
                Some(job) => Text::link("result.json", &source(job)),
                None => Text::code(outcome.file.as_str()),
            });
            table.row(row);
        }
    }
    match table.is_empty() {
        true => Section::default(),
        false => Section::new("Split by split", vec![Block::Table("Test accuracy in per cent".into(), table)]),
    }
}

fn what_was_run(record: &PublishedRecord) -> Section {
    let jobs = || record.outcomes.iter().filter_map(|outcome| outcome.job.as_ref());
    let command = run::command(&record.invocation, &["--from-published DIR --data DIR"]);
    let mut points = vec![Text::from("Command, from the root of a checkout: ").and(Text::code(command))];
    let environments = run::environments(jobs());
    points.extend(environments.into_iter().map(|found| Text::from("Machine: ").and(run::environment_words(found))));
    let lists =
        jobs().flat_map(|job| job.header.splits_sha256.iter().map(|(name, hash)| (name.as_str(), hash.as_str())));
    let images = jobs().map(|job| ("images and labels", job.header.data_sha256.as_str()));
    let inputs: BTreeMap<&str, &str> = images.chain(lists).collect();
    let mut hashes = Table::new(&["input", "sha256"]);
    inputs.into_iter().for_each(|(name, hash)| hashes.row(vec![Text::from(name), Text::code(hash)]));
    // An encoder is probed twice.
    let files: BTreeSet<_> = record.outcomes.iter().map(|outcome| (&outcome.file, &outcome.file_sha256)).collect();
    for (file, hash) in files {
        hashes.row(vec![Text::from(file.as_str()), Text::code(hash.as_str())]);
    }
    let mut blocks = vec![Block::List(points)];
    if !hashes.is_empty() {
        let caption = "What the jobs read: decoded images, bytes of lists, logs, models and encoders";
        blocks.push(Block::Table(caption.into(), hashes));
    }
    Section::new("What was run", blocks)
}

#[derive(Serialize)]
struct Json<'a> {
    suite: &'a str,
    invocation: &'a Invocation,
    smoke: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stamp: Option<String>,
    seconds: Option<f64>,
    settings: Vec<SettingRow>,
    missing: &'a [String],
    failures: &'a [Failure],
    warnings: &'a [String],
    outcomes: &'a [PublishedOutcome],
}

/// Scores in per cent, deviations in points; a source that gave nothing is absent.
#[derive(Serialize)]
struct SettingRow {
    method: String,
    pretrain_split: Option<PretrainSplit>,
    protocol: Protocol,
    paper: Vec<PublishedRow>,
    #[serde(flatten)]
    sources: BTreeMap<String, FiveScores<MeanStd>>,
}

/// report.json.
pub(super) fn json(record: &PublishedRecord) -> Result<OutputFile, ReportError> {
    let cells = cells(record);
    let published = Published::embedded()?;
    let row = |(setting, by_kind): (&Setting, &BTreeMap<PublishedKind, Vec<&PublishedOutcome>>)| SettingRow {
        method: setting.method.clone(),
        pretrain_split: setting.pretrain_split,
        protocol: setting.protocol,
        paper: published.of(&setting.row(&record.suite)).cloned().collect(),
        sources: by_kind.iter().map(|(kind, outcomes)| (name_of(kind), over_splits(outcomes).into())).collect(),
    };
    let document = Json {
        suite: &record.suite,
        invocation: &record.invocation,
        smoke: record.smoke,
        stamp: record.stamp(),
        seconds: record.seconds,
        settings: cells.iter().map(row).collect(),
        missing: &record.missing,
        failures: &record.failures,
        warnings: &record.warnings,
        outcomes: &record.outcomes,
    };
    Ok(OutputFile::new("report.json", serde_json::to_string_pretty(&document)? + "\n"))
}

/// report.csv: one row per outcome, unrounded.
pub(super) fn csv(record: &PublishedRecord) -> Result<OutputFile, ReportError> {
    let header = [
        "suite",
        "method",
        "pretrain_split",
        "protocol",
        "split",
        "kind",
        "stamp",
        "file",
        "all",
        "many",
        "medium",
        "few",
        "std",
        "class_std",
        "sha256",
    ];
    let rows = record.outcomes.iter().map(|outcome| {
        let mut row = vec![
            record.suite.clone(),
            outcome.method.clone(),
            name_of(&outcome.pretrain_split),
            name_of(&outcome.protocol),
            outcome.split.to_string(),
            name_of(&outcome.kind),
            stamp_of(outcome).unwrap_or_default().to_owned(),
            outcome.file.clone(),
        ];
        row.extend(scores_of(&outcome.outcome).map(|(_, score)| score.to_string()));
        row.extend([outcome.outcome.scores.class_std.to_string(), outcome.sha256.clone()]);
        row
    });
    Ok(OutputFile::new("report.csv", csv_file::text(&header, rows)?))
}
