//! What the command line prints: help, the plan, and one clear error for each kind of bad input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ndarray::{Array1, Array4};
use ndarray_npy::WriteNpyExt;
use sdclr::checkpoint;
use sdclr::network::{Network, NetworkSpec};
use sdclr::recipe::{Recipe, Suite};
use tch::{Device, Kind};
use tempfile::TempDir;

fn sdclr(arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .args(arguments)
        .env_remove("SDCLR_DATA")
        .env("SDCLR_CACHE", "/nonexistent")
        .env("COLUMNS", "110")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a command that must fail with exit code 1 and one error; gives its standard error without the paths of this run.
fn error(folder: &Path, arguments: &[&str]) -> String {
    let output = sdclr(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    said.replace(&folder.display().to_string(), "[DIR]")
}

fn write_npy<T: ndarray_npy::WritableElement>(path: &Path, values: Vec<T>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    Array1::from(values)
        .write_npy(std::fs::File::options().create(true).truncate(true).write(true).open(path).unwrap())
        .unwrap();
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    sdclr::fs::write(path, bytes).unwrap();
}

/// A folder in the layout of the binary version with made-up images: as large as the real one, all grey.
fn made_up_cifar10() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        let mut bytes = vec![128; 10_000 * 3073];
        for (i, record) in bytes.chunks_mut(3073).enumerate() {
            record[0] = (i % 10) as u8;
        }
        write(&folder.path().join(format!("cifar-10-batches-bin/{name}.bin")), &bytes);
    }
    folder
}

const PRETRAIN: &[&str] =
    &["pretrain", "--recipe", "cifar10-lt/sdclr", "--split", "1", "--pretrain-split", "D_i", "--out"];

fn pretrain_error(data: &Path) -> String {
    let out = data.join("run");
    let [out, folder] = [&out, data].map(|path| path.to_str().unwrap().to_owned());
    error(data, &[PRETRAIN, &[&out, "--data", &folder, "--device", "cpu"]].concat())
}

#[test]
fn help_of_every_command() {
    insta::assert_snapshot!("help", text(&sdclr(&["--help"]).stdout));
    let commands = [
        "fetch",
        "repro",
        "plan",
        "pretrain",
        "probe",
        "features",
        "export",
        "views",
        "split",
        "replay",
        "analyse",
        "bench",
        "doctor",
        "completions",
    ];
    for command in commands {
        let output = sdclr(&[command, "--help"]);
        assert!(output.status.success());
        insta::assert_snapshot!(format!("help_{command}"), text(&output.stdout));
    }
}

/// Not the commit of another checkout, in which its Python environment may lie.
#[test]
fn an_installed_program_tells_its_own_commit() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("sdclr");
    std::fs::copy(assert_cmd::cargo::cargo_bin!("sdclr"), &program).unwrap();
    write(&folder.path().join("commit"), b"0123abcd\n");
    let output = Command::new(program).arg("doctor").env("SDCLR_CACHE", "/nonexistent").output().unwrap();
    let first = format!("sdclr      {} (0123abcd)\n", env!("CARGO_PKG_VERSION"));
    assert!(text(&output.stdout).starts_with(&first), "{}", text(&output.stdout));
}

#[test]
fn completions_name_the_commands() {
    let script = text(&sdclr(&["completions", "bash"]).stdout);
    assert!(script.contains("repro") && script.contains("--pretrain-splits"));
}

#[test]
fn dry_run_prints_the_plan_and_the_resolved_recipes() {
    let arguments = [
        "repro",
        "cifar10-lt",
        "--splits",
        "1-2",
        "--methods",
        "simclr,sdclr",
        "--set",
        "epochs=500",
        "lr=1",
        "--dry-run",
    ];
    insta::with_settings!({ filters => [(r"[0-9.]+ [KMGTP]iB free", "[FREE] free"), (r"at most [0-9.]+ .iB", "at most [JOBS]"),
        (r"at least .*, at its [0-9.]+ TFLOP/s for [a-z0-9]+", "at least [TIME], at its [RATE]")] }, {
        insta::assert_snapshot!("dry_run_cifar10", text(&sdclr(&arguments).stdout));
        insta::assert_snapshot!("dry_run_digits", text(&sdclr(&["repro", "digits-lt", "--dry-run"]).stdout));
    });
}

