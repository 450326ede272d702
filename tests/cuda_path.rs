//! The code for CUDA, walked through without a GPU: under a stand-in for NVIDIA's libraries that computes nothing and counts
//! (tests/cuda_stand_in/README.md). No operation refuses, no step waits for the device, steps are recorded as graphs, and
//! the settings reach the libraries. Where no PyTorch with CUDA libraries is at hand these tests say that they were skipped.

mod skip;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sdclr::dataset::speed;
use sdclr::network::{Network, NetworkSpec};
use sdclr::recipe::Recipe;
use skip::skip;
use tch::{Device, Kind};
use tempfile::{NamedTempFile, TempDir};

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

/// The stand-in, compiled once.
struct StandIn {
    /// Among the build's own files, since nothing in a static is ever dropped.
    folder: TempDir,
    python: PathBuf,
    environment: Vec<(String, String)>,
}

/// A program under way.
struct Started {
    child: Child,
    counts: NamedTempFile,
}

impl Started {
    fn finish(self) -> (Output, Counts) {
        let output = self.child.wait_with_output().unwrap();
        let counts = std::fs::read_to_string(self.counts.path()).unwrap();
        (output, Counts(serde_json::from_str(&counts).unwrap_or_default()))
    }
}

/// What a program did, by name.
struct Counts(BTreeMap<String, u64>);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn stand_in() -> Option<&'static StandIn> {
    static STAND_IN: OnceLock<Option<StandIn>> = OnceLock::new();
    let found = STAND_IN.get_or_init(|| {
        let ours = Path::new(CHECKOUT).join(".oracle/bin/python");
        let python = std::env::var_os("SDCLR_ORACLE_PYTHON").map_or(ours, PathBuf::from);
        if !python.exists() {
            return None;
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let build = Path::new(CHECKOUT).join("tests/cuda_stand_in/build");
        let output = Command::new(build).arg(&python).arg(folder.path()).output().unwrap();
        let no_cuda = output.status.code() == Some(3);
        assert!(output.status.success() || no_cuda, "the stand-in was not built: {}", text(&output.stderr));
        let settings = text(&output.stdout);
        let environment = settings.lines().filter_map(|line| line.split_once('='));
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        (!no_cuda).then_some(StandIn { folder, python, environment })
    });
    if found.is_none() {
        skip("oracle", "there is no PyTorch with CUDA libraries (ci/oracle --env makes one)");
    }
    found.as_ref()
}

impl StandIn {
    fn output(&self, program: &Path, arguments: &[&str]) -> (Output, Counts) {
        self.start(program, arguments, &[]).finish()
    }

    fn start(&self, program: &Path, arguments: &[&str], variables: &[(&str, String)]) -> Started {
        let counts = tempfile::Builder::new().tempfile_in(self.folder.path()).unwrap();
        let mut command = Command::new(program);
        command.current_dir(CHECKOUT).args(arguments).env("CUDA_STAND_IN_COUNTS", counts.path());
        command.env("CUDA_STAND_IN_DEVICES", "2").envs(variables.iter().map(|(name, value)| (name, value)));
        command.envs(self.environment.iter().cloned()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Started { child: command.spawn().unwrap(), counts }
    }

    /// `sdclr` as several ranks, one for each of `devices`.
    fn ranks(&self, devices: &[&str], arguments: &[&str], variables: &[(&str, &str)]) -> Vec<Started> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let start = |(rank, device): (usize, &&str)| {
            let place = [("RANK", rank), ("WORLD_SIZE", devices.len()), ("MASTER_PORT", port.into())];
            let mut all: Vec<(&str, String)> = place.map(|(name, value)| (name, value.to_string())).to_vec();
            all.push(("MASTER_ADDR", "127.0.0.1".to_owned()));
            all.extend(variables.iter().map(|(name, value)| (*name, (*value).to_owned())));
            self.start(assert_cmd::cargo::cargo_bin!("sdclr"), &[arguments, &["--device", device]].concat(), &all)
        };
        devices.iter().enumerate().map(start).collect()
    }

