//! `sdclr repro --from-published` on a miniature of the authors' files that PyTorch saved (reference/torch/
//! published_goldens.py): found by their names, evaluated as PyTorch evaluates them, set side by side.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use golden::skip::skip;
use sdclr::fs::{FolderLock, list_folder};
use sdclr::recipe::hash_bytes;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

mod golden;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"));
    command.arg("repro").args(arguments).env_remove("SDCLR_DATA").env("SDCLR_CACHE", "/nonexistent");
    command
}

fn repro(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The published tree of a data set, under a folder as an archive may have one.
fn tree(dataset: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::open(golden::path(&format!("published/{dataset}.zip"))).unwrap();
    zip::ZipArchive::new(file).unwrap().extract(folder.path().join("SDCLR")).unwrap();
    folder
}

/// How the folders of SimCLR's runs on CIFAR-10 begin.
const SIMCLR: &str = "res18_scheduling_sgd_temp0.2_wd1e-4_lr0.5_b512_twolayerProj_epoch2000";

const SUITES: [(&str, &str); 4] = [
    ("cifar10-lt", "cifar10"),
    ("cifar100-lt", "cifar100"),
    ("imagenet100-lt", "imagenet100"),
    ("imagenet-lt-exp", "imagenet"),
];

/// Exit code, standard error, standard output; without the paths of this run.
fn said(folder: &Path, output: &Output) -> String {
    let code = output.status.code();
    let all = format!("exit code {code:?}\n{}{}", text(&output.stderr), text(&output.stdout));
    all.replace(&folder.display().to_string(), "[DIR]")
}

#[test]
fn the_plan_says_what_is_there_and_what_is_missing() {
    let mut plans = Vec::new();
    for (suite, dataset) in SUITES {
        let folder = tree(dataset);
        let mut arguments = vec![suite, "--from-published", folder.path().to_str().unwrap(), "--dry-run"];
        if suite.starts_with("cifar") {
            arguments.extend(["--splits", "1-2"]);
        }
        plans.push(format!("{suite}: {}", said(folder.path(), &repro(&arguments))));
    }
    insta::assert_snapshot!("plans", plans.join("\n"));
}

#[test]
fn bad_questions_have_one_answer_each() {
    let folder = tree("cifar10");
    let dir = folder.path().to_str().unwrap();
    let ask = |arguments: &[&str]| said(folder.path(), &repro(arguments));
    let nowhere = folder.path().join("nowhere");
    let empty = tempfile::tempdir().unwrap();
    let mut answers = vec![
        ask(&["cifar10-lt", "--from-published"]),
        ask(&["digits-lt", "--from-published", dir]),
        ask(&["cifar10-lt", "--from-published", dir, "--methods", "random"]),
        ask(&["imagenet-lt-exp", "--from-published", dir, "--methods", "sdclr"]),
        ask(&["cifar10-lt", "--from-published", dir, "--splits", "6"]),
        ask(&["imagenet100-lt", "--from-published", dir, "--splits", "2"]),
        ask(&["cifar10-lt", "--from-published", nowhere.to_str().unwrap()]),
        ask(&["cifar100-lt", "--from-published", dir]),
        said(empty.path(), &repro(&["cifar10-lt", "--from-published", empty.path().to_str().unwrap()])),
    ];
    // A link to the same files is no second copy of them, and a loop is no end.
    let plan = ["cifar10-lt", "--from-published", dir, "--dry-run"];
    let before = ask(&plan);
    std::os::unix::fs::symlink(folder.path().join("SDCLR"), folder.path().join("link")).unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("SDCLR/loop")).unwrap();
    assert_eq!(ask(&plan), before);
    // Nor is what unpackers leave beside them. A second copy leaves its own jobs open, and no others.
    let run = format!("checkpoints/{SIMCLR}_split1_D_i_newNT_s10");
    for stray in ["__MACOSX", ".sdclr-1.part", "SDCLR/.hidden"] {
        std::fs::create_dir_all(folder.path().join(stray).join(&run)).unwrap();
    }
    assert_eq!(ask(&plan), before);
    std::fs::create_dir_all(folder.path().join("copy").join(run)).unwrap();
    answers.push(ask(&[plan.as_slice(), &["--splits", "1", "--methods", "simclr"]].concat()));
    answers.push(ask(&[plan.as_slice(), &["--budget", "1h"]].concat()));
    answers.push(ask(&[plan.as_slice(), &["--methods", "sdclr-D_x"]].concat()));
    insta::assert_snapshot!("answers", answers.join("\n"));
}

