//! The published numbers: a CSV file with the header of `reference/published.csv`.

use std::collections::BTreeMap;
use std::path::Path;

use csv::StringRecord;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde::de::value::{Error as NameError, StrDeserializer};

use super::{Confidence, Metric, PaperError, Row};
use crate::text::printable;

/// The first line of the file.
pub const HEADER: &str = "suite,protocol,method,pretrain_split,metric,mean,deviation,source,confidence";

const TABLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/reference/published.csv"));

/// One published number, in per cent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PublishedRow {
    #[serde(flatten)]
    pub row: Row,
    pub metric: Metric,
    pub mean: f64,
    /// Population deviation over the published splits.
    pub deviation: Option<f64>,
    pub source: String,
    pub confidence: Confidence,
}

/// A table of published numbers, none twice.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    rows: Vec<PublishedRow>,
}

impl Published {
    /// The paper's numbers: `reference/published.csv`.
    ///
    /// # Errors
    /// The embedded table is malformed, which a test excludes.
    pub fn embedded() -> Result<Self, PaperError> {
        Self::parse("reference/published.csv", TABLE.as_bytes())
    }

    /// The numbers of a user's file.
    ///
    /// # Errors
    /// It cannot be read, or a row is malformed or doubled.
    pub fn read(path: &Path) -> Result<Self, PaperError> {
        Self::parse(&path.display().to_string(), &crate::fs::read(path)?)
    }

    /// The numbers in `bytes`; `file` is the name for messages.
    ///
    /// # Errors
    /// The header differs from [`HEADER`], or a row is malformed or doubled: each error names the line.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, PaperError> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
        let mut records = reader.records().map(|record| {
            record.map_err(|error| PaperError::Text {
                file: file.to_owned(),
                line: error.position().map_or(0, csv::Position::line),
            })
        });
        let header = records.next().transpose()?.unwrap_or_default();
        if header.iter().map(str::trim).ne(HEADER.split(',')) {
            let found = printable(&header.iter().collect::<Vec<_>>().join(","));
            return Err(PaperError::Header { file: file.to_owned(), found });
        }
        let mut rows: Vec<PublishedRow> = Vec::new();
        let mut lines = BTreeMap::new();
        for record in records {
            let record = record?;
            let line = Line { file, line: record.position().map_or(0, csv::Position::line), record: &record };
            let row = line.row()?;
            if let Some(first) = lines.insert((row.row.clone(), row.metric), line.line) {
                let number = format!("{} {}", row.row, row.metric);
                return Err(PaperError::Doubled { file: file.to_owned(), line: line.line, first, number });
            }
            rows.push(row);
        }
        if rows.is_empty() {
            return Err(PaperError::Empty { file: file.to_owned() });
        }
        Ok(Self { rows })
    }

    /// All numbers in the file's order.
    pub fn rows(&self) -> &[PublishedRow] {
        &self.rows
    }

    /// The numbers of one row of a table, at most one a metric.
    pub fn of<'a>(&'a self, row: &'a Row) -> impl Iterator<Item = &'a PublishedRow> {
        self.rows.iter().filter(move |number| number.row == *row)
    }

    /// One number.
    pub fn number(&self, row: &Row, metric: Metric) -> Option<&PublishedRow> {
        self.rows.iter().find(|number| number.row == *row && number.metric == metric)
    }
}

/// A line of the file, for messages.
struct Line<'a> {
    file: &'a str,
    line: u64,
    record: &'a StringRecord,
}

impl Line<'_> {
    fn row(&self) -> Result<PublishedRow, PaperError> {
        let expected = HEADER.split(',').count();
        if self.record.len() != expected {
            let found = self.record.len();
            return Err(PaperError::Fields { file: self.file.to_owned(), line: self.line, found, expected });
        }
        let pretrain_split = match self.text(3) {
            "" => None,
            _ => Some(self.name(3, "pretrain_split", "D_i, D_b or empty")?),
        };
        let row = Row {
            suite: self.filled(0, "suite", "the name of a suite")?,
            protocol: self.name(1, "protocol", "full or few")?,
            method: self.filled(2, "method", "the name of a method")?,
            pretrain_split,
        };
        Ok(PublishedRow {
            row,
            metric: self.name(4, "metric", "all, many, medium, few or std")?,
            mean: self.per_cent(5, "mean")?,
            deviation: if self.text(6).is_empty() { None } else { Some(self.per_cent(6, "deviation")?) },
            source: self.filled(7, "source", "where the number was read")?,
            confidence: self.name(8, "confidence", "primary, secondary or memory")?,
        })
    }

    fn text(&self, field: usize) -> &str {
        self.record[field].trim()
    }

    fn wrong(&self, field: usize, column: &'static str, expected: &str) -> PaperError {
        let (file, found) = (self.file.to_owned(), printable(self.text(field)));
        PaperError::Field { file, line: self.line, column, found, expected: expected.to_owned() }
    }

    fn filled(&self, field: usize, column: &'static str, expected: &str) -> Result<String, PaperError> {
        match self.text(field) {
            "" => Err(self.wrong(field, column, expected)),
            text => Ok(text.to_owned()),
        }
    }

    /// A variant of an enum by the name that serde gives it.
    fn name<T: DeserializeOwned>(&self, field: usize, column: &'static str, expected: &str) -> Result<T, PaperError> {
        T::deserialize(StrDeserializer::<NameError>::new(self.text(field)))
            .map_err(|_| self.wrong(field, column, expected))
    }

    fn per_cent(&self, field: usize, column: &'static str) -> Result<f64, PaperError> {
        match self.text(field).parse() {
            Ok(number) if (0.0..=100.0).contains(&number) => Ok(number),
            _ => Err(self.wrong(field, column, "a number from 0 to 100")),
        }
    }
}
