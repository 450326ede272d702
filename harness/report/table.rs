//! Tables, and how numbers look in them. A table is rendered by the exporters, or as aligned plain text for a terminal.

use super::text::Text;
use crate::scores::MeanStd;

/// Rows under a header. The first columns hold words and stand left, the others numbers and stand right.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Row>,
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub cells: Vec<Text>,
    /// A sentence about the row.
    pub note: Option<Text>,
    /// Whether it stands under the row before it, to be compared with that.
    pub under: bool,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|&title| title.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row with as many cells as the header has.
    pub(crate) fn row<T: Into<Text>>(&mut self, cells: Vec<T>) {
        self.add(cells.into_iter().map(Into::into).collect(), None, false);
    }

    /// Adds a row with a sentence about it.
    pub(super) fn row_noted(&mut self, cells: Vec<Text>, note: Text) {
        self.add(cells, Some(note), false);
    }

    /// Adds a row that stands under the one before it.
    pub(super) fn row_under(&mut self, cells: Vec<Text>) {
        self.add(cells, None, true);
    }

    fn add(&mut self, cells: Vec<Text>, note: Option<Text>, under: bool) {
        debug_assert_eq!(cells.len(), self.header.len());
        self.rows.push(Row { cells, note, under });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The places of the columns that hold words, not drawings alone.
    pub(super) fn written(&self) -> Vec<usize> {
        let words = |c: &usize| self.rows.is_empty() || self.rows.iter().any(|row| !row.cells[*c].is_drawn());
        (0..self.header.len()).filter(words).collect()
    }

    /// Columns padded to their widest cell, two spaces apart.
    pub(crate) fn to_text(&self) -> String {
        let width = |text: &str| text.chars().count();
        let of = |cells: &[Text]| cells.iter().map(Text::plain).collect::<Vec<_>>();
        let columns = self.written();
        let lines: Vec<Vec<String>> =
            std::iter::once(self.header.clone()).chain(self.rows.iter().map(|row| of(&row.cells))).collect();
        let mut text = String::new();
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| lines.iter().map(|cells| width(&cells[column])).max().unwrap_or(0))
            .collect();
        for cells in &lines {
            let padded: Vec<String> = columns
                .iter()
                .map(|&c| match self.numeric(c) {
                    true => format!("{:>1$}", cells[c], widths[c]),
                    false => format!("{:<1$}", cells[c], widths[c]),
                })
                .collect();
            text += padded.join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    /// Whether every cell of the column starts like a number or is empty of one (`–`).
    pub(super) fn numeric(&self, column: usize) -> bool {
        let number = |cell: &str| {
            let first = cell.trim_start_matches(['+', '-', '−']).chars().next();
            cell == "–" || (first.is_some_and(|c| c.is_ascii_digit()) && cell.chars().all(|c| !c.is_ascii_alphabetic()))
        };
        self.rows.iter().all(|row| number(&row.cells[column].plain()))
    }
}

/// Text on one line.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `81.23 ± 0.45`; without a deviation where there is but one value.
pub(super) fn plus_minus(score: &MeanStd) -> String {
    match score.n {
        1 => format!("{:.2}", score.mean),
        _ => format!("{:.2} ± {:.2}", score.mean, score.std),
    }
}

/// `+1.23 ± 0.45` or `−1.23 ± 0.45`: a difference in points.
pub(super) fn signed_plus_minus(score: &MeanStd) -> String {
    match score.n {
        1 => signed(score.mean),
        _ => format!("{} ± {:.2}", signed(score.mean), score.std),
    }
}

/// `+1.23`, `−1.23` or `0.00`, with a true minus sign.
pub(super) fn signed(value: f64) -> String {
    match format!("{value:+.2}").as_str() {
        "+0.00" | "-0.00" => "0.00".to_owned(),
        text => text.replace('-', "−"),
    }
}

/// `−2.95 to +14.69`.
pub(super) fn interval([low, high]: [f64; 2]) -> String {
    format!("{} to {}", signed(low), signed(high))
}

/// `3 min 42 s`, `2 h 05 min`, `12.3 s`.
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole / 3600 {
        0 => format!("{} min {:02} s", whole / 60, whole % 60),
        hours => format!("{hours} h {:02} min", whole % 3600 / 60),
    }
}
