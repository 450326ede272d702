//! Several processes compute the step of one: SimCLR and SDCLR, dual and shared batch norm, ten steps over two epochs of
//! which the last batch is uneven, on 1 to 4 ranks of Gloo on the CPU, and as PyTorch's DistributedDataParallel computes them
//! with 2. Goldens: reference/torch/ranks_goldens.py.

mod golden;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use golden::skip::skip;
use golden::{assert_digests, assert_near, pixels};
use sdclr::native::group::{Exchange, Group, Meeting};
use sdclr::network::{Network, NetworkSpec, StateDict};
use sdclr::pretrain::Trainer;
use sdclr::ranks;
use sdclr::recipe::{Depth, Recipe};
use sdclr::stop::Stop;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

const CASES: [(&str, &str, bool); 3] =
    [("simclr-single", "simclr", false), ("sdclr-dual", "sdclr", true), ("sdclr-single", "sdclr", false)];
/// Of one epoch. 7 images are an odd number, and fewer than two for the last of four ranks.
const BATCHES: [i64; 5] = [16, 16, 16, 16, 7];
const STEPS: usize = 10;

/// What a rank leaves of a case, beside the tensors.
#[derive(Serialize, Deserialize)]
struct Steps {
    losses: Vec<f64>,
    density: Vec<f64>,
}

fn recipe(method: &str, dual_bn: bool) -> Recipe {
    let pruning = if method == "sdclr" { vec!["prune_ratio=0.7".to_owned()] } else { Vec::new() };
    Recipe {
        network: Depth::Resnet10,
        width: 8,
        output_dim: 16,
        head_layers: if dual_bn { 3 } else { 2 },
        dual_bn,
        temperature: 0.5,
        lr: 2e-3,
        momentum: 0.9,
        weight_decay: 0.3,
        epochs: 2,
        warmup_epochs: 1,
        ..Recipe::resolve(&format!("cifar10-lt/{method}"), &pruning).unwrap()
    }
}

type Case = (&'static str, &'static str, bool);
type Named = Vec<(String, Tensor)>;

/// Ten steps of a case, of which this rank computes its slices: losses, densities, and how each step has moved every tensor.
/// With a folder each step begins at the state that one process had there.
fn train(
    (name, method, dual_bn): Case,
    batches: &[i64],
    kind: Kind,
    group: &Group,
    states: Option<&Path>,
) -> (Steps, Named) {
    let recipe = recipe(method, dual_bn);
    let mut network = Network::new(NetworkSpec::of_recipe(&recipe), 1, kind, Device::Cpu).unwrap();
    golden::fill(&network);
    network.set_group(group.clone());
    let mut trainer = Trainer::new(&recipe, network, BATCHES.len(), false).unwrap();
    let (mut steps, mut updates) = (Steps { losses: Vec::new(), density: Vec::new() }, Vec::new());
    for epoch in 1..=2 {
        for (i, images) in batches.iter().enumerate() {
            let step = (epoch - 1) * batches.len() + i + 1;
            if let Some(folder) = states {
                share_state(&mut trainer, &folder.join(format!("{name}-{step}.safetensors")));
            }
            let (start, own) = (trainer.network.state(), group.slice(*images as usize));
            let views = pixels(&format!("views.{step}"), &[*images, 2, 3, 16, 16]);
            let stats = trainer.epoch(epoch, [Ok(views.narrow(0, own.start as i64, own.len() as i64))]).unwrap();
            assert_eq!((stats.images, stats.slices.len()), (*images, group.size()));
            steps.losses.extend(stats.losses);
            if i == 0 {
                steps.density.extend(stats.density);
            }
            let optimizer = trainer.optimizer.state();
            let moved = |(name, now): (String, Tensor)| {
                let update = match optimizer.get(&format!("momentum/{name}")).filter(|_| kind == Kind::Float) {
                    // What the step subtracts, but for the rate: float32 holds the difference of two weights in few digits.
                    Some(update) => update.to_kind(Kind::Double),
                    None => now.to_kind(Kind::Double) - start.get(&name).unwrap().to_kind(Kind::Double),
                };
                (format!("{step:02} {name}"), update.contiguous())
            };
            updates.extend(
                trainer.network.state().into_iter().filter(|(name, _)| !name.starts_with("normalize.")).map(moved),
            );
        }
    }
    assert_eq!(steps.losses.len(), STEPS);
    (steps, updates)
}

/// Keeps the state in `file`, or takes up the one that an earlier process has kept there.
fn share_state(trainer: &mut Trainer, file: &Path) {
    if !file.exists() {
        let optimizer =
            trainer.optimizer.state().into_iter().map(|(name, tensor)| (format!("optimizer {name}"), tensor));
        let all =
            trainer.network.state().into_iter().chain(optimizer).map(|(name, tensor)| (name, tensor.contiguous()));
        let all: Named = all.collect();
        return Tensor::write_safetensors(&all, file).unwrap();
    }
    let is_optimizer = |(name, _): &(String, Tensor)| name.starts_with("optimizer ");
    let (optimizer, network): (Named, Named) =
        Tensor::read_safetensors(file).unwrap().into_iter().partition(is_optimizer);
    let optimizer = optimizer.into_iter().map(|(name, tensor)| (name["optimizer ".len()..].to_owned(), tensor));
    trainer.network.load(&network.into_iter().collect::<StateDict>()).unwrap();
    trainer.optimizer.load(&optimizer.collect::<StateDict>()).unwrap();
}

