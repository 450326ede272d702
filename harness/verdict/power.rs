//! Power before a run, by simulation: how often a claim that is true would be found so. Runs are normal around the mean of
//! their split; draws are addressed, so that the same question always gets the same answer.

use statrs::function::erf::erfc;

use super::draws::Draws;
use super::permutation::{label_permutation, smallest_p};
use super::runs::Runs;
use super::student::quantile;
use super::tiers::{LAMBDA, Theirs, Tier, difference};
use super::{ALPHA, VerdictError};
use crate::paper::{Claims, Gain, Published, Row, ValueClaim};

/// Studies a figure: its standard error is at most 0.8 points of per cent.
const STUDIES: usize = 4000;
/// Studies for each number of seeds that is tried in search of one that is enough.
const SEARCHED: usize = 250;
/// The power that is called enough.
pub const ENOUGH: f64 = 0.8;
/// An ordering claim with less power than this is not testable.
pub const TOO_LITTLE: f64 = 0.2;
/// The most seeds a split that are proposed.
const MOST_PROPOSED: usize = 64;
/// The upper 5 % and 10 % points of the normal distribution.
const NORMAL: [f64; 2] = [1.644_853_626_951_472_6, 1.281_551_565_544_600_4];

/// What is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Design {
    pub splits: usize,
    /// Pre-training seeds a split.
    pub seeds: usize,
    /// Settings (method and list) under one probe, over which training noise is pooled.
    pub settings: usize,
    /// Whether the authors' values per split are at hand.
    pub authors: bool,
}

impl Design {
    /// An encoder that is not trained is the same on every split: all splits count as one, without noise of other settings.
    fn of_rows<const N: usize>(self, rows: [&Row; N]) -> Self {
        match rows.iter().any(|row| row.pretrain_split.is_none()) {
            true => Self { splits: self.splits.min(1), settings: 1, ..self },
            false => self,
        }
    }
}

/// The power of one claim, and what it rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimPower {
    pub id: String,
    /// `None` where nothing is known to plan with.
    pub power: Option<f64>,
    pub assumes: String,
}

/// The power of every claim under `design`.
///
/// # Errors
/// A permutation test of this size cannot be counted.
pub fn powers(claims: &Claims, published: &Published, design: Design) -> Result<Vec<ClaimPower>, VerdictError> {
    let mut all = Vec::new();
    for claim in &claims.values {
        let noise = claims.training_noise.get(&claim.metric).copied();
        let power = noise.map(|noise| value_power(claim, published, noise, design)).transpose()?;
        let assumes = match noise {
            Some(noise) => format!("our mean equals theirs, training noise {noise:.2}"),
            None => "no training noise is assumed for this metric".to_owned(),
        };
        all.push(ClaimPower { id: claim.id.clone(), power, assumes });
    }
    for claim in &claims.orderings {
        let gain = claim.gain(published);
        let design = design.of_rows([&claim.left, &claim.right]);
        let power = gain.map(|gain| ordering_power(gain, design)).transpose()?;
        let assumes = match gain {
            Some(Gain { gain, deviation }) => format!("a gain of {gain:.2}, deviation over splits {deviation:.2}"),
            None => "neither the claim nor the published numbers give a gain".to_owned(),
        };
        all.push(ClaimPower { id: claim.id.clone(), power, assumes });
    }
    Ok(all)
}

/// How often a copy is found "reproduced" whose runs have the deviation `noise` over training, as the authors' have.
///
/// # Errors
/// None for a design with at least two runs.
pub fn value_power(claim: &ValueClaim, published: &Published, noise: f64, design: Design) -> Result<f64, VerdictError> {
    let published_splits = claim.published_splits.unwrap_or(design.splits);
    let same = published_splits == design.splits;
    let design = design.of_rows([&claim.row]);
    let Design { splits, seeds, settings, authors } = design;
    match () {
        () if splits * seeds < 2 => Ok(0.0),
        () if authors && splits > 1 => copy_power(Tier::A, claim.margin, noise, design, STUDIES),
        () if same && seeds > 1 => copy_power(Tier::B, claim.margin, noise, design, STUDIES),
        () if same && settings > 1 && splits > 1 => copy_power(Tier::C, claim.margin, noise, design, STUDIES),
        () => {
            let deviation = published.number(&claim.row, claim.metric).and_then(|number| number.deviation);
            table_power(claim.margin, noise, deviation, published_splits, design)
        }
    }
}

