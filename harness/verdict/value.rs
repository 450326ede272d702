//! A value claim judged: the 90 % interval of ours minus theirs against the margin (two one-sided tests at 0.05).

use super::power::{Settles, settles_value};
use super::runs::{Observed, Runs};
use super::tiers::{Difference, Theirs, Tier, difference};
use super::{ALPHA, AuthorsValue, Kind, Ours, Outcome, TheirSide, Verdict, VerdictError};
use crate::paper::{Confidence, PaperError, Published, PublishedRow, ValueClaim};
use crate::text::counted;

/// Judges one claim.
pub(super) fn judge(
    claim: &ValueClaim,
    published: &Published,
    observed: &Observed,
    authors: &[AuthorsValue],
) -> Result<Verdict, VerdictError> {
    let number = published.number(&claim.row, claim.metric).ok_or_else(|| PaperError::NoNumber {
        id: claim.id.clone(),
        number: format!("{} {}", claim.row, claim.metric),
    })?;
    let theirs = Theirs {
        mean: number.mean,
        deviation: number.deviation,
        splits: claim.published_splits,
        values: authors.iter().filter(|a| a.row == claim.row).map(|a| (a.split, claim.metric.of(&a.values))).collect(),
    };
    let runs = observed.runs(&claim.row, claim.metric);
    let mut verdict = blank(claim, number, runs.as_ref());
    let Some(runs) = runs else {
        verdict.why = not_run(observed, &claim.row);
        return Ok(verdict);
    };
    let Some(found) = difference(&runs, &observed.others(&claim.row, claim.metric), &theirs) else {
        verdict.outcome = Outcome::NotTestable;
        verdict.why = "One run has no interval; two or more are needed.".to_owned();
        return Ok(verdict);
    };
    let [low, high] = found.estimate.interval(1.0 - 2.0 * ALPHA)?;
    verdict.interval90 = Some([low, high]);
    verdict.interval95 = Some(found.estimate.interval(0.95)?);
    verdict.p_value = found.estimate.two_sided()?;
    verdict.difference = Some(found.estimate.value);
    verdict.tier = Some(found.tier);
    if found.tier == Tier::A {
        let shared = runs.only(|split| theirs.values.contains_key(&split));
        let values: Vec<f64> = shared.splits.keys().map(|split| theirs.values[split]).collect();
        let deviation = Some(crate::scores::mean_std(&values).std);
        verdict.ours = Some(Ours::of(shared.values()));
        verdict.theirs =
            Some(TheirSide { mean: found.theirs, deviation, confidence: Confidence::Primary, values: Some(values) });
        verdict.recalled = false;
    }
    (verdict.outcome, verdict.why) = outcome(claim, &runs, &found, [low, high], verdict.recalled)?;
    Ok(verdict)
}

fn blank(claim: &ValueClaim, number: &PublishedRow, runs: Option<&Runs>) -> Verdict {
    let PublishedRow { mean, deviation, confidence, .. } = *number;
    Verdict {
        id: claim.id.clone(),
        kind: Kind::Value,
        row: claim.row.clone(),
        against: None,
        metric: claim.metric,
        primary: claim.primary,
        better_allowed: claim.better_allowed,
        ours: runs.map(|runs| Ours::of(runs.values())),
        theirs: Some(TheirSide { mean, deviation, confidence, values: None }),
        difference: None,
        interval90: None,
        interval95: None,
        margin: Some(claim.margin),
        tier: None,
        outcome: Outcome::NotRun,
        recalled: confidence == Confidence::Memory,
        p_value: None,
        sign_flip_p: None,
        half_of_gain: None,
        why: String::new(),
    }
}

/// Why a row has no run.
pub(super) fn not_run(observed: &Observed, row: &crate::paper::Row) -> String {
    match observed.has_smoke(row) {
        true => format!("Only smoke runs of {row} are recorded, and a smoke run yields no verdict."),
        false => format!("No run of {row} is recorded."),
    }
}

