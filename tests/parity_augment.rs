//! Every augmentation operation, alone and composed, against torchvision on 8-bit PIL images, on the device that
//! SDCLR_TEST_DEVICE names: not one pixel differs.
//! The goldens are written by `reference/torch/augment_goldens.py`, whose generated images are made again here.

mod golden;

use std::collections::BTreeMap;
use std::path::PathBuf;

use golden::skip::skip;
use sdclr::augment::{JitterOp, Plan, ResizedCrop, Shift, ViewParams, adjust, pad_crop_flip, views};
use sdclr::dataset::{Packed, Picture, decode};
use sdclr::record::evidence::Kind as Evidence;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Image {
    kind: String,
    height: i64,
    width: i64,
    seed: u64,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
enum Operation {
    Adjust { operation: JitterOp, factor: f64 },
    View { params: ViewParams, size: i64 },
    PadCropFlip { padding: i64, top: i64, left: i64, flip: bool },
    ResizeCentreCrop { short: i64, size: i64 },
    ResizedCrop { params: ResizedCrop, size: i64 },
}

impl Operation {
    fn apply(&self, image: &Tensor) -> Tensor {
        match self {
            Self::Adjust { operation, factor } => adjust(image, *operation, &[*factor]),
            Self::View { params, size } => views(image, std::slice::from_ref(params), *size),
            Self::PadCropFlip { padding, top, left, flip } => {
                pad_crop_flip(image, &[Shift { top: *top, left: *left, flip: *flip }], *padding)
            }
            Self::ResizeCentreCrop { .. } | Self::ResizedCrop { .. } => return self.apply_packed(&[image]),
        }
        .unwrap()
    }

    /// The same for each of several images, of any sizes, as decoders pack them.
    fn apply_packed(&self, images: &[&Tensor]) -> Tensor {
        let pictures: Vec<Picture> = images.iter().map(|image| picture(image)).collect();
        let packed = Packed::of(&pictures, golden::device()).unwrap();
        let (places, device) = (&packed.places, golden::device());
        let plan = match self {
            Self::View { params, size } => Plan::of_packed(places, &vec![params.clone(); places.len()], *size, device),
            Self::ResizeCentreCrop { short, size } => Plan::of_centres(places, *short, *size, device),
            Self::ResizedCrop { params, size } => Plan::of_crops(places, &vec![*params; places.len()], *size, device),
            other => panic!("not of files: {other:?}"),
        };
        plan.unwrap().apply(&sdclr::native::send(&packed.pixels, device).unwrap()).unwrap()
    }
}

#[derive(Debug, Deserialize)]
struct Case {
    image: Image,
    #[serde(flatten)]
    operation: Operation,
    sha256: String,
    offset: Option<usize>,
}

/// The image as a decoder gives it.
fn picture(image: &Tensor) -> Picture {
    let (_, _, height, width) = image.size4().unwrap();
    Picture {
        height,
        width,
        pixels: image.get(0).to_device(Device::Cpu).permute([1, 2, 0]).contiguous().flatten(0, -1).try_into().unwrap(),
    }
}

/// Knuth's MMIX generator, as in the oracle.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let step = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..count).map(step).collect()
}

/// The oracle's generated image, uint8 `[1, 3, H, W]`.
fn pixels(image: &Image) -> Tensor {
    let (height, width, seed) = (image.height as u64, image.width as u64, image.seed);
    let formula = |value: fn(u64, u64, u64, u64) -> u64| -> Vec<u8> {
        (0..3 * height * width)
            .map(|i| value(i / (height * width), i / width % height, i % width, seed) as u8)
            .collect()
    };
    let values = match image.kind.as_str() {
        "noise" => noise(seed, (3 * height * width) as usize),
        "ramp" => formula(|c, y, x, seed| x * (2 + seed) + y * (3 + c) + 40 * c),
        "edges" => formula(|c, y, x, seed| (x / (3 + c) + y / 5 + seed) % 2 * 255),
        "constant" => formula(|c, _, _, seed| seed * (1 + c)),
        "halves" => formula(|_, y, x, seed| seed + (x + y) % 2),
        other => panic!("unknown kind of image: {other}"),
    };
    Tensor::from_slice(&values).view([1, 3, image.height, image.width]).to_device(golden::device())
}