/// Not a test where it is started by the others: one of their ranks, which leaves what it computed in a folder.
#[test]
fn is_a_rank() {
    let Some(folder) = std::env::var_os("SDCLR_TEST_RANKS").map(std::path::PathBuf::from) else { return };
    tch::set_num_threads(1);
    let group = match (ranks::place().unwrap(), std::env::var("MASTER_PORT")) {
        (Some(place), _) => place.join(&Stop::default()).unwrap(),
        (None, Ok(port)) => group_of_one(port.parse().unwrap()),
        (None, Err(_)) => Group::default(),
    };
    let states = folder.with_file_name("states");
    for case in CASES {
        for (kind, word, batches, states) in [
            (Kind::Double, "float64", BATCHES, None),
            // Each step from one state: a ReLU whose input is within rounding of 0 changes all later steps by 1e-3.
            (Kind::Float, "float32", BATCHES, Some(&*states)),
            // As the published code, which pads every batch to a multiple of the ranks.
            (Kind::Double, "even", [16, 16, 16, 16, 10], None),
        ] {
            if word == "even" && group.size() != 2 {
                continue;
            }
            let (steps, updates) = train(case, &batches, kind, &group, states);
            let name = format!("{}-{word}-{}", case.0, group.rank());
            sdclr::fs::write(&folder.join(format!("{name}.json")), serde_json::to_string(&steps).unwrap().as_bytes())
                .unwrap();
            Tensor::write_safetensors(&updates, folder.join(format!("{name}.safetensors"))).unwrap();
        }
    }
    group.all_well(None).unwrap();
}

/// One process that computes as several do.
fn group_of_one(port: u16) -> Group {
    let (host, name, timeout) = ("127.0.0.1".to_owned(), "one".to_owned(), Duration::from_secs(60));
    let exchange = Exchange::Any;
    Group::join(&Meeting { host, port, rank: 0, size: 1, served: false, name, timeout, exchange }, &|| false).unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A command as rank `rank` of `size`.
fn as_rank(command: &mut Command, rank: usize, size: usize, port: u16) -> &mut Command {
    for (name, value) in [("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank), ("MASTER_PORT", port.into())] {
        command.env(name, value.to_string());
    }
    command.env("MASTER_ADDR", "127.0.0.1").env("OMP_NUM_THREADS", "1").env("SDCLR_RANKS_TIMEOUT", "60")
}

fn outputs(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
}

/// Processes of Gloo, or one that has no group.
fn run_ranks(size: Option<usize>, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let port = free_port();
    let start = |rank| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "is_a_rank", "--nocapture"]).env("SDCLR_TEST_RANKS", folder);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        size.map(|size| as_rank(&mut command, rank, size, port));
        command.spawn().unwrap()
    };
    for (rank, output) in outputs((0..size.unwrap_or(1)).map(start).collect()).into_iter().enumerate() {
        assert!(output.status.success(), "rank {rank} of {size:?}: {}", said(&output));
    }
}

fn steps_of(folder: &Path, name: &str, rank: usize) -> (Steps, Vec<(String, Tensor)>) {
    let text = std::fs::read_to_string(folder.join(format!("{name}-{rank}.json"))).unwrap();
    let mut updates = Tensor::read_safetensors(folder.join(format!("{name}-{rank}.safetensors"))).unwrap();
    updates.sort_by(|(a, _), (b, _)| a.cmp(b));
    (serde_json::from_str(&text).unwrap(), updates)
}

/// Every step's update within `allowed` of its norm, but not finer than a thousandth of the largest: a bias in front of a batch
/// norm has no gradient but rounding. Gives the worst.
fn worst(found: &[(String, Tensor)], expected: &[(String, Tensor)], allowed: f64, what: &str) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |tensor: &Tensor| tensor.norm().double_value(&[]);
    let counted = |(name, _): &&(String, Tensor)| name.ends_with("num_batches_tracked");
    let largest = expected.iter().filter(|entry| !counted(entry)).map(|(_, tensor)| norm(tensor)).fold(0.0, f64::max);
    let mut worst: f64 = 0.0;
    for ((name, found), (other, expected)) in found.iter().zip(expected) {
        assert_eq!(name, other);
        let apart = norm(&(found - expected)) / norm(expected).max(largest * 1e-3);
        assert!(apart <= allowed, "{what}: the update of {name} differs by {apart:e}");
        worst = worst.max(apart);
    }
    worst
}

#[test]
fn ranks_agree_with_one_process_and_with_pytorch() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("states")).unwrap();
    let alone = root.path().join("alone");
    run_ranks(None, &alone);
    let groups = [1, 2, 3, 4].map(|size| root.path().join(size.to_string()));
    for (size, folder) in (1..).zip(&groups) {
        run_ranks(Some(size), folder);
    }
    for (case, ..) in CASES {
        for (size, folder) in (1..).zip(&groups) {
            compare(&format!("{case}-float64"), size, folder, &alone, 1e-10);
            // Where channels come last, libtorch's batch norm in one process sums up in float32, and is off by 1e-6 itself.
            compare(&format!("{case}-float32"), size, folder, &groups[0], 1e-5);
        }
        let [(alone, _), (group, _)] =
            [&alone, &groups[0]].map(|folder| steps_of(folder, &format!("{case}-float32"), 0));
        for (found, expected) in group.losses.iter().zip(alone.losses) {
            assert_near("loss", *found, expected, 1e-5);
        }
    }
    check_pytorch(&groups[1]);
}