#[test]
fn numbers_are_taken_as_people_write_them() {
    let set = |text: &str| Recipe::resolve("digits-lt/sdclr", &[text.to_owned()]);
    for (text, lr) in [
        (".5", 0.5),
        ("1.", 1.0),
        ("+1", 1.0),
        ("1", 1.0),
        ("5e-1", 0.5),
        ("1E-4", 1e-4),
        ("1.e2", 100.0),
        ("+.5", 0.5),
        ("5_000", 5000.0),
        ("5_0.", 50.0),
    ] {
        assert_eq!(set(&format!("lr={text}")).unwrap().lr, lr, "{text}");
    }
    for (text, epochs) in [("1e1", 10), ("10.", 10), ("1_000", 1000), ("+7", 7), ("2.0", 2)] {
        assert_eq!(set(&format!("epochs={text}")).unwrap().epochs, epochs, "{text}");
    }
    assert_eq!(set("augment.scale=[.25, 1.]").unwrap().augment.scale, [0.25, 1.0]);
    assert_eq!(set("augment.scale=[.25, 1]").unwrap().augment.scale, [0.25, 1.0]);
    assert_eq!(set("probe.full.milestones=[1e1, 20]").unwrap_err().to_string(), MILESTONES);
    let value = |key: &str, found: &str, expected: &str| {
        let error = set(&format!("{key}={found}")).unwrap_err().to_string();
        assert_eq!(error, format!("recipe key '{key}' holds {found}, but {expected}"));
    };
    let whole = |least: &str| format!("a whole number of at least {least} is needed");
    value("batch_size", "-64", &(whole("2") + ": the loss contrasts images"));
    value("batch_size", "1", &(whole("2") + ": the loss contrasts images"));
    value("epochs", "-1", &whole("1"));
    value("probe.few.epochs", "-1", &whole("1"));
    value("probe.few.epochs", "0", &whole("1"));
    value("seed", "-1", &whole("0"));
    value("warmup_epochs", "-1", &whole("0"));
    value("epochs", "1.5", "a whole number is needed");
    value("epochs", "ten", "a whole number is needed");
    value("lr", "fast", "a number is needed");
    value("lr", "0x", "a number is needed");
    value("dual_bn", "yes", "true or false is needed");
    value("augment.scale", "0.5", "a list such as [0.4, 1.0] is needed");
    value("schedule", "none", "only cosine and constant are known");
    value("schedule", "1", "only cosine and constant are known");
    value("network", "18", "only resnet10, resnet18, resnet34, resnet50, resnet101, resnet152 are known");
    value("augment.scale", "[0.4]", "a list of two numbers is needed");
    value("augment.scale", "[0.4, 0.5, 0.6]", "a list of two numbers is needed");
}

const MILESTONES: &str = "recipe key 'probe.full.milestones' holds [10.0, 20], but a whole number is needed";

