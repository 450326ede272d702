//! The head of the report: the verdict in two sentences, what was run, and the claims one by one.

use crate::record::SMOKE_STAMP;
use crate::report::document::{Block, Section};
use crate::report::summary::Summary;
use crate::report::table::one_line;
use crate::report::text::{Text, Tone};
use crate::report::{ReportError, run, verdicts};
use crate::text::counted;

pub(super) fn answer(summary: &Summary) -> Result<Section, ReportError> {
    let suite = summary.suite;
    let mut blocks = Vec::new();
    if suite.smoke {
        let stamp = format!("{}{}.", SMOKE_STAMP[..1].to_uppercase(), &SMOKE_STAMP[1..]);
        let rest = " The images or the epochs were limited: this shows that everything runs, and nothing else.";
        blocks.push(Block::Note(Text::strong(stamp, Tone::Bad).and(rest)));
    } else {
        blocks.push(Block::Lead(match summary.verdicts {
            Ok(judged) => verdicts::answer(judged),
            Err(reason) => Text::strong("No verdict", Tone::Open).and(format!(": {}.", one_line(reason))),
        }));
    }
    blocks.extend(run::unofficial(&suite.unofficial()));
    blocks.push(Block::Paragraph(what_was_run(summary).into()));
    if !suite.failures.is_empty() {
        blocks.push(Block::Note("These jobs have not finished; what depends on them is missing below.".into()));
        let point = |failure: &crate::record::Failure| {
            Text::code(failure.job.as_str()).and(format!(": {}", one_line(&failure.error)))
        };
        blocks.push(Block::List(suite.failures.iter().map(point).collect()));
    }
    Ok(Section::new("", blocks))
}

fn what_was_run(summary: &Summary) -> String {
    let suite = summary.suite;
    let methods: Vec<String> = run::recipes(suite).into_iter().map(|(label, _)| label).collect();
    let [_, seeds, probes] = summary.design();
    let seeds = if seeds > 1 { format!(", up to {} each", counted(seeds, "seed")) } else { String::new() };
    let probes = if probes > 1 { format!(", up to {probes} classifiers an encoder") } else { String::new() };
    format!(
        "{} pre-trained without labels and judged by a linear probe: {} of {} jobs finished, on {}{seeds}{probes}.",
        if methods.is_empty() { "No method".to_owned() } else { methods.join(" and ") },
        suite.results.len(),
        suite.results.len() + suite.failures.len(),
        run::splits_words(suite),
    )
}

pub(super) fn claims(summary: &Summary) -> Result<Section, ReportError> {
    match summary.verdicts {
        Ok(judged) if !summary.suite.smoke => Ok(Section::new("Claims", verdicts::claims(judged)?)),
        _ => super::nothing(),
    }
}
