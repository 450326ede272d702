//! The probe gives what PyTorch gives: shifted views, training, selection by validation, test accuracies, scores, and the
//! names under which it takes a pre-training checkpoint (REFERENCE.md "Evaluation", "Metrics"). Probes train in float32,
//! the oracle in float64. Goldens: reference/torch/goldens.py.

mod golden;

use std::collections::{BTreeMap, BTreeSet};

use golden::{FLOAT64, assert_digests, assert_near, assert_tensors_near, pixels};
use sdclr::augment::{self, Shift, ViewKey};
use sdclr::checkpoint::state_sha256;
use sdclr::dataset::{Content, Dataset, ImageSet};
use sdclr::network::{DDP_PREFIX, Head, Network, NetworkSpec, Pass, StateDict};
use sdclr::probe::{self, ProbeData, ProbeJob, TrainingLists};
use sdclr::progress::Progress;
use sdclr::random;
use sdclr::recipe::{
    DatasetName, Depth, OrderName, ProbeRecipe, Protocol, Recipe, Selection, Stem, Suite, TestTransform, TrainTransform,
};
use sdclr::record::JobRecord;
use sdclr::scores;
use sdclr::split::Subset;
use sdclr::suite::context::{Context, Scale};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Float32 beside float64: PyTorch's own float32 run of this probe is 3e-6 off.
const FLOAT32: f64 = 1e-4;

#[derive(Deserialize)]
struct Run {
    settings: Settings,
    train: Vec<i64>,
    validation: Vec<i64>,
    labels: Vec<i64>,
    test_labels: Vec<i64>,
    epochs: Vec<Epoch>,
    best_epoch: usize,
    best_validation_accuracy: f64,
    per_class: Vec<f64>,
    #[serde(flatten)]
    scores: scores::Scores,
}

#[derive(Deserialize)]
struct Settings {
    network: Depth,
    width: i64,
    side: i64,
    classes: i64,
    class_counts: Vec<u64>,
    images: i64,
    test: i64,
    padding: i64,
    batch: usize,
    lr: f64,
    momentum: f64,
    weight_decay: f64,
    epochs: usize,
    milestones: Vec<usize>,
    validate_every: usize,
    flip_probability: f64,
    seed: u64,
}

#[derive(Deserialize)]
struct Epoch {
    loss: f64,
    lr: f64,
    validation_accuracy: Option<f64>,
}

/// What one epoch draws: positions in the training list, and (top, left, flip) of each position's image.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Draws {
    order: Vec<i64>,
    shifts: Vec<(i64, i64, bool)>,
}

impl Run {
    fn recipe(&self) -> ProbeRecipe {
        let s = &self.settings;
        ProbeRecipe {
            epochs: s.epochs,
            batch_size: s.batch,
            lr: s.lr,
            momentum: s.momentum,
            weight_decay: s.weight_decay,
            milestones: s.milestones.clone(),
            validate_every: s.validate_every,
            selection: Selection::Top1,
            order: OrderName::Addressed,
            train_transform: TrainTransform::PadCrop,
            test_transform: TestTransform::None,
            padding: s.padding,
            scale: [1.0, 1.0],
            ratio: [1.0, 1.0],
            resize: s.side,
            size: s.side,
            flip_probability: s.flip_probability,
            seed: s.seed,
        }
    }

    fn image_set(&self, name: &str, labels: &[i64]) -> ImageSet {
        let Settings { side, classes, .. } = self.settings;
        let noise = pixels(name, &[labels.len() as i64, 3, side, side]).to_kind(Kind::Int);
        let patterns = pixels("probe.patterns", &[classes, 3, side, side]).to_kind(Kind::Int);
        let patterns = patterns.index_select(0, &Tensor::from_slice(labels).to_device(golden::device()));
        let images = (noise * 3 + patterns * 5).divide_scalar_mode(8, "floor").to_kind(Kind::Uint8);
        ImageSet { images, labels: labels.to_vec() }
    }

