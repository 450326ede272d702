//! What we write is read by the programs of others that it is meant for: the provenance of a suite by roc-validator, the scalars
//! of epochs by TensorBoard. Without them (`ci/tools` installs them) these tests say that they were skipped.

mod skip;
mod tools;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tools::tool;

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program of `reference/readers` on `folder`.
fn reader(program: &str, folder: &Path) -> Option<Output> {
    let python = tool("python")?;
    let program = Path::new(CHECKOUT).join("reference/readers").join(program);
    Some(Command::new(python).arg(program).arg(folder).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap())
}

fn sdclr(arguments: &[&str], out: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"));
    command.args(arguments).args(["--device", "cpu", "--out"]).arg(out);
    command
}

#[test]
fn the_provenance_of_a_suite_is_a_process_run_crate() {
    let folder = tempfile::tempdir().unwrap();
    let short = ["--splits", "1", "--seeds", "1", "--limit-images", "64", "--limit-epochs", "1"];
    let run = sdclr(&[&["repro", "digits-lt"], short.as_slice()].concat(), folder.path()).output().unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    let path = folder.path().join("ro-crate-metadata.json");
    let metadata = std::fs::read_to_string(&path).unwrap();
    let graph: Value = serde_json::from_str(&metadata).unwrap();
    let of_kind =
        |kind: &str| graph["@graph"].as_array().unwrap().iter().filter(|entity| entity["@type"] == kind).count();
    // Two probes of each of four encoders, three of which are pre-trained.
    assert_eq!((of_kind("CreateAction"), of_kind("SoftwareApplication")), (11, 1));
    // Four files of the report, a record a job, and what pruning does to each encoder.
    assert_eq!(of_kind("File"), 4 + 11 + 3);

    let Some(checked) = reader("check_crate.py", folder.path()) else { return };
    assert!(checked.status.success(), "{}{}", text(&checked.stdout), text(&checked.stderr));
    // It sees what is wrong.
    sdclr::fs::write(&path, metadata.replace("\"instrument\"", "\"error\"").as_bytes()).unwrap();
    let checked = reader("check_crate.py", folder.path()).unwrap();
    assert!(
        !checked.status.success() && text(&checked.stdout).contains("Action instrument"),
        "{}",
        text(&checked.stdout)
    );
}

/// {job: {tag: [[step, value], ...]}}
type Scalars = BTreeMap<String, BTreeMap<String, Vec<(i64, f64)>>>;

#[test]
fn tensorboard_reads_every_epoch_once_also_of_a_resumed_run() {
    let folder = tempfile::tempdir().unwrap();
    let [out, shown] = ["runs", "shown"].map(|name| folder.path().join(name));
    let which = ["--methods", "sdclr-D_i", "--splits", "1", "--seeds", "1", "--set", "epochs=20", "warmup_epochs=3"];
    let run = |more: &[&str]| {
        let mut command = sdclr(&[&["repro", "digits-lt"], which.as_slice(), more].concat(), &out);
        command.arg("--tensorboard").arg(&shown).output().unwrap()
    };
    let mut sessions = 1;
    loop {
        // Each session stops after one or more epochs, and the next one continues.
        let session = run(&["--budget", "1s"]);
        match session.status.code() {
            Some(75) => sessions += 1,
            code => break assert_eq!(code, Some(0), "{}", text(&session.stderr)),
        }
    }
    assert!(sessions > 1, "the run was over before it was stopped");
    let Some(read) = reader("read_events.py", &shown) else { return };
    assert!(read.status.success(), "{}", text(&read.stderr));
    let scalars: Scalars = serde_json::from_slice(&read.stdout).unwrap();
    let jobs: Vec<&str> = scalars.keys().map(String::as_str).collect();
    assert_eq!(jobs, ["sdclr-D_i-split1", "sdclr-D_i-split1/few", "sdclr-D_i-split1/full"]);
    for (job, tags) in &scalars {
        let record = std::fs::read(out.join(job).join("result.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        for tag in ["loss", "lr", "density", "overlap", "validation_accuracy", "images_per_second"] {
            let recorded = record["epochs"].as_array().unwrap().iter();
            let expected: Vec<(i64, f64)> = recorded
                .filter_map(|epoch| Some((epoch["epoch"].as_i64()?, f64::from(epoch[tag].as_f64()? as f32))))
                .collect();
            assert_eq!(tags.get(tag).cloned().unwrap_or_default(), expected, "{tag} of {job}");
        }
    }
    assert_eq!(scalars["sdclr-D_i-split1"]["overlap"].len(), 19);

    // Of a finished run the events are made again where they are missing.
    std::fs::remove_dir_all(&shown).unwrap();
    assert!(run(&[]).status.success());
    let again: Scalars = serde_json::from_slice(&reader("read_events.py", &shown).unwrap().stdout).unwrap();
    assert_eq!(again, scalars);
}
