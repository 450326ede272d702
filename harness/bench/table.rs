//! Races as tables, for the terminal and as Markdown. Pure functions of the reports.

use super::scaling::ScalingReport;
use super::{BenchReport, Kind};
use crate::recipe::name_of;
use crate::record::Environment;
use crate::report::{markdown_table, table::Table};

/// Columns of one contestant, behind what names it.
const COLUMNS: [&str; 9] =
    ["precision", "s/iteration", "ratio", "steps/s", "images/s", "TFLOP/s", "share of limit", "peak MiB", "device MiB"];
const NOTHING: &str = "–";

/// A race for the terminal.
pub fn text(report: &BenchReport) -> String {
    format!("{}\n{}{}", caption(report), table(report).to_text(), notes(report, ""))
}

/// A race as a section of Markdown.
pub fn markdown(report: &BenchReport) -> String {
    format!(
        "## {}\n\n{}\n\n{}\n{}",
        name_of(&report.kind),
        caption(report),
        markdown_table(&table(report)) + "\n",
        notes(report, "- ")
    )
}

/// The growing cost for the terminal.
pub fn scaling_text(report: &ScalingReport) -> String {
    format!("{}\n{}", scaling_caption(report), scaling_table(report).to_text())
}

/// The growing cost as a section of Markdown.
pub fn scaling_markdown(report: &ScalingReport) -> String {
    let kind = name_of(&report.kind);
    format!(
        "## {kind}: how the cost grows\n\n{}\n\n{}",
        scaling_caption(report),
        markdown_table(&scaling_table(report)) + "\n"
    )
}

fn machine(environment: &Environment) -> String {
    format!("{} ({} threads), libtorch {}", environment.device, environment.threads, environment.libtorch)
}

fn overrides(set: &[String]) -> String {
    set.iter().map(|text| format!(", {text}")).collect()
}

fn caption(report: &BenchReport) -> String {
    let BenchReport { kind, network, stem, size, batch, images, environment, .. } = report;
    if *kind == Kind::Hash {
        return format!("hash, a file of 1 GiB, {}", machine(environment));
    }
    let [kind, network, stem] = [name_of(kind), name_of(network), name_of(stem)];
    let what = format!("{kind}, {network}, {stem} stem, {size} pixels");
    format!("{what}, batch {batch}, {images} images{}, {}", overrides(&report.overrides), machine(environment))
}

fn table(report: &BenchReport) -> Table {
    let mut table = Table::new(&[&["contestant"], COLUMNS.as_slice()].concat());
    for index in 0..report.contestants.len() {
        table.row([vec![report.contestants[index].name.clone()], cells(report, index)].concat());
    }
    for absent in &report.absent {
        table.row([vec![format!("{}: failed", absent.name)], vec![NOTHING.to_owned(); COLUMNS.len()]].concat());
    }
    table
}

fn cells(report: &BenchReport, index: usize) -> Vec<String> {
    let contestant = &report.contestants[index];
    let number = |value: Option<f64>, digits: usize| match value {
        Some(value) => format!("{value:.digits$}"),
        None => NOTHING.to_owned(),
    };
    let mebibytes = |bytes: Option<u64>| number(bytes.map(|bytes| (bytes >> 20) as f64), 0);
    let teraflop =
        contestant.steps_per_second.zip(report.flop_per_step).map(|(steps, flop)| steps * flop as f64 / 1e12);
    let share = contestant.share_of_matrix_rate.map_or(NOTHING.to_owned(), |share| format!("{:.1} %", 100.0 * share));
    vec![
        contestant.precision.map_or(NOTHING.to_owned(), |precision| name_of(&precision)),
        number(Some(contestant.median_seconds), 4),
        number(Some(contestant.ratio_to_ours), 3),
        number(contestant.steps_per_second, 3),
        number(contestant.images_per_second, 1),
        number(teraflop, 3),
        share,
        mebibytes(contestant.peak_rss_bytes),
        mebibytes(contestant.peak_device_bytes),
    ]
}

/// What the columns mean, each line behind `bullet`.
fn notes(report: &BenchReport, bullet: &str) -> String {
    let mut notes = vec!["ratio: its time over ours, median of the rounds; above 1 ours is faster".to_owned()];
    if let (Some(flop), Some(rate)) = (report.flop_per_step, &report.matrix_rate) {
        let (flop, limit, side) = (flop as f64 / 1e12, rate.flop_per_second / 1e12, rate.side);
        notes.push(format!(
            "share of limit: {flop:.4} TFLOP a step against {limit:.3} TFLOP/s, the {} rate of {side} x {side} matrices in this run",
            rate.precision
        ));
    }
    notes.extend(report.absent.iter().map(|absent| format!("{} failed: {}", absent.name, absent.reason)));
    notes.iter().map(|note| format!("{bullet}{note}\n")).collect()
}

fn scaling_caption(report: &ScalingReport) -> String {
    format!(
        "{}, ours alone, a process each row{}, {}; TFLOP/s and share as in the races",
        name_of(&report.kind),
        overrides(&report.overrides),
        machine(&report.environment)
    )
}

fn scaling_table(report: &ScalingReport) -> Table {
    let mut table = Table::new(&[["network", "pixels", "batch"].as_slice(), &COLUMNS, &["outcome"]].concat());
    for row in &report.rows {
        let setting = vec![name_of(&row.network), row.size.to_string(), row.batch.to_string()];
        let (cells, outcome) = match (&row.race, &row.failure) {
            (Some(race), _) if !race.contestants.is_empty() => (cells(race, 0), "measured".to_owned()),
            (_, failure) => (vec![NOTHING.to_owned(); COLUMNS.len()], failure.clone().unwrap_or_default()),
        };
        table.row([setting, cells, vec![outcome]].concat());
    }
    table
}
