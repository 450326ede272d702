//! `sdclr export`: what it writes is what it read, under the names that were asked for, and PyTorch and torchvision take
//! it. The latter is checked where there is a Python with PyTorch (SDCLR_ORACLE_PYTHON, or `ci/oracle --env`).

mod golden;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::skip::skip;
use ndarray::Array4;
use ndarray_npy::WriteNpyExt;
use sdclr::checkpoint::export::{Export, Format, Names};
use sdclr::checkpoint::{self, StateDict, Training, TrainingMeta, Weights, read_weights, state_sha256};
use sdclr::network::{Head, Network, NetworkSpec};
use sdclr::recipe::{Depth, Stem};
use sdclr::record::EpochRecord;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use zip::{CompressionMethod, ZipArchive};

const PROJECTION: Head = Head::Projection { layers: 2, output_dim: 8 };
const PROJECTION_128: Head = Head::Projection { layers: 2, output_dim: 128 };

fn spec(depth: Depth, width: i64, dual_bn: bool, head: Head) -> NetworkSpec {
    // As published: two layers, and three under dual BN.
    let head = match head {
        Head::Projection { output_dim, .. } if dual_bn => Head::Projection { layers: 3, output_dim },
        other => other,
    };
    NetworkSpec { depth, stem: Stem::Cifar, width, dual_bn, head }
}

/// The state of a network whose every tensor is something particular.
fn state(spec: NetworkSpec) -> StateDict {
    let network = Network::new(spec, 1, Kind::Float, Device::Cpu).unwrap();
    golden::fill(&network);
    network.state()
}

fn sdclr(arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("sdclr")).args(arguments).output().unwrap()
}

/// What the command prints, without the paths of this run.
fn export(folder: &TempDir, from: &str, format: &str, names: &str, to: &str) -> String {
    let path = |name: &str| folder.path().join(name).display().to_string();
    let output = sdclr(&["export", &path(from), "--format", format, "--names", names, "--out", &path(to)]);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    text(output.stdout)
}

fn without_folder(folder: &TempDir, printed: &str) -> String {
    printed.replace(&format!("{}/", folder.path().display()), "")
}

fn read(folder: &TempDir, name: &str) -> Weights {
    read_weights(&folder.path().join(name)).unwrap()
}

fn sha256(state: &StateDict) -> String {
    state_sha256(state).unwrap()
}

fn training(state: StateDict, epoch: usize) -> Training {
    let format = checkpoint::FORMAT;
    let record = |epoch| EpochRecord {
        epoch,
        loss: 1.0,
        lr: 0.1,
        density: None,
        overlap: None,
        validation_accuracy: None,
        images_per_second: 1.0,
        seconds: 1.0,
    };
    let (step, epochs) = (epoch as u64, (1..=epoch).map(record).collect());
    let (recipe_hash, sessions) = (String::new(), Vec::new());
    let meta =
        TrainingMeta { format, recipe_hash, epoch, step, seed: 0, epochs, sessions, seconds: 0.0, under_way: None };
    Training { state, optimizer: StateDict::new(), method: StateDict::new(), meta }
}

/// Published names: every bit, both batch norms and the head, under `module.`; the epoch where it is known.
#[test]
fn published_names_keep_everything() {
    let folder = tempfile::tempdir().unwrap();
    let ours = state(spec(Depth::Resnet18, 4, true, PROJECTION));
    let expected = sha256(&ours.with_prefix("module."));
    checkpoint::write_weights(&folder.path().join("encoder.safetensors"), &ours).unwrap();
    checkpoint::write_training(&folder.path().join("training.safetensors"), &training(ours, 7)).unwrap();
    for (from, epoch) in [("encoder.safetensors", None), ("training.safetensors", Some(7)), ("training.pt", Some(7))] {
        for format in ["torch-pt", "safetensors"] {
            let to = match (from, format) {
                (_, "safetensors") => "out.safetensors",
                ("training.safetensors", _) => "training.pt",
                _ => "out.pt",
            };
            export(&folder, from, format, "published", to);
            let found = read(&folder, to);
            assert_eq!(sha256(&found.state), expected, "{from} as {format}");
            assert_eq!(found.epoch, epoch.filter(|_| format == "torch-pt"), "{from} as {format}");
        }
    }
    let printed = export(&folder, "encoder.safetensors", "torch-pt", "published", "out.pt");
    insta::assert_snapshot!("published", without_folder(&folder, &printed));
}

