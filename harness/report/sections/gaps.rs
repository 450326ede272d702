//! What was not run or not measured.

use std::collections::BTreeSet;

use crate::record::{JobHeader, SMOKE_STAMP};
use crate::report::ReportError;
use crate::report::document::{Block, Section};
use crate::report::summary::{RunKey, Summary, label_on, run_key};
use crate::report::text::Text;
use crate::text::counted;
use crate::verdict::Outcome;

pub(super) fn section(summary: &Summary) -> Result<Section, ReportError> {
    let mut points: Vec<Text> = Vec::new();
    if summary.suite.smoke {
        points.push(format!("Anything at full scale: {SMOKE_STAMP}.").into());
    }
    let [_, seeds, probes] = summary.design();
    if seeds <= 1 {
        points.push("Variation over seeds: one pre-training seed a split.".into());
    }
    if probes > 1 {
        points.push(
            format!(
                "The paper's protocol in one point: it trained one classifier an encoder, here there are {probes}."
            )
            .into(),
        );
    }
    points.push("The pruned branch: probes read the dense one.".into());
    points.push(
        "Other hardware and other numbers of threads: results there differ in the last bits, and after many steps in accuracy."
            .into(),
    );
    points.extend(missing_runs(summary).into_iter().chain(not_probed(summary)).map(Text::from));
    let mut blocks = vec![Block::List(points)];
    blocks.extend(claims_not_run(summary));
    Ok(Section::new("What was not run", blocks))
}

/// Runs that one setting has and another lacks.
fn missing_runs(summary: &Summary) -> Vec<String> {
    let all: BTreeSet<RunKey> = summary.cells.iter().flat_map(|cell| cell.runs.keys().copied()).collect();
    let mut points = Vec::new();
    for cell in &summary.cells {
        let missing: Vec<String> =
            all.iter().filter(|run| !cell.runs.contains_key(run)).map(|run| words(*run)).collect();
        if !missing.is_empty() {
            let [_, _, probe] = cell.setting.words();
            points.push(format!("{}, {probe}: no result on split {}.", cell.setting.legend(), missing.join("; ")));
        }
    }
    points
}

/// `2`, or `2, seed 3, probe seed 2`: which run it is.
fn words((split, seed, probe_seed): RunKey) -> String {
    let part = |name: &str, seed: usize| if seed > 1 { format!(", {name} {seed}") } else { String::new() };
    format!("{split}{}{}", part("seed", seed), part("probe seed", probe_seed))
}

fn not_probed(summary: &Summary) -> Vec<String> {
    let probed = |header: &JobHeader| {
        let (split, seed, _) = run_key(header);
        summary.cells.iter().any(|cell| {
            cell.setting.encoder == header.encoder
                && cell.setting.pretrain_split == header.pretrain_split
                && cell.runs.keys().any(|key| (key.0, key.1) == (split, seed))
        })
    };
    summary
        .pretrainings
        .iter()
        .map(|record| &record.job.header)
        .filter(|header| !probed(header))
        .map(|header| {
            let name = label_on(&header.label, header.pretrain_split);
            format!("{name}, split {}: pre-trained, but not probed.", words(run_key(header)))
        })
        .collect()
}

/// The claims about the suite of which no row was run.
fn claims_not_run(summary: &Summary) -> Option<Block> {
    let claims = &summary.verdicts.ok()?.claims;
    let ids: Vec<Text> = claims
        .iter()
        .filter(|verdict| verdict.outcome == Outcome::NotRun)
        .map(|verdict| Text::code(verdict.id.as_str()).and(": ").and(verdict.why.as_str()))
        .collect();
    super::fold(
        &format!("{} not run", counted(ids.len(), "claim")),
        if ids.is_empty() { Vec::new() } else { vec![Block::List(ids)] },
    )
}