    /// Runs `sdclr` on the first device, which must succeed and leave no capture spoiled and no work beside one.
    fn sdclr(&self, arguments: &[&str]) -> Counts {
        self.sdclr_on("cuda:0", arguments)
    }

    /// Likewise on one of two devices.
    fn sdclr_on(&self, device: &str, arguments: &[&str]) -> Counts {
        let program = assert_cmd::cargo::cargo_bin!("sdclr");
        let (output, counts) = self.output(program, &[arguments, &["--device", device]].concat());
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        assert!(counts.of("kernels") > 0, "{arguments:?} ran elsewhere");
        let faulty =
            |name: &&String| name.starts_with("spoiled captures/") || name.starts_with("issued beside a capture/");
        let faults: Vec<&String> = counts.0.keys().filter(faulty).collect();
        assert!(faults.is_empty(), "{arguments:?}: {faults:?}");
        counts
    }

    /// A race of `kind`, alone, in one counted round.
    fn bench(&self, kind: &str, options: &[&str]) -> Counts {
        self.sdclr(&[&["bench", kind, "--no-peer", "--rounds", "1"], options].concat())
    }
}

impl Counts {
    fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Operations that the host started one by one.
    fn launches(&self) -> u64 {
        ["kernels", "library calls", "copies", "fills", "graph launches"].map(|name| self.of(name)).iter().sum()
    }

    /// How often the host waited, but for giving memory back, which CUDA's allocator does now and then while it grows.
    fn waits(&self) -> u64 {
        self.of("waits") - self.of("waits/cudaFree")
    }

    /// Calls of libraries whose name ends so.
    fn calls(&self, end: &str) -> u64 {
        let named = |(name, _): &(&String, &u64)| name.starts_with("library calls/") && name.ends_with(end);
        self.0.iter().filter(named).map(|(_, number)| number).sum()
    }
}

#[test]
fn the_stand_in_sees_what_it_must() {
    let Some(stand_in) = stand_in() else { return };
    let (output, counts) = stand_in.output(&stand_in.python, &["tests/cuda_stand_in/check.py"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!((counts.of("captures ended"), counts.of("graph launches")), (2, 2));
}

/// The functions and the size of libtorch's CUDAGraph are those of one version: with another loaded, none of them is called.
#[test]
fn graphs_of_another_libtorch_are_refused() {
    let Some(stand_in) = stand_in() else { return };
    let source = stand_in.folder.path().join("version.cpp");
    let library = source.with_extension("so");
    sdclr::fs::write(
        &source,
        b"extern \"C\" unsigned long aoti_torch_abi_version() { return 2ul << 56 | 12ul << 48; }",
    )
    .unwrap();
    let compiled = Command::new("g++").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output().unwrap();
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));
    let preloaded = stand_in.environment.iter().find(|(name, _)| name == "LD_PRELOAD").unwrap();
    let output = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .args(["bench", "train", "--no-peer", "--rounds", "1", "--network", "resnet10", "--batch", "8"])
        .args(["--images", "24", "--iterations", "1", "--device", "cuda:0"])
        .envs(stand_in.environment.iter().cloned())
        .env("LD_PRELOAD", format!("{}:{}", library.display(), preloaded.1))
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("PyTorch 2.11.0 exactly, but that of 2.12.0 is loaded"), "{said}");
}

#[test]
fn steps_do_not_wait() {
    let Some(stand_in) = stand_in() else { return };
    for options in [["--precision", "bf16", "--deterministic"], ["--precision", "fp32", "--eager"]] {
        let epochs = |images: &str, iterations: &str| {
            let size = ["--network", "resnet10", "--batch", "8", "--images", images, "--iterations", iterations];
            stand_in.bench("train", &[options.as_slice(), &size].concat())
        };
        let (short, long, twice) = (epochs("24", "1"), epochs("48", "1"), epochs("24", "2"));
        assert!(long.launches() > short.launches(), "{options:?}");
        assert_eq!(long.waits(), short.waits(), "{options:?}: an epoch twice as long");
        // A round that warms up and one that counts: for the mask's density, for the losses with the memory they go to, and for
        // whether the parameters are finite.
        assert_eq!(twice.waits() - short.waits(), 2 * 4, "{options:?}: two more epochs");
    }
}

