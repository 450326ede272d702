//! The paper's numbers and claims: the committed files hold together, and each fault of a user's file is one error that
//! names the line, what was found and what was expected.

use std::collections::BTreeSet;

use sdclr::paper::{Claims, Confidence, HEADER, Metric, PaperError, Published, Row};
use sdclr::recipe::{PretrainSplit, Protocol};

const NUMBER: &str = "cifar10-lt,full,simclr,D_i,all,75.55,0.5,Table 4,memory";

/// The error of a file with the header and `lines`.
fn fault(lines: &str) -> PaperError {
    Published::parse("table.csv", format!("{HEADER}\n{lines}\n").as_bytes()).unwrap_err()
}

/// The error of a claims file.
fn claims_fault(text: &str) -> PaperError {
    Claims::parse("claims.toml", text.as_bytes()).unwrap_err()
}

fn row(suite: &str, method: &str, pretrain_split: PretrainSplit) -> Row {
    Row {
        suite: suite.to_owned(),
        protocol: Protocol::Full,
        method: method.to_owned(),
        pretrain_split: Some(pretrain_split),
    }
}

const VALUE: &str = r#"
[[value]]
id = "one"
suite = "cifar10-lt"
protocol = "full"
method = "simclr"
pretrain_split = "D_i"
metric = "all"
margin = 1.5
better_allowed = true
source = "Table 4"
confidence = "memory"
"#;

const ORDERING: &str = r#"
[[ordering]]
id = "two"
suite = "cifar10-lt"
protocol = "full"
left = { method = "sdclr", pretrain_split = "D_i" }
right = { method = "simclr", pretrain_split = "D_i" }
metric = "all"
direction = "above"
prior_power = 0.5
source = "Table 4"
confidence = "memory"
"#;

#[test]
fn numbers_are_found_by_row_and_metric() {
    let published = Published::embedded().unwrap();
    let row = row("cifar10-lt", "sdclr", PretrainSplit::D_i);
    let many = published.number(&row, Metric::Many).unwrap();
    assert_eq!((many.mean, many.deviation, many.confidence), (86.44, Some(3.12), Confidence::Primary));
    assert_eq!(published.of(&row).count(), 5);
    assert_eq!(published.number(&row, Metric::All).unwrap().deviation, None);
    assert_eq!(published.number(&Row { method: "other".to_owned(), ..row }, Metric::All), None);
}

#[test]
fn a_byte_order_mark_and_carriage_returns_are_accepted() {
    let text = format!("\u{feff}{HEADER}\r\n{NUMBER}\r\n");
    assert_eq!(Published::parse("table.csv", text.as_bytes()).unwrap().rows().len(), 1);
}

#[test]
fn each_fault_of_a_table_is_one_error() {
    let header = Published::parse("table.csv", format!("suite,mean\n{NUMBER}\n").as_bytes()).unwrap_err();
    let expected = format!("table.csv, line 1: the header is 'suite,mean'; expected is '{HEADER}'");
    assert_eq!(header.to_string(), expected);
    assert!(matches!(Published::parse("table.csv", b"").unwrap_err(), PaperError::Header { .. }));
    assert!(matches!(fault(""), PaperError::Empty { .. }));
    let doubled = fault(&format!("{NUMBER}\n{}", NUMBER.replace("75.55", "80")));
    assert_eq!(
        doubled.to_string(),
        "table.csv, line 3: cifar10-lt full simclr D_i all stands already on line 2; keep one of the two rows"
    );
    for (from, to, column) in [
        ("75.55", "75,55", ""),
        ("75.55", "\"75,55\"", "mean"),
        ("75.55", "NaN", "mean"),
        ("75.55", "inf", "mean"),
        ("75.55", "", "mean"),
        ("75.55", "101", "mean"),
        ("0.5", "-0.5", "deviation"),
        ("0.5", "nan", "deviation"),
        (",all,", ",ALL,", "metric"),
        ("full", "half", "protocol"),
        ("D_i", "D_x", "pretrain_split"),
        ("memory", "sure", "confidence"),
        ("Table 4", "", "source"),
        ("cifar10-lt", "", "suite"),
        ("simclr", " ", "method"),
    ] {
        match fault(&NUMBER.replace(from, to)) {
            PaperError::Field { line: 2, column: found, expected, .. } => {
                assert_eq!(found, column, "{from} -> {to}");
                assert!(!expected.is_empty());
            }
            PaperError::Fields { line: 2, found: 10, expected: 9, .. } if column.is_empty() => {}
            other => panic!("{from} -> {to}: {other}"),
        }
    }
    let text = [HEADER.as_bytes(), b"\n", NUMBER.as_bytes(), b"\n\xff,full\n"].concat();
    assert!(matches!(Published::parse("table.csv", &text).unwrap_err(), PaperError::Text { line: 3, .. }));
}

