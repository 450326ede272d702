//! Outcomes of claims: what each needs, what bad input gives, the JSON and the exit code.

use std::collections::BTreeSet;

use sdclr::paper::{Claims, HEADER, Metric, Published, Row};
use sdclr::recipe::{PretrainSplit, Protocol};
use sdclr::record::UNOFFICIAL_STAMP;
use sdclr::report::{verdicts_markdown, verdicts_table};
use sdclr::scores::Scores;
use sdclr::verdict::{
    Agreement, AuthorsValue, Observation, Outcome, Sample, Tier, Training, Verdict, VerdictError, Verdicts, compare,
    judge, judge_by, smallest_p,
};

fn row(method: &str) -> Row {
    Row {
        suite: "cifar10-lt".to_owned(),
        protocol: Protocol::Full,
        method: method.to_owned(),
        pretrain_split: Some(PretrainSplit::D_i),
    }
}

/// Every score is `value`.
fn scores(value: f64) -> Scores {
    Scores { all: value, many: value, medium: value, few: value, std: value, class_std: 0.0 }
}

fn run(method: &str, split: usize, seed: u64, value: f64) -> Observation {
    Observation {
        row: row(method),
        encoder: format!("{method} {split} {seed}"),
        split,
        seed,
        probe_seed: 1,
        smoke: false,
        unofficial: false,
        departs: None,
        values: scores(value),
    }
}

/// One seed a split.
fn runs(method: &str, values: &[f64]) -> Vec<Observation> {
    values.iter().enumerate().map(|(at, value)| run(method, at + 1, 1, *value)).collect()
}

/// Several seeds a split.
fn seeds(method: &str, splits: &[&[f64]]) -> Vec<Observation> {
    let of_split = |(at, values): (usize, &&[f64])| {
        values.iter().enumerate().map(|(seed, value)| run(method, at + 1, seed as u64, *value)).collect::<Vec<_>>()
    };
    splits.iter().enumerate().flat_map(of_split).collect()
}

/// The same, each seed one encoder on every split.
fn one_encoder_a_seed(method: &str, splits: &[&[f64]]) -> Vec<Observation> {
    let shared = |run: Observation| Observation { encoder: format!("{method}, seed {}", run.seed), ..run };
    seeds(method, splits).into_iter().map(shared).collect()
}

fn table(metric: &str, mean: f64, deviation: &str, confidence: &str) -> Published {
    let line =
        |method: &str, mean: f64| format!("cifar10-lt,full,{method},D_i,{metric},{mean},{deviation},here,{confidence}");
    let text = format!("{HEADER}\n{}\n{}\n", line("simclr", mean), line("sdclr", mean + 5.0));
    Published::parse("table.csv", text.as_bytes()).unwrap()
}

/// A value claim about SimCLR, better forbidden.
fn value_claim(metric: &str, margin: f64) -> Claims {
    let text = format!(
        "[published_splits]\ncifar10-lt = 5\n[[value]]\nid = 'v'\nsuite = 'cifar10-lt'\nprotocol = 'full'\nmethod = 'simclr'\n\
         pretrain_split = 'D_i'\nmetric = '{metric}'\nmargin = {margin:?}\nbetter_allowed = false\nsource = 's'\n\
         confidence = 'primary'\n"
    );
    Claims::parse("claims.toml", text.as_bytes()).unwrap()
}

fn one(verdicts: Result<Verdicts, VerdictError>) -> Verdict {
    verdicts.unwrap().claims.remove(0)
}

/// The verdict on ours against a quoted mean of 70 ± 1, margin 1.5.
fn judged(observations: &[Observation]) -> Verdict {
    one(judge(&value_claim("all", 1.5), &table("all", 70.0, "1", "primary"), observations, &[]))
}

const CLOSE: [&[f64]; 5] = [&[70.1, 69.9], &[70.2, 70.3], &[69.7, 69.9], &[70.4, 70.2], &[69.8, 69.9]];

fn shifted(by: f64) -> Vec<Observation> {
    let mut observations = seeds("simclr", &CLOSE);
    for run in &mut observations {
        run.values = scores(run.values.all + by);
        run.encoder += ", shifted";
    }
    observations
}