    fn dataset(&self) -> Dataset {
        assert_eq!(
            (self.labels.len(), self.test_labels.len()),
            (self.settings.images as usize, self.settings.test as usize)
        );
        Dataset {
            name: DatasetName::Cifar10,
            classes: (0..self.settings.classes).map(|class| class.to_string()).collect(),
            content: Content::Resident {
                train: self.image_set("probe.images", &self.labels),
                test: self.image_set("probe.test", &self.test_labels),
            },
            sha256: None,
            official: false,
            own: None,
        }
    }

    fn network(&self) -> Network {
        let Settings { network: depth, width, classes, .. } = self.settings;
        let spec = NetworkSpec { depth, stem: Stem::Cifar, width, dual_bn: false, head: Head::Classifier { classes } };
        let network = Network::new(spec, 1, Kind::Float, golden::device()).unwrap();
        golden::fill(&network);
        network
    }

    /// What our addressed generators draw, epoch by epoch.
    fn draws(&self) -> Vec<Draws> {
        let Settings { seed, padding, flip_probability, .. } = self.settings;
        let shift = |epoch: usize, image: i64| {
            let key = ViewKey { seed, epoch: epoch as u64, image: image as u64, view: 0 };
            let Shift { top, left, flip } = augment::draw_shift(key, padding, flip_probability);
            (top, left, flip)
        };
        let of_epoch = |epoch: usize| {
            let seed = random::addressed_seed(seed, &format!("probe order/{epoch}"));
            let order = random::randperm(self.train.len(), seed).unwrap();
            Draws { order, shifts: self.train.iter().map(|&image| shift(epoch, image)).collect() }
        };
        (1..=self.settings.epochs).map(of_epoch).collect()
    }
}

fn list(name: &str, set: &ImageSet, entries: &[i64]) -> Subset {
    Subset::of(name.to_owned(), String::new(), set, entries.to_vec())
}

/// The oracle was given these draws. Where they are meant to change, write the printed ones and run ci/oracle --write.
#[test]
fn draws_are_those_that_the_oracle_was_given() {
    let run: Run = golden::json("probe/run.json");
    let given: Vec<Draws> = golden::json("probe/draws.json");
    let drawn = run.draws();
    assert!(drawn == given, "draws.json should read\n{}", serde_json::to_string(&drawn).unwrap());
}

#[test]
fn shifted_views_have_a_black_border() {
    let run: Run = golden::json("probe/run.json");
    let expected = golden::tensors("probe/run.safetensors");
    let dataset = run.dataset();
    let set = dataset.train("").unwrap();
    for (epoch, draws) in (1..).zip(golden::json::<Vec<Draws>>("probe/draws.json")) {
        let expected = &expected[&format!("views/{epoch}")];
        let count = expected.size()[0] as usize;
        let shifts: Vec<Shift> =
            draws.shifts[..count].iter().map(|&(top, left, flip)| Shift { top, left, flip }).collect();
        let rows = Tensor::from_slice(&run.train[..count]).to_device(golden::device());
        let images = set.images.index_select(0, &rows);
        let found = augment::pad_crop_flip(&images, &shifts, run.settings.padding).unwrap();
        assert_eq!(found.to_device(Device::Cpu), *expected, "epoch {epoch}");
    }
}

