//! Images and lists of one's own, named by a suite's file, go from `sdclr split make` to a report.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use mozjpeg::{ColorSpace, Compress};
use ndarray::{Array1, Array4};
use ndarray_npy::WriteNpyExt;
use sdclr::progress::Progress;
use sdclr::recipe::Suite;
use sdclr::stop::Stop;
use sdclr::suite::context::Scale;
use sdclr::suite::{self, Pace, Selection, SuiteError};
use serde_json::Value;
use zip::write::SimpleFileOptions;

const CLASSES: [&str; 3] = ["blue", "green", "red"];

fn sdclr(arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .args(arguments)
        .env_remove("SDCLR_DATA")
        .env("SDCLR_CACHE", "/nonexistent")
        .output()
        .unwrap()
}

fn succeed(arguments: &[&str]) -> String {
    let output = sdclr(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The one error, without the paths of this run.
fn error(folder: &Path, arguments: &[&str]) -> String {
    let output = sdclr(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.matches("error:").count()), (Some(1), 1), "{arguments:?}: {said}");
    said.trim().replace(&folder.display().to_string(), "[DIR]")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image of `class`, with a pattern of its own: `side` rows of red, green, blue.
fn pixels(class: usize, index: usize, width: usize, height: usize) -> Vec<u8> {
    let pixel = |at: usize| {
        let (channel, x, y) = (at % 3, at / 3 % width, at / 3 / width);
        let pattern = (x * (index + 1) + y * 7 + index * 13) % 60;
        let bright = if channel == 2 - class { 180 } else { 10 };
        (bright + pattern) as u8
    };
    (0..3 * width * height).map(pixel).collect()
}

fn png(pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    bytes
}

fn jpeg(pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut jpeg = Compress::new(ColorSpace::JCS_RGB);
    jpeg.set_size(width, height);
    let mut started = jpeg.start_compress(Vec::new()).unwrap();
    started.write_scanlines(pixels).unwrap();
    started.finish().unwrap()
}

/// `train/` and `test/` with images of several sizes, PNG and JPEG.
fn image_folder(root: &Path) {
    for (part, count) in [("train", 30), ("test", 4)] {
        for (class, name) in CLASSES.into_iter().enumerate() {
            let folder = root.join(part).join(name);
            std::fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let (width, height) = (18 + i % 5, 17 + i % 3);
                let pixels = pixels(class, i + count, width, height);
                let (ending, bytes) = match i % 2 {
                    0 => ("png", png(&pixels, width, height)),
                    _ => ("jpg", jpeg(&pixels, width, height)),
                };
                sdclr::fs::write(&folder.join(format!("{i:02}.{ending}")), &bytes).unwrap();
            }
        }
    }
}

/// An `.npz` file as numpy.savez_compressed writes it, `count` images a class.
fn archive(path: &Path, count: usize, classes: usize) {
    let labels: Vec<i64> = (0..count * classes).map(|image| (image % classes) as i64).collect();
    let images: Vec<u8> =
        labels.iter().enumerate().flat_map(|(i, &label)| pixels(label as usize, i + count, 16, 16)).collect();
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    };
    let (mut of_images, mut of_labels) = (Vec::new(), Vec::new());
    Array4::from_shape_vec((labels.len(), 16, 16, 3), images).unwrap().write_npy(&mut of_images).unwrap();
    Array1::from(labels).write_npy(&mut of_labels).unwrap();
    add("images.npy", &of_images);
    add("labels.npy", &of_labels);
    sdclr::fs::write(path, &zip.finish().unwrap().into_inner()).unwrap();
}

/// The suite of the digits with other data; files are cut as those of ImageNet are.
fn suite_file(file: &Path, dataset: &str) {
    let mut text = include_str!("../fixtures/suites/digits-lt.toml").replace("\"digits\"", dataset);
    if dataset.contains("folders") {
        text = text.replace("\"pad_crop\"", "\"resized_crop\"").replace("\"none\"", "\"resize_centre_crop\"");
    }
    sdclr::fs::write(file, text.as_bytes()).unwrap();
}