/// What is named twice counts once; a method may bring its list.
#[test]
fn a_run_is_planned_once() {
    let folder = tree("cifar10");
    let plan = |which: &[&str]| {
        let fixed = ["cifar10-lt", "--from-published", folder.path().to_str().unwrap(), "--dry-run"];
        said(folder.path(), &repro(&[&fixed, which].concat()))
    };
    let once = plan(&["--splits", "1", "--methods", "simclr", "--pretrain-splits", "D_i"]);
    assert_eq!(once.matches("read ").count(), 2, "{once}");
    let same = ["--splits", "1,1", "--methods", "simclr,simclr", "--pretrain-splits", "D_i,D_i"];
    assert_eq!(plan(&same), once);
    assert_eq!(plan(&["--splits", "1", "--methods", "simclr-D_i"]), once);
    assert_eq!(plan(&["--splits", "1", "--methods", "simclr-D_i,simclr", "--pretrain-splits", "D_i"]), once);
}

#[test]
fn a_run_found_twice_fails_alone() {
    let folder = tree("cifar10");
    let out = folder.path().join("runs");
    let run = format!("{SIMCLR}_split1_D_i_newNT_s10__f2layer4_d10d20_wd0_lr30_freezeBN");
    std::fs::create_dir_all(folder.path().join("copy").join(run)).unwrap();
    let [dir, to] = [folder.path(), &out].map(|path| path.to_str().unwrap());
    let output = repro(&["cifar10-lt", "--from-published", dir, "--out", to, "--device", "cpu"]);
    let errors = text(&output.stderr);
    let failed = |kind: &str| format!("failed: simclr-D_i-split1/full-{kind}: there are 2 folders called ");
    assert!(errors.contains(&failed("log")) && errors.contains(&failed("model")), "{errors}");
    assert_eq!(errors.matches("there are 2 folders").count(), 2, "{errors}");
    assert_eq!(report(&out)["outcomes"].as_array().unwrap().len(), 9, "logs of the other probes");
}

