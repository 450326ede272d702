//! Loss, optimisers, schedule, order and whole training steps give what PyTorch gives (REFERENCE.md "Loss", "Steps",
//! "Optimiser and schedule"), in float64, on the device that SDCLR_TEST_DEVICE names. The oracle takes the published three forwards and two backwards where we take
//! one joint backward. Goldens: reference/torch/goldens.py.

mod golden;

use std::collections::BTreeMap;

use golden::{FLOAT64, assert_digests, assert_near, assert_tensors_near, pixels, uniform};
use sdclr::network::{Network, NetworkSpec, StateDict};
use sdclr::pretrain::Trainer;
use sdclr::pretrain::loss::nt_xent;
use sdclr::pretrain::optimizer::Optimizer;
use sdclr::pretrain::order::{epoch_images, epoch_order, global_order};
use sdclr::pretrain::schedule::Schedule;
use sdclr::recipe::{Depth, OptimizerName, Recipe, ScheduleName};
use serde::Deserialize;
use tch::{Kind, Tensor};

#[derive(Deserialize)]
struct LossCase {
    count: i64,
    columns: i64,
    temperature: f64,
    scale: f64,
    loss: f64,
    gradients: Vec<Vec<f64>>,
}

#[test]
fn loss_and_its_gradients() {
    for case in golden::json::<Vec<LossCase>>("pretrain/loss.json") {
        let what = format!("{} x {} at temperature {}", case.count, case.columns, case.temperature);
        let shape = [case.count, case.columns];
        let views =
            [0, 1].map(|view| (uniform(&format!("features.{view}"), &shape) * case.scale).set_requires_grad(true));
        let temperature = Tensor::from(case.temperature).to_device(golden::device());
        let loss = nt_xent(&views[0], &views[1], &temperature);
        let found = loss.double_value(&[]);
        // A single image has no negatives: its loss is 0, and so is every gradient.
        assert!((found - case.loss).abs() <= 1e-12 * case.loss.max(1.0), "{what}: {found}, PyTorch has {}", case.loss);
        let gradients = Tensor::run_backward(&[loss], &views, false, false);
        for (gradient, expected) in gradients.into_iter().zip(case.gradients) {
            if case.count == 1 {
                assert!(gradient.abs().max().double_value(&[]) < 1e-15 && expected[0] < 1e-15, "{what}");
                continue;
            }
            let expected = Tensor::from_slice(&expected).view([1, 3]);
            assert_digests(&what, vec![("gradient".into(), gradient)], &expected, FLOAT64);
        }
    }
}

#[derive(Deserialize)]
struct ScheduleCase {
    lr: f64,
    total: u64,
    warmup: u64,
    factors: Vec<f64>,
}

#[test]
fn schedule_of_every_step() {
    for ScheduleCase { lr, total, warmup, factors } in golden::json::<Vec<ScheduleCase>>("pretrain/schedule.json") {
        let cosine = Schedule { name: ScheduleName::Cosine, lr, warmup, total };
        let constant = Schedule { name: ScheduleName::Constant, lr, warmup, total };
        assert_eq!(factors.len() as u64, total);
        for (i, factor) in (1..).zip(factors) {
            let what = format!("step {i} of {total}, warm-up {warmup}");
            // At the end the cosine leaves little of terms near one.
            assert!((cosine.rate(i) - lr * factor).abs() <= 1e-14 * lr, "{what}");
            assert_eq!(constant.rate(i), lr, "{what}");
        }
    }
}

#[derive(Deserialize)]
struct OptimizerGoldens {
    momentum: f64,
    steps: u64,
    warmup: u64,
    /// Joined in the order of their names.
    shapes: BTreeMap<String, Vec<i64>>,
    runs: Vec<OptimizerRun>,
}

#[derive(Deserialize)]
struct OptimizerRun {
    name: String,
    optimizer: OptimizerName,
    weight_decay: f64,
    lr: f64,
    schedule: ScheduleName,
}

#[test]
fn optimisers_over_fifty_steps() {
    let OptimizerGoldens { momentum, steps, warmup, shapes, runs } = golden::json("pretrain/optimizers.json");
    let expected = golden::tensors("pretrain/optimizers.safetensors");
    for run in runs {
        let start = |(name, shape): (&String, &Vec<i64>)| {
            let weight = uniform(&format!("optimizer.{name}"), shape);
            (name.clone(), if name == "zero" { weight.zeros_like() } else { weight }.set_requires_grad(true))
        };
        let weights: StateDict = shapes.iter().map(start).collect();
        let mut optimizer = Optimizer::new(run.optimizer, momentum, run.weight_decay, &weights);
        let schedule = Schedule { name: run.schedule, lr: run.lr, warmup, total: steps };
        let mut rows = (0..).zip([1, 2, 10, 50]);
        let mut next = rows.next();
        for step in 1..=steps {
            let gradient = |(name, weight): (&str, &Tensor)| match name {
                "still" => weight.zeros_like(),
                _ => weight.detach() * 0.3 + uniform(&format!("gradient.{name}.{step}"), &weight.size()),
            };
            let gradients: Vec<Tensor> = weights.iter().map(gradient).collect();
            optimizer.step(&gradients, schedule.rate(step)).unwrap();
            if let Some((row, _)) = next.filter(|(_, seen)| *seen == step) {
                let found: Vec<Tensor> = weights.iter().map(|(_, weight)| weight.detach().flatten(0, -1)).collect();
                let what = format!("{} after {step} steps", run.name);
                assert_tensors_near(&what, &Tensor::cat(&found, 0), &expected[&run.name].get(row), FLOAT64);
                next = rows.next();
            }
        }
        assert!(next.is_none());
    }
}

