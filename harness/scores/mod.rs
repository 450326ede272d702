//! Scores of a probe. In: accuracies per class and the class counts of the long-tailed list. Out: accuracies of the groups,
//! the balancedness measure Std, means and deviations over splits. Implements REFERENCE.md "Metrics".

use serde::{Deserialize, Serialize};

use crate::recipe::DatasetName;

/// Accuracies from which no scores can be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScoresError {
    #[error("the group '{group}' has no class; at least {LEAST_CLASSES} classes are needed for three groups")]
    EmptyGroup { group: &'static str },
    #[error("{found} accuracies were given for {expected} classes; give one per class, in class order")]
    Classes { found: usize, expected: usize },
    #[error("class {class} has an accuracy of {found}; a number of per cent between 0 and 100 is needed")]
    NotPerCent { class: usize, found: f64 },
}

/// Fewer classes leave a group of [`groups_by_thirds`] empty.
pub const LEAST_CLASSES: usize = 3;

/// The classes by how frequent they are in `D_i`: indices, the most frequent class of each group first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups {
    pub many: Vec<usize>,
    pub medium: Vec<usize>,
    pub few: Vec<usize>,
}

/// The groups of CIFAR and of the digits: of n classes sorted by count, the lowest n/3 (rounded down) are Few, the next
/// n/3 Medium, the rest Many. Ties are broken by index: the lower index counts as the more frequent class. No published
/// split has a tie at a boundary.
pub fn groups_by_thirds(class_counts: &[u64]) -> Groups {
    let mut many: Vec<usize> = (0..class_counts.len()).collect();
    many.sort_by_key(|&class| (std::cmp::Reverse(class_counts[class]), class));
    let third = class_counts.len() / 3;
    let few = many.split_off(many.len() - third);
    let medium = many.split_off(many.len() - third);
    Groups { many, medium, few }
}

/// The groups of ImageNet, by images in the long-tailed list: over 100 are Many, 20 to 100 Medium, fewer than 20 Few.
pub fn groups_by_counts(class_counts: &[u64]) -> Groups {
    let mut classes: Vec<usize> = (0..class_counts.len()).collect();
    classes.sort_by_key(|&class| (std::cmp::Reverse(class_counts[class]), class));
    let between = |low: u64, high: u64| {
        classes.iter().copied().filter(|&class| (low..=high).contains(&class_counts[class])).collect()
    };
    Groups { many: between(101, u64::MAX), medium: between(20, 100), few: between(0, 19) }
}

/// The groups by the rule of `dataset`.
pub fn groups_of(dataset: DatasetName, class_counts: &[u64]) -> Groups {
    match dataset {
        DatasetName::Digits | DatasetName::Cifar10 | DatasetName::Cifar100 => groups_by_thirds(class_counts),
        // The limits of ImageNet mean nothing where the counts are of another size.
        DatasetName::Folders | DatasetName::Arrays => groups_by_thirds(class_counts),
        DatasetName::Imagenet100 | DatasetName::Imagenet => groups_by_counts(class_counts),
    }
}

/// What a table shows of one probe, in per cent; the deviations in points.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Mean over the classes.
    pub all: f64,
    pub many: f64,
    pub medium: f64,
    pub few: f64,
    /// Population standard deviation of (many, medium, few): lower is better balanced.
    pub std: f64,
    /// Population standard deviation over the classes.
    pub class_std: f64,
}

impl Scores {
    /// All, Many, Medium, Few and Std: what the paper's tables show, in their order.
    pub fn shown(&self) -> [f64; 5] {
        [self.all, self.many, self.medium, self.few, self.std]
    }
}

/// Scores of the accuracies `per_class` (per cent, in class order).
///
/// # Errors
/// A group is empty, the groups cover another number of classes, or an accuracy lies outside 0..=100.
pub fn scores(per_class: &[f64], groups: &Groups) -> Result<Scores, ScoresError> {
    let named = [("many", &groups.many), ("medium", &groups.medium), ("few", &groups.few)];
    if let Some((group, _)) = named.iter().find(|(_, classes)| classes.is_empty()) {
        return Err(ScoresError::EmptyGroup { group });
    }
    let expected = named.iter().map(|(_, classes)| classes.len()).sum();
    let inside = named.iter().flat_map(|(_, classes)| classes.iter()).all(|&class| class < per_class.len());
    if per_class.len() != expected || !inside {
        return Err(ScoresError::Classes { found: per_class.len(), expected });
    }
    if let Some(class) = per_class.iter().position(|accuracy| !(0.0..=100.0).contains(accuracy)) {
        return Err(ScoresError::NotPerCent { class, found: per_class[class] });
    }
    let [many, medium, few] = named.map(|(_, classes)| {
        let accuracies: Vec<f64> = classes.iter().map(|&class| per_class[class]).collect();
        mean_std(&accuracies).mean
    });
    let MeanStd { mean: all, std: class_std, .. } = mean_std(per_class);
    Ok(Scores { all, many, medium, few, std: mean_std(&[many, medium, few]).std, class_std })
}

/// Mean and population standard deviation of `n` values; both are NaN where n is 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeanStd {
    pub mean: f64,
    pub std: f64,
    pub n: usize,
}

/// Mean and population standard deviation (divided by n, not by n - 1), in two passes.
pub fn mean_std(values: &[f64]) -> MeanStd {
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n as f64;
    MeanStd { mean, std: variance.sqrt(), n }
}
