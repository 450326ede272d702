//! A value claim judged: the 90 % interval of ours minus theirs against the margin (two one-sided tests at 0.05).

use super::power::{Settles, settles_value};
use super::runs::{Observed, Run, Runs, Values};
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
    let values = observed.values(&claim.row, claim.metric);
    let runs = Runs::of(&values);
    let mut verdict = blank(claim, number);
    if runs.count() == 0 {
        (verdict.outcome, verdict.why) = observed.absence(&claim.row);
        return Ok(verdict);
    }
    verdict.ours = Some(Ours::of(runs.values()));
    let mut others = observed.others(&claim.row, claim.metric);
    // Means of encoders over splits have another noise than runs.
    others.retain(|other| (other.merged > 0) == (runs.merged > 0));
    let theirs = Theirs {
        mean: number.mean,
        deviation: number.deviation,
        splits: claim.published_splits,
        paired: Some(Runs::shared([&values, &of_authors(claim, authors)])),
    };
    let Some(found) = difference(&runs, &others, &theirs) else {
        verdict.outcome = Outcome::NotTestable;
        verdict.why = format!("One run ({}) has no interval; two or more are needed.", runs.words());
        return Ok(verdict);
    };
    let [low, high] = found.estimate.interval(1.0 - 2.0 * ALPHA)?;
    verdict.interval90 = Some([low, high]);
    verdict.interval95 = Some(found.estimate.interval(0.95)?);
    verdict.p_value = found.estimate.two_sided()?;
    verdict.difference = Some(found.estimate.value);
    verdict.tier = Some(found.tier);
    if let (Tier::A, Some([shared, authors])) = (found.tier, &theirs.paired) {
        let values = authors.means();
        let deviation = Some(crate::scores::mean_std(&values).std);
        verdict.ours = Some(Ours::of(shared.values()));
        verdict.theirs =
            Some(TheirSide { mean: found.theirs, deviation, confidence: Confidence::Primary, values: Some(values) });
        verdict.recalled = false;
    }
    (verdict.outcome, verdict.why) = outcome(claim, &runs, &found, [low, high], verdict.recalled)?;
    Ok(verdict)
}

/// The authors' values of the claim's row: each split is another encoder.
fn of_authors(claim: &ValueClaim, authors: &[AuthorsValue]) -> Values {
    let own = authors.iter().filter(|author| author.row == claim.row);
    let run = |author: &AuthorsValue| Run {
        encoder: format!("the authors', split {}", author.split),
        value: claim.metric.of(&author.values),
    };
    own.map(|author| (author.split, [(0, run(author))].into())).collect()
}

fn blank(claim: &ValueClaim, number: &PublishedRow) -> Verdict {
    let PublishedRow { mean, deviation, confidence, .. } = *number;
    Verdict {
        id: claim.id.clone(),
        kind: Kind::Value,
        row: claim.row.clone(),
        against: None,
        metric: claim.metric,
        primary: claim.primary,
        better_allowed: claim.better_allowed,
        ours: None,
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
    let Difference { noise, settings, .. } = found;
    let (runs_words, pooled) = (runs.words(), counted(*settings, "setting"));
    let how = match found.tier {
        Tier::A => format!("tier A: paired with the authors' values, {runs_words}"),
        Tier::B => format!("tier B: {runs_words}, training noise {noise:.2} from {pooled}"),
        Tier::C => format!("tier C: {runs_words}, residual {noise:.2} of {pooled}"),
        Tier::D => format!("tier D: Welch on two tables, {runs_words}"),
    };
    match runs.left_out {
        0 => how,
        n => format!("{how}, {} beyond the seeds of every split left out", counted(n, "run")),
    }
}

/// What would settle an inconclusive claim.
fn settle(claim: &ValueClaim, runs: &Runs, found: &Difference) -> Result<String, VerdictError> {
    let (splits, all) = match claim.published_splits {
        Some(splits) if splits != runs.splits.len() + runs.merged => {
            (splits, format!(" on all {splits} published splits"))
        }
        _ => (runs.splits.len(), String::new()),
    };
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
