//! Verdicts as a document. In: claims judged. Out: the answer in two sentences, a table with each interval drawn against its
//! margin and a reason for each row; the table for the terminal.

use std::collections::BTreeMap;

use plotters::style::RGBColor;

use super::document::{Block, Document, Section};
use super::summary::{label_of, label_on, probe_label};
use super::table::{Table, interval, signed};
use super::text::{Text, Tone};
use super::{ReportError, draw, markdown};
use crate::paper::{Metric, Row};
use crate::record;
use crate::text::counted;
use crate::verdict::{Outcome, Verdict, Verdicts};

/// Every row of the paper's claims that was run, or with `all` every claim; the intervals drawn where they have a value.
fn table(verdicts: &[&Verdict]) -> Result<Table, ReportError> {
    let header = [
        "claim",
        "ours",
        "n",
        "published",
        "difference",
        "90 % interval",
        "against the margin",
        "margin",
        "tier",
        "verdict",
    ];
    let mut table = Table::new(&header);
    let number = |value: f64| format!("{value:.2}").replace('-', "−");
    let absent = || "–".to_owned();
    let reach = reach(verdicts);
    for verdict in verdicts {
        let drawn = match (verdict.difference, verdict.interval90) {
            (Some(difference), Some(ends)) => {
                let reach = reach.get(&verdict.metric).copied().unwrap_or(1.0);
                let svg = draw::interval(difference, ends, verdict.margin, reach, colour(tone(verdict)))?;
                Text::drawing(svg)
            }
            _ => Text::new(),
        };
        let ours = verdict.ours.as_ref();
        let words = [
            ours.map_or_else(absent, |ours| number(ours.mean)),
            ours.map_or_else(absent, |ours| ours.n.to_string()),
            verdict.theirs.as_ref().map_or_else(absent, |theirs| number(theirs.mean)),
            verdict.difference.map_or_else(absent, signed),
            verdict.interval90.map_or_else(absent, interval),
        ];
        let mut row = vec![Text::code(verdict.id.as_str())];
        row.extend(words.map(Text::from));
        row.push(drawn);
        row.push(verdict.margin.map_or_else(absent, |margin| format!("± {margin}")).into());
        row.push(verdict.tier.map_or_else(absent, |tier| format!("{tier:?}")).into());
        row.push(verdict.outcome_words().into());
        match verdict.outcome {
            Outcome::NotRun => table.row(row),
            _ => {
                let outcome = Text::strong(verdict.outcome_words(), tone(verdict));
                table.row_noted(row, outcome.and(". ").and(verdict.why.as_str()));
            }
        }
    }
    Ok(table)
}

/// How far the drawings of each score reach: its longest interval or margin.
fn reach(verdicts: &[&Verdict]) -> BTreeMap<Metric, f64> {
    let mut reach = BTreeMap::new();
    for verdict in verdicts {
        let ends = verdict.interval90.into_iter().flatten().chain(verdict.margin);
        let most = reach.entry(verdict.metric).or_insert(0.1);
        *most = ends.map(f64::abs).fold(*most, f64::max);
    }
    reach
}

pub(super) fn tone(verdict: &Verdict) -> Tone {
    match verdict.outcome {
        Outcome::Reproduced => Tone::Good,
        Outcome::Better if verdict.better_allowed => Tone::Good,
        Outcome::Better | Outcome::Worse => Tone::Bad,
        Outcome::Inconclusive | Outcome::NotTestable | Outcome::NotApplicable | Outcome::NotRun => Tone::Open,
    }
}

fn colour(tone: Tone) -> RGBColor {
    match tone {
        Tone::Good => RGBColor(0, 158, 115),
        Tone::Bad => RGBColor(213, 94, 0),
        Tone::Neutral | Tone::Open => RGBColor(125, 125, 125),
    }
}

/// The outcomes with their counts, in the order of what matters most.
fn counted_outcomes<'a>(verdicts: impl Iterator<Item = &'a Verdict> + Clone) -> Vec<(usize, Outcome)> {
    use Outcome::{Better, Inconclusive, NotApplicable, NotRun, NotTestable, Reproduced, Worse};
    [Worse, Better, Reproduced, Inconclusive, NotTestable, NotApplicable, NotRun]
        .into_iter()
        .map(|outcome| (verdicts.clone().filter(|verdict| verdict.outcome == outcome).count(), outcome))
        .filter(|(n, _)| *n > 0)
        .collect()
}

/// `3 reproduced, 1 inconclusive`.
fn counts(verdicts: &Verdicts) -> String {
    let words: Vec<String> =
        counted_outcomes(verdicts.claims.iter()).iter().map(|(n, outcome)| format!("{n} {outcome}")).collect();
    format!(
        "{} claims: {}",
        verdicts.claims.len(),
        if words.is_empty() { "none judged".to_owned() } else { words.join(", ") }
    )
}

/// `2 are reproduced and 1 is inconclusive`.
fn outcomes_in_words<'a>(verdicts: impl Iterator<Item = &'a Verdict> + Clone) -> String {
    let clause = |(n, outcome): (usize, Outcome)| {
        let verb = match (outcome, n) {
            (Outcome::NotRun, 1) => "was",
            (Outcome::NotRun, _) => "were",
            (_, 1) => "is",
            _ => "are",
        };
        format!("{n} {verb} {outcome}")
    };
    let mut clauses: Vec<String> = counted_outcomes(verdicts).into_iter().map(clause).collect();
    match clauses.pop() {
        Some(last) if clauses.is_empty() => last,
        Some(last) => format!("{} and {last}", clauses.join(", ")),
        None => "none was judged".to_owned(),
    }
}