#[test]
fn the_second_device_does_what_the_first_does() {
    let Some(stand_in) = stand_in() else { return };
    let epoch = |device| {
        let size = ["--network", "resnet10", "--batch", "8", "--images", "32", "--rounds", "1", "--iterations", "1"];
        let counts = stand_in.sdclr_on(device, &[&["bench", "train", "--no-peer"], size.as_slice()].concat());
        ["kernels", "library calls", "captured kernels", "graph launches"].map(|name| counts.of(name))
    };
    assert_eq!(epoch("cuda:1"), epoch("cuda:0"));
}

#[test]
fn pretraining_waits_at_the_ends_of_epochs() {
    let Some(stand_in) = stand_in() else { return };
    let folder = tempfile::tempdir().unwrap();
    let run = |method: &str, batch: &str| {
        let out = folder.path().join(format!("{method}-{batch}")).display().to_string();
        let [recipe, batch] = [format!("digits-lt/{method}"), format!("batch_size={batch}")];
        let which = ["--recipe", &recipe, "--split", "1", "--pretrain-split", "D_i", "--set", &batch];
        let short = ["--limit-images", "64", "--limit-epochs", "1", "--deterministic", "--out", &out];
        stand_in.sdclr(&[&["pretrain"], which.as_slice(), &short].concat())
    };
    for method in ["simclr", "sdclr"] {
        let (four_steps, eight_steps) = (run(method, "16"), run(method, "8"));
        assert_eq!((four_steps.of("graph launches"), eight_steps.of("graph launches")), (2, 6));
        assert_eq!(four_steps.waits(), eight_steps.waits(), "{method}");
    }
}

/// A temperature that changes from epoch to epoch is filled in where the recorded step reads it: nothing is recorded again,
/// nobody waits, and an epoch launches what one at a constant temperature does.
#[test]
fn a_recorded_step_reads_the_current_temperature() {
    let Some(stand_in) = stand_in() else { return };
    let folder = tempfile::tempdir().unwrap();
    let run = |schedule: &str| {
        let out = folder.path().join(schedule).display().to_string();
        let schedule = format!("temperature_schedule={schedule}");
        let which = ["--recipe", "digits-lt/simclr", "--split", "1", "--pretrain-split", "D_i", "--set", &schedule];
        let how = ["batch_size=16", "--limit-images", "64", "--limit-epochs", "3", "--deterministic", "--out", &out];
        let counts = stand_in.sdclr(&[&["pretrain"], which.as_slice(), &how].concat());
        (["captures ended", "graph launches", "kernels"].map(|name| counts.of(name)), counts.waits())
    };
    let constant = run("constant");
    assert!(constant.0[1] > 0);
    assert_eq!(run("cosine"), constant);
}

#[test]
fn settings_reach_the_libraries() {
    let Some(stand_in) = stand_in() else { return };
    let steps =
        |options: &[&str]| stand_in.bench("step", &[&["--network", "resnet10", "--iterations", "1"], options].concat());
    for (precision, on_tensor_cores) in [("fp32", false), ("tf32", true), ("bf16", true)] {
        let counts = steps(&["--deterministic", "--precision", precision]);
        let (with, without) = (counts.calls("convolution on tensor cores"), counts.calls("/convolution"));
        assert_eq!((with > 0, without > 0), (on_tensor_cores, !on_tensor_cores), "{precision}");
        assert_eq!(counts.calls("not repeatable"), 0, "{precision}");
        assert_eq!(counts.calls("product in TF32") > 0, precision == "tf32");
    }
    let free = steps(&["--precision", "fp32"]);
    assert!(free.calls("/convolution, not repeatable") > 0 && free.calls("product in TF32") == 0);
    assert!(free.calls("on tensor cores") + free.calls("on tensor cores, not repeatable") == 0);
}