/// Neither report may take the other's place.
#[test]
fn a_folder_holds_one_kind_of_report() {
    let folder = tree("cifar10");
    let [trained, published] = ["trained", "published"].map(|name| folder.path().join(name));
    let [dir, trained, published] = [folder.path(), &trained, &published].map(|path| path.to_str().unwrap());
    let short = ["--methods", "random", "--splits", "1", "--limit-images", "40", "--limit-epochs", "1"];
    let output = repro(&[&["digits-lt", "--device", "cpu", "--out", trained], short.as_slice()].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let from = |out: &str| repro(&["cifar10-lt", "--from-published", dir, "--device", "cpu", "--out", out]);
    from(published);
    for (output, kind) in [
        (from(trained), "a suite that was trained"),
        (repro(&["digits-lt", "--device", "cpu", "--out", published]), "published runs"),
    ] {
        let errors = text(&output.stderr);
        let told = format!("holds the report of {kind}, which this one would overwrite; choose another --out");
        assert!(!output.status.success() && errors.contains(&told), "{errors}");
    }
    // Of the same kind it is written anew.
    assert!(text(&from(published).stdout).contains("report: "));
}

/// Without images the logs still stand, beside the paper's numbers.
#[test]
fn logs_of_all_suites_beside_the_paper() {
    let mut reports = Vec::new();
    for (suite, dataset) in SUITES {
        let folder = tree(dataset);
        let out = folder.path().join("runs");
        let arguments = [suite, "--from-published", folder.path().to_str().unwrap(), "--out", out.to_str().unwrap()];
        let output = repro(&[&arguments, ["--device", "cpu"].as_slice()].concat());
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(errors.contains("failed: every model and encoder: "), "{errors}");
        let report: Value = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
        let logs = report["outcomes"].as_array().unwrap();
        assert!(logs.iter().all(|log| log["kind"] == "log" && log["job"].is_null()));
        let expected = [("cifar10", 10), ("cifar100", 2), ("imagenet100", 8), ("imagenet", 0)];
        assert_eq!(logs.len(), expected.iter().find(|(name, _)| *name == dataset).unwrap().1);
        let table = text(&output.stdout).replace(&folder.path().display().to_string(), "[DIR]");
        if dataset == "imagenet" {
            // Its groups come from a list that is not here.
            assert_eq!(errors.matches("-log: the class counts of imagenet come from").count(), 4, "{errors}");
        }
        reports.push(table);
    }
    insta::assert_snapshot!("logs_beside_the_paper", reports.join("\n"));
}

/// Accuracies per class by PyTorch, per cent.
#[derive(Deserialize)]
struct Expected {
    /// Of the first 500 test images.
    first: Vec<f64>,
    all: Vec<f64>,
}

fn expected() -> BTreeMap<String, Expected> {
    golden::json("published/cifar.json")
}

fn data() -> Option<PathBuf> {
    let data = std::env::var_os("SDCLR_DATA").map(PathBuf::from);
    if data.is_none() {
        skip("data", "SDCLR_DATA is not set");
    }
    data
}

fn assert_classes(outcome: &Value, expected: &[f64], tolerance: f64) {
    let found: Vec<f64> = serde_json::from_value(outcome["outcome"]["per_class"].clone()).unwrap();
    assert_eq!(found.len(), expected.len());
    for (class, (found, expected)) in found.iter().zip(expected).enumerate() {
        let place = format!("{}, class {class}", outcome["file"]);
        assert!((found - expected).abs() <= tolerance, "{place}: {found}, PyTorch {expected}");
    }
}

/// The folder of a probe, as `cifar.json` names it.
fn run_of(outcome: &Value) -> &str {
    outcome["file"].as_str().unwrap().split('/').nth(1).unwrap()
}

fn report(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap()
}

#[test]
fn models_are_evaluated_as_pytorch_does_and_read_back() {
    let Some(data) = data() else { return };
    let folder = tree("cifar10");
    let out = folder.path().join("runs");
    let [dir, to, images] = [folder.path(), &out, &data].map(|path| path.to_str().unwrap());
    let arguments = ["cifar10-lt", "--from-published", dir, "--out", to, "--data", images, "--device", "cpu"];
    let limits = ["--splits", "1", "--limit-images", "500", "--limit-epochs", "1", "--set", "width=1"];
    let run = || repro(&[arguments.as_slice(), &limits].concat());
    let first = run();
    let errors = text(&first.stderr);
    assert!(first.status.success(), "{errors}");
    assert!(errors.contains("missing: checkpoints/res18_scheduling") && !errors.contains("failed"), "{errors}");
    assert_eq!(errors.matches("missing: ").count(), 5, "SDCLR on D_b was not saved: {errors}");

    let found = report(&out);
    let outcomes = found["outcomes"].as_array().unwrap();
    let of = |kind: &str| outcomes.iter().filter(|outcome| outcome["kind"] == kind).collect::<Vec<_>>();
    assert_eq!(["log", "model", "probe"].map(|kind| of(kind).len()), [6, 6, 6]);
    let expected = expected();
    for model in of("model") {
        assert_classes(model, &expected[run_of(model)].first, 1e-9);
        assert_eq!(model["job"]["smoke"], true);
    }
    for log in of("log") {
        assert_classes(log, &expected[run_of(log)].all, 0.0051);
    }
    for probe in of("probe") {
        assert!(probe["file"].as_str().unwrap().ends_with("/model_2000.pt"));
        assert_eq!(probe["job"]["protocol"], probe["protocol"]);
    }
    let markdown = std::fs::read_to_string(out.join("report.md")).unwrap();
    for part in ["smoke run, not a result", "recalled, to be confirmed against the paper", "## Missing files"] {
        assert!(markdown.contains(part), "{part}");
    }

    // A second run computes nothing; a damaged file is the failure of its own job.
    let job = out.join("simclr-D_i-split1");
    let records = ["full-model", "few-probe"].map(|name| job.join(name).join("result.json"));
    let written = || records.each_ref().map(|path| std::fs::metadata(path).unwrap().modified().unwrap());
    let before = written();
    let damaged = run_of(of("model")[0]).to_owned();
    let model = folder.path().join("SDCLR/checkpoints_tune").join(damaged).join("best_model.pt");
    let bytes = std::fs::read(&model).unwrap();
    sdclr::fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    let second = run();
    let errors = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1));
    assert_eq!(errors.matches("failed: ").count(), 1, "{errors}");
    assert!(errors.contains("full-model: ") && errors.contains("best_model.pt"), "{errors}");
    assert_eq!(written(), before);
    assert_eq!(report(&out)["outcomes"].as_array().unwrap().len(), outcomes.len() - 1);

    for outcome in outcomes {
        let file = folder.path().join("SDCLR").join(outcome["file"].as_str().unwrap());
        if file != model {
            assert_eq!(outcome["file_sha256"], hash_bytes(&std::fs::read(&file).unwrap()), "{}", file.display());
        }
    }

    // Files under the names of others.
    let encoder = |method: &str, list: &str| {
        let end = if method == "sdclr" { "_pruneP0.9DualBN" } else { "" };
        folder.path().join(format!("SDCLR/checkpoints/{SIMCLR}_split1_{list}_newNT_s10{end}/model_2000.pt"))
    };
    let best = folder.path().join("SDCLR").join(of("model")[1]["file"].as_str().unwrap());
    std::fs::copy(encoder("sdclr", "D_i"), encoder("simclr", "D_i")).unwrap();
    std::fs::copy(best, encoder("simclr", "D_b")).unwrap();
    let errors = text(&run().stderr);
    for (list, words) in [
        ("D_i", "has two batch norms a layer (SDCLR), not one batch norm a layer (SimCLR): is it"),
        ("D_b", "is of epoch 17, not 2000: is it"),
    ] {
        let told = format!("warning: {} {words}", encoder("simclr", list).display());
        assert_eq!(errors.matches(&told).count(), 1, "{errors}");
    }

    let whole = repro(&[arguments.as_slice(), &["--splits", "1", "--set", "width=1"]].concat());
    let errors = text(&whole.stderr);
    assert!(errors.contains("at another scale"), "{errors}");
}

