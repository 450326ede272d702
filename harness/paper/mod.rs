//! What the paper says. In: `reference/published.csv` and `reference/claims.toml`, or a user's files of the same form.
//! Out: the published numbers and the claims that are judged, typed and checked.

mod claims;
mod published;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use claims::{Claims, Direction, Gain, OrderingClaim, ValueClaim};
pub use published::{HEADER, Published, PublishedRow};

use crate::recipe::{PretrainSplit, Protocol, name_of};
use crate::scores::Scores;

/// Published numbers or claims that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PaperError {
    #[error(transparent)]
    File(#[from] crate::fs::FsError),
    #[error("{file}, line 1: the header is '{found}'; expected is '{HEADER}'")]
    Header { file: String, found: String },
    #[error("{file}, line {line}: the row has {found} fields; the header names {expected}")]
    Fields { file: String, line: u64, found: usize, expected: usize },
    #[error("{file}, line {line}: {column} is '{found}'; expected is {expected}")]
    Field { file: String, line: u64, column: &'static str, found: String, expected: String },
    #[error("{file}, line {line}: {number} stands already on line {first}; keep one of the two rows")]
    Doubled { file: String, line: u64, first: u64, number: String },
    #[error("{file}, line {line}: the text is not UTF-8; save the file as UTF-8")]
    Text { file: String, line: u64 },
    #[error("{file} has no row below its header; give at least one published number")]
    Empty { file: String },
    #[error("{file} does not parse as claims: {reason}")]
    Claims { file: String, reason: String },
    #[error("{file}: two claims have the id '{id}'; give each its own")]
    DoubledClaim { file: String, id: String },
    #[error("{file}: claim '{id}': {key} is {found}; expected is {expected}")]
    Claim { file: String, id: String, key: &'static str, found: String, expected: &'static str },
    #[error(
        "claim '{id}' is about {number}, which the published numbers do not have; correct the claim or add the number"
    )]
    NoNumber { id: String, number: String },
    #[error("claim '{id}' is about {row}, which is no row of the suite; its rows are {known}")]
    NoRow { id: String, row: String, known: String },
}

/// A row of a results table: what was pre-trained on which list, and how it was probed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Row {
    pub suite: String,
    pub protocol: Protocol,
    pub method: String,
    /// `None` for an encoder that was trained on no list.
    pub pretrain_split: Option<PretrainSplit>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.suite, name_of(&self.protocol), self.setting())
    }
}

impl Row {
    /// Method and list: `sdclr D_i`.
    pub fn setting(&self) -> String {
        match &self.pretrain_split {
            Some(list) => format!("{} {}", self.method, name_of(list)),
            None => self.method.clone(),
        }
    }
}

/// A column of a results table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    All,
    Many,
    Medium,
    Few,
    Std,
}

impl Metric {
    pub const ALL: [Self; 5] = [Self::All, Self::Many, Self::Medium, Self::Few, Self::Std];

    /// The value of this column, in per cent (Std: points).
    pub fn of(self, scores: &Scores) -> f64 {
        match self {
            Self::All => scores.all,
            Self::Many => scores.many,
            Self::Medium => scores.medium,
            Self::Few => scores.few,
            Self::Std => scores.std,
        }
    }

    /// What the paper's tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::All => "All",
            Self::Many => "Many",
            Self::Medium => "Medium",
            Self::Few => "Few",
            Self::Std => "Std",
        }
    }

    /// Whether a lower value is the better one: only for Std, the imbalance between the groups.
    pub fn lower_is_better(self) -> bool {
        self == Self::Std
    }

    /// The margin of a claim that names none, in points.
    pub fn default_margin(self) -> f64 {
        match self {
            Self::All | Self::Std => 1.5,
            Self::Many | Self::Medium | Self::Few => 3.0,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name_of(self))
    }
}

/// How a published number came into the table. Ordered from the surest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Read where it was quoted.
    Primary,
    /// Derived from numbers that could be read.
    Secondary,
    /// Recalled, not confirmed against the paper's text.
    Memory,
}

impl Confidence {
    /// For a table: `quoted`, `derived`, `recalled, to be confirmed against the paper`.
    pub fn words(self) -> &'static str {
        match self {
            Self::Primary => "quoted",
            Self::Secondary => "derived",
            Self::Memory => "recalled, to be confirmed against the paper",
        }
    }
}
