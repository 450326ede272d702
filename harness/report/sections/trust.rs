//! How far the numbers can be trusted: three kinds of claims, kept apart.

use crate::report::ReportError;
use crate::report::document::{Block, Section};
use crate::report::summary::Summary;
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
    Ok(Section::new(
        "How far to trust this",
        vec![
            Block::Paragraph("Three claims are kept apart:".into()),
            Block::List(points),
            Block::Paragraph(Text::from("The numbers of this report belong to the third kind.")),
        ],
    ))
}
