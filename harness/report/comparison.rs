//! Two sets of records side by side. In: both, and their scores compared (`verdict::compare`). Out: a document with every score
//! of every row and what else differs between the sets: recipes, data, machines; and the scores as JSON and CSV.

use std::collections::{BTreeMap, BTreeSet};

use plotters::style::RGBColor;
use serde::Serialize;

use super::document::{Block, Document, Section};
use super::run::{self, FlatRecipe, flatten};
use super::summary::{label_of, label_on, probe_label};
use super::table::{Table, interval, signed};
use super::text::{Text, Tone, marked};
use super::{OutputFile, ReportError, csv, draw};
use crate::recipe::{PretrainSplit, Protocol, name_of};
use crate::record::{self, JobHeader, JobRecord, SuiteRecord};
use crate::text::counted;
use crate::verdict::{Agreement, Comparison as Score, Measure, Quantity};

/// What is set side by side.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// How the two are called: the folders as they were named.
    pub names: &'a [String; 2],
    pub sides: [&'a SuiteRecord; 2],
    pub scores: &'a [Score],
    /// The chance of any false alarm that the intervals of `scores` were made for.
    pub rate: f64,
}

impl Comparison<'_> {
    /// That of everything made of it. A smoke run has no score that is compared, so nothing here is of one.
    pub fn stamp(&self) -> Option<String> {
        record::stamp(false, self.sides.iter().any(|side| !side.unofficial().is_empty()))
    }
}

pub(super) fn document(comparison: &Comparison) -> Result<Document, ReportError> {
    let sections = vec![
        Section::new("", head(comparison)),
        Section::new("Scores", scores(comparison)?),
        Section::new("What else differs", differences(comparison)),
        Section::new("What was run", machines(comparison)),
    ];
    Ok(Document { title: "Two sets of records, side by side".to_owned(), stamp: comparison.stamp(), sections })
}

fn head(comparison: &Comparison) -> Vec<Block> {
    let [a, b] = comparison.names;
    let tested = comparison.scores.iter().filter(|score| score.agreement != Agreement::NotTestable).count();
    let different = comparison.scores.iter().filter(|score| score.agreement == Agreement::Different).count();
    let answer = match (tested, different) {
        (0, _) => Text::strong("Nothing can be compared", Tone::Open)
            .and(": no row has runs in both sets that show their noise, or the runs are smoke runs."),
        (_, 0) => Text::strong("No score differs", Tone::Good).and(format!(
            ": of {} compared none shows a difference at a false-alarm rate of {} for all together, which is no proof that \
             there is none.",
            counted(tested, "score"),
            comparison.rate
        )),
        _ => Text::strong(format!("{} of {} differ", different, counted(tested, "score")), Tone::Bad)
            .and(format!(", at a false-alarm rate of {} for all together.", comparison.rate)),
    };
    let names = vec![
        Text::strong("A", Tone::Neutral).and(": ").and(Text::code(a.as_str())).and(runs_of(comparison.sides[0])),
        Text::strong("B", Tone::Neutral).and(": ").and(Text::code(b.as_str())).and(runs_of(comparison.sides[1])),
    ];
    let statistics = marked(
        "A difference is A minus B, over the splits that both sets have; n counts the independent runs of A and B: an encoder that \
         stands on several splits, as an untrained one does, counts once, with its mean. Where a set has several seeds, the \
         training noise is taken from within its splits; else, or with the same encoders in both, the difference is paired. A score counts as different where the interval at the \
         corrected level (Bonferroni, over all scores compared) leaves 0 out; the 90 % interval is shown for reading.",
    );
    let same = Block::Paragraph(same_to_the_bit(comparison.sides).into());
    vec![Block::Lead(answer), Block::List(names), same, Block::Paragraph(statistics)]
}