/// The ranks in `folder` against the process in `expected`, and against each other.
fn compare(name: &str, size: usize, folder: &Path, expected: &Path, allowed: f64) {
    let (one, expected) = steps_of(expected, name, 0);
    let (first, updates) = steps_of(folder, name, 0);
    let what = format!("{name} on {size} ranks");
    println!("{what}: updates differ by at most {:.1e}", worst(&updates, &expected, allowed, &what));
    assert_eq!(first.density, one.density, "{what}");
    for (found, expected) in first.losses.iter().zip(&one.losses) {
        assert_near(&what, *found, *expected, allowed);
    }
    // The same bits on every rank.
    for rank in 1..size {
        let (other, same) = steps_of(folder, name, rank);
        assert_eq!(worst(&same, &updates, 0.0, &format!("{what}, rank {rank}")), 0.0);
        assert_eq!(other.losses, first.losses);
    }
}

#[derive(Deserialize)]
struct Golden {
    losses: Vec<f64>,
    density: Vec<f64>,
}

/// Two ranks of ours against two of DistributedDataParallel.
fn check_pytorch(folder: &Path) {
    let goldens: std::collections::BTreeMap<String, Golden> = golden::json("ranks/steps.json");
    let expected = golden::tensors("ranks/steps.safetensors");
    assert_eq!(goldens.len(), CASES.len());
    for (case, golden) in goldens {
        let (steps, updates) = steps_of(folder, &format!("{case}-even"), 0);
        assert_digests(&case, summed(updates), &expected[&case], 1e-10);
        assert_eq!(steps.density, golden.density, "{case}");
        for (found, expected) in steps.losses.iter().zip(&golden.losses) {
            assert_near(&case, *found, *expected, 1e-10);
        }
    }
}

/// What all steps together did to each tensor.
fn summed(updates: Named) -> Named {
    let mut all = std::collections::BTreeMap::<String, Tensor>::new();
    for (name, update) in updates.into_iter().filter(|(name, _)| !name.ends_with("num_batches_tracked")) {
        let name = name.split_once(' ').unwrap().1.to_owned();
        let sum = all.remove(&name).map_or_else(|| update.shallow_clone(), |sum| sum + &update);
        all.insert(name, sum);
    }
    all.into_iter().collect()
}

/// `sdclr` with `words` as each of `size` ranks.
fn start(size: usize, words: &[&str]) -> Vec<Child> {
    let port = free_port();
    let start = |rank| {
        let mut command = Command::new(golden::program());
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        match size {
            1 => command.env("OMP_NUM_THREADS", "1").spawn().unwrap(),
            _ => as_rank(&mut command, rank, size, port).spawn().unwrap(),
        }
    };
    (0..size).map(start).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn run(size: usize, words: &[&str], code: i32) -> Vec<Output> {
    let outputs = outputs(start(size, words));
    for (rank, output) in outputs.iter().enumerate() {
        assert_eq!(output.status.code(), Some(code), "rank {rank} of {size}: {}", said(output));
    }
    outputs
}

/// `sdclr pretrain` of a small encoder into `out`: two epochs of 4 batches of which the last is uneven. At the recipe's rate
/// so few images train chaotically: one process with another number of threads then gives other losses in the third digit.
fn pretrain(out: &Path) -> Vec<String> {
    with_limits(out, "--limit-images 61 --limit-epochs 2 --set batch_size=16 lr=0.001")
}

fn with_limits(out: &Path, limits: &str) -> Vec<String> {
    let fixed = "pretrain --recipe digits-lt/sdclr --split 1 --pretrain-split D_i --device cpu --progress none";
    let own = [fixed.split(' '), limits.split(' ')].into_iter().flatten().map(str::to_owned);
    own.chain(["--out".to_owned(), out.display().to_string()]).collect()
}

fn words(owned: &[String]) -> Vec<&str> {
    owned.iter().map(String::as_str).collect()
}

fn result(out: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(out.join("result.json")).unwrap()).unwrap()
}

fn loss(record: &serde_json::Value, epoch: usize) -> f64 {
    record["epochs"][epoch]["loss"].as_f64().unwrap()
}

