//! The sections of the report on a suite, in the order of the page. A section is one file with a function that makes it of the
//! summary, and one line of [`SECTIONS`]; a section without blocks is left out.

mod answer;
mod classes;
mod confounds;
mod curves;
mod differences;
mod gaps;
mod mechanism;
mod provenance;
mod results;
mod runs;
mod trust;

use super::document::{Block, Document, Section};
use super::summary::Summary;
use super::{ReportError, authors};

/// Makes a section.
type Builder = fn(&Summary) -> Result<Section, ReportError>;

const SECTIONS: &[Builder] = &[
    answer::answer,
    answer::claims,
    results::section,
    differences::section,
    runs::section,
    classes::section,
    curves::section,
    mechanism::section,
    confounds::section,
    gaps::section,
    trust::section,
    provenance::what_was_run,
    confounds::recipes,
    provenance::sources,
];

/// The whole report.
pub(super) fn document(summary: &Summary) -> Result<Document, ReportError> {
    let mut sections = SECTIONS.iter().map(|build| build(summary)).collect::<Result<Vec<_>, _>>()?;
    if let Some(record) = summary.authors {
        let own = authors::sections(record, &|job| summary.source(job))?;
        sections.extend(own.into_iter().map(|section| {
            let title = match section.title.as_str() {
                "" => "The authors' files".to_owned(),
                title => format!("The authors' files: {title}"),
            };
            Section { title, ..section }
        }));
    }
    sections.retain(|section| !section.blocks.is_empty());
    Ok(Document { title: summary.suite.suite.clone(), stamp: summary.suite.stamp(), sections })
}

/// A section that has nothing to show here.
fn nothing() -> Result<Section, ReportError> {
    Ok(Section::default())
}

/// Details under `summary`, if there are any.
fn fold(summary: &str, blocks: Vec<Block>) -> Option<Block> {
    (!blocks.is_empty()).then(|| Block::Fold(summary.to_owned(), blocks))
}
