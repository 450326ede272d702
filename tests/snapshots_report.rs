//! The report of made-up records: Markdown, JSON, CSV and terminal table against snapshots; plots by what they must hold.
//! After an intended change: `INSTA_UPDATE=always cargo test --release --test snapshots_report`, then read the diff.

use std::collections::BTreeMap;

use sdclr::recipe::{EncoderId, PretrainSplit, Protocol, Recipe, hash_bytes};
use sdclr::record::{
    Environment, EpochRecord, FORMAT, Failure, Invocation, Job, JobHeader, JobRecord, Outcome, PretrainRecord,
    ProbeRecord, SMOKE_STAMP, Session, SuiteRecord,
};
use sdclr::report::{self, Findings, Format, OutputFile, Report};
use sdclr::scores::{groups_by_thirds, scores};

const IMAGINARY: &str = "imaginary-lt";
const COUNTS: [u64; 10] = [65, 42, 4, 2, 2, 7, 12, 100, 28, 18];

/// That of an embedded suite; of the imaginary one a few keys, so that tuning a suite changes no snapshot.
fn recipe(suite: &str, method: &str) -> serde_json::Value {
    if suite != IMAGINARY {
        return Recipe::resolve(&format!("{suite}/{method}"), &[]).unwrap().to_json().unwrap();
    }
    let sdclr = method == "sdclr";
    serde_json::json!({
        "method": method, "dataset": "digits", "dual_bn": sdclr, "prune_ratio": if sdclr { 0.9 } else { 0.0 },
        "lr": 0.5, "epochs": 40, "augment": { "scale": [0.4, 1.0] }, "probe": { "few": { "epochs": 100 } },
    })
}

fn header(
    suite: &str,
    method: &str,
    list: Option<PretrainSplit>,
    split: usize,
    protocol: Option<Protocol>,
) -> JobHeader {
    let recipe = recipe(suite, if method == "random" { "simclr" } else { method });
    let list_name = list.map(|list| format!("split{split}_{list:?}"));
    let encoder = EncoderId { encoder: method.to_owned(), list, split, seed: 1 };
    let job = protocol.map_or(encoder.pretrain(), |protocol| encoder.probe(protocol));
    let label = sdclr::pretrain::method_info(method).unwrap().label;
    JobHeader {
        format: FORMAT,
        suite: suite.to_owned(),
        recipe_hash: hash_bytes(job.to_string().as_bytes()),
        job,
        encoder: method.to_owned(),
        label: label.to_owned(),
        method: method.to_owned(),
        pretrain_split: list,
        split,
        protocol,
        recipe,
        data_sha256: hash_bytes(b"images"),
        splits_sha256: list_name.into_iter().map(|name| (name.clone(), hash_bytes(name.as_bytes()))).collect(),
        seed: 10,
        smoke: false,
        stamp: None,
        limit_images: None,
        limit_epochs: None,
        checkpoint: None,
    }
}

/// A finished job of one session on an imaginary machine.
fn job(header: JobHeader, seconds: f64, state: &str) -> Job {
    let environment = Environment {
        device: "Imaginary CPU @ 2.00GHz".to_owned(),
        threads: 2,
        libtorch: "2.11.0".to_owned(),
        deterministic: false,
        eager: false,
        git_commit: Some("0123456789abcdef".to_owned()),
        sdclr: "0.1.0".to_owned(),
    };
    let state_sha256 = hash_bytes(format!("{state} {}", header.job).as_bytes());
    Job { header, sessions: vec![Session { from_epoch: 0, environment }], seconds, state_sha256 }
}

fn pretraining(suite: &str, method: &str, list: PretrainSplit, split: usize, epochs: usize) -> JobRecord {
    let epoch = |epoch: usize| EpochRecord {
        epoch,
        loss: 2.5 + 2.0 / epoch as f64 + 0.05 * split as f64 + if method == "sdclr" { 0.25 } else { 0.0 },
        lr: 0.5,
        density: (method == "sdclr").then_some(0.1),
        validation_accuracy: None,
        images_per_second: 512.0,
        seconds: 0.25,
    };
    let header = header(suite, method, Some(list), split, None);
    let epochs = (1..=epochs).map(epoch).collect();
    JobRecord::Pretrain(PretrainRecord { job: job(header, 12.5, "state"), epochs })
}

