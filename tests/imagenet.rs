//! ImageNet on disk, in miniature: the published layout and list names, pre-trained and probed through the command line, all five
//! published rows; and one clear error for each way in which lists or files can be wrong. The images are small files of ImageNet
//! where `SDCLR_DATA` has them, elsewhere the made-up ones of the goldens.

mod golden;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sdclr::checkpoint;
use sdclr::dataset::{self, Dataset};
use sdclr::native::group::Group;
use sdclr::network::{Network, NetworkSpec};
use sdclr::pretrain::loader::Loader;
use sdclr::pretrain::order::global_order;
use sdclr::recipe::{DatasetName, PretrainSplit, Recipe, hash_json};
use sdclr::split::{self, ListName};
use serde_json::Value;
use tch::{Device, Kind};
use tempfile::TempDir;

const CLASSES: usize = 100;
const LISTS: &str = "split/imagenet-100";
/// A network and views that a test can afford.
const SMALL: &[&str] = &[
    "width=2",
    "probe.full.resize=40",
    "probe.full.size=32",
    "probe.full.lr=0.01",
    "probe.few.resize=40",
    "probe.few.size=32",
    "probe.few.lr=0.01",
];

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"));
    command.args(arguments).env_remove("SDCLR_DATA").env("COLUMNS", "110");
    command
}

fn sdclr(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

/// Image files to choose from: small ones, or those of ImageNet's own size where they are.
fn sources(size: &str) -> Vec<Vec<u8>> {
    let sample = std::env::var_os("SDCLR_DATA").map(|data| PathBuf::from(data).join("imagenet-sample").join(size));
    if let Some(list) = sample.as_ref().and_then(|folder| std::fs::read_to_string(folder.join("train.txt")).ok()) {
        let path = |line: &str| sample.as_ref().unwrap().join(line.rsplit_once(' ').unwrap().0);
        return list.lines().map(|line| std::fs::read(path(line)).unwrap()).collect();
    }
    let pack = std::fs::read(golden::path("imagenet/images.bin")).unwrap();
    let run: Value = golden::json("imagenet/run.json");
    let files = ["train", "validation", "test"].map(|part| run[part]["files"].as_array().unwrap().clone());
    let place = |file: &Value, key: &str| file[key].as_u64().unwrap() as usize;
    let bytes = |file: &Value| pack[place(file, "offset")..][..place(file, "length")].to_vec();
    files.concat().iter().map(bytes).collect()
}

fn write(path: &Path, bytes: &[u8]) {
    sdclr::fs::write(path, bytes).unwrap();
}

/// `DIR/imagenet` with one image a class and list, and every list of ImageNet-100. The long-tailed list names images
/// that are not there: only its counts are needed.
fn miniature() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let sources = sources("tiny");
    let lists = [
        ("ImageNet_100_train.txt", "train", "t"),
        ("imageNet_100_sub_balance_train_0.01.txt", "train", "t"),
        ("ImageNet_100_val.txt", "train", "v"),
        ("ImageNet_100_test.txt", "val", "ILSVRC2012_val_"),
    ];
    for (at, (list, part, prefix)) in lists.into_iter().enumerate() {
        let mut lines = String::new();
        for class in 0..CLASSES {
            let path = format!("{part}/n{class:08}/{prefix}{class}.JPEG");
            write(&folder.path().join("imagenet").join(&path), &sources[(class + at * 7) % sources.len()]);
            lines += &format!("{path} {class}\n");
        }
        write(&folder.path().join(LISTS).join(list), lines.as_bytes());
    }
    // One class of Many, one of Medium, the others Few.
    let count = |class| [101, 20].get(class).copied().unwrap_or(3);
    let line = |class: usize, i: usize| format!("train/n{class:08}/x{class}_{i}.JPEG {class}\n");
    let lines: String = (0..CLASSES).flat_map(|class| (0..count(class)).map(move |i| line(class, i))).collect();
    for list in ["imageNet_100_LT_train.txt", "imageNet_100_BL_train.txt"] {
        write(&folder.path().join(LISTS).join(list), lines.as_bytes());
    }
    folder
}

