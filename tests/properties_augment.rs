//! Properties of augmentation that hold for every key, recipe and image, on the device that SDCLR_TEST_DEVICE names.

mod golden;

use proptest::prelude::*;
use sdclr::augment::{
    AugmentError, Crop, Jitter, JitterOp, Plan, ResizedCrop, Shift, ViewKey, ViewParams, adjust, draw,
    draw_resized_crop, draw_shift, pad_crop_flip, views,
};
use sdclr::dataset::{Packed, Picture, Place};
use sdclr::recipe::{AugmentRecipe, Recipe};
use tch::{Device, Kind, Tensor};

fn cifar() -> AugmentRecipe {
    Recipe::resolve("cifar10-lt/sdclr", &[]).unwrap().augment
}

/// ImageNet's: smaller crops, larger views, blur.
fn imagenet() -> AugmentRecipe {
    AugmentRecipe { size: 24, scale: [0.08, 1.0], blur_probability: 0.5, ..cifar() }
}

fn key(image: u64) -> ViewKey {
    ViewKey { seed: 10, epoch: 1, image, view: 0 }
}

fn keys() -> impl Strategy<Value = ViewKey> {
    any::<[u64; 4]>().prop_map(|[seed, epoch, image, view]| ViewKey { seed, epoch, image, view })
}

fn images(count: i64, height: i64, width: i64, seed: i64) -> Tensor {
    let values = Tensor::arange(count * 3 * height * width, (Kind::Int64, golden::device())) + seed;
    ((&values * &values * 40_503 + values * 7_919).bitwise_right_shift_tensor_scalar(9))
        .remainder(256)
        .to_kind(Kind::Uint8)
        .view([count, 3, height, width])
}

/// An image `[3, H, W]` as a decoder gives it.
fn picture(image: &Tensor) -> Picture {
    let (_, height, width) = image.size3().unwrap();
    let pixels = image.to_device(Device::Cpu).permute([1, 2, 0]).contiguous().flatten(0, -1);
    Picture { height, width, pixels: pixels.try_into().unwrap() }
}

/// The only view of one image `[3, H, W]` that `plan` plans of its place.
fn packed_view(image: &Tensor, plan: impl FnOnce(&[Place]) -> Result<Plan, AugmentError>) -> Tensor {
    let packed = Packed::of(&[picture(image)], golden::device()).unwrap();
    let images = sdclr::native::send(&packed.pixels, golden::device()).unwrap();
    plan(&packed.places).unwrap().apply(&images).unwrap().get(0)
}