/// Tiers A to C: the difference is normal, and its estimated variance an independent chi-squared variable.
fn copy_power(tier: Tier, margin: f64, noise: f64, design: Design, studies: usize) -> Result<f64, VerdictError> {
    let [s, k, m] = [design.splits, design.seeds, design.settings].map(|number| number as f64);
    let variance = noise.powi(2) * (1.0 + 1.0 / k) / s;
    let allowed = noise.powi(2) * (LAMBDA.powi(2) + 1.0 / k) / s;
    let (estimated, freedom) = match tier {
        Tier::A => (variance, s - 1.0),
        Tier::B => (allowed, s * m * (k - 1.0)),
        Tier::C | Tier::D => (allowed, (s - 1.0) * (m - 1.0)),
    };
    let t = quantile(ALPHA, freedom)?;
    let mut draws = Draws::at([1, 0, 0, 0]);
    // The estimated error is drawn; how often the difference then lies far enough inside the margin is known.
    let inside = (0..studies).map(|_| {
        let error = (estimated * draws.chi_squared(freedom) / freedom).sqrt();
        (2.0 * normal_below((margin - t * error) / variance.sqrt()) - 1.0).max(0.0)
    });
    Ok(inside.sum::<f64>() / studies as f64)
}

/// Tier D: whole tables are drawn; the splits' deviation is what the published one leaves beside training noise, and splits
/// are the same for both, as far as both have them.
fn table_power(
    margin: f64,
    noise: f64,
    deviation: Option<f64>,
    published_splits: usize,
    design: Design,
) -> Result<f64, VerdictError> {
    let n = published_splits as f64;
    let of_splits = deviation
        .filter(|_| published_splits > 1)
        .map_or(0.0, |d| (d.powi(2) * n / (n - 1.0) - noise.powi(2)).max(0.0).sqrt());
    let mut draws = Draws::at([2, 0, 0, 0]);
    let mut inside = 0;
    for _ in 0..STUDIES {
        let effects: Vec<f64> = (0..published_splits.max(design.splits)).map(|_| of_splits * draws.normal()).collect();
        let ours = effects[..design.splits]
            .iter()
            .enumerate()
            .map(|(split, effect)| (split, (0..design.seeds).map(|_| effect + noise * draws.normal()).collect()));
        let ours = Runs::balanced(ours.collect());
        let theirs: Vec<f64> =
            effects[..published_splits].iter().map(|effect| effect + noise * draws.normal()).collect();
        let table = crate::scores::mean_std(&theirs);
        let theirs = Theirs {
            mean: table.mean,
            deviation: deviation.map(|_| table.std),
            splits: Some(published_splits),
            paired: None,
        };
        if let Some(found) = difference(&ours, &[], &theirs) {
            let [low, high] = found.estimate.interval(1.0 - 2.0 * ALPHA)?;
            inside += u64::from(!found.one_for_many && -margin <= low && high <= margin);
        }
    }
    Ok(inside as f64 / STUDIES as f64)
}

/// How often a gain is found. The deviation is taken as training noise: with K seeds it falls by the root of K. With one
/// seed this is the paired t test; with several the permutation test, or where its list would be long, the t test on the
/// pooled deviation within splits, which it approaches.
///
/// # Errors
/// None for a gain with a finite deviation.
pub fn ordering_power(expected: Gain, design: Design) -> Result<f64, VerdictError> {
    gain_power(expected, design, STUDIES)
}