fn send(child: &Child, signal: i32) {
    // SAFETY: a signal to a child that was not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

fn wait_until(what: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !what() {
        assert!(start.elapsed().as_secs() < 120);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn pretraining_by_two_ranks_writes_what_one_writes() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    run(1, &words(&pretrain(&one)), 0);
    let outputs = run(2, &words(&pretrain(&two)), 0);
    assert!(!outputs[0].stdout.is_empty() && outputs[1].stdout.is_empty());
    let [one, two] = [&one, &two].map(|out| result(out));
    for epoch in 0..2 {
        assert_near("loss", loss(&two, epoch), loss(&one, epoch), 1e-4);
        assert_eq!(one["epochs"][epoch]["density"], two["epochs"][epoch]["density"]);
    }
    assert_eq!(one["recipe_hash"], two["recipe_hash"]);
    assert_eq!((&one["sessions"][0]["ranks"], &two["sessions"][0]["ranks"]), (&serde_json::Value::Null, &2.into()));
}

/// Stopped in the middle of an epoch, of 20 steps, by a signal to one of two ranks, and continued by 2, 1 and 3.
#[test]
fn a_signal_to_one_rank_saves_in_mid_epoch_and_any_number_continues() {
    let folder = tempfile::tempdir().unwrap();
    let command = |out: &Path| with_limits(out, "--limit-images 240 --limit-epochs 3 --set batch_size=12 lr=0.0001");
    let whole = folder.path().join("whole");
    run(2, &words(&command(&whole)), 0);
    let whole = result(&whole);
    for (signal, to, then) in [(libc::SIGTERM, 1, 2), (libc::SIGINT, 0, 1), (libc::SIGUSR1, 1, 3)] {
        let name = |attempt: usize| folder.path().join(format!("{then}-{attempt}"));
        let stopped = (0..10).map(name).find(|out| stopped_in_mid_epoch(&command(out), out, signal, to)).unwrap();
        let saved = Tensor::read_safetensors(stopped.join("checkpoint.safetensors")).unwrap();
        assert!(saved.iter().any(|(name, _)| name.ends_with("mask")), "the mask is that of the epoch's start");

        run(then, &words(&command(&stopped)), 0);
        let found = result(&stopped);
        let ranks = found["sessions"].as_array().unwrap().iter().map(|one| one["ranks"].as_u64().unwrap_or(1));
        assert_eq!(ranks.collect::<Vec<_>>(), [2, then as u64]);
        match then {
            2 => assert_eq!(found["state_sha256"], whole["state_sha256"]),
            _ => (0..3).for_each(|epoch| assert_near("loss", loss(&found, epoch), loss(&whole, epoch), 2e-3)),
        }
    }
}

/// Rank 0 probes alone; a signal to one that waits for it stops both, and what was pre-trained stays.
#[test]
fn a_signal_to_a_rank_that_waits_stops_the_probe_of_rank_0() {
    let folder = tempfile::tempdir().unwrap();
    let pretrained = folder.path().join("simclr-D_i-split1");
    let log = pretrained.join("full/run.jsonl");
    let command = |epochs| {
        let more = format!("--device cpu --set epochs=1 probe.full.epochs={epochs}");
        small("simclr-D_i", folder.path(), &more)
    };
    let mut encoder = None;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
        let ranks = start(2, &words(&command(20_000)));
        // The line of the first epoch.
        wait_until(|| std::fs::read_to_string(&log).is_ok_and(|log| log.lines().count() > 1));
        std::fs::remove_file(&log).unwrap();
        send(&ranks[1], signal);
        for (rank, output) in outputs(ranks).iter().enumerate() {
            assert_eq!(output.status.code(), Some(75), "rank {rank}: {}", said(output));
        }
        let found = result(&pretrained)["state_sha256"].clone();
        assert_eq!(*encoder.get_or_insert(found.clone()), found);
    }
    run(2, &words(&command(2)), 0);
    assert_eq!(encoder, Some(result(&pretrained)["state_sha256"].clone()));
    assert_eq!(result(&pretrained.join("full"))["epochs"].as_array().unwrap().len(), 2);
}

/// Sends a signal to one of two ranks. They may have been at an epoch's end just then.
fn stopped_in_mid_epoch(command: &[String], out: &Path, signal: i32, to: usize) -> bool {
    let ranks = start(2, &words(command));
    wait_until(|| out.join("run.jsonl").exists());
    std::thread::sleep(Duration::from_millis(100));
    send(&ranks[to], signal);
    let outputs = outputs(ranks);
    for (rank, output) in outputs.iter().enumerate() {
        assert_eq!(output.status.code(), Some(75), "rank {rank}: {}", said(output));
    }
    let said = said(&outputs[0]);
    let steps: usize = said.split_once("after ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    assert!([0, 16].contains(&steps), "stopped after {steps} steps");
    steps > 0
}

/// Kills a rank: the others end with `named` in their errors.
fn kill_one(ranks: Vec<Child>, killed: usize, named: &str) {
    send(&ranks[killed], libc::SIGKILL);
    let start = Instant::now();
    for (rank, output) in outputs(ranks).into_iter().enumerate().filter(|(rank, _)| *rank != killed) {
        assert_eq!(output.status.code(), Some(1), "rank {rank}: {}", said(&output));
        assert!(said(&output).contains(named), "rank {rank}: {}", said(&output));
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("the others ended {seconds:.2} s after rank {killed} was killed");
    assert!(seconds < 60.0, "{seconds} s");
}

#[test]
fn a_killed_rank_is_named_within_seconds() {
    let folder = tempfile::tempdir().unwrap();
    for killed in [1, 0] {
        let out = folder.path().join(killed.to_string());
        let command = with_limits(&out, "--limit-images 61 --set batch_size=16 lr=0.001 epochs=500");
        let ranks = start(3, &words(&command));
        wait_until(|| out.join("run.jsonl").exists());
        std::thread::sleep(Duration::from_millis(500));
        let named = format!("rank {killed} of 3 (process {} ", ranks[killed].id());
        kill_one(ranks, killed, &named);
    }
}

/// Each rank as on a machine of its own, where nobody sees the others' processes.
#[test]
fn a_killed_rank_of_another_machine_is_named_within_seconds() {
    let machine = |rank: usize| {
        let name = format!("hostname m{rank} && exec \"$0\" \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-c", &name]).arg(golden::program());
        command
    };
    if !machine(0).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip("namespaces", "unshare makes no namespaces here");
    }
    let folder = tempfile::tempdir().unwrap();
    // Of four, one is no neighbour of the lost one in what Gloo exchanges.
    for killed in [2, 0] {
        let (out, port) = (folder.path().join(killed.to_string()), free_port());
        let words = with_limits(&out, "--limit-images 61 --set batch_size=16 lr=0.001 epochs=500");
        let start = |rank| {
            let mut command = machine(rank);
            command.args(&words).stdout(Stdio::piped()).stderr(Stdio::piped());
            as_rank(&mut command, rank, 4, port).spawn().unwrap()
        };
        let ranks: Vec<Child> = (0..4).map(start).collect();
        wait_until(|| out.join("run.jsonl").exists());
        std::thread::sleep(Duration::from_millis(500));
        let named = format!("rank {killed} of 4 (process 1 on m{killed}) was lost");
        // Which takes its child along.
        kill_one(ranks, killed, &named);
    }
}

#[test]
fn an_error_of_one_rank_ends_all() {
    let good = golden::path("replay/sdclr");
    for failing in [0, 1] {
        let port = free_port();
        let start = |rank: usize| {
            let mut command = Command::new(golden::program());
            let folder = if rank == failing { Path::new("/nowhere") } else { &good };
            command.args(["replay", "--device", "cpu"]).arg(folder).stdout(Stdio::piped()).stderr(Stdio::piped());
            as_rank(&mut command, rank, 2, port).spawn().unwrap()
        };
        for (rank, output) in outputs((0..2).map(start).collect()).iter().enumerate() {
            assert_eq!(output.status.code(), Some(1), "rank {rank}: {}", said(output));
            assert!(said(output).contains("/nowhere"), "rank {rank}: {}", said(output));
            assert_eq!(said(output).contains(&format!("rank {failing} ended")), rank != failing, "{}", said(output));
        }
    }
}

/// Once the file `FULL` is there, tensors of the rank `WITHOUT` that are as large as all gradients together get no memory.
const NO_MEMORY: &str = r#"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
void *aligned_alloc(size_t, size_t);
int posix_memalign(void **out, size_t alignment, size_t size) {
  const char *rank = getenv("RANK"), *without = getenv("WITHOUT");
  if (size > 300000 && rank && strcmp(rank, without) == 0 && access(getenv("FULL"), F_OK) == 0)
    return ENOMEM;
  *out = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  return *out ? 0 : ENOMEM;
}
"#;

/// What only one rank meets in a step, such as a GPU whose memory is full, ends all of them and says why.
#[test]
fn a_rank_without_memory_ends_a_suite() {
    let folder = tempfile::tempdir().unwrap();
    let [source, library] = ["memory.c", "memory.so"].map(|name| folder.path().join(name));
    sdclr::fs::write(&source, NO_MEMORY.as_bytes()).unwrap();
    assert!(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap().success());
    for failing in [1, 0] {
        let [out, full] = ["out", "full"].map(|name| folder.path().join(format!("{name}{failing}")));
        let (port, long) = (free_port(), repro("simclr-D_i,sdclr-D_i", &out).join(" "));
        let long = long.replace("--limit-epochs 1", "--limit-epochs 5000") + " --device cpu";
        let start = |rank| {
            let mut command = Command::new(golden::program());
            command.args(long.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.env("LD_PRELOAD", &library).env("WITHOUT", failing.to_string()).env("FULL", &full);
            as_rank(&mut command, rank, 2, port).spawn().unwrap()
        };
        let ranks: Vec<Child> = (0..2).map(start).collect();
        // Behind the first line stand epochs.
        let log = out.join("simclr-D_i-split1/run.jsonl");
        wait_until(|| std::fs::read_to_string(&log).is_ok_and(|text| text.lines().count() > 3));
        sdclr::fs::write(&full, b"").unwrap();
        let begun = Instant::now();
        for (rank, output) in outputs(ranks).iter().enumerate() {
            assert_eq!(output.status.code(), Some(1), "rank {rank}: {}", said(output));
            let named = format!("rank {failing} ended: ");
            let told = said(output).lines().any(|line| line.contains(&named) && line.contains("can't allocate memory"));
            assert!(told, "rank {rank}: {}", said(output));
        }
        println!("both ended {:.1} s after rank {failing} had no memory", begun.elapsed().as_secs_f64());
        // They begin no other run, of which they might not agree.
        assert!(!out.join("sdclr-D_i-split1/run.jsonl").exists());
    }
}

#[test]
fn another_recipe_on_one_rank_is_an_error_on_both() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let start = |rank: usize| {
        let mut command = Command::new(golden::program());
        command.args(pretrain(folder.path())).args(["--set", &format!("seed={}", rank + 1)]);
        as_rank(&mut command, rank, 2, port).stderr(Stdio::piped()).spawn().unwrap()
    };
    for output in outputs((0..2).map(start).collect()) {
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("rank 0 and rank 1 differ in recipe, data or limits"), "{}", said(&output));
    }
}

