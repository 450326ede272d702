//! `sdclr analyse` on logs in the published style: NumPy's numbers for good ones, one clear error for each bad one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use golden::skip::skip;
use proptest::prelude::*;
use sdclr::authors::{class_counts, counts_of_list, read_log};
use sdclr::recipe::DatasetName;
use sdclr::scores::{groups_by_counts, groups_of};
use serde_json::Value;
use tempfile::TempDir;

mod golden;

fn sdclr(arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .arg("analyse")
        .args(arguments)
        .env_remove("SDCLR_DATA")
        .env("SDCLR_CACHE", "/nonexistent")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn write(path: &Path, bytes: &[u8]) {
    sdclr::fs::write(path, bytes).unwrap();
}

/// The logs of reference/torch/analyse_goldens.py.
fn logs() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::open(golden::path("analyse/logs.zip")).unwrap();
    zip::ZipArchive::new(file).unwrap().extract(folder.path()).unwrap();
    folder
}

/// The folder of the run folders of a data set, as published.
fn parent(folder: &Path, dataset: &str) -> PathBuf {
    folder.join(match dataset {
        "cifar10" => "checkpoints_tune",
        "cifar100" => "checkpoints_cifar100_tune",
        _ => "checkpoints_imagenet_tune",
    })
}

fn assert_near(found: &Value, expected: &Value, place: &str) {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{place}");
            a.iter().for_each(|(key, value)| assert_near(value, &b[key], &format!("{place}.{key}")));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{place}");
            a.iter().zip(b).for_each(|(a, b)| assert_near(a, b, place));
        }
        _ => {
            let (a, b) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((a - b).abs() < 1e-9, "{place}: {a}, NumPy {b}");
        }
    }
}

#[test]
fn summaries_are_those_of_numpy() {
    let folder = logs();
    let json = folder.path().join("summary.json");
    let questions: Vec<Value> = golden::json("analyse/expected.json");
    assert_eq!(questions.len(), 10);
    for question in questions {
        let word = |key: &str| question[key].as_str().unwrap();
        let logs = parent(folder.path(), word("dataset"));
        let mut arguments = vec![logs.to_str().unwrap(), "--dataset", word("dataset"), "--method", word("method")];
        arguments.extend(["--pretrain-split", word("pretrain_split"), "--protocol", word("protocol")]);
        arguments.extend(["--json", json.to_str().unwrap()]);
        let strict = question["strict_original"].as_bool().unwrap();
        if strict {
            arguments.push("--strict-original");
        }
        let output = sdclr(&arguments);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        let found = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_near(&found, &question["summary"], &arguments.join(" "));
        if !strict {
            let warnings = said.matches("warning: ").count() as u64;
            assert_eq!(warnings, question["warnings"].as_u64().unwrap(), "{said}");
        }
    }
}

/// Standard output, or exit code and standard error, without the paths of this run.
fn said(folder: &Path, output: &Output) -> String {
    let text = match output.status.code() {
        Some(0) => format!("{}{}", text(&output.stderr), text(&output.stdout)),
        code => format!("exit code {code:?}\n{}{}", text(&output.stderr), text(&output.stdout)),
    };
    text.replace(&folder.display().to_string(), "[DIR]")
}

const FEW: &[&str] = &["--dataset", "cifar10", "--method", "simclr", "--pretrain-split", "D_b", "--protocol", "few"];
const IMAGENET100: &[&str] =
    &["--dataset", "imagenet100", "--method", "sdclr", "--pretrain-split", "D_i", "--protocol", "few"];

#[test]
fn what_it_prints() {
    let folder = logs();
    let ask = |dataset: &str, arguments: &[&str]| {
        let logs = parent(folder.path(), dataset);
        said(folder.path(), &sdclr(&[&[logs.to_str().unwrap()], arguments].concat()))
    };
    let outputs =
        [ask("cifar10", FEW), ask("cifar10", &[FEW, &["--strict-original"]].concat()), ask("imagenet100", IMAGENET100)];
    insta::assert_snapshot!("printed", outputs.join("\n"));
}

