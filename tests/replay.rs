//! `sdclr replay` repeats what PyTorch did in float64 from a published-style checkpoint, and says where it cannot.
//! Fixtures: reference/torch/replay_fixtures.py.

mod golden;

use std::path::Path;

use assert_cmd::Command;
use sdclr::record::evidence::{EvidenceRecord, Kind};
use serde_json::Value;

fn replay(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("sdclr").unwrap();
    command.args(["replay", "--device", &golden::device_name()]).arg(folder);
    // These tests run side by side: threads that wait for each other would take most of the time.
    command.env("OMP_NUM_THREADS", "1");
    command
}

/// A copy of a fixture whose `expected.json` was changed by `edit`.
fn altered(method: &str, edit: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden::path("replay").join(method)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("expected.json");
    let mut expected: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut expected);
    sdclr::fs::write(&path, expected.to_string().as_bytes()).unwrap();
    folder
}

/// Tighter than the defaults: at these settings PyTorch's own float32 run is 3e-7 off.
const TIGHT: [&str; 2] = ["--loss-tolerance=2e-4", "--l2-tolerance=2e-4"];

#[test]
fn simclr_agrees_with_pytorch() {
    replay(&golden::path("replay/simclr")).args(TIGHT).assert().success();
}

#[test]
fn sdclr_agrees_with_pytorch() {
    replay(&golden::path("replay/sdclr")).args(TIGHT).assert().success();
}

#[test]
fn report_and_final_state_are_written() {
    let out = tempfile::tempdir().unwrap();
    let (report, state) = (out.path().join("report.json"), out.path().join("final.safetensors"));
    replay(&golden::path("replay/sdclr")).arg("--out").arg(&report).arg("--save").arg(&state).assert().success();
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let expected: Value = golden::json("replay/sdclr/expected.json");
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let mut found = keys(&report);
    // PyTorch's replay is one process, and says nothing of it.
    found.retain(|key| !["ranks", "images_per_rank"].contains(&key.as_str()));
    assert_eq!(found, keys(&expected));
    assert_eq!((&report["ranks"], report["images_per_rank"].as_array().map(Vec::len)), (&1.into(), Some(1)));
    assert_eq!(keys(&report["state"]), keys(&expected["state"]));
    let saved = tch::Tensor::read_safetensors(state).unwrap();
    let mut names: Vec<&String> = saved.iter().map(|(name, _)| name).collect();
    names.sort();
    assert!(names.iter().eq(&keys(&expected["state"]).iter().collect::<Vec<_>>()), "{names:?}");
    for (name, tensor) in &saved {
        let l2 = tensor.to_kind(tch::Kind::Double).norm().double_value(&[]);
        golden::assert_near(name, l2, expected["state"][name]["l2"].as_f64().unwrap(), 1e-5);
        assert!(name.ends_with("num_batches_tracked") || tensor.kind() == tch::Kind::Float, "{name}");
    }
}

/// Each alteration makes the command fail, and its table names the number.
fn assert_told(method: &str, what: &str, edit: impl FnOnce(&mut Value)) {
    let folder = altered(method, edit);
    let output = replay(folder.path()).assert().failure().get_output().clone();
    let table = String::from_utf8(output.stderr).unwrap();
    let told = table.lines().any(|line| line.contains(what) && line.ends_with("DIFFERS"));
    assert!(told, "no line of the table says that {what} differs:\n{table}");
}

fn scale(value: &mut Value, factor: f64) {
    *value = (value.as_f64().unwrap() * factor).into();
}

#[test]
fn an_altered_first_loss_is_told() {
    assert_told("simclr", "loss of step 1", |expected| scale(&mut expected["losses"][0], 1.0001));
}

#[test]
fn an_altered_later_loss_is_told() {
    assert_told("simclr", "loss of step 6", |expected| scale(&mut expected["losses"][5], 1.01));
}

#[test]
fn an_altered_density_is_told() {
    assert_told("sdclr", "density of epoch 2", |expected| scale(&mut expected["density"][1], 1.001));
}

#[test]
fn an_altered_norm_is_told() {
    let name = "module.layer3.0.conv1.weight";
    assert_told("sdclr", name, |expected| scale(&mut expected["state"][name]["l2"], 0.99));
}

#[test]
fn an_altered_batch_count_is_told() {
    let name = "module.bn1.bn_list.1.num_batches_tracked";
    assert_told("sdclr", name, |expected| expected["state"][name]["l2"] = 11.0.into());
}

#[test]
fn a_missing_tensor_is_told() {
    let name = "module.fc.fc3.weight";
    assert_told("sdclr", name, |expected| {
        expected["state"].as_object_mut().unwrap().remove(name);
    });
}

#[test]
fn plain_sgd_has_no_momentum() {
    let folder = altered("simclr", |_| {});
    let path = folder.path().join("replay.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text: Vec<&str> =
        text.lines().map(|line| if line.starts_with("momentum") { "momentum = 0.0" } else { line }).collect();
    sdclr::fs::write(&path, text.join("\n").as_bytes()).unwrap();
    std::fs::remove_file(folder.path().join("expected.json")).unwrap();
    replay(folder.path()).assert().success();
}

/// A header that promises 300 terabytes is refused before any memory is asked for.
#[test]
fn views_with_a_lying_header_are_refused() {
    let folder = altered("simclr", |_| {});
    let path = folder.path().join("views.npy");
    let header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 100000000, 2, 3, 1000, 1000), }\n";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header);
    sdclr::fs::write(&path, &bytes).unwrap();
    let output = replay(folder.path()).assert().code(1).get_output().clone();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("needs 600000000000000 bytes, 0 follow"), "{said}");
}

#[test]
fn evidence_is_recorded_once_also_where_it_fails() {
    let out = tempfile::tempdir().unwrap();
    let read = |name: &str| -> EvidenceRecord {
        serde_json::from_slice(&std::fs::read(out.path().join(name)).unwrap()).unwrap()
    };
    let record = |folder: &Path| {
        let mut command = replay(folder);
        command.arg("--evidence").arg(out.path());
        command.assert()
    };
    record(&golden::path("replay/sdclr")).success();
    let found = read("replay-sdclr.json");
    assert!(found.holds() && found.kind == Kind::StepTolerance && found.comparisons > 100, "{found:?}");
    let closest = found.closest.unwrap();
    assert!(closest.difference > 0.0 && closest.difference <= closest.allowed, "{closest:?}");

    let before = std::fs::read(out.path().join("replay-sdclr.json")).unwrap();
    let again = record(&golden::path("replay/sdclr")).failure().get_output().clone();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("replay-sdclr.json is a record already; remove it"), "{said}");
    assert_eq!(std::fs::read(out.path().join("replay-sdclr.json")).unwrap(), before);

    let wrong = altered("sdclr", |expected| expected["losses"][3] = 1.0.into());
    record(wrong.path()).failure();
    let name = wrong.path().file_name().unwrap().to_string_lossy().replace('.', "-");
    let found = read(&format!("replay-{name}.json"));
    assert!(!found.holds() && found.closest.unwrap().what == "loss of step 4");
}
