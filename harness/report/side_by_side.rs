//! The report on published runs. In: a [`PublishedRecord`]. Out: a table for the terminal, and report.md, report.json and
//! report.csv, pure functions of the record. Per setting, side by side: the paper's table, the authors' logs, their
//! fine-tuned models as this program evaluates them, and their encoders as this program probes them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::json::FiveScores;
use super::published::{self, Published, Row};
use super::summary::{Setting, scores_of};
use super::table::{Table, duration, escape, plus_minus};
use super::{CAPTION, OutputFile, ReportError, csv, markdown, run};
use crate::authors::dataset_of;
use crate::recipe::{PretrainSplit, Protocol, PublishedKind, name_of};
use crate::record::{Environment, Failure, Job, PublishedOutcome, PublishedRecord, SMOKE_STAMP};
use crate::scores::{MeanStd, mean_std};
use crate::split::published_splits;

/// Every file of the report, nothing written.
pub fn render_published(record: &PublishedRecord) -> Result<Vec<OutputFile>, ReportError> {
    let cells = cells(record);
    Ok(vec![
        OutputFile::new(markdown::FILE, report_md(record, &cells)?),
        OutputFile::new("report.json", report_json(record, &cells)?),
        OutputFile::new("report.csv", report_csv(record)?),
    ])
}

/// What the terminal shows: per setting one row of the paper, the logs, the models and our probes each.
pub fn published_table(record: &PublishedRecord) -> Result<String, ReportError> {
    let table = side_by_side(record, &cells(record), |paper| paper.confidence)?;
    let stamp = if record.smoke { format!(" ({SMOKE_STAMP})") } else { String::new() };
    let text = match table.is_empty() {
        true => "nothing could be read\n".to_owned(),
        false => table.to_text(),
    };
    Ok(format!("published runs of {}: {CAPTION}{stamp}\n\n{text}", record.suite))
}

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

fn smoke(outcome: &PublishedOutcome) -> bool {
    outcome.job.as_ref().is_some_and(|job| job.header.smoke)
}

fn how_sure(outcomes: &[&PublishedOutcome]) -> String {
    match outcomes {
        [first, ..] if first.kind == PublishedKind::Log => "read from the logs".to_owned(),
        _ if outcomes.iter().any(|outcome| smoke(outcome)) => format!("measured ({SMOKE_STAMP})"),
        _ => "measured".to_owned(),
    }
}

fn side_by_side(
    record: &PublishedRecord,
    cells: &Cells,
    provenance: fn(Published) -> String,
) -> Result<Table, ReportError> {
    let header =
        ["method", "pre-trained on", "probe", "source", "splits", "All", "Many", "Medium", "Few", "Std", "how sure"];
    let mut table = Table::new(&header);
    for (setting, by_kind) in cells {
        let row = |source: &str, splits: usize| {
            let mut row = setting.words().to_vec();
            row.extend([source.to_owned(), splits.to_string()]);
            row
        };
        if let Some(paper) = published::published(&record.suite, setting)? {
            let splits = dataset_of(&record.suite).map_or(published::SPLITS, published_splits);
            let mut cells = row("paper", splits);
            cells.extend(paper.scores.clone());
            cells.push(provenance(paper));
            table.row(cells);
        }
        for (kind, outcomes) in by_kind {
            let mut cells = row(source_words(*kind), outcomes.len());
            cells.extend(over_splits(outcomes).iter().map(plus_minus));
            cells.push(how_sure(outcomes));
            table.row(cells);
        }
    }
    Ok(table)
}

fn report_md(record: &PublishedRecord, cells: &Cells) -> Result<String, ReportError> {
    let sections = [
        title(record),
        listed(
            "Failures",
            "These files could not be read or run; what depends on them is missing below.",
            failures(record),
        ),
        listed("Warnings", "", record.warnings.iter().map(|warning| escape(warning)).collect()),
        means(record, cells)?,
        logs_and_models(record, cells),
        per_split(record, cells),
        what_was_run(record),
        listed(
            "Missing files",
            "Not found in the folder:",
            record.missing.iter().map(|name| format!("`{name}`")).collect(),
        ),
    ];
    let sections: Vec<&str> = sections.iter().map(|section| section.trim_end()).filter(|s| !s.is_empty()).collect();
    Ok(sections.join("\n\n") + "\n")
}

/// A table under its caption, which carries the smoke stamp.
fn captioned(record: &PublishedRecord, caption: &str, table: &Table) -> String {
    let stamp = if record.smoke { format!(" (**{SMOKE_STAMP}**)") } else { String::new() };
    format!("*{caption}{stamp}.*\n\n{}", table.to_markdown())
}

