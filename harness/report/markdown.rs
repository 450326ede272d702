//! A document as Markdown (GitHub's): pictures as files beside it.

use super::document::{Block, Document, Figure, Section};
use super::table::{Table, one_line};
use super::text::{Span, Text};
use super::{OutputFile, heading};

/// `NAME.md` and its pictures.
pub(super) fn export(document: &Document, name: &str) -> Vec<OutputFile> {
    let mut files = vec![OutputFile::new(format!("{name}.md"), text(document))];
    files.extend(super::pictures(document));
    files
}

/// The text alone.
pub(super) fn text(document: &Document) -> String {
    let mut parts = vec![format!("# {}", plain(&heading(document)))];
    for Section { title, blocks } in &document.sections {
        if !title.is_empty() {
            parts.push(format!("## {}", plain(title)));
        }
        parts.extend(blocks.iter().map(|block| self::block(block, document.stamp.as_deref())));
    }
    parts.join("\n\n") + "\n"
}

fn block(block: &Block, stamp: Option<&str>) -> String {
    match block {
        Block::Lead(text) | Block::Paragraph(text) => inline(text),
        Block::Note(text) => format!("> {}", inline(text)),
        Block::List(points) => points.iter().map(|point| format!("- {}", inline(point))).collect::<Vec<_>>().join("\n"),
        Block::Table(caption, table) => format!("{}\n\n{}", self::caption(caption, stamp), whole_table(table)),
        Block::Figure(Figure { caption, pictures }) => {
            let pictures = pictures.iter().map(|picture| format!("![{}]({})", plain(&picture.title), picture.path));
            pictures.chain([self::caption(caption, stamp)]).collect::<Vec<_>>().join("\n\n")
        }
        Block::Fold(summary, blocks) => {
            let blocks: Vec<String> = blocks.iter().map(|inner| self::block(inner, stamp)).collect();
            format!("<details><summary>{}</summary>\n\n{}\n\n</details>", plain(summary), blocks.join("\n\n"))
        }
    }
}

/// A caption with the stamp.
fn caption(caption: &Text, stamp: Option<&str>) -> String {
    let stamp = stamp.map(|stamp| format!(" (**{stamp}**)")).unwrap_or_default();
    format!("*{}{stamp}.*", inline(caption))
}

/// A table, and below it what is said about its rows.
fn whole_table(table: &Table) -> String {
    let first = |row: &super::table::Row| row.cells.first().map(inline).unwrap_or_default();
    let notes: Vec<String> =
        table.rows.iter().filter_map(|row| Some(format!("- {}: {}", first(row), inline(row.note.as_ref()?)))).collect();
    let text = self::table(table);
    if notes.is_empty() { text } else { format!("{text}\n\n{}", notes.join("\n")) }
}

/// A pipe table without a line break at its end.
pub(crate) fn table(table: &Table) -> String {
    let columns = table.written();
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let rules: Vec<&str> = columns.iter().map(|&c| if table.numeric(c) { "---:" } else { "---" }).collect();
    let header = columns.iter().map(|&c| cell(&table.header[c].as_str().into())).collect();
    let rows = table.rows.iter().map(|row| line(columns.iter().map(|&c| cell(&row.cells[c])).collect()));
    let mut lines = vec![line(header), format!("|{}|", rules.join("|"))];
    lines.extend(rows);
    lines.join("\n")
}

fn cell(text: &Text) -> String {
    inline(text).replace('|', "\\|")
}

pub(super) fn inline(text: &Text) -> String {
    text.spans()
        .iter()
        .map(|span| match span {
            Span::Plain(text) => plain(text),
            Span::Code(text) => code(text),
            Span::Strong(text, _) => format!("**{}**", plain(text)),
            Span::Link { text, href } => format!("[{}]({href})", plain(text)),
            Span::Drawing(_) => String::new(),
        })
        .collect()
}

/// Text on one line in which nothing is markup.
fn plain(text: &str) -> String {
    let keeps_space = |edge: Option<char>| if edge.is_some_and(char::is_whitespace) { " " } else { "" };
    let (start, end) = (keeps_space(text.chars().next()), keeps_space(text.chars().next_back()));
    let mut escaped = String::new();
    for character in one_line(text).chars() {
        match character {
            '<' => escaped += "&lt;",
            '&' => escaped += "&amp;",
            '\\' | '`' | '*' | '~' | '$' => escaped.extend(['\\', character]),
            _ => escaped.push(character),
        }
    }
    let escaped = escaped.replace("](", "\\](");
    match escaped.is_empty() {
        true => start.to_owned(),
        false => format!("{start}{escaped}{end}"),
    }
}

/// A code span, between as many marks as the text needs.
fn code(text: &str) -> String {
    let text = one_line(text);
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    match longest {
        0 => format!("`{text}`"),
        n => format!("{0} {text} {0}", "`".repeat(n + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_markup() {
        let hostile = "<img src=x onerror=alert(1)> **a** [b](c) `d` | \\ \n# e";
        let text = inline(&Text::from(hostile));
        assert_eq!(text, "&lt;img src=x onerror=alert(1)> \\*\\*a\\*\\* [b\\](c) \\`d\\` | \\\\ # e");
        assert_eq!(cell(&Text::code("a|b`c")), "`` a\\|b`c ``");
        assert_eq!(inline(&Text::from("a ").and("b").and(" c")), "a b c");
    }
}
