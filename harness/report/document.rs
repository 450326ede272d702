//! A report as data: title, sections, text, tables, figures. Builders (`sections`, `authors`, `comparison`) make it of records;
//! exporters (`markdown`, `html`, `latex`) render any of it and know nothing of records. What comes from a record or a user is
//! plain text here; exporters escape it.

use super::table::Table;
use super::text::Text;

/// A whole report.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub title: String,
    /// Why this is no result with the published inputs: on the title, every table and every figure.
    pub stamp: Option<String>,
    pub sections: Vec<Section>,
}

/// A part of a report under a title; the first one has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section {
    pub title: String,
    pub blocks: Vec<Block>,
}

impl Section {
    pub(super) fn new(title: &str, blocks: Vec<Block>) -> Self {
        Self { title: title.to_owned(), blocks }
    }
}

/// What stands in a section, from top to bottom.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// The answer, set large.
    Lead(Text),
    Paragraph(Text),
    /// A warning set apart.
    Note(Text),
    List(Vec<Text>),
    /// A table under its caption.
    Table(Text, Table),
    Figure(Figure),
    /// Details that are not shown until they are asked for; shown in print.
    Fold(String, Vec<Block>),
}

/// One or several pictures under one caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    pub caption: Text,
    pub pictures: Vec<Picture>,
}

/// An SVG file.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Relative to the report's folder.
    pub path: String,
    /// For those who do not see it.
    pub title: String,
    pub svg: String,
}