fn title(record: &PublishedRecord) -> String {
    let stamp = if record.smoke { format!(" ({SMOKE_STAMP})") } else { String::new() };
    let mut text = format!("# {}: the published runs{stamp}\n\n", record.suite);
    if record.smoke {
        text += "> Models and encoders were run on a part of the images or epochs: this shows that everything runs, and nothing else. \
The logs are whole.\n\n";
    }
    let count = |kind| record.outcomes.iter().filter(|outcome| outcome.kind == kind).count();
    text + &format!(
        "The files that SDCLR's authors published: {} logs read, {} fine-tuned models evaluated, {} probes of pre-trained encoders; \
{} failures, {} files missing ({} in this session).\n",
        count(PublishedKind::Log),
        count(PublishedKind::Model),
        count(PublishedKind::Probe),
        record.failures.len(),
        record.missing.len(),
        duration(record.seconds)
    )
}

fn failures(record: &PublishedRecord) -> Vec<String> {
    record.failures.iter().map(|failure| format!("`{}`: {}", failure.job, escape(&failure.error))).collect()
}

/// A section with a list; nothing where the list is empty.
fn listed(title: &str, introduction: &str, points: Vec<String>) -> String {
    if points.is_empty() {
        return String::new();
    }
    let introduction = if introduction.is_empty() { String::new() } else { format!("{introduction}\n\n") };
    let points: Vec<String> = points.iter().map(|point| format!("- {point}\n")).collect();
    format!("## {title}\n\n{introduction}{}", points.concat())
}

fn means(record: &PublishedRecord, cells: &Cells) -> Result<String, ReportError> {
    let table = side_by_side(record, cells, |paper| paper.provenance)?;
    if table.is_empty() {
        return Ok("## Side by side\n\nNothing could be read.\n".to_owned());
    }
    let caption = "Test accuracy in per cent, mean ± population standard deviation over splits";
    Ok(format!(
        "## Side by side\n\n{}
- **paper**: the published table. Not all of its numbers could be checked against the paper's text; the last column says of each how it came here.
- **published log**: what the authors' log.txt reports, its last complete result.
- **published model, evaluated here**: their best_model.pt on the test images, without training. It should repeat the log.
- **published encoder, probed here**: their pre-training checkpoint under our linear probe, whose order of images is not theirs; it should \
agree within the deviations.
- **All** is the mean over the classes; **Many**, **Medium** and **Few** are means over the classes that are frequent, middling and rare in \
`D_i` of the same split; **Std** is the population standard deviation of the three: lower is better balanced.
",
        captioned(record, caption, &table)
    ))
}

/// Logs have accuracies to two places of a per cent.
const LOG_ROUNDING: f64 = 0.0051;

/// Where a log and its model are both there: how far apart they are.
fn logs_and_models(record: &PublishedRecord, cells: &Cells) -> String {
    let mut table =
        Table::new(&["method", "pre-trained on", "probe", "split", "All, log", "All, model", "largest of a class", ""]);
    for (setting, by_kind) in cells {
        let of = |kind| by_kind.get(&kind).map_or(&[][..], Vec::as_slice);
        for log in of(PublishedKind::Log) {
            let Some(model) = of(PublishedKind::Model).iter().find(|model| model.split == log.split) else { continue };
            let classes = log.outcome.per_class.iter().zip(&model.outcome.per_class);
            let apart = classes.map(|(log, model)| (log - model).abs()).fold(0.0, f64::max);
            let mut row = setting.words().to_vec();
            row.push(log.split.to_string());
            row.extend([log.outcome.scores.all, model.outcome.scores.all, apart].map(|value| format!("{value:.2}")));
            row.push(if apart > LOG_ROUNDING { "**differs**" } else { "" }.to_owned());
            table.row(row);
        }
    }
    if table.is_empty() {
        return String::new();
    }
    let caption =
        "Accuracy in per cent, and the largest difference of a class in points; logs are rounded to two places";
    format!("## Do the models repeat their logs?\n\n{}", captioned(record, caption, &table))
}

fn per_split(record: &PublishedRecord, cells: &Cells) -> String {
    let header =
        ["method", "pre-trained on", "probe", "split", "source", "All", "Many", "Medium", "Few", "Std", "from"];
    let mut table = Table::new(&header);
    for (setting, by_kind) in cells {
        let mut outcomes: Vec<&PublishedOutcome> = by_kind.values().flatten().copied().collect();
        outcomes.sort_by_key(|outcome| (outcome.split, outcome.kind));
        for outcome in outcomes {
            let mut row = setting.words().to_vec();
            row.extend([outcome.split.to_string(), source_words(outcome.kind).to_owned()]);
            row.extend(scores_of(&outcome.outcome).iter().map(|(_, score)| format!("{score:.2}")));
            row.push(match &outcome.job {
                Some(job) => format!("[result.json]({})", run::source(job)),
                None => format!("`{}`", outcome.file),
            });
            table.row(row);
        }
    }
    match table.is_empty() {
        true => String::new(),
        false => format!("## Split by split\n\n{}", captioned(record, "Test accuracy in per cent", &table)),
    }
}

