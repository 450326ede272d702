//! Properties of groups and scores (REFERENCE.md "Metrics"): what must hold for any class counts and accuracies.

use proptest::prelude::*;
use sdclr::scores::{ScoresError, groups_by_thirds, mean_std, scores};

/// Class counts and as many accuracies.
fn classes() -> impl Strategy<Value = (Vec<u64>, Vec<f64>)> {
    (3..120_usize).prop_flat_map(|n| (prop::collection::vec(0..5000_u64, n), prop::collection::vec(0.0..=100.0, n)))
}

/// Counts without ties, and accuracies, in an order of classes drawn at random.
fn distinct_classes() -> impl Strategy<Value = Vec<(u64, f64)>> {
    prop::collection::btree_map(0..5000_u64, 0.0..=100.0, 3..120)
        .prop_flat_map(|map| Just(map.into_iter().collect::<Vec<_>>()).prop_shuffle())
}

proptest! {
    #[test]
    fn groups_part_the_classes_by_count((counts, _) in classes()) {
        let groups = groups_by_thirds(&counts);
        let third = counts.len() / 3;
        prop_assert_eq!(groups.few.len(), third);
        prop_assert_eq!(groups.medium.len(), third);
        let mut all: Vec<usize> = groups.many.iter().chain(&groups.medium).chain(&groups.few).copied().collect();
        // Listed together, the groups run from the most to the least frequent class.
        prop_assert!(all.windows(2).all(|pair| counts[pair[0]] >= counts[pair[1]]));
        all.sort_unstable();
        prop_assert_eq!(all, (0..counts.len()).collect::<Vec<_>>());
    }

    #[test]
    fn scores_do_not_depend_on_the_order_of_classes(classes in distinct_classes(), seed in any::<u64>()) {
        let found = |classes: &[(u64, f64)]| {
            let (counts, accuracies): (Vec<u64>, Vec<f64>) = classes.iter().copied().unzip();
            scores(&accuracies, &groups_by_thirds(&counts)).unwrap()
        };
        let mut turned = classes.clone();
        turned.rotate_left(seed as usize % classes.len());
        let (a, b) = (found(&classes), found(&turned));
        for (left, right) in [(a.all, b.all), (a.many, b.many), (a.medium, b.medium), (a.few, b.few), (a.std, b.std)] {
            prop_assert!((left - right).abs() < 1e-9, "{left} {right}");
        }
    }

    #[test]
    fn all_is_the_class_weighted_mean_of_the_groups((counts, accuracies) in classes()) {
        let groups = groups_by_thirds(&counts);
        let found = scores(&accuracies, &groups).unwrap();
        let weighted = found.many * groups.many.len() as f64
            + found.medium * groups.medium.len() as f64
            + found.few * groups.few.len() as f64;
        prop_assert!((found.all - weighted / counts.len() as f64).abs() < 1e-9);
    }

    #[test]
    fn scores_are_bounded((counts, accuracies) in classes()) {
        let found = scores(&accuracies, &groups_by_thirds(&counts)).unwrap();
        let (low, high) = accuracies.iter().fold((f64::MAX, f64::MIN), |(low, high), &a| (low.min(a), high.max(a)));
        for value in [found.all, found.many, found.medium, found.few] {
            prop_assert!((low - 1e-9..=high + 1e-9).contains(&value));
        }
        // Of three numbers within a range r, the population deviation is at most r * sqrt(2) / 3; of any, r / 2.
        prop_assert!((0.0..=(high - low) * 2_f64.sqrt() / 3.0 + 1e-9).contains(&found.std));
        prop_assert!((0.0..=(high - low) / 2.0 + 1e-9).contains(&found.class_std));
    }

    #[test]
    fn deviation_ignores_a_shift_and_follows_a_scale(
        values in prop::collection::vec(-100.0..100.0_f64, 1..50), shift in -100.0..100.0_f64, scale in -3.0..3.0_f64
    ) {
        let before = mean_std(&values);
        let after = mean_std(&values.iter().map(|value| value * scale + shift).collect::<Vec<f64>>());
        prop_assert!((after.mean - (before.mean * scale + shift)).abs() < 1e-9);
        prop_assert!((after.std - before.std * scale.abs()).abs() < 1e-9);
        prop_assert_eq!(after.n, values.len());
    }
}

#[test]
fn groups_have_the_published_sizes() {
    let sizes = |n: u64| {
        let groups = groups_by_thirds(&(0..n).collect::<Vec<_>>());
        [groups.many.len(), groups.medium.len(), groups.few.len()]
    };
    assert_eq!(sizes(10), [4, 3, 3]);
    assert_eq!(sizes(100), [34, 33, 33]);
}

#[test]
fn of_equal_counts_the_lower_index_is_the_more_frequent() {
    let groups = groups_by_thirds(&[5, 5, 5, 5]);
    assert_eq!((groups.many, groups.medium, groups.few), (vec![0, 1], vec![2], vec![3]));
}

#[test]
fn std_is_the_population_deviation_of_the_groups() {
    let groups = groups_by_thirds(&[3, 2, 1]);
    let found = scores(&[60.0, 40.0, 20.0], &groups).unwrap();
    // sqrt((20^2 + 0 + 20^2) / 3)
    assert!((found.std - 16.329_931_618_554_52).abs() < 1e-12);
    assert_eq!((found.all, found.many, found.medium, found.few), (40.0, 60.0, 40.0, 20.0));
}

#[test]
fn mean_of_nothing_is_no_number() {
    let nothing = mean_std(&[]);
    assert!(nothing.mean.is_nan() && nothing.std.is_nan() && nothing.n == 0);
}

#[test]
fn scores_refuse_what_is_no_set_of_accuracies() {
    let groups = groups_by_thirds(&[3, 2, 1]);
    assert_eq!(scores(&[1.0, 2.0], &groups), Err(ScoresError::Classes { found: 2, expected: 3 }));
    assert_eq!(scores(&[1.0; 4], &groups), Err(ScoresError::Classes { found: 4, expected: 3 }));
    assert_eq!(scores(&[1.0, 100.5, 2.0], &groups), Err(ScoresError::NotPerCent { class: 1, found: 100.5 }));
    assert!(matches!(scores(&[1.0, 2.0, f64::NAN], &groups), Err(ScoresError::NotPerCent { class: 2, .. })));
    assert_eq!(scores(&[1.0, 2.0], &groups_by_thirds(&[2, 1])), Err(ScoresError::EmptyGroup { group: "medium" }));
}