/// What a recipe of somebody else's holds is cut and escaped, and no recipe is read without a bound.
#[test]
fn foreign_recipes_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.toml");
    let read = |text: &str| {
        write(&path, text.as_bytes());
        let error = Suite::open(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.len() < 1000 && !error.contains(char::is_control), "{error:?}");
        error
    };
    let good = include_str!("../fixtures/suites/digits-lt.toml");
    assert!(
        read(&good.replace("[recipe]\n", "[recipe]\n\"\\u001b[2J\\u202e\" = 1\n")).contains("'\\u{1b}[2J\\u{202e}'")
    );
    assert!(read(&format!("a = {}1{}", "[".repeat(100_000), "]".repeat(100_000))).contains("line 1: "));
    assert!(read(&"[".repeat(50_000)).contains("cannot be read"));
    let line = good.lines().position(|line| line == "lr = 0.5").unwrap() + 1;
    assert!(read(&good.replace("lr = 0.5", "lr = .5")).contains(&format!("line {line}: ")));
    assert!(read(&good.replace("\"cosine\"", "\"\\u001b]0;none\"")).contains("only cosine and constant are known"));
    assert!(read(&"#".repeat(2 << 20)).contains("more than the 1048576 bytes allowed"));
    // A mark at the beginning is skipped.
    write(&path, format!("\u{feff}{good}").as_bytes());
    assert_eq!(Suite::open(path.to_str().unwrap()).unwrap().splits, [1, 2, 3, 4, 5]);
    for seeds in ["0", "101"] {
        assert!(read(&good.replace("seeds = 2", &format!("seeds = {seeds}"))).contains("1 to 100 are needed"));
    }
}

#[test]
fn a_network_without_its_width_is_warned_of() {
    let plan = |set: &[&str]| text(&sdclr(&[&["repro", "digits-lt", "--dry-run", "--set"], set].concat()).stderr);
    assert!(
        plan(&["network=resnet18"]).starts_with("warning: network=resnet18 keeps the recipe's width of 8 channels")
    );
    assert_eq!(plan(&["network=resnet18", "width=64"]), "");
    assert_eq!(plan(&["epochs=3"]), "");
}

#[test]
fn recipe_errors() {
    let none = Path::new("/nonexistent");
    let dry = |set: &str| error(none, &["repro", "cifar10-lt", "--dry-run", "--set", set]);
    let errors = [
        dry("epoch=500"),
        dry("temprature=0.2"),
        dry("zzz=1"),
        dry("epochs"),
        dry("epochs=many"),
        dry("temperature=0"),
        dry("probe.few.lr=-1"),
        error(none, &["repro", "cifar10-lt", "--dry-run", "--methods", "sdclr", "--set", "prune_ratio=1.5"]),
        error(none, &["repro", "cifar10", "--dry-run"]),
        error(none, &["repro", "cifar10-lt", "--dry-run", "--methods", "simsiam"]),
        error(
            none,
            &["pretrain", "--recipe", "cifar10-lt/sdcrl", "--split", "1", "--pretrain-split", "D_i", "--out", "x"],
        ),
    ];
    insta::assert_snapshot!("recipe_errors", errors.join("\n"));
}

#[test]
fn device_errors() {
    let out = tempfile::tempdir().unwrap();
    let run = |device: &str| {
        let folder = out.path().to_str().unwrap();
        let arguments = ["--split", "1", "--pretrain-split", "D_i", "--out", folder, "--device", device];
        error(out.path(), &[&["pretrain", "--recipe", "digits-lt/sdclr"], arguments.as_slice()].concat())
    };
    assert!(run("gpu").contains("'gpu' names no device; use cpu, cuda or cuda:N"));
    let missing = run("cuda:99");
    assert!(missing.contains("device cuda:99 is not there:") && missing.contains("use --device cpu"), "{missing}");
}

