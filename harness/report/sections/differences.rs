//! Differences between settings, paired by split and seed.

use crate::report::ReportError;
use crate::report::document::{Block, Section};
use crate::report::summary::{Comparison, SCORES, Summary, probe_label};
use crate::report::table::{Table, signed, signed_plus_minus};
use crate::report::text::Text;

pub(super) fn section(summary: &Summary) -> Result<Section, ReportError> {
    if summary.comparisons.is_empty() {
        return super::nothing();
    }
    let mut means = Table::new(&[["difference", "probe", "n"].as_slice(), &SCORES].concat());
    let columns = [["difference", "probe"].as_slice(), &summary.run_columns(), &SCORES].concat();
    let mut single = Table::new(&columns);
    for comparison in &summary.comparisons {
        let words = || vec![comparison.name.clone(), probe_label(comparison.protocol).to_owned()];
        let mut row = words();
        row.push(comparison.splits.len().to_string());
        row.extend(comparison.scores().iter().map(signed_plus_minus));
        means.row(row);
        for (key, scores) in &comparison.splits {
            let mut row = words();
            row.extend(summary.run_cells(*key));
            row.extend(scores.iter().map(|(_, score)| signed(*score)));
            single.row(row);
        }
    }
    let units = summary.units();
    let caption = format!(
        "Differences in points, mean ± population standard deviation over n {units}; for Std, negative is better balanced"
    );
    let every = Block::Table("Differences in points, one by one".into(), single);
    let blocks = vec![
        Block::Table(caption.into(), means),
        Block::List(summary.comparisons.iter().map(|comparison| agreement(comparison, units)).collect()),
        Block::Paragraph(variability(summary).into()),
    ];
    let fold = super::fold(&format!("Every difference, by {}", summary.run_columns().join(" and ")), vec![every]);
    Ok(Section::new("Differences, paired by split", blocks.into_iter().chain(fold).collect()))
}

/// In how many runs the difference has the sign of the mean.
fn agreement(comparison: &Comparison, units: &str) -> Text {
    let above = |score: usize| comparison.splits.values().filter(|scores| scores[score].1 > 0.0).count();
    let below = comparison.splits.values().filter(|scores| scores[4].1 < 0.0).count();
    let n = comparison.splits.len();
    format!(
        "{}, {}: All is higher in {} of {n} {units}, Few in {}, and Std lower in {below}.",
        comparison.name,
        probe_label(comparison.protocol),
        above(0),
        above(3)
    )
    .into()
}

/// What the deviations hold.
fn variability(summary: &Summary) -> String {
    let mixed = match summary.one_run_a_split() {
        true => "One run was made on each split, so a deviation mixes the choice of images with the luck of training."
            .to_owned(),
        false => format!(
            "These are {}, so a deviation mixes the choice of images with the luck of training.",
            summary.design_words()
        ),
    };
    format!(
        "The splits share images. {mixed} A deviation is no error of the mean, and no significance is claimed here: the claims \
         above have the tests."
    )
}
