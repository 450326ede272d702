//! A step launched as a CUDA graph does what its operations do one by one, on the GPU that SDCLR_TEST_DEVICE names; on a CPU,
//! where nothing is recorded, that is a skip. All that a recorded step reads keeps its place in memory, also on a CPU.

mod golden;

use golden::skip::skip;
use sdclr::native;
use sdclr::network::{Fused, Network, NetworkSpec};
use sdclr::pretrain::loss::nt_xent;
use sdclr::pretrain::sdclr::SdClr;
use sdclr::pretrain::temperature::Temperature;
use sdclr::pretrain::{Method, PretrainError, Trainer};
use sdclr::recipe::{Recipe, TemperatureSchedule};
use tch::{Device, Kind, Tensor};

/// Images of each batch of an epoch: one shape soon recorded, and the rest.
const BATCHES: [i64; 5] = [6, 6, 6, 6, 4];

fn recipe(method: &str, precision: &str) -> Recipe {
    let set = ["network=resnet10", "width=4", "epochs=8", "output_dim=8", "warmup_epochs=2"].map(str::to_owned);
    let precision = format!("precision={precision}");
    Recipe::resolve(&format!("digits-lt/{method}"), &[&set[..], &[precision]].concat()).unwrap()
}

fn trainer(recipe: &Recipe, eager: bool) -> Trainer {
    let network = Network::new(NetworkSpec::of_recipe(recipe), recipe.seed, Kind::Float, golden::device()).unwrap();
    let mut trainer = Trainer::new(recipe, network, BATCHES.len(), eager).unwrap();
    // The same kernels, also where they are launched one by one.
    trainer.network.set_fused(Fused::OnCuda).unwrap();
    trainer
}

fn views(count: i64, seed: u64) -> Tensor {
    golden::pixels(&seed.to_string(), &[count, 2, 3, 8, 8])
}

/// Four epochs; every loss.
fn train(trainer: &mut Trainer) -> Vec<f64> {
    let mut losses = Vec::new();
    for epoch in 1..=4 {
        let batches = BATCHES.iter().enumerate();
        let batches = batches.map(|(i, count)| Ok(views(*count, 10 * epoch as u64 + i as u64)));
        losses.extend(trainer.epoch(epoch, batches).unwrap().losses);
    }
    losses
}

#[test]
fn graphs_give_the_bits_of_operations_launched_one_by_one() {
    if golden::device() == Device::Cpu {
        assert_eq!(trainer(&recipe("sdclr", "fp32"), false).slow_steps(), 1, "a CPU records no step");
        return skip("gpu", "a CPU records no step; set SDCLR_TEST_DEVICE");
    }
    native::set_deterministic(true).unwrap();
    for (method, precision) in [("sdclr", "fp32"), ("sdclr", "bf16"), ("simclr", "bf16")] {
        let recipe = recipe(method, precision);
        let [mut eager, mut recorded] = [true, false].map(|eager| trainer(&recipe, eager));
        assert!(recorded.slow_steps() > 1, "a GPU records steps");
        assert_eq!(train(&mut eager), train(&mut recorded), "{method} in {precision}");
        let [eager, recorded] = [eager, recorded].map(|trainer| {
            let (network, optimizer) = (trainer.network.state(), trainer.optimizer.state());
            network
                .iter()
                .chain(optimizer.iter())
                .map(|(name, tensor)| (name.to_owned(), tensor.copy()))
                .collect::<Vec<_>>()
        });
        for ((name, eager), (_, recorded)) in eager.iter().zip(&recorded) {
            assert!(eager == recorded, "{name} of {method} in {precision}");
        }
    }
}

/// Where the memory of the parameters and of the mask begins.
fn places(network: &Network, method: &SdClr) -> Vec<usize> {
    let parameters = network.parameters();
    let tensors = parameters.iter().map(|(_, tensor)| tensor).chain(method.mask().unwrap().parts());
    tensors.map(|tensor| tensor.data_ptr() as usize).collect()
}

#[test]
fn a_mask_and_the_parameters_keep_their_place() {
    let recipe = recipe("sdclr", "fp32");
    let network = Network::new(NetworkSpec::of_recipe(&recipe), recipe.seed, Kind::Float, golden::device()).unwrap();
    let other = Network::new(NetworkSpec::of_recipe(&recipe), recipe.seed + 1, Kind::Float, golden::device()).unwrap();
    let mut method = SdClr::new(&recipe).unwrap();
    method.begin_epoch(&network, 1).unwrap();
    let (before, first) = (places(&network, &method), method.mask().unwrap().parts()[1].copy());
    network.load(&other.state()).unwrap();
    method.begin_epoch(&network, 2).unwrap();
    assert_eq!(places(&network, &method), before);
    // And it is the new one that lies there.
    let mut fresh = SdClr::new(&recipe).unwrap();
    fresh.begin_epoch(&network, 2).unwrap();
    assert!(method.mask().unwrap().parts()[1] != first);
    assert!(method.mask().unwrap().parts() == fresh.mask().unwrap().parts());
}

/// A recorded step reads the temperature where it was when it was recorded; the host's numbers it would not see again.
#[test]
fn the_temperature_keeps_its_place() {
    let recipe = recipe("simclr", "fp32");
    let temperature_schedule = TemperatureSchedule::Cosine;
    let recipe = Recipe { temperature_schedule, temperature: 0.1, temperature_t_max: 4, ..recipe };
    let network = Network::new(NetworkSpec::of_recipe(&recipe), recipe.seed, Kind::Float, golden::device()).unwrap();
    let mut temperature = Temperature::new(&recipe);
    assert!(temperature.current().is_err(), "before an epoch there is none");
    temperature.begin_epoch(&network, 1).unwrap();
    let current = temperature.current().unwrap().shallow_clone();
    assert_eq!((current.size(), current.device()), (vec![], network.device()));
    for (epoch, expected) in [(2, 0.55), (4, 0.1), (8, 1.0)] {
        temperature.begin_epoch(&network, epoch).unwrap();
        assert!((current.double_value(&[]) - expected).abs() < 1e-6, "epoch {epoch}: {current:?}");
    }
    // And the loss follows it.
    let features = [1, 2].map(|seed| golden::uniform(&seed.to_string(), &[4, 3]).to_kind(Kind::Float));
    let loss = || nt_xent(&features[0], &features[1], &current).double_value(&[]);
    let before = loss();
    temperature.begin_epoch(&network, 4).unwrap();
    assert_ne!(loss(), before);
}

/// Without a mask there is no pruned branch, and no step that could pass for one of SDCLR.
#[test]
fn sdclr_takes_no_step_before_an_epoch() {
    let recipe = recipe("sdclr", "fp32");
    let network = Network::new(NetworkSpec::of_recipe(&recipe), recipe.seed, Kind::Float, golden::device()).unwrap();
    let error = SdClr::new(&recipe).unwrap().loss(&network, &views(4, 1)).unwrap_err();
    assert!(matches!(error, PretrainError::NoEpoch), "{error}");
}
