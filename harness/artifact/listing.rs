//! What there is to fetch, as a table. In: artefacts, the cache, the pins. Out: text in columns.

use super::cache::{Cache, State};
use super::human;
use super::pins::Pins;
use super::registry::{Artifact, Source};
use crate::text::{printable, shown};

/// Name, size, state and licence of each, in columns; then the groups.
pub fn table(chosen: &[&Artifact], cache: &Cache, pins: &Pins) -> String {
    let row = |artifact: &&Artifact| {
        [
            artifact.name.clone(),
            size(artifact),
            state(artifact, cache, pins),
            printable(&artifact.licence),
            printable(&artifact.about),
        ]
    };
    let head = ["name", "size", "state", "licence or terms", "what it is"].map(str::to_owned);
    let rows: Vec<[String; 5]> = [head].into_iter().chain(chosen.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [name, size, state, licence] = [0, 1, 2, 3].map(width);
    let mut text = String::new();
    for row in &rows {
        let [n, b, s, l, what] = row;
        text += &format!("{n:name$}  {b:>size$}  {s:state$}  {l:licence$}  {what}\n");
    }
    let mut groups: Vec<&str> = chosen.iter().flat_map(|artifact| &artifact.groups).map(String::as_str).collect();
    groups.sort_unstable();
    groups.dedup();
    if !groups.is_empty() {
        text += &format!("\ngroups: {}\ncache: {}\n", groups.join(", "), shown(&cache.root));
    }
    text
}

/// The version of what `--list --json` prints.
const FORMAT: u32 = 1;

/// What [`table`] shows, for programs. `bytes` are those of the known files of an artefact, null where none is known.
pub fn json(chosen: &[&Artifact], cache: &Cache, pins: &Pins) -> serde_json::Value {
    let entry = |artifact: &&Artifact| {
        let known: Vec<u64> = artifact.files().iter().filter_map(|file| file.size).collect();
        let (state, detail) = match cache.state(artifact, pins) {
            State::Missing => ("missing", None),
            State::Partial(what) => ("partial", Some(what)),
            State::Present => ("present", None),
        };
        serde_json::json!({
            "name": artifact.name,
            "about": artifact.about,
            "licence": artifact.licence,
            "groups": artifact.groups,
            "suites": artifact.suites,
            "bytes": (!known.is_empty()).then(|| known.iter().sum::<u64>()),
            "state": state,
            "detail": detail,
            "pinned": pins.has(&artifact.name),
            "brought": matches!(artifact.source, Source::Brought(_)),
        })
    };
    let artifacts: Vec<_> = chosen.iter().map(entry).collect();
    serde_json::json!({ "format": FORMAT, "cache": cache.root, "artifacts": artifacts })
}

/// Bytes to download, as far as they are known.
fn size(artifact: &Artifact) -> String {
    let files = artifact.files();
    let known: Vec<u64> = files.iter().filter_map(|file| file.size).collect();
    match known.len() {
        0 => "unknown".to_owned(),
        count if count == files.len() => human(known.iter().sum()),
        _ => format!("over {}", human(known.iter().sum())),
    }
}

fn state(artifact: &Artifact, cache: &Cache, pins: &Pins) -> String {
    let state = match cache.state(artifact, pins) {
        State::Missing if matches!(artifact.source, Source::Brought(_)) => "to be brought".to_owned(),
        State::Missing => "missing".to_owned(),
        State::Partial(what) => format!("partial ({what})"),
        State::Present => "present".to_owned(),
    };
    if pins.has(&artifact.name) { format!("{state}, pinned") } else { state }
}
