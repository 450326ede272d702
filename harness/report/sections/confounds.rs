//! What else differs between the methods, and the recipes.

use std::collections::BTreeSet;

use crate::report::document::{Block, Section};
use crate::report::summary::{Comparison, SCORES, Summary, probe_label};
use crate::report::table::{Table, signed_plus_minus};
use crate::report::text::Text;
use crate::report::{ReportError, run};

/// Keys of a recipe that change more than the branch that is pruned, and what they mean (REFERENCE.md "Networks" and "Steps").
const KEYS: [(&str, &str); 3] = [
    ("head_layers", "linear layers of the projection head"),
    (
        "dual_bn",
        "two sets of batch norm, one for each branch; the pruned branch's running statistics then move twice a step",
    ),
    ("bn_per_view", "whether each view is normalised by the statistics of its own N images or both by those of all 2N"),
];

pub(super) fn section(summary: &Summary) -> Result<Section, ReportError> {
    let recipes = run::recipes(summary.suite);
    let point = |&(key, meaning): &(&str, &str)| {
        let values: Vec<Option<&String>> = recipes.iter().map(|(_, recipe)| recipe.get(key)).collect();
        let differ = values.iter().any(|value| *value != values[0]);
        let words = recipes.iter().zip(values).map(|((label, _), value)| match value {
            Some(value) => format!("{label} {value}"),
            None => format!("{label} –"),
        });
        let words = words.collect::<Vec<_>>().join(", ");
        differ.then(|| Text::code(key).and(format!(", {meaning}: {words}.")))
    };
    let points: Vec<Text> = KEYS.iter().filter_map(point).collect();
    if points.is_empty() {
        return super::nothing();
    }
    let introduction = "The methods differ in more than pruning, so a difference between them cannot be put down to the pruned branch \
                        alone:";
    let mut blocks = vec![Block::Paragraph(introduction.into()), Block::List(points)];
    // A control is an encoder with a name of its own, trained by a method of the suite.
    let is_control = |comparison: &&Comparison| comparison.left.encoder != comparison.left.method;
    let controls: Vec<&Comparison> = summary.comparisons.iter().filter(is_control).collect();
    if controls.is_empty() {
        let none = "No control, an encoder that changes one of these alone, was run.";
        blocks.push(Block::Paragraph(none.into()));
    } else {
        let mut table = Table::new(&[["control", "probe", "n"].as_slice(), &SCORES].concat());
        for comparison in controls {
            let mut row = vec![comparison.name.clone(), probe_label(comparison.protocol).to_owned()];
            row.push(comparison.splits.len().to_string());
            row.extend(comparison.scores().iter().map(signed_plus_minus));
            table.row(row);
        }
        let caption =
            format!("Controls: differences in points, mean ± population standard deviation over n {}", summary.units());
        blocks.push(Block::Table(caption.into(), table));
    }
    Ok(Section::new("Confounds", blocks))
}

pub(super) fn recipes(summary: &Summary) -> Result<Section, ReportError> {
    let recipes = run::recipes(summary.suite);
    if recipes.is_empty() {
        return super::nothing();
    }
    let keys: BTreeSet<&String> = recipes.iter().flat_map(|(_, recipe)| recipe.keys()).collect();
    let mut header = vec!["key"];
    header.extend(recipes.iter().map(|(label, _)| label.as_str()));
    let (mut differing, mut shared) = (Table::new(&header), Table::new(&["key", "value"]));
    for key in keys {
        let value = |recipe: &run::FlatRecipe| recipe.get(key).cloned().unwrap_or_else(|| "–".to_owned());
        let values: Vec<String> = recipes.iter().map(|(_, recipe)| value(recipe)).collect();
        match values.iter().all(|value| *value == values[0]) {
            true => shared.row(vec![key.clone(), values[0].clone()]),
            false => differing.row(std::iter::once(key.clone()).chain(values).collect::<Vec<_>>()),
        }
    }
    let mut blocks = Vec::new();
    if !differing.is_empty() {
        blocks.push(Block::Table("Where the methods differ".into(), differing));
    }
    let shared = Block::Table(Text::from("What the recipes share"), shared);
    blocks.extend(super::fold("All other keys", vec![shared]));
    Ok(Section::new("Recipes", blocks))
}
