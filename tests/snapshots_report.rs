//! The report of made-up records: Markdown, JSON, CSV and terminal table against snapshots; plots by what they must hold.
//! After an intended change: `INSTA_UPDATE=always cargo test --release --test snapshots_report`, then read the diff.

mod imaginary;

use std::collections::BTreeMap;

use imaginary::{IMAGINARY, parts, suite};
use sdclr::recipe::{PretrainSplit, Protocol};
use sdclr::record::{self, Failure, Invocation, JobRecord, SMOKE_STAMP, SuiteRecord, UNOFFICIAL_STAMP};
use sdclr::report::{self, Findings, Format, OutputFile, Report};

/// One split scaled down to an epoch.
fn smoke() -> SuiteRecord {
    let mut record = suite("cifar10-lt", &[1]);
    record
        .results
        .retain(|record| record.header().method != "simclr" && record.header().protocol != Some(Protocol::Few));
    record.smoke = true;
    (record.invocation.limit_images, record.invocation.limit_epochs) = (Some(512), Some(1));
    for record in &mut record.results {
        let (job, epochs) = parts(record);
        epochs.truncate(1);
        job.header.smoke = true;
        job.header.stamp = Some(SMOKE_STAMP.to_owned());
        job.header.limit_images = Some(512);
        job.header.limit_epochs = Some(1);
    }
    record
}

/// The second split's SDCLR failed; the error has what Markdown could trip over.
fn failed() -> SuiteRecord {
    let mut record = suite(IMAGINARY, &[1, 2, 3]);
    record.results.retain(|record| record.header().method != "sdclr" || record.header().split != 2);
    record.failures = vec![Failure {
        job: "sdclr-D_i-split2".to_owned(),
        error: "the loss is NaN in epoch 7, step 3 (lr 0.35)\nlast good checkpoint: a|b".to_owned(),
    }];
    record
}

fn files(record: &SuiteRecord) -> BTreeMap<String, String> {
    let report = Report::of_suite(&Findings::of(record)).unwrap();
    report.files(&Format::DEFAULT).into_iter().map(|OutputFile { path, text }| (path, text)).collect()
}

#[test]
fn whole_suite() {
    let record = suite(IMAGINARY, &[1, 2, 3]);
    let files = files(&record);
    insta::assert_snapshot!("imaginary_report_md", files["report.md"]);
    insta::assert_snapshot!("imaginary_report_csv", files["report.csv"]);
    insta::assert_snapshot!(
        "imaginary_per_class_csv_head",
        files["per_class.csv"].lines().take(12).collect::<Vec<_>>().join("\n")
    );
    insta::assert_snapshot!(
        "imaginary_curves_csv_head",
        files["curves.csv"].lines().take(4).collect::<Vec<_>>().join("\n")
    );
    insta::assert_snapshot!("imaginary_summary_table", report::summary_table(&record));
}

#[test]
fn smoke_run_is_stamped_everywhere() {
    let record = smoke();
    let files = files(&record);
    insta::assert_snapshot!("smoke_report_md", files["report.md"]);
    insta::assert_snapshot!("smoke_report_json", files["report.json"]);
    insta::assert_snapshot!("smoke_summary_table", report::summary_table(&record));
    assert!(!files["report.md"].contains("the paper |"));
    is_stamped(&files, SMOKE_STAMP);
}

/// Every file, every row for other programs and every table.
fn is_stamped(files: &BTreeMap<String, String>, stamp: &str) {
    for (path, text) in files {
        assert!(text.contains(stamp), "{path} lacks the stamp");
        if path.ends_with(".csv") {
            assert!(text.lines().skip(1).all(|row| row.contains(stamp)), "a row of {path} lacks the stamp");
        }
    }
    let markdown = &files["report.md"];
    for table in markdown.split("\n\n").filter(|block| block.starts_with('|')) {
        let caption = markdown[..markdown.find(table).unwrap()].trim_end().lines().last().unwrap();
        assert!(caption.contains(stamp), "the table under '{caption}' lacks the stamp");
    }
}

