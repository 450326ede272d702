//! Races at a tiny size, alone and against PyTorch, and the table of the growing cost.

mod skip;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sdclr::bench::BenchReport;
use sdclr::bench::scaling::ScalingReport;
use sdclr::recipe::Precision;
use skip::skip;

fn bench(arguments: &[&str]) -> Output {
    // From the checkout, where the peer is.
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("bench").args(arguments).args(["--device", "cpu"]);
    // What torch.compile is given runs as it is: compiling it takes a minute and shows nothing of ours.
    command.env("TORCH_COMPILE_DISABLE", "1").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs a small race of `kind` and gives its record, its Markdown and what the terminal showed.
fn race(folder: &Path, kind: &str, more: &[&str]) -> (BenchReport, String, String) {
    let [json, markdown] = ["race.json", "race.md"].map(|name| folder.join(name).display().to_string());
    let size = ["--network", "resnet10", "--size", "8", "--batch", "4", "--rounds", "2", "--iterations", "1"];
    let out = ["--set", "width=4", "--json", &json, "--markdown", &markdown];
    let output = bench(&[&[kind], size.as_slice(), out.as_slice(), more].concat());
    assert!(output.status.success(), "{kind}: {}", text(&output.stderr));
    let report = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    (report, std::fs::read_to_string(&markdown).unwrap(), text(&output.stdout))
}

#[test]
fn every_kind_runs_alone() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["train", "step", "augment", "load", "decode", "mask", "probe"] {
        let (report, markdown, shown) = race(folder.path(), kind, &["--no-peer", "--images", "10"]);
        let [ours] = report.contestants.as_slice() else { panic!("{kind} has {} rows", report.contestants.len()) };
        assert_eq!((ours.name.as_str(), ours.seconds.len(), ours.ratio_to_ours), ("sdclr", 2, 1.0));
        assert!(markdown.starts_with(&format!("## {kind}\n")) && markdown.contains("\n| sdclr | "), "{markdown}");
        assert!(shown.contains("sdclr  "), "{shown}");
        let size = if kind == "decode" { "decode, 10 images on one thread" } else { "8 pixels, batch 4" };
        assert!(shown.contains(size), "{shown}");
        let simd = ["load", "decode"].contains(&kind).then(sdclr::dataset::speed::uses_simd);
        assert_eq!((report.jpeg_simd, shown.contains("JPEGs decoded ")), (simd, simd.is_some()), "{shown}");
        let trains = ["train", "step"].contains(&kind);
        assert_eq!(report.flop_per_step.is_some() && report.matrix_rate.is_some(), trains);
        if let (Some(flop), Some(rate)) = (report.flop_per_step, &report.matrix_rate) {
            // Ten images in batches of four are two whole steps.
            let steps = if kind == "train" { 2.0 } else { 1.0 };
            let share = steps * flop as f64 / ours.median_seconds / rate.flop_per_second;
            assert!((ours.share_of_matrix_rate.unwrap() / share - 1.0).abs() < 1e-9);
            assert!((0.0..1.0).contains(&share), "{share}");
            assert!((ours.images_per_second.unwrap() / ours.steps_per_second.unwrap() - 4.0).abs() < 1e-9);
        }
    }
}

