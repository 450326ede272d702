//! Whether pruning changes the images of rare classes most, over runs. In: what was measured of each encoder. Out: for each encoder,
//! list and representation the rank correlation of class frequency with the change, and how much more the rarest third of the
//! classes changes than the most frequent third, with intervals over splits.

use std::collections::BTreeMap;

use super::runs::groups;
use super::{VerdictError, student};
use crate::recipe::PretrainSplit;
use crate::record::mechanism::{ClassChange, MechanismRecord, Representation};
use crate::scores::groups_by_thirds;

/// A value of each split and what they say together.
#[derive(Debug, Clone, PartialEq)]
pub struct OverSplits {
    /// Each the mean over the split's seeds, and over the splits that share encoders.
    pub values: Vec<f64>,
    pub mean: f64,
    /// 95 %, Student's t over splits; none of a single split.
    pub interval: Option<[f64; 2]>,
}

impl OverSplits {
    fn of(by_split: &BTreeMap<usize, Vec<f64>>) -> Result<Option<Self>, VerdictError> {
        let values: Vec<f64> = by_split.values().map(|seeds| student::mean(seeds)).collect();
        let mean = student::mean(&values);
        let interval = match values.len() {
            0 => return Ok(None),
            1 => None,
            _ => Some(student::of_mean(&values).interval(0.95)?),
        };
        Ok(Some(Self { values, mean, interval }))
    }
}

/// What all runs of one encoder on one list say.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub encoder: String,
    pub label: String,
    pub list: Option<PretrainSplit>,
    pub representation: Representation,
    pub prune_ratio: f64,
    pub trained_pruned: bool,
    pub runs: usize,
    /// Spearman's, of a class's images in the long-tailed list with its mean change: below 0 rare classes change more. Its interval is
    /// cut to -1..1.
    pub correlation: Option<OverSplits>,
    /// Mean change of the rarest third of the classes over that of the most frequent third, less 1, in per cent.
    pub excess: Option<OverSplits>,
    /// Share of the rarest third's images that are among the tenth of all images that changes most, in per cent: 10 where rare
    /// classes are like the others.
    pub most_changed: Option<OverSplits>,
}

/// The rows of `records`, in the order in which their encoders come first.
///
/// # Errors
/// An interval cannot be computed.
pub fn rows(records: &[MechanismRecord]) -> Result<Vec<Row>, VerdictError> {
    let mut rows: Vec<Row> = Vec::new();
    for representation in [Representation::Backbone, Representation::Head] {
        let mut seen = Vec::new();
        for record in records {
            let of = |record: &MechanismRecord| (record.job.encoder.encoder.clone(), record.job.encoder.list);
            let key = of(record);
            if seen.contains(&key) {
                continue;
            }
            let runs: Vec<&MechanismRecord> = records.iter().filter(|other| of(other) == key).collect();
            rows.push(row(&runs, record, representation)?);
            seen.push(key);
        }
    }
    Ok(rows)
}

fn row(
    runs: &[&MechanismRecord],
    first: &MechanismRecord,
    representation: Representation,
) -> Result<Row, VerdictError> {
    let over_splits = |statistic: fn(&[ClassChange]) -> Option<f64>| {
        let mut by_split: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        let groups = groups(runs.iter().map(|run| (run.job.encoder.split, run.state_sha256.as_str())));
        for run in runs {
            let change = run.changes.iter().find(|change| change.representation == representation);
            if let Some(value) = change.and_then(|change| statistic(&change.classes)) {
                by_split.entry(groups[&run.job.encoder.split]).or_default().push(value);
            }
        }
        OverSplits::of(&by_split)
    };
    let mut correlation = over_splits(correlation)?;
    if let Some(interval) = correlation.as_mut().and_then(|correlation| correlation.interval.as_mut()) {
        *interval = interval.map(|end| end.clamp(-1.0, 1.0));
    }
    Ok(Row {
        encoder: first.job.encoder.encoder.clone(),
        label: first.label.clone(),
        list: first.job.encoder.list,
        representation,
        prune_ratio: first.prune_ratio,
        trained_pruned: first.trained_pruned,
        runs: runs.len(),
        correlation,
        excess: over_splits(excess)?,
        most_changed: over_splits(most_changed)?,
    })
}

/// Spearman's rank correlation of frequency and change.
fn correlation(classes: &[ClassChange]) -> Option<f64> {
    let counts: Vec<f64> = classes.iter().map(|class| class.count as f64).collect();
    let changes: Vec<f64> = classes.iter().map(|class| class.mean).collect();
    spearman(&counts, &changes)
}

