//! What values of a recipe may be. In: a key and what it holds. Out: nothing, or an error that names both and what is
//! allowed.

use toml::{Table, Value};

use super::{Recipe, RecipeError};
use crate::text::printable;

pub(crate) fn check(key: &str, found: String, allowed: bool, expected: &str) -> Result<(), RecipeError> {
    if allowed {
        return Ok(());
    }
    Err(RecipeError::Value { key: key.to_owned(), found, expected: expected.to_owned() })
}

pub(super) fn count(key: &str, value: usize) -> Result<(), RecipeError> {
    check(key, value.to_string(), value >= 1, "a whole number of at least 1 is needed")
}

pub(crate) fn share(key: &str, value: f64) -> Result<(), RecipeError> {
    check(key, value.to_string(), (0.0..=1.0).contains(&value), "a share between 0 and 1 is needed")
}

pub(super) fn positive(key: &str, value: f64) -> Result<(), RecipeError> {
    check(key, value.to_string(), value > 0.0 && value.is_finite(), "a number above 0 is needed")
}

pub(super) fn not_negative(key: &str, value: f64) -> Result<(), RecipeError> {
    check(key, value.to_string(), value >= 0.0 && value.is_finite(), "a number of at least 0 is needed")
}

pub(super) fn range(key: &str, [low, high]: [f64; 2]) -> Result<(), RecipeError> {
    let allowed = 0.0 < low && low <= high && high.is_finite();
    check(key, format!("[{low}, {high}]"), allowed, "two numbers above 0, the smaller first, are needed")
}

/// The error of a recipe called `name` whose `table` has a value of the wrong kind, without the words of the TOML reader.
pub(super) fn misfit(name: &str, table: &Table, error: &toml::de::Error) -> RecipeError {
    let text = error.to_string();
    let key = text.rsplit_once("in `").and_then(|(_, rest)| Some(rest.split_once('`')?.0));
    let found = key.and_then(|key| Some((key, get(table, key)?)));
    let Some((key, value)) = found else {
        return RecipeError::Syntax { name: printable(name), reason: printable(error.message()) };
    };
    let expected = match error.message().split_once("expected ") {
        Some((_, names)) if names.starts_with('`') || names.starts_with("one of") => {
            format!("only {} are known", names.trim_start_matches("one of ").replace('`', "").replace(" or ", " and "))
        }
        Some((_, kind)) => kind_needed(table, key, value, kind),
        None => printable(error.message()),
    };
    let found = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    RecipeError::Value { key: printable(key), found: printable(&found), expected }
}

/// What is needed where the reader expected `kind`.
fn kind_needed(table: &Table, key: &str, value: &Value, kind: &str) -> String {
    match kind {
        // The check of the key knows the least that it may hold.
        "u64" | "usize" if value.is_integer() => match with(table, key, Value::Integer(0)).try_into::<Recipe>() {
            Ok(recipe) => match recipe.validate() {
                Err(RecipeError::Value { key: refused, expected, .. }) if refused == key => expected,
                _ => "a whole number of at least 0 is needed".to_owned(),
            },
            Err(_) => "a whole number of at least 0 is needed".to_owned(),
        },
        "u64" | "usize" | "i64" => "a whole number is needed".to_owned(),
        "f64" => "a number is needed".to_owned(),
        "a boolean" => "true or false is needed".to_owned(),
        "an array of length 2" | "fewer elements in array" => "a list of two numbers is needed".to_owned(),
        "a sequence" => "a list is needed".to_owned(),
        _ if kind.starts_with("struct") => "a section is needed".to_owned(),
        _ => "a value of another kind is needed".to_owned(),
    }
}

/// What `table` holds under a dotted key.
fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, rest)) => get(table.get(section)?.as_table()?, rest),
        None => table.get(key),
    }
}

/// `table` with another value under a dotted key.
fn with(table: &Table, key: &str, value: Value) -> Table {
    let mut table = table.clone();
    let changed = match key.split_once('.') {
        Some((section, rest)) => match table.get(section) {
            Some(Value::Table(inner)) => (section, Value::Table(with(inner, rest, value))),
            _ => return table,
        },
        None => (key, value),
    };
    table.insert(changed.0.to_owned(), changed.1);
    table
}
