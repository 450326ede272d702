//! `key=value` onto a recipe's TOML table; dotted keys reach into its sections.

use toml::{Table, Value};

use super::RecipeError;

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

fn unknown(key: &str, known: &[String]) -> RecipeError {
    let near = nearest(key, known.iter().map(String::as_str));
    RecipeError::UnknownKey { key: key.to_owned(), near, known: known.join(", ") }
}

/// The candidate most like `name`, if any is alike at all.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_owned())
}

/// Sets one `key=value`. A value is TOML; what is not TOML is a string, so that `network=resnet10` needs no quotes.
pub(super) fn apply(table: &mut Table, text: &str) -> Result<(), RecipeError> {
    let Some((key, value)) = text.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
        return Err(RecipeError::NotAnOverride { text: text.to_owned() });
    };
    let value = format!("v = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(value.to_owned()));
    set(table, key, value)
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
    *old = match (&*old, new) {
        // `lr=1` means 1.0.
        (Value::Float(_), Value::Integer(whole)) => Value::Float(whole as f64),
        (old, new) if old.type_str() != new.type_str() => {
            let expected = format!("its type is {}", old.type_str());
            let found = new.as_str().map_or_else(|| new.to_string(), str::to_owned);
            return Err(RecipeError::Value { key: key.to_owned(), found, expected });
        }
        (_, new) => new,
    };
    Ok(())
}
