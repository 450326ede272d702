//! Two sets of records against each other: is any score of a probe, loss or overlap of masks different? Two-sided, at a
//! false-alarm rate for the whole comparison, which is divided by the number of quantities compared (Bonferroni). Training noise is taken from the runs of
//! either set that have several seeds in a split, so that a new run is judged by a recorded distribution over seeds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::draws::Draws;
use super::runs::{Observed, Run, Runs, Values};
use super::student::{Estimate, mean, of_mean};
use super::{Observation, Training, VerdictError};
use crate::paper::Metric;
use crate::recipe::{PretrainSplit, Protocol, name_of};

/// What is compared of an encoder: a figure of its pre-training, or a score of a probe on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// [`Training::loss`].
    Loss,
    /// [`Training::overlap`].
    Overlap,
    Score(Protocol, Metric),
}

/// A measure of one encoder of a suite.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    pub suite: String,
    pub method: String,
    pub pretrain_split: Option<PretrainSplit>,
    pub measure: Measure,
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.suite, self.method)?;
        if let Some(list) = self.pretrain_split {
            write!(f, " {}", name_of(&list))?;
        }
        match self.measure {
            Measure::Loss => f.write_str(" loss"),
            Measure::Overlap => f.write_str(" mask overlap"),
            Measure::Score(protocol, metric) => write!(f, " {} {}", name_of(&protocol), metric.label()),
        }
    }
}

/// Every quantity of a set of records, by split and pre-training seed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample(BTreeMap<Quantity, Values>);

impl Sample {
    /// Smoke runs are left out; several classifiers of one encoder count once, with their mean.
    ///
    /// # Errors
    /// A value is not finite, or a run stands twice.
    pub fn new(observations: &[Observation], trainings: &[Training]) -> Result<Self, VerdictError> {
        let observed = Observed::new(observations)?;
        let mut sample = Self::default();
        for row in observed.rows() {
            for metric in Metric::ALL {
                let quantity = Quantity {
                    suite: row.suite.clone(),
                    method: row.method.clone(),
                    pretrain_split: row.pretrain_split,
                    measure: Measure::Score(row.protocol, metric),
                };
                sample.0.insert(quantity, observed.values(row, metric));
            }
        }
        for training in trainings.iter().filter(|training| !training.smoke) {
            sample.add(training, Measure::Loss, training.loss)?;
            if let Some(overlap) = training.overlap {
                sample.add(training, Measure::Overlap, overlap)?;
            }
        }
        Ok(sample)
    }

    fn add(&mut self, training: &Training, measure: Measure, value: f64) -> Result<(), VerdictError> {
        let Training { suite, method, pretrain_split, encoder, split, seed, .. } = training.clone();
        let quantity = Quantity { suite, method, pretrain_split, measure };
        let run = format!("{quantity}, split {split}, seed {seed}");
        if !value.is_finite() {
            return Err(VerdictError::Diverged { run, found: value });
        }
        match self.0.entry(quantity).or_default().entry(split).or_default().insert(seed, Run { encoder, value }) {
            Some(_) => Err(VerdictError::Doubled { run }),
            None => Ok(()),
        }
    }

    /// As many runs as `seeds` in every split, drawn without replacement, of every quantity the same.
    pub fn draw(&self, seeds: usize, draws: &mut Draws) -> Self {
        let mut known: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
        for (split, runs) in self.0.values().flatten() {
            known.entry(*split).or_default().extend(runs.keys());
        }
        let drawn = known.into_iter().map(|(split, known)| {
            let mut known: Vec<u64> = known.into_iter().collect();
            let chosen: BTreeSet<u64> =
                (0..seeds.min(known.len())).map(|_| known.swap_remove(draws.below(known.len()))).collect();
            (split, chosen)
        });
        let drawn: BTreeMap<usize, BTreeSet<u64>> = drawn.collect();
        let mut sample = self.clone();
        for (split, runs) in sample.0.values_mut().flatten() {
            runs.retain(|seed, _| drawn[split].contains(seed));
        }
        sample
    }

    /// Seeds of the split that has the fewest.
    fn fewest_seeds(&self) -> Option<usize> {
        self.0.values().flat_map(BTreeMap::values).map(BTreeMap::len).min()
    }