/// Spearman's rank correlation, ties by mean ranks; `None` where one side has no spread.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let (mean_a, mean_b) = (student::mean(&a), student::mean(&b));
    let product: f64 = a.iter().zip(&b).map(|(a, b)| (a - mean_a) * (b - mean_b)).sum();
    let spread = (student::squares(&a) * student::squares(&b)).sqrt();
    (spread > 0.0).then(|| product / spread)
}

/// From 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |value: &f64| {
        let below = values.iter().filter(|other| *other < value).count() as f64;
        let equal = values.iter().filter(|other| *other == value).count() as f64;
        below + (equal + 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

/// The rarest and the most frequent third of the classes; `None` where there are fewer than three.
fn thirds(classes: &[ClassChange]) -> Option<[Vec<&ClassChange>; 2]> {
    let counts: Vec<u64> = classes.iter().map(|class| class.count).collect();
    let groups = groups_by_thirds(&counts);
    let of = |group: &[usize]| group.iter().map(|&class| &classes[class]).collect::<Vec<_>>();
    (classes.len() >= 3).then(|| [of(&groups.few), of(&groups.many)])
}

fn excess(classes: &[ClassChange]) -> Option<f64> {
    let mean = |group: Vec<&ClassChange>| student::mean(&group.iter().map(|class| class.mean).collect::<Vec<_>>());
    let [few, many] = thirds(classes)?.map(mean);
    (many > 0.0).then(|| 100.0 * (few / many - 1.0))
}

fn most_changed(classes: &[ClassChange]) -> Option<f64> {
    let [few, _] = thirds(classes)?;
    let sum = |count: fn(&ClassChange) -> u64| few.iter().map(|class| count(class)).sum::<u64>() as f64;
    Some(100.0 * sum(|class| class.most_changed) / sum(|class| class.images))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By scipy.stats.spearmanr.
    #[test]
    fn correlations_are_scipys() {
        let near = |a: Option<f64>, b: f64| assert!((a.unwrap() - b).abs() < 1e-12, "{a:?} {b}");
        near(spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]), SCIPY[0]);
        near(spearman(&[100.0, 65.0, 42.0, 28.0, 18.0, 12.0, 7.0, 4.0, 2.0, 2.0], &DIGITS), SCIPY[1]);
        assert_eq!(spearman(&[1.0, 1.0, 1.0], &[1.0, 2.0, 3.0]), None);
    }

    const DIGITS: [f64; 10] = [0.081, 0.109, 0.057, 0.065, 0.077, 0.084, 0.094, 0.077, 0.077, 0.104];
    const SCIPY: [f64; 2] = [0.8207826816681233, -0.09846573354073433];

    #[test]
    fn thirds_are_compared() {
        let class = |class, count, mean, most_changed| ClassChange { class, count, images: count, mean, most_changed };
        let classes = [class(0, 60, 0.2, 3), class(1, 30, 0.3, 3), class(2, 10, 0.3, 4)];
        assert!((excess(&classes).unwrap() - 50.0).abs() < 1e-9);
        assert_eq!(most_changed(&classes), Some(40.0));
        assert_eq!(correlation(&classes).map(|found| (found * 1e6).round()), Some(-866_025.0));
        assert_eq!((excess(&classes[..2]), most_changed(&[])), (None, None));
    }

    #[test]
    fn seeds_of_a_split_are_one_value() {
        let values = |values: &[(usize, &[f64])]| -> BTreeMap<usize, Vec<f64>> {
            values.iter().map(|(split, seeds)| (*split, seeds.to_vec())).collect()
        };
        assert_eq!(OverSplits::of(&values(&[])).unwrap(), None);
        let single = OverSplits::of(&values(&[(1, &[0.25, 0.75])])).unwrap().unwrap();
        assert_eq!(single, OverSplits { values: vec![0.5], mean: 0.5, interval: None });
        let two = OverSplits::of(&values(&[(1, &[0.25, 0.75]), (2, &[1.5])])).unwrap().unwrap();
        // t(0.975; 1) = 12.706204736174698 times a standard error of 0.5.
        let [low, high] = two.interval.unwrap();
        assert!((low - (1.0 - 6.353102368087349)).abs() < 1e-9 && (high - 7.353102368087349).abs() < 1e-9);
    }
}
