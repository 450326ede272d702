//! Student's t: intervals and p-values. `reference/torch/verdict_goldens.py` has SciPy's numbers for them.

use statrs::distribution::{Continuous, ContinuousCDF, StudentsT};

use super::VerdictError;

/// The t distribution with `freedom` degrees of freedom.
fn t(freedom: f64) -> Result<StudentsT, VerdictError> {
    StudentsT::new(0.0, 1.0, freedom).map_err(|_| VerdictError::Freedom { found: freedom })
}

/// The value that t exceeds with probability `tail` (below 0.5).
///
/// # Errors
/// `freedom` is not a number above 0.
pub fn quantile(tail: f64, freedom: f64) -> Result<f64, VerdictError> {
    let t = t(freedom)?;
    let rough = -t.inverse_cdf(tail);
    // The inverse is found to about 1e-9; one step of Newton's method on the tail takes it to rounding.
    Ok(rough + (t.sf(rough) - tail) / t.pdf(rough))
}

/// The probability that t exceeds `value`.
///
/// # Errors
/// `freedom` is not a number above 0.
pub fn upper_tail(value: f64, freedom: f64) -> Result<f64, VerdictError> {
    Ok(t(freedom)?.sf(value))
}

/// An estimate with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub error: f64,
    pub freedom: f64,
}

impl Estimate {
    /// Deviations below this are rounding errors of equal values.
    const NOTHING: f64 = 1e-9;

    /// Whether the values it was made of show no spread at all.
    pub fn without_spread(&self) -> bool {
        self.error < Self::NOTHING
    }

    /// The two-sided interval of the given level, such as 0.9.
    ///
    /// # Errors
    /// The degrees of freedom are not a number above 0.
    pub fn interval(&self, level: f64) -> Result<[f64; 2], VerdictError> {
        let half = quantile((1.0 - level) / 2.0, self.freedom)? * self.error;
        Ok([self.value - half, self.value + half])
    }

    /// The p-value of "not above 0", one-sided; `None` without spread.
    ///
    /// # Errors
    /// The degrees of freedom are not a number above 0.
    pub fn one_sided(&self) -> Result<Option<f64>, VerdictError> {
        if self.without_spread() {
            return Ok(None);
        }
        upper_tail(self.value / self.error, self.freedom).map(Some)
    }

    /// The p-value of "equal to 0", two-sided; `None` without spread.
    ///
    /// # Errors
    /// The degrees of freedom are not a number above 0.
    pub fn two_sided(&self) -> Result<Option<f64>, VerdictError> {
        if self.without_spread() {
            return Ok(None);
        }
        upper_tail((self.value / self.error).abs(), self.freedom).map(|tail| Some(2.0 * tail))
    }
}

/// The mean of `values`.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sum of squared distances from the mean.
pub(super) fn squares(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum()
}

/// The mean of at least two values with its standard error: `s / sqrt(n)`, n - 1 degrees of freedom.
pub fn of_mean(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    Estimate { value: mean(values), error: (squares(values) / (n - 1.0) / n).sqrt(), freedom: n - 1.0 }
}

/// A difference of two independent means by Welch, from each mean's variance and its degrees of freedom.
pub fn welch(difference: f64, ours: (f64, f64), theirs: (f64, f64)) -> Estimate {
    let variance = ours.0 + theirs.0;
    let freedom = variance.powi(2) / (ours.0.powi(2) / ours.1 + theirs.0.powi(2) / theirs.1);
    // Without any spread there is nothing to weigh: the smaller freedom stands.
    let freedom = if freedom.is_finite() { freedom } else { ours.1.min(theirs.1) };
    Estimate { value: difference, error: variance.sqrt(), freedom }
}