#[test]
fn a_step_is_one_launch_once_recorded() {
    let Some(stand_in) = stand_in() else { return };
    for (precision, operations) in [("bf16", 650), ("fp32", 445)] {
        let per_step = |more: &[&str]| {
            let run = |iterations| {
                let options = ["--batch", "8", "--precision", precision, "--iterations", iterations];
                stand_in.bench("step", &[options.as_slice(), more].concat())
            };
            let (few, many) = (run("5"), run("10"));
            // Twice as many: the round that warms up runs them too.
            [Counts::launches, |counts: &Counts| counts.of("graph launches")]
                .map(|count| (count(&many) - count(&few)) as f64 / 10.0)
        };
        let [all, graphs] = per_step(&[]);
        // Beside it the views go to their place, the loss from its own, and the rate is set.
        assert!(graphs == 1.0 && all <= 5.0, "{precision}: {all} launches, {graphs} of graphs");
        let [all, graphs] = per_step(&["--eager"]);
        assert!(graphs == 0.0 && all <= f64::from(operations), "{precision}: {all} launches");
    }
}

/// 20 batch norms in two branches, in the two steps before the one that is recorded.
#[test]
fn batch_norm_is_fused_in_bf16() {
    let Some(stand_in) = stand_in() else { return };
    for (options, norms) in [(["--precision", "bf16"].as_slice(), 80), (&["--precision", "fp32"], 0)] {
        let counts = stand_in.bench("step", &[&["--batch", "8", "--iterations", "2"], options].concat());
        let found = |name: &str| counts.of(&format!("kernels/norm_{name}"));
        assert_eq!(["moments", "statistics", "gradients"].map(found), [norms; 3], "{options:?}");
        let applied = ["apply", "apply_relu", "apply_add_relu"].map(found);
        assert_eq!(applied, if norms > 0 { [12, 36, 32] } else { [0; 3] }, "{options:?}");
        // libtorch's would be 462.
        assert!(norms == 0 || counts.of("captured kernels") <= 385, "{}", counts.of("captured kernels"));
    }
    let eager = stand_in.bench("step", &["--batch", "8", "--iterations", "1", "--precision", "bf16", "--eager"]);
    assert_eq!(eager.of("kernels/norm_moments"), 0);
    let race = stand_in.bench("norm", &["--batch", "4", "--iterations", "1"]);
    assert_eq!((race.of("captured kernels"), race.of("graph launches")), (20 * 6, 2));
}

#[test]
fn augmentation_takes_its_launches_and_no_more() {
    let Some(stand_in) = stand_in() else { return };
    let run = |images| stand_in.bench("augment", &["--batch", "64", "--iterations", "1", "--images", images]);
    let [short, long] = ["256", "512"].map(run);
    assert_eq!(long.waits(), short.waits());
    // Four batches more, in the round that warms up and in the one that counts.
    let each = |count: fn(&Counts) -> u64| (count(&long) - count(&short)) as f64 / 8.0;
    assert_eq!(each(|counts| counts.of("kernels/augment_views")), 1.0);
    // The table travels there.
    assert_eq!(each(Counts::launches), 2.0);
}

#[test]
fn probes_do_not_wait() {
    let Some(stand_in) = stand_in() else { return };
    let run = |images| stand_in.bench("probe", &["--batch", "64", "--iterations", "1", "--images", images]);
    let [short, long] = ["512", "1024"].map(run);
    assert!(long.launches() > short.launches());
    assert_eq!(long.waits(), short.waits());
}

