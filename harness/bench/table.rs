//! Races as tables, for the terminal and as Markdown. Pure functions of the reports.

use super::scaling::{ScalingReport, ScalingRow};
use super::{BenchReport, Contestant, Kind};
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
    let [network, stem] = [name_of(network), name_of(stem)];
    let what = match kind {
        Kind::Hash => "a file of 1 GiB".to_owned(),
        Kind::Decode => format!("{images} images on one thread"),
        Kind::Load => format!("{size} pixels, batch {batch}, {images} images"),
        _ => format!("{network}, {stem} stem, {size} pixels, batch {batch}, {images} images"),
    };
    let (jpegs, set) = (jpegs(report), overrides(&report.overrides));
    format!("{}, {what}{jpegs}{set}, {}", name_of(kind), machine(environment))
}

/// How our side decodes files.
fn jpegs(report: &BenchReport) -> &'static str {
    match report.jpeg_simd {
        Some(true) => ", JPEGs decoded by SIMD",
        Some(false) => ", JPEGs decoded without SIMD",
        None => "",
    }
}

fn table(report: &BenchReport) -> Table {
    let mut table = Table::new(&[&["contestant"], COLUMNS.as_slice()].concat());
    contestants(report).into_iter().for_each(|cells| table.row(cells));
    table
}

/// A row for each contestant of a race: its name, and [`COLUMNS`].
fn contestants(report: &BenchReport) -> Vec<Vec<String>> {
    let there = report.contestants.iter().map(|contestant| cells(report, contestant));
    there.chain(report.absent.iter().map(|absent| empty(format!("{}: failed", absent.name)))).collect()
}

fn empty(name: String) -> Vec<String> {
    [vec![name], vec![NOTHING.to_owned(); COLUMNS.len()]].concat()
}

fn cells(report: &BenchReport, contestant: &Contestant) -> Vec<String> {
    let number = |value: Option<f64>, digits: usize| match value {
        Some(value) => format!("{value:.digits$}"),
        None => NOTHING.to_owned(),
    };
    let mebibytes = |bytes: Option<u64>| number(bytes.map(|bytes| (bytes >> 20) as f64), 0);
    let teraflop =
        contestant.steps_per_second.zip(report.flop_per_step).map(|(steps, flop)| steps * flop as f64 / 1e12);
    let share = contestant.share_of_matrix_rate.map_or(NOTHING.to_owned(), |share| format!("{:.1} %", 100.0 * share));
    vec![
        contestant.name.clone(),
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
    let races = || report.rows.iter().filter_map(|row| row.race.as_ref());
    format!(
        "{}, a process each row{}{}, {}; columns as in the races; MiB an image: growth of peak MiB since the smallest batch, \
         for each image more in the batch",
        name_of(&report.kind),
        races().next().map_or("", jpegs),
        overrides(&report.overrides),
        machine(&report.environment)
    )
}

fn scaling_table(report: &ScalingReport) -> Table {
    let mut table =
        Table::new(&[settings(report.kind), &["contestant"], &COLUMNS, &["MiB an image", "outcome"]].concat());
    for row in &report.rows {
        let races = row.race.as_ref().map_or_else(|| vec![empty(NOTHING.to_owned())], contestants);
        for cells in races {
            let growth = growth(report, row, &cells[0]).map_or(NOTHING.to_owned(), |mib| format!("{mib:.2}"));
            let outcome = row.failure.clone().unwrap_or("measured".to_owned());
            table.row([setting(report.kind, row), cells, vec![growth, outcome]].concat());
        }
    }
    table
}

/// What may differ from row to row of the growing cost.
fn settings(kind: Kind) -> &'static [&'static str] {
    if kind.is_of_files() {
        &["cores", "file width", "pixels", "batch"]
    } else {
        &["network", "cores", "pixels", "batch"]
    }
}

/// A row's [`settings`].
fn setting(kind: Kind, row: &ScalingRow) -> Vec<String> {
    let text = |number: Option<usize>, none: &str| number.map_or(none.to_owned(), |number| number.to_string());
    let cores = text(row.cores, "all");
    let own = match kind.is_of_files() {
        true => [cores, text(row.file_width, "own")],
        false => [name_of(&row.network), cores],
    };
    own.into_iter().chain([row.size.to_string(), row.batch.to_string()]).collect()
}

/// A row's settings in words.
pub fn setting_text(kind: Kind, row: &ScalingRow) -> String {
    let pairs = settings(kind).iter().zip(setting(kind, row));
    pairs.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

/// MiB that the process of the contestant called `name` holds for each image more of the batch, compared with the smallest batch
/// that has all else in common with `row`.
fn growth(report: &ScalingReport, row: &ScalingRow, name: &str) -> Option<f64> {
    let peak = |row: &ScalingRow| {
        let contestant = row.race.as_ref()?.contestants.iter().find(|contestant| contestant.name == name)?;
        Some(contestant.peak_rss_bytes? as f64 / f64::from(1 << 20))
    };
    let others = |row: &ScalingRow| (row.network, row.size, row.cores, row.file_width);
    let alike = report.rows.iter().filter(|other| others(other) == others(row) && peak(other).is_some());
    let smallest = alike.min_by_key(|other| other.batch).filter(|smallest| smallest.batch < row.batch)?;
    Some((peak(row)? - peak(smallest)?) / (row.batch - smallest.batch) as f64)
}