/// The log of one split of the few-shot probes, to be damaged.
fn few_log(folder: &Path, split: usize) -> PathBuf {
    let run = format!(
        "res18_scheduling_sgd_temp0.2_wd1e-4_lr0.5_b512_twolayerProj_epoch2000_split{split}_D_b_newNT_s10__split{split}_S_b_\
         f2layer4_d40d60_wd0_lr30_freezeBN"
    );
    parent(folder, "cifar10").join(run).join("log.txt")
}

#[test]
fn every_bad_log_is_named_and_the_good_ones_are_summed_up() {
    let folder = logs();
    let log = |split| few_log(folder.path(), split);
    let logs = parent(folder.path(), "cifar10");
    let json = folder.path().join("summary.json");
    let ask = |extra: &[&str]| {
        let arguments = [&[logs.to_str().unwrap()], FEW, &["--json", json.to_str().unwrap()], extra].concat();
        said(folder.path(), &sdclr(&arguments))
    };
    let whole = std::fs::read_to_string(log(1)).unwrap();
    let (start, accuracy) = whole.split_at(whole.find("On the best_model").unwrap());
    let (course, classes) = start.split_at(start.rfind("Each class acc is").unwrap());
    let mut outputs = Vec::new();
    let mut broken = |logs: [Option<&str>; 4], extra: &[&str]| {
        for (split, content) in (1..=4).zip(logs) {
            match content {
                Some(content) => write(&log(split), content.as_bytes()),
                None => _ = std::fs::remove_file(log(split)),
            }
        }
        outputs.push(ask(extra));
    };
    let nine = format!("{course}Each class acc is 1.00 2.00 3.00 4.00 5.00 6.00 7.00 8.00 9.00\n{accuracy}");
    let nan = format!("{course}{}{accuracy}", classes.replacen("100.00", "nan", 1));
    broken([Some(start), Some(&nine), Some(&nan), None], &[]);
    let over = format!("{course}{}{accuracy}", classes.replacen("100.00", "100.01", 1));
    let words = format!("{course}{}{accuracy}", classes.replacen("100.00", "\u{1b}[2Jmany", 1));
    let infinite = format!("{start}On the best_model, test tacc is inf\n");
    broken([Some(&over), Some(&words), Some(&infinite), Some("")], &[]);
    // Two results, then the beginning of a third; the published script sees too much or too little of such logs.
    let cut = format!("{whole}{classes}");
    let buried = format!("{whole}{}", "another line\n".repeat(30));
    broken([Some(&cut), Some(&buried), Some(&whole), Some(&whole)], &[]);
    broken([Some(&cut), Some(&buried), Some(&whole), Some(&whole)], &["--strict-original"]);
    // Written by the one question of these that every log could answer.
    assert!(json.exists() && outputs[2].starts_with("warning"));
    std::fs::remove_dir_all(log(3).parent().unwrap()).unwrap();
    let other = format!("{start}On the best_model, test tacc is 33.33\n");
    std::fs::remove_file(log(4)).unwrap();
    std::fs::create_dir(log(4)).unwrap();
    write(&log(1), other.as_bytes());
    outputs.push(ask(&[]));
    for split in 1..=5 {
        let _ = std::fs::remove_dir_all(log(split).parent().unwrap());
    }
    outputs.push(ask(&[]));
    let nowhere = folder.path().join("nowhere");
    outputs.push(said(folder.path(), &sdclr(&[&[nowhere.to_str().unwrap()], FEW].concat())));
    insta::assert_snapshot!("bad_logs", outputs.join("\n"));
}

#[test]
fn imagenet_wants_its_list() {
    let folder = logs();
    let logs = parent(folder.path(), "imagenet");
    let ask = |method: &str, extra: &[&str]| {
        let question = ["--dataset", "imagenet", "--method", method, "--pretrain-split", "D_i", "--protocol", "full"];
        said(folder.path(), &sdclr(&[&[logs.to_str().unwrap()], question.as_slice(), extra].concat()))
    };
    let data = folder.path().join("data");
    let named = ["--data", data.to_str().unwrap()];
    let mut outputs = vec![ask("sdclr", &[]), ask("simclr", &[]), ask("simclr", &named)];
    let list = data.join("split/ImageNet_LT/imageNet_LT_exp_train.txt");
    write(&list, b"train/n01440764/n01440764_10026.JPEG 0\n");
    outputs.push(ask("simclr", &named));
    insta::assert_snapshot!("imagenet_list", outputs.join("\n"));
}

