//! Tables, as Markdown and as aligned plain text, and how numbers look in them.

use crate::scores::MeanStd;

/// Rows under a header. The first columns hold words and stand left, the others numbers and stand right.
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|&title| title.to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row with as many cells as the header has.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.header.len());
        self.rows.push(cells);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A pipe table; `|` and line breaks in cells are escaped.
    pub(crate) fn to_markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| escape(cell).replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rules: Vec<&str> = (0..self.header.len()).map(|c| if self.numeric(c) { "---:" } else { "---" }).collect();
        let mut text = line(&self.header) + &format!("|{}|\n", rules.join("|"));
        self.rows.iter().for_each(|row| text += &line(row));
        text
    }

    /// Columns padded to their widest cell, two spaces apart.
    pub(crate) fn to_text(&self) -> String {
        let width = |text: &str| text.chars().count();
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let widths: Vec<usize> =
            (0..self.header.len()).map(|c| lines().map(|cells| width(&cells[c])).max().unwrap_or(0)).collect();
        let mut text = String::new();
        for cells in lines() {
            let padded: Vec<String> = (0..cells.len())
                .map(|c| match self.numeric(c) {
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
    fn numeric(&self, column: usize) -> bool {
        let number = |cell: &String| {
            let first = cell.trim_start_matches(['+', '-', '−']).chars().next();
            cell == "–" || (first.is_some_and(|c| c.is_ascii_digit()) && cell.chars().all(|c| !c.is_ascii_alphabetic()))
        };
        self.rows.iter().all(|row| number(&row[column]))
    }
}

/// Text on one line.
pub(super) fn escape(text: &str) -> String {
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