#[test]
fn another_recipe_on_one_rank_of_a_suite_is_an_error_on_both() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let start = |rank: usize| {
        let other =
            repro("simclr-D_i,sdclr-D_i", folder.path()).join(" ").replace("0.001", &format!("0.00{}", rank + 1));
        let mut command = Command::new(golden::program());
        command.args(other.split(' ').chain(["--device", "cpu"])).stdout(Stdio::piped()).stderr(Stdio::piped());
        as_rank(&mut command, rank, 2, port).spawn().unwrap()
    };
    for (rank, output) in outputs((0..2).map(start).collect()).iter().enumerate() {
        assert_eq!(output.status.code(), Some(1), "rank {rank}: {}", said(output));
        assert!(said(output).contains("differ in recipe, data or limits"), "rank {rank}: {}", said(output));
    }
}

/// Every rank stops at the same step; rank 0 knows it by what the ranks agree on alone, and begins nothing else.
#[test]
fn a_signal_to_one_rank_that_trains_ends_a_suite() {
    let folder = tempfile::tempdir().unwrap();
    let long =
        repro("simclr-D_i,sdclr-D_i", folder.path()).join(" ").replace("--limit-epochs 1", "--limit-epochs 5000");
    let ranks = start(2, &long.split(' ').chain(["--device", "cpu"]).collect::<Vec<_>>());
    wait_until(|| folder.path().join("simclr-D_i-split1/run.jsonl").exists());
    send(&ranks[1], libc::SIGTERM);
    for (rank, output) in outputs(ranks).iter().enumerate() {
        assert_eq!(output.status.code(), Some(75), "rank {rank}: {}", said(output));
        assert!(!said(output).contains("failed"), "rank {rank}: {}", said(output));
    }
    assert!(!folder.path().join("sdclr-D_i-split1").exists());
}