#[test]
fn a_list_of_images_gives_the_counts_that_are_committed() {
    assert_eq!(counts_of_list(b"a/b.JPEG 2\nc d.JPEG 0\r\n\ne 2", 3).unwrap(), [1, 0, 2]);
    for bad in ["a 3", "a", "a -1", "a 1.0", "1"] {
        assert!(counts_of_list(bad.as_bytes(), 3).is_err(), "{bad}");
    }
    let Some(data) = std::env::var_os("SDCLR_DATA").map(PathBuf::from) else {
        skip("data", "SDCLR_DATA is not set");
        return;
    };
    let list = std::fs::read(data.join("split/imagenet-100/imageNet_100_LT_train.txt")).unwrap();
    let counts = class_counts(DatasetName::Imagenet100, 1, None).unwrap();
    assert_eq!(counts_of_list(&list, 100).unwrap(), counts);
    let groups = groups_of(DatasetName::Imagenet100, &counts);
    assert_eq!([groups.many.len(), groups.medium.len(), groups.few.len()], [39, 48, 13]);
}

/// A log of full ImageNet, whose list cannot be had here: its 1,000 classes in groups that are made up.
#[test]
fn a_log_of_a_thousand_classes() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.txt");
    let values: Vec<String> = (0..1000).map(|class| format!("{}", class as f64 / 1000.0)).collect();
    let validation = format!("acc per class is {}\nvali: Average loss: 1\n====\n", "0.5 ".repeat(1000));
    let test = format!("acc per class is {} \ntest: Average loss: 1\n", values.join(" "));
    let whole = format!("{validation}{test}On the best_model, test top5 tacc is 93.1\n");
    write(&log, whole.as_bytes());
    let groups = groups_by_counts(&(0..1000).map(|class| 1 + class / 4).collect::<Vec<u64>>());
    for strict in [false, true] {
        let result = read_log(&log, DatasetName::Imagenet, 1000, strict).unwrap();
        assert!(result.warnings.is_empty());
        let scores = result.scores(&groups).unwrap();
        // Of an arithmetic series: the mean of its ends.
        for (found, expected) in [(scores.all, 49.95), (scores.few, 3.75), (scores.medium, 23.75), (scores.many, 69.95)]
        {
            assert!((found - expected).abs() < 1e-9, "{found}, expected {expected}");
        }
    }
    // Cut before its end, the log has no test.
    write(&log, &whole.as_bytes()[..validation.len() + test.len()]);
    let error = read_log(&log, DatasetName::Imagenet, 1000, false).unwrap_err().to_string();
    assert!(error.contains("holds no complete result"), "{error}");
}

/// Logs that went through PowerShell, a terminal, a logger or a copy that failed.
#[test]
fn logs_in_other_clothes_are_read_or_named() {
    let folder = logs();
    let path = few_log(folder.path(), 1);
    let whole = std::fs::read_to_string(&path).unwrap();
    let read = |bytes: &[u8], strict| {
        write(&path, bytes);
        let result = read_log(&path, DatasetName::Cifar10, 10, strict);
        result.map(|log| log.blocks).map_err(|error| error.to_string())
    };
    let utf16 = |text: &str, unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
    let marked = format!("\u{feff}{whole}");
    let expected = [false, true].map(|strict| read(whole.as_bytes(), strict).unwrap());
    let result = "Each class acc";
    for (name, bytes) in [
        ("a mark", marked.clone().into_bytes()),
        ("a mark at once", format!("\u{feff}{}", &whole[whole.rfind("\nEach class acc").unwrap() + 1..]).into_bytes()),
        ("UTF-16", utf16(&marked, u16::to_le_bytes)),
        ("UTF-16, the other order", utf16(&marked, u16::to_be_bytes)),
        ("UTF-16 without its mark", utf16(&whole, u16::to_le_bytes)),
        ("Windows", whole.replace('\n', "\r\n").into_bytes()),
        ("old Macs", whole.replace('\n', "\r").into_bytes()),
        ("a progress bar", whole.replace("\nEach class acc", "\n100%|####| 79/79\rEach class acc").into_bytes()),
        ("colours", whole.replace(result, "\x1b[1;32mEach class acc").replace("On the", "\x1b[0mOn the").into_bytes()),
    ] {
        for (strict, expected) in [false, true].into_iter().zip(&expected) {
            assert_eq!(read(&bytes, strict).as_ref(), Ok(expected), "{name}");
        }
    }
    let stamped: String = whole.lines().map(|line| format!("2021-06-14 12:00:01 INFO {line}\n")).collect();
    let line = 1 + whole.lines().position(|line| line.starts_with("On the best_model")).unwrap();
    let hidden = format!("line {line}, holds 'On the best_model, test tacc is' in its middle");
    for strict in [false, true] {
        let error = read(stamped.as_bytes(), strict).unwrap_err();
        assert!(error.contains(&hidden) && !error.contains("cut short"), "{error}");
        let error = read(b"", strict).unwrap_err();
        assert!(error.contains("log.txt is empty") && !error.contains("cut short"), "{error}");
    }
}

