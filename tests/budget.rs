//! A suite within a time budget: it stops early with a checkpoint, and ends as if it had never stopped.

use std::path::Path;
use std::process::{Command, Output};

const USED_UP: i32 = 75;

/// `sdclr-D_i` of split 1, unless `more` names other methods.
fn repro(out: &Path, more: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .args(["repro", "digits-lt", "--splits", "1", "--seeds", "1", "--device", "cpu"])
        .args(["--set", "epochs=24", "warmup_epochs=3", "probe.full.epochs=3", "probe.few.epochs=3"])
        .args(if more.contains(&"--methods") { [].as_slice() } else { &["--methods", "sdclr-D_i"] })
        .args(more)
        .arg("--out")
        .arg(out)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The hash of the final state of each job.
fn states(out: &Path) -> Vec<String> {
    let job = out.join("sdclr-D_i-split1");
    [job.clone(), job.join("full"), job.join("few")]
        .iter()
        .map(|folder| {
            let result = std::fs::read(folder.join("result.json")).unwrap();
            let result: serde_json::Value = serde_json::from_slice(&result).unwrap();
            result["state_sha256"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn a_budget_stops_at_an_epochs_end_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let output = repro(&whole, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let first = repro(&parts, &["--budget", "1s"]);
    let said = text(&first.stderr);
    assert_eq!(first.status.code(), Some(USED_UP), "{said}");
    assert!(said.contains("budget 1.0 s; speed of training: sdclr") && said.contains("(measured now)"), "{said}");
    assert!(said.contains("runs in part     sdclr-D_i-split1 ") && said.contains("left"), "{said}");
    assert!(said.contains("3 jobs left: run the same command again to continue"), "{said}");
    assert!(!said.contains("failed:"), "{said}");
    let job = parts.join("sdclr-D_i-split1");
    assert!(job.join("checkpoint.safetensors").exists() && !job.join("encoder.safetensors").exists());
    let log = std::fs::read_to_string(job.join("run.jsonl")).unwrap();
    let epochs = log.matches("\"event\":\"epoch\"").count();
    assert!((1..24).contains(&epochs) && !log.contains("\"event\":\"failure\""), "{log}");
    let report = std::fs::read_to_string(parts.join("report.md")).unwrap();
    assert!(
        report.contains(&format!("budget used up after epoch {epochs} of 24: run the same command again to continue")),
        "{report}"
    );
    assert!(report.contains("0 of 3 jobs finished"), "{report}");

    // The next sitting knows the speed, and has time for all.
    let second = repro(&parts, &["--budget", "10m"]);
    let said = text(&second.stderr);
    assert!(second.status.success(), "{said}");
    assert!(said.contains("(from earlier records)") && !said.contains("runs in part"), "{said}");
    assert!(std::fs::read_to_string(job.join("run.jsonl")).unwrap().contains(&format!("\"from_epoch\":{epochs}")));
    assert!(states(&whole) == states(&parts), "the runs differ");

    let third = repro(&parts, &["--budget", "1s"]);
    let said = text(&third.stderr);
    assert!(third.status.success() && said.matches("done before").count() == 3, "{said}");
}

#[test]
fn every_sitting_gets_something_done() {
    let folder = tempfile::tempdir().unwrap();
    let short = ["--limit-images", "64", "--limit-epochs", "3", "--budget", "1s"];
    let mut sittings = 0;
    // Three epochs and two probes: even a budget that is spent on loading alone comes to an end.
    loop {
        sittings += 1;
        let output = repro(folder.path(), &short);
        match output.status.code() {
            Some(0) => break,
            Some(USED_UP) if sittings < 6 => {}
            other => panic!("sitting {sittings} ended with {other:?}: {}", text(&output.stderr)),
        }
    }
    assert_eq!(states(folder.path()).len(), 3);
}

#[test]
fn a_failure_is_not_hidden_by_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    // No job can have its folder there.
    sdclr::fs::write(&folder.path().join("simclr-D_i-split1"), b"a file").unwrap();
    let output = repro(folder.path(), &["--methods", "simclr-D_i,sdclr-D_i", "--budget", "1s"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("failed: simclr-D_i-split1: ") && said.contains("jobs left: run the same command again"),
        "{said}"
    );
    // Only the first recipe is measured.
    assert!(said.matches("(measured now)").count() == 1 && said.contains("(as the first, until it has"), "{said}");
}

#[test]
fn a_missing_list_fails_its_own_job_alone() {
    let folder = tempfile::tempdir().unwrap();
    let grey = vec![0; 10_000 * 3073];
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        sdclr::fs::write(&folder.path().join(format!("cifar-10-batches-bin/{name}.bin")), &grey).unwrap();
    }
    // There is no list D_b.
    let list = ndarray::Array1::from_vec((0..8_i64).collect::<Vec<_>>());
    let mut bytes = Vec::new();
    ndarray_npy::WriteNpyExt::write_npy(&list, &mut bytes).unwrap();
    sdclr::fs::write(&folder.path().join("split/cifar10_imbSub_with_subsets/split1_D_i.npy"), &bytes).unwrap();
    let output = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .args(["repro", "cifar10-lt", "--methods", "simclr-D_b,simclr-D_i", "--splits", "1", "--device", "cpu"])
        .args(["--set", "network=resnet10", "width=2", "--limit-epochs", "1", "--budget", "1h", "--data"])
        .args([folder.path(), "--out".as_ref(), &folder.path().join("out")])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("failed: simclr-D_b-split1: ") && said.contains("(measured now)"), "{said}");
    // Neither the images nor the list are the published ones.
    let (images, list) = ("the cifar10 images are not", "split1_D_i.npy is not the published list");
    assert!(said.matches(images).count() == 1 && said.matches(list).count() == 1, "{said}");
    let record = std::fs::read(folder.path().join("out/simclr-D_i-split1/result.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let unofficial = serde_json::json!(["images", "cifar10_imbSub_with_subsets/split1_D_i.npy"]);
    assert_eq!(record["unofficial"], unofficial);
    assert_eq!(record["stamp"], "smoke run, not a result; not the published lists or images");
}

#[test]
fn lengths_of_time_and_methods_with_their_list() {
    let run = |arguments: &[&str]| {
        let output =
            Command::new(assert_cmd::cargo::cargo_bin!("sdclr")).arg("repro").args(arguments).output().unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    for wrong in ["25", "m", "0s", "-1m", "1.5h", "9999999h", "99999999999999999999s"] {
        let (code, said) = run(&["digits-lt", &format!("--budget={wrong}")]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("is no length of time; use 90s, 25m or 2h"), "{said}");
    }
    // The queue of the full-scale runs.
    let queue = ["cifar10-lt", "--methods", "sdclr-D_i,simclr-D_i,simclr-D_b", "--splits", "1-2", "--dry-run"];
    let (_, said) = run(&queue);
    let jobs: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("pretrain ")?.split(' ').next()).collect();
    let order = ["sdclr-D_i-split1", "simclr-D_i-split1", "simclr-D_b-split1"];
    assert_eq!(jobs[..3], order);
    assert_eq!(jobs[3..], order.map(|job| job.replace("split1", "split2")));
    for wrong in ["sdclr-D_x", "random-D_i", "foo-D_i"] {
        let (code, said) = run(&["cifar10-lt", "--methods", wrong, "--dry-run"]);
        assert!(code == Some(1) && said.contains("the suite cifar10-lt has no encoder"), "{said}");
    }
}