/// Neither the checkpoint itself nor a device is replaced.
#[test]
fn what_must_not_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    checkpoint::write_weights(Path::new(&path("in.safetensors")), &state(spec(Depth::Resnet18, 4, true, PROJECTION)))
        .unwrap();
    std::os::unix::fs::symlink(path("in.safetensors"), path("link")).unwrap();
    let pipe = Command::new("mkfifo").arg(path("pipe")).status().unwrap();
    assert!(pipe.success());
    std::os::unix::fs::symlink("/dev/null", path("null")).unwrap();
    let before = std::fs::read(path("in.safetensors")).unwrap();
    for (out, reason) in [
        ("in.safetensors", "names the checkpoint itself"),
        ("pipe", "it is a device or a pipe"),
        ("null", "it is a device or a pipe"),
    ] {
        for from in ["in.safetensors", "link"] {
            let arguments =
                ["export", &path(from), "--format", "safetensors", "--names", "torchvision", "--out", &path(out)];
            let output = sdclr(&arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains(reason), "{from} to {out}: {said}");
        }
    }
    assert!(std::fs::read(path("in.safetensors")).unwrap() == before);
    assert!(std::fs::symlink_metadata(path("null")).unwrap().is_symlink());
}

/// torchvision's names: the dense branch alone, nothing that torchvision lacks, a classifier but no projection head.
#[test]
fn torchvision_names_are_the_dense_branch() {
    let folder = tempfile::tempdir().unwrap();
    for (depth, dual_bn, head, count) in [
        (Depth::Resnet18, true, PROJECTION, 120),
        (Depth::Resnet18, false, PROJECTION, 120),
        (Depth::Resnet50, true, PROJECTION, 318),
        (Depth::Resnet18, false, Head::Classifier { classes: 10 }, 122),
    ] {
        let ours = state(spec(depth, 4, dual_bn, head));
        checkpoint::write_weights(&folder.path().join("in.safetensors"), &ours.with_prefix("module.")).unwrap();
        for (format, to) in [("torch-pt", "out.pt"), ("safetensors", "out.safetensors")] {
            export(&folder, "in.safetensors", format, "torchvision", to);
            let found = read(&folder, to).state;
            assert_eq!(found.len(), count);
            let dense = |name: &str| match dual_bn && !name.starts_with("fc.") {
                true => name
                    .replace("downsample.0.", "downsample.conv.")
                    .replace("downsample.1.", "downsample.bn.bn_list.0.")
                    .replace("bn1.", "bn1.bn_list.0.")
                    .replace("bn2.", "bn2.bn_list.0.")
                    .replace("bn3.", "bn3.bn_list.0."),
                false => name.to_owned(),
            };
            for (name, tensor) in found.iter() {
                assert!(!name.contains("normalize") && !name.contains("bn_list"), "{name}");
                assert_eq!(ours.get(&dense(name)).unwrap(), tensor, "{name}");
            }
            let fc: Vec<_> = found.names().filter(|name| name.starts_with("fc.")).collect();
            assert_eq!(fc.len(), if head == PROJECTION { 0 } else { 2 }, "{fc:?}");
        }
    }
}

/// CIFAR's probe checkpoints carry no prefix in the published files, ImageNet's do.
#[test]
fn classifiers_get_their_published_prefix() {
    for (stem, prefix) in [(Stem::Cifar, ""), (Stem::Imagenet, "module.")] {
        let spec = NetworkSpec { stem, ..spec(Depth::Resnet10, 4, false, Head::Classifier { classes: 3 }) };
        let weights = Weights { state: state(spec), epoch: Some(1) };
        let export = Export::new(&weights, Names::Published).unwrap();
        assert!(export.state.names().all(|name| name.starts_with("module.") != prefix.is_empty()));
        assert_eq!(sha256(&export.state), sha256(&weights.state.with_prefix(prefix)));
    }
}

/// The archive as torch.save lays it out: a folder, stored entries, storages aligned to 64 bytes; the same bytes again.
#[test]
fn the_file_is_laid_out_as_torch_save_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.pt");
    let weights = Weights { state: state(spec(Depth::Resnet10, 4, false, PROJECTION)), epoch: Some(3) };
    let export = Export::new(&weights, Names::Published).unwrap();
    export.write(&path, Format::TorchPt).unwrap();
    let bytes = sdclr::fs::read(&path).unwrap();
    let mut archive = ZipArchive::new(std::io::Cursor::new(&bytes)).unwrap();
    let storages = archive.len() - 3;
    assert_eq!(storages, weights.state.len());
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let key = index.saturating_sub(2);
        let expected = match index {
            0 => "archive/data.pkl".to_owned(),
            1 => "archive/byteorder".to_owned(),
            _ if key == storages => "archive/version".to_owned(),
            _ => format!("archive/data/{key}"),
        };
        assert_eq!(entry.name().unwrap(), expected);
        assert_eq!(entry.compression(), CompressionMethod::Stored);
        assert_eq!(entry.data_start().unwrap() % 64, 0, "{expected}");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        match index {
            1 => assert_eq!(content, b"little"),
            _ if key == storages => assert_eq!(content, b"3\n"),
            _ => {}
        }
    }
    export.write(&path, Format::TorchPt).unwrap();
    assert_eq!(sdclr::fs::read(&path).unwrap(), bytes);
}