    /// What `reference` has and this lacks, or has of some splits less than of others: these runs are not compared.
    fn gaps(&self, reference: &Self) -> Vec<String> {
        let mut gaps = Vec::new();
        for (quantity, expected) in &reference.0 {
            let Some(splits) = self.0.get(quantity) else {
                gaps.push(format!("{quantity} is not compared: it was not run"));
                continue;
            };
            let missing: Vec<&usize> = expected.keys().filter(|split| !splits.contains_key(split)).collect();
            if !missing.is_empty() {
                gaps.push(format!("{quantity} is not compared on splits {missing:?}: it was not run there"));
            }
            let seeds = || splits.values().map(BTreeMap::len);
            if seeds().min() != seeds().max() {
                let fewest = seeds().min().unwrap_or(0);
                gaps.push(format!("{quantity} is compared by {fewest} of its seeds alone: a split has no more"));
            }
        }
        gaps
    }
}

/// Whether a quantity differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// No difference shows at this rate; that is no proof that there is none.
    NoDifference,
    Different,
    /// One run of each, one set without it, or runs that tie without being equal in both: there is nothing to judge by.
    NotTestable,
}

/// A quantity in both sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pub quantity: Quantity,
    /// Means over the splits that both sets have; `None` where a set lacks it.
    pub left: Option<f64>,
    pub right: Option<f64>,
    /// Runs of each that are independent: of splits that share an encoder the means count.
    pub runs: Option<[usize; 2]>,
    /// Left minus right.
    pub difference: Option<f64>,
    /// The 90 % interval of the difference alone.
    pub interval90: Option<[f64; 2]>,
    pub p_value: Option<f64>,
    pub agreement: Agreement,
    pub why: String,
}

/// Compares every quantity of the two sets. `rate` is the probability that sets which do not differ show any difference at
/// all, at most.
///
/// # Errors
/// The rate is not between 0 and 1.
pub fn compare(left: &Sample, right: &Sample, rate: f64) -> Result<Vec<Comparison>, VerdictError> {
    if !(rate > 0.0 && rate < 1.0) {
        return Err(VerdictError::Rate { found: rate });
    }
    let quantities: BTreeSet<&Quantity> = left.0.keys().chain(right.0.keys()).collect();
    let all: Vec<(Comparison, Option<Estimate>)> = quantities
        .into_iter()
        .map(|quantity| side_by_side(quantity, left.0.get(quantity), right.0.get(quantity)))
        .collect();
    let compared = all.iter().filter(|(_, estimate)| estimate.is_some()).count();
    let each = rate / compared.max(1) as f64;
    all.into_iter().map(|(comparison, estimate)| judged(comparison, estimate, each)).collect()
}

/// Both means, and the difference with its error where one can be had.
fn side_by_side(quantity: &Quantity, left: Option<&Values>, right: Option<&Values>) -> (Comparison, Option<Estimate>) {
    let whole = [left, right].map(|values| values.map(Runs::of));
    let mut comparison = Comparison {
        quantity: quantity.clone(),
        left: whole[0].as_ref().map(|runs| mean(&runs.means())),
        right: whole[1].as_ref().map(|runs| mean(&runs.means())),
        runs: None,
        difference: None,
        interval90: None,
        p_value: None,
        agreement: Agreement::NotTestable,
        why: "only one set has this row".to_owned(),
    };
    let (Some(left), Some(right), [Some(whole_left), Some(whole_right)]) = (left, right, &whole) else {
        return (comparison, None);
    };
    let [a, b] = Runs::shared([left, right]);
    if a.count() == 0 {
        comparison.why = "the two sets share no split".to_owned();
        return (comparison, None);
    }
    let (one, other) = (mean(&a.means()), mean(&b.means()));
    (comparison.left, comparison.right, comparison.difference) = (Some(one), Some(other), Some(one - other));
    comparison.runs = Some([a.count(), b.count()]);
    let estimate = if same_encoders(left, right) || a.seeds == 1 && b.seeds == 1 {
        let differences: Vec<f64> = a.values().iter().zip(b.values()).map(|(one, other)| one - other).collect();
        if differences.len() < 2 {
            comparison.why = format!("one run of each ({}): there is no deviation to judge by", a.words());
            return (comparison, None);
        }
        comparison.why = format!("paired differences over {}", a.words());
        of_mean(&differences)
    } else {
        // Noise is also taken from the splits that the other set lacks, unless means of encoders over splits count, whose
        // noise depends on the splits.
        let noise = [(&a, whole_left), (&b, whole_right)].map(|(shared, whole)| {
            let (shared, whole, merged) = (shared.within(), whole.within(), shared.merged + whole.merged);
            if merged == 0 && whole.1 > shared.1 { whole } else { shared }
        });
        let [within, beside] = noise;
        let freedom = within.1 + beside.1;
        let each = (1.0 / a.seeds as f64 + 1.0 / b.seeds as f64) / a.splits.len() as f64;
        comparison.why = format!("training noise from {freedom} degrees of freedom within splits");
        Estimate { value: one - other, error: ((within.0 + beside.0) / freedom * each).sqrt(), freedom }
    };
    (comparison, Some(estimate))
}