#[test]
fn the_interval_against_the_margin_decides() {
    for (by, outcome) in [
        (0.0, Outcome::Reproduced),
        (4.0, Outcome::Better),
        (-4.0, Outcome::Worse),
        (1.5, Outcome::Inconclusive),
        (-1.5, Outcome::Inconclusive),
    ] {
        let found = judged(&shifted(by));
        assert_eq!((found.outcome, found.tier), (outcome, Some(Tier::B)), "{by}: {}", found.why);
        let [low, high] = found.interval90.unwrap();
        assert!(low < found.difference.unwrap() && found.difference.unwrap() < high);
        assert!(found.interval95.unwrap()[0] < low && high < found.interval95.unwrap()[1]);
        assert_eq!(found.why.matches(". ").count(), 0, "one sentence: {}", found.why);
    }
}

#[test]
fn a_lower_std_is_better() {
    let judged = |by: f64| {
        let published = table("std", 70.0, "1", "primary");
        one(judge(&value_claim("std", 1.5), &published, &shifted(by), &[])).outcome
    };
    assert_eq!((judged(-4.0), judged(4.0), judged(0.0)), (Outcome::Better, Outcome::Worse, Outcome::Reproduced));
}

#[test]
fn a_recalled_number_marks_the_outcome_and_is_never_beaten() {
    let judged = |by: f64| {
        let found = one(judge(&value_claim("all", 1.5), &table("all", 70.0, "1", "memory"), &shifted(by), &[]));
        (found.outcome_words(), found.why)
    };
    assert_eq!(judged(0.0).0, "reproduced (recalled number)");
    assert_eq!(judged(-4.0).0, "worse (recalled number)");
    let (outcome, why) = judged(4.0);
    assert_eq!(outcome, "inconclusive (recalled number)");
    assert!(why.contains("confirm it against the paper"), "{why}");
}

#[test]
fn the_best_tier_that_the_data_allow_is_taken() {
    let (claims, published) = (value_claim("all", 1.5), table("all", 70.0, "1", "memory"));
    let authors: Vec<AuthorsValue> = [70.3, 70.1, 69.6, 70.5, 69.5]
        .iter()
        .enumerate()
        .map(|(at, value)| AuthorsValue { row: row("simclr"), split: at + 1, values: scores(*value) })
        .collect();
    let tier =
        |observations: &[Observation], authors: &[AuthorsValue]| one(judge(&claims, &published, observations, authors));
    let with_authors = tier(&seeds("simclr", &CLOSE), &authors);
    // The authors' own values are no recalled number.
    assert_eq!((with_authors.tier, with_authors.outcome_words().as_str()), (Some(Tier::A), "reproduced"));
    assert_eq!(with_authors.theirs.unwrap().values.unwrap(), [70.3, 70.1, 69.6, 70.5, 69.5]);
    assert_eq!(tier(&seeds("simclr", &CLOSE), &[]).tier, Some(Tier::B));
    let one_seed = runs("simclr", &[70.1, 70.2, 69.7, 70.4, 69.8]);
    let two_settings = [one_seed.clone(), runs("sdclr", &[75.1, 75.3, 74.6, 75.4, 74.9])].concat();
    assert_eq!(tier(&two_settings, &[]).tier, Some(Tier::C));
    assert_eq!(tier(&one_seed, &[]).tier, Some(Tier::D));
    // Three of the five published splits: the mean is over others.
    assert_eq!(tier(&seeds("simclr", &CLOSE[..3]), &[]).tier, Some(Tier::D));
}