/// Images, model and workspace of published training, without CUDA's context and what cuDNN takes beyond a MiB a call. Like
/// the published list, that of the real images leaves a rest of 413 behind the whole batches.
#[test]
fn published_training_fits_into_12_gib() {
    let Some(stand_in) = stand_in() else { return };
    let data = std::env::var("SDCLR_DATA").ok();
    if data.is_none() {
        skip("data", "SDCLR_DATA is not set: whole batches of noise alone");
    }
    for (precision, gib) in [("bf16", 4.5), ("fp32", 7.0)] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().display().to_string();
        let counts = match &data {
            Some(data) => stand_in.sdclr(
                &[
                    [
                        "pretrain",
                        "--recipe",
                        "cifar10-lt/sdclr",
                        "--split",
                        "1",
                        "--pretrain-split",
                        "D_i",
                        "--data",
                        data,
                    ]
                    .as_slice(),
                    ["--limit-images", "2461", "--limit-epochs", "3", "--precision", precision, "--out", &out]
                        .as_slice(),
                ]
                .concat(),
            ),
            None => stand_in
                .bench("train", &["--batch", "512", "--images", "2048", "--iterations", "1", "--precision", precision]),
        };
        let found = counts.of("device bytes") as f64 / f64::from(1 << 30);
        assert!(found > 1.0 && found < gib, "{precision}: {found} GiB");
    }
}

/// ImageNet's folder in miniature: so many JPEGs of ImageNet's size on one list, made up, 16 of which differ.
fn imagenet(images: usize) -> TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = folder.path().join("imagenet");
    let [train, val] = ["train/n", "val/n"].map(|part| root.join(part));
    [&train, &val].into_iter().for_each(|part| std::fs::create_dir_all(part).unwrap());
    let (file, (height, width)) = (|image: usize| train.join(format!("{image}.JPEG")), speed::SIDES);
    for image in 0..images {
        match image {
            0..16 => {
                sdclr::fs::write(&file(image), &speed::made_up_jpeg(height, width, image as u64).unwrap()).unwrap()
            }
            _ => std::fs::hard_link(file(image % 16), file(image)).unwrap(),
        }
    }
    let list: String = (0..images).map(|image| format!("train/n/{image}.JPEG 0\n")).collect();
    let path = folder.path().join("split/imagenet-100/imageNet_100_LT_train.txt");
    sdclr::fs::write(&path, list.as_bytes()).unwrap();
    folder
}

impl StandIn {
    /// An epoch of the published SDCLR on ImageNet's files (ResNet-50, 224 pixels) in batches of `batch`.
    fn imagenet(&self, data: &TempDir, images: &str, batch: &str, options: &[&str]) -> Counts {
        let (out, batch) = (tempfile::tempdir().unwrap(), format!("batch_size={batch}"));
        let which = ["pretrain", "--recipe", "imagenet100-lt/sdclr", "--split", "1", "--pretrain-split", "D_i"];
        let [data, out] = [data, &out].map(|folder| folder.path().to_str().unwrap());
        let how = ["--data", data, "--limit-images", images, "--limit-epochs", "1", "--set", &batch, "--out", out];
        self.sdclr(&[which.as_slice(), &how, options].concat())
    }
}

/// Whatever the length of an epoch and the size of a batch. A batch of files is two uploads, both page-locked: the decoded
/// images, and the table of the views.
#[test]
fn steps_of_resnet50_on_files_do_not_wait() {
    let Some(stand_in) = stand_in() else { return };
    let data = imagenet(64);
    for (options, launches) in [
        (["--precision", "bf16"].as_slice(), 8.0),
        (&["--precision", "fp32"], 8.0),
        (&["--precision", "bf16", "--eager"], 1400.0),
        (&["--precision", "fp32", "--eager"], 1000.0),
    ] {
        let runs = [("32", "8"), ("64", "8"), ("64", "16")];
        let [four, eight, large] = runs.map(|(images, batch)| stand_in.imagenet(&data, images, batch, options));
        assert_eq!(eight.waits(), four.waits(), "{options:?}: an epoch twice as long");
        assert_eq!(large.waits(), four.waits(), "{options:?}: batches twice as large");
        let uploads = |counts: &Counts| counts.of("copies/to the device, page-locked");
        assert_eq!((uploads(&eight), uploads(&four)), (16, 8), "{options:?}");
        let pageable = |counts: &Counts| counts.of("copies/to the device, pageable");
        assert_eq!(pageable(&eight), pageable(&four), "{options:?}");
        let each = (eight.launches() - four.launches()) as f64 / 4.0;
        println!("{options:?}: {each} launches a step");
        assert!(each <= launches, "{options:?}: {each} launches a step");
        // libtorch's batch norm in bf16 clears memory first where a batch is large enough for several blocks.
        let of_size = (large.launches() - four.launches()) as f64 / 4.0;
        assert!(of_size <= each / 10.0, "{options:?}: {of_size} more launches a step where batches are twice as large");
        let graphs = if options.contains(&"--eager") { [0, 0] } else { [2, 6] };
        assert_eq!([&four, &eight].map(|counts| counts.of("graph launches")), graphs, "{options:?}");
    }
}

