//! The claims that are judged: a TOML file like `reference/claims.toml`. A *value* claim sets a score of a row against the
//! published number, with a margin; an *ordering* claim says that one row lies above or below another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Confidence, Metric, PaperError, Published, PublishedRow, Row};
use crate::recipe::{PretrainSplit, Protocol};
use crate::text::hex;

const TABLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/reference/claims.toml"));

/// A score of a row agrees with the published number within a margin.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueClaim {
    pub id: String,
    pub row: Row,
    pub metric: Metric,
    /// In points.
    pub margin: f64,
    /// Whether a score that is better by more than the margin keeps the claim.
    pub better_allowed: bool,
    pub primary: bool,
    /// Splits that the published mean runs over; `None` where the claim does not say.
    pub published_splits: Option<usize>,
    pub source: String,
    pub confidence: Confidence,
}

/// Where the left row of an ordering claim lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Above,
    Below,
}

impl Direction {
    /// 1 where a positive difference (left minus right) is in favour of the claim, -1 otherwise.
    pub fn sign(self) -> f64 {
        match self {
            Self::Above => 1.0,
            Self::Below => -1.0,
        }
    }
}

/// A gain in favour of a claim, in points, and the sample deviation over splits of the paired difference, one run a split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gain {
    pub gain: f64,
    pub deviation: f64,
}

/// The left row lies above (or below) the right row.
#[derive(Debug, Clone, PartialEq)]
pub struct OrderingClaim {
    pub id: String,
    pub left: Row,
    pub right: Row,
    pub metric: Metric,
    pub direction: Direction,
    /// Power with the published splits and one run a split; fixes the order of the tests.
    pub prior_power: f64,
    pub primary: bool,
    /// Whether to say also if the gain exceeds half of the published one.
    pub half_of_gain: bool,
    /// The gain to plan with where the published numbers have none; an assumption.
    pub expected: Option<Gain>,
    /// Splits that the published means run over; `None` where the paper has no such row.
    pub published_splits: Option<usize>,
    pub source: String,
    pub confidence: Confidence,
}

impl OrderingClaim {
    /// The published numbers of the left and the right row, where both are known.
    pub fn numbers<'a>(&self, published: &'a Published) -> Option<(&'a PublishedRow, &'a PublishedRow)> {
        Some((published.number(&self.left, self.metric)?, published.number(&self.right, self.metric)?))
    }

    /// The published gain in favour of the claim, in points.
    pub fn published_gain(&self, published: &Published) -> Option<f64> {
        self.numbers(published).map(|(left, right)| self.direction.sign() * (left.mean - right.mean))
    }

    /// The gain to plan with: as the claim says, or the published one with the two published deviations taken as
    /// unrelated (population deviations over n splits, hence n / (n - 1)).
    pub fn gain(&self, published: &Published) -> Option<Gain> {
        let of_table = || {
            let (left, right) = self.numbers(published)?;
            let n = self.published_splits.filter(|&n| n > 1)? as f64;
            let variance = (left.deviation?.powi(2) + right.deviation?.powi(2)) * n / (n - 1.0);
            Some(Gain { gain: self.published_gain(published)?, deviation: variance.sqrt() })
        };
        self.expected.or_else(of_table)
    }
}

/// Claims, none twice, and the hash of the file they stand in.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    pub values: Vec<ValueClaim>,
    pub orderings: Vec<OrderingClaim>,
    /// Of the file's bytes, in hexadecimal digits.
    pub sha256: String,
    /// Assumed deviation over runs that differ in their seed alone, in points: for planning, never for a verdict.
    pub training_noise: BTreeMap<Metric, f64>,
    published_splits: BTreeMap<String, usize>,
}

impl Claims {
    /// The paper's claims: `reference/claims.toml`.
    ///
    /// # Errors
    /// The embedded file is malformed, which a test excludes.
    pub fn embedded() -> Result<Self, PaperError> {
        Self::parse("reference/claims.toml", TABLE.as_bytes())
    }