#[test]
fn at_least_two_runs_always_have_an_interval() {
    let few: [(&[&[f64]], &str); 4] =
        [(&[&[70.0], &[70.4]], "1"), (&[&[70.0], &[70.4]], ""), (&[&[70.0, 70.4]], "1"), (&[&[70.0, 70.4]], "")];
    for (splits, deviation) in few {
        let published = table("all", 70.0, deviation, "primary");
        let found = one(judge(&value_claim("all", 1.5), &published, &seeds("simclr", splits), &[]));
        let [low, high] = found.interval90.unwrap();
        assert!(low.is_finite() && high.is_finite() && low < high, "{splits:?}: {low} {high}");
        assert!(!matches!(found.outcome, Outcome::NotTestable | Outcome::NotRun));
    }
    let alone = judged(&runs("simclr", &[70.0]));
    assert_eq!((alone.outcome, alone.interval90), (Outcome::NotTestable, None));
    assert_eq!(alone.ours.unwrap().n, 1);
}

#[test]
fn one_split_for_five_with_no_deviation_is_never_a_finding() {
    let published = table("all", 70.0, "", "primary");
    let found = one(judge(&value_claim("all", 1.5), &published, &seeds("simclr", &[&[70.0, 70.1]]), &[]));
    assert_eq!(found.outcome, Outcome::Inconclusive);
    assert!(found.why.contains("one split of ours stands for 5"), "{}", found.why);
}

#[test]
fn values_without_any_spread_are_inconclusive() {
    let found = judged(&seeds("simclr", &[[70.0, 70.0].as_slice(); 5]));
    assert_eq!((found.outcome, found.p_value), (Outcome::Inconclusive, None));
    assert!(found.why.contains("deviation 0"), "{}", found.why);
    assert_eq!(found.interval90, Some([0.0, 0.0]));
    let same = [runs("simclr", &[70.0; 5]), runs("sdclr", &[72.0; 5])].concat();
    let found = one(judge(&ordering_claim(""), &table("all", 70.0, "1", "primary"), &same, &[]));
    assert_eq!((found.outcome, found.p_value), (Outcome::Inconclusive, None), "{}", found.why);
}

#[test]
fn smoke_runs_yield_no_verdict() {
    let mut observations = seeds("simclr", &CLOSE);
    observations.iter_mut().for_each(|o| o.smoke = true);
    let found = judged(&observations);
    assert_eq!((found.outcome, &found.ours), (Outcome::NotRun, &None));
    assert!(found.why.contains("smoke"), "{}", found.why);
    assert!(judged(&[]).why.contains("No run of cifar10-lt full simclr D_i"));
}

#[test]
fn nan_and_doubled_runs_are_errors() {
    let nan = [runs("simclr", &[70.0, f64::NAN]), runs("sdclr", &[1.0])].concat();
    let published = table("all", 70.0, "1", "primary");
    let error = judge(&value_claim("all", 1.5), &published, &nan, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cifar10-lt full simclr D_i, split 2, seed 1, probe seed 1: all is NaN; a finite number is needed: run this probe again"
    );
    let doubled = [runs("simclr", &[70.0]), runs("simclr", &[71.0])].concat();
    let error = judge(&value_claim("all", 1.5), &published, &doubled, &[]).unwrap_err();
    assert!(matches!(error, VerdictError::Doubled { .. }), "{error}");
}

#[test]
fn classifiers_of_one_encoder_count_once() {
    let mut observations = runs("simclr", &[70.0, 70.4, 69.6, 70.2, 69.8]);
    let others = observations.clone().into_iter().map(|o| {
        let values = scores(o.values.all + 1.0);
        Observation { probe_seed: 2, values, ..o }
    });
    observations.extend(others.collect::<Vec<_>>());
    let found = judged(&observations);
    assert_eq!(found.ours.unwrap().values, [70.5, 70.9, 70.1, 70.7, 70.3]);
}

#[test]
fn an_unfinished_seed_is_left_out_and_said_so() {
    let mut observations = seeds("simclr", &CLOSE);
    observations.push(run("simclr", 1, 9, 90.0));
    let found = judged(&observations);
    assert_eq!(found.ours.unwrap().n, 10);
    assert!(found.why.contains("1 run beyond the seeds of every split left out"), "{}", found.why);
}

