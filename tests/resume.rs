//! A run that was killed and restarted ends bitwise equal to one that was not: with fixed threads, on the device that
//! SDCLR_TEST_DEVICE names (deterministic where that is not the CPU).

mod golden;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use golden::skip::skip;
use proptest::prelude::*;
use sdclr::checkpoint::{self, FORMAT, Training, TrainingMeta, state_sha256};
use sdclr::native;
use sdclr::network::{Network, NetworkSpec, StateDict};
use sdclr::pretrain::{PretrainError, Trainer};
use sdclr::random;
use sdclr::recipe::Recipe;
use sdclr::record::evidence::Kind as Evidence;
use tch::{Device, Kind, Tensor};

const EPOCHS: &str = "epochs=14";

fn command(out: &Path, method: &str) -> Command {
    let mut command = Command::new(golden::program());
    command.args(["pretrain", "--recipe", &format!("digits-lt/{method}"), "--split", "1", "--pretrain-split", "D_i"]);
    command.args(["--device", &golden::device_name(), "--set", EPOCHS, "warmup_epochs=3", "--out"]).arg(out);
    if golden::device() != Device::Cpu {
        command.arg("--deterministic");
    }
    command.env("OMP_NUM_THREADS", "1").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The encoder's bytes, and every epoch's loss, rate, density and overlap as `run.jsonl` has them.
fn outcome(out: &Path) -> (Vec<u8>, Vec<String>) {
    let encoder = std::fs::read(out.join("encoder.safetensors")).unwrap();
    let log = std::fs::read_to_string(out.join("run.jsonl")).unwrap();
    let epochs = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|event| event["event"] == "epoch")
        .map(|event| ["epoch", "loss", "lr", "density", "overlap"].map(|key| event[key].to_string()).join(" "))
        .collect();
    (encoder, epochs)
}

/// Moments to kill at, from a fixed generator, so that a failure can be had again.
fn delays(seed: u64, count: usize) -> Vec<Duration> {
    let order = random::randperm(900, seed).unwrap();
    order.into_iter().take(count).map(|extra| Duration::from_millis(300 + extra as u64)).collect()
}

/// Until the run in `out` has saved another epoch, or is over.
fn wait_for_epoch(child: &mut Child, out: &Path) {
    let checkpoint = out.join("checkpoint.safetensors");
    let written = || checkpoint.metadata().and_then(|file| file.modified()).ok();
    let before = written();
    while written() == before && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What writes that were cut off have left in a folder.
fn leftovers(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with(".part")).count()
}