/// All 2^24 colours, one after the other, as 64 images `[1, 3, 64, 4096]` that make one of 4096 x 4096 when stacked.
fn all_colours() -> impl Iterator<Item = Tensor> {
    (0..64).map(|part| {
        let values =
            Tensor::arange_start(part << 18, (part + 1) << 18, (Kind::Int64, golden::device())).view([1, 1, 64, 4096]);
        let channel = |divisor: i64| values.divide_scalar_mode(divisor, "floor").remainder(256).to_kind(Kind::Uint8);
        Tensor::cat(&[channel(1 << 16), channel(1 << 8), channel(1)], 1)
    })
}

fn bytes(image: &Tensor) -> Vec<u8> {
    Vec::try_from(image.to_device(Device::Cpu).contiguous().view([-1])).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> Vec<T> {
    serde_json::from_slice(&std::fs::read(golden::path("augment").join(name)).unwrap()).unwrap()
}

fn assert_all(failures: &[String], of: usize) {
    let what = format!("cases that differ, of {of}");
    golden::evidence(
        Evidence::Bitwise,
        "views with those of torchvision and Pillow",
        &[(&what, failures.len() as f64, 0.0)],
    );
    let shown = failures.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {of} cases differ:\n{shown}", failures.len());
}

#[test]
fn generated_images_match_torchvision_to_the_bit() {
    let kept: ndarray::Array1<u8> = ndarray_npy::read_npy(golden::path("augment/outputs.npy")).unwrap();
    let kept = kept.to_vec();
    let mut images = BTreeMap::new();
    let mut failures = Vec::new();
    let cases: Vec<Case> = read("cases.json");
    for case in cases.iter().filter(|case| case.image.kind != "colours") {
        let image = images.entry(&case.image).or_insert_with(|| pixels(&case.image));
        let found = bytes(&case.operation.apply(image));
        if let Some(offset) = case.offset {
            let expected = &kept[offset..offset + found.len()];
            let differing = found.iter().zip(expected).filter(|(found, expected)| found != expected).count();
            if differing > 0 {
                failures.push(format!("{differing} of {} bytes differ: {case:?}", found.len()));
            }
        }
        if sha256(&found) != case.sha256 {
            failures.push(format!("{case:?}"));
        }
        if matches!(case.operation, Operation::View { .. }) {
            // Behind an image of other sides.
            let other = Tensor::zeros([1, 3, image.size()[2] + 1, image.size()[3] + 2], (Kind::Uint8, image.device()));
            let whole = case.operation.apply_packed(&[&other, image]);
            if sha256(&bytes(&whole.get(1))) != case.sha256 {
                failures.push(format!("packed: {case:?}"));
            }
        }
    }
    assert_all(&failures, cases.len());
}

#[test]
fn every_colour_matches_torchvision() {
    let cases: Vec<Case> = read("cases.json");
    let cases: Vec<&Case> = cases.iter().filter(|case| case.image.kind == "colours").collect();
    assert!(!cases.is_empty());
    let parts: Vec<Tensor> = all_colours().collect();
    let mut failures = Vec::new();
    for case in &cases {
        let results: Vec<Tensor> = parts.iter().map(|part| case.operation.apply(part)).collect();
        if sha256(&bytes(&Tensor::cat(&results, 2))) != case.sha256 {
            failures.push(format!("{case:?}"));
        }
    }
    assert_all(&failures, cases.len());
}

/// The same goldens through whole batches: what a view becomes does not depend on its neighbours.
#[test]
fn batches_match_torchvision_to_the_bit() {
    let mut batches: BTreeMap<(i64, i64, i64), Vec<&Case>> = BTreeMap::new();
    let cases: Vec<Case> = read("cases.json");
    for case in &cases {
        if let Operation::View { size, .. } = case.operation {
            batches.entry((case.image.height, case.image.width, size)).or_default().push(case);
        }
    }
    let mut failures = Vec::new();
    for ((_, _, size), cases) in &batches {
        let images: Vec<Tensor> = cases.iter().map(|case| pixels(&case.image)).collect();
        let params: Vec<ViewParams> = cases
            .iter()
            .filter_map(|case| match &case.operation {
                Operation::View { params, .. } => Some(params.clone()),
                _ => None,
            })
            .collect();
        let found = views(&Tensor::cat(&images, 0), &params, *size).unwrap();
        for (index, case) in (0..).zip(cases) {
            if sha256(&bytes(&found.get(index))) != case.sha256 {
                failures.push(format!("{case:?}"));
            }
        }
    }
    assert_all(&failures, cases.len());
}

/// The folder of real data, where there is one.
fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("SDCLR_DATA").map(PathBuf::from);
    if folder.is_none() {
        skip("data", "SDCLR_DATA is not set");
    }
    folder
}