#[test]
fn an_inconclusive_claim_says_what_would_settle_it() {
    let noisy: [&[f64]; 5] = [&[69.0, 71.2], &[70.9, 69.1], &[68.9, 70.4], &[71.3, 69.4], &[69.2, 71.0]];
    let why = |margin: f64| {
        one(judge(&value_claim("all", margin), &table("all", 70.0, "1", "primary"), &seeds("simclr", &noisy), &[])).why
    };
    // Training noise is 1.31: the floor of 1.31 deviations is at 1.72 points, with lambda = 1.5 at 2.20.
    assert!(why(1.0).contains("no number of our runs can settle this: the margin must exceed 1.72"), "{}", why(1.0));
    assert!(why(1.0).contains("1.31 times the noise"), "{}", why(1.0));
    assert!(why(1.9).contains("the margin must exceed 2.20 points; the authors' values per split may"), "{}", why(1.9));
    let low = noisy.map(|values| values.iter().map(|v| v - 1.0).collect::<Vec<f64>>());
    let low: Vec<&[f64]> = low.iter().map(Vec::as_slice).collect();
    let found = one(judge(&value_claim("all", 2.5), &table("all", 70.0, "1", "primary"), &seeds("simclr", &low), &[]));
    assert!(found.why.contains("seeds a split would settle it in 80 % of studies if the two agree"), "{}", found.why);
}

/// SDCLR above SimCLR, and a second claim with less prior power: SDCLR above another method.
fn ordering_claim(more: &str) -> Claims {
    let claim = |id: &str, right: &str, power: f64| {
        format!(
            "[[ordering]]\nid = '{id}'\nsuite = 'cifar10-lt'\nprotocol = 'full'\n\
             left = {{ method = 'sdclr', pretrain_split = 'D_i' }}\nright = {{ method = '{right}', pretrain_split = 'D_i' }}\n\
             metric = 'all'\ndirection = 'above'\nprior_power = {power}\nsource = 's'\nconfidence = 'memory'\n"
        )
    };
    let text = format!("{}half_of_gain = true\n{more}{}", claim("first", "simclr", 0.9), claim("second", "other", 0.5));
    Claims::parse("claims.toml", format!("[published_splits]\ncifar10-lt = 5\n{text}").as_bytes()).unwrap()
}

fn orderings(sdclr: &[f64], simclr: &[f64], other: &[f64]) -> Vec<Verdict> {
    let observations = [runs("sdclr", sdclr), runs("simclr", simclr), runs("other", other)].concat();
    judge(&ordering_claim(""), &table("all", 70.0, "1", "primary"), &observations, &[]).unwrap().claims
}

const SIMCLR: [f64; 5] = [70.0, 71.0, 69.0, 70.5, 69.5];

#[test]
fn a_gain_is_found_by_the_paired_t_test_with_the_sign_flip_beside_it() {
    let found = orderings(&[75.1, 76.0, 74.2, 75.3, 74.6], &SIMCLR, &SIMCLR);
    assert_eq!(found[0].outcome, Outcome::Reproduced, "{}", found[0].why);
    assert!(found[0].p_value.unwrap() < 0.001);
    assert_eq!(found[0].sign_flip_p, Some(1.0 / 32.0));
    assert_eq!(found[0].half_of_gain, Some(true));
    assert!(found[0].why.contains("exceeds half of the published +5.00 (recalled number)"), "{}", found[0].why);
    assert_eq!(found[0].theirs.as_ref().unwrap().mean, 5.0);
    assert_eq!(found[1].outcome, Outcome::Reproduced, "{}", found[1].why);
    assert_eq!(found[1].theirs, None);
}

#[test]
fn the_sequence_stops_at_the_first_miss() {
    let found = orderings(&[70.3, 70.8, 69.2, 70.4, 69.8], &SIMCLR, &[60.0, 61.0, 59.0, 60.6, 59.5]);
    assert_eq!(found[0].outcome, Outcome::Inconclusive, "{}", found[0].why);
    assert!(found[0].why.contains("expected gain of 5.00"), "{}", found[0].why);
    assert_eq!(found[1].outcome, Outcome::Inconclusive);
    assert!(found[1].why.starts_with("Not reached: 'first'"), "{}", found[1].why);
    assert!(found[1].p_value.unwrap() < 0.001);
    // Every claim is in its place, whatever the order of the tests.
    assert_eq!((found[0].id.as_str(), found[1].id.as_str()), ("first", "second"));
}