fn gain_power(expected: Gain, design: Design, studies: usize) -> Result<f64, VerdictError> {
    let Design { splits, seeds, .. } = design;
    let Gain { gain, deviation } = expected;
    if smallest_p(splits, seeds, seeds) > ALPHA {
        return Ok(0.0);
    }
    let mut draws = Draws::at([3, 0, 0, 0]);
    let [s, k] = [splits, seeds].map(|number| number as f64);
    if seeds > 1 && smallest_p(splits, seeds, seeds) > 1e-5 {
        let noise = deviation / 2f64.sqrt();
        let mut found = 0;
        for _ in 0..studies {
            let mut side = |mean: f64| (0..seeds).map(|_| mean + noise * draws.normal()).collect::<Vec<f64>>();
            let study: Vec<_> = (0..splits).map(|_| (side(gain), side(0.0))).collect();
            found += u64::from(label_permutation(&study)?.p_value() <= ALPHA);
        }
        return Ok(found as f64 / studies as f64);
    }
    let variance = deviation.powi(2) / (s * k);
    let freedom = if seeds > 1 { 2.0 * s * (k - 1.0) } else { s - 1.0 };
    let t = quantile(ALPHA, freedom)?;
    let found = (0..studies).map(|_| {
        let error = (variance * draws.chi_squared(freedom) / freedom).sqrt();
        normal_below((gain - t * error) / variance.sqrt())
    });
    Ok(found.sum::<f64>() / studies as f64)
}

/// The probability that a standard normal variable lies below `value`.
fn normal_below(value: f64) -> f64 {
    0.5 * erfc(-value / 2f64.sqrt())
}

/// What would settle an inconclusive value claim, if ours and theirs agree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Settles {
    /// So many seeds a split, with a power of 0.8.
    Seeds(usize),
    /// No number of our runs: the margin would have to exceed this many points even if the authors' training noise were known
    /// to equal ours.
    Nothing { floor: f64 },
    /// No number of our runs beside a published table: the margin would have to exceed this many points. The authors' values
    /// per split may settle it.
    AuthorsValues { floor: f64 },
    /// Nor would 64 seeds beside the authors' values.
    NotSeeds,
}

/// The seeds a split that would show a copy as reproduced at tier A, or else at tier B. With infinitely many the authors'
/// training noise over their S splits is left: the margin must exceed `(1.645 lambda + 1.282) / sqrt(S)` deviations, for five
/// splits 1.31 with lambda = 1 and 1.68 with 1.5.
pub(super) fn settles_value(
    tier: Tier,
    margin: f64,
    noise: f64,
    splits: usize,
    settings: usize,
) -> Result<Settles, VerdictError> {
    let floor = |lambda: f64| (NORMAL[0] * lambda + NORMAL[1]) / (splits as f64).sqrt() * noise;
    if margin <= floor(1.0) {
        return Ok(Settles::Nothing { floor: floor(1.0) });
    }
    let (tier, otherwise) = match tier {
        Tier::A => (Tier::A, Settles::NotSeeds),
        _ => (Tier::B, Settles::AuthorsValues { floor: floor(LAMBDA) }),
    };
    let power =
        |seeds| copy_power(tier, margin, noise, Design { splits, seeds, settings, authors: tier == Tier::A }, SEARCHED);
    Ok(least_seeds(power)?.map_or(otherwise, Settles::Seeds))
}

/// The seeds a split that would show the gain of an ordering claim; `None` where 64 would not.
pub(super) fn settles_ordering(expected: Gain, splits: usize) -> Result<Option<usize>, VerdictError> {
    least_seeds(|seeds| gain_power(expected, Design { splits, seeds, settings: 1, authors: false }, SEARCHED))
}

/// The fewest seeds, from 2, with enough power; power rises with seeds, so halves are taken.
fn least_seeds(power: impl Fn(usize) -> Result<f64, VerdictError>) -> Result<Option<usize>, VerdictError> {
    let (mut low, mut high) = (2, MOST_PROPOSED);
    if power(high)? < ENOUGH {
        return Ok(None);
    }
    while low < high {
        let middle = (low + high) / 2;
        if power(middle)? < ENOUGH {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(Some(low))
}
