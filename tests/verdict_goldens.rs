//! Intervals and p-values agree with SciPy to 1e-10: fixtures/golden/verdict, by reference/torch/verdict_goldens.py.

mod golden;

use std::collections::BTreeMap;

use sdclr::paper::{Claims, Confidence, Metric, Published, Row};
use sdclr::recipe::{PretrainSplit, Protocol};
use sdclr::scores::Scores;
use sdclr::verdict::student::{of_mean, quantile};
use sdclr::verdict::{AuthorsValue, Observation, Verdict, judge, label_permutation};
use serde::Deserialize;

const TOLERANCE: f64 = 1e-10;

#[derive(Deserialize)]
struct Goldens {
    quantiles: Vec<Quantile>,
    means: Vec<Mean>,
    paired: Vec<Paired>,
    labels: Vec<Labels>,
    welch: Vec<Welch>,
    tiers: Vec<TierCase>,
}

#[derive(Deserialize)]
struct Quantile {
    tail: f64,
    freedom: f64,
    t: f64,
}

#[derive(Deserialize)]
struct Mean {
    values: Vec<f64>,
    interval90: [f64; 2],
    interval95: [f64; 2],
    p_value: f64,
}

#[derive(Deserialize)]
struct Paired {
    left: Vec<f64>,
    right: Vec<f64>,
    p_value: f64,
    sign_flip: f64,
    interval90: [f64; 2],
}

#[derive(Deserialize)]
struct Labels {
    left: Vec<Vec<f64>>,
    right: Vec<Vec<f64>>,
    p_value: f64,
}

#[derive(Deserialize)]
struct Welch {
    #[serde(flatten)]
    row: Row,
    metric: Metric,
    values: Vec<f64>,
    difference: f64,
    interval90: [f64; 2],
    interval95: [f64; 2],
    p_value: f64,
}

#[derive(Deserialize)]
struct TierCase {
    tier: String,
    runs: Vec<Vec<Vec<f64>>>,
    published: f64,
    authors: Option<Vec<f64>>,
    difference: f64,
    interval90: [f64; 2],
    interval95: [f64; 2],
    p_value: f64,
}

fn goldens() -> Goldens {
    golden::json("verdict/statistics.json")
}

fn near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= TOLERANCE * expected.abs().max(1.0), "{what}: {found}, SciPy has {expected}");
}

fn ends(found: [f64; 2], expected: [f64; 2], what: &str) {
    near(found[0], expected[0], what);
    near(found[1], expected[1], what);
}

/// Every score is `value`.
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

#[test]
fn quantiles_of_t() {
    for case in goldens().quantiles {
        near(quantile(case.tail, case.freedom).unwrap(), case.t, &format!("t({}; {})", case.tail, case.freedom));
    }
}

#[test]
fn intervals_and_p_values_of_a_mean() {
    for case in goldens().means {
        let found = of_mean(&case.values);
        ends(found.interval(0.90).unwrap(), case.interval90, "90 %");
        ends(found.interval(0.95).unwrap(), case.interval95, "95 %");
        near(found.two_sided().unwrap().unwrap(), case.p_value, "p");
    }
}

#[test]
fn paired_tests() {
    for case in goldens().paired {
        let differences: Vec<f64> = case.left.iter().zip(&case.right).map(|(left, right)| left - right).collect();
        let found = of_mean(&differences);
        near(found.one_sided().unwrap().unwrap(), case.p_value, "paired t");
        ends(found.interval(0.90).unwrap(), case.interval90, "90 %");
        let pairs: Vec<_> = case.left.iter().zip(&case.right).map(|(l, r)| (vec![*l], vec![*r])).collect();
        near(label_permutation(&pairs).unwrap().p_value(), case.sign_flip, "sign-flip");
    }
}

#[test]
fn label_permutations() {
    for case in goldens().labels {
        let splits: Vec<_> = case.left.iter().cloned().zip(case.right.iter().cloned()).collect();
        near(label_permutation(&splits).unwrap().p_value(), case.p_value, &format!("{} splits", splits.len()));
    }
}

#[test]
fn tier_d_is_welch_for_every_published_number() {
    let (claims, published) = (Claims::embedded().unwrap(), Published::embedded().unwrap());
    let cases = goldens().welch;
    let with_deviation = published.rows().iter().filter(|number| number.deviation.is_some()).count();
    assert_eq!(cases.len(), with_deviation);
    for case in cases {
        let values = case.values.iter().enumerate();
        let observations: Vec<_> = values.map(|(at, value)| observation(&case.row, at + 1, 1, *value)).collect();
        let claims = claims.clone().of_suites(&[&case.row.suite]);
        let verdicts = judge(&claims, &published, &observations, &[]).unwrap();
        let found = verdicts.claims.iter().find(|v| v.row == case.row && v.metric == case.metric && v.margin.is_some());
        let found = found.unwrap();
        assert_eq!(format!("{:?}", found.tier), "Some(D)");
        near(found.difference.unwrap(), case.difference, "difference");
        ends(found.interval90.unwrap(), case.interval90, "90 %");
        ends(found.interval95.unwrap(), case.interval95, "95 %");
        near(found.p_value.unwrap(), case.p_value, "p");
    }
}

/// Judges the first setting of `case` against its published mean.
fn judged(case: &TierCase) -> Verdict {
    let row = |method: usize| Row {
        suite: "a".to_owned(),
        protocol: Protocol::Full,
        method: format!("m{method}"),
        pretrain_split: Some(PretrainSplit::D_i),
    };
    let mut observations = Vec::new();
    for (method, splits) in case.runs.iter().enumerate() {
        for (split, seeds) in splits.iter().enumerate() {
            let runs = seeds.iter().enumerate();
            observations.extend(runs.map(|(seed, value)| observation(&row(method), split + 1, seed, *value)));
        }
    }
    let table = format!("{}\na,full,m0,D_i,all,{},,here,primary\n", sdclr::paper::HEADER, case.published);
    let published = Published::parse("table", table.as_bytes()).unwrap();
    let rows = [row(0)].into();
    let claims = Claims::embedded().unwrap().of_numbers(&published, table.as_bytes(), &rows);
    let of_split = |(at, value): (usize, &f64)| AuthorsValue { row: row(0), split: at + 1, values: scores(*value) };
    let authors: Vec<_> = case.authors.iter().flatten().enumerate().map(of_split).collect();
    judge(&claims, &published, &observations, &authors).unwrap().claims.remove(0)
}

#[test]
fn tiers_a_to_c() {
    let mut seen = BTreeMap::new();
    for case in goldens().tiers {
        let found = judged(&case);
        assert_eq!(format!("{:?}", found.tier.unwrap()), case.tier);
        near(found.difference.unwrap(), case.difference, "difference");
        ends(found.interval90.unwrap(), case.interval90, "90 %");
        ends(found.interval95.unwrap(), case.interval95, "95 %");
        near(found.p_value.unwrap(), case.p_value, "p");
        assert_eq!(found.theirs.unwrap().confidence, Confidence::Primary);
        *seen.entry(case.tier).or_insert(0) += 1;
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [("A".to_owned(), 5), ("B".to_owned(), 3), ("C".to_owned(), 1)]);
}