/// The outcome and its reason.
fn outcome(
    claim: &ValueClaim,
    runs: &Runs,
    found: &Difference,
    [low, high]: [f64; 2],
    recalled: bool,
) -> Result<(Outcome, String), VerdictError> {
    let margin = claim.margin;
    let interval = format!("The 90 % interval of the difference, {low:+.2} to {high:+.2} points,");
    let how = basis(runs, found);
    if found.estimate.without_spread() {
        let why = "The values do not differ at all where training noise should show (deviation 0), so the interval has no \
                   width and proves nothing; check that the runs are separate runs.";
        return Ok((Outcome::Inconclusive, why.to_owned()));
    }
    if found.one_for_many {
        let splits = claim.published_splits.unwrap_or(1);
        let why = format!(
            "{interval} holds training noise alone ({how}), but one split of ours stands for {splits} published ones; run all \
             of them."
        );
        return Ok((Outcome::Inconclusive, why));
    }
    let (better, worse) = (Outcome::Better, Outcome::Worse);
    let (above, below) = if claim.metric.lower_is_better() { (worse, better) } else { (better, worse) };
    let beyond = match () {
        () if -margin <= low && high <= margin => {
            return Ok((Outcome::Reproduced, format!("{interval} lies within ±{margin} ({how}).")));
        }
        () if low > margin => Some((above, "above +")),
        () if high < -margin => Some((below, "below -")),
        () => None,
    };
    Ok(match beyond {
        Some((Outcome::Better, side)) if recalled => (
            Outcome::Inconclusive,
            format!(
                "{interval} lies {side}{margin} and is the better side ({how}), but the published number is recalled; confirm \
                 it against the paper."
            ),
        ),
        Some((outcome, side)) => (outcome, format!("{interval} lies wholly {side}{margin} ({how}).")),
        None => {
            let settled = settle(claim, runs, found)?;
            (Outcome::Inconclusive, format!("{interval} reaches across the margin of ±{margin} ({how}); {settled}."))
        }
    })
}

/// The tier and the runs behind it.
fn basis(runs: &Runs, found: &Difference) -> String {
    let (splits, seeds) = (counted(runs.splits.len(), "split"), counted(runs.seeds, "seed"));
    let Difference { noise, settings, .. } = found;
    let pooled = counted(*settings, "setting");
    let how = match found.tier {
        Tier::A => format!("tier A: paired with the authors' values, {splits} with {seeds}"),
        Tier::B => format!("tier B: {splits} with {seeds}, training noise {noise:.2} from {pooled}"),
        Tier::C => format!("tier C: {splits} with {seeds}, residual {noise:.2} of {pooled}"),
        Tier::D => format!("tier D: Welch on two tables, {splits} with {seeds}"),
    };
    match runs.left_out {
        0 => how,
        n => format!("{how}, {} beyond the seeds of every split left out", counted(n, "run")),
    }
}

/// What would settle an inconclusive claim.
fn settle(claim: &ValueClaim, runs: &Runs, found: &Difference) -> Result<String, VerdictError> {
    let splits = claim.published_splits.unwrap_or(runs.splits.len());
    let all = if splits == runs.splits.len() { String::new() } else { format!(" on all {splits} published splits") };
    let noise = found.noise;
    Ok(match settles_value(found.tier, claim.margin, noise, splits, found.settings)? {
        Settles::Seeds(seeds) if seeds <= runs.seeds && all.is_empty() => {
            "these seeds would show an exact copy in 80 % of studies, so the true difference may lie near the margin, and only \
             more seeds narrow the interval"
                .to_owned()
        }
        Settles::Seeds(seeds) => format!("{seeds} seeds a split{all} would settle it in 80 % of studies if the two agree"),
        Settles::Nothing { floor } => format!(
            "no number of our runs can settle this: the margin must exceed {floor:.2} points, {:.2} times the noise of \
             {noise:.2}",
            floor / noise
        ),
        Settles::AuthorsValues { floor } => format!(
            "no number of our runs settles it beside a published table, for which the margin must exceed {floor:.2} points; \
             the authors' values per split may"
        ),
        Settles::NotSeeds => "64 seeds a split would not settle it in 80 % of studies; a wider margin would".to_owned(),
    })
}