#[test]
fn runs_on_lists_that_are_not_the_published_ones_are_stamped_everywhere() {
    let mut record = suite("cifar10-lt", &[1, 2]);
    for record in &mut record.results {
        let header = &mut parts(record).0.header;
        header.unofficial = vec!["images".to_owned(), "a|list.npy".to_owned()];
        header.stamp = record::stamp(false, true);
    }
    let files = files(&record);
    is_stamped(&files, UNOFFICIAL_STAMP);
    assert!(report::summary_table(&record).contains(UNOFFICIAL_STAMP));
    let note =
        "> **Not the published inputs:** `a|list.npy`, `images`. The paper's numbers are about the published ones.";
    assert!(files["report.md"].contains(note), "{}", files["report.md"]);
    // What one job read is in the suite's tables.
    for record in record.results.iter_mut().skip(1) {
        parts(record).0.header.unofficial.clear();
    }
    assert_eq!(record.stamp().as_deref(), Some(UNOFFICIAL_STAMP));
    record.smoke = true;
    assert_eq!(record.stamp().unwrap(), format!("{SMOKE_STAMP}; {UNOFFICIAL_STAMP}"));
}

#[test]
fn failed_job_is_named_and_missing_results_are_listed() {
    let record = failed();
    let files = files(&record);
    insta::assert_snapshot!("failed_report_md", files["report.md"]);
    insta::assert_snapshot!("failed_summary_table", report::summary_table(&record));
    let json: serde_json::Value = serde_json::from_str(&files["report.json"]).unwrap();
    assert_eq!(json["failures"][0]["job"], "sdclr-D_i-split2");
}

#[test]
fn published_numbers_stand_beside_ours_with_their_confidence() {
    let markdown = files(&suite("cifar10-lt", &[1, 2, 3, 4, 5])).remove("report.md").unwrap();
    let section = markdown.split("\n## ").find(|section| section.starts_with("Results")).unwrap();
    insta::assert_snapshot!("cifar10_published", section);
    assert!(section.contains("recalled, to be confirmed against the paper"));
}

/// A shorter selection than all that was run trains the same; a longer one would train more.
#[test]
fn the_command_is_the_one_that_was_given() {
    let mut record = suite("digits-lt", &[1, 3]);
    record.invocation.methods = ["sdclr-D_i", "simclr-D_b"].map(str::to_owned).to_vec();
    record.invocation.pretrain_splits = vec![PretrainSplit::D_i];
    record.invocation.overrides = ["lr=0.125", "augment.scale=[0.2, 1.0]"].map(str::to_owned).to_vec();
    record.invocation.seeds = 2;
    let markdown = files(&record).remove("report.md").unwrap();
    let expected = "`ci/repro digits-lt --methods sdclr-D_i,simclr-D_b --splits 1,3 --pretrain-splits D_i --seeds 2 \
                    --set lr=0.125 --set 'augment.scale=[0.2, 1.0]'`";
    assert!(markdown.contains(expected), "{}", markdown.lines().find(|line| line.contains("ci/repro")).unwrap());
}

#[test]
fn an_empty_suite_still_has_a_report() {
    let record = SuiteRecord {
        suite: "digits-lt".to_owned(),
        invocation: Invocation { suite: "digits-lt".to_owned(), ..Invocation::default() },
        smoke: false,
        results: Vec::new(),
        mechanisms: Vec::new(),
        evidence: Vec::new(),
        failures: vec![Failure { job: "simclr-D_i-split1".to_owned(), error: "no space left".to_owned() }],
        seconds: Some(0.5),
    };
    let files = files(&record);
    assert!(files["report.md"].contains("No probe has finished"));
    assert!(files.keys().all(|path| !path.starts_with("plots/")));
    insta::assert_snapshot!("empty_summary_table", report::summary_table(&record));
}