/// The published batch of 256 images, and a rest as that of the published list. `--dry-run` says what a step keeps; views,
/// workspaces and what is under way come on top.
#[test]
fn published_training_on_imagenet_takes_what_a_plan_says() {
    let Some(stand_in) = stand_in() else { return };
    let data = imagenet(3 * 256 + 174);
    for precision in ["bf16", "fp32"] {
        let program = assert_cmd::cargo::cargo_bin!("sdclr");
        let set = format!("precision={precision}");
        let plan = ["repro", "imagenet100-lt", "--methods", "sdclr-D_i", "--dry-run", "--device", "cpu", "--set", &set];
        let plan = text(&Command::new(program).args(plan).output().unwrap().stdout);
        let kept = plan.split_once("pre-training takes about ").unwrap().1.split_once(" GiB").unwrap().0;
        let kept: f64 = kept.parse().unwrap();
        for eager in [&[][..], &["--eager"]] {
            let options = [&["--precision", precision][..], eager].concat();
            let counts = stand_in.imagenet(&data, "942", "256", &options);
            let found = counts.of("device bytes") as f64 / f64::from(1 << 30);
            println!("{options:?}: {found:.2} GiB, of which {kept} GiB are kept from the forward to the backward pass");
            assert!(found > kept && found < kept + 2.0, "{options:?}: {found} GiB, {kept} in the plan");
        }
    }
}

#[test]
fn a_job_leaves_no_memory_taken() {
    let Some(stand_in) = stand_in() else { return };
    let bytes = |splits: &str| {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().display().to_string();
        let which =
            ["repro", "digits-lt", "--methods", "sdclr-D_i", "--seeds", "1", "--splits", splits, "--limit-epochs=2"];
        let how = ["--set", "width=64", "--set", "batch_size=128", "--deterministic", "--out", &out];
        stand_in.sdclr(&[which.as_slice(), &how].concat()).of("device bytes") >> 20
    };
    let (one, three) = (bytes("1"), bytes("1-3"));
    // The second may still find other workspaces of cuBLAS taken, of 32 MiB each.
    assert!(three <= one + 4 * 32, "one job took {one} MiB, three {three}");
}

/// Every method and every probe of a suite, from images to the report, under the switch that makes libtorch refuse what is
/// not deterministic.
#[test]
fn no_operation_of_a_suite_refuses() {
    let Some(stand_in) = stand_in() else { return };
    for precision in ["fp32", "bf16"] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().display().to_string();
        let which = ["repro", "digits-lt", "--splits", "1", "--limit-epochs", "2", "--precision", precision];
        stand_in.sdclr(&[which.as_slice(), &["--deterministic", "--out", &out]].concat());
        let report = std::fs::read_to_string(folder.path().join("report.md")).unwrap();
        assert!(report.contains("stand-in for an H100 that computes nothing"), "the report does not name the device");
    }
}

#[test]
fn no_other_choice_of_a_recipe_refuses() {
    let Some(stand_in) = stand_in() else { return };
    for key in [
        "optimizer=lars",
        "optimizer=adam",
        "dual_bn=false",
        "prune_ratio=0.0",
        "random_prune_ratio=0.3",
        "precision=tf32",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().display().to_string();
        let which = ["--recipe", "digits-lt/sdclr", "--split", "1", "--pretrain-split", "D_i", "--out", &out];
        let short = ["--limit-images", "64", "--limit-epochs", "2", "--set", "batch_size=16", "--set", key];
        stand_in.sdclr(&[&["pretrain", "--deterministic"], which.as_slice(), &short].concat());
    }
}