/// Six epochs with a falling rate, validated every second; the best two checks tie, and the earlier one is tested.
#[test]
fn training_selection_and_test() {
    let run: Run = golden::json("probe/run.json");
    let expected = golden::tensors("probe/run.safetensors");
    let (dataset, network, recipe, header) = (run.dataset(), run.network(), run.recipe(), golden::probe_header());
    let Content::Resident { train: official, test } = &dataset.content else { panic!("files") };
    let train = list("train", official, &run.train);
    let validation = list("validation", official, &run.validation);
    let test = list("test", test, &(0..run.settings.test).collect::<Vec<_>>());
    let data = ProbeData {
        dataset: &dataset,
        training: Some(TrainingLists { train: &train, validation: &validation }),
        test: &test,
        class_counts: &run.settings.class_counts,
    };
    let (environment, stop) = (golden::environment(), sdclr::stop::Stop::default());
    let job = ProbeJob {
        header: &header,
        environment: &environment,
        recipe: &recipe,
        network: &network,
        data: &data,
        stop: &stop,
        tensorboard: None,
    };
    let record = probe::run(&job, None, &Progress::default()).unwrap();
    let JobRecord::Probe(result) = record else { panic!("no probe: {record:?}") };

    assert_eq!(result.epochs.len(), run.epochs.len());
    for (found, expected) in result.epochs.iter().zip(&run.epochs) {
        let what = format!("epoch {}", found.epoch);
        assert_near(&format!("{what}: loss"), found.loss, expected.loss, FLOAT32);
        assert_near(&format!("{what}: rate"), found.lr, expected.lr, 1e-12);
        assert_eq!(found.validation_accuracy, expected.validation_accuracy, "{what}");
    }
    assert_eq!(result.best_epoch, run.best_epoch);
    assert_eq!(result.best_validation_accuracy, run.best_validation_accuracy);
    let outcome = result.outcome;
    for (class, (found, expected)) in outcome.per_class.iter().zip(&run.per_class).enumerate() {
        assert_near(&format!("class {class}"), *found, *expected, 1e-12);
    }
    assert_near("all", outcome.scores.all, run.scores.all, 1e-12);
    assert_near("std", outcome.scores.std, run.scores.std, 1e-12);
    let state = network.state();
    for name in ["weight", "bias"] {
        assert_tensors_near(name, state.get(&format!("fc.{name}")).unwrap(), &expected[name], FLOAT32);
    }
}

/// Hashes of backbone and classifier before the probe of `protocol`: of the random encoder, or of `checkpoint`.
fn drawn(overrides: &[&str], protocol: Protocol, checkpoint: Option<&StateDict>) -> [String; 2] {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    let recipe = Recipe::resolve("digits-lt/sdclr", &overrides).unwrap();
    let context = Context::open(&recipe, Scale { device: Some("cpu".into()), ..Scale::default() }).unwrap();
    let network = match checkpoint {
        None => context.random_encoder(&recipe, protocol),
        Some(state) => context.encoder(&recipe, protocol, state, false),
    };
    let (classifier, backbone): (Vec<_>, Vec<_>) =
        network.unwrap().state().into_iter().partition(|(name, _)| name.starts_with("fc."));
    [backbone, classifier].map(|part| state_sha256(&part.into_iter().collect()).unwrap())
}

/// As the published script does, whose seed is 1 whatever the encoder was trained with (CIFAR: 10).
#[test]
fn the_classifier_is_drawn_by_the_probes_own_seed() {
    for name in Suite::names() {
        let suite = Suite::open(name).unwrap();
        for encoder in &suite.encoders {
            let recipe = suite.recipe(encoder, &[]).unwrap();
            assert_eq!((recipe.probe.full.seed, recipe.probe.few.seed), (1, 1), "{name}/{}", encoder.name);
        }
    }
    let published = drawn(&[], Protocol::Full, None);
    let [backbone, classifier] = drawn(&["seed=11"], Protocol::Full, None);
    assert!(backbone != published[0] && classifier == published[1]);
    let [backbone, classifier] = drawn(&["probe.full.seed=2"], Protocol::Full, None);
    assert!(backbone == published[0] && classifier != published[1]);
    assert_eq!(drawn(&["probe.full.seed=2"], Protocol::Few, None), published);

    let recipe = Recipe::resolve("digits-lt/sdclr", &[]).unwrap();
    let spec = NetworkSpec::of_recipe(&recipe);
    let checkpoint = Network::new(spec, 5, Kind::Float, Device::Cpu).unwrap().state();
    let [backbone, classifier] = drawn(&["seed=11"], Protocol::Few, Some(&checkpoint));
    assert!(backbone != published[0] && classifier == published[1]);
}