/// A probe whose accuracy falls from `frequent` to `rare` per cent along the classes, most frequent first.
fn probe(header: JobHeader, epochs: usize, validate_every: usize, frequent: f64, rare: f64) -> JobRecord {
    let groups = groups_by_thirds(&COUNTS);
    let mut per_class = vec![0.0; COUNTS.len()];
    let order = groups.many.iter().chain(&groups.medium).chain(&groups.few);
    for (place, &class) in order.enumerate() {
        // Multiples of 0.25 are exact, so that no last digit depends on the machine.
        per_class[class] = ((frequent + (rare - frequent) * place as f64 / 9.0) * 4.0).round() / 4.0;
    }
    let found = scores(&per_class, &groups).unwrap();
    let epoch = |epoch: usize| EpochRecord {
        epoch,
        loss: 1.0 / epoch as f64,
        lr: 30.0,
        density: None,
        validation_accuracy: epoch.is_multiple_of(validate_every).then(|| found.all - 8.0 / epoch as f64),
        images_per_second: 4096.0,
        seconds: 0.125,
    };
    JobRecord::Probe(ProbeRecord {
        job: job(header, 1.5, "classifier"),
        epochs: (1..=epochs).map(epoch).collect(),
        best_epoch: epochs,
        best_validation_accuracy: 90.0,
        outcome: Outcome { per_class, class_counts: COUNTS.to_vec(), scores: found },
    })
}

/// Random encoder, SimCLR on both lists and SDCLR on the long tail, on `splits`, both probes.
fn suite(name: &str, splits: &[usize]) -> SuiteRecord {
    use PretrainSplit::{D_b, D_i};
    let settings = [
        ("sdclr", Some(D_i), 96.0, 83.0),
        ("simclr", Some(D_b), 96.0, 90.0),
        ("simclr", Some(D_i), 95.0, 80.0),
        ("random", None, 75.0, 65.0),
    ];
    let mut results = Vec::new();
    for &split in splits {
        for (method, list, frequent, rare) in settings {
            results.extend(list.map(|list| pretraining(name, method, list, split, 40)));
            let wobble = if method == "sdclr" { 2.0 * split as f64 - 4.0 } else { 0.5 * split as f64 };
            for (protocol, epochs, every, cost) in [(Protocol::Full, 30, 1, 0.0), (Protocol::Few, 100, 5, 8.0)] {
                let header = header(name, method, list, split, Some(protocol));
                results.push(probe(header, epochs, every, frequent - cost, rare - cost + wobble));
            }
        }
    }
    let invocation = Invocation {
        suite: name.to_owned(),
        splits: splits.to_vec(),
        seeds: 1,
        probe_seeds: 1,
        ..Invocation::default()
    };
    SuiteRecord { suite: name.to_owned(), invocation, smoke: false, results, failures: Vec::new(), seconds: Some(221.7) }
}

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

fn parts(record: &mut JobRecord) -> (&mut Job, &mut Vec<EpochRecord>) {
    match record {
        JobRecord::Pretrain(record) => (&mut record.job, &mut record.epochs),
        JobRecord::Probe(record) => (&mut record.job, &mut record.epochs),
        JobRecord::Evaluation(_) => panic!("no suite evaluates"),
    }
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
    for (path, text) in &files {
        assert!(text.contains(SMOKE_STAMP), "{path} lacks the stamp");
        if path.ends_with(".csv") {
            assert!(text.lines().skip(1).all(|row| row.contains(SMOKE_STAMP)), "a row of {path} lacks the stamp");
        }
    }
    let markdown = &files["report.md"];
    assert!(!markdown.contains("the paper |"));
    for table in markdown.split("\n\n").filter(|block| block.starts_with('|')) {
        let caption = markdown[..markdown.find(table).unwrap()].trim_end().lines().last().unwrap();
        assert!(caption.contains(SMOKE_STAMP), "the table under '{caption}' lacks the stamp");
    }
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