/// Small enough for a test, whole enough for no smoke run.
const SMALL: [&str; 6] =
    ["lr=0.05", "epochs=2", "warmup_epochs=1", "probe.full.epochs=2", "probe.few.epochs=5", "output_dim=8"];

fn repro<'a>(file: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["repro", text(file), "--device", "cpu", "--seeds", "1", "--out", text(out)];
    [&fixed, more, &["--set"], &SMALL].concat()
}

/// The records of the jobs in `out`, by their folders.
fn records(out: &Path) -> BTreeMap<String, Value> {
    let mut records = BTreeMap::new();
    for encoder in std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()) {
        for part in ["", "full", "few"] {
            let Ok(bytes) = std::fs::read(encoder.join(part).join("result.json")) else { continue };
            let name = encoder.join(part).strip_prefix(out).unwrap().display().to_string();
            records.insert(name.trim_end_matches('/').to_owned(), serde_json::from_slice(&bytes).unwrap());
        }
    }
    records
}

/// Every list that `record` names by its hash is the one in `lists`.
fn check_lists(record: &Value, lists: &Path) {
    let hashes = record["splits_sha256"].as_object().unwrap();
    assert!(!hashes.is_empty());
    for (name, sha256) in hashes.iter().filter(|(name, _)| *name != "test") {
        let bytes = std::fs::read(lists.join(name)).unwrap();
        assert_eq!(*sha256, sdclr::recipe::hash_bytes(&bytes), "{name}");
    }
}

#[test]
fn a_folder_of_images_goes_from_lists_to_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (data, lists, file) = (folder.join("data"), folder.join("lists"), folder.join("colours.toml"));
    image_folder(&data);
    let decay = ["--classes-decay", "exp", "--ratio", "4", "--per-class", "20", "--seeds", "2"];
    let make = |out: &Path, seed: &str| {
        succeed(&[&["split", "make", "--data", text(&data), "--out", text(out), "--seed", seed], &decay[..]].concat())
    };
    make(&lists, "1");
    // Paths are relative to the suite's file.
    suite_file(&file, r#"{ kind = "folders", train = "data/train", test = "data/test", lists = "lists" }"#);
    let out = folder.join("out");
    let select = ["--splits", "1-2", "--methods", "random,simclr,sdclr-D_i"];
    let plan = succeed(&[&repro(&file, &out, &select)[..], &["--dry-run"]].concat());
    assert!(!plan.contains("missing") && !out.exists(), "{plan}");

    let printed = succeed(&repro(&file, &out, &select));
    assert!(printed.contains("SimCLR") && printed.contains("SDCLR"), "{printed}");
    let first = records(&out);
    assert_eq!(first.len(), 2 * (2 + 3 * 3), "{:?}", first.keys());
    for (job, record) in &first {
        check_lists(record, &lists);
        assert_eq!((&record["suite"], &record["smoke"]), (&"colours".into(), &false.into()), "{job}");
        assert_eq!(record["recipe"]["dataset"], "folders");
        assert_eq!(record["data_sha256"].as_str().unwrap().len(), 64);
    }
    // Of the long-tailed list: 20, 10 and 5 images.
    let mut counts: Vec<u64> =
        serde_json::from_value(first["simclr-D_b-split1/few"]["class_counts"].clone()).unwrap_or_default();
    counts.sort_unstable();
    assert_eq!(counts, [5, 10, 20], "{}", first["simclr-D_b-split1/few"]);
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("SDCLR") && !report.contains("--data DIR"), "{report}");

    // The second time reads all of it back.
    succeed(&repro(&file, &out, &select));
    assert_eq!(records(&out), first);
    // Other lists are other jobs, which the folder refuses.
    let other = folder.join("other");
    make(&other, "2");
    suite_file(&file, r#"{ kind = "folders", train = "data/train", test = "data/test", lists = "other" }"#);
    assert!(!sdclr(&repro(&file, &out, &select)).status.success());
    assert_eq!(records(&out), first);
}

