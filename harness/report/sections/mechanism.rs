//! What pruning does, measured: how the mask moves, what it keeps of each layer, and whether the images of rare classes change most.

use std::collections::BTreeMap;

use crate::recipe::name_of;
use crate::record::mechanism::{MechanismRecord, Representation};
use crate::report::document::{Block, Figure, Section};
use crate::report::summary::Summary;
use crate::report::table::{Table, interval, signed};
use crate::report::text::marked;
use crate::report::{ReportError, plots};
use crate::text::counted;
use crate::verdict::mechanism::{OverSplits, Row, rows};

pub(super) fn section(summary: &Summary) -> Result<Section, ReportError> {
    let mut blocks = Vec::new();
    if let Some(picture) = plots::overlap(summary)? {
        let caption = "Share of the weights kept by an epoch's mask that the mask before kept too; independent masks would share the \
                       kept share of all weights. Thin: single runs, thick: their mean";
        blocks.push(Block::Figure(Figure { caption: caption.into(), pictures: vec![picture] }));
    }
    let mechanisms = &summary.suite.mechanisms;
    if !mechanisms.is_empty() {
        blocks.splice(0..0, changes(&rows(mechanisms)?));
        blocks.extend(super::fold("What the mask keeps of each layer", vec![layers(mechanisms)]));
    }
    Ok(Section::new("The mechanism", blocks))
}

fn changes(rows: &[Row]) -> Vec<Block> {
    let premise = "The method rests on the premise that pruning changes the images of rare classes most. Here each finished encoder is \
                   pruned as in training, and the change of every image of D_i is 1 − cosine of its dense and its pruned \
                   representation. A **correlation** below 0 says that rare classes change more; **excess** is the mean change of the \
                   rarest third of the classes over that of the most frequent third; **most changed** is the share of the rarest \
                   third's images among the tenth of all images that changes most (10 where they are like the others). Intervals: \
                   95 %, Student's t over splits, seeds averaged.";
    let contrast = "Encoders that were trained without a pruned branch are pruned likewise, as a contrast: where they show the same, it \
                    is not the training that makes it. Their batch norm first takes the statistics of the pruned weights on the same \
                    images. Images of D_i that an encoder of D_b did not see are among its images.";
    let mut table = Table::new(&[
        "encoder",
        "pre-trained on",
        "representation",
        "runs",
        "correlation",
        "95 % interval",
        "excess (%)",
        "95 % interval of excess",
        "most changed (%)",
    ]);
    for row in rows {
        let [correlation, excess] = [&row.correlation, &row.excess].map(Option::as_ref);
        table.row(vec![
            row.label.clone(),
            row.list.map_or_else(|| "–".to_owned(), |list| name_of(&list)),
            name_of(&row.representation),
            row.runs.to_string(),
            mean(correlation),
            range(correlation),
            mean(excess),
            range(excess),
            row.most_changed.as_ref().map_or_else(|| "–".to_owned(), |found| format!("{:.1}", found.mean)),
        ]);
    }
    let caption = "How the change of a class under pruning goes with its frequency in D_i";
    let found = rows.iter().find(|row| row.trained_pruned && row.representation == Representation::Backbone);
    let answer = found.and_then(|row| Some(Block::Paragraph(answer(row)?.into())));
    let text = [Block::Paragraph(marked(premise)), Block::Paragraph(contrast.into())];
    answer.into_iter().chain(text).chain([Block::Table(caption.into(), table)]).collect()
}

/// What the first encoder that was trained pruned says, in a sentence.
fn answer(row: &Row) -> Option<String> {
    let OverSplits { values, mean, interval: found } = row.correlation.as_ref()?;
    let splits = counted(values.len(), "split");
    let says = match found {
        None => "one split gives no interval".to_owned(),
        Some([_, high]) if *high < 0.0 => "rare classes change more, as the premise has it".to_owned(),
        Some([low, _]) if *low > 0.0 => "frequent classes change more, against the premise".to_owned(),
        Some(_) => "these runs do not settle whether rare classes change more".to_owned(),
    };
    let range = found.map(|found| format!(" ({})", interval(found))).unwrap_or_default();
    Some(format!(
        "{}, pooled features: rank correlation of a class's frequency with its change {}{range} over {splits}: {says}.",
        row.label,
        signed(*mean)
    ))
}

fn mean(found: Option<&OverSplits>) -> String {
    found.map_or_else(|| "–".to_owned(), |found| signed(found.mean))
}

fn range(found: Option<&OverSplits>) -> String {
    found.and_then(|found| found.interval).map_or_else(|| "–".to_owned(), interval)
}

/// The kept share of each layer, mean over the runs of an encoder on a list.
fn layers(mechanisms: &[MechanismRecord]) -> Block {
    let mut columns: Vec<(String, Vec<&MechanismRecord>)> = Vec::new();
    for record in mechanisms {
        let list = record.job.encoder.list.map(|list| format!(", {}", name_of(&list))).unwrap_or_default();
        let title = format!("{}{list}", record.label);
        match columns.iter_mut().find(|(known, _)| *known == title) {
            Some((_, records)) => records.push(record),
            None => columns.push((title, vec![record])),
        }
    }
    let titles = columns.iter().map(|(title, _)| title.as_str());
    let mut table = Table::new(&["layer", "weights"].into_iter().chain(titles).collect::<Vec<_>>());
    let mut names: Vec<(String, u64)> = Vec::new();
    let mut kept: BTreeMap<(String, usize), Vec<f64>> = BTreeMap::new();
    for (column, (_, records)) in columns.iter().enumerate() {
        for layer in records.iter().flat_map(|record| &record.layers) {
            // Networks with one and with two batch norms call the same convolution by different names.
            let name = layer.layer.replace("downsample.0.", "downsample.conv.");
            if names.iter().all(|(known, _)| *known != name) {
                names.push((name.clone(), layer.weights));
            }
            kept.entry((name, column)).or_default().push(100.0 * layer.kept as f64 / layer.weights as f64);
        }
    }
    for (name, weights) in names {
        let share = |column| {
            let shares = kept.get(&(name.clone(), column));
            shares.map_or_else(|| "–".to_owned(), |shares| format!("{:.1}", crate::scores::mean_std(shares).mean))
        };
        let shares: Vec<String> = (0..columns.len()).map(share).collect();
        table.row([name, weights.to_string()].into_iter().chain(shares).collect());
    }
    Block::Table(
        "Weights kept of each layer, in per cent, by the mask of the finished encoder; mean over runs".into(),
        table,
    )
}