#[test]
fn a_gain_in_the_other_direction_is_worse() {
    let found = orderings(&[65.1, 66.0, 64.2, 65.3, 64.6], &SIMCLR, &SIMCLR);
    assert_eq!(found[0].outcome, Outcome::Worse, "{}", found[0].why);
}

#[test]
fn too_few_splits_or_too_little_power_is_not_testable() {
    let found = orderings(&[75.1, 76.0, 74.2], &SIMCLR[..3], &[]);
    assert_eq!(found[0].outcome, Outcome::NotTestable);
    assert!(found[0].why.contains("smallest exact p-value is 0.125"), "{}", found[0].why);
    assert!(found[0].interval90.is_some());
    assert_eq!(found[1].outcome, Outcome::NotRun);
    assert_eq!(orderings(&[75.1], &SIMCLR[..1], &[])[0].outcome, Outcome::NotTestable);
    let small = ordering_claim("expected = { gain = 0.07, deviation = 6.0 }\n");
    let observations = [runs("sdclr", &[75.1, 76.0, 74.2, 75.3, 74.6]), runs("simclr", &SIMCLR)].concat();
    let found = one(judge(&small, &table("all", 70.0, "1", "primary"), &observations, &[]));
    assert_eq!(found.outcome, Outcome::NotTestable);
    assert!(found.why.contains("power of 0.05"), "{}", found.why);
}

#[test]
fn with_seeds_labels_are_permuted_within_splits() {
    let up = CLOSE.map(|values| values.iter().map(|v| v + 3.0).collect::<Vec<f64>>());
    let up: Vec<&[f64]> = up.iter().map(Vec::as_slice).collect();
    let observations = [seeds("simclr", &CLOSE), seeds("sdclr", &up)].concat();
    let found = one(judge(&ordering_claim(""), &table("all", 70.0, "1", "primary"), &observations, &[]));
    assert_eq!(found.outcome, Outcome::Reproduced, "{}", found.why);
    assert!((found.p_value.unwrap() - 6f64.powi(-5)).abs() < 1e-15);
    assert_eq!(found.sign_flip_p, None);
    assert!((smallest_p(3, 2, 2) - 1.0 / 216.0).abs() < 1e-15);
}

#[test]
fn json_has_every_key_and_null_for_what_is_absent() {
    let (claims, published) = (value_claim("all", 1.5), table("all", 70.0, "1", "primary"));
    let verdicts = judge(&claims, &published, &seeds("simclr", &CLOSE), &[]).unwrap();
    let json = serde_json::to_value(&verdicts).unwrap();
    assert_eq!((&json["format"], &json["claims_sha256"]), (&1.into(), &claims.sha256.clone().into()));
    assert!(json["stamp"].is_null());
    let claim = json["claims"][0].as_object().unwrap();
    let keys = [
        "id",
        "kind",
        "suite",
        "protocol",
        "method",
        "pretrain_split",
        "metric",
        "ours",
        "theirs",
        "difference",
        "interval90",
        "interval95",
        "margin",
        "tier",
        "outcome",
        "p_value",
        "why",
    ];
    assert_eq!(claim.keys().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(keys));
    assert_eq!(
        (&claim["kind"], &claim["tier"], &claim["outcome"]),
        (&"value".into(), &"B".into(), &"reproduced".into())
    );
    assert_eq!(claim["ours"]["n"], 10);
    assert_eq!(claim["theirs"]["confidence"], "primary");
    assert!(claim["theirs"]["values"].is_null());
    let mut others = seeds("simclr", &CLOSE);
    others[0].unofficial = true;
    let others = judge(&claims, &published, &others, &[]).unwrap();
    assert_eq!(serde_json::to_value(&others).unwrap()["stamp"], UNOFFICIAL_STAMP);
    for text in [verdicts_table(&others).unwrap(), verdicts_markdown(&others).unwrap()] {
        assert!(text.contains(UNOFFICIAL_STAMP), "{text}");
    }
    let empty = serde_json::to_value(judge(&claims, &published, &[], &[]).unwrap()).unwrap();
    let claim = &empty["claims"][0];
    assert!(
        ["ours", "difference", "interval90", "interval95", "tier", "p_value"].iter().all(|key| claim[key].is_null())
    );
    assert_eq!(claim["outcome"], "not run");
}