/// The pickle, opcode by opcode, of a state dict that fits here: a tensor of two extents, and a 0-d integer.
#[test]
fn the_pickle_holds_what_weights_only_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.pt");
    let weights = Weights { state: state(spec(Depth::Resnet10, 4, false, PROJECTION)), epoch: Some(300) };
    let mut export = Export::new(&weights, Names::Published).unwrap();
    export.state = [("w", Tensor::ones([2, 3], (Kind::Half, Device::Cpu))), ("n", Tensor::from(5_i64))]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into_iter()
        .collect();
    export.write(&path, Format::TorchPt).unwrap();
    let mut archive = ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
    let mut pickle = Vec::new();
    archive.by_name("archive/data.pkl").unwrap().read_to_end(&mut pickle).unwrap();
    let mut expected = b"\x80\x02}(X\x05\0\0\0epochJ\x2c\x01\0\0X\x0a\0\0\0state_dict".to_vec();
    expected.extend(b"ccollections\nOrderedDict\n)R(");
    expected.extend(b"X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nHalfStorage\n");
    expected
        .extend(b"X\x01\0\0\x000X\x03\0\0\0cpuK\x06tQK\0(K\x02K\x03t(K\x03K\x01t\x89ccollections\nOrderedDict\n)RtR");
    expected.extend(b"X\x01\0\0\0nctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nLongStorage\n");
    expected.extend(b"X\x01\0\0\x001X\x03\0\0\0cpuK\x01tQK\0(t(t\x89ccollections\nOrderedDict\n)RtRuu.");
    assert_eq!(pickle, expected, "{}", String::from_utf8_lossy(&pickle));
}

/// Every type that both formats know comes back bit for bit, strided and empty tensors too; another is named.
#[test]
fn every_type_of_element_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.pt");
    let weights = Weights { state: state(spec(Depth::Resnet10, 4, false, PROJECTION)), epoch: None };
    let mut export = Export::new(&weights, Names::Torchvision).unwrap();
    let kinds =
        [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Int, Kind::Int16, Kind::Int8];
    let values = Tensor::from_slice(&[-2.0, 0.0, 1.0, 100.0, 7.0, 9.0]).view([2, 3]);
    export.state = kinds.iter().map(|kind| (format!("{kind:?}"), values.to_kind(*kind).transpose(0, 1))).collect();
    for (name, tensor) in [
        ("bool", values.gt(0.0)),
        ("bytes", values.abs().to_kind(Kind::Uint8)),
        ("empty", Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))),
        ("gr\u{fc}n", Tensor::from(1.5_f32)),
    ] {
        export.state.insert(name.to_owned(), tensor);
    }
    export.write(&path, Format::TorchPt).unwrap();
    assert_eq!(sha256(&read(&folder, "out.pt").state), sha256(&export.state));

    let before = sdclr::fs::read(&path).unwrap();
    export.state.insert("c".into(), Tensor::zeros([1], (Kind::ComplexFloat, Device::Cpu)));
    let error = export.write(&path, Format::TorchPt).unwrap_err().to_string();
    assert!(error.contains("tensor 'c' has the type ComplexFloat"), "{error}");
    assert_eq!(sdclr::fs::read(&path).unwrap(), before);
}

/// What is no ResNet is named, and nothing is written.
#[test]
fn what_is_no_encoder_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("out.pt");
    let mask = golden::path("checkpoint/mask_3.pt").display().to_string();
    for names in ["published", "torchvision"] {
        let to = out.display().to_string();
        let output = sdclr(&["export", &mask, "--format", "torch-pt", "--names", names, "--out", &to]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("the checkpoint holds no ResNet under a known prefix: its first names are"), "{said}");
        assert!(!out.exists());
    }
}

