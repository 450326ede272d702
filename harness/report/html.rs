//! A document as one HTML file: styles and pictures inside, no script, no request. Wide tables and figures scroll in boxes of
//! their own. The template escapes everything but our own SVG.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::document::{Block, Document, Figure, Picture, Section};
use super::table::{Row, Table};
use super::text::{Span, Text, Tone};
use super::{OutputFile, heading};

const STYLE: &str = include_str!("page.css");
/// Characters that a cell keeps on one line.
const SHORT: usize = 34;
/// The page loads nothing, whatever a record holds.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// `NAME.html`.
pub(super) fn export(document: &Document, name: &str) -> OutputFile {
    let stamp = document.stamp.as_deref();
    let titled = || document.sections.iter().enumerate().filter(|(_, section)| !section.title.is_empty());
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                link rel="icon" href="data:,";
                title { (heading(document)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (document.title) @if let Some(stamp) = stamp { " " span.stamp { (stamp) } } }
                    @for (place, Section { title, blocks }) in document.sections.iter().enumerate() {
                        @if !title.is_empty() { h2 id=(anchor(place)) { (title) } }
                        @for inner in blocks { (block(inner, stamp)) }
                        @if place == 0 {
                            nav aria-label="Sections" {
                                @for (place, section) in titled() { a href={ "#" (anchor(place)) } { (section.title) } " " }
                            }
                        }
                    }
                    footer { "Made by sdclr from records alone: the same records give the same page." }
                }
            }
        }
    };
    OutputFile::new(format!("{name}.html"), page.into_string() + "\n")
}

fn anchor(place: usize) -> String {
    format!("section-{place}")
}

fn block(block: &Block, stamp: Option<&str>) -> Markup {
    html! {
        @match block {
            Block::Lead(text) => p.lead { (inline(text)) },
            Block::Paragraph(text) => p { (inline(text)) },
            Block::Note(text) => p.note { (inline(text)) },
            Block::List(points) => ul { @for point in points { li { (inline(point)) } } },
            Block::Table(caption, table) => figure.table {
                figcaption { (self::caption(caption, stamp)) }
                div.scroll tabindex="0" role="region" aria-label=(caption.plain()) { (self::table(table)) }
            },
            Block::Figure(Figure { caption, pictures }) => figure {
                div.pictures { @for picture in pictures { div.scroll tabindex="0" { (drawn(picture)) } } }
                figcaption { (self::caption(caption, stamp)) }
            },
            Block::Fold(summary, blocks) => details {
                summary { (summary) }
                @for inner in blocks { (self::block(inner, stamp)) }
            },
        }
    }
}

/// A caption with the stamp.
fn caption(caption: &Text, stamp: Option<&str>) -> Markup {
    html! { (inline(caption)) @if let Some(stamp) = stamp { " " span.stamp { (stamp) } } "." }
}

fn table(table: &Table) -> Markup {
    // Words that fit on a line stay on it.
    let is_short = |column: usize| table.rows.iter().all(|row| row.cells[column].plain().chars().count() <= SHORT);
    let class = |column: usize| match (table.numeric(column), is_short(column)) {
        (true, _) => Some("number"),
        (false, true) => Some("short"),
        (false, false) => None,
    };
    let numeric: Vec<_> = (0..table.header.len()).map(class).collect();
    let cells = |row: &Row| {
        html! { @for (cell, class) in row.cells.iter().zip(&numeric) { td class=[class] { (inline(cell)) } } }
    };
    html! {
        table {
            thead { tr { @for (title, class) in table.header.iter().zip(&numeric) { th scope="col" class=[class] { (title) } } } }
            tbody {
                @for row in &table.rows {
                    tr.under[row.under] { (cells(row)) }
                    @if let Some(note) = &row.note {
                        tr.about { td colspan=(table.header.len()) { div { (inline(note)) } } }
                    }
                }
            }
        }
    }
}

fn inline(text: &Text) -> Markup {
    html! {
        @for span in text.spans() {
            @match span {
                Span::Plain(text) => (text),
                Span::Code(text) => code { (text) },
                Span::Strong(text, tone) => strong class=[tone_class(*tone)] { (text) },
                Span::Link { text, href } => a href=(href) { (text) },
                Span::Drawing(svg) => (PreEscaped(inked(svg))),
            }
        }
    }
}

fn tone_class(tone: Tone) -> Option<&'static str> {
    match tone {
        Tone::Neutral => None,
        Tone::Good => Some("good"),
        Tone::Bad => Some("bad"),
        Tone::Open => Some("open"),
    }
}

/// A picture that fills its box.
fn drawn(picture: &Picture) -> Markup {
    let svg = inked(&picture.svg);
    let view = svg.split_once("viewBox=\"").and_then(|(_, rest)| rest.split_once('"')).map_or("", |(view, _)| view);
    let inside = svg.split_once('>').map_or("", |(_, inside)| inside);
    let inside = inside.rsplit_once("</svg>").map_or(inside, |(inside, _)| inside);
    html! { svg viewBox=(view) role="img" aria-label=(picture.title) { (PreEscaped(inside)) } }
}

/// A drawing in the colours of the page: its ink for black, nothing for the white background.
fn inked(svg: &str) -> String {
    let ink = [("fill=\"#FFFFFF\"", "fill=\"none\""), ("\"#000000\"", "\"currentColor\"")];
    ink.iter().fold(svg.to_owned(), |svg, (from, to)| svg.replace(from, to))
}
