//! A document as LaTeX, tables in booktabs, for pdfLaTeX. Its figures are the SVG files beside it: where one has been turned into
//! PDF (`rsvg-convert -f pdf`), it is shown.

use super::document::{Block, Document, Figure, Section};
use super::table::{Table, one_line};
use super::text::{Span, Text};
use super::{OutputFile, heading};

const HEAD: &str = r"\documentclass{article}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{booktabs,longtable,caption,graphicx}
\usepackage[T1]{fontenc}
\usepackage[hidelinks]{hyperref}
\begin{document}
";

/// `NAME.tex` and its pictures.
pub(super) fn export(document: &Document, name: &str) -> Vec<OutputFile> {
    let mut text = format!("{HEAD}\\section*{{{}}}\n", escaped(&heading(document)));
    for Section { title, blocks } in &document.sections {
        if !title.is_empty() {
            text += &format!("\n\\subsection*{{{}}}\n", escaped(title));
        }
        blocks.iter().for_each(|inner| text += &format!("\n{}\n", block(inner, document.stamp.as_deref())));
    }
    let mut files = vec![OutputFile::new(format!("{name}.tex"), text + "\\end{document}\n")];
    files.extend(super::pictures(document));
    files
}

fn block(block: &Block, stamp: Option<&str>) -> String {
    match block {
        Block::Lead(text) | Block::Paragraph(text) => inline(text),
        Block::Note(text) => format!("\\begin{{quote}}{}\\end{{quote}}", inline(text)),
        Block::List(points) => list(points.iter().map(inline)),
        Block::Table(caption, table) => whole_table(&self::caption(caption, stamp), table),
        Block::Figure(Figure { caption, pictures }) => {
            let shown = |path: &str| {
                let pdf = path.replace(".svg", ".pdf");
                format!(
                    "\\IfFileExists{{{pdf}}}{{\\includegraphics[width=\\linewidth]{{{pdf}}}}}{{\\texttt{{{}}}}}",
                    escaped(path)
                )
            };
            let pictures: Vec<String> = pictures.iter().map(|picture| shown(&picture.path)).collect();
            format!(
                "\\begin{{center}}\n{}\n\n{}\n\\end{{center}}",
                pictures.join("\n\n"),
                self::caption(caption, stamp)
            )
        }
        Block::Fold(summary, blocks) => {
            let blocks: Vec<String> = blocks.iter().map(|inner| self::block(inner, stamp)).collect();
            format!("\\subsubsection*{{{}}}\n{}", escaped(summary), blocks.join("\n\n"))
        }
    }
}

fn list(points: impl Iterator<Item = String>) -> String {
    let points: String = points.map(|point| format!("\\item {point}\n")).collect();
    format!("\\begin{{itemize}}\n{points}\\end{{itemize}}")
}

/// A caption with the stamp.
fn caption(caption: &Text, stamp: Option<&str>) -> String {
    let stamp = stamp.map(|stamp| format!(" (\\textbf{{{stamp}}})")).unwrap_or_default();
    format!("{}{stamp}.", inline(caption))
}

/// A table that may go over pages, and below it what is said about its rows.
fn whole_table(caption: &str, table: &Table) -> String {
    let columns = table.written();
    let letters: String = columns.iter().map(|&c| if table.numeric(c) { 'r' } else { 'l' }).collect();
    let line = |cells: Vec<String>| format!("{} \\\\\n", cells.join(" & "));
    let header = line(columns.iter().map(|&c| escaped(&table.header[c])).collect());
    let rows: String =
        table.rows.iter().map(|row| line(columns.iter().map(|&c| inline(&row.cells[c])).collect())).collect();
    let text = format!(
        "{{\\scriptsize\\setlength{{\\tabcolsep}}{{3pt}}\n\\begin{{longtable}}{{@{{}}{letters}@{{}}}}\n\\caption*{{{caption}}}\\\\\n\
         \\toprule\n{header}\\midrule\n\\endhead\n{rows}\\bottomrule\n\\end{{longtable}}}}"
    );
    let first = |row: &super::table::Row| row.cells.first().map(inline).unwrap_or_default();
    let notes: Vec<String> =
        table.rows.iter().filter_map(|row| Some(format!("{}: {}", first(row), inline(row.note.as_ref()?)))).collect();
    if notes.is_empty() { text } else { format!("{text}\n\n{}", list(notes.into_iter())) }
}

fn inline(text: &Text) -> String {
    text.spans()
        .iter()
        .map(|span| match span {
            Span::Plain(text) => escaped(text),
            Span::Code(text) => format!("\\texttt{{{}}}", escaped(text)),
            Span::Strong(text, _) => format!("\\textbf{{{}}}", escaped(text)),
            Span::Link { text, href } => {
                format!("\\href{{{}}}{{{}}}", href.replace('%', "\\%").replace('_', "\\_"), escaped(text))
            }
            Span::Drawing(_) => String::new(),
        })
        .collect()
}

/// Text on one line in which nothing is a command.
fn escaped(text: &str) -> String {
    let edge = |character: Option<char>| if character.is_some_and(char::is_whitespace) { " " } else { "" };
    let (start, end) = (edge(text.chars().next()), edge(text.chars().next_back()));
    let mut escaped = start.to_owned();
    for character in one_line(text).chars() {
        match character {
            '\\' => escaped += "\\textbackslash{}",
            '~' => escaped += "\\textasciitilde{}",
            '^' => escaped += "\\textasciicircum{}",
            '<' => escaped += "\\textless{}",
            '>' => escaped += "\\textgreater{}",
            '|' => escaped += "\\textbar{}",
            '`' => escaped += "\\textasciigrave{}",
            '"' => escaped += "\\textquotedbl{}",
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', character]),
            '±' => escaped += "$\\pm$",
            '−' => escaped += "$-$",
            '–' => escaped += "--",
            '…' => escaped += "\\ldots{}",
            // A cell that begins with a bracket would be the argument of the line break before it.
            '[' => escaped += "{[}",
            ']' => escaped += "{]}",
            character if character.is_control() => {}
            character => escaped.push(character),
        }
    }
    escaped + if one_line(text).is_empty() { "" } else { end }
}
