//! `docs/recipe.md` explains every key that a recipe of an embedded suite has, and no other key, with the values of
//! cifar10-lt. The power of the reference runs is measured for every planted defect.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sdclr::recipe::Suite;
use serde_json::Value;

const PAGE: &str = include_str!("../docs/recipe.md");

/// Every key of a resolved recipe, dotted, with its value as text. Both probes have the same keys: `probe.PROTOCOL.lr`.
fn leaves(value: &Value) -> BTreeMap<String, Vec<String>> {
    fn collect(value: &Value, key: &str, found: &mut BTreeMap<String, Vec<String>>) {
        match value {
            Value::Object(keys) => {
                for (name, value) in keys {
                    let dot = if key.is_empty() { "" } else { "." };
                    collect(value, &format!("{key}{dot}{name}"), found);
                }
            }
            value => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let key = key.replace("probe.full.", "probe.PROTOCOL.").replace("probe.few.", "probe.PROTOCOL.");
                found.entry(key).or_default().push(text);
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(value, "", &mut found);
    found
}

/// The recipe of an encoder as the suite has it.
fn recipe(suite: &Suite, encoder: &str) -> BTreeMap<String, Vec<String>> {
    let encoder = suite.encoder(encoder).unwrap();
    let mut keys = suite.recipe(encoder, &[]).unwrap().to_json().unwrap();
    // Records leave it out at its default.
    keys.as_object_mut().unwrap().entry("sampler_world").or_insert(1.into());
    leaves(&keys)
}

/// The rows of the page's tables of keys: the key, and the cell with its value in cifar10-lt.
fn explained() -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    let mut in_table = false;
    for line in PAGE.lines() {
        in_table = line.starts_with("| key |") || in_table && line.starts_with('|');
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let key = cells.get(1).and_then(|cell| cell.strip_prefix('`')?.strip_suffix('`'));
        let (true, Some(key)) = (in_table, key) else { continue };
        assert_eq!(cells.len(), 7, "the row of {key} does not have five cells");
        assert!(cells[2..6].iter().all(|cell| !cell.is_empty()), "the row of {key} has an empty cell");
        assert!(rows.insert(key.to_owned(), cells[3].to_owned()).is_none(), "{key} is explained twice");
    }
    rows
}

#[test]
fn the_page_explains_every_recipe_key_and_no_other() {
    let explained = explained();
    let mut used = BTreeSet::new();
    for name in Suite::names() {
        let suite = Suite::open(name).unwrap();
        for encoder in &suite.encoders {
            for key in recipe(&suite, &encoder.name).into_keys() {
                assert!(
                    explained.contains_key(&key),
                    "docs/recipe.md does not explain {key} ({name}/{})",
                    encoder.name
                );
                used.insert(key);
            }
        }
    }
    for key in explained.keys() {
        assert!(used.contains(key), "docs/recipe.md explains {key}, which no recipe has");
    }
}

#[test]
fn the_page_has_the_values_of_cifar10_lt() {
    let suite = Suite::open("cifar10-lt").unwrap();
    let (simclr, sdclr) = (recipe(&suite, "simclr"), recipe(&suite, "sdclr"));
    for (key, cell) in explained() {
        let mut values: Vec<(&str, &str)> = Vec::new();
        for (method, recipe) in [("", &simclr), ("SDCLR ", &sdclr)] {
            // Keys come in alphabetical order: few before full.
            let probes = recipe.get(&key).into_iter().flatten().rev().map(String::as_str);
            for (protocol, value) in ["", "few-shot "].into_iter().zip(probes) {
                let who = if protocol.is_empty() { method } else { protocol };
                // A value is listed once.
                if values.iter().all(|(_, known)| *known != value) {
                    values.push((who, value));
                }
            }
        }
        let own = !simclr.contains_key(&key);
        let text = |(who, value): &(&str, &str)| format!("{}`{value}`", if own { "" } else { who });
        let expected = values.iter().map(text).collect::<Vec<_>>().join(", ");
        assert_eq!(cell.replace(", ", ","), expected.replace(", ", ","), "the value of {key} in docs/recipe.md");
    }
}

/// What the reference runs catch was measured for every defect that there is to plant.
#[test]
fn every_planted_defect_has_a_measured_power() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read =
        |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let first_line = |path: &Path| read(path).lines().next().unwrap_or_default().to_owned();
    let patches = root.join("tests/defects").read_dir().unwrap().map(|entry| first_line(&entry.unwrap().path()));
    let planted: BTreeSet<String> = patches.chain(["no defect".to_owned()]).collect();
    let power = read(&root.join("reports/gate-cpu/power.csv"));
    let measured: BTreeSet<String> =
        power.lines().skip(1).filter_map(|line| Some(line.split_once(',')?.0.to_owned())).collect();
    assert_eq!(measured, planted);
}