#[test]
fn each_fault_of_a_claims_file_is_one_error() {
    assert!(Claims::parse("claims.toml", format!("{VALUE}{ORDERING}").as_bytes()).is_ok());
    for (text, expected) in [
        (
            VALUE.replace("margin = 1.5", "margin = 0"),
            "claim 'one': margin is 0; expected is a number of points above 0",
        ),
        (VALUE.replace("1.5", "nan"), "claim 'one': margin is NaN"),
        (VALUE.replace("margin", "margins"), "unknown field `margins`"),
        (VALUE.replace("\"all\"", "\"total\""), "unknown variant `total`"),
        (format!("{VALUE}{VALUE}"), "two claims have the id 'one'"),
        (format!("{VALUE}{}", ORDERING.replace("two", "one")), "two claims have the id 'one'"),
        (ORDERING.replace("0.5", "1.5"), "claim 'two': prior_power is 1.5; expected is a number from 0 to 1"),
        (ORDERING.replace("\"sdclr\"", "\"simclr\""), "expected is another row than the left one"),
        (
            format!("{ORDERING}expected = {{ gain = 1.0, deviation = 0.0 }}"),
            "expected is two numbers of points above 0",
        ),
        (format!("[published_splits]\ncifar10-lt = 0\n{VALUE}"), "published_splits is 0"),
        (format!("[training_noise]\nall = -1.0\n{VALUE}"), "training_noise is -1"),
    ] {
        let found = claims_fault(&text).to_string();
        assert!(found.contains(expected) && found.contains("claims.toml"), "{found}\nlacks\n{expected}");
    }
}

#[test]
fn a_claim_about_a_row_that_does_not_exist_is_an_error() {
    let published = Published::embedded().unwrap();
    let known = BTreeSet::from([row("cifar10-lt", "simclr", PretrainSplit::D_i)]);
    let value = |method: &str| VALUE.replace("simclr", method);
    let check = |text: String| Claims::parse("claims.toml", text.as_bytes()).unwrap().check_rows(&published, &known);
    check(value("simclr")).unwrap();
    assert!(matches!(check(value("sinclr")).unwrap_err(), PaperError::NoNumber { .. }));
    let error = check(value("sdclr")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "claim 'one' is about cifar10-lt full sdclr D_i, which is no row of the suite; its rows are cifar10-lt full simclr D_i"
    );
    assert!(matches!(check(ORDERING.to_owned()).unwrap_err(), PaperError::NoRow { .. }));
}

#[test]
fn the_hash_is_that_of_the_file() {
    let claims = Claims::parse("claims.toml", VALUE.as_bytes()).unwrap();
    assert_eq!(claims.sha256.len(), 64);
    assert_ne!(claims.sha256, Claims::parse("claims.toml", format!("{VALUE}\n").as_bytes()).unwrap().sha256);
    assert_eq!(claims.clone().of_suites(&["digits-lt"]).sha256, claims.sha256);
}

#[test]
fn the_committed_claims_hold_together() {
    let (claims, published) = (Claims::embedded().unwrap(), Published::embedded().unwrap());
    let suites: BTreeSet<&str> = claims.values.iter().map(|claim| claim.row.suite.as_str()).collect();
    assert_eq!(suites, BTreeSet::from(["cifar10-lt", "cifar100-lt", "imagenet-lt-exp", "imagenet100-lt"]));
    for claim in &claims.values {
        let number = published.number(&claim.row, claim.metric).unwrap_or_else(|| panic!("{}", claim.id));
        assert_eq!((&claim.source, claim.confidence), (&number.source, number.confidence), "{}", claim.id);
        assert_eq!(claim.margin, claim.metric.default_margin(), "{}", claim.id);
        assert!(claim.published_splits.is_some(), "{}", claim.id);
    }
    let judged = |suite: &str| published.rows().iter().filter(|number| number.row.suite == suite).count();
    assert_eq!(claims.values.len(), suites.iter().map(|suite| judged(suite)).sum::<usize>());
    for claim in &claims.orderings {
        // The published table does not contradict what is claimed of it.
        match claim.published_gain(&published) {
            Some(gain) => assert!(gain > 0.0, "{}: {gain}", claim.id),
            None => assert_eq!(claim.left.suite, "digits-lt", "{}", claim.id),
        }
    }
    let primary: Vec<&str> = claims.orderings.iter().filter(|c| c.primary).map(|c| c.id.as_str()).collect();
    assert!(primary.contains(&"digits-lt/few/balanced-above-long-tailed/all"), "{primary:?}");
}

#[test]
fn numbers_of_a_file_become_value_claims_for_the_rows_observed() {
    let text = format!("{HEADER}\n{NUMBER}\n{}\n", NUMBER.replace("simclr", "sdclr").replace(",all,", ",few,"));
    let published = Published::parse("table.csv", text.as_bytes()).unwrap();
    let rows = BTreeSet::from([row("cifar10-lt", "sdclr", PretrainSplit::D_i)]);
    let claims = Claims::embedded().unwrap().of_numbers(&published, text.as_bytes(), &rows);
    let [claim] = claims.values.as_slice() else { panic!("{:?}", claims.values) };
    assert_eq!(claim.id, "cifar10-lt/full/sdclr/D_i/few");
    assert_eq!((claim.margin, claim.better_allowed, claim.published_splits), (3.0, true, Some(5)));
    assert!(claims.orderings.is_empty());
}
