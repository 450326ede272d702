//! Made-up records, for the tests of reports.

use sdclr::recipe::{EncoderId, PretrainSplit, Protocol, Recipe, hash_bytes};
use sdclr::record::{
    Environment, EpochRecord, FORMAT, Invocation, Job, JobHeader, JobRecord, Outcome, PretrainRecord, ProbeRecord,
    Session, SuiteRecord,
};
use sdclr::scores::{groups_by_thirds, scores};

pub const IMAGINARY: &str = "imaginary-lt";
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
        unofficial: Vec::new(),
        stamp: None,
        limit_images: None,
        limit_epochs: None,
        checkpoint: None,
        checkpoint_sha256: None,
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
    Job { header, sessions: vec![Session { from_epoch: 0, ranks: 1, environment }], seconds, state_sha256, ended: None }
}

fn pretraining(suite: &str, method: &str, list: PretrainSplit, split: usize, epochs: usize) -> JobRecord {
    let epoch = |epoch: usize| EpochRecord {
        epoch,
        loss: 2.5 + 2.0 / epoch as f64 + 0.05 * split as f64 + if method == "sdclr" { 0.25 } else { 0.0 },
        lr: 0.5,
        density: (method == "sdclr").then_some(0.1),
        overlap: None,
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
        overlap: None,
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
pub fn suite(name: &str, splits: &[usize]) -> SuiteRecord {
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
    SuiteRecord {
        suite: name.to_owned(),
        invocation,
        smoke: false,
        results,
        mechanisms: Vec::new(),
        evidence: Vec::new(),
        failures: Vec::new(),
        seconds: Some(221.7),
    }
}

/// The job of a record, and its epochs.
pub fn parts(record: &mut JobRecord) -> (&mut Job, &mut Vec<EpochRecord>) {
    match record {
        JobRecord::Pretrain(record) => (&mut record.job, &mut record.epochs),
        JobRecord::Probe(record) => (&mut record.job, &mut record.epochs),
        JobRecord::Evaluation(_) => panic!("no suite evaluates"),
    }
}