/// How many of the encoders that both sets trained by one recipe have the same weights.
fn same_to_the_bit(sides: [&SuiteRecord; 2]) -> String {
    let [a, b] = sides.map(|side| {
        let trained = side.results.iter().filter(|record| matches!(record, JobRecord::Pretrain(_)));
        let known =
            trained.map(|record| ((&record.header().job, &record.header().recipe_hash), &record.job().state_sha256));
        known.collect::<BTreeMap<_, _>>()
    });
    let both: Vec<bool> = a.iter().filter_map(|(job, state)| Some(b.get(job)? == state)).collect();
    let same = both.iter().filter(|same| **same).count();
    match both.len() {
        0 => "No encoder was trained by the same recipe, seed and split in both.".to_owned(),
        all => format!(
            "Of {} trained by the same recipe, seed and split in both, {same} have the same weights to the bit.",
            counted(all, "encoder")
        ),
    }
}

fn runs_of(record: &SuiteRecord) -> String {
    let smoke = if record.smoke { ", a smoke run, which is not compared" } else { "" };
    let probes = counted(record.probes().count(), "probe");
    format!(" ({}, {probes} on {}{smoke})", record.suite, run::splits_words(record))
}

/// What a measure is called: the probe and its score.
fn labels(measure: Measure) -> [&'static str; 2] {
    match measure {
        Measure::Loss => ["pre-training", "loss"],
        Measure::Overlap => ["pre-training", "mask overlap"],
        Measure::Score(protocol, metric) => [probe_label(protocol), metric.label()],
    }
}

/// Every quantity that both sets have.
fn table(scores: &[Score]) -> Result<Table, ReportError> {
    let shown: Vec<&Score> = scores.iter().filter(|score| score.difference.is_some()).collect();
    let mut reach: BTreeMap<&str, f64> = BTreeMap::new();
    for score in &shown {
        let most = reach.entry(labels(score.quantity.measure)[1]).or_insert(0.01);
        *most = score.interval90.into_iter().flatten().chain(score.difference).map(f64::abs).fold(*most, f64::max);
    }
    let header = ["row", "probe", "score", "n", "A", "B", "A − B", "90 % interval", "drawn", "p", "result"];
    let mut table = Table::new(&header);
    let absent = || "–".to_owned();
    let number = |value: Option<f64>| value.map_or_else(absent, |value| format!("{value:.2}"));
    for score in &shown {
        let Quantity { method, pretrain_split, measure, .. } = &score.quantity;
        let [probe, measured] = labels(*measure);
        let drawn = match (score.difference, score.interval90) {
            (Some(difference), Some(ends)) => {
                let colour = match score.agreement {
                    Agreement::Different => RGBColor(213, 94, 0),
                    _ => RGBColor(125, 125, 125),
                };
                let reach = reach.get(measured).copied().unwrap_or(1.0);
                Text::drawing(draw::interval(difference, ends, None, reach, colour)?)
            }
            _ => Text::new(),
        };
        let result = match score.agreement {
            Agreement::Different => Text::strong(words(score.agreement), Tone::Bad),
            _ => words(score.agreement).into(),
        };
        let mut row = vec![Text::from(label_on(label_of(method), *pretrain_split)), probe.into(), measured.into()];
        row.push(score.runs.map_or_else(absent, |[a, b]| format!("{a}, {b}")).into());
        row.extend([number(score.left), number(score.right)].map(Text::from));
        row.push(score.difference.map_or_else(absent, signed).into());
        row.push(score.interval90.map_or_else(absent, interval).into());
        row.push(drawn);
        row.push(score.p_value.map_or_else(absent, |p| format!("{p:.4}")).into());
        row.push(result);
        table.row(row);
    }
    Ok(table)
}

/// What the terminal shows: every quantity that both sets have.
///
/// # Errors
/// An interval cannot be drawn.
pub fn comparison_table(scores: &[Score]) -> Result<String, ReportError> {
    Ok(table(scores)?.to_text())
}