fn was_run(verdict: &Verdict) -> bool {
    verdict.outcome != Outcome::NotRun
}

/// The claims that were judged.
pub(super) fn judged(verdicts: &Verdicts) -> Vec<&Verdict> {
    verdicts.claims.iter().filter(|verdict| was_run(verdict)).collect()
}

/// The answer in two sentences.
pub(super) fn answer(verdicts: &Verdicts) -> Text {
    let run = judged(verdicts);
    let all = &verdicts.claims;
    if let Some(first) = run.first()
        && run.iter().all(|verdict| verdict.outcome == Outcome::NotApplicable)
    {
        return Text::strong("No claim applies", Tone::Open).and(format!(". {}", first.why));
    }
    let (words, tone) = match (all.is_empty(), run.is_empty(), verdicts.exit_code()) {
        (true, ..) => return "No claim of the paper is about what was run here.".into(),
        (_, true, _) => {
            return "No claim can be judged: nothing that the claims are about has been run in full.".into();
        }
        (.., 0) => ("The claims hold", Tone::Good),
        (.., 3) => ("Not every claim holds", Tone::Bad),
        _ => ("The question is open", Tone::Open),
    };
    let counts = format!(": of {} about these runs, {}. ", counted(all.len(), "claim"), outcomes_in_words(all.iter()));
    let primary: Vec<&Verdict> = run.iter().copied().filter(|verdict| verdict.primary).collect();
    let second = match primary.as_slice() {
        [] => run.first().map(|verdict| one("The first", verdict)).unwrap_or_default(),
        [only] => one("The primary claim", only),
        several => format!(
            "Of the {} primary claims among them, {}.",
            several.len(),
            outcomes_in_words(several.iter().copied())
        ),
    };
    Text::strong(words, tone).and(counts).and(second)
}

/// A claim in a sentence.
fn one(which: &str, verdict: &Verdict) -> String {
    let numbers = match (verdict.difference, verdict.interval90) {
        (Some(difference), Some(ends)) => {
            format!(": the difference is {} points, its 90 % interval {}", signed(difference), interval(ends))
        }
        (Some(difference), None) => format!(": the difference is {} points", signed(difference)),
        _ => String::new(),
    };
    format!("{which}, about {}, is {}{numbers}.", subject(verdict), verdict.outcome_words())
}

/// `SimCLR on D_b against SimCLR on D_i, few-shot All`.
fn subject(verdict: &Verdict) -> String {
    let setting = |row: &Row| label_on(label_of(&row.method), row.pretrain_split);
    let score = verdict.metric.label();
    let against = verdict.against.as_ref().map(|row| format!(" against {}", setting(row))).unwrap_or_default();
    format!("{}{against}, {} {score}", setting(&verdict.row), probe_label(verdict.row.protocol))
}

/// The claims that were judged as a table with a reason each; empty without claims.
pub(super) fn claims(verdicts: &Verdicts) -> Result<Vec<Block>, ReportError> {
    let run = judged(verdicts);
    if run.is_empty() {
        return Ok(Vec::new());
    }
    let caption = "Ours against the published numbers, in per cent and points. Drawn: the 90 % interval of the difference, a line at \
                   0, and grey the margin within which a number counts as reproduced; one scale a score";
    let hash = Text::from("Claims: sha256 ").and(Text::code(verdicts.claims_sha256.as_str())).and(".");
    Ok(vec![Block::Table(caption.into(), table(&run)?), Block::Paragraph(hash)])
}

/// What the terminal shows.
///
/// # Errors
/// An interval cannot be drawn.
pub fn verdicts_table(verdicts: &Verdicts) -> Result<String, ReportError> {
    let stamp = record::stamp(false, verdicts.unofficial).map(|stamp| format!("({stamp})\n\n")).unwrap_or_default();
    let mut text = format!("{stamp}{}\n", table(&verdicts.claims.iter().collect::<Vec<_>>())?.to_text());
    for verdict in judged(verdicts) {
        text += &format!("{}: {}. {}\n", verdict.id, verdict.outcome_words(), verdict.why);
    }
    Ok(text + &format!("\n{}\n", counts(verdicts)))
}

/// The same as Markdown, with the hash of the claims.
///
/// # Errors
/// An interval cannot be drawn.
pub fn verdicts_markdown(verdicts: &Verdicts) -> Result<String, ReportError> {
    let all = table(&verdicts.claims.iter().collect::<Vec<_>>())?;
    let hash = Text::from("Claims: sha256 ").and(Text::code(verdicts.claims_sha256.as_str())).and(".");
    let blocks = vec![
        Block::Lead(answer(verdicts)),
        Block::Paragraph(format!("{}.", counts(verdicts)).into()),
        Block::Table("Ours against the published numbers, in per cent and points".into(), all),
        Block::Paragraph(hash),
    ];
    let document = Document {
        title: "Verdicts".to_owned(),
        stamp: record::stamp(false, verdicts.unofficial),
        sections: vec![Section { title: String::new(), blocks }],
    };
    Ok(markdown::text(&document))
}
