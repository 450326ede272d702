//! The difference between our mean and the published one, with the standard error that the data allow: four tiers, the first
//! that applies. Estimated is the mean over *these* published splits, over the luck of training; reference/VERDICTS.md
//! has the formulas, their error rates and their limits.

use serde::Serialize;

use super::runs::Runs;
use super::student::{Estimate, mean, of_mean, squares, welch};

/// The authors' deviation over training runs, in units of ours: allowed for, since it cannot be seen in a table.
pub const LAMBDA: f64 = 1.5;

/// What the standard error was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Tier {
    /// Differences from the authors' values, split by split.
    A,
    /// Several pre-training seeds: the deviation within splits, pooled over settings.
    B,
    /// One seed, several settings on the same splits: the residual of settings and splits.
    C,
    /// Welch's test of two tables.
    D,
}

/// What ours are compared with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Theirs {
    pub mean: f64,
    /// Population deviation over their splits.
    pub deviation: Option<f64>,
    /// Splits of their mean; where unknown, those of ours.
    pub splits: Option<usize>,
    /// Our runs and the authors' on the splits of which the authors' values are at hand.
    pub paired: Option<[Runs; 2]>,
}

/// A judged difference.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Difference {
    pub tier: Tier,
    pub ours: f64,
    pub theirs: f64,
    pub estimate: Estimate,
    /// Deviation over training runs, in points; at tier D an upper bound, since it holds the splits' deviation too.
    pub noise: f64,
    /// How many settings the noise was pooled over.
    pub settings: usize,
    /// Whether our one split stands for several of theirs with nothing known about how splits differ.
    pub one_for_many: bool,
}

/// The difference of `ours` from `theirs`; `others` are the other settings of the suite under the same probe. `None` with
/// fewer than two runs.
pub(super) fn difference(ours: &Runs, others: &[Runs], theirs: &Theirs) -> Option<Difference> {
    if ours.count() < 2 {
        return None;
    }
    let same_splits = theirs.splits.is_none_or(|n| n == ours.splits.len() + ours.merged);
    Some(match &theirs.paired {
        Some([shared, authors]) if shared.splits.len() > 1 => tier_a(shared, authors),
        _ if same_splits && ours.seeds > 1 => tier_b(ours, others, theirs),
        _ => match same_splits.then(|| tier_c(ours, others, theirs)).flatten() {
            Some(difference) => difference,
            None => tier_d(ours, theirs),
        },
    })
}

/// Paired differences over the n shared splits: `SE^2 = s_d^2 / n`, n - 1 degrees of freedom.
fn tier_a(ours: &Runs, theirs: &Runs) -> Difference {
    let [means, values] = [ours, theirs].map(Runs::means);
    let differences: Vec<f64> = means.iter().zip(&values).map(|(ours, theirs)| ours - theirs).collect();
    let estimate = of_mean(&differences);
    let deviation = estimate.error * (values.len() as f64).sqrt();
    Difference {
        tier: Tier::A,
        ours: mean(&means),
        theirs: mean(&values),
        estimate,
        noise: deviation / (1.0 + 1.0 / ours.seeds as f64).sqrt(),
        settings: 1,
        one_for_many: false,
    }
}

/// `SE^2 = s_w^2 (lambda^2 / S + 1 / (S K))` with S splits, K seeds and s_w^2 the variance within splits, pooled over the
/// settings that have several seeds.
fn tier_b(ours: &Runs, others: &[Runs], theirs: &Theirs) -> Difference {
    let (splits, seeds) = (ours.splits.len() as f64, ours.seeds as f64);
    let pooled: Vec<(f64, f64)> =
        std::iter::once(ours).chain(others.iter().filter(|other| other.seeds > 1)).map(Runs::within).collect();
    let freedom: f64 = pooled.iter().map(|(_, freedom)| freedom).sum();
    let variance = pooled.iter().map(|(squares, _)| squares).sum::<f64>() / freedom;
    let error = (variance * (LAMBDA.powi(2) + 1.0 / seeds) / splits).sqrt();
    against_mean(ours, theirs, Tier::B, (error, freedom), variance, pooled.len())
}