#[test]
fn two_processes_of_one_rank_are_an_error_on_both() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let start = |_| {
        let mut command = Command::new(golden::program());
        command.args(pretrain(folder.path()));
        as_rank(&mut command, 0, 2, port).stderr(Stdio::piped()).spawn().unwrap()
    };
    for output in outputs((0..2).map(start).collect()) {
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("two processes have rank 0 of 2"), "{}", said(&output));
    }
}

#[test]
fn a_missing_rank_and_a_port_in_use_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    // A program that takes connections and never answers.
    let other = TcpListener::bind("0.0.0.0:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    for (rank, port, expected) in [
        (0, free_port(), "ranks [1] of 2 did not arrive within 3 s"),
        (0, taken, "which another program uses"),
        (1, taken, "no answer within 3 s; check MASTER_ADDR and MASTER_PORT"),
    ] {
        let mut command = Command::new(golden::program());
        command.args(pretrain(folder.path()));
        let output = as_rank(&mut command, rank, 2, port).env("SDCLR_RANKS_TIMEOUT", "3").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
}

/// As two jobs of a cluster on one machine, whose scripts name the same port.
#[test]
fn another_run_on_the_same_port_is_told_and_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let start = |run: &str, rank| {
        let mut command = Command::new(golden::program());
        command.args(pretrain(&folder.path().join(run))).stdout(Stdio::piped()).stderr(Stdio::piped());
        as_rank(&mut command, rank, 2, port).env("TORCHELASTIC_RUN_ID", run).spawn().unwrap()
    };
    let first = start("first", 0);
    wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    for output in outputs(vec![start("second", 0), start("second", 1)]) {
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(&format!("rank 0 cannot serve port {port}")), "{}", said(&output));
    }
    for output in outputs(vec![first, start("first", 1)]) {
        assert!(output.status.success(), "{}", said(&output));
    }
}

/// Whether a rank waits for the others or for the store itself.
#[test]
fn a_signal_while_ranks_meet_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let other = TcpListener::bind("0.0.0.0:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    for (rank, port) in [(0, free_port()), (1, taken)] {
        let mut command = Command::new(golden::program());
        command.args(pretrain(folder.path())).stderr(Stdio::piped()).stdout(Stdio::piped());
        let child = as_rank(&mut command, rank, 2, port).spawn().unwrap();
        // Rank 0 serves the store, or rank 1 asks for it.
        let _connection = match rank {
            0 => {
                wait_until(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
                None
            }
            _ => Some(other.accept().unwrap()),
        };
        send(&child, libc::SIGTERM);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(75), "{}", said(&output));
        // Only rank 0 tells what is no error.
        let told = said(&output).contains("the ranks were asked to stop while they waited for each other");
        assert_eq!(told, rank == 0, "{}", said(&output));
    }
}

/// A rank that cannot join is not called lost, nor are the others by it.
#[test]
fn an_error_as_ranks_join_is_told_by_all() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let start = |rank| {
        let mut command = Command::new(golden::program());
        command.args(pretrain(folder.path())).stderr(Stdio::piped()).stdout(Stdio::piped());
        as_rank(&mut command, rank, 2, port);
        if rank == 1 {
            command.env("GLOO_SOCKET_IFNAME", "nonsense");
        }
        command.env("SDCLR_RANKS_TIMEOUT", "10").spawn().unwrap()
    };
    for (rank, output) in outputs((0..2).map(start).collect()).iter().enumerate() {
        let said = said(output);
        assert_eq!(output.status.code(), Some(1), "rank {rank}: {said}");
        assert!(said.contains("Unable to find address for: nonsense") && !said.contains("was lost"), "{rank}: {said}");
    }
}

