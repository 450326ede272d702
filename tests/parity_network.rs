//! The network gives PyTorch's names, outputs, gradients, running statistics and masks (REFERENCE.md "Networks",
//! "Pruning"), in float64, for every depth, both stems and both BN modes, on the device that SDCLR_TEST_DEVICE names.
//! Goldens: reference/torch/goldens.py.

mod golden;

use std::collections::BTreeMap;

use golden::{FLOAT64, assert_digests, assert_near, assert_tensors_near, pixels, uniform};
use sdclr::network::{BnMode, Branch, Head, Mask, Network, NetworkSpec, Pass};
use sdclr::recipe::{Depth, Precision, Stem};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Cases {
    width: i64,
    output_dim: i64,
    images: i64,
    prune_ratio: f64,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    network: Depth,
    stem: Stem,
    dual_bn: bool,
    side: i64,
    loss: f64,
    state_sha256: String,
}

/// Names, forward in both modes, all gradients and running statistics of one golden network.
fn check(name: &str) {
    let Cases { width, output_dim, images: count, prune_ratio, mut cases } = golden::json("network/cases.json");
    let case = cases.remove(name).unwrap();
    let expected = golden::tensors("network/outputs.safetensors");
    let expected = |key: &str| &expected[&format!("{name}/{key}")];

    let head = Head::Projection { layers: if case.dual_bn { 3 } else { 2 }, output_dim };
    let spec = NetworkSpec { depth: case.network, stem: case.stem, width, dual_bn: case.dual_bn, head };
    let network = Network::new(spec, 1, Kind::Double, golden::device()).unwrap();
    assert_eq!(golden::names_sha256(&network.state()), case.state_sha256, "names and shapes");
    golden::fill(&network);
    let images = pixels("images", &[count, 3, case.side, case.side]);

    let mask = case.dual_bn.then(|| Mask::magnitude(&network.prunable(), prune_ratio, 0.0, 0).unwrap());
    let mut branches = vec![("dense", Branch::Dense, None)];
    branches.extend(mask.as_ref().map(|mask| ("pruned", Branch::Pruned, Some(mask))));

    let features = tch::no_grad(|| network.backbone(&images, &Pass::EVAL));
    assert_digests("features", vec![("features".into(), features)], expected("backbone_eval"), FLOAT64);
    for &(branch_name, branch, mask) in &branches {
        let weights = network.working_weights(Precision::Fp32, mask).unwrap();
        let pass = Pass { branch, weights: mask.map(|_| &weights.pruned[..]), ..Pass::EVAL };
        let key = format!("eval_{branch_name}");
        assert_tensors_near(&key, &tch::no_grad(|| network.forward(&images, &pass)), expected(&key), FLOAT64);
    }

    let mut loss = Tensor::zeros([], (Kind::Double, golden::device()));
    for &(branch_name, branch, mask) in &branches {
        let weights = network.working_weights(Precision::Fp32, mask).unwrap();
        let weights = mask.map(|_| &weights.pruned[..]);
        let pass = Pass { branch, weights, bn: BnMode::Train { momentum: 0.1, updates: 1 }, ..Pass::EVAL };
        let output = network.forward(&images, &pass);
        let key = format!("train_{branch_name}");
        assert_tensors_near(&key, &output, expected(&key), FLOAT64);
        loss += (&output * uniform(&format!("loss.{branch_name}"), &output.size())).sum(Kind::Double);
    }
    assert_near("loss", loss.double_value(&[]), case.loss, FLOAT64);
    let (names, parameters): (Vec<String>, Vec<Tensor>) = network.parameters().into_iter().unzip();
    let gradients = Tensor::run_backward(&[loss], &parameters, false, false);
    assert_digests("gradients", names.into_iter().zip(gradients).collect(), expected("gradients"), FLOAT64);
    let mut buffers = golden::float_state(&network);
    buffers.retain(|(name, _)| name.contains(".running_"));
    assert_digests("running statistics", buffers, expected("buffers"), FLOAT64);
}

macro_rules! network_cases {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            check($name);
        })*

        #[test]
        fn every_golden_network_has_a_test() {
            let cases: Cases = golden::json("network/cases.json");
            let mut tested = [$($name),*];
            tested.sort();
            assert!(cases.cases.keys().eq(tested.iter()), "{:?}", cases.cases.keys());
        }
    };
}
network_cases!(
    resnet10_single_bn: "resnet10-cifar-single",
    resnet10_dual_bn: "resnet10-cifar-dual",
    resnet18_single_bn: "resnet18-cifar-single",
    resnet18_dual_bn: "resnet18-cifar-dual",
    resnet34_single_bn: "resnet34-cifar-single",
    resnet34_dual_bn: "resnet34-cifar-dual",
    resnet50_single_bn: "resnet50-cifar-single",
    resnet50_dual_bn: "resnet50-cifar-dual",
    resnet101_single_bn: "resnet101-cifar-single",
    resnet101_dual_bn: "resnet101-cifar-dual",
    resnet152_single_bn: "resnet152-cifar-single",
    resnet152_dual_bn: "resnet152-cifar-dual",
    resnet18_imagenet_stem_single_bn: "resnet18-imagenet-single",
    resnet18_imagenet_stem_dual_bn: "resnet18-imagenet-dual",
    resnet50_imagenet_stem_single_bn: "resnet50-imagenet-single",
    resnet50_imagenet_stem_dual_bn: "resnet50-imagenet-dual",
);

