//! A run of pre-training is what its parts say. Two epochs on the digits are rebuilt here by hand: the order of
//! DistributedSampler, the entries of the published list, the draws at the views' addresses, the views of the kernel, and
//! steps in a loop that knows neither loader, trainer nor methods. The run of the program must have the same losses and end
//! with the same weights, to the bit. A trainer whose parts are right and whose whole is wrong fails here.

use std::f64::consts::PI;
use std::path::Path;

use ndarray::Array1;
use ndarray_npy::ReadNpyExt;
use sdclr::augment::{self, ViewKey};
use sdclr::checkpoint::state_sha256;
use sdclr::dataset::Dataset;
use sdclr::network::{BnMode, Branch, Mask, Network, NetworkSpec, Pass};
use sdclr::pretrain::optimizer::Optimizer;
use sdclr::pretrain::order::epoch_order;
use sdclr::pretrain::schedule::Schedule;
use sdclr::random::addressed_seed;
use sdclr::recipe::{DatasetName, Recipe, TemperatureSchedule};
use tch::{Device, Kind, Tensor};

const EPOCHS: usize = 2;

/// Mean loss of each epoch, and the hash of the final state.
#[derive(Debug, PartialEq)]
struct Outcome {
    losses: Vec<serde_json::Value>,
    state: String,
}

/// A number as a JSON file gives it back.
fn through_json(number: f64) -> serde_json::Value {
    serde_json::from_str(&serde_json::to_string(&number).unwrap()).unwrap()
}

/// What the program does.
fn run(recipe: &str, set: &[&str]) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .args(["pretrain", "--recipe", recipe, "--split", "1", "--pretrain-split", "D_i", "--device", "cpu"])
        .arg("--set")
        .args(set)
        .arg("--out")
        .arg(folder.path())
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result = std::fs::read(folder.path().join("result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_slice(&result).unwrap();
    let log = std::fs::read_to_string(folder.path().join("run.jsonl")).unwrap();
    let events = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let losses = events.filter(|event| event["event"] == "epoch").map(|event| event["loss"].clone()).collect();
    Outcome { losses, state: result["state_sha256"].as_str().unwrap().to_owned() }
}

/// The entries of the published list of split 1.
fn list() -> Vec<i64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/digits/split/split1_D_i.npy");
    Array1::<i64>::read_npy(std::fs::File::open(path).unwrap()).unwrap().to_vec()
}

/// Both views of the images at `entries` in `epoch`: `[N, 2, 3, S, S]` in `[0, 1]`.
fn views(recipe: &Recipe, images: &Tensor, epoch: usize, entries: &[i64]) -> Tensor {
    let (_, _, height, width) = images.size4().unwrap();
    let twice: Vec<i64> = entries.iter().flat_map(|&entry| [entry, entry]).collect();
    let params: Vec<_> = twice
        .iter()
        .zip([0, 1].into_iter().cycle())
        .map(|(&entry, view)| {
            let key = ViewKey { seed: recipe.seed, epoch: epoch as u64, image: entry as u64, view };
            augment::draw(&recipe.augment, key, height, width)
        })
        .collect();
    let size = recipe.augment.size;
    let views = augment::views(&images.index_select(0, &Tensor::from_slice(&twice)), &params, size).unwrap();
    views.view([-1, 2, 3, size, size]).to_kind(Kind::Float) / 255.0
}

/// NT-Xent with the temperature as a plain number.
fn nt_xent(first: &Tensor, second: &Tensor, temperature: f64) -> Tensor {
    let n = first.size()[0];
    let features = Tensor::cat(&[first, second], 0);
    let features = &features / features.norm_scalaropt_dim(2.0, [1], true).clamp_min(1e-12);
    let similarities = features.matmul(&features.tr()) / temperature;
    let logits = similarities.masked_fill(&Tensor::eye(2 * n, (Kind::Bool, Device::Cpu)), f64::NEG_INFINITY);
    let positive = Tensor::cat(
        &[Tensor::arange_start(n, 2 * n, (Kind::Int64, Device::Cpu)), Tensor::arange(n, (Kind::Int64, Device::Cpu))],
        0,
    );
    logits.cross_entropy_loss(&positive, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)
}

fn temperature(recipe: &Recipe, epoch: usize) -> f64 {
    let (min, max, t_max) = (recipe.temperature, recipe.temperature_max, recipe.temperature_t_max as f64);
    match recipe.temperature_schedule {
        TemperatureSchedule::Constant => min,
        TemperatureSchedule::Cosine => min + (max - min) * 0.5 * (1.0 + (PI * epoch as f64 / t_max).cos()),
    }
}

/// The features of view 0 and of view 1.
type Features = (Tensor, Tensor);

fn simclr(recipe: &Recipe, network: &Network, views: &Tensor) -> Features {
    let pass = Pass { bn: BnMode::Train { momentum: 0.1, updates: 1 }, ..Pass::EVAL };
    let view = |index| views.select(1, index);
    if recipe.own["bn_per_view"] == true {
        let first = network.forward(&view(0), &pass);
        return (first, network.forward(&view(1), &pass));
    }
    // One batch of (image 0 view 0, image 0 view 1, image 1 view 0, ...).
    let features = network.forward(&views.flatten(0, 1), &pass);
    let count = features.size()[0];
    let every_second =
        |start| features.index_select(0, &Tensor::arange_start_step(start, count, 2, (Kind::Int64, Device::Cpu)));
    (every_second(0), every_second(1))
}