#[test]
fn real_cifar_images_match_torchvision_to_the_bit() {
    #[derive(Debug, Deserialize)]
    struct CifarCase {
        index: usize,
        #[serde(flatten)]
        operation: Operation,
        sha256: String,
    }
    let Some(data) = data() else { return };
    let path = data.join("cifar-10-batches-bin/data_batch_1.bin");
    let Ok(records) = std::fs::read(&path) else {
        skip("data", &format!("no {}", path.display()));
        return;
    };
    let cases: Vec<CifarCase> = read("cifar10.json");
    let mut failures = Vec::new();
    for case in &cases {
        let record = &records[case.index * 3073..][..3073];
        let image = Tensor::from_slice(&record[1..]).view([1, 3, 32, 32]).to_device(golden::device());
        if sha256(&bytes(&case.operation.apply(&image))) != case.sha256 {
            failures.push(format!("{case:?}"));
        }
    }
    assert_all(&failures, cases.len());
}

/// The decoded image, uint8 `[1, 3, H, W]`.
fn decoded(file: &[u8]) -> Tensor {
    let Picture { height, width, pixels } = decode(file).unwrap();
    Tensor::from_slice(&pixels).view([1, height, width, 3]).permute([0, 3, 1, 2]).contiguous()
}

#[test]
fn real_imagenet_images_match_torchvision_to_the_bit() {
    #[derive(Debug, Deserialize)]
    struct ImagenetCase {
        file: String,
        decoded: String,
        #[serde(flatten)]
        operation: Operation,
        sha256: String,
    }
    let Some(data) = data() else { return };
    let cases: Vec<ImagenetCase> = read("imagenet.json");
    let mut failures = Vec::new();
    let (mut compared, mut missing) = (0, 0);
    for case in &cases {
        let Ok(file) = std::fs::read(data.join(&case.file)) else {
            missing += 1;
            continue;
        };
        let image = decoded(&file).to_device(golden::device());
        assert_eq!(sha256(&bytes(&image)), case.decoded, "{} was decoded otherwise than by Pillow", case.file);
        compared += 1;
        if sha256(&bytes(&case.operation.apply(&image))) != case.sha256 {
            failures.push(format!("{case:?}"));
        }
        if sha256(&bytes(&case.operation.apply_packed(&[&image]))) != case.sha256 {
            failures.push(format!("packed: {case:?}"));
        }
    }
    if missing > 0 {
        skip("data", &format!("{missing} of {} images of ImageNet are not there", cases.len()));
    }
    assert_all(&failures, compared);
}

#[test]
fn nvrtc_compiles_the_kernels_without_a_word() {
    golden::compile_for_gpus("augment.cu", &["--std=c++20", "--fmad=false"]);
}