/// The list in full for the smallest network: where a digest fails, this shows the name.
#[test]
fn names_and_shapes_of_resnet10() {
    let expected: BTreeMap<String, BTreeMap<String, Vec<i64>>> = golden::json("network/names.json");
    for (key, expected) in expected {
        let dual_bn = key == "resnet10-dual";
        let head = Head::Projection { layers: if dual_bn { 3 } else { 2 }, output_dim: 8 };
        let spec = NetworkSpec { depth: Depth::Resnet10, stem: Stem::Cifar, width: 4, dual_bn, head };
        let state = Network::new(spec, 1, Kind::Float, golden::device()).unwrap().state();
        let found: BTreeMap<String, Vec<i64>> = state.iter().map(|(name, t)| (name.to_owned(), t.size())).collect();
        assert_eq!(found, expected, "{key}");
    }
}

#[derive(Deserialize)]
struct MaskGoldens {
    levels: f64,
    shapes: BTreeMap<String, Vec<i64>>,
    cases: Vec<MaskCase>,
    counts: Vec<CountCase>,
    totals: BTreeMap<String, i64>,
}

#[derive(Deserialize)]
struct MaskCase {
    prune_ratio: f64,
    kept: i64,
}

#[derive(Deserialize)]
struct CountCase {
    prune_ratio: f64,
    random_ratio: f64,
    total: i64,
    k: i64,
    drop_probability: f64,
}

fn kept(mask: &Mask) -> i64 {
    mask.parts().iter().map(|part| part.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[])).sum()
}

#[test]
fn magnitude_masks_keep_ties() {
    let MaskGoldens { levels, shapes, cases, .. } = golden::json("mask/cases.json");
    let expected = golden::tensors("mask/masks.safetensors");
    let (names, weights): (Vec<String>, Vec<Tensor>) = shapes
        .into_iter()
        .map(|(name, shape)| {
            let values = uniform(&format!("mask.{name}"), &shape) * levels;
            (name, (values.round() / levels).to_kind(Kind::Float))
        })
        .unzip();
    let weights: Vec<&Tensor> = weights.iter().collect();
    for (index, case) in cases.iter().enumerate() {
        let mask = Mask::magnitude(&weights, case.prune_ratio, 0.0, 0).unwrap();
        assert_eq!(kept(&mask), case.kept, "prune_ratio {}", case.prune_ratio);
        let total: usize = weights.iter().map(|weight| weight.numel()).sum();
        assert_eq!(mask.density(), case.kept as f64 / total as f64);
        for (name, part) in names.iter().zip(mask.parts()) {
            let expected = &expected[&format!("{index}/{name}")];
            assert_eq!(
                part.to_kind(Kind::Uint8).to_device(Device::Cpu),
                *expected,
                "prune_ratio {}, {name}",
                case.prune_ratio
            );
        }
    }
}

/// Magnitude and random part of float32 weights, whatever the device.
#[test]
fn masks_are_those_of_the_cpu() {
    let shapes = [[16, 3, 3, 3], [32, 16, 3, 3], [32, 16, 1, 1]];
    let weights =
        shapes.iter().enumerate().map(|(i, shape)| uniform(&format!("masked.{i}"), shape).to_kind(Kind::Float));
    let weights: Vec<Tensor> = weights.collect();
    let copies: Vec<Tensor> = weights.iter().map(|weight| weight.to_device(Device::Cpu)).collect();
    let [found, expected] =
        [&weights, &copies].map(|weights| Mask::magnitude(&weights.iter().collect::<Vec<_>>(), 0.7, 0.2, 3).unwrap());
    assert_eq!(found.density(), expected.density());
    for (found, expected) in found.parts().iter().zip(expected.parts()) {
        assert_eq!(found.to_device(Device::Cpu), *expected);
    }
}