fn killed_run_equals_whole_run(method: &str, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    finish(command(&whole, method).spawn().unwrap());
    let mut kills = 0;
    for delay in delays(seed, 6) {
        let mut child = command(&killed, method).spawn().unwrap();
        match golden::device() {
            Device::Cpu => std::thread::sleep(delay),
            // A GPU takes seconds to start and is done in less: right after an epoch.
            _ => wait_for_epoch(&mut child, &killed),
        }
        if child.try_wait().unwrap().is_none() {
            // SIGKILL: nothing of ours gets to run.
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    assert!(kills > 0, "every run was over before it was killed");
    // As a kill within a write leaves it.
    sdclr::fs::write(&killed.join(".sdclr-half.part"), b"half a checkpoint").unwrap();
    finish(command(&killed, method).spawn().unwrap());
    assert_eq!(leftovers(&killed), 0, "a write that was cut off stays for ever");
    // As a kill after the last write leaves it.
    sdclr::fs::write(&killed.join("checkpoint.safetensors"), b"a checkpoint").unwrap();
    finish(command(&killed, method).spawn().unwrap());
    assert!(!killed.join("checkpoint.safetensors").exists(), "the checkpoint of a finished run stays for ever");
    let (whole, killed) = (outcome(&whole), outcome(&killed));
    assert_eq!(whole.1.len(), 14);
    assert_eq!(whole.1, killed.1, "losses, rates, densities or overlaps differ");
    let overlaps = whole.1.iter().filter(|epoch| !epoch.ends_with("null")).count();
    assert_eq!(overlaps, if method == "sdclr" { 13 } else { 0 }, "{:?}", whole.1);
    let differing =
        whole.0.iter().zip(&killed.0).filter(|(a, b)| a != b).count() + whole.0.len().abs_diff(killed.0.len());
    let compared = "an encoder that was trained in one sitting with one whose training was killed and resumed";
    golden::evidence(Evidence::Bitwise, compared, &[("bytes of the encoder that differ", differing as f64, 0.0)]);
    assert_eq!(differing, 0, "the encoders differ");
}

#[test]
fn killed_sdclr_equals_whole() {
    killed_run_equals_whole_run("sdclr", 1);
}

#[test]
fn killed_simclr_equals_whole() {
    killed_run_equals_whole_run("simclr", 2);
}

/// Runs `shell` (which ends in the command `"$@"`) around the job and gives what it said; it must fail.
fn fails_under(shell: &str, out: &Path) -> String {
    let inner = command(out, "sdclr");
    let mut wrapped = Command::new("sh");
    wrapped.args(["-c", shell, "sh"]).arg(inner.get_program()).args(inner.get_args()).env("OMP_NUM_THREADS", "1");
    let output = wrapped.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn a_disk_that_fills_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, full] = ["whole", "full"].map(|name| folder.path().join(name));
    finish(command(&whole, "sdclr").spawn().unwrap());

    // Some epochs first.
    let mut child = command(&full, "sdclr").spawn().unwrap();
    let checkpoint = full.join("checkpoint.safetensors");
    wait_for_epoch(&mut child, &full);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = std::fs::read(&checkpoint).unwrap();

    // No file may grow past 64 KiB: the log can, a checkpoint cannot.
    let said = fails_under("trap '' XFSZ; ulimit -f 128; exec \"$@\"", &full);
    assert!(said.contains("cannot write") && said.contains("checkpoint.safetensors"), "{said}");
    assert!(std::fs::read(&checkpoint).unwrap() == before, "the last good checkpoint changed");
    assert_eq!(leftovers(&full), 0, "a temporary file was left behind");

    finish(command(&full, "sdclr").spawn().unwrap());
    assert!(outcome(&whole) == outcome(&full), "the runs differ");
}

/// The host looks at an epoch's losses once, at its end; the first bad step is named all the same, and what it spoiled
/// never reaches the disk.
#[test]
fn a_spoiled_state_is_told_and_never_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let mut child = command(folder.path(), "sdclr").spawn().unwrap();
    wait_for_epoch(&mut child, folder.path());
    child.kill().unwrap();
    child.wait().unwrap();
    let mut training = checkpoint::read_training(&path).unwrap();
    let name = "momentum/conv1.weight";
    let momentum = training.optimizer.get(name).unwrap().full_like(1e38);
    training.optimizer.insert(name.to_owned(), momentum);
    checkpoint::write_training(&path, &training).unwrap();
    let before = std::fs::read(&path).unwrap();

    let output = command(folder.path(), "sdclr").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    // Its first step is sound, and moves the weights out of all bounds.
    let epoch = training.meta.epoch;
    let (step, good) = (format!("in epoch {}, step 2,", epoch + 1), format!("(epoch {epoch})"));
    assert!(said.contains("the loss is NaN") && said.contains(&step) && said.contains(&good), "{said}");
    assert!(std::fs::read(&path).unwrap() == before, "the last good checkpoint changed");
}

#[test]
fn a_full_file_system_is_named_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let mount = folder.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let inside = |body: &str| format!("mount -t tmpfs -o size=256k tmpfs '{}' && cd '{0}' && {body}", mount.display());
    let possible = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &inside("true")])
        .output()
        .is_ok_and(|output| output.status.success());
    if !possible {
        skip("mounts", "this machine lets nobody mount a small file system");
        return;
    }
    // While it trains, or before it can as much as mark its folder as in use.
    for body in ["exec \"$@\"", "head -c 1M /dev/zero >fill 2>/dev/null; exec \"$@\""] {
        let inner = command(&mount.join("run"), "sdclr");
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &inside(body), "sh"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("No space left on device") && said.contains("free some space"), "{said}");
        assert!(!said.contains("lock"), "{said}");
    }
}

fn trainer(recipe: &Recipe) -> Trainer {
    let network = Network::new(NetworkSpec::of_recipe(recipe), recipe.seed, Kind::Float, golden::device()).unwrap();
    Trainer::new(recipe, network, 2, false).unwrap()
}

/// Steps `from` to `to` (counted from 0) of two a epoch, on views addressed by the step.
fn advance(trainer: &mut Trainer, from: u64, to: u64) {
    for step in from..to {
        let views = golden::pixels(&step.to_string(), &[4, 2, 3, 8, 8]);
        trainer.epoch(1 + step as usize / 2, [Ok(views)]).unwrap();
    }
}

/// Four batches of an epoch.
fn batches(epoch: usize) -> Vec<Result<Tensor, PretrainError>> {
    let pixels = |step| Ok(golden::pixels(&format!("{epoch}.{step}"), &[4, 2, 3, 8, 8]));
    (0..4).map(pixels).collect()
}