#[test]
fn the_exit_code_follows_the_worst_claim() {
    let verdict = |outcome, better_allowed| Verdict { outcome, better_allowed, ..judged(&shifted(0.0)) };
    let code = |claims: &[(Outcome, bool)]| {
        let claims = claims.iter().map(|(outcome, allowed)| verdict(*outcome, *allowed)).collect();
        Verdicts { unofficial: false, claims_sha256: String::new(), claims }.exit_code()
    };
    use Outcome::{Better, Inconclusive, NotApplicable, NotRun, NotTestable, Reproduced, Worse};
    assert_eq!(code(&[(Reproduced, false), (Better, true)]), 0);
    assert_eq!(code(&[(Reproduced, false), (Better, false)]), 3);
    assert_eq!(code(&[(Inconclusive, false), (Worse, true)]), 3);
    for outcome in [Inconclusive, NotTestable, NotApplicable, NotRun] {
        assert_eq!(code(&[(Reproduced, false), (outcome, true)]), 4);
    }
    assert_eq!(code(&[]), 4);
}

fn sample(observations: &[Observation]) -> Sample {
    Sample::new(observations, &[]).unwrap()
}

#[test]
fn two_sets_are_compared_at_a_rate_for_the_whole() {
    let left = seeds("simclr", &CLOSE);
    let same = compare(&sample(&left), &sample(&shifted(0.05)), 0.01).unwrap();
    assert_eq!(same.len(), Metric::ALL.len());
    assert!(same.iter().all(|c| c.agreement == Agreement::NoDifference), "{same:?}");
    let other = compare(&sample(&left), &sample(&shifted(2.0)), 0.01).unwrap();
    assert!(other.iter().all(|c| c.agreement == Agreement::Different));
    // A single run is judged by the other set's deviation over seeds.
    let single = |value| compare(&sample(&[run("simclr", 1, 7, value)]), &sample(&left), 0.01).unwrap()[0].agreement;
    assert_eq!((single(70.0), single(80.0)), (Agreement::NoDifference, Agreement::Different));
    let alone = compare(&sample(&[run("simclr", 1, 7, 70.0)]), &sample(&[run("simclr", 1, 8, 71.0)]), 0.01).unwrap();
    assert!(alone.iter().all(|c| c.agreement == Agreement::NotTestable));
    let missing = compare(&sample(&left), &sample(&runs("sdclr", &[70.0, 71.0])), 0.01).unwrap();
    assert!(missing.iter().all(|c| c.agreement == Agreement::NotTestable && c.why.contains("only one set")));
    let training = Training {
        suite: "cifar10-lt".to_owned(),
        method: "sdclr".to_owned(),
        pretrain_split: Some(PretrainSplit::D_i),
        encoder: "of seed 7".to_owned(),
        split: 1,
        seed: 7,
        smoke: false,
        loss: f64::NAN,
        overlap: None,
    };
    let error = Sample::new(&[], std::slice::from_ref(&training)).unwrap_err().to_string();
    assert_eq!(
        error,
        "cifar10-lt sdclr D_i loss, split 1, seed 7 is NaN; a finite number is needed: the training diverged"
    );
    let twice = vec![Training { loss: 1.0, ..training.clone() }; 2];
    assert!(matches!(Sample::new(&[], &twice).unwrap_err(), VerdictError::Doubled { .. }));
    let smoke = Sample::new(&[], &[Training { smoke: true, ..training }]).unwrap();
    assert_eq!(smoke, Sample::default());
    assert!(matches!(compare(&sample(&left), &sample(&left), 1.5).unwrap_err(), VerdictError::Rate { .. }));
}