#[test]
fn half_an_environment_and_commands_of_one_process_are_refused() {
    let port = free_port().to_string();
    for (command, variables, expected) in [
        ("replay", vec![("RANK", "0")], "RANK is set but WORLD_SIZE is not"),
        (
            "bench",
            vec![("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")],
            "and this is one of 2; start it without torchrun or srun",
        ),
        (
            "replay",
            vec![
                ("RANK", "0"),
                ("WORLD_SIZE", "1"),
                ("MASTER_ADDR", "127.0.0.1"),
                ("MASTER_PORT", &port),
                ("SDCLR_RANKS_EXCHANGE", "nccl"),
                ("CUDA_VISIBLE_DEVICES", ""),
            ],
            "NCCL cannot connect the GPUs of the ranks: rank 0 computes on the CPU",
        ),
    ] {
        let argument = if command == "replay" { "/nowhere" } else { "norm" };
        let output = Command::new(golden::program()).args([command, argument]).envs(variables).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
}

#[test]
fn replay_by_two_ranks_gives_what_one_gives() {
    let folder = golden::path("replay/sdclr");
    let outs = tempfile::tempdir().unwrap();
    let out = |name: &str| outs.path().join(name).display().to_string();
    let command = |out: &str| ["replay", folder.to_str().unwrap(), "--device", "cpu", "--out", out].map(str::to_owned);
    run(1, &words(&command(&out("one"))), 0);
    run(2, &words(&command(&out("two"))), 0);
    let mut several = vec!["two"];
    match torchrun() {
        Some(mut torchrun) => {
            torchrun.arg(golden::program()).args(command(&out("torchrun")));
            let output = torchrun.output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            several.push("torchrun");
        }
        None => golden::skip::skip("oracle", "there is no torchrun (ci/oracle --env makes one)"),
    }
    let report =
        |name: &str| -> serde_json::Value { serde_json::from_slice(&std::fs::read(out(name)).unwrap()).unwrap() };
    let one = report("one");
    let all = numbers(&one["images_per_rank"])[0];
    assert_eq!((&one["ranks"], numbers(&one["images_per_rank"]).len()), (&1.into(), 1));
    for two in several.into_iter().map(report) {
        let images = numbers(&two["images_per_rank"]);
        assert_eq!((&two["ranks"], images.len(), images.iter().sum::<f64>()), (&2.into(), 2, all));
        assert_eq!(two["density"], one["density"]);
        for (found, expected) in numbers(&two["losses"]).iter().zip(numbers(&one["losses"])) {
            assert_near("loss", *found, expected, 1e-4);
        }
    }
}

fn numbers(list: &serde_json::Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// That of the oracle, for two processes.
fn torchrun() -> Option<Command> {
    let python = std::env::var_os("SDCLR_ORACLE_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".oracle/bin/python"), std::path::PathBuf::from);
    let torchrun = python.with_file_name("torchrun");
    torchrun.exists().then(|| {
        let mut command = Command::new(torchrun);
        command.args(["--standalone", "--no-python", "--nproc-per-node", "2"]).env("OMP_NUM_THREADS", "1");
        command
    })
}

/// `sdclr repro` of small runs of `methods` into `out`.
fn repro(methods: &str, out: &Path) -> Vec<String> {
    small(methods, out, "--limit-epochs 1")
}

fn small(methods: &str, out: &Path, more: &str) -> Vec<String> {
    let fixed = "repro digits-lt --splits 1 --seeds 1 --limit-images 61 --set batch_size=16 lr=0.001 --methods";
    let own = [methods, "--out", out.to_str().unwrap()];
    fixed.split(' ').chain(own).chain(more.split(' ')).map(str::to_owned).collect()
}

#[test]
fn a_suite_by_two_ranks_gives_what_one_process_gives() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    let methods = "simclr-D_i,sdclr-D_i";
    run(1, &words(&[repro(methods, &one), vec!["--device".to_owned(), "cpu".to_owned()]].concat()), 0);
    let outputs = run(2, &words(&[repro(methods, &two), vec!["--device".to_owned(), "cpu".to_owned()]].concat()), 0);
    assert!(String::from_utf8_lossy(&outputs[0].stdout).contains("report: ") && outputs[1].stdout.is_empty());
    for run in ["simclr-D_i-split1", "sdclr-D_i-split1"] {
        let [one, two] = [&one, &two].map(|out| result(&out.join(run)));
        assert_eq!((&two["sessions"][0]["ranks"], &two["recipe_hash"]), (&2.into(), &one["recipe_hash"]));
        assert_near(run, loss(&two, 0), loss(&one, 0), 1e-4);
        assert!(result(&folder.path().join("two").join(run).join("few"))["best_epoch"].is_number());
    }
    // A whole job is only read back.
    run(2, &words(&[repro(methods, &two), vec!["--device".to_owned(), "cpu".to_owned()]].concat()), 0);
}

/// All ranks see that a loss is not finite, and go on with the next job.
#[test]
fn a_run_that_diverges_does_not_stop_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--set", "lr=1e20", "--device", "cpu"].map(str::to_owned);
    let ranks = start(2, &words(&[&repro("simclr-D_i,sdclr-D_i", folder.path())[..], &more].concat()));
    let output = &outputs(ranks)[0];
    assert_eq!(output.status.code(), Some(1));
    for run in ["simclr-D_i-split1", "sdclr-D_i-split1"] {
        assert!(said(output).contains(&format!("failed: {run}: the loss is NaN")), "{}", said(output));
    }
}

/// What every rank refuses alike.
#[test]
fn a_run_that_is_refused_does_not_stop_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let few = repro("simclr-D_i,sdclr-D_i", folder.path()).join(" ").replace("61", "66").replace("=16", "=64");
    let command: Vec<&str> = few.split(' ').chain(["--device", "cpu"]).collect();
    for (rank, output) in outputs(start(3, &command)).iter().enumerate() {
        assert_eq!(output.status.code(), Some(i32::from(rank == 0)), "rank {rank}: {}", said(output));
        for run in ["simclr-D_i-split1", "sdclr-D_i-split1"].iter().filter(|_| rank == 0) {
            let failed = format!("failed: {run}: the last batch of 66 images in batches of 64 would hold 2");
            assert!(said(output).contains(&failed), "{}", said(output));
        }
    }
}