/// A line of classes belongs to the accuracy that follows it; without one, to an accuracy just before.
#[test]
fn classes_go_with_the_accuracy_that_follows() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.txt");
    // Each letter is a line: a and b are results of two classes, A and B their accuracies.
    let read = |marks: &str| {
        let line = |mark| match mark {
            'a' => "Each class acc is 10.00 20.00\n",
            'A' => "On the best_model, test tacc is 15.00\n",
            'b' => "Each class acc is 30.00 40.00\n",
            _ => "On the best_model, test tacc is 35.00\n",
        };
        write(&log, marks.chars().map(line).collect::<String>().as_bytes());
        read_log(&log, DatasetName::Cifar10, 2, false).map(|log| (log.blocks.concat(), log.warnings.len())).ok()
    };
    let (a, b) = (vec![10.0, 20.0], vec![30.0, 40.0]);
    for (marks, expected) in [
        ("aA", Some((a.clone(), 0))),
        ("Aa", Some((a.clone(), 0))),
        // The rest of the first result is cut off.
        ("AbB", Some((b.clone(), 0))),
        ("AbBaA", Some((a.clone(), 1))),
        // Cut at both ends: the second result has no accuracy of its own.
        ("AbBa", Some((b.clone(), 1))),
        ("abB", Some((b, 0))),
        ("AAa", Some((a, 0))),
        ("A", None),
        ("aa", None),
    ] {
        assert_eq!(read(marks), expected, "{marks}");
    }
}

#[test]
fn nothing_was_published_of_the_digits() {
    assert!(class_counts(DatasetName::Digits, 1, None).is_err());
}

#[test]
fn hostile_logs_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.txt");
    let read = |bytes: &[u8]| {
        write(&log, bytes);
        read_log(&log, DatasetName::Cifar10, 10, false).unwrap_err().to_string()
    };
    assert!(read(&vec![b'\n'; (16 << 20) + 1]).contains("it has more than the 16777216 bytes allowed"));
    assert!(read(&vec![0xff; 16 << 20]).contains("holds no complete result"));
    let long = format!("Each class acc is{}\nOn the best_model, test tacc is 1.0\n", " 1.00".repeat(3 << 20));
    assert!(read(long.as_bytes()).contains("accuracies of 3145728 classes, expected 10"));
    let word =
        format!("Each class acc is {}\nOn the best_model, test tacc is {}\n", "1 ".repeat(10), "9".repeat(9 << 20));
    let error = read(word.as_bytes());
    assert!(error.len() < 300 && error.contains("'9999999999"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0..400_usize, strict: bool) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log.txt");
        let at = at.min(bytes.len());
        bytes.splice(at..at, *b"\nEach class acc is 1 2 3\nOn the best_model, test tacc is 2\n");
        write(&log, &bytes);
        let _ = read_log(&log, DatasetName::Cifar10, 3, strict);
        let _ = read_log(&log, DatasetName::Imagenet100, 3, strict);
        let _ = counts_of_list(&bytes, 3);
    }
}