/// Over distinct weights the share kept tells the published count, to the weight; a random part is held to its
/// probability by five standard deviations.
#[test]
fn counts_follow_the_published_ceil() {
    let MaskGoldens { counts, .. } = golden::json("mask/cases.json");
    for CountCase { prune_ratio, random_ratio, total, k, drop_probability } in counts {
        // The larger networks add only time and memory.
        if total > 5_000_000 {
            continue;
        }
        let weights = (Tensor::arange(total, (Kind::Double, golden::device())) - 0.25).view([total, 1, 1, 1]);
        let mask = Mask::magnitude(&[&weights], prune_ratio, random_ratio, 7).unwrap();
        let by_magnitude = total - k.min(total - 1);
        let expected = by_magnitude as f64 * (1.0 - drop_probability.min(1.0));
        let deviation = (expected * drop_probability).max(0.0).sqrt();
        let found = kept(&mask) as f64;
        assert!(
            (found - expected).abs() <= 5.0 * deviation,
            "p = {prune_ratio}, r = {random_ratio}, M = {total}: kept {found}, expected {expected} +- {deviation:.1}"
        );
    }
}

#[test]
fn prunable_weights_number_as_published() {
    let MaskGoldens { totals, .. } = golden::json("mask/cases.json");
    for (depth, stem) in
        [(Depth::Resnet10, Stem::Cifar), (Depth::Resnet18, Stem::Cifar), (Depth::Resnet50, Stem::Imagenet)]
    {
        let head = Head::Projection { layers: 3, output_dim: 128 };
        let spec = NetworkSpec { depth, stem, width: 64, dual_bn: true, head };
        let network = Network::new(spec, 1, Kind::Float, golden::device()).unwrap();
        let found: usize = network.prunable().iter().map(|weight| weight.numel()).sum();
        assert_eq!(found as i64, totals[&sdclr::recipe::name_of(&depth)]);
    }
}

/// Kaiming normal (fan-out, ReLU) convolutions, linear layers uniform in ±1/sqrt(fan_in), batch norm at identity.
/// A complex weight would lose its imaginary part, a truth value or a whole number is no weight.
#[test]
fn weights_have_to_be_floating_point_numbers() {
    let spec = NetworkSpec {
        depth: Depth::Resnet10,
        stem: Stem::Cifar,
        width: 2,
        dual_bn: false,
        head: Head::Classifier { classes: 3 },
    };
    let network = Network::new(spec, 1, Kind::Float, Device::Cpu).unwrap();
    for name in ["fc.weight", "bn1.running_var"] {
        let load = |kind| {
            let mut state = network.state();
            let other = state.get(name).unwrap().to_kind(kind);
            state.insert(name.to_owned(), other);
            network.load(&state)
        };
        for kind in [Kind::ComplexFloat, Kind::Bool, Kind::Int8, Kind::Int64] {
            let error = load(kind).unwrap_err().to_string();
            assert!(error.contains(&format!("{name}: expected floating-point numbers, found {kind:?}")), "{error}");
        }
        for kind in [Kind::Double, Kind::Half, Kind::BFloat16] {
            load(kind).unwrap();
        }
    }
}

#[test]
fn initialisation_is_as_published() {
    let head = Head::Projection { layers: 3, output_dim: 128 };
    let spec = NetworkSpec { depth: Depth::Resnet18, stem: Stem::Cifar, width: 64, dual_bn: true, head };
    let state = Network::new(spec, 3, Kind::Float, golden::device()).unwrap().state();
    for (name, tensor) in state.iter() {
        let size = tensor.size();
        let (mean, std) = (tensor.to_kind(Kind::Double).mean(Kind::Double), tensor.to_kind(Kind::Double).std(false));
        let (mean, std) = (mean.double_value(&[]), std.double_value(&[]));
        // Five standard errors: of the mean, and of the deviation (whose own is at most 1/sqrt(2n) of it).
        let errors = 5.0 / (tensor.numel() as f64).sqrt();
        let assert_spread = |expected: f64| {
            assert!(mean.abs() <= errors * expected, "{name}: mean {mean}");
            assert!((std / expected - 1.0).abs() <= errors, "{name}: deviation {std}, expected {expected}");
        };
        let bound_of = |fan_in: i64| 1.0 / (fan_in as f64).sqrt();
        match size.as_slice() {
            [output, _, height, width] => assert_spread((2.0 / (output * height * width) as f64).sqrt()),
            [_, input] => assert_spread(bound_of(*input) / 3.0_f64.sqrt()),
            _ if name == "fc.fc1.bias" => assert_spread(bound_of(512) / 3.0_f64.sqrt()),
            _ if name.starts_with("normalize.") => {}
            _ => {
                let one = name.ends_with(".weight") || name.ends_with("running_var");
                assert_eq!((mean, std), (if one { 1.0 } else { 0.0 }, 0.0), "{name}");
            }
        }
        if size.len() == 2 {
            let largest = tensor.abs().max().double_value(&[]);
            let bound = bound_of(size[1]);
            assert!(largest <= bound && largest > 0.99 * bound, "{name}: largest {largest}, bound {bound}");
        }
    }
}