#[test]
fn an_epoch_without_a_whole_batch_is_refused() {
    let output = bench(&["train", "--no-peer", "--batch", "8", "--images", "7"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("an epoch of 7 images has no whole batch of 8; use --images 8 or more"), "{said}");
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    for option in ["--rounds", "--iterations", "--images", "--batch", "--size", "--cores", "--file-width"] {
        let output = bench(&["mask", "--no-peer", option, "0"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("0 is not in 1.."), "{option}: {}", text(&output.stderr));
    }
    for kind in ["hash", "checkpoint", "norm"] {
        let output = bench(&[kind, "--batch", "2,4"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains(&format!("there is no table of how {kind} grows; give one value each of")),
            "{}",
            text(&output.stderr)
        );
    }
    let output = bench(&["mask", "--no-peer", "--cores", "1000000"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("error: --cores 1000000: this process may use "), "{}", text(&output.stderr));
    let both = ["mask", "--no-peer", "--precision", "bf16", "--set"];
    let output = bench(&[both.as_slice(), &["precision=fp32"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("are two precisions; give one of them"), "{}", text(&output.stderr));
}

#[test]
fn kernels_for_a_gpu_are_not_raced_on_a_cpu() {
    let output = bench(&["norm", "--no-peer"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "error: norm races kernels for a GPU, and the device is none; use --device cuda:0\n"
    );
}

/// The peer itself can do without: it is asked as a race would ask it.
#[test]
fn the_peers_of_batch_norm_run() {
    if no_pytorch() {
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python =
        std::env::var_os("SDCLR_ORACLE_PYTHON").map_or_else(|| folder.join(".oracle/bin/python"), PathBuf::from);
    let orders = tempfile::NamedTempFile::new().unwrap();
    sdclr::fs::write(orders.path(), b"run eager 1\nrun compiled 2\n").unwrap();
    let mut command = Command::new(python);
    command.current_dir(folder).args(["reference/torch/peer.py", "norm", "--batch", "2", "--size", "8"]);
    let output =
        command.env("TORCH_COMPILE_DISABLE", "1").stdin(std::fs::File::open(orders.path()).unwrap()).output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(said.contains(r#""variants": [["eager", "bf16"], ["compiled", "bf16"]]"#), "{said}");
    assert_eq!(said.matches("\"seconds\": ").count(), 2, "{said}");
}

fn contestants(report: &BenchReport) -> Vec<(&str, Option<Precision>)> {
    report.contestants.iter().map(|contestant| (contestant.name.as_str(), contestant.precision)).collect()
}

fn no_pytorch() -> bool {
    let none = !Path::new(env!("CARGO_MANIFEST_DIR")).join(".oracle").exists()
        && std::env::var_os("SDCLR_ORACLE_PYTHON").is_none();
    if none {
        skip("oracle", "there is no PyTorch (ci/oracle --env makes one)");
    }
    none
}

#[test]
fn peers_of_the_other_kinds_race_like_with_like() {
    if no_pytorch() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (report, markdown, _) = race(folder.path(), "step", &["--precision", "bf16"]);
    let names = ["published-bf16", "joint-bf16", "joint-channels-last-bf16"].map(|name| format!("PyTorch {name}"));
    let mut expected = vec![("sdclr", Some(Precision::Bf16)), ("PyTorch published", Some(Precision::Fp32))];
    expected.extend(names.iter().map(|name| (name.as_str(), Some(Precision::Bf16))));
    assert_eq!(contestants(&report), expected);
    assert!(markdown.contains("| PyTorch joint-bf16 | bf16 |"), "{markdown}");
    // By data loaders, whose last batch is short.
    let (report, ..) = race(folder.path(), "augment", &["--images", "10"]);
    assert_eq!(contestants(&report), [("sdclr", None), ("PyTorch torchvision", None)]);
    let (report, ..) = race(folder.path(), "load", &["--images", "5"]);
    assert_eq!(contestants(&report), [("sdclr", None), ("PyTorch torchvision", None)]);
    assert_eq!(report.images, 5);
    let (report, ..) = race(folder.path(), "decode", &["--images", "5"]);
    assert_eq!(contestants(&report), [("sdclr", None), ("Pillow", None)]);
    let (report, ..) = race(folder.path(), "probe", &["--images", "10", "--precision", "bf16"]);
    assert_eq!(contestants(&report), ["sdclr", "PyTorch published"].map(|name| (name, Some(Precision::Fp32))));
}

#[test]
fn both_peers_train_end_to_end() {
    if no_pytorch() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (report, _, shown) = race(folder.path(), "train", &["--images", "8"]);
    let all_fp32 = ["sdclr", "PyTorch published", "PyTorch compiled"].map(|name| (name, Some(Precision::Fp32)));
    assert_eq!(contestants(&report), all_fp32, "{shown}");
    assert!(report.absent.is_empty());
    for contestant in &report.contestants {
        assert!(contestant.ratio_to_ours > 0.0 && contestant.peak_rss_bytes.unwrap() > 1 << 20);
        assert!(contestant.share_of_matrix_rate.is_some_and(|share| share > 0.0));
    }
}

/// What the peer offers is told before it touches the device, so that a machine without a GPU shows it.
#[test]
fn on_cuda_every_mode_of_the_compiler_races() {
    if no_pytorch() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var_os("SDCLR_ORACLE_PYTHON").unwrap_or_else(|| root.join(".oracle/bin/python").into());
    let output = Command::new(python)
        .arg(root.join("reference/torch/peer.py"))
        .args(["train", "--device", "cuda:0", "--precision", "bf16"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let ready: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let best = ["compiled", "compiled-graphs", "compiled-autotuned"].map(|name| serde_json::json!([name, "bf16"]));
    assert_eq!(ready["variants"], serde_json::json!([["published", "fp32"], best[0], best[1], best[2]]));
}

/// A stand-in for the peer that dies in its first run.
fn dying_peer(folder: &Path) -> PathBuf {
    let python = folder.join("python");
    programs(&[(&python, "#!/bin/sh\necho '{\"variants\": [[\"dying\", null]]}'\nread order\nexit 3\n")]);
    python
}

#[test]
fn a_peer_that_dies_does_not_take_the_race_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("SDCLR_ORACLE_PYTHON", dying_peer(folder.path()))
        .args(["bench", "mask", "--set", "width=4", "--rounds", "1", "--device", "cpu"])
        .output()
        .unwrap();
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.contains("sdclr") && shown.contains("PyTorch dying: failed"), "{shown}");
    assert!(shown.contains("PyTorch dying failed: it ended before it answered"), "{shown}");
}

/// Of loading: with the processors that it has, the width of made-up files and the batch, whose images take memory.
#[test]
fn loading_grows() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("growth.json");
    let grid = ["--cores", "1", "--file-width", "40,80", "--batch", "2,64", "--json", json.to_str().unwrap()];
    let rest = ["--no-peer", "--size", "256", "--images", "64", "--rounds", "1", "--iterations", "1"];
    let output = bench(&[&["load"], grid.as_slice(), rest.as_slice()].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: ScalingReport = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let settings: Vec<_> = report.rows.iter().map(|row| (row.cores, row.file_width, row.batch)).collect();
    let expected = [(40, 2), (40, 64), (80, 2), (80, 64)];
    assert_eq!(settings, expected.map(|(width, batch)| (Some(1), Some(width), batch)));
    for race in report.rows.iter().map(|row| row.race.as_ref().unwrap_or_else(|| panic!("{:?}", row.failure))) {
        assert_eq!((race.environment.threads, race.contestants.len(), race.images), (1, 1, 64));
    }
    // Both views of an image are 384 KiB.
    let shown = text(&output.stdout);
    let grown: Vec<f64> = shown
        .lines()
        .filter_map(|line| line.strip_suffix("measured")?.split_whitespace().last()?.parse().ok())
        .collect();
    assert!(grown.len() == 2 && grown.iter().all(|mib| *mib > 0.25), "{shown}");
}

#[test]
fn the_growing_cost_goes_on_past_what_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let [json, markdown] = ["growth.json", "growth.md"].map(|name| folder.path().join(name));
    let [json_text, markdown_text] = [&json, &markdown].map(|path| path.to_str().unwrap());
    let grid = ["--network", "resnet10", "--size", "8,72", "--batch", "2,10000000000"];
    let rest =
        ["--rounds", "1", "--iterations", "1", "--set", "width=4", "--json", json_text, "--markdown", markdown_text];
    let output = bench(&[&["train"], grid.as_slice(), rest.as_slice()].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: ScalingReport = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report.rows.len(), 4);
    for row in &report.rows {
        match row.batch {
            2 => {
                let race = row.race.as_ref().unwrap_or_else(|| panic!("{:?}", row.failure));
                assert_eq!((race.network, race.size, race.batch, race.images), (row.network, row.size, 2, 8));
                assert_eq!(sdclr::recipe::name_of(&race.stem), if row.size > 64 { "imagenet" } else { "cifar" });
                assert!(race.contestants[0].peak_rss_bytes.unwrap() > 1 << 20);
            }
            _ => assert_eq!(row.failure.as_deref(), Some("out of memory")),
        }
    }
    let table = std::fs::read_to_string(&markdown).unwrap();
    assert_eq!(table.matches("| out of memory |").count(), 2, "{table}");
    assert_eq!(table.matches("| measured |").count(), 2, "{table}");
}

/// A stand-in for a built program that sees a GPU: it notes what it is asked for, and says that the budget of full-scale
/// runs is used up.
const PROGRAM: &str = r#"#!/bin/sh
[ -n "$LD_LIBRARY_PATH" ] || exit 127
echo "$@" >>"$ASKED"
case $1 in
  doctor) printf "${DOCTOR:-CUDA       loaded, 1 devices\n  cuda:0   NVIDIA H200\n}" ;;
  repro) case "$*" in *--budget*) exit 75 ;; esac ;;
  bench) case "$*" in *"bench mask"*) exit 1 ;; esac ;;
esac
"#;

/// Writes programs that anybody may run.
fn programs(scripts: &[(&PathBuf, &str)]) {
    for (path, text) in scripts {
        sdclr::fs::write(path, text.as_bytes()).unwrap();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
}

/// What `ci/gpu` ends with and says on a machine whose `nvidia-smi` finds a GPU, where doctor says `doctor` of CUDA.
fn ci_gpu_with(folder: &Path, doctor: &str, visible: Option<&str>, arguments: &[&str]) -> (Option<i32>, String) {
    let [program, smi] = ["sdclr", "nvidia-smi"].map(|name| folder.join(name));
    programs(&[(&program, PROGRAM), (&smi, "#!/bin/sh\n")]);
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/gpu"));
    command.args(arguments).env("DOCTOR", doctor).env("PATH", path).env("LD_LIBRARY_PATH", "/the/torch");
    command
        .envs([("SDCLR_BIN", &program), ("SDCLR_PYTHON", &folder.join("python"))])
        .env("ASKED", folder.join("asked"));
    command.env_remove("CUDA_VISIBLE_DEVICES").env_remove("SDCLR_DATA");
    command.args(["--out".as_ref(), folder.join("out").as_os_str()]);
    let output = command.envs(visible.map(|visible| ("CUDA_VISIBLE_DEVICES", visible))).output().unwrap();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn ci_gpu_does_not_overlook_a_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let broken = "CUDA       not loaded: libcudart.so.13 is missing\n";
    let (code, said) = ci_gpu_with(folder.path(), broken, None, &[]);
    assert!(code == Some(1) && said.contains("there is a GPU, but sdclr finds no cuda:0"), "{said}");
    assert!(said.contains("doctor says: CUDA       not loaded: libcudart.so.13 is missing"), "{said}");
    let (code, said) = ci_gpu_with(folder.path(), "", None, &["--device", "cuda:7"]);
    assert!(code == Some(1) && said.contains("sdclr finds no cuda:7"), "{said}");
    // Hidden on purpose, as ci/test does.
    let (code, said) = ci_gpu_with(folder.path(), broken, Some(""), &[]);
    assert!(code == Some(0) && said.contains("no cuda:0 here: nothing was measured"), "{said}");
}

#[test]
fn ci_gpu_refuses_what_it_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        (["--parts", "race"], "--parts race: use some of"),
        (["--parts", ""], "--parts : use some of"),
        (["--device", "cdua:0"], "--device cdua:0 is no GPU"),
        (["--budget", "1s1m"], "--budget 1s1m is no length of time"),
        (["--budget", "00m"], "--budget 00m is no length of time"),
        (["--budget", "99999999999999999999s"], "is no length of time"),
    ];
    for (arguments, expected) in cases {
        let (code, said) = ci_gpu_with(folder.path(), "", Some(""), &arguments);
        assert!(code == Some(1) && said.contains(expected), "{arguments:?}: {said}");
    }
    // The first GPU, and eight minutes.
    let (code, said) =
        ci_gpu_with(folder.path(), "", None, &["--device", "cuda", "--parts", "full", "--budget", "08m"]);
    assert!(code == Some(0) && said.contains("records, tables and reports are in"), "{said}");
}

#[test]
fn ci_gpu_asks_for_everything_and_packs_it() {
    let folder = tempfile::tempdir().unwrap();
    let [program, nextest, python, asked, out] =
        ["sdclr", "cargo-nextest", "python", "asked", "out"].map(|name| folder.path().join(name));
    let scripts = [
        (&program, PROGRAM),
        (&nextest, "#!/bin/sh\necho \"nextest on $SDCLR_TEST_DEVICE: $@\"\n"),
        (&python, "#!/bin/sh\ncase \"$2\" in *find_spec*) echo /the/torch ;; *) exit 1 ;; esac\n"),
    ];
    programs(&scripts);
    sdclr::fs::write(&out.join(".sdclr-of-a-killed-write.part"), b"").unwrap();
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/gpu"))
        .args(["--budget", "2m", "--out"])
        .arg(&out)
        .envs([("SDCLR_BIN", &program), ("CARGO_NEXTEST", &nextest), ("SDCLR_PYTHON", &python), ("ASKED", &asked)])
        .envs([("SDCLR_TESTS", "tests.tar.zst"), ("SDCLR_DATA", "/the/data")])
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    // The one race that failed is named, after everything else was done.
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.ends_with("ci/gpu: not as it should be: mask\n"), "{said}");
    assert!(said.contains("has no torch with torchvision: the races are run alone"), "{said}");

    let asked = std::fs::read_to_string(&asked).unwrap();
    let asked: Vec<&str> = asked.lines().filter(|line| !line.starts_with("--version")).collect();
    assert_eq!(asked[0], "doctor");
    let races: Vec<&str> = asked.iter().filter_map(|line| line.strip_prefix("bench ")?.split(' ').next()).collect();
    let kinds = ["train", "train", "train", "train", "step", "augment", "mask", "probe", "norm", "train"];
    assert_eq!(races, kinds);
    assert_eq!(asked.iter().filter(|line| line.contains(" --deterministic --no-peer ")).count(), 1);
    let pair: Vec<&&str> = asked.iter().filter(|line| line.contains("--set epochs=100")).collect();
    assert_eq!(pair.len(), 2);
    for (line, precision) in pair.iter().zip(["bf16", "fp32"]) {
        let out = format!("--set precision={precision} --out {}/precisions-{precision}", out.display());
        assert!(line.starts_with("repro cifar10-lt --methods sdclr-D_i --splits 1 ") && line.ends_with(&out), "{line}");
    }
    let full: Vec<&&str> = asked.iter().filter(|line| line.contains("--budget")).collect();
    assert_eq!(full.len(), 3);
    for (line, [precision, splits]) in full.iter().zip([["bf16", "--splits 1"], ["fp32", "--splits 1"], ["bf16", ""]]) {
        assert!(
            line.starts_with("repro cifar10-lt --methods sdclr-D_i,simclr-D_i,simclr-D_b --device cuda:0"),
            "{line}"
        );
        assert!(
            line.contains(&format!("--set precision={precision} ")) && line.ends_with(format!("s {splits}").trim_end()),
            "{line}"
        );
    }
    let parity = std::fs::read_to_string(out.join("parity.txt")).unwrap();
    assert!(parity.starts_with("nextest on cuda:0: nextest run --archive-file tests.tar.zst"), "{parity}");
    let tests = "binary(/^(parity_.*|properties_(augment|training)|recorded|resume)$/) or test(ranks_on_one_gpu)";
    assert!(parity.contains(tests), "{parity}");
    let packed = Command::new("tar").arg("-tzf").arg(folder.path().join("out.tar.gz")).output().unwrap();
    let packed = text(&packed.stdout);
    assert!(packed.contains("out/doctor.txt") && !packed.contains(".part"), "{packed}");
}
