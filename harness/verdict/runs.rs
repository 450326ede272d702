//! Observations ordered into runs: per row and metric, the values of every split, one a pre-training seed. Splits that share an
//! encoder are no independent runs, and count as one.

use std::collections::{BTreeMap, BTreeSet};

use super::{Observation, Outcome, VerdictError};
use crate::paper::{Metric, Row};
use crate::scores::Scores;
use crate::text::counted;

/// Everything observed, smoke runs aside.
pub(super) struct Observed {
    /// By row, split and pre-training seed.
    rows: BTreeMap<Row, BTreeMap<usize, BTreeMap<u64, Probed>>>,
    /// Rows of which smoke runs are recorded.
    smoke: BTreeSet<Row>,
    /// Rows whose runs were left out, and in what their recipe differs from the one that the claims are about.
    departing: BTreeMap<Row, String>,
}

/// An encoder, and the scores of each classifier on it.
struct Probed {
    encoder: String,
    scores: Vec<Scores>,
}

impl Observed {
    /// # Errors
    /// A score is not finite, or one run stands twice.
    pub fn new(observations: &[Observation]) -> Result<Self, VerdictError> {
        let mut observed = Self { rows: BTreeMap::new(), smoke: BTreeSet::new(), departing: BTreeMap::new() };
        let mut known = BTreeSet::new();
        for observation in observations {
            let Observation { row, encoder, split, seed, probe_seed, smoke, values, .. } = observation;
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
            let run = splits.entry(*split).or_default().entry(*seed);
            run.or_insert_with(|| Probed { encoder: encoder.clone(), scores: Vec::new() }).scores.push(*values);
        }
        Ok(observed)
    }

    /// The same without the rows whose recipe is not the one that the claims are about.
    ///
    /// # Errors
    /// As [`Observed::new`].
    pub fn of_claims(observations: &[Observation]) -> Result<Self, VerdictError> {
        let mut observed = Self::new(observations)?;
        for Observation { row, departs, .. } in observations.iter().filter(|seen| !seen.smoke) {
            if let Some(key) = departs {
                observed.rows.remove(row);
                observed.departing.insert(row.clone(), key.clone());
            }
        }
        Ok(observed)
    }

    /// The rows that have runs.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.keys()
    }

    /// Why `row` has no run, in a sentence.
    pub fn absence(&self, row: &Row) -> (Outcome, String) {
        match (self.departing.get(row), self.smoke.contains(row)) {
            (Some(key), _) => (
                Outcome::NotApplicable,
                format!(
                    "The claim is about the recipe and the data of the suite {}, and the runs of {row} have others: {key}.",
                    row.suite
                ),
            ),
            (None, true) => {
                (Outcome::NotRun, format!("Only smoke runs of {row} are recorded, and a smoke run yields no verdict."))
            }
            (None, false) => (Outcome::NotRun, format!("No run of {row} is recorded.")),
        }
    }

    /// One metric of a row. Several classifiers of one encoder count once, with their mean.
    pub fn values(&self, row: &Row, metric: Metric) -> Values {
        let run = |Probed { encoder, scores }: &Probed| Run {
            encoder: encoder.clone(),
            value: super::mean(&scores.iter().map(|scores| metric.of(scores)).collect::<Vec<_>>()),
        };
        let splits = self.rows.get(row).into_iter().flatten();
        splits.map(|(split, seeds)| (*split, seeds.iter().map(|(seed, seen)| (*seed, run(seen))).collect())).collect()
    }

    /// The runs of the other trained rows of the same suite and probe.
    pub fn others(&self, row: &Row, metric: Metric) -> Vec<Runs> {
        let alike = |other: &&Row| other.suite == row.suite && other.protocol == row.protocol;
        let trained = |other: &&Row| *other != row && other.pretrain_split.is_some();
        self.rows.keys().filter(alike).filter(trained).map(|other| Runs::of(&self.values(other, metric))).collect()
    }
}