#[test]
fn an_interrupted_run_is_taken_up_on_the_device() {
    let Some(stand_in) = stand_in() else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display().to_string();
    let epochs = || {
        let program = assert_cmd::cargo::cargo_bin!("sdclr");
        let which = ["repro", "digits-lt", "--splits", "1", "--methods", "sdclr-D_i", "--set", "epochs=2000"];
        let how = ["--set", "batch_size=16", "--deterministic", "--budget", "1s", "--device", "cuda:0", "--out", &out];
        let (output, _) = stand_in.output(program, &[which.as_slice(), &how].concat());
        assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
        let log = std::fs::read_to_string(folder.path().join("sdclr-D_i-split1/run.jsonl")).unwrap();
        log.lines().filter(|line| line.contains("\"event\":\"epoch\"")).count()
    };
    let before = epochs();
    assert!(before > 0 && epochs() > before);
}

const DIGITS: &str = "digits-lt/sdclr";

/// Pre-training of `images` digits in batches of 16, one epoch, into `out`.
fn digits<'a>(images: &'a str, out: &'a TempDir) -> Vec<&'a str> {
    let which = ["pretrain", "--recipe", DIGITS, "--split", "1", "--pretrain-split", "D_i", "--limit-images", images];
    let how = ["--limit-epochs", "1", "--set", "batch_size=16", "--deterministic", "--out"];
    [which.as_slice(), &how, &[out.path().to_str().unwrap()]].concat()
}

/// What every rank did, all of which must succeed, and what the first one said.
fn finished(ranks: Vec<Started>) -> (String, Vec<Counts>) {
    let (outputs, counts): (Vec<Output>, Vec<Counts>) = ranks.into_iter().map(Started::finish).unzip();
    outputs.iter().for_each(|output| assert!(output.status.success(), "{}", text(&output.stderr)));
    (text(&outputs[0].stderr), counts)
}

/// What a step exchanges: gathers, those of the statistics of every batch norm of both branches, forward and backward, and
/// of both branches' features; and bytes of the one sum, of all gradients.
fn exchanged() -> [u64; 2] {
    let recipe = Recipe::resolve(DIGITS, &[]).unwrap();
    let network = Network::new(NetworkSpec::of_recipe(&recipe), 1, Kind::Float, Device::Cpu).unwrap();
    let norms = network.state().iter().filter(|(name, _)| name.ends_with("running_mean")).count();
    let weights: usize = network.parameters().iter().map(|(_, weight)| weight.numel()).sum();
    [2 * norms as u64 + 2, 4 * weights as u64]
}

/// How much more of it the second run did than the first.
fn more(name: &str, [few, many]: [&Counts; 2]) -> u64 {
    many.of(name) - few.of(name)
}

/// Whatever the length of an epoch: what is exchanged is queued like any other work of a step.
#[test]
fn two_gpus_exchange_through_nccl_and_nothing_goes_over_the_host() {
    let Some(stand_in) = stand_in() else { return };
    let run = |images| {
        let out = tempfile::tempdir().unwrap();
        let (said, counts) = finished(stand_in.ranks(&["cuda:0", "cuda:1"], &digits(images, &out), &[]));
        assert!(said.contains("the ranks exchange through NCCL 2.28.9"), "{said}");
        counts
    };
    let (four, eight) = (run("64"), run("128"));
    let [gathers, bytes] = exchanged();
    for counts in four.iter().zip(&eight).map(|(four, eight)| [four, eight]) {
        assert_eq!((more("nccl/gathers", counts), more("nccl/sums", counts)), (4 * gathers, 4));
        assert_eq!(more("nccl/bytes of sums", counts), 4 * bytes);
        assert_eq!(more("copies/from the device, pageable", counts), 0);
        assert_eq!((counts[1].waits(), counts[1].of("captures begun")), (counts[0].waits(), 0));
        assert_eq!(["communicators", "aborts"].map(|name| counts[1].of(&format!("nccl/{name}"))), [1, 1]);
    }
}