#[test]
fn the_python_lines_say_what_to_change() {
    for (name, depth, stem, width, head) in [
        ("cifar", Depth::Resnet18, Stem::Cifar, 64, PROJECTION),
        ("imagenet", Depth::Resnet50, Stem::Imagenet, 64, PROJECTION),
        ("probe", Depth::Resnet18, Stem::Cifar, 64, Head::Classifier { classes: 100 }),
        ("narrow", Depth::Resnet10, Stem::Cifar, 8, Head::Classifier { classes: 10 }),
    ] {
        let spec = NetworkSpec { stem, ..spec(depth, width, false, head) };
        let network = Network::new(spec, 1, Kind::Float, Device::Cpu).unwrap();
        let export = Export::new(&Weights { state: network.state(), epoch: None }, Names::Torchvision).unwrap();
        let lines = export.python(Path::new("encoder.pt"), Format::TorchPt);
        insta::assert_snapshot!(format!("python_{name}"), lines);
    }
}

/// A Python with PyTorch, or nothing and a word about it.
fn python() -> Option<PathBuf> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let python = std::env::var_os("SDCLR_ORACLE_PYTHON").map_or(root.join(".oracle/bin/python"), PathBuf::from);
    let found = python.exists().then_some(python);
    if found.is_none() {
        skip("oracle", "there is no PyTorch (ci/oracle --env makes one)");
    }
    found
}

/// Writes images, and the features that `sdclr features` finds with the checkpoint `from`.
fn features(folder: &TempDir, from: &str, network: &str) {
    let path = |name: &str| folder.path().join(name).display().to_string();
    let pixels: Vec<u8> = (0..2 * 3 * 48 * 48_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 21) as u8).collect();
    let images = Array4::from_shape_vec((2, 3, 48, 48), pixels).unwrap();
    let file = std::fs::File::options().create(true).truncate(true).write(true).open(path("images.npy")).unwrap();
    images.write_npy(file).unwrap();
    let output = sdclr(&[
        "features",
        &path(from),
        "--network",
        network,
        "--layer",
        "backbone",
        "--images",
        &path("images.npy"),
        "--out",
        &path("features.npy"),
        "--device",
        "cpu",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// PyTorch loads the files (weights_only), torchvision takes them by the lines printed, and both find our features, but
/// for the order of float32 sums.
#[test]
fn pytorch_and_torchvision_accept_the_files() {
    let Some(python) = python() else { return };
    let mut folders = Vec::new();
    let mut checks = Vec::new();
    for (network, depth, stem, dual_bn, classes) in [
        ("resnet18", Depth::Resnet18, Stem::Cifar, true, None),
        ("resnet50", Depth::Resnet50, Stem::Imagenet, true, None),
        ("resnet18", Depth::Resnet18, Stem::Imagenet, false, Some(100)),
        ("resnet10", Depth::Resnet10, Stem::Cifar, false, Some(10)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let head = classes.map_or(PROJECTION_128, |classes| Head::Classifier { classes });
        let spec = NetworkSpec { stem, ..spec(depth, 64, dual_bn, head) };
        checkpoint::write_training(&folder.path().join("in.safetensors"), &training(state(spec), 9)).unwrap();
        features(&folder, "in.safetensors", network);
        let path = |name: &str| folder.path().join(name);
        let [images, features] = ["images.npy", "features.npy"].map(path);
        for (format, end) in [("torch-pt", "pt"), ("safetensors", "safetensors")] {
            let printed = export(&folder, "in.safetensors", format, "torchvision", &format!("torchvision.{end}"));
            let (_, code) = printed.split_once("in Python:\n").unwrap();
            checks.push(json!({ "code": code, "images": images, "features": features }));
            let file = format!("published.{end}");
            export(&folder, "in.safetensors", format, "published", &file);
            let prefix = classes.is_none() || stem == Stem::Imagenet;
            checks.push(json!({
                "file": path(&file), "epoch": 9, "network": network, "stem": stem, "dual_bn": dual_bn,
                "classes": classes, "prefix": prefix, "images": images, "features": features,
            }));
        }
        folders.push(folder);
    }
    let list = folders[0].path().join("checks.json");
    sdclr::fs::write(&list, serde_json::to_string(&checks).unwrap().as_bytes()).unwrap();
    let program = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("reference/torch/export_check.py");
    let output = Command::new(python).args([program, list]).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.lines().count(), checks.len());
    for line in lines.lines() {
        let said: serde_json::Value = serde_json::from_str(line).unwrap();
        println!("{said}");
        assert!(said["relative_difference"].as_f64().unwrap() < 1e-5, "{said}");
        assert!(said["largest"].as_f64().unwrap() > 1e-3, "{said}");
    }
}
