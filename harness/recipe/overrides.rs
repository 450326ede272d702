//! `key=value` onto a recipe's TOML table; dotted keys reach into its sections.

use toml::{Table, Value};

use super::{Recipe, RecipeError, name_of};
use crate::text::printable;

/// Channels of the first stage of a published network.
const PUBLISHED_WIDTH: i64 = 64;

/// Every key of `table`, dotted.
pub(super) fn keys(table: &Table) -> Vec<String> {
    leaves(table).into_iter().map(|(key, _)| key).collect()
}

/// Every key of `table`, dotted, and what it holds.
pub(super) fn leaves(table: &Table) -> Vec<(String, Value)> {
    fn collect(table: &Table, prefix: &str, leaves: &mut Vec<(String, Value)>) {
        for (key, value) in table {
            match value {
                Value::Table(inner) => collect(inner, &format!("{prefix}{key}."), leaves),
                value => leaves.push((format!("{prefix}{key}"), value.clone())),
            }
        }
    }
    let mut found = Vec::new();
    collect(table, "", &mut found);
    found
}

/// Refuses a table with a key that is not `known`, naming the nearest that is.
pub(super) fn check_keys(table: &Table, known: &[String]) -> Result<(), RecipeError> {
    match keys(table).into_iter().find(|key| !known.contains(key)) {
        Some(key) => Err(unknown(&key, known)),
        None => Ok(()),
    }
}

/// Keys that a mistyped one may have meant.
const NEAR: usize = 5;

fn unknown(key: &str, known: &[String]) -> RecipeError {
    // `batchsize` is near to `batch_size` and to the last part of `probe.few.batch_size`.
    let likeness = |known: &String| {
        let last = known.rsplit('.').next().unwrap_or(known);
        strsim::jaro_winkler(key, known).max(0.99 * strsim::jaro_winkler(key, last))
    };
    let mut near: Vec<(f64, &String)> =
        known.iter().map(|known| (likeness(known), known)).filter(|(likeness, _)| *likeness > 0.8).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near = near.into_iter().take(NEAR).map(|(_, known)| known.clone()).collect();
    RecipeError::UnknownKey { key: printable(key), near }
}

/// The candidate most like `name`, if any is alike at all.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}

/// Sets one `key=value`; a value is read as [`value_of`] says.
pub(super) fn apply(table: &mut Table, text: &str) -> Result<(), RecipeError> {
    let Some((key, value)) = text.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
        return Err(RecipeError::NotAnOverride { text: printable(text) });
    };
    set(table, key, value_of(value))
}

/// Sets the dotted `key`, which the table has, to a value of its type.
pub(super) fn set(table: &mut Table, key: &str, new: Value) -> Result<(), RecipeError> {
    let (sections, last) = key.rsplit_once('.').map_or((None, key), |(sections, last)| (Some(sections), last));
    let mut sections = sections.into_iter().flat_map(|sections| sections.split('.'));
    let known = keys(table);
    let place = sections.try_fold(table, |place, section| place.get_mut(section)?.as_table_mut());
    let Some(old) = place.and_then(|place| place.get_mut(last)).filter(|old| !old.is_table()) else {
        return Err(unknown(key, &known));
    };
    let found = printable(&new.as_str().map_or_else(|| new.to_string(), str::to_owned));
    let refuse = |expected| RecipeError::Value { key: key.to_owned(), found, expected };
    *old = typed_as(old, new).map_err(refuse)?;
    Ok(())
}

/// What the user of these overrides should know of the recipe that they made.
pub(crate) fn remark(recipe: &Recipe, overrides: &[String]) -> Option<String> {
    let sets = |key: &str| overrides.iter().any(|text| text.split('=').next().is_some_and(|name| name.trim() == key));
    (sets("network") && !sets("width") && recipe.width != PUBLISHED_WIDTH).then(|| {
        format!(
            "network={} keeps the recipe's width of {} channels; the published networks have width={PUBLISHED_WIDTH}",
            name_of(&recipe.network),
            recipe.width
        )
    })
}

/// `new` as a value for the place of `old`, or what is needed there.
fn typed_as(old: &Value, new: Value) -> Result<Value, String> {
    match (old, new) {
        // `lr=1` means 1.0, and `epochs=1e3` means 1000.
        (Value::Float(_), Value::Integer(whole)) => Ok(Value::Float(whole as f64)),
        (Value::Integer(_), Value::Float(number)) if number.fract() == 0.0 && number.abs() < 1e15 => {
            Ok(Value::Integer(number as i64))
        }
        // A name; that it is a known one is checked where all of the recipe is.
        (Value::String(_), new) if !new.is_str() => Ok(Value::String(new.to_string())),
        (old, new) if old.same_type(&new) => Ok(new),
        (Value::Integer(_), _) => Err("a whole number is needed".to_owned()),
        (Value::Float(_), _) => Err("a number is needed".to_owned()),
        (Value::Boolean(_), _) => Err("true or false is needed".to_owned()),
        (Value::Array(_), _) => Err(format!("a list such as {old} is needed")),
        (old, _) => Err(format!("a value such as {old} is needed")),
    }
}

/// A value as people write it: as in TOML; a number such as `.5`, `1.` or `1e3`, also in a list; else a string, so that
/// `network=resnet10` needs no quotes.
fn value_of(text: &str) -> Value {
    let toml = |text: &str| {
        let mut table = format!("v = {text}").parse::<Table>().ok().filter(|table| table.len() == 1)?;
        table.remove("v")
    };
    let single = |text: &str| {
        let number = || number(text).map(Value::Float);
        toml(text).or_else(number).unwrap_or_else(|| Value::String(text.to_owned()))
    };
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(items) if toml(text).is_none() => Value::Array(items.split(',').map(|item| single(item.trim())).collect()),
        _ => single(text),
    }
}

/// A decimal number in a notation that TOML lacks. The words `inf` and `nan` are none.
fn number(text: &str) -> Option<f64> {
    let of_a_number = |byte: u8| byte.is_ascii_digit() || b"+-._eE".contains(&byte);
    text.bytes().all(of_a_number).then(|| text.replace('_', "").parse().ok()).flatten()
}
