//! Simulated studies: how often a verdict is wrong, and how often it is right, against what reference/VERDICTS.md states and
//! what is printed before a run. Our runs and the authors' are normal around the means of the same five splits; training
//! noise is 1. Draws are addressed, so these rates are the same on every machine.

use sdclr::paper::{Claims, Gain, HEADER, Published, Row};
use sdclr::recipe::{PretrainSplit, Protocol};
use sdclr::scores::{Scores, mean_std};
use sdclr::verdict::draws::Draws;
use sdclr::verdict::{
    Agreement, AuthorsValue, ClaimPower, Design, Observation, Outcome, Sample, Tier, Verdict, compare, judge,
    label_permutation, ordering_power, powers, value_power,
};

const SPLITS: usize = 5;
/// Studies a case, where a case does not say otherwise.
const STUDIES: u64 = 1000;

/// Three standard errors of a simulated rate.
fn chance(rate: f64, studies: u64) -> f64 {
    3.0 * (rate * (1.0 - rate) / studies as f64).sqrt()
}

#[derive(Clone, Copy)]
struct Case {
    tier: Tier,
    seeds: usize,
    settings: usize,
    /// Deviation of the splits' means.
    of_splits: f64,
    /// Deviation of the authors' runs.
    their_noise: f64,
    margin: f64,
    /// Ours minus theirs, in truth.
    shift: f64,
}

/// The deviation of split means at which two runs on a split have this correlation.
fn of_correlation(correlation: f64) -> f64 {
    (correlation / (1.0 - correlation)).sqrt()
}

fn row(method: usize) -> Row {
    let (suite, method) = ("s".to_owned(), ["m0", "m1", "m2"][method].to_owned());
    Row { suite, protocol: Protocol::Full, method, pretrain_split: Some(PretrainSplit::D_i) }
}

fn scores(value: f64) -> Scores {
    Scores { all: value, many: value, medium: value, few: value, std: value, class_std: 0.0 }
}

fn observation(row: &Row, split: usize, seed: usize, value: f64) -> Observation {
    Observation {
        row: row.clone(),
        encoder: format!("{row} {split} {seed}"),
        split,
        seed: seed as u64,
        probe_seed: 1,
        smoke: false,
        unofficial: false,
        departs: None,
        values: scores(value),
    }
}

fn claims(margin: f64) -> Claims {
    let text = format!(
        "[published_splits]\ns = 5\n[[value]]\nid = 'v'\nsuite = 's'\nprotocol = 'full'\nmethod = 'm0'\npretrain_split = 'D_i'\n\
         metric = 'all'\nmargin = {margin:?}\nbetter_allowed = true\nsource = 's'\nconfidence = 'primary'\n"
    );
    Claims::parse("claims.toml", text.as_bytes()).unwrap()
}

fn table(mean: f64, deviation: f64) -> Published {
    let text = format!("{HEADER}\ns,full,m0,D_i,all,{mean},{deviation},here,primary\n");
    Published::parse("table.csv", text.as_bytes()).unwrap()
}

/// One study of `case`.
fn study(case: Case, claims: &Claims, draws: &mut Draws) -> Verdict {
    let splits: Vec<f64> = (0..SPLITS).map(|_| 50.0 + case.of_splits * draws.normal()).collect();
    let theirs: Vec<f64> = splits.iter().map(|mean| mean + case.their_noise * draws.normal()).collect();
    let mut observations = Vec::new();
    for method in 0..case.settings {
        let row = row(method);
        for (at, mean) in splits.iter().enumerate() {
            observations.extend(
                (0..case.seeds).map(|seed| observation(&row, at + 1, seed, mean + case.shift + draws.normal())),
            );
        }
    }
    let authors: Vec<AuthorsValue> = match case.tier {
        Tier::A => theirs.iter().enumerate().map(|(at, value)| authors_value(at, *value)).collect(),
        _ => Vec::new(),
    };
    let numbers = mean_std(&theirs);
    let verdict = judge(claims, &table(numbers.mean, numbers.std), &observations, &authors).unwrap().claims.remove(0);
    assert_eq!(verdict.tier, Some(case.tier));
    verdict
}

