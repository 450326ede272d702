//! How far the numbers can be trusted: three kinds of claims, kept apart.

use crate::record::evidence::{EvidenceRecord, Kind};
use crate::report::ReportError;
use crate::report::document::{Block, Section};
use crate::report::summary::Summary;
use crate::report::table::Table;
use crate::report::text::{Text, marked};

pub(super) fn section(summary: &Summary) -> Result<Section, ReportError> {
    let samples = match summary.cells.is_empty() {
        true => String::new(),
        false => format!(": {}", summary.design_words()),
    };
    let points = vec![
        marked(
            "**Bitwise.** On one machine, with the same build and number of threads, on the CPU, the same command gives the same \
             weights to the bit, also when it was interrupted and resumed. `state_sha256` in each result.json is what to compare. \
             `cargo test --release --test resume` checks it.",
        ),
        marked(
            "**Step tolerance.** Given the same weights and inputs, loss, gradients, mask and updates agree with PyTorch within \
             stated tolerances. `cargo test --release` holds every part against golden files made by PyTorch \
             (`tests/parity_*.rs`).",
        ),
        marked("**Distributional.** The accuracies above are samples")
            .and(format!("{samples}. Only their distribution can be compared with other people's.")),
    ];
    let mut blocks = vec![
        Block::Paragraph("Three claims are kept apart:".into()),
        Block::List(points),
        Block::Paragraph(Text::from("The numbers of this report belong to the third kind.")),
    ];
    if !summary.suite.evidence.is_empty() {
        let caption = "Evidence of the first two kinds that lies in evidence/: the comparison that came closest to what is allowed";
        blocks.push(Block::Table(caption.into(), evidence(&summary.suite.evidence)));
    }
    Ok(Section::new("How far to trust this", blocks))
}

fn evidence(records: &[EvidenceRecord]) -> Table {
    let mut table = Table::new(&[
        "kind",
        "by",
        "compared",
        "comparisons",
        "closest",
        "difference",
        "allowed",
        "outcome",
        "machine",
    ]);
    for record in records {
        let kind = match record.kind {
            Kind::Bitwise => "bitwise",
            Kind::StepTolerance => "step tolerance",
        };
        let closest = record.closest.as_ref();
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1e}"));
        table.row(vec![
            kind.to_owned(),
            record.name.clone(),
            record.compared.clone(),
            record.comparisons.to_string(),
            closest.map_or_else(|| "–".to_owned(), |closest| closest.what.clone()),
            number(closest.map(|closest| closest.difference)),
            number(closest.map(|closest| closest.allowed)),
            if record.holds() { "holds" } else { "does not hold" }.to_owned(),
            record.environment.device.clone(),
        ]);
    }
    table
}