fn encoder(folder: &Path) -> String {
    let overrides: Vec<String> = SMALL.iter().map(|text| (*text).to_owned()).collect();
    let recipe = Recipe::resolve("imagenet100-lt/sdclr", &overrides).unwrap();
    let network = Network::new(NetworkSpec::of_recipe(&recipe), 3, Kind::Float, Device::Cpu).unwrap();
    let path = folder.join("encoder.safetensors");
    checkpoint::write_weights(&path, &network.state()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn probe(folder: &Path, more: &[&str]) -> Output {
    let (encoder, data) = (encoder(folder), folder.to_str().unwrap());
    let fixed = ["probe", &encoder, "--recipe", "imagenet100-lt/sdclr", "--data", data, "--device", "cpu"];
    sdclr(&[&fixed, more, &["--set"], SMALL].concat())
}

fn probed(folder: &Path, more: &[&str]) -> Value {
    let json = folder.join("probe.json");
    let output = probe(folder, &[more, &["--json", json.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

#[test]
fn both_probes_run_on_files() {
    let folder = miniature();
    let folder = folder.path();
    let full = probed(folder, &["--split", "1", "--protocol", "full", "--limit-epochs", "3"]);
    let few = probed(folder, &["--split", "1", "--protocol", "few", "--limit-images", "100", "--limit-epochs", "2"]);
    for (result, train) in [(&full, "ImageNet_100_train.txt"), (&few, "imageNet_100_sub_balance_train_0.01.txt")] {
        let per_class: Vec<f64> = serde_json::from_value(result["per_class"].clone()).unwrap();
        let counts: Vec<u64> = serde_json::from_value(result["class_counts"].clone()).unwrap();
        assert_eq!(counts, [vec![101, 20], vec![3; 98]].concat());
        assert_eq!((result["many"].as_f64(), result["medium"].as_f64()), (Some(per_class[0]), Some(per_class[1])));
        let few_classes = per_class[2..].iter().sum::<f64>() / 98.0;
        assert!((result["few"].as_f64().unwrap() - few_classes).abs() < 1e-9);
        // Lists stand for the data, which are never read whole.
        let splits: BTreeMap<String, String> = serde_json::from_value(result["splits_sha256"].clone()).unwrap();
        let names: Vec<&str> = splits.keys().map(|name| name.strip_prefix("imagenet-100/").unwrap()).collect();
        let mut expected = vec!["ImageNet_100_val.txt", "ImageNet_100_test.txt", "imageNet_100_LT_train.txt", train];
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(result["data_sha256"], hash_json(&serde_json::to_value(&splits).unwrap()));
        // Top-5 of a hundred classes: a guess has 5 %, and the loss is that of a sound classifier.
        let best = result["best_validation_accuracy"].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&best));
        assert!(result["epochs"][0]["loss"].as_f64().unwrap().is_finite());
    }
    assert_eq!(full["epochs"][0]["validation_accuracy"], Value::Null, "validated every second epoch");
    assert_eq!(few["smoke"], true);

    // The same again, whatever the other probe's recipe is, and the images in DIR itself.
    std::fs::create_dir(folder.join("moved")).unwrap();
    for name in ["train", "val"] {
        std::os::unix::fs::symlink(folder.join("imagenet").join(name), folder.join("moved").join(name)).unwrap();
    }
    std::os::unix::fs::symlink(folder.join("split"), folder.join("moved/split")).unwrap();
    let same = ["--split", "1", "--protocol", "full", "--limit-epochs", "3", "--set", "probe.few.epochs=7"];
    let again = probed(&folder.join("moved"), &same);
    for key in ["recipe_hash", "state_sha256", "per_class", "best_epoch"] {
        assert_eq!(again[key], full[key], "{key}");
    }

    let doctor = sdclr(&["doctor", "--data", folder.to_str().unwrap()]);
    let said = String::from_utf8(doctor.stdout).unwrap();
    let lines: Vec<&str> = said.lines().skip_while(|line| !line.contains("imagenet100:")).take(7).collect();
    let said = lines.join("\n").replace(&folder.display().to_string(), "[DIR]");
    insta::assert_snapshot!("imagenet_doctor", said);
}

/// To evaluate a model the test list is enough: that of all training images cannot be had.
#[test]
fn an_evaluation_reads_the_test_list_alone() {
    let folder = miniature();
    let folder = folder.path();
    for list in ["ImageNet_100_train.txt", "imageNet_100_sub_balance_train_0.01.txt", "ImageNet_100_val.txt"] {
        sdclr::fs::remove(&folder.join(LISTS).join(list)).unwrap();
    }
    let overrides: Vec<String> = SMALL.iter().map(|text| (*text).to_owned()).collect();
    let recipe = Recipe::resolve("imagenet100-lt/simclr", &overrides).unwrap();
    let spec = NetworkSpec::of_recipe(&recipe).probe(CLASSES as i64);
    let network = Network::new(spec, 3, Kind::Float, Device::Cpu).unwrap();
    let (model, json) = (folder.join("model.safetensors"), folder.join("probe.json"));
    checkpoint::write_weights(&model, &network.state()).unwrap();
    let evaluate = |more: &[&str]| {
        let [model, data, json] = [&model, folder, &json].map(|path| path.to_str().unwrap());
        let fixed = ["probe", model, "--recipe", "imagenet100-lt/simclr", "--data", data, "--device", "cpu"];
        let which = ["--split", "1", "--test-only", "--protocol", "few", "--json", json, "--set"];
        let output = sdclr(&[&fixed, which.as_slice(), SMALL, more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&std::fs::read(json).unwrap()).unwrap()
    };
    let found = evaluate(&[]);
    let read: Vec<&String> = found["splits_sha256"].as_object().unwrap().keys().collect();
    assert_eq!(read, ["imagenet-100/ImageNet_100_test.txt", "imagenet-100/imageNet_100_LT_train.txt"]);
    // Training keys change nothing, those of the views do.
    assert_eq!(evaluate(&["probe.few.lr=1"])["recipe_hash"], found["recipe_hash"]);
    assert_ne!(evaluate(&["probe.few.size=24"])["recipe_hash"], found["recipe_hash"]);
}

/// What a probe says of `folder`, without the paths of this run.
fn complaint(folder: &Path, more: &[&str]) -> String {
    let output = probe(folder, more);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    errors_of(&said, &folder.display().to_string())
}

/// Without the paths of this run, and the warnings that these lists are not the published ones.
fn errors_of(said: &str, folder: &str) -> String {
    let lines = said.lines().filter(|line| !line.ends_with("is not the published list; every table will say so"));
    lines.map(|line| line.replace(folder, "[DIR]") + "\n").collect()
}

const FEW: &[&str] = &["--split", "1", "--protocol", "few", "--limit-epochs", "1"];

#[test]
fn hostile_lists_are_refused() {
    let folder = miniature();
    let folder = folder.path();
    let list = folder.join(LISTS).join("imageNet_100_sub_balance_train_0.01.txt");
    let good = std::fs::read_to_string(&list).unwrap();
    let long = format!("train/{}/x.JPEG", "n".repeat(300));
    let hostile: Vec<Vec<u8>> = [
        "",
        "train/a/b.JPEG\n",
        "train/a/b.JPEG \n",
        " 3\n",
        "train/a/b.JPEG -1\n",
        "train/a/b.JPEG +1\n",
        "train/a/b.JPEG 100\n",
        "train/a/b.JPEG 99999999999999999999\n",
        "../outside.JPEG 1\n",
        "train/../../outside.JPEG 1\n",
        "/etc/passwd 1\n",
        "train//b.JPEG 1\n",
        "train/a/..\\b.JPEG 1\n",
        "train/a/\x1b[31mred.JPEG 1\n",
        "train/a/b.JPEG 1\n\ntrain/a/c.JPEG 1\n",
        "train/a/b.JPEG 1\ntrain/a/c.JPEG 2\ntrain/a/b.JPEG 1\n",
        &long,
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .chain([b"train/a/\xff.JPEG 1\n".to_vec()])
    .collect();
    let dataset = Dataset::load(DatasetName::Imagenet100, Some(folder), Device::Cpu).unwrap();
    let mut said = String::new();
    for text in hostile {
        write(&list, &text);
        let error = split::read(&dataset, Some(folder), ListName::FewShot(1)).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1);
        said += &format!("{}\n", error.replace(&folder.display().to_string(), "[DIR]"));
    }
    // What is allowed: lines that end as on Windows, a last line without an end, a byte order mark, UTF-16, other blanks.
    write(&list, good.trim_end().replace('\n', "\r\n").as_bytes());
    probed(folder, FEW);
    let read = |bytes: &[u8]| {
        write(&list, bytes);
        let list = split::read(&dataset, Some(folder), ListName::FewShot(1)).unwrap();
        let split::Images::Files(files) = &list.images else { panic!("no files") };
        (0..CLASSES as i64).for_each(|index| _ = files.read(index).unwrap());
        list.labels.clone()
    };
    let labels = read(good.as_bytes());
    assert_eq!(read(format!("\u{feff}{good}").as_bytes()), labels);
    assert_eq!(read(good.replace(' ', "  ").as_bytes()), labels);
    assert_eq!(read(good.replace(' ', "\t").as_bytes()), labels);
    let utf16: Vec<u8> = format!("\u{feff}{good}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(read(&utf16), labels);
    sdclr::fs::remove(&list).unwrap();
    said += &complaint(folder, FEW);
    said += &complaint(folder, &["--split", "2", "--protocol", "few"]);
    insta::assert_snapshot!("imagenet_lists", said);
}

#[test]
fn missing_and_damaged_images_are_named() {
    let folder = miniature();
    let folder = folder.path();
    let image = folder.join("imagenet/train/n00000007/t7.JPEG");
    let whole = std::fs::read(&image).unwrap();
    let mut said = String::new();
    for damaged in [&whole[..whole.len() / 2], &whole[..40], b"<html>", b""] {
        write(&image, damaged);
        said += &complaint(folder, FEW);
    }
    sdclr::fs::remove(&image).unwrap();
    said += &complaint(folder, FEW);
    // Of the test list: named before an epoch is trained.
    write(&image, &whole);
    sdclr::fs::remove(&folder.join("imagenet/val/n00000099/ILSVRC2012_val_99.JPEG")).unwrap();
    said += &complaint(folder, FEW);
    std::fs::remove_dir_all(folder.join("imagenet")).unwrap();
    said += &complaint(folder, FEW);
    insta::assert_snapshot!("imagenet_images", said);
}

/// `val/` as its archive unpacks; and folders as Kaggle has them, which are read as they are.
#[test]
fn unsorted_and_nested_folders_are_told() {
    let folder = miniature();
    let folder = folder.path();
    let images = folder.join("imagenet");
    let sorted = images.join("val/n00000000/ILSVRC2012_val_0.JPEG");
    let flat = images.join("val/ILSVRC2012_val_0.JPEG");
    write(&flat, &std::fs::read(&sorted).unwrap());
    sdclr::fs::remove(&sorted).unwrap();
    let dataset = Dataset::load(DatasetName::Imagenet100, Some(folder), Device::Cpu).unwrap();
    let list = split::read(&dataset, Some(folder), ListName::Test).unwrap();
    let split::Images::Files(files) = &list.images else { panic!("no files") };
    let error = files.read(0).unwrap_err().to_string();
    let paths = (flat.display(), sorted.display());
    let expected =
        format!("line 1: the image lies at {}, expected {}: the folder is not sorted by class", paths.0, paths.1);
    assert!(error.contains(&expected), "{error}");
    let nested = folder.join("other/ILSVRC/Data/CLS-LOC");
    sdclr::fs::rename(&images, &nested).unwrap();
    let dataset = Dataset::load(DatasetName::Imagenet100, Some(&folder.join("other")), Device::Cpu).unwrap();
    let dataset::Content::Folder(root) = &dataset.content else { panic!("no folder") };
    assert_eq!(*root, nested);
}

#[test]
fn plans_that_cannot_be_are_refused() {
    let folder = miniature();
    let folder = folder.path().to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = sdclr(arguments);
        assert_eq!(output.status.code(), Some(1));
        errors_of(&String::from_utf8(output.stderr).unwrap(), folder)
    };
    let out = format!("{folder}/out");
    let views = ["--split", "1", "--indices", "0", "--epoch", "1", "--out", &out, "--data", folder];
    let errors = [
        run(&["repro", "imagenet-lt-exp", "--out", &out]),
        run(&["repro", "imagenet-lt-exp", "--methods", "sdclr", "--dry-run"]),
        run(&["repro", "imagenet100-lt", "--splits", "2", "--dry-run"]),
        run(&["repro", "imagenet100-lt", "--dry-run", "--set", "probe.full.train_transform=pad_crop"]),
        run(&["repro", "cifar10-lt", "--dry-run", "--set", "probe.few.test_transform=resize_centre_crop"]),
        run(&["repro", "imagenet100-lt", "--dry-run", "--set", "probe.full.size=300"]),
        run(&[&["views", "--recipe", "imagenet100-lt/simclr"][..], &views].concat()),
    ];
    insta::assert_snapshot!("imagenet_pretraining", errors.concat());
    let plan = String::from_utf8(sdclr(&["repro", "imagenet-lt-exp", "--dry-run", "--device", "cpu"]).stdout).unwrap();
    insta::with_settings!({ filters => PLAN_FILTERS.to_vec() }, {
        insta::assert_snapshot!("imagenet_plan", plan);
    });
}

/// What differs from machine to machine in what a plan costs.
const PLAN_FILTERS: [(&str, &str); 3] = [
    (r"[0-9.]+ [KMGTP]iB free", "[FREE] free"),
    (r"at most [0-9.]+ .iB", "at most [JOBS]"),
    (r"at least .*, at its [0-9.]+ TFLOP/s for [a-z0-9]+", "at least [TIME], at its [RATE]"),
];

/// The published lists of a long tail and of a balanced one, whose first `images` lines name files that are there.
fn with_pretraining_lists(folder: &Path, lists: [&str; 2], images: usize) {
    let sources = sources("fullsize");
    for (i, source) in (0..images).zip(sources.iter().cycle()) {
        write(&folder.join("imagenet").join(pretraining_path(i)), source);
    }
    let present: String = (0..images).map(|i| format!("{} {}\n", pretraining_path(i), i % 3)).collect();
    let known = std::fs::read_to_string(folder.join(LISTS).join("imageNet_100_LT_train.txt")).unwrap();
    for list in lists {
        write(&folder.join("split").join(list), (present.clone() + &known).as_bytes());
    }
}

fn pretraining_path(i: usize) -> String {
    format!("train/n{:08}/own_{i}.JPEG", i % 3)
}

const TAIL_OF_100: [&str; 2] = ["imagenet-100/imageNet_100_LT_train.txt", "imagenet-100/imageNet_100_BL_train.txt"];

/// Runs a suite on the images of `folder`, scaled down, to `out`, and gives the records of its jobs by their folders.
fn repro(folder: &Path, suite: &str, more: &[&str]) -> BTreeMap<String, Value> {
    let out = folder.join(format!("runs-{suite}"));
    let fixed = ["repro", suite, "--data", folder.to_str().unwrap(), "--device", "cpu", "--out", out.to_str().unwrap()];
    for _ in 0..2 {
        // The second time reads all of it back.
        let output = sdclr(&[&fixed, more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("SimCLR") && report.contains("ImageNet"), "{report}");
    let mut records = BTreeMap::new();
    for encoder in std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()) {
        for part in ["", "full", "few"] {
            let Ok(bytes) = std::fs::read(encoder.join(part).join("result.json")) else { continue };
            let name = encoder.join(part).strip_prefix(&out).unwrap().display().to_string();
            records.insert(name.trim_end_matches('/').to_owned(), serde_json::from_slice(&bytes).unwrap());
        }
    }
    records
}

/// With the published network at the published size; of everything else there is little.
#[test]
fn imagenet_100_lt_is_reproduced_from_files_to_a_report() {
    let folder = miniature();
    let folder = folder.path();
    with_pretraining_lists(folder, TAIL_OF_100, 4);
    let scaled = ["--limit-images", "4", "--limit-epochs", "1", "--set", "batch_size=4"];
    let records = repro(folder, "imagenet100-lt", &scaled);
    let encoders = ["sdclr-D_i-split1", "simclr-D_b-split1", "simclr-D_i-split1"];
    let expected: Vec<String> =
        encoders.iter().flat_map(|encoder| ["", "/few", "/full"].map(|part| format!("{encoder}{part}"))).collect();
    assert_eq!(records.keys().cloned().collect::<Vec<_>>(), expected);
    for encoder in encoders {
        let record = &records[encoder];
        let recipe = &record["recipe"];
        assert_eq!((&recipe["network"], &recipe["augment"]["size"]), (&"resnet50".into(), &224.into()));
        assert_eq!((&recipe["width"], &recipe["sampler_world"]), (&64.into(), &2.into()));
        let loss = record["epochs"][0]["loss"].as_f64().unwrap();
        assert!((0.5..10.0).contains(&loss), "{encoder}: {loss}");
    }
}

/// Two epochs of an odd number of images, which two published processes make even.
#[test]
fn imagenet_lt_exp_is_reproduced_from_files_to_a_report() {
    let folder = miniature();
    let folder = folder.path();
    with_pretraining_lists(
        folder,
        ["ImageNet_LT/imageNet_LT_exp_train.txt", "ImageNet_LT/imageNet_BL_exp_train.txt"],
        7,
    );
    for (of_100, of_all) in [
        ("ImageNet_100_train.txt", "ImageNet_train.txt"),
        ("imageNet_100_sub_balance_train_0.01.txt", "imageNet_sub_balance_train_0.01.txt"),
        ("ImageNet_100_val.txt", "ImageNet_LT_val.txt"),
        ("ImageNet_100_test.txt", "ImageNet_LT_test.txt"),
    ] {
        write(&folder.join("split/ImageNet_LT").join(of_all), &std::fs::read(folder.join(LISTS).join(of_100)).unwrap());
    }
    let scaled = ["--limit-images", "7", "--limit-epochs", "2", "--set", "batch_size=4", "augment.size=32"];
    let records = repro(folder, "imagenet-lt-exp", &[&scaled, SMALL].concat());
    assert_eq!(records.len(), 6);
    let run_of = |encoder: &str| folder.join("runs-imagenet-lt-exp").join(encoder).join("run.jsonl");
    for encoder in ["simclr-D_b-split1", "simclr-D_i-split1"] {
        assert_eq!(records[encoder]["epochs"].as_array().unwrap().len(), 2);
        assert!(run_of(encoder).exists());
    }
}

/// `sdclr pretrain` of a small recipe on the first eight images.
fn pretraining(folder: &Path, out: &str, more: &[&str]) -> Command {
    let (data, out) = (folder.to_str().unwrap(), folder.join(out));
    let run =
        ["pretrain", "--recipe", "imagenet100-lt/sdclr", "--split", "1", "--pretrain-split", "D_i", "--data", data];
    let scale = ["--device", "cpu", "--limit-images", "8", "--limit-epochs", "2", "--out", out.to_str().unwrap()];
    let set = ["--set", "network=resnet10", "width=8", "batch_size=4", "augment.size=64", "lr=0.01"];
    program(&[&run[..], &scale, more, &set].concat())
}

/// Its output and the encoder's hash.
fn pretrain(folder: &Path, out: &str, more: &[&str]) -> (Output, Value) {
    let output = pretraining(folder, out, more).output().unwrap();
    let out = folder.join(out);
    let record =
        std::fs::read(out.join("result.json")).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap());
    (output, record["state_sha256"].clone())
}

/// A file that was cut short is told before training where that is asked for; met in training it costs no finished step.
#[test]
fn a_damaged_file_is_named_and_loses_nothing() {
    let folder = miniature();
    let folder = folder.path();
    with_pretraining_lists(folder, TAIL_OF_100, 8);
    let (output, whole) = pretrain(folder, "whole", &["--check-data"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // Met in the second of the first epoch's two steps.
    let position = global_order(8, 1, 2).unwrap()[5] as usize;
    let image = folder.join("imagenet").join(pretraining_path(position));
    let file = std::fs::read(&image).unwrap();
    write(&image, &file[..file.len() / 2]);
    let named = format!("{}, line {}: {} cannot be decoded", TAIL_OF_100[0], position + 1, image.display());
    let (output, _) = pretrain(folder, "checked", &["--check-data"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("error: image files cannot be used:\n") && said.contains(&named), "{said}");
    assert!(!folder.join("checked").exists());

    let (output, _) = pretrain(folder, "met", &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(&named), "{said}");
    let checkpoint = checkpoint::read_training(&folder.join("met/checkpoint.safetensors")).unwrap();
    assert_eq!((checkpoint.meta.epoch, checkpoint.meta.step), (0, 1));
    // Of two ranks the first meets it; both keep the step before.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut ranks = [0, 1].map(|rank: usize| {
        let place = [("RANK", rank), ("WORLD_SIZE", 2), ("MASTER_PORT", port.into())];
        let mut command = pretraining(folder, "ranks", &[]);
        command.envs(place.map(|(name, value)| (name, value.to_string()))).env("MASTER_ADDR", "127.0.0.1");
        Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    });
    for (rank, expected) in [(0, named.clone()), (1, format!("rank 0 failed: {named}"))] {
        let output = ranks[rank].take().unwrap().wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&expected), "{said}");
    }
    let checkpoint = checkpoint::read_training(&folder.join("ranks/checkpoint.safetensors")).unwrap();
    assert_eq!((checkpoint.meta.epoch, checkpoint.meta.step), (0, 1));
    // Again, and nothing changes; then the file is whole again.
    assert_eq!(pretrain(folder, "met", &[]).0.status.code(), Some(1));
    write(&image, &file);
    let (output, met) = pretrain(folder, "met", &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(met, whole);
}

/// Where an epoch continues in its middle, the files of the steps before are not even opened.
#[test]
fn batches_that_were_taken_are_not_decoded_again() {
    let folder = miniature();
    let folder = folder.path();
    with_pretraining_lists(folder, TAIL_OF_100, 8);
    let set = ["batch_size=4", "sampler_world=1", "augment.size=32"].map(str::to_owned);
    let recipe = Recipe::resolve("imagenet100-lt/simclr", &set).unwrap();
    let dataset = Dataset::load(DatasetName::Imagenet100, Some(folder), Device::Cpu).unwrap();
    let list = split::read(&dataset, Some(folder), ListName::Pretrain(PretrainSplit::D_i, 1)).unwrap().limited(Some(8));
    let views = |taken| {
        let loader = Loader::of_rank(&list, &recipe, Device::Cpu, Group::default(), 1..=1, taken).unwrap();
        loader.collect::<Result<Vec<_>, _>>()
    };
    let whole = views(0).unwrap();
    for position in global_order(8, 1, 1).unwrap().into_iter().take(4) {
        sdclr::fs::remove(&folder.join("imagenet").join(pretraining_path(position as usize))).unwrap();
    }
    assert!(views(0).is_err());
    assert_eq!(views(1).unwrap(), whole[1..]);
}

/// Every damaged file of every list of a suite is told, and no job begins.
#[test]
fn the_data_of_a_whole_suite_are_checked_first() {
    let folder = miniature();
    let folder = folder.path();
    with_pretraining_lists(folder, TAIL_OF_100, 8);
    write(&folder.join("imagenet").join(pretraining_path(3)), b"<html>");
    sdclr::fs::remove(&folder.join("imagenet/val/n00000002/ILSVRC2012_val_2.JPEG")).unwrap();
    let out = folder.join("out");
    let [data, out_text] = [folder, &out].map(|path| path.to_str().unwrap());
    let arguments = ["--check-data", "--limit-images", "8", "--data", data, "--device", "cpu", "--out", out_text];
    let output = sdclr(&[&["repro", "imagenet100-lt"], &arguments[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = errors_of(&String::from_utf8(output.stderr).unwrap(), data);
    insta::assert_snapshot!("imagenet_check_data", said);
    assert!(!out.join("simclr-D_b-split1").exists());
}

/// None, some and all of the images.
#[test]
fn kept_images_change_no_bit() {
    let folder = miniature();
    let folder = folder.path();
    with_pretraining_lists(folder, TAIL_OF_100, 8);
    let [(plain, expected), (some, few), (all, every)] = [
        pretrain(folder, "plain", &[]),
        pretrain(folder, "some", &["--cache-images", "600KiB"]),
        pretrain(folder, "all", &["--cache-images", "1GiB"]),
    ];
    for output in [plain, some, all] {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!((&few, &every), (&expected, &expected));
    let (output, _) = pretrain(folder, "wrong", &["--cache-images", "8"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("'8' is not a size; use 500MiB or 8GiB"));
}

#[test]
fn a_plan_tells_its_arithmetic_memory_and_time() {
    let folder = miniature();
    let folder = folder.path();
    with_pretraining_lists(folder, TAIL_OF_100, 8);
    let arguments = ["repro", "imagenet100-lt", "--dry-run", "--device", "cpu", "--data", folder.to_str().unwrap()];
    let plan = String::from_utf8(sdclr(&arguments).stdout).unwrap();
    let cost: Vec<&str> = plan.lines().skip_while(|line| !line.starts_with("# disk")).collect();
    insta::with_settings!({ filters => PLAN_FILTERS.to_vec() }, {
        insta::assert_snapshot!("imagenet_cost", cost.join("\n"));
    });
}
