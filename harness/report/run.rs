//! What was run: the recipes and where they differ, the lists read, the machine, and the command that does it again.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::document::Block;
use super::summary::Setting;
use super::text::{Text, Tone};
use crate::recipe::{DatasetName, Protocol, name_of};
use crate::record::{Environment, Invocation, Job, JobRecord, SuiteRecord};
use crate::text::shell_word;

/// Dotted key to value, of one recipe.
pub(super) type FlatRecipe = BTreeMap<String, String>;

/// The recipe of each trained encoder, in the tables' order, under its label.
pub(super) fn recipes(suite: &SuiteRecord) -> Vec<(String, FlatRecipe)> {
    // Probes may have been run later, with other probe keys, than the pre-training: their recipe counts.
    let headers = suite.probes().map(|probe| &probe.job.header).chain(suite.pretrainings().map(|r| &r.job.header));
    let mut recipes: Vec<(Setting, String, FlatRecipe)> = Vec::new();
    for header in headers.filter(|header| header.pretrain_split.is_some()) {
        let mut setting = Setting::of(header, Protocol::Full);
        setting.pretrain_split = None;
        if recipes.iter().all(|(known, ..)| *known != setting) {
            recipes.push((setting, header.label.clone(), flatten(&header.recipe)));
        }
    }
    recipes.sort_by(|a, b| a.0.cmp(&b.0));
    recipes.into_iter().map(|(_, label, recipe)| (label, recipe)).collect()
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
pub(super) fn environments<'a>(jobs: impl Iterator<Item = &'a Job>) -> Vec<&'a Environment> {
    let mut environments: Vec<&Environment> = Vec::new();
    for session in jobs.flat_map(|job| &job.sessions) {
        if !environments.contains(&&session.environment) {
            environments.push(&session.environment);
        }
    }
    environments
}

/// Every finished job.
pub(super) fn jobs(suite: &SuiteRecord) -> impl Iterator<Item = &Job> {
    suite.results.iter().map(|record| record.job())
}

/// A machine and build in words.
pub(super) fn environment_words(environment: &Environment) -> Text {
    let threads = crate::text::counted(environment.threads, "thread");
    let start = format!(
        "{}, {threads}; libtorch {}, sdclr {}, commit ",
        environment.device, environment.libtorch, environment.sdclr
    );
    let commit = match &environment.git_commit {
        Some(commit) => Text::code(commit.as_str()),
        None => "unknown".into(),
    };
    Text::from(start).and(commit).and(".")
}

/// Devices and threads, each pair once: what the last digits of a result depend on.
pub(super) fn machines(suite: &SuiteRecord) -> String {
    let words = |environment: &&Environment| match environment.threads {
        1 => format!("{}, 1 thread a job", environment.device),
        threads => format!("{}, {threads} threads a job", environment.device),
    };
    let machines: BTreeSet<String> = environments(jobs(suite)).iter().map(words).collect();
    machines.into_iter().collect::<Vec<_>>().join("; ")
}

/// sha256 of the decoded images and labels, and of each list, by name; a name twice where jobs read different bytes.
pub(super) fn inputs(suite: &SuiteRecord) -> BTreeSet<(&str, &str)> {
    let headers = || suite.results.iter().map(|record| record.header());
    let lists = headers().flat_map(|header| &header.splits_sha256).map(|(name, hash)| (name.as_str(), hash.as_str()));
    headers().map(|header| ("images and labels", header.data_sha256.as_str())).chain(lists).collect()
}

/// A warning about lists and images that differ from the published ones.
pub(super) fn unofficial(others: &BTreeSet<&str>) -> Option<Block> {
    let mut names = others.iter().map(|name| Text::code(*name));
    let first = Text::strong("Not the published inputs:", Tone::Bad).and(" ").and(names.next()?);
    let names = names.fold(first, |text, name| text.and(", ").and(name));
    Some(Block::Note(names.and(". The paper's numbers are about the published ones.")))
}

/// The splits that have any result.
pub(super) fn splits(suite: &SuiteRecord) -> BTreeSet<usize> {
    suite.results.iter().map(|record| record.header().split).collect()
}

/// `splits 1, 2, 3`.
pub(super) fn splits_words(suite: &SuiteRecord) -> String {
    let splits: Vec<String> = splits(suite).iter().map(ToString::to_string).collect();
    match splits.len() {
        0 => "no split".to_owned(),
        1 => format!("split {}", splits[0]),
        _ => format!("splits {}", splits.join(", ")),
    }
}

/// What a command needs for images that neither this program nor the suite's file brings, if any job read such.
pub(super) fn data_option(suite: &SuiteRecord) -> &'static [&'static str] {
    let dataset = |recipe: &Value| DatasetName::deserialize(&recipe["dataset"]).ok();
    let found = |name: DatasetName| name.is_embedded() || name.is_own();
    let found = |record: &JobRecord| dataset(&record.header().recipe).is_some_and(found);
    if suite.results.iter().all(found) { &[] } else { &["--data DIR"] }
}

/// `invocation` for the runs of one setting alone.
pub(super) fn only(invocation: &Invocation, setting: &Setting) -> Invocation {
    let list = setting.pretrain_split.map(|list| format!("-{}", name_of(&list))).unwrap_or_default();
    match invocation.encoders {
        // Encoders that were trained elsewhere are named by their own options.
        Some([_, ref name]) if *name == setting.encoder => invocation.clone(),
        _ => Invocation {
            encoders: None,
            methods: vec![format!("{}{list}", setting.encoder)],
            pretrain_splits: Vec::new(),
            ..invocation.clone()
        },
    }
}

/// The command that was given, from the root of a checkout; `more` follows the suite's name.
pub(super) fn command(invocation: &Invocation, more: &[&str]) -> String {
    let Invocation {
        suite,
        encoders,
        methods,
        splits,
        pretrain_splits,
        overrides,
        seeds,
        probe_seeds,
        limit_images,
        limit_epochs,
    } = invocation;
    let mut words = vec![format!("ci/repro {}", shell_word(suite))];
    words.extend(more.iter().map(|word| (*word).to_owned()));
    let mut option = |name: &str, value: Option<String>| words.extend(value.map(|value| format!("--{name} {value}")));
    let list = |names: &[String]| (!names.is_empty()).then(|| names.join(","));
    let [folder, name] = encoders.clone().map_or([None, None], |pair| pair.map(Some));
    option("encoders", folder.as_deref().map(shell_word));
    option("name", name);
    option("methods", list(methods));
    option("splits", (!splits.is_empty()).then(|| ranges(&splits.iter().copied().collect())));
    option("pretrain-splits", list(&pretrain_splits.iter().map(name_of).collect::<Vec<_>>()));
    // Always said: without it the suite's own number is taken.
    let trains = encoders.is_none() && !more.iter().any(|word| word.starts_with("--from-published"));
    option("seeds", trains.then(|| seeds.to_string()));
    option("probe-seeds", (*probe_seeds > 1).then(|| probe_seeds.to_string()));
    option("limit-images", limit_images.map(|limit| limit.to_string()));
    option("limit-epochs", limit_epochs.map(|limit| limit.to_string()));
    for text in overrides {
        option("set", Some(shell_word(text)));
    }
    words.join(" ")
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