fn authors_value(at: usize, value: f64) -> AuthorsValue {
    AuthorsValue { row: row(0), split: at + 1, values: scores(value) }
}

/// The shares of studies that are found reproduced, and better or worse.
fn rates(case: Case, studies: u64) -> (f64, f64) {
    let claims = claims(case.margin);
    let (mut reproduced, mut different) = (0, 0);
    for at in 0..studies {
        match study(case, &claims, &mut Draws::at([11, case.tier as u64, case.seeds as u64, at])).outcome {
            Outcome::Reproduced => reproduced += 1,
            Outcome::Better | Outcome::Worse => different += 1,
            _ => {}
        }
    }
    (reproduced as f64 / studies as f64, different as f64 / studies as f64)
}

/// Every tier at three correlations of the splits.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (tier, seeds, settings, margin) in
        [(Tier::A, 1, 1, 2.3), (Tier::A, 2, 1, 2.0), (Tier::B, 2, 3, 2.0), (Tier::C, 1, 3, 2.5), (Tier::D, 1, 1, 2.2)]
    {
        for correlation in [0.0, 0.5, 0.95] {
            let of_splits = of_correlation(correlation);
            // Welch's interval holds the splits' deviation: its margin has to, too.
            let margin = if tier == Tier::D && correlation > 0.9 { 7.0 } else { margin };
            cases.push(Case { tier, seeds, settings, of_splits, their_noise: 1.0, margin, shift: 0.0 });
        }
    }
    cases
}

#[test]
fn what_lies_at_the_margin_is_rarely_reproduced() {
    for case in cases() {
        let (reproduced, _) = rates(Case { shift: case.margin, ..case }, STUDIES);
        let most = 0.05 + chance(0.05, STUDIES);
        assert!(reproduced <= most, "{:?}, splits {}: {reproduced}", case.tier, case.of_splits);
    }
}

#[test]
fn a_copy_is_as_often_reproduced_as_is_printed_and_hardly_ever_different() {
    for case in cases() {
        let (reproduced, different) = rates(case, STUDIES);
        assert!(different <= 0.005, "{:?}, splits {}: {different}", case.tier, case.of_splits);
        let authors = case.tier == Tier::A;
        let design = Design { splits: SPLITS, seeds: case.seeds, settings: case.settings, authors };
        let deviation = ((case.of_splits.powi(2) + 1.0) * 0.8).sqrt();
        let claim = &claims(case.margin).values[0];
        let printed = value_power(claim, &table(50.0, deviation), 1.0, design).unwrap();
        let apart = (reproduced - printed).abs();
        assert!(apart <= 0.03, "{:?}, splits {}: {reproduced}, printed {printed}", case.tier, case.of_splits);
        assert!(
            printed > 0.2 && printed < 0.99,
            "{:?}, splits {}: a power of {printed} shows little",
            case.tier,
            case.of_splits
        );
    }
}

/// Many-like: accuracies of a group, which splits move far more than training does.
const MANY: Case =
    Case { tier: Tier::B, seeds: 2, settings: 3, of_splits: 3.3, their_noise: 1.0, margin: 2.0, shift: 0.0 };

#[test]
fn a_copy_of_a_group_score_is_reproduced() {
    let (two, _) = rates(MANY, 4000);
    let (three, _) = rates(Case { seeds: 3, ..MANY }, 4000);
    assert!(two >= 0.75, "{two}");
    assert!(three >= 0.84, "{three}");
}

