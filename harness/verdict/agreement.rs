//! Two sets of observations against each other: is any score of a row different? Two-sided, at a false-alarm rate for the
//! whole comparison, which is divided by the number of scores compared (Bonferroni). Training noise is taken from the runs of
//! either set that have several seeds in a split, so that a new run is judged by a recorded distribution over seeds.

use super::runs::{Observed, Runs};
use super::student::{Estimate, mean, of_mean};
use super::{Observation, VerdictError};
use crate::paper::{Metric, Row};

/// Whether a score differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// No difference shows at this rate; that is no proof that there is none.
    NoDifference,
    Different,
    /// One run of each, or one set without the row: there is nothing to judge by.
    NotTestable,
}

/// A score of a row in both sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pub row: Row,
    pub metric: Metric,
    /// Means over the splits that both sets have; `None` where a set lacks the row.
    pub left: Option<f64>,
    pub right: Option<f64>,
    /// Left minus right.
    pub difference: Option<f64>,
    /// What the difference must leave to count: two-sided, of the level that the rate gives to one score.
    pub interval: Option<[f64; 2]>,
    /// The 90 % interval of the difference alone.
    pub interval90: Option<[f64; 2]>,
    pub p_value: Option<f64>,
    pub agreement: Agreement,
    pub why: String,
}

/// Compares every score of every row of the two sets. `rate` is the probability that sets which do not differ show any
/// difference at all, at most.
///
/// # Errors
/// The rate is not between 0 and 1, a score is not finite, or a run stands twice in a set.
pub fn compare(left: &[Observation], right: &[Observation], rate: f64) -> Result<Vec<Comparison>, VerdictError> {
    if !(rate > 0.0 && rate < 1.0) {
        return Err(VerdictError::Rate { found: rate });
    }
    let (left, right) = (Observed::new(left)?, Observed::new(right)?);
    let rows: std::collections::BTreeSet<&Row> = left.rows().chain(right.rows()).collect();
    let mut all: Vec<(Comparison, Option<Estimate>)> = Vec::new();
    for row in rows {
        for metric in Metric::ALL {
            all.push(side_by_side(row, metric, left.runs(row, metric), right.runs(row, metric)));
        }
    }
    let compared = all.iter().filter(|(_, estimate)| estimate.is_some()).count();
    let each = rate / compared.max(1) as f64;
    all.into_iter().map(|(comparison, estimate)| judged(comparison, estimate, each)).collect()
}

/// Both means, and the difference with its error where one can be had.
fn side_by_side(row: &Row, metric: Metric, left: Option<Runs>, right: Option<Runs>) -> (Comparison, Option<Estimate>) {
    let mut comparison = Comparison {
        row: row.clone(),
        metric,
        left: left.as_ref().map(|runs| mean(&runs.means())),
        right: right.as_ref().map(|runs| mean(&runs.means())),
        difference: None,
        interval: None,
        interval90: None,
        p_value: None,
        agreement: Agreement::NotTestable,
        why: "only one set has this row".to_owned(),
    };
    let (Some(left), Some(right)) = (left, right) else { return (comparison, None) };
    let (a, b) = (left.only(|s| right.splits.contains_key(&s)), right.only(|s| left.splits.contains_key(&s)));
    if a.splits.is_empty() {
        comparison.why = "the two sets share no split".to_owned();
        return (comparison, None);
    }
    let (one, other) = (mean(&a.means()), mean(&b.means()));
    (comparison.left, comparison.right, comparison.difference) = (Some(one), Some(other), Some(one - other));
    let splits = a.splits.len() as f64;
    let differences: Vec<f64> = a.means().iter().zip(b.means()).map(|(one, other)| one - other).collect();
    let estimate = if a.seeds > 1 || b.seeds > 1 {
        // Noise is taken from every split of a set, also from those that the other lacks.
        let (within, beside) = (left.within(), right.within());
        let freedom = within.1 + beside.1;
        let each = 1.0 / a.seeds as f64 + 1.0 / b.seeds as f64;
        comparison.why = format!("training noise from {freedom} degrees of freedom within splits");
        Estimate { value: one - other, error: ((within.0 + beside.0) / freedom * each / splits).sqrt(), freedom }
    } else if differences.len() > 1 {
        comparison.why = format!("paired over {} splits", differences.len());
        of_mean(&differences)
    } else {
        comparison.why = "one run of each: there is no deviation to judge by".to_owned();
        return (comparison, None);
    };
    (comparison, Some(estimate))
}

fn judged(mut comparison: Comparison, estimate: Option<Estimate>, rate: f64) -> Result<Comparison, VerdictError> {
    let Some(estimate) = estimate else { return Ok(comparison) };
    comparison.interval = Some(estimate.interval(1.0 - rate)?);
    comparison.interval90 = Some(estimate.interval(0.9)?);
    comparison.p_value = estimate.two_sided()?;
    let different = match comparison.p_value {
        Some(p) => p <= rate,
        // Runs that repeat each other to the last digit differ wherever the sets do.
        None => estimate.value.abs() > 1e-9,
    };
    comparison.agreement = if different { Agreement::Different } else { Agreement::NoDifference };
    Ok(comparison)
}