/// As on a network file system, or where each rank has a folder of its own.
#[test]
fn ranks_that_see_different_folders_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let outs = [0, 1].map(|rank| folder.path().join(rank.to_string()));
    assert!(Command::new(golden::program()).args(pretrain(&outs[0])).output().unwrap().status.success());
    let port = free_port();
    let start = |rank: usize| {
        let mut started = Command::new(golden::program());
        started.args(pretrain(&outs[rank])).stdout(Stdio::piped()).stderr(Stdio::piped());
        as_rank(&mut started, rank, 2, port).spawn().unwrap()
    };
    for (rank, output) in outputs(vec![start(0), start(1)]).iter().enumerate() {
        assert_eq!(output.status.code(), Some(1), "rank {rank}: {}", said(output));
        assert!(
            said(output).contains("differ in what the output folder holds: a finished run and 0 steps"),
            "{}",
            said(output)
        );
    }
}

/// All that one GPU can show: two ranks that share it, over the host, and NCCL of one process, whose steps are recorded.
#[test]
fn ranks_on_one_gpu_give_what_one_process_gives() {
    if golden::device() == Device::Cpu {
        return golden::skip::skip("gpu", "a CPU has no NCCL and records no step; set SDCLR_TEST_DEVICE");
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, size: usize, more: &[&str], exchange: Option<&str>| {
        let out = folder.path().join(name);
        let mut command = pretrain(&out)
            .iter()
            .map(|word| if word == "cpu" { golden::device_name() } else { word.clone() })
            .collect::<Vec<_>>();
        command.extend(more.iter().chain(&["--deterministic"]).map(|word| (*word).to_owned()));
        let port = free_port();
        let start = |rank| {
            let mut started = Command::new(golden::program());
            as_rank(&mut started, rank, size, port).args(&command).stderr(Stdio::piped());
            started.envs(exchange.map(|exchange| ("SDCLR_RANKS_EXCHANGE", exchange))).spawn().unwrap()
        };
        let outputs = outputs((0..size).map(start).collect());
        outputs.iter().for_each(|output| assert!(output.status.success(), "{name}: {}", said(output)));
        (said(&outputs[0]), result(&out))
    };
    let (_, alone) = run("alone", 1, &[], None);
    let (shared, two) = run("two", 2, &[], None);
    assert!(shared.contains("rank 0 and rank 1 share one GPU"), "{shared}");
    let (nccl, recorded) = run("recorded", 1, &[], Some("nccl"));
    assert!(nccl.contains("the ranks exchange through NCCL 2."), "{nccl}");
    let (_, eager) = run("eager", 1, &["--eager"], Some("nccl"));
    assert_eq!(recorded["state_sha256"], eager["state_sha256"], "a recorded step computes what its operations do");
    for (name, found) in [("two", two), ("recorded", recorded)] {
        (0..2).for_each(|epoch| assert_near(name, loss(&found, epoch), loss(&alone, epoch), 1e-4));
    }
}

#[test]
fn devices_get_a_run_each_before_two_share_one() {
    let folder = tempfile::tempdir().unwrap();
    let refused =
        Command::new(golden::program()).args(["repro", "digits-lt", "--devices", "cpu,cpu", "--jobs", "2"]).output();
    let refused = refused.unwrap();
    assert!(refused.status.code() == Some(2) && said(&refused).contains("cannot be used with"), "{}", said(&refused));
    let two = "simclr-D_i,sdclr-D_i";
    for (methods, job, ranks) in [
        ("simclr-D_i", None, [Some(2), None]),
        (two, None, [None, None]),
        (two, Some("simclr-D_i-split1"), [Some(2), None]),
    ] {
        let out = folder.path().join(format!("{methods} {job:?}"));
        let devices = ["--devices", "cpu,cpu"].into_iter().chain(job.map(|job| ["--job", job]).into_iter().flatten());
        let output = Command::new(golden::program()).args(repro(methods, &out)).args(devices).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout).matches("report: ").count(), 1);
        for (method, ranks) in methods.split(',').zip(ranks).take(if job.is_some() { 1 } else { 2 }) {
            let found = &result(&out.join(format!("{method}-split1")))["sessions"][0]["ranks"];
            assert_eq!(found.as_u64(), ranks, "{method}");
        }
    }
}
