//! Verdicts: claims judged. In: observations (scores of runs), the paper's numbers and claims, and where they are at hand the
//! authors' own values per split. Out: per claim ours, theirs, an interval, an outcome and one sentence why.
//! reference/VERDICTS.md has the statistics.

mod agreement;
pub mod draws;
mod json;
pub mod mechanism;
mod ordering;
mod permutation;
mod power;
mod runs;
pub mod student;
mod tiers;
mod value;

use std::fmt;

use serde::Serialize;

pub use agreement::{Agreement, Alarms, Comparison, Judged, Measure, Quantity, Sample, alarms, compare, judge_by};
pub use permutation::{Labellings, label_permutation, smallest_p};
pub use power::{ClaimPower, Design, ordering_power, powers, value_power};
pub use runs::groups;
pub use tiers::{LAMBDA, Tier};

use crate::paper::{Claims, Confidence, Metric, PaperError, Published, Row};
use crate::recipe::PretrainSplit;
use crate::scores::Scores;
use student::mean;

/// The level of every one-sided test; intervals that decide a value claim have 1 - 2 ALPHA.
pub const ALPHA: f64 = 0.05;

/// Observations that cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum VerdictError {
    #[error(transparent)]
    Paper(#[from] PaperError),
    #[error("{run}: {metric} is {found}; a finite number is needed: run this probe again")]
    NotFinite { run: String, metric: Metric, found: f64 },
    #[error("{run} is {found}; a finite number is needed: the training diverged")]
    Diverged { run: String, found: f64 },
    #[error("{run} stands twice; give each run once")]
    Doubled { run: String },
    #[error("{found} degrees of freedom; a number above 0 is needed")]
    Freedom { found: f64 },
    #[error("the permutation test has more than {most} distinct sums in half of the splits; give fewer seeds a split")]
    TooManyLabellings { most: usize },
    #[error("seeds a split: {found} are there, and {wanted} are to be drawn; run more with --seeds, or draw fewer")]
    TooFewSeeds { found: usize, wanted: usize },
    #[error("a false-alarm rate of {found}; a number between 0 and 1 is needed")]
    Rate { found: f64 },
}

/// The scores of one probe of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    pub row: Row,
    /// Equal where the weights are: runs of one encoder are not independent.
    pub encoder: String,
    /// From 1.
    pub split: usize,
    /// Of pre-training.
    pub seed: u64,
    /// Of the classifier.
    pub probe_seed: u64,
    /// Of a smoke run, which never yields a verdict.
    pub smoke: bool,
    /// Of lists or images that differ from the published ones.
    pub unofficial: bool,
    /// Where the recipe differs from that of the suite that the claims are about.
    pub departs: Option<String>,
    pub values: Scores,
}

/// What the pre-training of one run shows by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    pub suite: String,
    pub method: String,
    pub pretrain_split: Option<PretrainSplit>,
    /// As of an [`Observation`].
    pub encoder: String,
    /// From 1.
    pub split: usize,
    /// Of pre-training.
    pub seed: u64,
    pub smoke: bool,
    /// Mean over the last tenth of the epochs.
    pub loss: f64,
    /// Mean over the epochs of how much of a mask the one before it kept, in per cent; `None` where nothing is pruned.
    pub overlap: Option<f64>,
}

/// The authors' scores on one split, from their logs or their models.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthorsValue {
    pub row: Row,
    pub split: usize,
    pub values: Scores,
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Reproduced,
    Better,
    Worse,
    Inconclusive,
    NotTestable,
    /// The runs are of another recipe or other data than the claim.
    NotApplicable,
    NotRun,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reproduced => "reproduced",
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Inconclusive => "inconclusive",
            Self::NotTestable => "not testable",
            Self::NotApplicable => "not applicable",
            Self::NotRun => "not run",
        })
    }
}

/// The two kinds of claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Value,
    Ordering,
}

