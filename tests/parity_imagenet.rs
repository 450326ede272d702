//! Image files become what Pillow and torchvision make of them, to the bit, and the ImageNet probe (order, schedule,
//! transforms, top-5 selection, groups by counts) gives what PyTorch gives. The probe trains in float32, the oracle in
//! float64. Whole pre-training views of files are those of Pillow and torchvision, and the batches of the published sampler
//! those of PyTorch. Goldens: reference/torch/imagenet_goldens.py.

mod golden;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use golden::skip::skip;
use golden::{assert_near, assert_tensors_near};
use sdclr::augment::{self, Crop, Plan, ResizedCrop, ViewKey, ViewParams};
use sdclr::dataset::{Dataset, Packed, Picture, decode};
use sdclr::native;
use sdclr::network::{Head, Network, NetworkSpec};
use sdclr::pretrain::loader::draw_views;
use sdclr::pretrain::order::{epoch_images, epoch_order, global_order};
use sdclr::probe::{self, ProbeData, ProbeJob, TrainingLists};
use sdclr::progress::Progress;
use sdclr::recipe::{
    DatasetName, Depth, OrderName, ProbeRecipe, Recipe, Selection, Stem, TestTransform, TrainTransform, hash_bytes,
};
use sdclr::record::JobRecord;
use sdclr::record::evidence::Kind as Evidence;
use sdclr::scores;
use sdclr::split::{self, Images, ListName, Subset};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// Float32 beside float64.
const FLOAT32: f64 = 1e-4;

#[derive(Deserialize, Clone, Copy)]
struct Place {
    offset: usize,
    length: usize,
}

impl Place {
    fn of(self, pack: &[u8]) -> &[u8] {
        &pack[self.offset..][..self.length]
    }
}

fn pack() -> Vec<u8> {
    std::fs::read(golden::path("imagenet/images.bin")).unwrap()
}

#[derive(Deserialize)]
struct Decoding {
    name: String,
    #[serde(flatten)]
    place: Place,
    size: Option<(i64, i64)>,
    sha256: Option<String>,
}

