//! The paper's numbers, each with its source and how sure we are of it: reference/published.csv.

use serde::{Deserialize, Serialize};

use super::ReportError;
use super::summary::Setting;
use crate::recipe::{PretrainSplit, Protocol};
use crate::scores::MeanStd;

const TABLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/reference/published.csv"));

/// Splits that the paper's means and deviations run over, on CIFAR.
pub(super) const SPLITS: usize = 5;

/// How a number came into the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Confidence {
    /// Read where it was quoted.
    Primary,
    /// Derived from numbers that could be read.
    Secondary,
    /// Not confirmed against the paper's text.
    Memory,
}

impl Confidence {
    fn words(self) -> &'static str {
        match self {
            Self::Primary => "quoted",
            Self::Secondary => "derived",
            Self::Memory => "recalled, to be confirmed against the paper",
        }
    }
}

/// One number of the paper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    suite: String,
    protocol: Protocol,
    method: String,
    pretrain_split: PretrainSplit,
    metric: String,
    mean: f64,
    deviation: Option<f64>,
    source: String,
    confidence: Confidence,
}

/// What the paper says of one setting.
pub(super) struct Published {
    /// All, Many, Medium, Few, Std as they stand in a table; `–` where unknown.
    pub scores: [String; 5],
    /// `All: derived (source); Std: recalled, ...`.
    pub provenance: String,
    /// The same without the sources.
    pub confidence: String,
}

/// The paper's numbers for `setting` in `suite`; `None` where the paper has none.
pub(super) fn published(suite: &str, setting: &Setting) -> Result<Option<Published>, ReportError> {
    let rows = rows(suite, setting)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let scores = ["all", "many", "medium", "few", "std"]
        .map(|metric| rows.iter().find(|row| row.metric == metric).map(Row::score).unwrap_or_else(|| "–".to_owned()));
    let provenance = grouped(&rows, |row| format!("{} ({})", row.confidence.words(), row.source));
    let confidence = grouped(&rows, |row| row.confidence.words().to_owned());
    Ok(Some(Published { scores, provenance, confidence }))
}

/// The paper's numbers for `setting` in `suite`, one a row.
pub(super) fn rows(suite: &str, setting: &Setting) -> Result<Vec<Row>, ReportError> {
    let mut rows = ::csv::Reader::from_reader(TABLE.as_bytes()).into_deserialize().collect::<Result<Vec<Row>, _>>()?;
    rows.retain(|row| {
        row.suite == suite
            && row.protocol == setting.protocol
            && row.method == setting.encoder
            && Some(row.pretrain_split) == setting.pretrain_split
    });
    Ok(rows)
}

impl Row {
    fn score(&self) -> String {
        match self.deviation {
            Some(std) => super::table::plus_minus(&MeanStd { mean: self.mean, std, n: SPLITS }),
            None => format!("{:.2}", self.mean),
        }
    }
}

/// `all, std: ORIGIN; ...`: the metrics of one origin together.
fn grouped(rows: &[Row], origin: impl Fn(&Row) -> String) -> String {
    let mut groups: Vec<(String, Vec<&str>)> = Vec::new();
    for row in rows {
        let origin = origin(row);
        match groups.iter_mut().find(|(known, _)| *known == origin) {
            Some((_, metrics)) => metrics.push(&row.metric),
            None => groups.push((origin, vec![&row.metric])),
        }
    }
    let groups: Vec<String> =
        groups.iter().map(|(origin, metrics)| format!("{}: {origin}", metrics.join(", "))).collect();
    groups.join("; ")
}