fn scores(comparison: &Comparison) -> Result<Vec<Block>, ReportError> {
    let table = table(comparison.scores)?;
    let alone: BTreeSet<String> = comparison
        .scores
        .iter()
        .filter(|score| score.agreement == Agreement::NotTestable)
        .map(|score| format!("{}: {}.", score.quantity, score.why))
        .collect();
    let mut blocks = Vec::new();
    if !table.is_empty() {
        blocks.push(Block::Table(
            "Test accuracy and overlap of masks in per cent, differences in points; for Std, lower is better balanced"
                .into(),
            table,
        ));
    }
    if !alone.is_empty() {
        blocks.push(Block::Paragraph("Rows that are not compared:".into()));
        blocks.push(Block::List(alone.into_iter().map(Text::from).collect()));
    }
    if blocks.is_empty() {
        blocks.push(Block::Paragraph("Neither set has a score that can be compared.".into()));
    }
    Ok(blocks)
}

fn words(agreement: Agreement) -> &'static str {
    match agreement {
        Agreement::Different => "different",
        Agreement::NoDifference => "no difference shows",
        Agreement::NotTestable => "not testable",
    }
}

impl Comparison<'_> {
    /// Whether recipes or data differ, seeds aside.
    pub fn settings_differ(&self) -> bool {
        !settings(self).is_empty()
    }
}

fn differences(comparison: &Comparison) -> Vec<Block> {
    let table = settings(comparison);
    match table.is_empty() {
        true => vec![Block::Paragraph("Recipes and data are the same in both.".into())],
        false => vec![Block::Table("Keys of recipes and hashes of data that are not the same in both".into(), table)],
    }
}

/// Keys of the recipes, and hashes of what was read, where the sets differ.
fn settings(comparison: &Comparison) -> Table {
    let mut table = Table::new(&["of", "key", "A", "B"]);
    let [a, b] = comparison.sides.map(recipes);
    let encoders: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let cell = |value: Option<&String>| value.cloned().unwrap_or_else(|| "–".to_owned());
    for encoder in encoders {
        let (Some(one), Some(other)) = (a.get(encoder), b.get(encoder)) else {
            let has =
                |recipes: &BTreeMap<String, FlatRecipe>| if recipes.contains_key(encoder) { "run" } else { "–" };
            table.row(vec![encoder.clone(), "the encoder".to_owned(), has(&a).to_owned(), has(&b).to_owned()]);
            continue;
        };
        for key in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
            if one.get(key) != other.get(key) {
                table.row(vec![encoder.clone(), key.clone(), cell(one.get(key)), cell(other.get(key))]);
            }
        }
    }
    let [a, b] = comparison.sides.map(inputs);
    for name in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
        // A list that one set did not read is no difference of data.
        if let (Some(one), Some(other)) = (a.get(name), b.get(name))
            && one != other
        {
            table.row(vec!["data".to_owned(), name.clone(), one.clone(), other.clone()]);
        }
    }
    table
}

/// What the jobs of each encoder read of its recipe, the seeds aside: of the probes' keys each probe its own.
fn recipes(record: &SuiteRecord) -> BTreeMap<String, FlatRecipe> {
    let mut recipes: BTreeMap<String, FlatRecipe> = BTreeMap::new();
    for job in run::jobs(record) {
        let JobHeader { encoder, protocol, recipe, limit_images, limit_epochs, .. } = &job.header;
        let own = protocol.map(|protocol| format!("probe.{}.", name_of(&protocol)));
        let read = |key: &str| !key.starts_with("probe.") || own.as_ref().is_some_and(|own| key.starts_with(own));
        let mut flat = flatten(recipe);
        flat.retain(|key, _| key != "seed" && !key.ends_with(".seed") && read(key));
        let limits = [("limit_images", limit_images), ("limit_epochs", limit_epochs)];
        flat.extend(limits.iter().filter_map(|(key, limit)| Some(((*key).to_owned(), limit.as_ref()?.to_string()))));
        recipes.entry(encoder.clone()).or_default().extend(flat);
    }
    recipes
}

/// The hashes of what was read under each name, shortened.
fn inputs(record: &SuiteRecord) -> BTreeMap<String, String> {
    let mut inputs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, hash) in run::inputs(record) {
        inputs.entry(name.to_owned()).or_default().push(hash.chars().take(16).collect::<String>() + "…");
    }
    inputs.into_iter().map(|(name, hashes)| (name, hashes.join(", "))).collect()
}