#[test]
fn numbers_are_the_records_own() {
    let record = suite(IMAGINARY, &[1, 2, 3]);
    let json: serde_json::Value = serde_json::from_str(&files(&record)["report.json"]).unwrap();
    let of = |method: &str, list: &str| {
        let settings = json["settings"].as_array().unwrap();
        settings
            .iter()
            .find(|row| row["method"] == method && row["pretrain_split"] == list && row["protocol"] == "few")
            .unwrap()
    };
    let (sdclr, simclr) = (of("sdclr", "D_i"), of("simclr", "D_i"));
    let difference = json["differences"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == "SDCLR on D_i − SimCLR on D_i" && row["protocol"] == "few");
    let mean = |row: &serde_json::Value| row["scores"]["all"]["mean"].as_f64().unwrap();
    let expected = mean(sdclr) - mean(simclr);
    assert!((mean(difference.unwrap()) - expected).abs() < 1e-9, "paired mean is the difference of means");
    assert_eq!(json["results"].as_array().unwrap().len(), record.results.len());
    let back: Vec<JobRecord> = serde_json::from_value(json["results"].clone()).unwrap();
    assert_eq!(back, record.results);
}

#[test]
fn plots_are_whole_linked_and_the_same_every_time() {
    let record = suite(IMAGINARY, &[1, 2, 3]);
    let first = files(&record);
    let plots: Vec<&String> = first.keys().filter(|path| path.ends_with(".svg")).collect();
    assert_eq!(plots.len(), 9, "{plots:?}");
    for path in &plots {
        let svg = &first[*path];
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{path}");
        assert!(svg.contains("SDCLR on D_i"), "{path} lacks its legend");
        // What was trained on the balanced list is no answer to the question of the long tail.
        assert_eq!(svg.contains("SimCLR on D_b"), !path.starts_with("plots/classes_"), "{path}");
        assert!(first["report.md"].contains(&format!("]({path})")), "report.md does not show {path}");
    }
    assert_eq!(first, files(&record));
    let mut shuffled = record.clone();
    shuffled.results.reverse();
    for path in plots.iter().map(|path| path.as_str()).chain(["report.md", "report.csv"]) {
        assert_eq!(first[path], files(&shuffled)[path], "{path} depends on the order in which jobs finished");
    }
}

#[test]
fn report_is_written_where_it_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let record = suite(IMAGINARY, &[1]);
    let report = Report::of_suite(&Findings::of(&record)).unwrap();
    let path = report.write(folder.path(), &Format::DEFAULT).unwrap();
    assert_eq!(path, folder.path().join("report.md"));
    for name in ["report.json", "report.csv", "per_class.csv", "curves.csv", "plots/pretrain_loss.svg"] {
        assert!(folder.path().join(name).is_file(), "{name}");
    }
}

/// Several seeds of a split are runs, not splits.
#[test]
fn seeds_are_counted_as_seeds() {
    let mut record = suite(IMAGINARY, &[1, 2]);
    let mut second = record.results.clone();
    for result in &mut second {
        let (job, _) = parts(result);
        job.header.job.encoder.seed = 2;
        job.state_sha256 += " of seed 2";
    }
    record.results.extend(second);
    record.invocation.seeds = 2;
    let markdown = files(&record).remove("report.md").unwrap();
    for part in [
        "on splits 1, 2, up to 2 seeds each",
        "mean ± population standard deviation over splits and seeds",
        "| method | pre-trained on | splits | seeds | encoders | All |",
        "| SDCLR | D_i | 2 | 2 | 4 |",
        "| method | pre-trained on | probe | split | seed | All |",
        "| SDCLR | D_i | few-shot | 2 | 2 |",
        "All is higher in 4 of 4 runs",
        "2 splits with 2 seeds",
        "thin: single runs",
    ] {
        assert!(markdown.contains(part), "the report lacks: {part}");
    }
    for part in ["one seed", "One run", "seed a split"] {
        assert!(!markdown.contains(part), "the report says: {part}");
    }
    assert!(report::summary_table(&record).contains("splits  seeds"));
}