#[test]
fn arrays_go_from_lists_to_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (lists, file, out) = (folder.join("lists"), folder.join("own.toml"), folder.join("out"));
    archive(&folder.join("train.npz"), 30, 3);
    archive(&folder.join("test.npz"), 4, 3);
    let train = folder.join("train.npz");
    let fixed = ["split", "make", "--data", text(&train), "--classes-decay", "pareto", "--ratio", "5"];
    succeed(&[&fixed[..], &["--per-class", "25", "--seeds", "1", "--out", text(&lists)]].concat());
    suite_file(&file, r#"{ kind = "arrays", train = "train.npz", test = "test.npz", lists = "lists" }"#);
    succeed(&repro(&file, &out, &["--splits", "1", "--methods", "simclr-D_i,sdclr-D_i"]));
    let records = records(&out);
    assert_eq!(records.len(), 6, "{:?}", records.keys());
    let data = records["sdclr-D_i-split1"]["data_sha256"].clone();
    for record in records.values() {
        check_lists(record, &lists);
        assert_eq!(record["data_sha256"], data);
    }
    // The same positions as text train the same encoder.
    let (list, as_text) = (lists.join("split1_D_i.npy"), lists.join("split1_D_i.txt"));
    let positions: Array1<i64> = ndarray_npy::read_npy(&list).unwrap();
    let lines: String = positions.iter().map(|position| format!("{position}\n")).collect();
    sdclr::fs::write(&as_text, lines.as_bytes()).unwrap();
    let select = ["--splits", "1", "--methods", "simclr-D_i"];
    let again = folder.join("again");
    let output = sdclr(&repro(&file, &again, &select));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("split1_D_i.txt are both there; keep the one that is meant")
    );
    std::fs::remove_file(&list).unwrap();
    succeed(&repro(&file, &again, &select));
    let of_text = self::records(&again);
    let state = |records: &BTreeMap<String, Value>| records["simclr-D_i-split1"]["state_sha256"].clone();
    assert_eq!(state(&of_text), state(&records));
    check_lists(&of_text["simclr-D_i-split1"], &lists);
    sdclr::fs::write(&as_text, b"0\n1.5\n").unwrap();
    let output = sdclr(&repro(&file, &folder.join("wrong"), &select));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("split1_D_i.txt, line 2: \"1.5\" is not a position"), "{said}");
    std::fs::remove_file(&as_text).unwrap();
    // Other pixels have another hash.
    archive(&folder.join("test.npz"), 5, 3);
    assert!(!sdclr(&repro(&file, &out, &["--splits", "1", "--methods", "simclr-D_i"])).status.success());
}