    /// The claims of a user's file.
    ///
    /// # Errors
    /// It cannot be read, does not parse, or a claim holds a value that it must not.
    pub fn read(path: &Path) -> Result<Self, PaperError> {
        Self::parse(&path.display().to_string(), &crate::fs::read(path)?)
    }

    /// The claims in `bytes`; `file` is the name for messages.
    ///
    /// # Errors
    /// The text does not parse, or a claim holds a value that it must not.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, PaperError> {
        let reason = |reason: String| PaperError::Claims { file: file.to_owned(), reason };
        let text = std::str::from_utf8(bytes).map_err(|error| reason(error.to_string()))?;
        let parsed: File = toml::from_str(text).map_err(|error| reason(error.to_string().trim_end().to_owned()))?;
        let splits = parsed.published_splits;
        let claims = Self {
            values: parsed.value.into_iter().map(|entry| entry.claim(&splits)).collect(),
            orderings: parsed.ordering.into_iter().map(|entry| entry.claim(&splits)).collect(),
            sha256: hex(&Sha256::digest(bytes)),
            training_noise: parsed.training_noise,
            published_splits: splits,
        };
        claims.check(file)?;
        Ok(claims)
    }

    /// The claims about these suites alone, with the hash of the whole file.
    pub fn of_suites(mut self, suites: &[&str]) -> Self {
        self.values.retain(|claim| suites.contains(&claim.row.suite.as_str()));
        self.orderings.retain(|claim| suites.contains(&claim.left.suite.as_str()));
        self
    }

    /// A value claim, better allowed, with the default margin, for every published number whose row is one of `rows`.
    /// Hashed is the table of numbers, `bytes`, since no other file says what is judged. The splits that a published
    /// mean runs over are those of the same suite in `self`.
    pub fn of_numbers(&self, published: &Published, bytes: &[u8], rows: &BTreeSet<Row>) -> Self {
        let claim = |number: &PublishedRow| ValueClaim {
            id: format!("{}/{}", number.row.to_string().replace(' ', "/"), number.metric),
            row: number.row.clone(),
            metric: number.metric,
            margin: number.metric.default_margin(),
            better_allowed: true,
            primary: false,
            published_splits: self.published_splits.get(&number.row.suite).copied(),
            source: number.source.clone(),
            confidence: number.confidence,
        };
        Self {
            values: published.rows().iter().filter(|number| rows.contains(&number.row)).map(claim).collect(),
            orderings: Vec::new(),
            sha256: hex(&Sha256::digest(bytes)),
            training_noise: self.training_noise.clone(),
            published_splits: self.published_splits.clone(),
        }
    }

    /// Whether every value claim has its published number and every row is one of `rows`, the rows of the suites.
    ///
    /// # Errors
    /// The first claim for which it is not so.
    pub fn check_rows(&self, published: &Published, rows: &BTreeSet<Row>) -> Result<(), PaperError> {
        for claim in &self.values {
            if published.number(&claim.row, claim.metric).is_none() {
                let number = format!("{} {}", claim.row, claim.metric);
                return Err(PaperError::NoNumber { id: claim.id.clone(), number });
            }
        }
        let of_values = self.values.iter().map(|claim| (&claim.id, &claim.row));
        let of_orderings =
            self.orderings.iter().flat_map(|claim| [(&claim.id, &claim.left), (&claim.id, &claim.right)]);
        for (id, row) in of_values.chain(of_orderings) {
            if !rows.contains(row) {
                let same = |known: &&Row| known.suite == row.suite;
                let of_suite = rows.iter().filter(same).count() > 0;
                let known = rows.iter().filter(|known| !of_suite || same(known));
                let known: Vec<String> = known.map(Row::to_string).collect();
                return Err(PaperError::NoRow { id: id.clone(), row: row.to_string(), known: known.join(", ") });
            }
        }
        Ok(())
    }

    fn check(&self, file: &str) -> Result<(), PaperError> {
        let wrong = |id: &str, key, found: String, expected| {
            Err(PaperError::Claim { file: file.to_owned(), id: id.to_owned(), key, found, expected })
        };
        for claim in &self.values {
            if !(claim.margin.is_finite() && claim.margin > 0.0) {
                return wrong(&claim.id, "margin", claim.margin.to_string(), "a number of points above 0");
            }
        }
        for claim in &self.orderings {
            if !(0.0..=1.0).contains(&claim.prior_power) {
                return wrong(&claim.id, "prior_power", claim.prior_power.to_string(), "a number from 0 to 1");
            }
            if claim.left == claim.right {
                return wrong(&claim.id, "right", claim.right.to_string(), "another row than the left one");
            }
            if let Some(Gain { gain, deviation }) = claim.expected
                && !(gain.is_finite() && deviation.is_finite() && gain > 0.0 && deviation > 0.0)
            {
                let found = format!("gain {gain} with deviation {deviation}");
                return wrong(&claim.id, "expected", found, "two numbers of points above 0");
            }
        }
        if let Some((suite, _)) = self.published_splits.iter().find(|(_, splits)| **splits == 0) {
            return wrong(suite, "published_splits", "0".to_owned(), "at least 1");
        }
        if let Some((metric, noise)) =
            self.training_noise.iter().find(|(_, noise)| !(**noise > 0.0 && noise.is_finite()))
        {
            return wrong(&metric.to_string(), "training_noise", noise.to_string(), "a number of points above 0");
        }
        let mut ids = BTreeSet::new();
        let all = self.values.iter().map(|claim| &claim.id).chain(self.orderings.iter().map(|claim| &claim.id));
        for id in all {
            if !ids.insert(id) {
                return Err(PaperError::DoubledClaim { file: file.to_owned(), id: id.clone() });
            }
        }
        Ok(())
    }
}