/// Scores are multiples of one test image: differences that tie say nothing of their noise.
#[test]
fn differences_that_tie_are_undecided_unless_both_sides_are_equal() {
    let (one, tied, near) = ([70.0, 72.0], [71.0, 73.0], [71.0, 73.5]);
    let judge = |other: &[f64]| {
        let [run, reference] = [runs("simclr", &one), runs("simclr", other)].map(|runs| {
            let runs = runs.into_iter();
            sample(
                &runs
                    .map(|run| Observation { encoder: format!("{} {:?}", run.encoder, other), ..run })
                    .collect::<Vec<_>>(),
            )
        });
        judge_by(&run, &reference, 0.01).unwrap()
    };
    let found = judge(&tied);
    assert_eq!((found.different(), found.tested(), found.exit_code()), (0, 0, 4), "{found:?}");
    let score = &found.scores[0];
    assert_eq!((score.difference, score.interval90, score.p_value), (Some(-1.0), None, None));
    assert!(found.open[0].contains("All is undecided: paired differences over 2 splits"), "{:?}", found.open);
    assert!(found.open[0].ends_with("more seeds or splits are needed"), "{:?}", found.open);
    for other in [one, near] {
        let found = judge(&other);
        assert_eq!((found.different(), found.tested(), found.exit_code()), (0, Metric::ALL.len(), 0), "{found:?}");
    }
    // Also where seeds within the splits tie: the sets may differ by the seeds that were drawn.
    let twice = |value| sample(&seeds("simclr", &[[value, value].as_slice(); 2]));
    let found = compare(&twice(70.0), &twice(71.0), 0.01).unwrap();
    assert!(found.iter().all(|score| score.agreement == Agreement::NotTestable), "{found:?}");
}

/// Two encoders on five splits, the means of their scores 62.6 and 66.4: they differ by much more than their splits tell.
const SHARED: [&[f64]; 5] = [&[60.0, 64.0], &[63.0, 66.0], &[62.0, 67.0], &[64.0, 69.0], &[64.0, 66.0]];

fn t_interval(difference: f64, half: f64, found: &sdclr::verdict::Comparison) {
    let [low, high] = found.interval90.unwrap();
    assert!((low - (difference - half)).abs() < 1e-8 && (high - (difference + half)).abs() < 1e-8, "{found:?}");
}

#[test]
fn an_encoder_that_stands_on_several_splits_is_one_run() {
    let single = SHARED.map(|values| &values[..1]);
    let other = SHARED.map(|values| values[1..].to_vec());
    let other: Vec<&[f64]> = other.iter().map(Vec::as_slice).collect();
    // One encoder a side: the same score on every split shows no spread, and proves nothing.
    let [low, high]: [[&[f64]; 5]; 2] = [[&[62.0]; 5], [&[66.0]; 5]];
    for (one, two) in [(single.as_slice(), other.as_slice()), (&low, &high)] {
        let [one, two] = [("a", one), ("b", two)].map(|(encoder, splits)| {
            let runs = one_encoder_a_seed("simclr", splits).into_iter();
            runs.map(|run| Observation { encoder: encoder.to_owned(), ..run }).collect::<Vec<_>>()
        });
        let found = compare(&sample(&one), &sample(&two), 0.01).unwrap();
        assert!(found.iter().all(|c| (c.agreement, c.runs) == (Agreement::NotTestable, Some([1, 1]))), "{found:?}");
        assert!(found[0].why.contains("5 splits, counted as 1 because they share encoders"), "{}", found[0].why);
    }
    // Two a side: Student's t of two means of two encoders each, 2 degrees of freedom.
    let left = one_encoder_a_seed("simclr", &SHARED);
    let right: Vec<Observation> = left
        .iter()
        .map(|run| Observation {
            encoder: format!("another {}", run.encoder),
            values: scores(run.values.all + if run.seed == 0 { 1.0 } else { 4.0 }),
            ..run.clone()
        })
        .collect();
    let found = &compare(&sample(&left), &sample(&right), 0.01).unwrap()[0];
    assert_eq!((found.runs, found.difference.map(|d| (d * 1e9).round() / 1e9)), (Some([2, 2]), Some(-2.5)));
    let of_two = |apart: f64| apart * apart / 2.0;
    let error = ((of_two(66.4 - 62.6) + of_two(70.4 - 63.6)) / 2.0 * (0.5 + 0.5)).sqrt();
    t_interval(-2.5, 2.919_985_580 * error, found);
    // The same encoders in both sets, by another probe: paired over the two encoders, 1 degree of freedom.
    let probed: Vec<Observation> = left
        .iter()
        .map(|run| Observation {
            values: scores(run.values.all + if run.seed == 0 { 1.0 } else { 2.0 }),
            ..run.clone()
        })
        .collect();
    let found = &compare(&sample(&left), &sample(&probed), 0.01).unwrap()[0];
    t_interval(-1.5, 6.313_751_515 * 0.5, found);
    // A third split that shares one with the first two makes one group of them.
    let groups = sdclr::verdict::groups([(1, "a"), (2, "b"), (3, "a"), (3, "b"), (4, "c")].into_iter());
    assert_eq!(groups, [(1, 1), (2, 1), (3, 1), (4, 4)].into());
}

