//! The exact permutation of labels within splits: under "the two rows do not differ", which of a split's values stand on the
//! left is a matter of chance. The statistic is the sum of the left values. With one value a side and split this is the
//! sign-flip test of paired differences.
//!
//! Counted, not sampled: values become integers of 1e-9 point, the sums of a half of the splits are listed with how often
//! each occurs, and pairs of sums of the two halves are counted in order. That takes the root of the enumeration: five splits
//! with four runs a side are 1.7e9 labellings, but lists of 343,000 and 4,900 sums.

use super::VerdictError;

/// The most sums that a half may have.
const MOST: usize = 1 << 20;
/// Integers to a point.
const UNITS: f64 = 1e9;

/// How many of all labellings have a sum at least as high as the one observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labellings {
    pub at_least: u128,
    pub all: u128,
}

impl Labellings {
    /// The one-sided p-value of "left does not lie above right".
    pub fn p_value(self) -> f64 {
        self.at_least as f64 / self.all as f64
    }
}

/// The smallest p-value that `splits` splits with `left` and `right` values each can give.
pub fn smallest_p(splits: usize, left: usize, right: usize) -> f64 {
    choices(left + right, left).powi(splits as i32).recip()
}

/// `n` choose `k`.
fn choices(n: usize, k: usize) -> f64 {
    (0..k).fold(1.0, |product, i| product * (n - i) as f64 / (i + 1) as f64).round()
}

/// Counts the labellings of `splits`, each the values of the left and of the right row; every split has as many on each side
/// as the others.
///
/// # Errors
/// A half of the splits has more than 2^20 distinct sums.
pub fn label_permutation(splits: &[(Vec<f64>, Vec<f64>)]) -> Result<Labellings, VerdictError> {
    let integer = |value: &f64| (value * UNITS).round() as i64;
    let mut observed = 0;
    let mut values = 0;
    let mut halves = [vec![(0, 1)], vec![(0, 1)]];
    for (at, (left, right)) in splits.iter().enumerate() {
        let both: Vec<i64> = left.iter().chain(right).map(integer).collect();
        observed += both[..left.len()].iter().sum::<i64>();
        values += both.len() as i64;
        let half = &mut halves[at % 2];
        *half = sums_with(half, &sums(&both, left.len())?)?;
    }
    // Sums that are equal before rounding to integers may differ by one unit a value after it.
    let least = observed - values;
    let [one, other] = &halves;
    let mut at_least = 0;
    let mut from = other.len();
    let mut reached = 0;
    for (sum, count) in one {
        // The higher this half's sum, the lower the other's may be.
        while from > 0 && sum + other[from - 1].0 >= least {
            from -= 1;
            reached += other[from].1;
        }
        at_least += count * reached;
    }
    let total = |half: &[(i64, u128)]| half.iter().map(|(_, count)| count).sum::<u128>();
    Ok(Labellings { at_least, all: total(one) * total(other) })
}

/// The sums of `take` of the `values`, ascending, with how often each occurs.
fn sums(values: &[i64], take: usize) -> Result<Vec<(i64, u128)>, VerdictError> {
    // By number taken so far: the sums and their counts.
    let mut taken: Vec<Vec<(i64, u128)>> = vec![Vec::new(); take + 1];
    taken[0].push((0, 1));
    for value in values {
        for count in (0..take).rev() {
            let more: Vec<_> = taken[count].iter().map(|(sum, times)| (sum + value, *times)).collect();
            taken[count + 1].extend(more);
            merge(&mut taken[count + 1])?;
        }
    }
    Ok(taken.pop().unwrap_or_default())
}

/// Every sum of one list with every sum of the other.
fn sums_with(one: &[(i64, u128)], other: &[(i64, u128)]) -> Result<Vec<(i64, u128)>, VerdictError> {
    let mut all = Vec::new();
    for (sum, times) in other {
        all.extend(one.iter().map(|(known, count)| (known + sum, count * times)));
        if all.len() > 4 * MOST {
            merge(&mut all)?;
        }
    }
    merge(&mut all)?;
    Ok(all)
}

/// Sorts, and adds up the counts of equal sums.
fn merge(sums: &mut Vec<(i64, u128)>) -> Result<(), VerdictError> {
    sums.sort_unstable();
    sums.dedup_by(|next, kept| {
        let equal = next.0 == kept.0;
        if equal {
            kept.1 += next.1;
        }
        equal
    });
    if sums.len() > MOST { Err(VerdictError::TooManyLabellings { most: MOST }) } else { Ok(()) }
}