#[derive(Deserialize)]
struct OrderCase {
    images: usize,
    epoch: usize,
    ranks: usize,
    rank: usize,
    first: Vec<i64>,
    last: Vec<i64>,
    length: usize,
    sha256: String,
}

#[test]
fn order_is_that_of_the_distributed_sampler() {
    for case in golden::json::<Vec<OrderCase>>("pretrain/order.json") {
        let what = format!("{} images, epoch {}, rank {} of {}", case.images, case.epoch, case.rank, case.ranks);
        let order = epoch_order(case.images, case.epoch, case.rank, case.ranks).unwrap();
        assert_eq!(order.len(), case.length, "{what}");
        assert!(order.starts_with(&case.first) && order.ends_with(&case.last), "{what}: starts {:?}", &order[..1]);
        let bytes: Vec<u8> = order.iter().flat_map(|position| position.to_le_bytes()).collect();
        assert_eq!(sdclr::recipe::hash_bytes(&bytes), case.sha256, "{what}");
        // The global batches are made of the ranks' own.
        let whole = global_order(case.images, case.epoch, case.ranks).unwrap();
        assert!(whole.iter().skip(case.rank).step_by(case.ranks).eq(&order), "{what}");
        assert_eq!(whole.len(), epoch_images(case.images, case.ranks), "{what}");
    }
}

/// The published runs of ImageNet-100-LT had two processes and batches of 256: 48 steps, the last of 174 images.
#[test]
fn two_processes_pad_the_published_epoch() {
    let recipe = Recipe::resolve("imagenet100-lt/sdclr", &[]).unwrap();
    let order = global_order(12_205, 1, recipe.sampler_world).unwrap();
    let batches: Vec<&[i64]> = order.chunks(recipe.batch_size).collect();
    assert_eq!((order.len(), batches.len(), batches[47].len()), (12_206, 48, 174));
    assert_eq!(order[12_205], order[0]);
    // What each process gives to the last step, as DistributedSampler orders it.
    let ranks = [0, 1].map(|rank| epoch_order(12_205, 1, rank, 2).unwrap()[47 * 128..].to_vec());
    let mut expected = ranks.concat();
    let mut found = batches[47].to_vec();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!((ranks[0].len(), found), (87, expected));
}

#[derive(Deserialize)]
struct StepGoldens {
    settings: StepSettings,
    cases: BTreeMap<String, StepCase>,
}

#[derive(Deserialize)]
struct StepSettings {
    network: Depth,
    width: i64,
    output_dim: i64,
    batch: i64,
    side: i64,
    temperature: f64,
    lr: f64,
    momentum: f64,
    weight_decay: f64,
    steps: usize,
    warmup: usize,
    steps_per_epoch: usize,
    prune_ratio: f64,
}

#[derive(Deserialize)]
struct StepCase {
    method: String,
    dual_bn: bool,
    losses: Vec<f64>,
    density: Vec<f64>,
    tracked: BTreeMap<String, i64>,
}

impl StepSettings {
    fn recipe(&self, case: &StepCase) -> Recipe {
        let pruning = match case.method.as_str() {
            "sdclr" => vec![format!("prune_ratio={}", self.prune_ratio)],
            _ => Vec::new(),
        };
        Recipe {
            network: self.network,
            width: self.width,
            output_dim: self.output_dim,
            head_layers: if case.dual_bn { 3 } else { 2 },
            dual_bn: case.dual_bn,
            temperature: self.temperature,
            lr: self.lr,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            epochs: self.steps / self.steps_per_epoch,
            warmup_epochs: self.warmup / self.steps_per_epoch,
            ..Recipe::resolve(&format!("cifar10-lt/{}", case.method), &pruning).unwrap()
        }
    }
}

/// One and ten steps: losses, densities, counters, and the *update* of every tensor, running statistics included.
fn check_steps(name: &str) {
    let StepGoldens { settings, mut cases } = golden::json("pretrain/steps.json");
    let case = cases.remove(name).unwrap();
    let expected = golden::tensors("pretrain/steps.safetensors");
    let recipe = settings.recipe(&case);
    let network = Network::new(NetworkSpec::of_recipe(&recipe), 1, Kind::Double, golden::device()).unwrap();
    golden::fill(&network);
    let start = golden::float_state(&network);
    let mut trainer = Trainer::new(&recipe, network, settings.steps_per_epoch, false).unwrap();
    let mut density = Vec::new();
    for step in 1..=settings.steps {
        let epoch = (step - 1) / settings.steps_per_epoch + 1;
        let views = pixels(&format!("views.{step}"), &[settings.batch, 2, 3, settings.side, settings.side]);
        let stats = trainer.epoch(epoch, [Ok(views)]).unwrap();
        if step % settings.steps_per_epoch == 1 {
            density.extend(stats.density);
        }
        assert_near(&format!("loss of step {step}"), stats.losses[0], case.losses[step - 1], FLOAT64);
        if let Some(expected) = expected.get(&format!("{name}/update{step}")) {
            let now = golden::float_state(&trainer.network);
            let updates = now.into_iter().zip(&start).map(|((name, now), (_, start))| (name, now - start)).collect();
            assert_digests(&format!("updates after {step} steps"), updates, expected, FLOAT64);
        }
    }
    assert_eq!(density, case.density);
    let state = trainer.network.state();
    for (name, tracked) in case.tracked {
        assert_eq!(state.get(&name).unwrap().int64_value(&[]), tracked, "{name}");
    }
}

#[test]
fn ten_simclr_steps() {
    check_steps("simclr-single");
}

#[test]
fn ten_sdclr_steps_with_dual_bn() {
    check_steps("sdclr-dual");
}

#[test]
fn ten_sdclr_steps_with_shared_bn() {
    check_steps("sdclr-single");
}