/// The value of one encoder.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    /// Equal where the weights are.
    pub encoder: String,
    pub value: f64,
}

/// One row in one metric, by split and pre-training seed.
pub(super) type Values = BTreeMap<usize, BTreeMap<u64, Run>>;

/// The first split of each split's group. Splits are of one group where they share an encoder, given as pairs of split and encoder.
pub fn groups<'a>(runs: impl Iterator<Item = (usize, &'a str)>) -> BTreeMap<usize, usize> {
    let (mut groups, mut seen) = (BTreeMap::new(), BTreeMap::new());
    for (split, encoder) in runs {
        let own = *groups.entry(split).or_insert(split);
        let other = groups[&*seen.entry(encoder).or_insert(split)];
        let joined = |group: &&mut usize| [own, other].contains(&**group);
        groups.values_mut().filter(joined).for_each(|group| *group = own.min(other));
    }
    groups
}

/// The values of one row in one metric that are independent of each other: as many seeds in every split.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Runs {
    /// Of splits that share encoders the first, with the means over them.
    pub splits: BTreeMap<usize, Vec<f64>>,
    /// Seeds a split.
    pub seeds: usize,
    /// Runs that were left out because other splits have fewer seeds.
    pub left_out: usize,
    /// Splits that count as one with another.
    pub merged: usize,
}

impl Runs {
    /// Keeps the first seeds of every split, as many as the split with the fewest has.
    pub fn balanced(mut splits: BTreeMap<usize, Vec<f64>>) -> Self {
        let seeds = splits.values().map(Vec::len).min().unwrap_or(0);
        let all: usize = splits.values().map(Vec::len).sum();
        splits.values_mut().for_each(|values| values.truncate(seeds));
        let left_out = all - seeds * splits.len();
        Self { splits, seeds, left_out, merged: 0 }
    }

    pub fn of(values: &Values) -> Self {
        let [runs] = Self::shared([values]);
        runs
    }

    /// The runs of each row on the splits that all of them have; splits that count as one in any count as one in all.
    pub fn shared<const N: usize>(rows: [&Values; N]) -> [Self; N] {
        let all = |split: &usize| rows.iter().all(|values| values.contains_key(split));
        let seen = rows.iter().flat_map(|values| values.iter().filter(|(split, _)| all(split)));
        let groups = groups(seen.flat_map(|(split, seeds)| seeds.values().map(|run| (*split, run.encoder.as_str()))));
        rows.map(|values| {
            let on = values.iter().filter(|(split, _)| all(split));
            let on = on.map(|(split, seeds)| (*split, seeds.values().map(|run| run.value).collect()));
            Self::balanced(on.collect()).merged(&groups)
        })
    }

    fn merged(self, groups: &BTreeMap<usize, usize>) -> Self {
        let mut lines: BTreeMap<usize, Vec<Vec<f64>>> = BTreeMap::new();
        for (split, values) in &self.splits {
            let lines = lines.entry(groups[split]).or_insert_with(|| vec![Vec::new(); self.seeds]);
            lines.iter_mut().zip(values).for_each(|(line, value)| line.push(*value));
        }
        let merged = self.splits.len() - lines.len();
        let mean = |lines: Vec<Vec<f64>>| lines.iter().map(|line| super::mean(line)).collect();
        Self { splits: lines.into_iter().map(|(split, lines)| (split, mean(lines))).collect(), merged, ..self }
    }

    /// How many runs are independent of each other.
    pub fn count(&self) -> usize {
        self.splits.len() * self.seeds
    }

    /// `5 splits with 2 seeds`.
    pub fn words(&self) -> String {
        let (splits, seeds) = (self.splits.len(), counted(self.seeds, "seed"));
        match self.merged {
            0 => format!("{} with {seeds}", counted(splits, "split")),
            more => format!("{} splits, counted as {splits} because they share encoders, with {seeds}", splits + more),
        }
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
