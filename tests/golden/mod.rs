//! What the parity tests share: the fixtures that reference/torch/goldens.py writes, the numbers that it and we make
//! alike by formula (reference/torch/formula.py), and comparisons whose scale is the tensor's, not the element's.
#![allow(dead_code)] // Each test file uses a part.

#[path = "../skip/mod.rs"]
pub mod skip;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use sdclr::network::{Network, StateDict};
use sdclr::recipe::Protocol;
use sdclr::record::evidence::{EvidenceRecord, Kind as Evidence};
use sdclr::record::{Environment, FORMAT, JobHeader};
use sdclr::suite::environment;
use skip::skip;
use tch::{Device, Kind, Tensor};

/// Where the tests compute: `SDCLR_TEST_DEVICE` (`cpu`, `cuda:N`), by default the CPU. A name that is no device, or a
/// device that is not there, fails the test: nothing falls back to the CPU in silence.
pub fn device() -> Device {
    let name = device_name();
    environment::device(Some(&name)).unwrap_or_else(|error| panic!("SDCLR_TEST_DEVICE={name}: {error}"))
}

/// The name of [`device`], for a command line.
pub fn device_name() -> String {
    std::env::var("SDCLR_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

/// The program: where nextest has unpacked it, or cargo has built it.
pub fn program() -> PathBuf {
    std::env::var_os("NEXTEST_BIN_EXE_sdclr")
        .map_or_else(|| assert_cmd::cargo::cargo_bin!("sdclr").into(), PathBuf::from)
}

/// What float64 leaves of two ways to round the same sum.
pub const FLOAT64: f64 = 1e-9;

/// The path of a file or folder under `fixtures/golden`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("fixtures/golden").join(name)
}

pub fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(path(name)).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub fn tensors(name: &str) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(path(name)).unwrap().into_iter().collect()
}

fn bits(name: &str, count: i64) -> impl Iterator<Item = u64> {
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    (1..=count as u64).map(move |i| {
        let x = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    })
}

/// float64 in `[-1, 1)`, on the test's device.
pub fn uniform(name: &str, shape: &[i64]) -> Tensor {
    formula(name, shape).to_device(device())
}

/// float64 in `[-1, 1)`, on the CPU.
fn formula(name: &str, shape: &[i64]) -> Tensor {
    let unit = 2.0_f64.powi(-52);
    let values: Vec<f64> = bits(name, shape.iter().product()).map(|x| (x >> 11) as f64 * unit - 1.0).collect();
    Tensor::from_slice(&values).view(shape)
}

/// uint8, on the test's device.
pub fn pixels(name: &str, shape: &[i64]) -> Tensor {
    let values: Vec<u8> = bits(name, shape.iter().product()).map(|x| (x >> 56) as u8).collect();
    Tensor::from_slice(&values).view(shape).to_device(device())
}

/// float64 pixels in `[0, 1]`, on the test's device.
pub fn images(name: &str, shape: &[i64]) -> Tensor {
    pixels(name, shape).to_kind(Kind::Double) / 255.0
}

fn state_value(name: &str, shape: &[i64]) -> Tensor {
    let u = formula(name, shape);
    match shape {
        [output, _, height, width] => u * (6.0 / (output * height * width) as f64).sqrt(),
        [_, input] => u / (*input as f64).sqrt(),
        _ if name.ends_with("running_var") => u * 0.5 + 1.0,
        _ if name.ends_with(".weight") => u * 0.2 + 1.0,
        _ => u * 0.1,
    }
}

/// Gives the network the goldens' weights and running statistics; counters are zero already.
pub fn fill(network: &Network) {
    let value = |(name, tensor): (&str, &Tensor)| {
        let kept = name.ends_with("num_batches_tracked") || name.starts_with("normalize.");
        let value = if kept { tensor.copy() } else { state_value(name, &tensor.size()) };
        (name.to_owned(), value)
    };
    let state: StateDict = network.state().iter().map(value).collect();
    network.load(&state).unwrap();
}

/// Parameters and running statistics: what steps change.
pub fn float_state(network: &Network) -> Vec<(String, Tensor)> {
    let floats = |(name, tensor): &(String, Tensor)| tensor.kind() == Kind::Double && !name.starts_with("normalize.");
    network.state().into_iter().filter(floats).collect()
}

/// sha256 over the lines `name [shape]`, sorted by name.
pub fn names_sha256(state: &StateDict) -> String {
    let mut lines: Vec<String> = state.iter().map(|(name, tensor)| format!("{name} {:?}\n", tensor.size())).collect();
    // By name: a space sorts before any character that continues one.
    lines.sort();
    sdclr::recipe::hash_bytes(lines.concat().as_bytes())
}

/// With `SDCLR_EVIDENCE=DIR`: one file a test there, with the comparison that comes closest to what is allowed. Each comparison:
/// what, the difference, the allowed one.
pub fn evidence(kind: Evidence, compared: &str, comparisons: &[(&str, f64, f64)]) {
    static RECORDS: Mutex<BTreeMap<String, EvidenceRecord>> = Mutex::new(BTreeMap::new());
    let Some(folder) = std::env::var_os("SDCLR_EVIDENCE") else { return };
    let name = skip::test_name();
    let mut records = RECORDS.lock().unwrap();
    let record = records
        .entry(name.clone())
        .or_insert_with(|| EvidenceRecord::new(kind, &name, compared, environment::describe(device()).unwrap()));
    comparisons.iter().for_each(|(what, difference, allowed)| record.add(what, *difference, *allowed));
    record.write(&PathBuf::from(folder)).unwrap();
}