/// The whole image, untouched.
fn identity(side: i64) -> ViewParams {
    let crop = Crop { top: 0, left: 0, height: side, width: side };
    ViewParams { crop, flip: false, jitter: None, grayscale: false, blur: None }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_view_does_not_depend_on_its_batch(
        seed in any::<u64>(), height in 1i64..40, width in 1i64..40, count in 1usize..8, pick in any::<prop::sample::Index>(),
    ) {
        let recipe = imagenet();
        let images = images(count as i64, height, width, (seed % 1000) as i64);
        let params: Vec<ViewParams> =
            (0..count as u64).map(|image| draw(&recipe, ViewKey { seed, ..key(image) }, height, width)).collect();
        let together = views(&images, &params, recipe.size).unwrap();
        prop_assert_eq!(together.size(), [count as i64, 3, recipe.size, recipe.size]);
        let pick = pick.index(count);
        let alone = views(&images.narrow(0, pick as i64, 1), &params[pick..=pick], recipe.size).unwrap();
        prop_assert_eq!(alone, together.narrow(0, pick as i64, 1));
    }

    /// Files of any sizes, one batch: each view is that of its image alone, in a tensor.
    #[test]
    fn packed_images_give_the_views_of_tensors(seed in any::<u64>(), sides in prop::collection::vec((1i64..60, 1i64..60), 1..6)) {
        let (recipe, device) = (imagenet(), golden::device());
        let originals: Vec<Tensor> = sides.iter().map(|&(height, width)| images(1, height, width, height)).collect();
        let pictures: Vec<Picture> = originals.iter().map(|image| picture(&image.get(0))).collect();
        let packed = Packed::of(&pictures, device).unwrap();
        let drawn = |(image, &(height, width)): (u64, &(i64, i64))| {
            [0, 1].map(|view| draw(&recipe, ViewKey { seed, view, ..key(image) }, height, width))
        };
        let params: Vec<ViewParams> = (0..).zip(&sides).flat_map(drawn).collect();
        let places: Vec<Place> = packed.places.iter().flat_map(|&place| [place; 2]).collect();
        let plan = Plan::of_packed(&places, &params, recipe.size, device).unwrap();
        let found = plan.apply(&sdclr::native::send(&packed.pixels, device).unwrap()).unwrap();
        for (index, params) in params.iter().enumerate() {
            let alone = views(&originals[index / 2], std::slice::from_ref(params), recipe.size).unwrap();
            prop_assert_eq!(found.get(index as i64), alone.get(0));
        }
    }

    #[test]
    fn untouched_images_stay_as_they_are(side in 1i64..48, seed in 0i64..1000) {
        let images = images(2, side, side, seed);
        let same = views(&images, &[identity(side), identity(side)], side).unwrap();
        prop_assert_eq!(&same, &images);
        for operation in [JitterOp::Brightness, JitterOp::Contrast, JitterOp::Saturation] {
            prop_assert_eq!(&adjust(&images, operation, &[1.0, 1.0]).unwrap(), &images);
        }
        let still = Shift { top: 3, left: 3, flip: false };
        prop_assert_eq!(&pad_crop_flip(&images, &[still, still], 3).unwrap(), &images);
        let (first, device) = (images.get(0), golden::device());
        prop_assert_eq!(&packed_view(&first, |places| Plan::of_centres(places, side, side, device)), &first);
        let crop = Crop { top: 0, left: 0, height: side, width: side };
        let crop = |flip| packed_view(&first, |places| Plan::of_crops(places, &[ResizedCrop { crop, flip }], side, device));
        prop_assert_eq!(&crop(false), &first);
        prop_assert_eq!(crop(true), first.flip([2]));
    }

    #[test]
    fn flips_and_shifts_move_pixels_only(height in 1i64..20, width in 1i64..20, padding in 0i64..6, key in keys()) {
        let images = images(1, height, width, 5);
        let shift = draw_shift(key, padding, 0.5);
        let found = pad_crop_flip(&images, &[shift], padding).unwrap();
        let padded = images.constant_pad_nd([padding; 4]);
        let expected = padded.narrow(2, shift.top, height).narrow(3, shift.left, width);
        let expected = if shift.flip { expected.flip([3]) } else { expected };
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn grey_images_keep_no_colour_to_adjust(seed in 0i64..1000, factor in 0.0f64..2.0, turns in -0.5f64..0.5) {
        let grey = images(1, 9, 9, seed).narrow(1, 0, 1).expand([1, 3, 9, 9], false).contiguous();
        prop_assert_eq!(&adjust(&grey, JitterOp::Saturation, &[factor]).unwrap(), &grey);
        prop_assert_eq!(&adjust(&grey, JitterOp::Hue, &[turns]).unwrap(), &grey);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn drawn_parameters_keep_their_bounds(key in keys(), height in 1i64..600, width in 1i64..600) {
        let recipe = imagenet();
        let params = draw(&recipe, key, height, width);
        prop_assert_eq!(&params, &draw(&recipe, key, height, width));
        let crop = params.crop;
        prop_assert!(crop.lies_within(height, width), "{:?}", crop);
        if let Some(jitter) = params.jitter {
            for factor in [jitter.brightness, jitter.contrast, jitter.saturation] {
                prop_assert!((0.6..1.4).contains(&factor));
            }
            prop_assert!(jitter.hue.abs() <= 0.1);
        }
        prop_assert!(params.blur.is_none_or(|sigma| (0.1..2.0).contains(&sigma)));
        let crop = draw_resized_crop(key, recipe.scale, recipe.ratio, 0.5, height, width).crop;
        prop_assert!(crop.lies_within(height, width), "{:?}", crop);
    }

    #[test]
    fn crops_of_square_images_keep_area_and_ratio(key in keys(), side in 8i64..600) {
        let recipe = cifar();
        let crop = draw(&recipe, key, side, side).crop;
        // Rounding moves each side by at most half a pixel.
        let (height, width) = (crop.height as f64, crop.width as f64);
        let [smallest, largest] = recipe.scale.map(|share| share * (side * side) as f64);
        prop_assert!((height + 0.5) * (width + 0.5) >= smallest && (height - 0.5) * (width - 0.5) <= largest);
        prop_assert!((width + 0.5) / (height - 0.5) >= recipe.ratio[0]);
        prop_assert!((width - 0.5) / (height + 0.5) <= recipe.ratio[1]);
    }

    #[test]
    fn shifts_keep_their_bounds(key in keys(), padding in 0i64..64) {
        let shift = draw_shift(key, padding, 0.5);
        prop_assert!((0..=2 * padding).contains(&shift.top) && (0..=2 * padding).contains(&shift.left));
    }
}

/// Asserts that `hits` of `trials` is within five standard deviations of `probability`.
fn assert_rate(what: &str, hits: usize, trials: usize, probability: f64) {
    let deviation = (trials as f64 * probability * (1.0 - probability)).sqrt();
    let off = (hits as f64 - trials as f64 * probability).abs() / deviation;
    assert!(off < 5.0, "{what}: {hits} of {trials}, expected a share of {probability} ({off:.1} deviations off)");
}

#[test]
fn draws_have_the_published_rates() {
    const TRIALS: usize = 48_000;
    let recipe = imagenet();
    let drawn: Vec<ViewParams> = (0..TRIALS as u64).map(|image| draw(&recipe, key(image), 32, 32)).collect();
    let count = |holds: &dyn Fn(&ViewParams) -> bool| drawn.iter().filter(|params| holds(params)).count();
    assert_rate("flip", count(&|params| params.flip), TRIALS, 0.5);
    assert_rate("grayscale", count(&|params| params.grayscale), TRIALS, 0.2);
    assert_rate("blur", count(&|params| params.blur.is_some()), TRIALS, 0.5);
    let jitters: Vec<Jitter> = drawn.iter().filter_map(|params| params.jitter).collect();
    assert_rate("jitter", jitters.len(), TRIALS, 0.8);
    let mut orders = std::collections::HashMap::new();
    for jitter in &jitters {
        *orders.entry(jitter.order).or_insert(0) += 1;
    }
    assert_eq!(orders.len(), 24, "every order occurs");
    for (order, hits) in orders {
        assert_rate(&format!("{order:?}"), hits, jitters.len(), 1.0 / 24.0);
    }
    for (name, factor, middle) in [
        ("brightness", JitterOp::Brightness, 1.0),
        ("contrast", JitterOp::Contrast, 1.0),
        ("saturation", JitterOp::Saturation, 1.0),
        ("hue", JitterOp::Hue, 0.0),
    ] {
        let lower = jitters.iter().filter(|jitter| jitter.factor(factor) < middle).count();
        assert_rate(name, lower, jitters.len(), 0.5);
    }
}

#[test]
fn neighbouring_addresses_draw_independently() {
    let recipe = cifar();
    let base = ViewKey { seed: 1, epoch: 1, image: 1, view: 1 };
    let others = [
        ViewKey { seed: 2, ..base },
        ViewKey { epoch: 2, ..base },
        ViewKey { image: 2, ..base },
        ViewKey { view: 0, ..base },
    ];
    for other in others {
        assert_ne!(draw(&recipe, base, 224, 224), draw(&recipe, other, 224, 224), "{other:?}");
    }
}

#[test]
fn thin_images_fall_back_to_the_central_crop() {
    let recipe = cifar();
    // Every try is wider or higher than the image, or the ratio would not be allowed.
    let crop = |height, width| draw(&recipe, key(0), height, width).crop;
    assert_eq!(crop(2000, 30), Crop { top: 980, left: 0, height: 40, width: 30 });
    assert_eq!(crop(30, 2000), Crop { top: 0, left: 980, height: 30, width: 40 });
    let whole = AugmentRecipe { scale: [1.0, 1.0], ratio: [0.9, 1.1], ..recipe };
    // An area of exactly 1 fits a square image only at a ratio that rounds to 1.
    assert_eq!(draw(&whole, key(0), 1000, 1000).crop, Crop { top: 0, left: 0, height: 1000, width: 1000 });
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = images(2, 8, 8, 0);
    let params = [identity(8), identity(8)];
    let kind = views(&good.to_kind(Kind::Float), &params, 8).unwrap_err();
    assert!(matches!(kind, AugmentError::Images { kind: Kind::Float, .. }), "{kind}");
    assert!(matches!(views(&good.narrow(1, 0, 1), &params, 8), Err(AugmentError::Images { .. })));
    assert!(matches!(views(&good.get(0), &params, 8), Err(AugmentError::Images { .. })));
    assert!(matches!(views(&good.narrow(0, 0, 0), &[], 8), Err(AugmentError::Images { .. })));
    assert_eq!(views(&good, &params[..1], 8).unwrap_err(), AugmentError::Count { images: 2, params: 1 });
    assert_eq!(views(&good, &params, 0).unwrap_err(), AugmentError::Size { size: 0 });
    let enormous = views(&good, &params, 1 << 15).unwrap_err();
    assert_eq!(enormous, AugmentError::LargeViews { views: (1 << 15, 1 << 15) }, "{enormous}");
    let place = Place { offset: 0, height: 1 << 15, width: 1 << 15 };
    let crop = Crop { top: 0, left: 0, height: 1, width: 1 };
    let far = Plan::of_packed(&[place], &[ViewParams { crop, ..identity(1) }], 8, golden::device()).unwrap_err();
    assert_eq!(far, AugmentError::TooLarge { index: 0, image: (1 << 15, 1 << 15), views: (8, 8) }, "{far}");
    let nowhere = Plan::new(&[0, -1], &params, (8, 8), 8, golden::device()).unwrap_err();
    assert_eq!(nowhere, AugmentError::Source { index: 1, source_image: -1 }, "{nowhere}");
    let planned = |sides| Plan::new(&[1, 0], &params, sides, 8, golden::device()).unwrap();
    for (plan, found) in [(planned((8, 8)), good.narrow(0, 0, 1)), (planned((8, 9)), good.shallow_clone())] {
        assert!(matches!(plan.apply(&found), Err(AugmentError::OtherImages { .. })));
    }
    let order = [JitterOp::Contrast, JitterOp::Hue, JitterOp::Contrast, JitterOp::Saturation];
    let jitter = Jitter { order, brightness: 1.0, contrast: 0.5, saturation: 1.0, hue: 0.0 };
    let twice = views(&good, &[identity(8), ViewParams { jitter: Some(jitter), ..identity(8) }], 8).unwrap_err();
    assert_eq!(twice, AugmentError::Twice { index: 1, operation: JitterOp::Contrast }, "{twice}");
    for crop in [(0, 0, 9, 8), (-1, 0, 8, 8), (0, 1, 8, 8), (0, 0, 0, 8), (i64::MAX, 0, 1, 1)] {
        let (top, left, height, width) = crop;
        let outside = ViewParams { crop: Crop { top, left, height, width }, ..identity(8) };
        assert!(matches!(views(&good, &[identity(8), outside], 8), Err(AugmentError::Crop { index: 1, .. })));
    }
    for sigma in [-1.0, f64::NAN, f64::INFINITY] {
        let blurred = ViewParams { blur: Some(sigma), ..identity(8) };
        assert!(matches!(views(&good, &[blurred, identity(8)], 8), Err(AugmentError::Sigma { index: 0, .. })));
    }
    let outside = Shift { top: 9, left: 0, flip: false };
    assert!(matches!(pad_crop_flip(&good, &[outside; 2], 4), Err(AugmentError::Shift { index: 0, .. })));
    assert_eq!(pad_crop_flip(&good, &[outside; 2], -1).unwrap_err(), AugmentError::Padding { padding: -1 });
    let places = [Place { offset: 0, height: 8, width: 8 }];
    let centre = |short, size| Plan::of_centres(&places, short, size, golden::device());
    assert_eq!(centre(8, 9).unwrap_err(), AugmentError::Centre { size: 9, short: 8 });
    assert_eq!(centre(8, 0).unwrap_err(), AugmentError::Size { size: 0 });
    let crop = Crop { top: 0, left: 1, height: 8, width: 8 };
    let outside = Plan::of_crops(&places, &[ResizedCrop { crop, flip: false }], 8, golden::device());
    assert!(matches!(outside, Err(AugmentError::Crop { index: 0, .. })));
    // One byte too few, and images of another layout.
    let whole = centre(8, 8).unwrap();
    for found in [good.flatten(0, -1).narrow(0, 0, 191), good.shallow_clone()] {
        assert!(matches!(whole.apply(&found), Err(AugmentError::OtherImages { .. })));
    }
    assert_eq!(adjust(&good, JitterOp::Hue, &[0.0]).unwrap_err(), AugmentError::Count { images: 2, params: 1 });
}