/// Two processes of one command, on two devices or as two ranks. The job that a third one holds, and leaves undone, is done last.
#[test]
fn processes_on_one_folder_divide_the_models() {
    let Some(data) = data() else { return };
    let folder = tree("cifar10");
    for kind in ["devices", "ranks"] {
        let out = folder.path().join(kind);
        let [dir, to, images] = [folder.path(), &out, &data].map(|path| path.to_str().unwrap());
        let arguments = ["cifar10-lt", "--from-published", dir, "--out", to, "--data", images, "--splits", "1"];
        let limits = ["--limit-images", "100", "--limit-epochs", "1", "--set", "width=1"];
        let start = |own: &[&str]| {
            let mut command = command(&[&arguments[..], &limits, own].concat());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        let held = FolderLock::take(&out.join("simclr-D_i-split1/full-model")).unwrap().unwrap();
        let children: Vec<Child> = match kind {
            "devices" => vec![start(&["--devices", "cpu,cpu"]).spawn().unwrap()],
            _ => {
                let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
                let master = [("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)];
                let rank = |rank| start(&["--device", "cpu"]).envs(master).env("RANK", rank).spawn().unwrap();
                vec![rank("0"), rank("1")]
            }
        };
        // Files of this name in the jobs' folders, by what tells a file from one that took its place.
        let files = |name: &str| -> BTreeMap<PathBuf, u64> {
            let runs = list_folder(&out).unwrap().into_iter().filter(|path| path.is_dir());
            let paths = runs.flat_map(|run| list_folder(&run).unwrap()).map(|job| job.join(name));
            paths.filter_map(|path| Some((path.clone(), std::fs::metadata(path).ok()?.ino()))).collect()
        };
        let begun = Instant::now();
        while files("result.json").len() < 11 {
            assert!(begun.elapsed().as_secs() < 300, "{:?}", files("result.json"));
            std::thread::sleep(Duration::from_millis(20));
        }
        let logs = files("run.jsonl");
        drop(held);
        let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        for output in &outputs {
            assert!(output.status.success(), "{kind}: {}", text(&output.stderr));
        }
        let printed: String = outputs.iter().map(|output| text(&output.stdout)).collect();
        assert_eq!(printed.matches("report: ").count(), 1, "{kind}: {printed}");
        assert_eq!(report(&out)["outcomes"].as_array().unwrap().len(), 18);
        // Each was begun once: a log that is begun again is another file.
        let mut after = files("run.jsonl");
        after.retain(|path, _| logs.contains_key(path));
        assert_eq!((logs.len(), after), (11, logs), "{kind}");
    }
}

/// All test images: a model repeats its log to the rounding, but for the one whose log says something else.
#[test]
fn models_repeat_their_logs() {
    let Some(data) = data() else { return };
    let folder = tree("cifar10");
    let out = folder.path().join("runs");
    std::fs::remove_dir_all(folder.path().join("SDCLR/checkpoints")).unwrap();
    let [dir, to, images] = [folder.path(), &out, &data].map(|path| path.to_str().unwrap());
    let arguments = ["cifar10-lt", "--from-published", dir, "--out", to, "--data", images, "--device", "cpu"];
    let which = ["--splits", "2", "--methods", "simclr", "--pretrain-splits", "D_i", "--set", "width=1"];
    let output = repro(&[arguments.as_slice(), &which].concat());
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors.matches("missing: ").count(), 1, "{errors}");

    let found = report(&out);
    let expected = expected();
    let outcomes = found["outcomes"].as_array().unwrap();
    assert_eq!(outcomes.len(), 4);
    for outcome in outcomes {
        match (outcome["kind"].as_str().unwrap(), outcome["protocol"].as_str().unwrap()) {
            ("model", _) => assert_classes(outcome, &expected[run_of(outcome)].all, 1e-9),
            ("log", "full") => assert_classes(outcome, &expected[run_of(outcome)].all, 0.0051),
            _ => assert!(outcome["outcome"]["all"].as_f64().unwrap() > 20.0, "made up"),
        }
    }
    let markdown = std::fs::read_to_string(out.join("report.md")).unwrap();
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"[0-9a-f]{64}", "[SHA256]");
    settings.add_filter(r"\([0-9.]+ s in this session\)", "([TIME] in this session)");
    settings.add_filter(r"- Machine: .*", "- Machine: [MACHINE]");
    settings.bind(|| insta::assert_snapshot!("report_md", markdown));
}