#[derive(Deserialize)]
struct MetricCase {
    name: String,
    counts: Vec<u64>,
    per_class: Vec<f64>,
    groups: BTreeMap<String, BTreeSet<usize>>,
    #[serde(flatten)]
    scores: scores::Scores,
}

#[test]
fn groups_and_scores_of_the_published_class_counts() {
    for case in golden::json::<Vec<MetricCase>>("probe/metrics.json") {
        let groups = scores::groups_by_thirds(&case.counts);
        for (name, members) in [("many", &groups.many), ("medium", &groups.medium), ("few", &groups.few)] {
            assert_eq!(members.iter().copied().collect::<BTreeSet<_>>(), case.groups[name], "{} {name}", case.name);
        }
        let found = scores::scores(&case.per_class, &groups).unwrap();
        for (what, found, expected) in [
            ("all", found.all, case.scores.all),
            ("many", found.many, case.scores.many),
            ("medium", found.medium, case.scores.medium),
            ("few", found.few, case.scores.few),
            ("std", found.std, case.scores.std),
            ("class_std", found.class_std, case.scores.class_std),
        ] {
            assert_near(&format!("{} {what}", case.name), found, expected, 1e-12);
        }
    }
}

#[derive(Deserialize)]
struct NameCase {
    /// Digest of the dense branch's pooled features.
    features: Vec<f64>,
    /// Over the sorted lines `new old\n`.
    sha256: String,
    /// New name to old, in full for the small network.
    names: Option<BTreeMap<String, String>>,
}

/// From a checkpoint with prefix, head and perhaps two batch norms to the probe's network, which sees the same features.
#[test]
fn pretraining_checkpoints_become_probe_networks() {
    for (key, expected) in golden::json::<BTreeMap<String, NameCase>>("probe/names.json") {
        let depth = if key.starts_with("resnet10") { Depth::Resnet10 } else { Depth::Resnet50 };
        let dual_bn = key.ends_with("dual");
        let head = Head::Projection { layers: if dual_bn { 3 } else { 2 }, output_dim: 8 };
        let spec = NetworkSpec { depth, stem: Stem::Cifar, width: 4, dual_bn, head };
        let network = Network::new(spec, 1, Kind::Double, golden::device()).unwrap();
        golden::fill(&network);
        let checkpoint = network.state().with_prefix(DDP_PREFIX);

        // Every tensor carries its old name's position, so that the mapping shows which tensor went where.
        let old: Vec<String> = checkpoint.names().map(str::to_owned).collect();
        let positions: StateDict = old.iter().cloned().zip((0..).map(|i: i64| Tensor::from(i))).collect();
        let mapped = positions.without_prefix(positions.ddp_prefix()).dense_backbone();
        let found: BTreeMap<String, String> = mapped
            .iter()
            .map(|(new, position)| (new.to_owned(), old[position.int64_value(&[]) as usize].clone()))
            .collect();
        if let Some(names) = expected.names {
            assert_eq!(found, names, "{key}");
        }
        let lines: String = found.iter().map(|(new, old)| format!("{new} {old}\n")).collect();
        assert_eq!(sdclr::recipe::hash_bytes(lines.as_bytes()), expected.sha256, "{key}");

        let probe = Network::new(spec.probe(3), 2, Kind::Double, golden::device()).unwrap();
        let mut state = checkpoint.without_prefix(checkpoint.ddp_prefix()).dense_backbone();
        for (name, tensor) in probe.state().into_iter().filter(|(name, _)| name.starts_with("fc.")) {
            state.insert(name, tensor);
        }
        probe.load(&state).unwrap();
        let features = tch::no_grad(|| probe.backbone(&pixels("images", &[8, 3, 16, 16]), &Pass::EVAL));
        let row = Tensor::from_slice(&expected.features).view([1, 3]);
        assert_digests(&key, vec![("features".into(), features)], &row, FLOAT64);
    }
}