fn what_was_run(record: &PublishedRecord) -> String {
    let jobs: Vec<&Job> = record.outcomes.iter().filter_map(|outcome| outcome.job.as_ref()).collect();
    let mut environments: Vec<&Environment> = Vec::new();
    for session in jobs.iter().flat_map(|job| &job.sessions) {
        if !environments.contains(&&session.environment) {
            environments.push(&session.environment);
        }
    }
    let mut text = format!(
        "## What was run\n\n- Command, from the root of a checkout: `{}`\n",
        run::command(&record.invocation, &["--from-published DIR --data DIR"])
    );
    for environment in environments {
        text += &format!(
            "- Machine: {}, threads {}; libtorch {}, sdclr {}, commit {}.\n",
            environment.device,
            environment.threads,
            environment.libtorch,
            environment.sdclr,
            environment.git_commit.as_deref().unwrap_or("unknown")
        );
    }
    let lists =
        jobs.iter().flat_map(|job| job.header.splits_sha256.iter().map(|(name, hash)| (name.as_str(), hash.as_str())));
    let images = jobs.iter().map(|job| ("images and labels", job.header.data_sha256.as_str()));
    let inputs: BTreeMap<&str, &str> = images.chain(lists).collect();
    let mut hashes = Table::new(&["input", "sha256"]);
    inputs.into_iter().for_each(|(name, hash)| hashes.row(vec![name.to_owned(), format!("`{hash}`")]));
    // An encoder is probed twice.
    let files: BTreeSet<_> = record.outcomes.iter().map(|outcome| (&outcome.file, &outcome.file_sha256)).collect();
    files.into_iter().for_each(|(file, hash)| hashes.row(vec![file.clone(), format!("`{hash}`")]));
    if !hashes.is_empty() {
        text += &format!(
            "\n{}",
            captioned(record, "What the jobs read: decoded images, bytes of lists, logs, models and encoders", &hashes)
        );
    }
    text
}

#[derive(Serialize)]
struct Document<'a> {
    suite: &'a str,
    smoke: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stamp: Option<&'static str>,
    seconds: f64,
    settings: Vec<SettingRow<'a>>,
    missing: &'a [String],
    failures: &'a [Failure],
    warnings: &'a [String],
    outcomes: &'a [PublishedOutcome],
}

/// Scores in per cent, deviations in points; a source that gave nothing is absent.
#[derive(Serialize)]
struct SettingRow<'a> {
    method: &'a str,
    pretrain_split: Option<PretrainSplit>,
    protocol: Protocol,
    paper: Vec<Row>,
    #[serde(flatten)]
    sources: BTreeMap<String, FiveScores<MeanStd>>,
}

fn report_json(record: &PublishedRecord, cells: &Cells) -> Result<String, ReportError> {
    fn row<'a>(
        suite: &str,
        (setting, by_kind): (&'a Setting, &BTreeMap<PublishedKind, Vec<&PublishedOutcome>>),
    ) -> Result<SettingRow<'a>, ReportError> {
        Ok(SettingRow {
            method: &setting.method,
            pretrain_split: setting.pretrain_split,
            protocol: setting.protocol,
            paper: published::rows(suite, setting)?,
            sources: by_kind.iter().map(|(kind, outcomes)| (name_of(kind), over_splits(outcomes).into())).collect(),
        })
    }
    let document = Document {
        suite: &record.suite,
        smoke: record.smoke,
        stamp: record.smoke.then_some(SMOKE_STAMP),
        seconds: record.seconds,
        settings: cells.iter().map(|cell| row(&record.suite, cell)).collect::<Result<_, ReportError>>()?,
        missing: &record.missing,
        failures: &record.failures,
        warnings: &record.warnings,
        outcomes: &record.outcomes,
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// One row per outcome, unrounded.
fn report_csv(record: &PublishedRecord) -> Result<String, ReportError> {
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
            if smoke(outcome) { SMOKE_STAMP } else { "" }.to_owned(),
            outcome.file.clone(),
        ];
        row.extend(scores_of(&outcome.outcome).map(|(_, score)| score.to_string()));
        row.extend([outcome.outcome.scores.class_std.to_string(), outcome.sha256.clone()]);
        row
    });
    csv::text(&header, rows)
}