fn sdclr(network: &Network, views: &Tensor, mask: &Mask) -> Features {
    let pruned: Vec<Tensor> = network.prunable().into_iter().zip(mask.parts()).map(|(w, mask)| w * mask).collect();
    let dense = Pass { branch: Branch::Dense, bn: BnMode::Train { momentum: 0.1, updates: 1 }, ..Pass::EVAL };
    // The published step moves the pruned branch's statistics twice.
    let bn = BnMode::Train { momentum: 1.0 - 0.9 * 0.9, updates: 2 };
    let pruned = Pass { branch: Branch::Pruned, bn, weights: Some(&pruned), ..Pass::EVAL };
    let first = network.forward(&views.select(1, 0), &dense);
    (first, network.forward(&views.select(1, 1), &pruned))
}

/// What the program should do.
fn rebuilt(name: &str, set: &[&str]) -> Outcome {
    tch::set_num_threads(1);
    let set: Vec<String> = set.iter().map(ToString::to_string).collect();
    let recipe = Recipe::resolve(name, &set).unwrap();
    let dataset = Dataset::load(DatasetName::Digits, None, Device::Cpu).unwrap();
    let (images, list) = (&dataset.train("").unwrap().images, list());
    let network = Network::new(NetworkSpec::of_recipe(&recipe), recipe.seed, Kind::Float, Device::Cpu).unwrap();
    let parameters = network.parameters();
    let mut optimizer = Optimizer::new(recipe.optimizer, recipe.momentum, recipe.weight_decay, &parameters);
    let steps = list.len().div_ceil(recipe.batch_size);
    let (warmup, total) = ((recipe.warmup_epochs * steps) as u64, (recipe.epochs * steps) as u64);
    let schedule = Schedule { name: recipe.schedule, lr: recipe.lr, warmup, total };
    let (mut step, mut means) = (0, Vec::new());
    for epoch in 1..=EPOCHS {
        let seed = addressed_seed(recipe.seed, &format!("prune/{epoch}"));
        let ratio = |key: &str| recipe.own.get(key).and_then(serde_json::Value::as_f64).unwrap_or_default();
        let [ratio, random] = [ratio("prune_ratio"), ratio("random_prune_ratio")];
        let mask = Mask::magnitude(&network.prunable(), ratio, random, seed).unwrap();
        let mut losses = Vec::new();
        for batch in epoch_order(list.len(), epoch, 0, 1).unwrap().chunks(recipe.batch_size) {
            let entries: Vec<i64> = batch.iter().map(|&position| list[position as usize]).collect();
            let views = views(&recipe, images, epoch, &entries);
            let (first, second) = match name {
                "digits-lt/simclr" => simclr(&recipe, &network, &views),
                _ => sdclr(&network, &views, &mask),
            };
            let loss = nt_xent(&first, &second, temperature(&recipe, epoch));
            let gradients = Tensor::run_backward(&[&loss], optimizer.parameters(), false, false);
            step += 1;
            optimizer.step(&gradients, schedule.rate(step)).unwrap();
            losses.push(loss.double_value(&[]));
        }
        means.push(through_json(losses.iter().sum::<f64>() / losses.len() as f64));
    }
    Outcome { losses: means, state: state_sha256(&network.state()).unwrap() }
}

fn check(recipe: &str, set: &[&str]) -> Outcome {
    let set = [["epochs=2", "warmup_epochs=1"].as_slice(), set].concat();
    let rebuilt = rebuilt(recipe, &set);
    assert_eq!(run(recipe, &set), rebuilt, "{recipe} {set:?}");
    rebuilt
}

#[test]
fn simclr_is_its_parts() {
    check("digits-lt/simclr", &[]);
}

#[test]
fn sdclr_is_its_parts() {
    check("digits-lt/sdclr", &[]);
    check("digits-lt/sdclr", &["random_prune_ratio=0.3"]);
}

/// Two epochs at 0.55 and at 0.1.
#[test]
fn a_temperature_schedule_is_its_parts() {
    let cosine = ["temperature_schedule=cosine", "temperature=0.1", "temperature_max=1.0", "temperature_t_max=2"];
    for recipe in ["digits-lt/simclr", "digits-lt/sdclr"] {
        let scheduled = check(recipe, &cosine);
        assert_ne!(scheduled, check(recipe, &["temperature=0.1"]), "the schedule changes nothing");
    }
}

/// What separates the two methods beside pruning, each alone.
#[test]
fn controls_are_their_parts() {
    let plain = check("digits-lt/simclr", &[]);
    for control in ["head_layers=3", "bn_per_view=true"] {
        assert_ne!(check("digits-lt/simclr", &[control]), plain, "{control} changes nothing");
    }
    let unpruned = check("digits-lt/sdclr", &["prune_ratio=0.0"]);
    assert_ne!(unpruned, check("digits-lt/sdclr", &["prune_ratio=0.0", "head_layers=2"]));
}