/// False "reproduced" at the margin of tier B with lambda = 1.5, for authors' noise of 1, 1.5 and 2 times ours, as
/// reference/VERDICTS.md states. At twice ours the rate is above 0.05: that is the limit of lambda = 1.5, and it stays
/// under 0.10.
#[test]
fn the_stated_error_rates_of_tier_b_hold() {
    for (seeds, settings, stated) in
        [(2, 1, [0.021, 0.049, 0.082]), (2, 3, [0.016, 0.049, 0.093]), (3, 3, [0.012, 0.050, 0.098])]
    {
        for (their_noise, stated) in [1.0, 1.5, 2.0].into_iter().zip(stated) {
            let (found, _) = rates(Case { seeds, settings, their_noise, shift: 2.0, ..MANY }, STUDIES);
            assert!(
                (found - stated).abs() <= chance(stated, STUDIES),
                "{seeds} {settings} {their_noise}: {found}, {stated}"
            );
        }
    }
}

fn orderings() -> Claims {
    let claim = |at: usize, power: f64| {
        format!(
            "[[ordering]]\nid = 'o{at}'\nsuite = 's'\nprotocol = 'full'\nleft = {{ method = 'm{at}', pretrain_split = 'D_i' }}\n\
             right = {{ method = 'm0', pretrain_split = 'D_i' }}\nmetric = 'all'\ndirection = 'above'\nprior_power = {power}\n\
             source = 's'\nconfidence = 'primary'\n"
        )
    };
    Claims::parse("claims.toml", format!("{}{}", claim(1, 0.9), claim(2, 0.8)).as_bytes()).unwrap()
}

/// One study of three methods whose means differ by `gains` from the first.
fn ordering_study(seeds: usize, gains: [f64; 3], at: u64) -> Vec<Observation> {
    let mut draws = Draws::at([12, seeds as u64, (gains[1] * 100.0) as u64, at]);
    let splits: Vec<f64> = (0..SPLITS).map(|_| 50.0 + 3.3 * draws.normal()).collect();
    let mut observations = Vec::new();
    for (method, gain) in gains.iter().enumerate() {
        let row = row(method);
        for (at, mean) in splits.iter().enumerate() {
            observations.extend((0..seeds).map(|seed| observation(&row, at + 1, seed, mean + gain + draws.normal())));
        }
    }
    observations
}

fn found(seeds: usize, gains: [f64; 3], at: u64, claims: &Claims) -> Vec<bool> {
    let verdicts = judge(claims, &table(50.0, 1.0), &ordering_study(seeds, gains, at), &[]).unwrap();
    verdicts.claims.iter().map(|verdict| verdict.outcome == Outcome::Reproduced).collect()
}

#[test]
fn claims_without_a_gain_are_found_in_at_most_one_study_of_twenty() {
    let claims = orderings();
    for seeds in [1, 2] {
        let any = (0..STUDIES).filter(|at| found(seeds, [0.0; 3], *at, &claims).contains(&true)).count();
        let rate = any as f64 / STUDIES as f64;
        assert!(rate <= 0.05 + chance(0.05, STUDIES), "{seeds} seeds: {rate}");
        // A first claim that holds does not make a second one that does not hold more likely to be found.
        let second = (0..STUDIES).filter(|at| found(seeds, [0.0, 5.0, 0.0], *at, &claims)[1]).count();
        let rate = second as f64 / STUDIES as f64;
        assert!(rate <= 0.05 + chance(0.05, STUDIES), "{seeds} seeds, the second: {rate}");
    }
}

#[test]
fn a_gain_is_as_often_found_as_is_printed() {
    let claims = orderings();
    for (seeds, gain) in [(1, 1.5), (2, 1.0), (3, 0.8)] {
        let hits = (0..STUDIES).filter(|at| found(seeds, [0.0, gain, gain], *at, &claims)[0]).count();
        let rate = hits as f64 / STUDIES as f64;
        let design = Design { splits: SPLITS, seeds, settings: 3, authors: false };
        let printed = ordering_power(Gain { gain, deviation: 2f64.sqrt() }, design).unwrap();
        assert!((rate - printed).abs() <= 0.03, "{seeds} seeds: {rate}, printed {printed}");
        assert!(printed > 0.4 && printed < 0.95, "{seeds} seeds: a power of {printed} shows little");
    }
}

