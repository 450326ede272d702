//! ImageNet on disk, in miniature: the published layout and list names with all 100 labels, probed through the command
//! line; and one clear error for each way in which lists or files can be wrong. The images are small files of ImageNet
//! where `SDCLR_DATA` has them, elsewhere the made-up ones of the goldens.

mod golden;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sdclr::checkpoint;
use sdclr::dataset::{self, Dataset};
use sdclr::network::{Network, NetworkSpec};
use sdclr::recipe::{DatasetName, Recipe, hash_json};
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

fn sdclr(arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .args(arguments)
        .env_remove("SDCLR_DATA")
        .env("COLUMNS", "110")
        .output()
        .unwrap()
}

/// Image files to choose from.
fn sources() -> Vec<Vec<u8>> {
    let sample = std::env::var_os("SDCLR_DATA").map(|data| PathBuf::from(data).join("imagenet-sample/tiny"));
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
    let sources = sources();
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
    said.replace(&folder.display().to_string(), "[DIR]")
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
fn what_needs_pretraining_on_files_says_so() {
    let folder = miniature();
    let folder = folder.path().to_str().unwrap();
    let run = |arguments: &[&str]| {
        let output = sdclr(arguments);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap().replace(folder, "[DIR]")
    };
    let out = format!("{folder}/out");
    let pretrain = ["--split", "1", "--pretrain-split", "D_i", "--out", &out, "--data", folder];
    let views = ["--split", "1", "--indices", "0", "--epoch", "1", "--out", &out, "--data", folder];
    let errors = [
        run(&["repro", "imagenet100-lt", "--data", folder, "--out", &out]),
        run(&["repro", "imagenet-lt-exp", "--out", &out]),
        run(&["repro", "imagenet-lt-exp", "--methods", "sdclr", "--dry-run"]),
        run(&["repro", "imagenet100-lt", "--splits", "2", "--dry-run"]),
        run(&["repro", "imagenet100-lt", "--dry-run", "--set", "probe.full.train_transform=pad_crop"]),
        run(&["repro", "cifar10-lt", "--dry-run", "--set", "probe.few.test_transform=resize_centre_crop"]),
        run(&["repro", "imagenet100-lt", "--dry-run", "--set", "probe.full.size=300"]),
        run(&[&["pretrain", "--recipe", "imagenet100-lt/simclr"][..], &pretrain].concat()),
        run(&[&["views", "--recipe", "imagenet100-lt/simclr"][..], &views].concat()),
    ];
    insta::assert_snapshot!("imagenet_pretraining", errors.concat());
    let plan = String::from_utf8(sdclr(&["repro", "imagenet-lt-exp", "--dry-run"]).stdout).unwrap();
    insta::with_settings!({ filters => [(r"[0-9.]+ [KMGTP]iB free", "[FREE] free"), (r"at most [0-9.]+ .iB", "at most [JOBS]")] }, {
        insta::assert_snapshot!("imagenet_plan", plan);
    });
}
