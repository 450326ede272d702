//! The tables for other programs: report.csv (a row per probe), per_class.csv (a row per probe and class) and curves.csv
//! (a row per epoch; the data behind the curves). Numbers are unrounded; the column `stamp` marks rows that are no result.

use super::summary::{Summary, run_key, scores_of};
use super::{OutputFile, ReportError};
use crate::recipe::name_of;
use crate::record::{EpochRecord, Job};

/// The three files.
pub(super) fn files(summary: &Summary) -> Result<Vec<OutputFile>, ReportError> {
    Ok(vec![
        OutputFile::new("report.csv", probes(summary)?),
        OutputFile::new("per_class.csv", classes(summary)?),
        OutputFile::new("curves.csv", curves(summary)?),
    ])
}

const KEY: [&str; 10] =
    ["suite", "method", "pretrain_split", "protocol", "split", "stamp", "source", "encoder", "seed", "probe_seed"];

/// The cells under [`KEY`]: which job a row belongs to and where its record lies.
fn key(summary: &Summary, job: &Job) -> Vec<String> {
    let header = &job.header;
    let (_, seed, probe_seed) = run_key(header);
    vec![
        header.suite.clone(),
        header.method.clone(),
        header.pretrain_split.map(|list| name_of(&list)).unwrap_or_default(),
        header.protocol.map(|protocol| name_of(&protocol)).unwrap_or_default(),
        header.split.to_string(),
        header.stamp.clone().unwrap_or_default(),
        summary.source(job),
        header.encoder.clone(),
        seed.to_string(),
        probe_seed.to_string(),
    ]
}

fn probes(summary: &Summary) -> Result<String, ReportError> {
    let header = ["all", "many", "medium", "few", "std", "class_std", "best_epoch", "best_validation_accuracy"];
    let runs = summary.cells.iter().flat_map(|cell| cell.runs.values());
    let rows = runs.map(|run| {
        let mut row = key(summary, &run.job);
        row.extend(scores_of(&run.outcome).map(|(_, score)| score.to_string()));
        row.push(run.outcome.scores.class_std.to_string());
        row.push(run.best_epoch.to_string());
        row.push(run.best_validation_accuracy.to_string());
        row
    });
    keyed(&header, rows)
}

fn classes(summary: &Summary) -> Result<String, ReportError> {
    let runs = summary.cells.iter().flat_map(|cell| cell.runs.values());
    let rows = runs.flat_map(|run| {
        let counts = run.outcome.class_counts.iter().zip(&run.outcome.per_class).enumerate();
        counts.map(|(class, (count, accuracy))| {
            let mut row = key(summary, &run.job);
            row.extend([class.to_string(), count.to_string(), accuracy.to_string()]);
            row
        })
    });
    keyed(&["class", "images_in_D_i", "accuracy"], rows)
}

fn curves(summary: &Summary) -> Result<String, ReportError> {
    let header = ["epoch", "loss", "lr", "density", "validation_accuracy", "images_per_second", "seconds", "overlap"];
    let probes = summary.cells.iter().flat_map(|cell| cell.runs.values().map(|run| (&run.job, &run.epochs)));
    let pretrainings = summary.pretrainings.iter().map(|record| (&record.job, &record.epochs));
    let rows = pretrainings.chain(probes).flat_map(|(job, epochs): (&Job, &Vec<EpochRecord>)| {
        epochs.iter().map(move |epoch| {
            let mut row = key(summary, job);
            row.extend([epoch.epoch.to_string(), epoch.loss.to_string(), epoch.lr.to_string()]);
            row.extend([optional(epoch.density), optional(epoch.validation_accuracy)]);
            row.extend([epoch.images_per_second.to_string(), epoch.seconds.to_string(), optional(epoch.overlap)]);
            row
        })
    });
    keyed(&header, rows)
}

/// The value, or an empty cell.
fn optional(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// A CSV file of [`KEY`] and `header` over `rows`.
fn keyed(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Result<String, ReportError> {
    text(&[&KEY, header].concat(), rows)
}

/// A CSV file of `header` over `rows`.
pub(super) fn text(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Result<String, ReportError> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(header)?;
    for row in rows {
        writer.write_record(&row)?;
    }
    let bytes = writer.into_inner().map_err(|error| ::csv::Error::from(error.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