/// `SE^2 = s_r^2 (lambda^2 + 1) / S` with s_r^2 the residual of M settings on S splits after the settings' and the splits'
/// means, (S - 1) (M - 1) degrees of freedom. `None` where no other setting has the same splits, or there is one split.
fn tier_c(ours: &Runs, others: &[Runs], theirs: &Theirs) -> Option<Difference> {
    let splits: Vec<usize> = ours.splits.keys().copied().collect();
    let beside = others.iter().filter(|other| other.splits.keys().eq(ours.splits.keys()));
    let table: Vec<Vec<f64>> = std::iter::once(ours)
        .chain(beside)
        .map(|setting| splits.iter().map(|split| setting.splits[split][0]).collect())
        .collect();
    if table.len() < 2 || splits.len() < 2 {
        return None;
    }
    let (s, m) = (splits.len() as f64, table.len() as f64);
    let of_split: Vec<f64> =
        (0..splits.len()).map(|at| table.iter().map(|setting| setting[at]).sum::<f64>() / m).collect();
    let squares: f64 = table
        .iter()
        .map(|setting| squares(&setting.iter().zip(&of_split).map(|(value, mean)| value - mean).collect::<Vec<_>>()))
        .sum();
    let freedom = (s - 1.0) * (m - 1.0);
    let variance = squares / freedom;
    let error = (variance * (LAMBDA.powi(2) + 1.0) / s).sqrt();
    Some(against_mean(ours, theirs, Tier::C, (error, freedom), variance, table.len()))
}

/// Welch's test on the split means and the published deviation, which is a population one: times n / (n - 1). What is not
/// published is taken from ours, times lambda^2; a single split of ours is taken to vary as theirs do.
fn tier_d(ours: &Runs, theirs: &Theirs) -> Difference {
    let means = ours.means();
    let (ours_n, theirs_n) = (means.len() as f64, theirs.splits.unwrap_or(means.len()) as f64);
    let published = theirs.deviation.filter(|_| theirs_n > 1.0).map(|d| d.powi(2) * theirs_n / (theirs_n - 1.0));
    let own = (means.len() > 1).then(|| squares(&means) / (ours_n - 1.0));
    let (within, within_freedom) = if ours.seeds > 1 { ours.within() } else { (0.0, 1.0) };
    let (ours_variance, theirs_variance) = match (own, published) {
        (Some(own), Some(published)) => ((own / ours_n, ours_n - 1.0), (published / theirs_n, theirs_n - 1.0)),
        (Some(own), None) => ((own * (1.0 / ours_n + LAMBDA.powi(2) / theirs_n), ours_n - 1.0), (0.0, 1.0)),
        (None, Some(published)) => ((published * (1.0 + 1.0 / theirs_n), theirs_n - 1.0), (0.0, 1.0)),
        (None, None) => {
            let variance = within / within_freedom;
            let factor = 1.0 / ours.seeds as f64 + LAMBDA.powi(2) / theirs_n;
            ((variance * factor, within_freedom), (0.0, 1.0))
        }
    };
    let estimate = welch(mean(&means) - theirs.mean, ours_variance, theirs_variance);
    let bound = own.or(published).unwrap_or(within / within_freedom);
    let one_for_many = own.is_none() && published.is_none() && theirs_n > 1.0;
    let difference = against_mean(ours, theirs, Tier::D, (estimate.error, estimate.freedom), bound, 1);
    Difference { one_for_many, ..difference }
}

fn against_mean(
    ours: &Runs,
    theirs: &Theirs,
    tier: Tier,
    (error, freedom): (f64, f64),
    variance: f64,
    settings: usize,
) -> Difference {
    let ours = mean(&ours.means());
    let estimate = Estimate { value: ours - theirs.mean, error, freedom };
    let noise = variance.sqrt();
    Difference { tier, ours, theirs: theirs.mean, estimate, noise, settings, one_for_many: false }
}