/// Every subsampling, progressive, grey, CMYK and YCCK files, PNGs; and damaged ones, refused where Pillow refuses them.
#[test]
fn files_decode_as_pillow_decodes_them() {
    let pack = pack();
    let mut wrong = Vec::new();
    let cases: Vec<Decoding> = golden::json("imagenet/decoding.json");
    for case in &cases {
        let found = decode(case.place.of(&pack));
        let same = match (&found, &case.sha256) {
            (Ok(Picture { height, width, pixels }), Some(sha256)) => {
                Some((*height, *width)) == case.size && hash_bytes(pixels) == *sha256
            }
            (Err(_), None) => true,
            _ => false,
        };
        if !same {
            wrong.push(format!("{}: {:?}", case.name, found.map(|picture| (picture.height, picture.width))));
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ from Pillow\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// A header may promise any size: what no image of ImageNet has is refused before memory is taken for it.
#[test]
fn absurd_sizes_are_refused() {
    let pack = pack();
    let cases: Vec<Decoding> = golden::json("imagenet/decoding.json");
    let grey = cases.iter().find(|case| case.name == "grey").unwrap();
    let mut file = grey.place.of(&pack).to_vec();
    let frame = file.windows(2).position(|bytes| bytes == [0xff, 0xc0]).unwrap();
    file[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
    let reason = decode(&file).unwrap_err();
    assert_eq!(reason, "65500 x 65500 pixels are more than the 178956970 accepted");
}

#[derive(Deserialize)]
struct Run {
    settings: Settings,
    train: Part,
    validation: Part,
    test: Part,
    held_out_views: BTreeMap<String, String>,
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
    classes: i64,
    class_counts: Vec<u64>,
    batch: usize,
    lr: f64,
    momentum: f64,
    weight_decay: f64,
    epochs: usize,
    steps_after: Vec<usize>,
    validate_every: usize,
    resize: i64,
    size: i64,
    scale: [f64; 2],
    ratio: [f64; 2],
    flip_probability: f64,
    seed: u64,
}

#[derive(Deserialize)]
struct Part {
    files: Vec<Place>,
    labels: Vec<i64>,
}

#[derive(Deserialize)]
struct Epoch {
    loss: f64,
    lr: f64,
    order: Vec<i64>,
    views: String,
    validation_accuracy: Option<f64>,
}

/// Top, left, height, width, flip of each training file in one epoch.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Drawn(i64, i64, i64, i64, bool);

impl Run {
    fn recipe(&self) -> ProbeRecipe {
        let s = &self.settings;
        ProbeRecipe {
            epochs: s.epochs,
            batch_size: s.batch,
            lr: s.lr,
            momentum: s.momentum,
            weight_decay: s.weight_decay,
            milestones: s.steps_after.iter().map(|epoch| epoch + 1).collect(),
            validate_every: s.validate_every,
            selection: Selection::Top5,
            order: OrderName::DistributedSampler,
            train_transform: TrainTransform::ResizedCrop,
            test_transform: TestTransform::ResizeCentreCrop,
            padding: 0,
            scale: s.scale,
            ratio: s.ratio,
            resize: s.resize,
            size: s.size,
            flip_probability: s.flip_probability,
            seed: s.seed,
        }
    }

    /// Writes files and lists in the published layout, and reads them back.
    fn lists(&self, folder: &Path) -> (Dataset, [Subset; 3]) {
        let pack = pack();
        let parts = [
            (&self.train, ListName::Train, "ImageNet_100_train.txt"),
            (&self.validation, ListName::Validation, "ImageNet_100_val.txt"),
            (&self.test, ListName::Test, "ImageNet_100_test.txt"),
        ];
        for (part, _, name) in &parts {
            let mut lines = String::new();
            for (i, (place, label)) in part.files.iter().zip(&part.labels).enumerate() {
                let path = format!("train/{}/{i}.JPEG", name.trim_end_matches(".txt"));
                sdclr::fs::write(&folder.join(&path), place.of(&pack)).unwrap();
                lines += &format!("{path} {label}\n");
            }
            sdclr::fs::write(&folder.join("split/imagenet-100").join(name), lines.as_bytes()).unwrap();
        }
        let mut dataset = Dataset::load(DatasetName::Imagenet100, Some(folder), Device::Cpu).unwrap();
        dataset.classes.truncate(self.settings.classes as usize);
        let lists = parts.map(|(_, list, _)| split::read(&dataset, Some(folder), list).unwrap());
        (dataset, lists)
    }
}

/// What `list`'s images are on disk.
fn pictures(list: &Subset) -> Vec<(u64, Picture)> {
    let Images::Files(files) = &list.images else { panic!("no files") };
    let entries = list.addresses.iter().zip(&list.rows);
    entries.map(|(&address, &row)| (address, files.read(row).unwrap())).collect()
}

fn draw(run: &Run, list: &Subset, epoch: usize) -> Vec<ResizedCrop> {
    let Settings { seed, scale, ratio, flip_probability, .. } = run.settings;
    let drawn = |(image, picture): (u64, Picture)| {
        let key = ViewKey { seed, epoch: epoch as u64, image, view: 0 };
        augment::draw_resized_crop(key, scale, ratio, flip_probability, picture.height, picture.width)
    };
    pictures(list).into_iter().map(drawn).collect()
}

/// All images of `list` in one piece.
fn packed(list: &Subset) -> Packed {
    let Images::Files(files) = &list.images else { panic!("no files") };
    files.packed(&list.rows, Device::Cpu).unwrap()
}

fn digest(plan: &Plan, images: &Packed) -> String {
    let bytes: Vec<u8> = plan.apply(&images.pixels).unwrap().flatten(0, -1).try_into().unwrap();
    hash_bytes(&bytes)
}

/// The oracle was given these draws. Where they are meant to change, write the printed ones and run ci/oracle --write.
#[test]
fn draws_are_those_that_the_oracle_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let run: Run = golden::json("imagenet/run.json");
    let (_, [train, ..]) = run.lists(folder.path());
    let of_epoch = |epoch: usize| -> Vec<Drawn> {
        let drawn = |ResizedCrop { crop: Crop { top, left, height, width }, flip }: ResizedCrop| {
            Drawn(top, left, height, width, flip)
        };
        draw(&run, &train, epoch).into_iter().map(drawn).collect()
    };
    let drawn: Vec<Vec<Drawn>> = (1..=run.settings.epochs).map(of_epoch).collect();
    let given: Vec<Vec<Drawn>> = golden::json("imagenet/draws.json");
    assert!(drawn == given, "draws.json should read\n{}", serde_json::to_string(&drawn).unwrap());
}

#[test]
fn order_and_views_are_those_of_pytorch_and_torchvision() {
    let folder = tempfile::tempdir().unwrap();
    let run: Run = golden::json("imagenet/run.json");
    let (_, [train, validation, test]) = run.lists(folder.path());
    let Settings { resize, size, .. } = run.settings;
    for (part, list) in [("validation", &validation), ("test", &test)] {
        let images = packed(list);
        let plan = Plan::of_centres(&images.places, resize, size, Device::Cpu).unwrap();
        assert_eq!(digest(&plan, &images), run.held_out_views[part], "{part}");
    }
    for (epoch, expected) in (1..).zip(&run.epochs) {
        assert_eq!(epoch_order(train.len(), epoch, 0, 1).unwrap(), expected.order, "epoch {epoch}");
        let drawn = draw(&run, &train, epoch);
        let images = packed(&train);
        let plan = Plan::of_crops(&images.places, &drawn, size, Device::Cpu).unwrap();
        assert_eq!(digest(&plan, &images), expected.views, "epoch {epoch}");
    }
}

/// Six epochs whose rate falls after the second and the fourth; top-5 chooses another epoch than top-1 would.
#[test]
fn training_selection_and_test() {
    let folder = tempfile::tempdir().unwrap();
    let run: Run = golden::json("imagenet/run.json");
    let (dataset, [train, validation, test]) = run.lists(folder.path());
    let Settings { network: depth, width, classes, .. } = run.settings;
    let spec = NetworkSpec { depth, stem: Stem::Imagenet, width, dual_bn: false, head: Head::Classifier { classes } };
    let network = Network::new(spec, 1, Kind::Float, Device::Cpu).unwrap();
    golden::fill(&network);
    let data = ProbeData {
        dataset: &dataset,
        training: Some(TrainingLists { train: &train, validation: &validation }),
        test: &test,
        class_counts: &run.settings.class_counts,
    };
    let (recipe, header) = (run.recipe(), golden::probe_header());
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
    for (what, found, expected) in [
        ("all", outcome.scores.all, run.scores.all),
        ("many", outcome.scores.many, run.scores.many),
        ("medium", outcome.scores.medium, run.scores.medium),
        ("few", outcome.scores.few, run.scores.few),
        ("std", outcome.scores.std, run.scores.std),
    ] {
        assert_near(what, found, expected, 1e-12);
    }
    let expected = golden::tensors("imagenet/run.safetensors");
    let state = network.state();
    for name in ["weight", "bias"] {
        assert_tensors_near(name, state.get(&format!("fc.{name}")).unwrap(), &expected[name], FLOAT32);
    }
}

#[derive(Deserialize)]
struct Sampling {
    images: usize,
    world: usize,
    batch: usize,
    epoch: usize,
    entries: usize,
    last: usize,
    sha256: String,
}

/// Of ImageNet-100-LT's 12,205 images two processes take 12,206, the last batch of which has 174.
#[test]
fn batches_are_those_of_the_published_processes_together() {
    let cases: Vec<Sampling> = golden::json("imagenet/sampler.json");
    assert!(cases.iter().any(|case| (case.images, case.entries, case.last) == (12205, 12206, 174)));
    for Sampling { images, world, batch, epoch, entries, last, sha256 } in cases {
        let order = global_order(images, epoch, world).unwrap();
        assert_eq!((order.len(), epoch_images(images, world)), (entries, entries));
        let mut batches: Vec<Vec<i64>> = order.chunks(batch).map(<[i64]>::to_vec).collect();
        assert_eq!(batches.last().unwrap().len(), last);
        batches.iter_mut().for_each(|batch| batch.sort_unstable());
        let text = serde_json::to_string(&batches).unwrap();
        assert_eq!(hash_bytes(text.as_bytes()), sha256, "{images} images, {world} processes, epoch {epoch}");
    }
}

/// The sha256 of each view of images of any sizes, planned and computed as one batch of pre-training: channel by channel.
fn hashes_of_views(images: &Packed, params: &[ViewParams], size: i64) -> Vec<String> {
    let device = golden::device();
    let plan = Plan::of_packed(&images.places, params, size, device).unwrap();
    let views = plan.apply(&native::send(&images.pixels, device).unwrap()).unwrap().to_device(Device::Cpu);
    let bytes = |view| Vec::<u8>::try_from(views.get(view).flatten(0, -1)).unwrap();
    (0..params.len() as i64).map(|view| hash_bytes(&bytes(view))).collect()
}

#[derive(Deserialize)]
struct View {
    name: String,
    #[serde(flatten)]
    place: Place,
    params: ViewParams,
    sha256: String,
}

/// Odd sizes, tall and wide images, greyscale, CMYK, PNG, smaller than the view and just as large: all in one batch.
#[test]
fn whole_views_of_files_match_torchvision_to_the_bit() {
    let (pack, cases) = (pack(), golden::json::<Vec<View>>("imagenet/views.json"));
    let pictures: Vec<Picture> = cases.iter().map(|case| decode(case.place.of(&pack)).unwrap()).collect();
    let packed = Packed::of(&pictures, golden::device()).unwrap();
    let params: Vec<ViewParams> = cases.iter().map(|case| case.params.clone()).collect();
    let found = hashes_of_views(&packed, &params, 224);
    let wrong: Vec<&str> =
        cases.iter().zip(&found).filter(|(case, found)| case.sha256 != **found).map(|(case, _)| &*case.name).collect();
    assert!(wrong.is_empty(), "{} of {} differ: {wrong:?}", wrong.len(), cases.len());
}

/// Both views of the first epoch of every image file there is, as training draws them, beside those that the oracle makes now.
#[test]
fn views_of_every_real_file_are_those_of_pillow() {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let python = std::env::var_os("SDCLR_ORACLE_PYTHON").map_or(root.join(".oracle/bin/python"), PathBuf::from);
    let sample = std::env::var_os("SDCLR_DATA").map(|data| PathBuf::from(data).join("imagenet-sample"));
    let lists = ["fullsize/train.txt", "tiny/train.txt", "tiny/val.txt"];
    let Some(sample) = sample.filter(|sample| lists.iter().all(|list| sample.join(list).exists())) else {
        return skip("data", "SDCLR_DATA has no imagenet-sample");
    };
    if !python.exists() {
        return skip("oracle", "there is no PyTorch (ci/oracle --env makes one)");
    }
    let recipe = Recipe::resolve("imagenet100-lt/sdclr", &[]).unwrap();
    let (mut cases, mut found) = (String::new(), Vec::new());
    for list in lists.map(|list| sample.join(list)) {
        let text = std::fs::read_to_string(&list).unwrap();
        let paths: Vec<&str> = text.lines().map(|line| line.rsplit_once(' ').unwrap().0).collect();
        let subset = split::read_files(&list).unwrap();
        let Images::Files(files) = &subset.images else { panic!("no files") };
        for rows in subset.rows.chunks(16) {
            let mut packed = files.packed(rows, golden::device()).unwrap();
            let mut params = Vec::new();
            for (place, &row) in packed.places.iter().zip(rows) {
                let address = (subset.addresses[row as usize], 0);
                let views = draw_views(&recipe.augment, recipe.seed, 1, address, (place.height, place.width));
                for view in views {
                    let file = list.parent().unwrap().join(paths[row as usize]);
                    cases += &format!("{}\n", serde_json::json!({ "file": file, "params": view, "size": 224 }));
                    params.push(view);
                }
            }
            packed.places = packed.places.iter().flat_map(|&place| [place; 2]).collect();
            found.extend(hashes_of_views(&packed, &params, 224));
        }
    }
    let mut command = Command::new(python);
    command.arg(root.join("reference/torch/views_of_files.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(cases.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let expected = String::from_utf8(output.stdout).unwrap();
    let expected: Vec<&str> = expected.lines().collect();
    assert_eq!(expected.len(), found.len());
    let differ = expected.iter().zip(&found).filter(|(expected, found)| *expected != found).count();
    golden::evidence(
        Evidence::Bitwise,
        "whole 224-pixel views of ImageNet files with those of torchvision and Pillow",
        &[(&format!("views that differ, of {}", found.len()), differ as f64, 0.0)],
    );
    assert_eq!(differ, 0, "of {} views", found.len());
}