/// Whether both have the same encoders on every split that both have: then their differences say nothing of training.
fn same_encoders(left: &Values, right: &Values) -> bool {
    left.iter()
        .filter_map(|(split, runs)| Some((runs, right.get(split)?)))
        .all(|(one, other)| one.values().map(|run| &run.encoder).eq(other.values().map(|run| &run.encoder)))
}

fn judged(mut comparison: Comparison, estimate: Option<Estimate>, rate: f64) -> Result<Comparison, VerdictError> {
    let Some(estimate) = estimate else { return Ok(comparison) };
    // Scores are multiples of one test image, so a few differences may well tie, which says nothing of their noise.
    if estimate.without_spread() && estimate.value.abs() > 1e-9 {
        let how = comparison.why;
        comparison.why =
            format!("{how}, but these tie: there is no estimate of their noise; more seeds or splits are needed");
        return Ok(comparison);
    }
    comparison.interval90 = Some(estimate.interval(0.9)?);
    comparison.p_value = estimate.two_sided()?;
    let different = comparison.p_value.is_some_and(|p| p <= rate);
    comparison.agreement = if different { Agreement::Different } else { Agreement::NoDifference };
    Ok(comparison)
}

/// A run judged by recorded runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The run at the left, the recorded ones at the right.
    pub scores: Vec<Comparison>,
    /// Why something that was recorded is not compared, a sentence each.
    pub open: Vec<String>,
}

/// Judges `run` by the recorded runs in `reference`, at a false-alarm `rate` for the whole.
///
/// # Errors
/// As [`compare`].
pub fn judge_by(run: &Sample, reference: &Sample, rate: f64) -> Result<Judged, VerdictError> {
    let mut judged = Judged { scores: compare(run, reference, rate)?, open: run.gaps(reference) };
    let undecided = |score: &&Comparison| score.difference.is_some() && score.agreement == Agreement::NotTestable;
    let undecided = judged.scores.iter().filter(undecided);
    judged.open.extend(undecided.map(|score| format!("{} is undecided: {}", score.quantity, score.why)));
    if judged.tested() == 0 {
        judged
            .open
            .push("nothing can be compared: no row has runs that show their noise, or these are smoke runs".to_owned());
    }
    Ok(judged)
}

impl Judged {
    /// Quantities that were compared.
    pub fn tested(&self) -> usize {
        self.scores.iter().filter(|score| score.agreement != Agreement::NotTestable).count()
    }

    /// Those that differ.
    pub fn different(&self) -> usize {
        self.scores.iter().filter(|score| score.agreement == Agreement::Different).count()
    }

    /// 0: nothing differs; 3: something does; 4: something that was recorded is not compared.
    pub fn exit_code(&self) -> u8 {
        match (self.different(), self.open.is_empty()) {
            (1.., _) => 3,
            (0, false) => 4,
            (0, true) => 0,
        }
    }
}

/// How often as many runs as a comparison has, drawn from more of them, differ from a reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Alarms {
    pub draws: usize,
    /// Draws in which any quantity differs.
    pub any: usize,
    /// Draws in which each differs; those that never do are left out.
    pub of: BTreeMap<Quantity, usize>,
}

/// Draws `seeds` runs a split from `runs`, `draws` times, and compares each with `reference`. The draws are addressed: the same
/// records give the same count.
///
/// # Errors
/// As [`compare`], or a split has fewer runs than are to be drawn.
pub fn alarms(
    runs: &Sample,
    reference: &Sample,
    seeds: usize,
    draws: usize,
    rate: f64,
) -> Result<Alarms, VerdictError> {
    let mut alarms = Alarms { draws, any: 0, of: BTreeMap::new() };
    if let Some(found) = runs.fewest_seeds().filter(|found| *found < seeds) {
        return Err(VerdictError::TooFewSeeds { found, wanted: seeds });
    }
    for draw in 0..draws {
        let drawn = runs.draw(seeds, &mut Draws::at([0, 0, seeds as u64, draw as u64]));
        let found = compare(&drawn, reference, rate)?;
        let different = found.into_iter().filter(|comparison| comparison.agreement == Agreement::Different);
        let different: Vec<Quantity> = different.map(|comparison| comparison.quantity).collect();
        alarms.any += usize::from(!different.is_empty());
        different.into_iter().for_each(|quantity| *alarms.of.entry(quantity).or_default() += 1);
    }
    Ok(alarms)
}
