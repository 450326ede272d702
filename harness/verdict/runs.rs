//! Observations ordered into runs: per row and metric, the values of every split, one a pre-training seed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Observation, VerdictError};
use crate::paper::{Metric, Row};
use crate::scores::Scores;

/// Everything observed, smoke runs aside.
pub(super) struct Observed {
    /// By row, split and pre-training seed: the scores of each classifier.
    rows: BTreeMap<Row, BTreeMap<usize, BTreeMap<u64, Vec<Scores>>>>,
    /// Rows of which smoke runs are recorded.
    smoke: BTreeSet<Row>,
}

impl Observed {
    /// # Errors
    /// A score is not finite, or one run stands twice.
    pub fn new(observations: &[Observation]) -> Result<Self, VerdictError> {
        let mut observed = Self { rows: BTreeMap::new(), smoke: BTreeSet::new() };
        let mut known = BTreeSet::new();
        for observation in observations {
            let Observation { row, split, seed, probe_seed, smoke, values, .. } = observation;
            let run = || format!("{row}, split {split}, seed {seed}, probe seed {probe_seed}");
            if let Some(metric) = Metric::ALL.into_iter().find(|metric| !metric.of(values).is_finite()) {
                return Err(VerdictError::NotFinite { run: run(), metric, found: metric.of(values) });
            }
            if *smoke {
                observed.smoke.insert(row.clone());
                continue;
            }
            if !known.insert((row, split, seed, probe_seed)) {
                return Err(VerdictError::Doubled { run: run() });
            }
            let splits = observed.rows.entry(row.clone()).or_default();
            splits.entry(*split).or_default().entry(*seed).or_default().push(*values);
        }
        Ok(observed)
    }

    /// The rows that have runs.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.keys()
    }

    /// Whether smoke runs of `row` were left out.
    pub fn has_smoke(&self, row: &Row) -> bool {
        self.smoke.contains(row)
    }

    /// One metric of a row, by split and seed. Several classifiers of one encoder count once, with their mean.
    pub fn values(&self, row: &Row, metric: Metric) -> BTreeMap<usize, BTreeMap<u64, f64>> {
        let value = |scores: &Vec<Scores>| super::mean(&scores.iter().map(|s| metric.of(s)).collect::<Vec<_>>());
        let of_split = |seeds: &BTreeMap<u64, Vec<Scores>>| seeds.iter().map(|(seed, s)| (*seed, value(s))).collect();
        self.rows.get(row).into_iter().flatten().map(|(split, seeds)| (*split, of_split(seeds))).collect()
    }

    /// The runs of a row in one metric; `None` where it has none.
    pub fn runs(&self, row: &Row, metric: Metric) -> Option<Runs> {
        let values = self.values(row, metric);
        let per_split = values.into_iter().map(|(split, seeds)| (split, seeds.into_values().collect()));
        self.rows.contains_key(row).then(|| Runs::balanced(per_split.collect()))
    }

    /// The runs of the other rows of the same suite and probe.
    pub fn others(&self, row: &Row, metric: Metric) -> Vec<Runs> {
        let beside = |other: &&Row| *other != row && other.suite == row.suite && other.protocol == row.protocol;
        self.rows.keys().filter(beside).filter_map(|other| self.runs(other, metric)).collect()
    }
}

/// The values of one row in one metric: as many seeds in every split.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Runs {
    pub splits: BTreeMap<usize, Vec<f64>>,
    /// Seeds a split.
    pub seeds: usize,
    /// Runs that were left out because other splits have fewer seeds.
    pub left_out: usize,
}

impl Runs {
    /// Keeps the first seeds of every split, as many as the split with the fewest has.
    pub fn balanced(mut splits: BTreeMap<usize, Vec<f64>>) -> Self {
        let seeds = splits.values().map(Vec::len).min().unwrap_or(0);
        let all: usize = splits.values().map(Vec::len).sum();
        splits.values_mut().for_each(|values| values.truncate(seeds));
        let left_out = all - seeds * splits.len();
        Self { splits, seeds, left_out }
    }

    /// The runs of the splits that `keep` accepts.
    pub fn only(&self, keep: impl Fn(usize) -> bool) -> Self {
        Self::balanced(self.splits.iter().filter(|(split, _)| keep(**split)).map(|(s, v)| (*s, v.clone())).collect())
    }

    /// All values, by split and then seed.
    pub fn values(&self) -> Vec<f64> {
        self.splits.values().flatten().copied().collect()
    }

    /// The mean over the seeds of every split.
    pub fn means(&self) -> Vec<f64> {
        self.splits.values().map(|values| super::mean(values)).collect()
    }

    /// Squared distances from the means of the splits, summed, and their degrees of freedom.
    pub fn within(&self) -> (f64, f64) {
        let squares = self.splits.values().map(|values| super::student::squares(values)).sum();
        (squares, (self.splits.len() * (self.seeds - 1)) as f64)
    }
}
