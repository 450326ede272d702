//! Ordering claims judged: left minus right over the splits that both rows have. One seed: the one-sided paired t test, the
//! exact sign-flip test beside it. Several: the exact permutation of labels within splits. The claims of a suite are tested at
//! 0.05 in the order of their prior power until the first miss, which keeps the chance of any false finding at 0.05.

use super::permutation::{label_permutation, smallest_p};
use super::power::{Design, TOO_LITTLE, ordering_power, settles_ordering};
use super::runs::{Observed, Runs};
use super::student::{Estimate, mean, of_mean};
use super::{ALPHA, Kind, Ours, Outcome, TheirSide, Verdict, VerdictError};
use crate::paper::{Gain, OrderingClaim, Published};

/// Judges all claims; the verdicts stand in the order of the claims.
pub(super) fn judge(
    claims: &[OrderingClaim],
    published: &Published,
    observed: &Observed,
) -> Result<Vec<Verdict>, VerdictError> {
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by(|&a, &b| claims[b].prior_power.total_cmp(&claims[a].prior_power));
    let mut verdicts: Vec<Verdict> = claims.iter().map(|claim| blank(claim, published)).collect();
    let mut missed: Vec<(&str, &str)> = Vec::new();
    for at in order {
        let claim = &claims[at];
        let verdict = &mut verdicts[at];
        let rows = [&claim.left, &claim.right];
        let values = rows.map(|row| observed.values(row, claim.metric));
        let [left, right] = Runs::shared(values.each_ref());
        if left.count() == 0 {
            let absent = rows.into_iter().zip(&values).find(|(_, values)| values.is_empty());
            (verdict.outcome, verdict.why) = match absent {
                Some((row, _)) => observed.absence(row),
                None => (Outcome::NotRun, "The two rows share no split.".to_owned()),
            };
            continue;
        }
        let pairs = Pairs { left, right };
        let suite = claim.left.suite.as_str();
        let before = missed.iter().find(|(of, _)| *of == suite).map(|(_, id)| *id);
        test(claim, published, &pairs, before, verdict)?;
        if matches!(verdict.outcome, Outcome::Inconclusive | Outcome::Worse) && before.is_none() {
            missed.push((suite, &claim.id));
        }
    }
    Ok(verdicts)
}

/// The runs of both rows on the splits that both have.
struct Pairs {
    left: Runs,
    right: Runs,
}

impl Pairs {
    fn differences(&self) -> Vec<f64> {
        self.left.means().iter().zip(self.right.means()).map(|(left, right)| left - right).collect()
    }

    fn one_seed(&self) -> bool {
        self.left.seeds == 1 && self.right.seeds == 1
    }

    /// Left minus right: paired over splits with one seed, with more from the variance within splits of both rows,
    /// `SE^2 = s_w^2 (1 / K_left + 1 / K_right) / S`. `None` for a single pair.
    fn estimate(&self) -> Option<Estimate> {
        let differences = self.differences();
        if self.one_seed() {
            return (differences.len() > 1).then(|| of_mean(&differences));
        }
        let (left, right) = (self.left.within(), self.right.within());
        let freedom = left.1 + right.1;
        let each = [&self.left, &self.right].map(|runs| 1.0 / runs.seeds as f64);
        let variance = (left.0 + right.0) / freedom * (each[0] + each[1]) / differences.len() as f64;
        Some(Estimate { value: mean(&differences), error: variance.sqrt(), freedom })
    }

    /// The pairs of values by split, negated for a claim that the left row lies below: high sums are in its favour.
    fn towards(&self, sign: f64) -> Vec<(Vec<f64>, Vec<f64>)> {
        let signed = |values: &Vec<f64>| values.iter().map(|value| sign * value).collect();
        self.left.splits.values().zip(self.right.splits.values()).map(|(l, r)| (signed(l), signed(r))).collect()
    }
}

fn blank(claim: &OrderingClaim, published: &Published) -> Verdict {
    let theirs = claim.numbers(published).map(|(left, right)| TheirSide {
        mean: left.mean - right.mean,
        deviation: None,
        confidence: left.confidence.max(right.confidence),
        values: None,
    });
    Verdict {
        id: claim.id.clone(),
        kind: Kind::Ordering,
        row: claim.left.clone(),
        against: Some(claim.right.clone()),
        metric: claim.metric,
        primary: claim.primary,
        better_allowed: false,
        ours: None,
        theirs,
        difference: None,
        interval90: None,
        interval95: None,
        margin: None,
        tier: None,
        outcome: Outcome::NotRun,
        // The outcome says on which side of 0 our difference lies; the published one is not compared with.
        recalled: false,
        p_value: None,
        sign_flip_p: None,
        half_of_gain: None,
        why: String::new(),
    }
}