/// The file as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    published_splits: BTreeMap<String, usize>,
    #[serde(default)]
    training_noise: BTreeMap<Metric, f64>,
    #[serde(default)]
    value: Vec<ValueEntry>,
    #[serde(default)]
    ordering: Vec<OrderingEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueEntry {
    id: String,
    suite: String,
    protocol: Protocol,
    method: String,
    pretrain_split: Option<PretrainSplit>,
    metric: Metric,
    margin: f64,
    better_allowed: bool,
    #[serde(default)]
    primary: bool,
    source: String,
    confidence: Confidence,
}

impl ValueEntry {
    fn claim(self, splits: &BTreeMap<String, usize>) -> ValueClaim {
        let published_splits = splits.get(&self.suite).copied();
        let Self { suite, protocol, method, pretrain_split, .. } = self;
        ValueClaim {
            id: self.id,
            row: Row { suite, protocol, method, pretrain_split },
            metric: self.metric,
            margin: self.margin,
            better_allowed: self.better_allowed,
            primary: self.primary,
            published_splits,
            source: self.source,
            confidence: self.confidence,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderingEntry {
    id: String,
    suite: String,
    protocol: Protocol,
    left: Side,
    right: Side,
    metric: Metric,
    direction: Direction,
    prior_power: f64,
    #[serde(default)]
    primary: bool,
    #[serde(default)]
    half_of_gain: bool,
    expected: Option<Gain>,
    source: String,
    confidence: Confidence,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Side {
    method: String,
    pretrain_split: Option<PretrainSplit>,
}

impl OrderingEntry {
    fn claim(self, splits: &BTreeMap<String, usize>) -> OrderingClaim {
        let row = |side: Side| Row {
            suite: self.suite.clone(),
            protocol: self.protocol,
            method: side.method,
            pretrain_split: side.pretrain_split,
        };
        OrderingClaim {
            left: row(self.left),
            right: row(self.right),
            published_splits: splits.get(&self.suite).copied(),
            id: self.id,
            metric: self.metric,
            direction: self.direction,
            prior_power: self.prior_power,
            primary: self.primary,
            half_of_gain: self.half_of_gain,
            expected: self.expected,
            source: self.source,
            confidence: self.confidence,
        }
    }
}