/// Evidence that a step, or a part of one, is PyTorch's.
fn near_pytorch(comparisons: &[(&str, f64, f64)]) {
    evidence(Evidence::StepTolerance, "this program with PyTorch 2.11.0 (fixtures/golden)", comparisons);
}

pub fn assert_near(what: &str, found: f64, expected: f64, relative: f64) {
    let scale = expected.abs().max(found.abs());
    let difference = if found == expected { 0.0 } else { (found - expected).abs() / scale };
    near_pytorch(&[(what, difference, relative)]);
    assert!((found - expected).abs() <= relative * scale, "{what}: {found:e}, PyTorch has {expected:e}");
}

/// The difference's norm is judged by the expected tensor's.
pub fn assert_tensors_near(what: &str, found: &Tensor, expected: &Tensor, relative: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let [found, expected] = [found, expected].map(|tensor| tensor.to_kind(Kind::Double).to_device(Device::Cpu));
    let apart = (&found - &expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
    near_pytorch(&[(what, apart, relative)]);
    assert!(apart <= relative, "{what}: differs from PyTorch's by {apart:e} of its norm");
}

/// Compares the digests (norm, dot product with a formula vector, first value) of `found` with the rows of
/// `expected`, which stand in the order of the names. Each is judged by the tensor's own norm, but not finer than a
/// thousandth of the largest: a bias in front of a batch norm has no gradient but rounding.
pub fn assert_digests(what: &str, mut found: Vec<(String, Tensor)>, expected: &Tensor, relative: f64) {
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    let rows = Vec::<Vec<f64>>::try_from(expected).unwrap();
    assert_eq!(found.len(), rows.len(), "{what}: number of tensors");
    let largest = rows.iter().map(|row| row[0]).fold(0.0, f64::max);
    let (mut differing, mut compared) = (Vec::new(), Vec::new());
    for ((name, tensor), row) in found.iter().zip(rows) {
        let flat = tensor.detach().to_kind(Kind::Double).to_device(Device::Cpu).contiguous().view(-1);
        let direction = formula(&format!("digest.{name}"), &flat.size());
        let norm = flat.norm().double_value(&[]);
        let dot = flat.dot(&direction).double_value(&[]);
        let scale = row[0].max(1e-3 * largest);
        let apart = [
            (norm - row[0]).abs() / scale,
            (dot - row[1]).abs() / (scale * direction.norm().double_value(&[])),
            (flat.double_value(&[0]) - row[2]).abs() / scale,
        ];
        compared.extend(apart.map(|apart| (format!("{what}: {name}"), apart)));
        if !apart.iter().all(|apart| *apart <= relative) {
            differing.push(format!("  {name}: norm, dot, first value off by {apart:?}"));
        }
    }
    near_pytorch(&compared.iter().map(|(what, apart)| (what.as_str(), *apart, relative)).collect::<Vec<_>>());
    let count = differing.len();
    assert!(differing.is_empty(), "{what}: {count} tensors differ from PyTorch's\n{}", differing.join("\n"));
}

/// Compiles a file of `harness/native` for GPUs that need not be there, by the NVRTC beside PyTorch, which must not say a word.
pub fn compile_for_gpus(file: &str, options: &[&str]) {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let python = std::env::var_os("SDCLR_ORACLE_PYTHON").map_or(root.join(".oracle/bin/python"), PathBuf::from);
    if !python.exists() {
        skip("oracle", "there is no PyTorch with NVRTC (ci/oracle --env makes one)");
        return;
    }
    for architecture in ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"] {
        let output = Command::new(&python)
            .arg(root.join("reference/torch/compile_kernels.py"))
            .arg(root.join("harness/native").join(file))
            .args([&format!("--gpu-architecture={architecture}"), "--device-as-default-execution-space"])
            .args(options)
            .output()
            .unwrap();
        if output.status.code() == Some(3) {
            skip("oracle", String::from_utf8_lossy(&output.stderr).trim());
            return;
        }
        let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && log.trim().is_empty(), "{architecture}: {log}");
    }
}

/// An environment that says nothing.
pub fn environment() -> Environment {
    Environment {
        device: String::new(),
        threads: 1,
        libtorch: String::new(),
        deterministic: false,
        eager: false,
        git_commit: None,
        sdclr: String::new(),
    }
}

/// The head of the record of a full-shot probe that is part of no suite.
pub fn probe_header() -> JobHeader {
    JobHeader {
        format: FORMAT,
        suite: "golden".to_owned(),
        job: "random-split1/full".parse().unwrap(),
        encoder: "random".to_owned(),
        label: "random encoder".to_owned(),
        method: "random".to_owned(),
        pretrain_split: None,
        split: 1,
        protocol: Some(Protocol::Full),
        recipe: serde_json::Value::Null,
        recipe_hash: String::new(),
        data_sha256: String::new(),
        splits_sha256: Default::default(),
        seed: 1,
        smoke: false,
        unofficial: Vec::new(),
        stamp: None,
        limit_images: None,
        limit_epochs: None,
        checkpoint: None,
        checkpoint_sha256: None,
    }
}
