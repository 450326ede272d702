//! What values of a recipe may be. In: a key and what it holds. Out: nothing, or an error that names both and what is
//! allowed.

use super::RecipeError;

pub(crate) fn check(key: &str, found: String, allowed: bool, expected: &str) -> Result<(), RecipeError> {
    if allowed {
        return Ok(());
    }
    Err(RecipeError::Value { key: key.to_owned(), found, expected: expected.to_owned() })
}

pub(super) fn count(key: &str, value: usize) -> Result<(), RecipeError> {
    check(key, value.to_string(), value >= 1, "at least 1 is needed")
}

pub(crate) fn share(key: &str, value: f64) -> Result<(), RecipeError> {
    check(key, value.to_string(), (0.0..=1.0).contains(&value), "a share between 0 and 1 is needed")
}

pub(super) fn positive(key: &str, value: f64) -> Result<(), RecipeError> {
    check(key, value.to_string(), value > 0.0 && value.is_finite(), "a number above 0 is needed")
}

pub(super) fn not_negative(key: &str, value: f64) -> Result<(), RecipeError> {
    check(key, value.to_string(), value >= 0.0 && value.is_finite(), "0 or more is needed")
}

pub(super) fn range(key: &str, [low, high]: [f64; 2]) -> Result<(), RecipeError> {
    let allowed = 0.0 < low && low <= high && high.is_finite();
    check(key, format!("[{low}, {high}]"), allowed, "two numbers above 0, the smaller first, are needed")
}