/// Values of a split without any pattern: hardly any two sums of them are equal.
fn irregular(split: usize, seeds: usize, phase: f64) -> Vec<f64> {
    (0..seeds).map(|seed| 50.0 + ((split * seeds + seed) as f64 * 10.3 + phase).sin()).collect()
}

#[test]
fn five_splits_with_four_seeds_are_counted_and_five_seeds_are_not_testable() {
    let pair = |split: usize, seeds: usize| (irregular(split, seeds, 0.4), irregular(split, seeds, 0.0));
    let pairs: Vec<_> = (0..SPLITS).map(|split| pair(split, 4)).collect();
    let swapped: Vec<_> = pairs.iter().cloned().map(|(left, right)| (right, left)).collect();
    let (found, other) = (label_permutation(&pairs).unwrap(), label_permutation(&swapped).unwrap());
    assert_eq!(found.all, 70u128.pow(5));
    // Both count the observed labelling, and the few whose sums agree with it to 1e-9 point a value.
    let twice = found.at_least + other.at_least - found.all;
    assert!((1..100).contains(&twice), "{twice}");

    let mut observations = Vec::new();
    for split in 0..SPLITS {
        let (left, right) = pair(split, 5);
        for (method, values) in [(1, left), (0, right)] {
            let runs = values.iter().enumerate();
            observations.extend(runs.map(|(seed, value)| observation(&row(method), split + 1, seed, *value)));
        }
    }
    let verdicts = judge(&orderings(), &table(50.0, 1.0), &observations, &[]).unwrap();
    assert_eq!((verdicts.claims[0].outcome, verdicts.claims[0].p_value), (Outcome::NotTestable, None));
    assert!(verdicts.claims[0].why.contains("give fewer seeds a split"), "{}", verdicts.claims[0].why);
}

fn sample(observations: &[Observation]) -> Sample {
    Sample::new(observations, &[]).unwrap()
}

/// How often `compare` finds any difference between two sets, the right one higher by `gain`.
fn alarms(seeds: [usize; 2], gain: f64, rate: f64) -> f64 {
    let alarm = |at: &u64| {
        let mut draws = Draws::at([13, (seeds[0] * 10 + seeds[1]) as u64, (gain * 100.0) as u64, *at]);
        let splits: Vec<f64> = (0..SPLITS).map(|_| 50.0 + 3.3 * draws.normal()).collect();
        let mut set = |seeds: usize, gain: f64| {
            let mut runs = Vec::new();
            for (at, mean) in splits.iter().enumerate() {
                for seed in 0..seeds {
                    let mut score = || mean + gain + draws.normal();
                    let values = Scores {
                        all: score(),
                        many: score(),
                        medium: score(),
                        few: score(),
                        std: score(),
                        class_std: 0.0,
                    };
                    runs.push(Observation { values, ..observation(&row(0), at + 1, seed, 0.0) });
                }
            }
            runs
        };
        let (left, right) = (set(seeds[0], 0.0), set(seeds[1], gain));
        compare(&sample(&left), &sample(&right), rate).unwrap().iter().any(|c| c.agreement == Agreement::Different)
    };
    (0..STUDIES).filter(alarm).count() as f64 / STUDIES as f64
}

#[test]
fn two_sets_of_one_kind_raise_an_alarm_at_the_stated_rate() {
    // Five independent scores: the division of the rate among them costs next to nothing.
    for (seeds, rate) in [([1, 1], 0.05), ([2, 2], 0.05), ([1, 4], 0.05), ([1, 3], 0.01)] {
        let found = alarms(seeds, 0.0, rate);
        assert!((found - rate).abs() <= chance(rate, STUDIES), "{seeds:?} at {rate}: {found}");
        assert!(alarms(seeds, 5.0, rate) > 0.8, "{seeds:?}: a gain of 5 deviations is seen");
    }
}