#[test]
fn claims_about_an_encoder_that_stands_on_several_splits_count_it_once() {
    let found = judged(&one_encoder_a_seed("simclr", &SHARED.map(|values| &values[..1])));
    assert_eq!((found.outcome, found.ours.unwrap().n), (Outcome::NotTestable, 1), "{}", found.why);
    let found = judged(&one_encoder_a_seed("simclr", &SHARED));
    assert_eq!((found.tier, found.ours.unwrap().n), (Some(Tier::B), 2), "{}", found.why);
    assert!(found.why.contains("5 splits, counted as 1 because they share encoders, with 2 seeds"), "{}", found.why);
    // The authors' values are averaged over the same splits.
    let authors = |split| AuthorsValue { row: row("simclr"), split, values: scores(70.0) };
    let authors: Vec<AuthorsValue> = (1..=5).map(authors).collect();
    let published = table("all", 70.0, "1", "primary");
    let found = one(judge(&value_claim("all", 1.5), &published, &one_encoder_a_seed("simclr", &SHARED), &authors));
    assert_eq!(found.tier, Some(Tier::B), "{}", found.why);

    // Two rows, one with an encoder a seed: per seed one difference, whatever the splits.
    let up = CLOSE.map(|values| values.iter().map(|v| v + 8.0).collect::<Vec<f64>>());
    let up: Vec<&[f64]> = up.iter().map(Vec::as_slice).collect();
    let ordering = |take: usize| {
        let observations = [seeds("sdclr", &up), one_encoder_a_seed("simclr", &SHARED)].concat();
        let kept = observations.into_iter().filter(|run| run.seed < take as u64).collect::<Vec<_>>();
        one(judge(&ordering_claim(""), &published, &kept, &[]))
    };
    let (single, two) = (ordering(1), ordering(2));
    assert_eq!((single.outcome, single.ours.unwrap().n), (Outcome::NotTestable, 1), "{}", single.why);
    assert_eq!(two.outcome, Outcome::NotTestable, "{}", two.why);
    assert!(two.why.contains("with 2 seeds the smallest exact p-value is 0.167"), "{}", two.why);
}

#[test]
fn training_noise_is_pooled_over_trained_encoders_that_stand_on_one_split_each() {
    let settings = |more: Vec<Observation>| judged(&[seeds("simclr", &CLOSE), more].concat()).why;
    let untrained = one_encoder_a_seed("random", &SHARED).into_iter();
    let untrained = untrained.map(|run| Observation { row: Row { pretrain_split: None, ..run.row.clone() }, ..run });
    assert!(settings(Vec::new()).contains("from 1 setting"));
    assert!(settings(seeds("sdclr", &SHARED)).contains("from 2 settings"));
    assert!(settings(one_encoder_a_seed("sdclr", &SHARED)).contains("from 1 setting)"));
    assert!(settings(untrained.collect()).contains("from 1 setting)"));
}