#[test]
fn a_suite_of_ones_own_data_that_cannot_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (file, out) = (folder.join("own.toml"), folder.join("out"));
    image_folder(&folder.join("data"));
    archive(&folder.join("train.npz"), 2, 3);
    std::fs::create_dir_all(folder.join("elsewhere")).unwrap();
    let mut errors = Vec::new();
    for dataset in [
        "\"mnist\"",
        "\"folders\"",
        r#"{ kind = "cifar10", train = "a", test = "b", lists = "c" }"#,
        r#"{ kind = "folder", train = "a", test = "b", lists = "c" }"#,
        r#"{ kind = "folders", train = "a", test = "b" }"#,
        r#"{ kind = "folders", train = "data/train", test = "elsewhere/test", lists = "lists" }"#,
        r#"{ kind = "folders", train = "data/training", test = "data/test", lists = "lists" }"#,
        r#"{ kind = "arrays", train = "train.npz", test = "data", lists = "lists" }"#,
    ] {
        suite_file(&file, dataset);
        errors.push(error(folder, &repro(&file, &out, &["--splits", "1", "--methods", "simclr-D_i"])));
    }
    insta::assert_snapshot!("own_data_errors", errors.join("\n"));
    // A list that is missing is told before any job begins.
    suite_file(&file, r#"{ kind = "folders", train = "data/train", test = "data/test", lists = "lists" }"#);
    let output = sdclr(&repro(&file, &out, &["--splits", "1", "--methods", "simclr-D_i"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("sdclr split make"), "{said}");
    assert!(!out.exists(), "{said}");
}

/// What each command that runs or plans the suite in `file` says before it does anything.
fn refusals(folder: &Path, file: &Path) -> String {
    let out = folder.join("refused");
    let select = ["--splits", "1", "--methods", "simclr-D_i"];
    let run = repro(file, &out, &select);
    let dry = repro(file, &out, &[&select[..], &["--dry-run"]].concat());
    let [run, dry] = [run, dry].map(|arguments| error(folder, &arguments));
    let plan = error(folder, &[&["plan", text(file), "--out", text(&out)], &select[..]].concat());
    assert!(!out.exists());
    assert_eq!((&dry, &plan), (&run, &run));
    run
}

const MADE: [&str; 8] = ["--classes-decay", "exp", "--ratio", "4", "--per-class", "20", "--seeds", "2"];

/// `data/`, `lists/` and a suite that names them, which can be run.
fn suite_of_folders(folder: &Path) -> std::path::PathBuf {
    let (data, lists, file) = (folder.join("data"), folder.join("lists"), folder.join("own.toml"));
    image_folder(&data);
    succeed(&[&["split", "make", "--data", text(&data), "--out", text(&lists)], &MADE[..]].concat());
    suite_file(&file, r#"{ kind = "folders", train = "data/train", test = "data/test", lists = "lists" }"#);
    succeed(&repro(&file, &folder.join("out"), &["--splits", "1", "--dry-run"]));
    file
}

/// The folders of the suite's file are those of the images that are used.
#[test]
fn lists_of_other_folders_are_refused_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = suite_of_folders(folder);
    let of = |train: &str, test: &str| {
        suite_file(
            &file,
            &format!(r#"{{ kind = "folders", train = "data/{train}", test = "data/{test}", lists = "lists" }}"#),
        );
        refusals(folder, &file)
    };
    let said = of("train", "nothing");
    assert!(said.contains("there is no folder [DIR]/data/nothing"), "{said}");
    let said = of("train", "train");
    assert!(said.contains("test.txt, line 1: \"test/") && said.contains("outside of [DIR]/data/train"), "{said}");
    let said = of("test", "test");
    assert!(said.contains(".txt, line 1: \"train/") && said.contains("outside of [DIR]/data/test"), "{said}");
}

/// The check reads what the jobs that were asked for still need, and heeds a stop as they do.
#[test]
fn the_check_of_the_data_is_of_the_jobs_to_do_and_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (file, out) = (suite_of_folders(folder), folder.join("checked"));
    // Of the last list that is checked.
    sdclr::fs::write(&folder.join("data/test/red/00.png"), b"<html>").unwrap();
    let suite = Suite::open(text(&file)).unwrap();
    let selection = Selection {
        methods: vec!["simclr-D_i".to_owned()],
        splits: vec![1],
        overrides: SMALL.map(str::to_owned).to_vec(),
        seeds: 1,
        probe_seeds: 1,
        ..Selection::default()
    };
    let plan = suite::plan(&suite, &selection).unwrap();
    let run = |stop| {
        let scale = Scale { device: Some("cpu".to_owned()), check_data: true, stop, ..Scale::default() };
        let invocation = suite::invocation(text(&file), &selection, &scale);
        suite::run(&suite, invocation, &plan, scale, &out, Pace::default(), &Progress::default()).map_err(Box::new)
    };
    assert_eq!(run(Stop::after(0)).unwrap().left.len(), 3);
    assert!(matches!(*run(Stop::default()).unwrap_err(), SuiteError::Damaged { files } if files.len() == 1));

    let select = ["--splits", "1", "--methods", "simclr-D_i", "--check-data", "--job", "simclr-D_i-split1"];
    let decoded = |output: &Output| String::from_utf8_lossy(&output.stderr).matches("decoding the").count();
    let output = sdclr(&repro(&file, &out, &select));
    assert_eq!((output.status.code(), decoded(&output)), (Some(0), 1), "{output:?}");
    let output = sdclr(&repro(&file, &out, &select));
    assert_eq!((output.status.code(), decoded(&output)), (Some(0), 0), "{output:?}");
}

fn png_of_16_bits() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 2);
    encoder.set_depth(png::BitDepth::Sixteen);
    encoder.write_header().unwrap().write_image_data(&[0; 8]).unwrap();
    bytes
}

