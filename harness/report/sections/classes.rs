//! The figure that answers the question: does the accuracy of rare classes gain? Accuracy per class against class count.

use crate::recipe::Protocol;
use crate::report::document::{Block, Figure, Section};
use crate::report::summary::Summary;
use crate::report::{ReportError, plots};

pub(super) fn section(summary: &Summary) -> Result<Section, ReportError> {
    let (mut answer, mut all) = (Vec::new(), Vec::new());
    for protocol in [Protocol::Full, Protocol::Few] {
        answer.extend(plots::long_tailed(summary, protocol)?);
        all.extend(plots::per_class(summary, protocol)?);
    }
    let mut blocks = Vec::new();
    if !answer.is_empty() {
        let caption = "Test accuracy of each class against its images in D_i, for encoders pre-trained on D_i. Joined: mean over classes \
                       of equal count; band: its 90 % interval over splits (Student's t on the means of the splits, cut at 0 and 100), \
                       absent with one split; pale: one class of one run";
        blocks.push(Block::Figure(Figure { caption: caption.into(), pictures: answer }));
    }
    if !all.is_empty() {
        let caption =
            "The same for every encoder, the untrained one and those trained on D_b among them; without intervals";
        blocks.extend(super::fold(
            "All encoders",
            vec![Block::Figure(Figure { caption: caption.into(), pictures: all })],
        ));
    }
    Ok(Section::new("Rare and frequent classes", blocks))
}
