//! A step launched as a CUDA graph does what its operations do one by one, on the device that SDCLR_TEST_DEVICE names. On a
//! CPU nothing is recorded; what holds there too is that all a recorded step would read keeps its place in memory.

mod golden;

use sdclr::native;
use sdclr::network::{Fused, Network, NetworkSpec};
use sdclr::pretrain::sdclr::SdClr;
use sdclr::pretrain::{Method, Trainer, read_losses};
use sdclr::random;
use sdclr::recipe::Recipe;
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
    random::uniform(count * 2 * 3 * 8 * 8, seed).unwrap().view([count, 2, 3, 8, 8]).to_device(golden::device())
}

/// Four epochs; every loss.
fn train(trainer: &mut Trainer) -> Vec<f64> {
    let mut losses = Vec::new();
    for epoch in 1..=4 {
        trainer.method.begin_epoch(&trainer.network, epoch).unwrap();
        let steps = BATCHES.iter().enumerate();
        let steps = steps.map(|(i, count)| trainer.step(&views(*count, 10 * epoch as u64 + i as u64)).unwrap());
        losses.extend(read_losses(&steps.collect::<Vec<_>>()).unwrap());
    }
    losses
}

#[test]
fn graphs_give_the_bits_of_operations_launched_one_by_one() {
    native::set_deterministic(true).unwrap();
    for (method, precision) in [("sdclr", "fp32"), ("sdclr", "bf16"), ("simclr", "bf16")] {
        let recipe = recipe(method, precision);
        let [mut eager, mut recorded] = [true, false].map(|eager| trainer(&recipe, eager));
        assert_eq!(recorded.slow_steps() > 1, golden::device() != Device::Cpu, "steps are recorded on a GPU alone");
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