/// Stopped after any step of an epoch, saved with what the method found at its beginning, and restored into a fresh trainer,
/// training goes on as if nothing had been.
#[test]
fn an_epoch_goes_on_in_its_middle() {
    native::set_deterministic(golden::device() != Device::Cpu).unwrap();
    for (method, set) in [("simclr", [].as_slice()), ("sdclr", &["random_prune_ratio=0.2"])] {
        let cosine = ["temperature_schedule=cosine", "temperature_t_max=4"];
        let set = ["width=2", "epochs=4", "output_dim=4"].iter().chain(&cosine).chain(set).map(ToString::to_string);
        let recipe = Recipe::resolve(&format!("digits-lt/{method}"), &set.collect::<Vec<_>>()).unwrap();
        let mut whole = trainer(&recipe);
        let expected = [1, 2, 3].map(|epoch| whole.epoch(epoch, batches(epoch)).unwrap());

        for stopped in [0, 2, 4] {
            let mut first = trainer(&recipe);
            first.epoch(1, batches(1)).unwrap();
            let before = first.epoch(2, batches(2).into_iter().take(stopped)).unwrap();
            assert_eq!(before.losses.len(), stopped);

            let mut second = trainer(&recipe);
            second.network.load(&first.network.state()).unwrap();
            second.optimizer.load(&first.optimizer.state()).unwrap();
            second.steps = first.steps;
            second.continue_epoch(2, stopped, &first.method.state()).unwrap();
            let after = second.epoch(2, batches(2).into_iter().skip(stopped)).unwrap();
            let what = format!("{method} after {stopped} steps");
            assert_eq!([before.losses, after.losses].concat(), expected[1].losses, "{what}");
            assert_eq!([before.rates, after.rates].concat(), expected[1].rates, "{what}");
            assert_eq!((after.density, after.overlap), (expected[1].density, expected[1].overlap), "{what}");
            let third = second.epoch(3, batches(3)).unwrap();
            assert_eq!((third.losses, third.overlap), (expected[2].losses.clone(), expected[2].overlap), "{what}");
            let hashes = |trainer: &Trainer| {
                [trainer.network.state(), trainer.optimizer.state()].map(|state| state_sha256(&state).unwrap())
            };
            assert_eq!(hashes(&second), hashes(&whole), "{what}");
        }
        // A mask cannot be found again in the middle.
        let without = trainer(&recipe).continue_epoch(2, 1, &StateDict::new());
        assert_eq!(without.is_err(), method == "sdclr", "{without:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Saved at any epoch's end and restored into a fresh trainer, training goes on as if nothing had been.
    #[test]
    fn training_state_is_whole(
        saved in 0u64..4,
        optimizer in prop::sample::select(vec!["sgd", "lars", "adam"]),
        method in prop::sample::select(vec!["simclr", "sdclr"]),
    ) {
        let set = [format!("optimizer={optimizer}"), "width=2".into(), "epochs=4".into(), "output_dim=4".into()];
        let mut set = set.to_vec();
        if method == "sdclr" {
            set.push("random_prune_ratio=0.2".into());
        }
        native::set_deterministic(golden::device() != Device::Cpu).unwrap();
        let recipe = Recipe::resolve(&format!("digits-lt/{method}"), &set).unwrap();
        let mut whole = trainer(&recipe);
        advance(&mut whole, 0, 8);

        let mut first = trainer(&recipe);
        advance(&mut first, 0, 2 * saved);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        let meta = TrainingMeta {
            format: FORMAT,
            recipe_hash: String::new(),
            // A checkpoint has the record of every epoch that it counts; only the steps are looked at here.
            epoch: 0,
            step: first.steps,
            seed: recipe.seed,
            epochs: Vec::new(),
            sessions: Vec::new(),
            seconds: 0.0,
            under_way: None,
        };
        let (state, optimizer) = (first.network.state(), first.optimizer.state());
        let training = Training { state, optimizer, method: StateDict::new(), meta };
        checkpoint::write_training(&path, &training).unwrap();
        let Training { state, optimizer, meta, .. } = checkpoint::read_training(&path).unwrap();
        let mut second = trainer(&recipe);
        second.network.load(&state).unwrap();
        second.optimizer.load(&optimizer).unwrap();
        second.steps = meta.step;
        advance(&mut second, 2 * saved, 8);
        prop_assert_eq!(state_sha256(&whole.network.state()).unwrap(), state_sha256(&second.network.state()).unwrap());
        prop_assert_eq!(state_sha256(&whole.optimizer.state()).unwrap(), state_sha256(&second.optimizer.state()).unwrap());
    }
}