/// What is said of an image that is whole, but of another kind; of views of files; and of lists that were made anew.
#[test]
fn messages_name_what_is_wrong_with_ones_own_data() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (file, out) = (suite_of_folders(folder), folder.join("out"));
    let image = folder.join("data/test/red/00.png");
    let job = ["--splits", "1", "--methods", "random", "--job", "random-split1/few", "--check-data"];
    let whole = std::fs::read(&image).unwrap();
    for (bytes, found) in [
        (png_of_16_bits(), "it is a PNG with 16 bits a channel; 8 are needed"),
        (b"GIF89a\x01\0\x01\0".to_vec(), "it is a GIF file, whatever its name says"),
        (Vec::new(), "it is empty"),
    ] {
        sdclr::fs::write(&image, &bytes).unwrap();
        let output = sdclr(&repro(&file, &out, &job));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected =
            format!("cannot be decoded: {found}; expected a whole JPEG, or a PNG of at most 8 bits a channel");
        assert!(output.status.code() == Some(1) && said.contains(&expected), "{said}");
    }
    sdclr::fs::write(&image, &whole).unwrap();
    let recipe = format!("{}:simclr", file.display());
    let views = ["views", "--recipe", &recipe, "--split", "1", "--indices", "0", "--epoch", "1", "--out", text(&out)];
    let said = error(folder, &views);
    assert!(said.contains("these are files of any size") && !said.contains("ImageNet"), "{said}");

    let select = ["--splits", "1", "--methods", "simclr-D_i"];
    succeed(&repro(&file, &out, &[&select[..], &["--job", "simclr-D_i-split1"]].concat()));
    std::fs::remove_dir_all(folder.join("lists")).unwrap();
    let (data, lists) = (folder.join("data"), folder.join("lists"));
    succeed(&[&["split", "make", "--seed", "2", "--data", text(&data), "--out", text(&lists)], &MADE[..]].concat());
    let said = error(folder, &repro(&file, &out, &select));
    assert!(said.contains("with other settings: lists.split1_D_i.txt is "), "{said}");
}

/// Probes group the classes into many, medium and few: what leaves them none is told before hours of pre-training.
#[test]
fn classes_that_no_probe_can_judge_are_refused_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = suite_of_folders(folder);
    for part in ["train", "test"] {
        let first = folder.join("data").join(part).join("red/00.png");
        sdclr::fs::write(&folder.join("data").join(part).join("amber/00.png"), &std::fs::read(first).unwrap()).unwrap();
    }
    let said = refusals(folder, &file);
    assert!(said.contains("test.txt names test images of 3 classes, the data have 4"), "{said}");
    for class in ["amber", "red"] {
        for part in ["train", "test"] {
            std::fs::remove_dir_all(folder.join("data").join(part).join(class)).unwrap();
        }
    }
    let said = refusals(folder, &file);
    assert!(said.contains("train holds 2 folders of classes") && said.contains("many, medium and few"), "{said}");
    archive(&folder.join("train.npz"), 30, 2);
    archive(&folder.join("test.npz"), 4, 2);
    suite_file(&file, r#"{ kind = "arrays", train = "train.npz", test = "test.npz", lists = "lists" }"#);
    let said = refusals(folder, &file);
    assert!(said.contains("it has 2 classes; at least 3 are needed"), "{said}");
}
