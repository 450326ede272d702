//! What was run: the recipes and where they differ, the lists read, the machine, and the command that does it again.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::summary::{RANDOM, Setting};
use crate::recipe::{PretrainSplit, Protocol, Recipe, name_of};
use crate::record::{Environment, JobResult, SuiteRecord};

/// Path of the job's record, relative to the report.
pub(super) fn source(job: &JobResult) -> String {
    format!("{}/result.json", job.header.job)
}

/// Dotted key to value, of one recipe.
pub(super) type FlatRecipe = BTreeMap<String, String>;

/// The recipe of each method, in the tables' order. Within one suite a method has one recipe; the random encoder has that
/// of the encoder left untrained.
pub(super) fn recipes(suite: &SuiteRecord) -> Vec<(&str, FlatRecipe)> {
    // Probes come later than the pre-training that they may share with earlier probe settings: their recipe counts.
    let (probes, others): (Vec<_>, Vec<_>) = suite.results.iter().partition(|job| job.header.protocol.is_some());
    let trained = probes.into_iter().chain(others).filter(|job| job.header.method != RANDOM);
    let mut recipes: Vec<(&str, FlatRecipe)> = Vec::new();
    for job in trained {
        if recipes.iter().all(|(method, _)| *method != job.header.method) {
            recipes.push((&job.header.method, flatten(&job.header.recipe)));
        }
    }
    recipes.sort_by_key(|(method, _)| Setting::new(method, None, Protocol::Full));
    recipes
}

/// The recipe in `recipe` with dotted keys.
pub(super) fn flatten(recipe: &Value) -> FlatRecipe {
    fn walk(value: &Value, prefix: &str, into: &mut FlatRecipe) {
        match value {
            Value::Object(map) => {
                for (key, inner) in map {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    walk(inner, &format!("{prefix}{dot}{key}"), into);
                }
            }
            Value::String(text) => _ = into.insert(prefix.to_owned(), text.clone()),
            other => _ = into.insert(prefix.to_owned(), other.to_string()),
        }
    }
    let mut flat = FlatRecipe::new();
    walk(recipe, "", &mut flat);
    flat
}

/// Every machine and build that took part; more than one where a suite was continued elsewhere.
pub(super) fn environments(suite: &SuiteRecord) -> Vec<&Environment> {
    let mut environments: Vec<&Environment> = Vec::new();
    for job in &suite.results {
        if !environments.contains(&&job.header.environment) {
            environments.push(&job.header.environment);
        }
    }
    environments
}

/// sha256 of the decoded images and labels, and of each list, by name; a name twice where jobs read different bytes.
pub(super) fn inputs(suite: &SuiteRecord) -> BTreeSet<(&str, &str)> {
    let headers = || suite.results.iter().map(|job| &job.header);
    let lists = headers().flat_map(|header| &header.splits_sha256).map(|(name, hash)| (name.as_str(), hash.as_str()));
    headers().map(|header| ("images and labels", header.data_sha256.as_str())).chain(lists).collect()
}

/// The splits that have any result.
pub(super) fn splits(suite: &SuiteRecord) -> BTreeSet<usize> {
    suite.results.iter().map(|job| job.header.split).collect()
}

/// The command that makes this report again, from the root of a checkout.
pub(super) fn command(suite: &SuiteRecord) -> String {
    let mut words = vec![format!("ci/repro {}", suite.suite)];
    if suite.suite != "digits-lt" {
        words.push("--data DIR".to_owned());
    }
    let recipes = recipes(suite);
    let mut methods: Vec<&str> = recipes.iter().map(|(method, _)| *method).collect();
    if suite.results.iter().any(|job| job.header.method == RANDOM) {
        methods.insert(0, RANDOM);
    }
    words.push(format!("--methods {}", methods.join(",")));
    words.push(format!("--splits {}", ranges(&splits(suite))));
    words.extend(pretrain_splits(suite));
    let limit = |name: &str, of: fn(&JobResult) -> Option<usize>| {
        suite.results.iter().find_map(of).map(|limit| format!("--limit-{name} {limit}"))
    };
    words.extend(limit("images", |job| job.header.limit_images));
    words.extend(limit("epochs", |job| job.header.limit_epochs));
    words.extend(overrides(&suite.suite, &recipes));
    words.join(" ")
}

/// `--pretrain-splits ...` where it is not the suite's own choice: both lists, of which digits-lt leaves SDCLR on `D_b` out.
fn pretrain_splits(suite: &SuiteRecord) -> Option<String> {
    let headers = || suite.results.iter().map(|job| &job.header);
    let lists: BTreeSet<PretrainSplit> = headers().filter_map(|header| header.pretrain_split).collect();
    let beyond = headers().any(|header| header.method == "sdclr" && header.pretrain_split == Some(PretrainSplit::D_b));
    let chosen = lists.len() == 1 || (suite.suite == "digits-lt" && beyond);
    let names: Vec<String> = lists.iter().map(name_of).collect();
    chosen.then(|| format!("--pretrain-splits {}", names.join(",")))
}

/// `1-3`, `2`, or `1,4-5`.
pub(super) fn ranges(splits: &BTreeSet<usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &split in splits {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == split => *last = split,
            _ => ranges.push((split, split)),
        }
    }
    let words: Vec<String> =
        ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    words.join(",")
}

/// `--set key=value` for every key in which a recipe differs from the embedded one of its name.
pub(super) fn overrides(suite: &str, recipes: &[(&str, FlatRecipe)]) -> BTreeSet<String> {
    let mut overrides = BTreeSet::new();
    for (method, recipe) in recipes {
        let Ok(embedded) = Recipe::resolve(&format!("{suite}/{method}"), &[]) else { continue };
        let embedded = flatten(&embedded.to_json());
        let changed = recipe.iter().filter(|(key, value)| embedded.get(*key) != Some(value));
        overrides.extend(changed.map(|(key, value)| format!("--set {key}={value}")));
    }
    overrides
}