/// Fills in the verdict; `missed` is the claim before this one that stopped the sequence.
fn test(
    claim: &OrderingClaim,
    published: &Published,
    pairs: &Pairs,
    missed: Option<&str>,
    verdict: &mut Verdict,
) -> Result<(), VerdictError> {
    let differences = pairs.differences();
    let (splits, seeds) = (differences.len(), pairs.left.seeds.min(pairs.right.seeds));
    let design = Design { splits, seeds, settings: 2, authors: false };
    let sign = claim.direction.sign();
    verdict.difference = Some(mean(&differences));
    verdict.ours = Some(Ours::of(differences));
    let smallest = smallest_p(splits, pairs.left.seeds, pairs.right.seeds);
    let runs = if pairs.left.seeds <= pairs.right.seeds { pairs.left.words() } else { pairs.right.words() };
    let Some(estimate) = pairs.estimate() else {
        verdict.outcome = Outcome::NotTestable;
        verdict.why = format!("One difference ({runs}) has no interval and no test; more splits or seeds are needed.");
        return Ok(());
    };
    verdict.interval90 = Some(estimate.interval(1.0 - 2.0 * ALPHA)?);
    verdict.interval95 = Some(estimate.interval(0.95)?);
    if estimate.without_spread() {
        verdict.outcome = Outcome::Inconclusive;
        verdict.why =
            "The values do not differ at all where training noise should show (deviation 0), so no test is possible; \
                       check that the runs are separate runs."
                .to_owned();
        return Ok(());
    }
    let labels = match label_permutation(&pairs.towards(sign)) {
        Ok(labellings) => labellings.p_value(),
        // One claim with too many seeds to count does not keep the others from being judged.
        Err(error @ VerdictError::TooManyLabellings { .. }) => {
            verdict.outcome = Outcome::NotTestable;
            verdict.why = format!("With {runs} {error}.");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let favour = Estimate { value: sign * estimate.value, ..estimate };
    let against = Estimate { value: -favour.value, ..estimate };
    let t = favour.one_sided()?;
    verdict.p_value = if pairs.one_seed() { t } else { Some(labels) };
    verdict.sign_flip_p = pairs.one_seed().then_some(labels);
    if smallest > ALPHA {
        verdict.outcome = Outcome::NotTestable;
        verdict.why = format!(
            "With {runs} the smallest exact p-value is {smallest:.3}, above {ALPHA}; {}.",
            more(claim, published, splits)?
        );
        return Ok(());
    }
    let expected = claim.gain(published);
    if let Some(gain) = expected {
        let power = ordering_power(gain, design)?;
        if power < TOO_LITTLE {
            verdict.outcome = Outcome::NotTestable;
            verdict.why = format!(
                "The expected gain of {:.2} against a deviation of {:.2} gives a power of {power:.2} with {runs}; {}.",
                gain.gain,
                gain.deviation,
                more(claim, published, splits)?
            );
            return Ok(());
        }
    }
    let p = verdict.p_value.unwrap_or(1.0);
    let tested = match verdict.sign_flip_p {
        Some(flip) => format!("one-sided p = {p:.4} (paired t over {runs}; exact sign-flip {flip:.4})"),
        None => format!("one-sided p = {p:.5} (exact label permutation, {runs})"),
    };
    let lower = favour.interval(1.0 - 2.0 * ALPHA)?[0];
    let gain = claim.published_gain(published).filter(|gain| claim.half_of_gain && *gain > 0.0);
    verdict.half_of_gain = gain.map(|gain| lower > gain / 2.0);
    let half = match (gain, verdict.half_of_gain) {
        (Some(gain), Some(kept)) => half_words(gain, lower, kept, claim),
        _ => String::new(),
    };
    (verdict.outcome, verdict.why) = match () {
        () if missed.is_some() => {
            let id = missed.unwrap_or_default();
            (
                Outcome::Inconclusive,
                format!("Not reached: '{id}', tested before, missed {ALPHA}; {tested}, for information."),
            )
        }
        () if p <= ALPHA => (Outcome::Reproduced, format!("The gain is {:+.2} points: {tested}{half}.", favour.value)),
        () if against.one_sided()?.is_some_and(|p| p <= ALPHA / 2.0) => (
            Outcome::Worse,
            format!("The difference points the other way: the gain is {:+.2} points, {tested}.", favour.value),
        ),
        () => {
            let settled = settle(expected, pairs, &estimate)?;
            (Outcome::Inconclusive, format!("The gain is {:+.2} points: {tested}; {settled}.", favour.value))
        }
    };
    Ok(())
}

fn half_words(gain: f64, lower: f64, kept: bool, claim: &OrderingClaim) -> String {
    let does = if kept { "exceeds" } else { "does not exceed" };
    let recalled = if claim.confidence == crate::paper::Confidence::Memory { " (recalled number)" } else { "" };
    format!("; its lower bound {lower:+.2} {does} half of the published {gain:+.2}{recalled}")
}

/// What would make the claim testable.
fn more(claim: &OrderingClaim, published: &Published, splits: usize) -> Result<String, VerdictError> {
    let seeds = claim.gain(published).map(|gain| settles_ordering(gain, splits)).transpose()?;
    Ok(match seeds {
        Some(Some(seeds)) => format!("{seeds} seeds a split would find the expected gain in 80 % of studies"),
        Some(None) => "64 seeds a split would not find the expected gain in 80 % of studies".to_owned(),
        None => "more splits or seeds are needed".to_owned(),
    })
}

/// What would settle a claim that was tested and missed: seeds for the expected gain, or else the gain that was seen, at the
/// deviation that was seen.
fn settle(expected: Option<Gain>, pairs: &Pairs, estimate: &Estimate) -> Result<String, VerdictError> {
    let splits = pairs.left.splits.len();
    let one_seed = 1.0 / (1.0 / pairs.left.seeds as f64 + 1.0 / pairs.right.seeds as f64) * 2.0;
    let deviation = estimate.error * (splits as f64 * one_seed).sqrt();
    let (gain, which) = match expected {
        Some(expected) => (expected.gain, "expected"),
        None => (estimate.value.abs(), "observed"),
    };
    Ok(match settles_ordering(Gain { gain, deviation }, splits)? {
        Some(seeds) if seeds > pairs.left.seeds.min(pairs.right.seeds) => {
            format!("{seeds} seeds a split would find the {which} gain of {gain:.2} in 80 % of studies")
        }
        Some(_) => format!(
            "these runs would find the {which} gain of {gain:.2} in 80 % of studies, so the gain may be smaller"
        ),
        None => format!("64 seeds a split would not find the {which} gain of {gain:.2} in 80 % of studies"),
    })
}
