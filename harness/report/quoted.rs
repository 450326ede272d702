//! A row of the paper in a table: its numbers as they stand there, and how sure each is.

use super::summary::Setting;
use super::table::plus_minus;
use crate::authors::dataset_of;
use crate::paper::{Metric, Published, PublishedRow};
use crate::scores::MeanStd;
use crate::split::published_splits;

/// What the paper says of one setting.
pub(super) struct Quoted {
    /// Splits that its means run over; `–` where that is unknown.
    pub splits: String,
    /// All, Many, Medium, Few, Std as they stand in a table; `–` where unknown.
    pub scores: [String; 5],
    /// `all: derived (source); std: recalled, ...`.
    pub provenance: String,
    /// The same without the sources.
    pub confidence: String,
}

/// The paper's numbers for `setting` in `suite`; `None` where it has none.
pub(super) fn quoted(published: &Published, suite: &str, setting: &Setting) -> Option<Quoted> {
    let row = setting.row(suite);
    let rows: Vec<&PublishedRow> = published.of(&row).collect();
    let splits = dataset_of(suite).map_or(0, published_splits);
    let score = |metric| published.number(&row, metric).map_or_else(|| "–".to_owned(), |number| score(number, splits));
    (!rows.is_empty()).then(|| Quoted {
        splits: if splits == 0 { "–".to_owned() } else { splits.to_string() },
        scores: Metric::ALL.map(score),
        provenance: grouped(&rows, |row| format!("{} ({})", row.confidence.words(), row.source)),
        confidence: grouped(&rows, |row| row.confidence.words().to_owned()),
    })
}

fn score(number: &PublishedRow, splits: usize) -> String {
    match number.deviation {
        Some(std) => plus_minus(&MeanStd { mean: number.mean, std, n: splits.max(2) }),
        None => format!("{:.2}", number.mean),
    }
}

/// `all, std: ORIGIN; ...`: the metrics of one origin together.
fn grouped(rows: &[&PublishedRow], origin: impl Fn(&PublishedRow) -> String) -> String {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for row in rows {
        let origin = origin(row);
        match groups.iter_mut().find(|(known, _)| *known == origin) {
            Some((_, metrics)) => metrics.push(row.metric.to_string()),
            None => groups.push((origin, vec![row.metric.to_string()])),
        }
    }
    let groups: Vec<String> =
        groups.iter().map(|(origin, metrics)| format!("{}: {origin}", metrics.join(", "))).collect();
    groups.join("; ")
}