/// Our side: for a value claim the row's runs, for an ordering claim the differences (left minus right) split by split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ours {
    pub mean: f64,
    pub n: usize,
    pub values: Vec<f64>,
}

impl Ours {
    fn of(values: Vec<f64>) -> Self {
        Self { mean: mean(&values), n: values.len(), values }
    }
}

/// The published side: the row's number, or for an ordering claim the published difference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TheirSide {
    pub mean: f64,
    pub deviation: Option<f64>,
    pub confidence: Confidence,
    /// The authors' values per split, where they were judged against.
    pub values: Option<Vec<f64>>,
}

/// A claim judged. Serialises to an object of the JSON that `sdclr verify` writes.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub id: String,
    pub kind: Kind,
    /// Of an ordering claim the left row.
    pub row: Row,
    /// Of an ordering claim the right row.
    pub against: Option<Row>,
    pub metric: Metric,
    pub primary: bool,
    pub better_allowed: bool,
    pub ours: Option<Ours>,
    pub theirs: Option<TheirSide>,
    /// Value: ours minus theirs. Ordering: left minus right.
    pub difference: Option<f64>,
    pub interval90: Option<[f64; 2]>,
    pub interval95: Option<[f64; 2]>,
    pub margin: Option<f64>,
    pub tier: Option<Tier>,
    pub outcome: Outcome,
    /// Whether ours were compared with a recalled number.
    pub recalled: bool,
    /// Value: two-sided, of a difference of 0. Ordering: one-sided, of the test that decides.
    pub p_value: Option<f64>,
    /// Ordering with one seed: the exact sign-flip test beside the t test.
    pub sign_flip_p: Option<f64>,
    /// Ordering: whether the gain exceeds half of the published one, where the claim asks.
    pub half_of_gain: Option<bool>,
    pub why: String,
}

impl Verdict {
    /// The outcome in words: `reproduced (recalled number)`.
    pub fn outcome_words(&self) -> String {
        let judged = !matches!(self.outcome, Outcome::NotTestable | Outcome::NotApplicable | Outcome::NotRun);
        let mark = if judged && self.recalled { " (recalled number)" } else { "" };
        format!("{}{mark}", self.outcome)
    }
}

/// Every claim judged, in the order of the claims.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdicts {
    /// Whether any run used lists or images that differ from the published ones.
    pub unofficial: bool,
    pub claims_sha256: String,
    pub claims: Vec<Verdict>,
}

impl Verdicts {
    /// The exit code of `sdclr verify`: 0 if every claim is reproduced, or better where it allows that; 3 if one is worse, or
    /// better where it forbids that; 4 otherwise, also without any claim.
    pub fn exit_code(&self) -> u8 {
        let refuted = |v: &Verdict| v.outcome == Outcome::Worse || v.outcome == Outcome::Better && !v.better_allowed;
        let kept = |v: &Verdict| matches!(v.outcome, Outcome::Reproduced | Outcome::Better);
        match () {
            () if self.claims.iter().any(refuted) => 3,
            () if !self.claims.is_empty() && self.claims.iter().all(kept) => 0,
            () => 4,
        }
    }
}

/// Judges `claims` by `observations` of one suite or several, which must belong together (one scale, one data hash and one
/// recipe a row): the caller sees to that. `authors` are the authors' values per split, as far as they are at hand.
///
/// # Errors
/// A score is not finite, a run stands twice, or a value claim has no published number.
pub fn judge(
    claims: &Claims,
    published: &Published,
    observations: &[Observation],
    authors: &[AuthorsValue],
) -> Result<Verdicts, VerdictError> {
    let observed = runs::Observed::of_claims(observations)?;
    let mut judged = Vec::new();
    for claim in &claims.values {
        judged.push(value::judge(claim, published, &observed, authors)?);
    }
    judged.extend(ordering::judge(&claims.orderings, published, &observed)?);
    let unofficial = observations.iter().any(|observation| observation.unofficial);
    Ok(Verdicts { unofficial, claims_sha256: claims.sha256.clone(), claims: judged })
}