fn machines(comparison: &Comparison) -> Vec<Block> {
    let mut points = Vec::new();
    for (side, record) in ["A", "B"].into_iter().zip(comparison.sides) {
        let command = run::command(&record.invocation, run::data_option(record));
        points.push(Text::strong(side, Tone::Neutral).and(": ").and(Text::code(command)));
        for environment in run::environments(run::jobs(record)) {
            points.push(Text::strong(side, Tone::Neutral).and(": ").and(run::environment_words(environment)));
        }
    }
    vec![Block::List(points)]
}

/// Raised when a key changes its meaning.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Json<'a> {
    format: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stamp: Option<String>,
    names: &'a [String; 2],
    false_alarm_rate: f64,
    scores: Vec<JsonScore<'a>>,
}

#[derive(Serialize)]
struct JsonScore<'a> {
    suite: &'a str,
    /// Null for what pre-training shows by itself.
    protocol: Option<Protocol>,
    method: &'a str,
    pretrain_split: Option<PretrainSplit>,
    metric: String,
    /// Independent runs of a and b.
    n: Option<[usize; 2]>,
    a: Option<f64>,
    b: Option<f64>,
    difference: Option<f64>,
    interval90: Option<[f64; 2]>,
    p_value: Option<f64>,
    result: &'static str,
    why: &'a str,
}

/// Probe and score as other programs read them.
fn keys(measure: Measure) -> (Option<Protocol>, String) {
    match measure {
        Measure::Loss => (None, "loss".to_owned()),
        Measure::Overlap => (None, "overlap".to_owned()),
        Measure::Score(protocol, metric) => (Some(protocol), metric.to_string()),
    }
}

/// NAME.json: every score, absent things null.
pub(super) fn json(comparison: &Comparison, name: &str) -> Result<OutputFile, ReportError> {
    fn of(score: &Score) -> JsonScore<'_> {
        let &Score { ref quantity, runs, left, right, difference, interval90, p_value, agreement, ref why, .. } = score;
        let Quantity { suite, method, pretrain_split, measure } = quantity;
        let (protocol, metric) = keys(*measure);
        JsonScore {
            suite,
            protocol,
            method,
            pretrain_split: *pretrain_split,
            metric,
            n: runs,
            a: left,
            b: right,
            difference,
            interval90,
            p_value,
            result: words(agreement),
            why,
        }
    }
    let document = Json {
        format: FORMAT,
        stamp: comparison.stamp(),
        names: comparison.names,
        false_alarm_rate: comparison.rate,
        scores: comparison.scores.iter().map(of).collect(),
    };
    Ok(OutputFile::new(format!("{name}.json"), serde_json::to_string_pretty(&document)? + "\n"))
}

/// NAME.csv: one row a score, unrounded.
pub(super) fn csv(comparison: &Comparison, name: &str) -> Result<OutputFile, ReportError> {
    let header = [
        "suite",
        "protocol",
        "method",
        "pretrain_split",
        "metric",
        "n_a",
        "n_b",
        "a",
        "b",
        "difference",
        "low90",
        "high90",
        "p_value",
        "result",
        "stamp",
    ];
    let stamp = comparison.stamp().unwrap_or_default();
    let optional = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
    let rows = comparison.scores.iter().map(|score| {
        let quantity = &score.quantity;
        let (protocol, metric) = keys(quantity.measure);
        let mut row = vec![
            quantity.suite.clone(),
            protocol.map(|protocol| name_of(&protocol)).unwrap_or_default(),
            quantity.method.clone(),
            quantity.pretrain_split.map(|list| name_of(&list)).unwrap_or_default(),
            metric,
        ];
        row.extend(
            score
                .runs
                .map_or([None, None], |runs| runs.map(Some))
                .map(|n| n.map(|n| n.to_string()).unwrap_or_default()),
        );
        let [low, high] = score.interval90.map_or([None, None], |ends| ends.map(Some));
        row.extend([score.left, score.right, score.difference, low, high, score.p_value].map(optional));
        row.extend([words(score.agreement).to_owned(), stamp.clone()]);
        row
    });
    Ok(OutputFile::new(format!("{name}.csv"), csv::text(&header, rows)?))
}
