//! `key=value` onto a recipe's TOML table; dotted keys reach into its sections.

use toml::{Table, Value};

use super::{EMBEDDED, RecipeError};

/// Every key a recipe has, dotted: those of the embedded recipes, which leave none out.
fn known_keys() -> Vec<String> {
    let table: Table = EMBEDDED.first().and_then(|(_, text)| text.parse().ok()).unwrap_or_default();
    let mut keys = Vec::new();
    collect(&table, "", &mut keys);
    keys
}

fn collect(table: &Table, prefix: &str, keys: &mut Vec<String>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => collect(inner, &format!("{prefix}{key}."), keys),
            _ => keys.push(format!("{prefix}{key}")),
        }
    }
}

/// Refuses a table with a key that recipes do not have, naming the nearest that they do.
pub(super) fn check_keys(table: &Table) -> Result<(), RecipeError> {
    let mut found = Vec::new();
    collect(table, "", &mut found);
    let known = known_keys();
    match found.into_iter().find(|key| !known.contains(key)) {
        Some(key) => Err(unknown(&key, &known)),
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
    let known = known_keys();
    if !known.iter().any(|known| known == key) {
        return Err(unknown(key, &known));
    }
    let (sections, last) = key.rsplit_once('.').map_or((None, key), |(sections, last)| (Some(sections), last));
    let mut place = table;
    for section in sections.into_iter().flat_map(|sections| sections.split('.')) {
        place = match place.entry(section).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => inner,
            other => {
                let (found, expected) = (other.to_string(), "a section is needed".to_owned());
                return Err(RecipeError::Value { key: section.to_owned(), found, expected });
            }
        };
    }
    let new = format!("v = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(value.to_owned()));
    let new = match (place.get(last), new) {
        // `lr=1` means 1.0.
        (Some(Value::Float(_)), Value::Integer(whole)) => Value::Float(whole as f64),
        (Some(old), new) if old.type_str() != new.type_str() => {
            let expected = format!("its type is {}", old.type_str());
            return Err(RecipeError::Value { key: key.to_owned(), found: value.to_owned(), expected });
        }
        (_, new) => new,
    };
    place.insert(last.to_owned(), new);
    Ok(())
}
