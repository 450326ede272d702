//! Invariances of mask, loss, schedule and order, on the device that SDCLR_TEST_DEVICE names.

mod golden;

use proptest::prelude::*;
use sdclr::network::Mask;
use sdclr::pretrain::loss::nt_xent;
use sdclr::pretrain::order::epoch_order;
use sdclr::pretrain::schedule::Schedule;
use sdclr::random;
use sdclr::recipe::ScheduleName;
use tch::{Kind, Tensor};

/// Convolution weights `[o, i, 3, 3]` of made-up layers.
fn weights(seed: u64) -> Vec<Tensor> {
    [[4, 3], [8, 4], [2, 8]]
        .iter()
        .enumerate()
        .map(|(i, [o, n])| {
            random::normal(o * n * 9, seed * 10 + i as u64).unwrap().view([*o, *n, 3, 3]).to_device(golden::device())
        })
        .collect()
}

fn mask(weights: &[Tensor], ratio: f64, random: f64) -> Mask {
    Mask::magnitude(&weights.iter().collect::<Vec<_>>(), ratio, random, 7).unwrap()
}

fn features(n: i64, seed: u64) -> Tensor {
    random::normal(n * 5, seed).unwrap().view([n, 5]).to_kind(Kind::Double).to_device(golden::device())
}

fn loss(a: &Tensor, b: &Tensor, t: f64) -> f64 {
    nt_xent(a, b, &Tensor::from(t).to_device(golden::device())).double_value(&[])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Distinct weights: exactly M - ceil(p M) are kept, but at least the largest.
    #[test]
    fn density_is_what_the_ratio_says(seed in 0u64..1000, ratio in 0.0f64..=1.0) {
        let weights = weights(seed);
        let total: usize = weights.iter().map(Tensor::numel).sum();
        let kept = (total as f64 - (ratio * total as f64).ceil()).max(1.0);
        prop_assert!((mask(&weights, ratio, 0.0).density() * total as f64 - kept).abs() < 1e-6);
    }

    /// A larger ratio never keeps what a smaller one dropped.
    #[test]
    fn masks_are_nested(seed in 0u64..1000, a in 0.0f64..1.0, b in 0.0f64..1.0) {
        let weights = weights(seed);
        let (small, large) = (mask(&weights, a.min(b), 0.0), mask(&weights, a.max(b), 0.0));
        for (small, large) in small.parts().iter().zip(large.parts()) {
            prop_assert!(i64::try_from((large - small).gt(0.0).sum(Kind::Int64)).unwrap() == 0);
        }
    }

    /// Signs and scale of the weights do not matter to the mask.
    #[test]
    fn mask_sees_magnitudes_alone(seed in 0u64..1000, ratio in 0.0f64..1.0) {
        let weights = weights(seed);
        let other: Vec<Tensor> = weights.iter().map(|weight| weight * -4.0).collect();
        let (a, b) = (mask(&weights, ratio, 0.0), mask(&other, ratio, 0.0));
        for (a, b) in a.parts().iter().zip(b.parts()) {
            prop_assert!(a == b);
        }
    }

    /// Neither the order of images, nor the lengths of features, nor which view comes first matter.
    #[test]
    fn loss_invariances(n in 2i64..9, seed in 0u64..1000, t in 0.1f64..2.0, scale in 0.1f64..10.0) {
        let (a, b) = (features(n, seed), features(n, seed + 5000));
        let expected = loss(&a, &b, t);
        let close = |found: f64| (found - expected).abs() <= 1e-10 * expected.abs().max(1.0);
        let order = Tensor::from_slice(&random::randperm(n as usize, seed).unwrap()).to_device(golden::device());
        prop_assert!(close(loss(&a.index_select(0, &order), &b.index_select(0, &order), t)));
        prop_assert!(close(loss(&(&a * scale), &b, t)));
        prop_assert!(close(loss(&b, &a, t)));
    }

    /// The loss lies between its bounds: perfect alignment of otherwise opposite features, and the reverse.
    #[test]
    fn loss_bounds(n in 2i64..9, seed in 0u64..1000, t in 0.1f64..2.0) {
        let found = loss(&features(n, seed), &features(n, seed + 5000), t);
        let others = (2 * n - 2) as f64;
        prop_assert!(found >= (1.0 + others * (-2.0 / t).exp()).ln() - 1e-9);
        prop_assert!(found <= (1.0 + others * (2.0 / t).exp()).ln() + 1e-9);
    }

    #[test]
    fn every_image_once_an_epoch(n in 1usize..300, epoch in 1usize..3000, world in 1usize..5) {
        let ranks: Vec<Vec<i64>> = (0..world).map(|rank| epoch_order(n, epoch, rank, world).unwrap()).collect();
        prop_assert!(ranks.iter().all(|rank| rank.len() == n.div_ceil(world)));
        let mut all: Vec<i64> = ranks.concat();
        all.sort_unstable();
        all.dedup();
        prop_assert_eq!(all, (0..n as i64).collect::<Vec<_>>());
    }

    /// The rate rises to the peak, then falls, and never leaves (0, lr].
    #[test]
    fn schedule_rises_then_falls(warmup in 0u64..50, after in 1u64..200, lr in 0.001f64..10.0) {
        let total = warmup + after;
        let schedule = Schedule { name: ScheduleName::Cosine, lr, warmup, total };
        let rates: Vec<f64> = (1..=total).map(|i| schedule.rate(i)).collect();
        prop_assert!(rates.iter().all(|rate| *rate > 0.0 && *rate <= lr * (1.0 + 1e-12)));
        let peak = warmup.max(1) as usize - 1;
        prop_assert!(rates[..=peak].windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(rates[peak..].windows(2).all(|pair| pair[0] >= pair[1]));
        prop_assert!((rates[total as usize - 1] - 1e-6).abs() < 1e-9);
    }
}

/// Without a maximum subtracted, exp(1 / 0.001) is infinite; in log-sum-exp form nothing is.
#[test]
fn loss_survives_tiny_temperatures() {
    let (a, b) = (features(6, 1), features(6, 2));
    assert!(loss(&a, &b, 1e-3).is_finite());
}

/// Over many epochs a weight survives the random part as often as REFERENCE.md "Pruning" says.
#[test]
fn random_pruning_keeps_the_published_share() {
    let weights = weights(3);
    let list: Vec<&Tensor> = weights.iter().collect();
    let total: f64 = weights.iter().map(|weight| weight.numel() as f64).sum();
    let (ratio, random) = (0.9, 0.2);
    let kept_by_magnitude = total - ((ratio - random) * total).ceil();
    let expected = kept_by_magnitude / total * (1.0 - (random * total).ceil() / kept_by_magnitude);
    let epochs = 400;
    let densities = (0..epochs).map(|seed| Mask::magnitude(&list, ratio, random, seed).unwrap().density());
    let mean = densities.sum::<f64>() / epochs as f64;
    // A binomial share over `epochs` masks; five deviations.
    let chance = expected * total / kept_by_magnitude;
    let deviation = (chance * (1.0 - chance) * kept_by_magnitude / epochs as f64).sqrt() / total;
    assert!((mean - expected).abs() < 5.0 * deviation, "kept {mean}, expected {expected} ± {deviation}");
}
