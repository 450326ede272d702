//! Loss and validation accuracy by epoch.

use crate::recipe::Protocol;
use crate::report::document::{Block, Figure, Section};
use crate::report::summary::Summary;
use crate::report::text::marked;
use crate::report::{ReportError, plots};

pub(super) fn section(summary: &Summary) -> Result<Section, ReportError> {
    let mut blocks = Vec::new();
    if let Some(picture) = plots::loss(summary)? {
        blocks.push(Block::Figure(Figure { caption: plots::loss_caption(summary), pictures: vec![picture] }));
    }
    let mut pictures = Vec::new();
    for protocol in [Protocol::Full, Protocol::Few] {
        pictures.extend(plots::validation(summary, protocol)?);
    }
    if !pictures.is_empty() {
        blocks.push(Block::Figure(Figure { caption: plots::validation_caption(summary), pictures }));
    }
    if !blocks.is_empty() {
        let data = "The data behind the figures: [curves.csv](curves.csv), [per_class.csv](per_class.csv).";
        blocks.push(Block::Paragraph(marked(data)));
    }
    Ok(Section::new("Curves", blocks))
}