#[test]
fn two_ranks_on_one_gpu_exchange_over_the_host() {
    let Some(stand_in) = stand_in() else { return };
    let run = |images, choice: &[(&str, &str)], devices: &[&str]| {
        let out = tempfile::tempdir().unwrap();
        finished(stand_in.ranks(devices, &digits(images, &out), choice))
    };
    let (said, four) = run("64", &[], &["cuda:0"; 2]);
    assert!(
        said.contains("over the host (Gloo) and launch every operation of a step: rank 0 and rank 1 share one GPU"),
        "{said}"
    );
    let (said, eight) = run("128", &[("SDCLR_RANKS_EXCHANGE", "gloo")], &["cuda:0", "cuda:1"]);
    assert!(
        said.contains("over the host (Gloo) and launch every operation of a step: SDCLR_RANKS_EXCHANGE=gloo"),
        "{said}"
    );
    let [gathers, _] = exchanged();
    for counts in four.iter().zip(&eight).map(|(four, eight)| [four, eight]) {
        assert_eq!(more("copies/from the device, pageable", counts), 4 * (gathers + 1));
        assert_eq!(["nccl/communicators", "captures begun"].map(|name| counts[1].of(name)), [0, 0]);
    }
}

/// As a step of one process without NCCL: once recorded it is one launch, and nobody waits.
#[test]
fn nccl_of_one_process_is_recorded() {
    let Some(stand_in) = stand_in() else { return };
    let run = |images| {
        let out = tempfile::tempdir().unwrap();
        let nccl = [("SDCLR_RANKS_EXCHANGE", "nccl")];
        finished(stand_in.ranks(&["cuda:0"], &digits(images, &out), &nccl)).1.remove(0)
    };
    let (four, eight) = (run("64"), run("128"));
    let [gathers, _] = exchanged();
    for (counts, launches) in [(&four, 2), (&eight, 6)] {
        // Two steps as usual, and the one that is recorded.
        assert_eq!((counts.of("nccl/gathers"), counts.of("nccl/sums")), (3 * gathers, 3));
        assert_eq!((counts.of("graph launches"), counts.of("captures ended")), (launches, 1));
        assert!(!counts.0.keys().any(|name| name.starts_with("spoiled captures/")), "{:?}", counts.0);
    }
    assert_eq!(eight.waits(), four.waits());
}

/// What a lost rank should have sent never comes: the host, which waits for the GPU, is freed by an abort.
#[test]
fn a_rank_that_waits_for_a_lost_one_ends() {
    let Some(stand_in) = stand_in() else { return };
    let out = tempfile::tempdir().unwrap();
    let mut ranks = stand_in.ranks(&["cuda:0", "cuda:1"], &digits("64", &out), &[("CUDA_STAND_IN_LOST", "1")]);
    let start = Instant::now();
    while !out.path().join("run.jsonl").exists() {
        assert!(start.elapsed().as_secs() < 120);
        std::thread::sleep(Duration::from_millis(10));
    }
    // More than the few steps would take.
    std::thread::sleep(Duration::from_secs(4));
    let mut lost = ranks.remove(1);
    assert!(lost.child.try_wait().unwrap().is_none() && ranks[0].child.try_wait().unwrap().is_none(), "no rank waits");
    let named = format!("rank 1 of 2 (process {} ", lost.child.id());
    lost.child.kill().unwrap();
    // Looked at, so that it is gone.
    lost.child.wait().unwrap();
    let start = Instant::now();
    let (output, counts) = ranks.remove(0).finish();
    println!("the other ended {:.2} s after", start.elapsed().as_secs_f64());
    assert!(start.elapsed().as_secs() < 10);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&named), "{said}");
    assert_eq!(counts.of("nccl/aborts"), 1);
}