#[test]
fn data_errors() {
    let none = tempfile::tempdir().unwrap();
    let out = none.path().join("run");
    let unnamed = error(none.path(), &[PRETRAIN, &[out.to_str().unwrap(), "--device", "cpu"]].concat());
    let empty = pretrain_error(none.path());

    let data = made_up_cifar10();
    let list = data.path().join("split/cifar10_imbSub_with_subsets/split1_D_i.npy");
    let no_list = pretrain_error(data.path());
    write(&list, b"not numpy");
    let foreign = pretrain_error(data.path());
    write_npy(&list, vec![1.0_f32, 2.0]);
    let floats = pretrain_error(data.path());
    write_npy(&list, vec![3_i64, 50_000]);
    let out_of_range = pretrain_error(data.path());
    write_npy(&list, vec![3_i64, -1]);
    let negative = pretrain_error(data.path());
    write_npy(&list, vec![3_i64, 7, 3]);
    let repeated = pretrain_error(data.path());
    write_npy(&list, Vec::<i64>::new());
    let empty_list = pretrain_error(data.path());

    let batch = data.path().join("cifar-10-batches-bin/data_batch_3.bin");
    let whole = std::fs::read(&batch).unwrap();
    let mut label = whole.clone();
    label[3073 * 5] = 10;
    write(&batch, &label);
    let bad_label = pretrain_error(data.path());
    write(&batch, &whole[..whole.len() - 1]);
    let truncated = pretrain_error(data.path());
    std::fs::remove_file(&batch).unwrap();
    let missing = pretrain_error(data.path());

    let errors = [
        unnamed,
        empty,
        no_list,
        foreign,
        floats,
        out_of_range,
        negative,
        repeated,
        empty_list,
        bad_label,
        truncated,
        missing,
    ];
    let mut settings = insta::Settings::clone_current();
    settings.add_filter("warning: .*\n", "");
    settings.bind(|| insta::assert_snapshot!("data_errors", errors.join("\n")));
}

/// The encoder of a very short run, for commands that want a checkpoint.
fn short_encoder(folder: &Path) -> PathBuf {
    let out = folder.join("run");
    let arguments = ["pretrain", "--recipe", "digits-lt/sdclr", "--split", "1", "--pretrain-split", "D_i", "--out"];
    let limits = [out.to_str().unwrap(), "--limit-epochs", "1", "--limit-images", "16", "--device", "cpu"];
    let output = sdclr(&[arguments.as_slice(), limits.as_slice()].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("smoke run, not a result"));
    out.join("encoder.safetensors")
}

#[test]
fn checkpoint_errors() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = short_encoder(folder.path());
    let probe = |checkpoint: &str, recipe: &str| {
        let arguments =
            ["probe", checkpoint, "--recipe", recipe, "--split", "1", "--protocol", "few", "--device", "cpu"];
        let set = ["--set", if recipe.ends_with("sdclr") { "network=resnet18" } else { "width=16" }];
        error(folder.path(), &[arguments.as_slice(), set.as_slice()].concat())
    };
    let encoder = encoder.to_str().unwrap();
    let attack = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/attacks");
    let hostile = std::fs::read_dir(attack)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().contains("global_reduce"))
        .expect("the corpus holds a pickle that calls os.system");
    let errors = [
        probe(encoder, "digits-lt/sdclr"),
        probe(encoder, "digits-lt/simclr"),
        probe(folder.path().join("none.pt").to_str().unwrap(), "digits-lt/simclr"),
        probe(hostile.to_str().unwrap(), "digits-lt/simclr").replace(attack, "[ATTACKS]"),
    ];
    insta::assert_snapshot!("checkpoint_errors", errors.join("\n"));
}

/// Of outputs that are no numbers a class could be read all the same.
#[test]
fn a_model_of_nan_is_not_measured() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe::resolve("digits-lt/simclr", &[]).unwrap();
    let network = Network::new(NetworkSpec::of_recipe(&recipe).probe(10), 1, Kind::Float, Device::Cpu).unwrap();
    let mut state = network.state();
    let weight = state.get("fc.weight").unwrap().copy();
    let _ = weight.get(3).fill_(f64::NAN);
    state.insert("fc.weight".to_owned(), weight);
    let model = folder.path().join("model.safetensors");
    checkpoint::write_weights(&model, &state).unwrap();
    let arguments = ["probe", model.to_str().unwrap(), "--recipe", "digits-lt/simclr", "--split", "1"];
    let rest = ["--protocol", "full", "--device", "cpu", "--test-only"];
    let said = error(folder.path(), &[arguments.as_slice(), &rest].concat());
    assert!(said.contains("the network's outputs for the ") && said.contains(" list are not all finite"), "{said}");
}