/// Encoders that are drawn by their seed alone and probed on every split: they differ by a deviation of 3, their probes by 1.
#[test]
fn encoders_that_all_splits_share_raise_an_alarm_at_the_stated_rate() {
    for seeds in [2, 3] {
        let alarm = |at: &u64| {
            let mut draws = Draws::at([14, seeds, 0, *at]);
            let mut set = |name: &str| {
                let mut runs = Vec::new();
                for seed in 0..seeds as usize {
                    let encoder = 3.0 * draws.normal();
                    for split in 1..=SPLITS {
                        let run = observation(&row(0), split, seed, 50.0 + encoder + draws.normal());
                        runs.push(Observation { encoder: format!("{name} {seed}"), ..run });
                    }
                }
                sample(&runs)
            };
            let found = compare(&set("left"), &set("right"), 0.05).unwrap();
            found.iter().any(|score| score.agreement == Agreement::Different)
        };
        // All five scores are one number: each is tested at 0.01.
        let rate = (0..STUDIES).filter(alarm).count() as f64 / STUDIES as f64;
        assert!((rate - 0.01).abs() <= chance(0.01, STUDIES), "{seeds} seeds: {rate}");
    }
}

/// What is not trained is the same on every split: more splits find no more.
#[test]
fn the_power_of_a_claim_about_the_untrained_encoder_counts_its_splits_as_one() {
    let claim = |right: &str| {
        format!(
            "[[ordering]]\nid = 'o'\nsuite = 's'\nprotocol = 'full'\nleft = {{ method = 'm1', pretrain_split = 'D_i' }}\n\
             right = {{ {right} }}\nmetric = 'all'\ndirection = 'above'\nprior_power = 0.9\nsource = 's'\n\
             confidence = 'primary'\nexpected = {{ gain = 3.0, deviation = 2.0 }}\n"
        )
    };
    let power = |right: &str, splits: usize| {
        let claims = Claims::parse("claims.toml", claim(right).as_bytes()).unwrap();
        let design = Design { splits, seeds: 4, settings: 1, authors: false };
        powers(&claims, &table(50.0, 1.0), design).unwrap()[0].power.unwrap()
    };
    let (untrained, trained) = ("method = 'random'", "method = 'm0', pretrain_split = 'D_i'");
    assert_eq!(power(untrained, SPLITS), power(trained, 1));
    assert!(power(trained, SPLITS) > power(untrained, SPLITS));
}

#[test]
fn power_is_stated_for_every_claim() {
    let (claims, published) = (Claims::embedded().unwrap(), Published::embedded().unwrap());
    let claims = claims.of_suites(&["cifar10-lt"]);
    let power = |seeds| powers(&claims, &published, Design { splits: 5, seeds, settings: 3, authors: false }).unwrap();
    let (one, two) = (power(1), power(2));
    assert_eq!(one.len(), claims.values.len() + claims.orderings.len());
    assert_eq!(one, power(1), "the draws are addressed");
    let of = |powers: &[ClaimPower], id: &str| {
        powers.iter().find(|power| power.id == id).unwrap_or_else(|| panic!("{id}")).power.unwrap()
    };
    assert!((of(&one, "cifar10-lt/few/sdclr-above-simclr/all") - 0.70).abs() < 0.03);
    assert!(of(&two, "cifar10-lt/few/sdclr-above-simclr/all") > 0.85);
    for (before, after) in one.iter().zip(&two) {
        assert!(after.power.unwrap() >= before.power.unwrap() - 0.03, "{}", before.id);
    }
}

#[test]
fn the_prior_powers_of_the_committed_claims_are_those_computed() {
    let (claims, published) = (Claims::embedded().unwrap(), Published::embedded().unwrap());
    for claim in &claims.orderings {
        let splits = claim.published_splits.unwrap_or(SPLITS);
        let design = Design { splits, seeds: 1, settings: 3, authors: false };
        let power = ordering_power(claim.gain(&published).unwrap(), design).unwrap();
        assert!((power - claim.prior_power).abs() < 0.03, "{}: {power}, stated {}", claim.id, claim.prior_power);
    }
}