#[test]
fn another_recipe_into_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = short_encoder(folder.path());
    let before = std::fs::read(&encoder).unwrap();
    // The same command finds it done.
    assert_eq!(short_encoder(folder.path()), encoder);
    let out = folder.path().join("run");
    let arguments = ["pretrain", "--recipe", "digits-lt/sdclr", "--split", "2", "--pretrain-split", "D_i", "--out"];
    let limits = [out.to_str().unwrap(), "--limit-epochs", "1", "--limit-images", "16", "--device", "cpu"];
    let said = error(folder.path(), &[arguments.as_slice(), limits.as_slice()].concat());
    assert!(said.contains("[DIR]/run holds a run of another recipe, data set or split"), "{said}");
    assert_eq!(std::fs::read(&encoder).unwrap(), before);
}

#[test]
fn a_diverging_run_names_epoch_step_rate_and_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let arguments = ["pretrain", "--recipe", "digits-lt/simclr", "--split", "1", "--pretrain-split", "D_i", "--out"];
    let set = [out.to_str().unwrap(), "--device", "cpu", "--set", "lr=1e30", "epochs=12", "warmup_epochs=8"];
    let said = error(folder.path(), &[arguments.as_slice(), set.as_slice()].concat());
    for part in ["the loss is", "in epoch", "step", "at learning rate", "lower lr"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(std::fs::read_to_string(out.join("run.jsonl")).unwrap().contains("\"event\":\"failure\""));
}

#[test]
fn a_failed_job_does_not_stop_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("suite");
    // A folder that holds another run makes one job fail.
    write(&out.join("simclr-D_i-split1/result.json"), b"{}");
    let arguments =
        ["repro", "digits-lt", "--splits", "1", "--limit-images", "32", "--limit-epochs", "1", "--device", "cpu"];
    let output = sdclr(&[arguments.as_slice(), &["--out", out.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains("failed: simclr-D_i-split1:") && said.contains("delete it to have the job run again"),
        "{said}"
    );
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    assert!(report.contains("smoke run, not a result") && report.contains("simclr-D_i-split1/few"));
    for finished in ["random-split1/full", "simclr-D_b-split1/few", "sdclr-D_i-split1/full"] {
        let path = out.join(finished).join("result.json");
        let result: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(result["smoke"], true);
        assert_eq!(result["stamp"], "smoke run, not a result");
        assert_eq!(result["per_class"].as_array().unwrap().len(), 10);
        assert_eq!(result["recipe"]["epochs"], 80);
    }
}

#[test]
fn features_of_given_images() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = short_encoder(folder.path());
    let [images, out] = ["images.npy", "features.npy"].map(|name| folder.path().join(name));
    let file = |path: &Path| std::fs::File::options().create(true).truncate(true).write(true).open(path).unwrap();
    Array4::<u8>::from_elem((3, 3, 16, 16), 7).write_npy(file(&images)).unwrap();
    let run = |layer: &str, images: &Path| {
        let [encoder, images, out] = [&encoder, images, &out].map(|path| path.to_str().unwrap());
        let arguments =
            ["features", encoder, "--network", "resnet10", "--layer", layer, "--images", images, "--out", out];
        sdclr(&[arguments.as_slice(), &["--device", "cpu"]].concat())
    };
    assert!(text(&run("backbone", &images).stdout).contains("float32 [3, 64]"));
    assert!(text(&run("head", &images).stdout).contains("float32 [3, 128]"));
    Array1::<u8>::zeros(5).write_npy(file(&images)).unwrap();
    let said = text(&run("head", &images).stderr);
    assert!(said.contains("images.npy has shape [5], expected [n, 3, H, W]"), "{said}");
}
