//! Recognises and reads web pages. In: a text. Out: whether it is a web page, its title, its tags and their attributes.

use crate::text::printable;

/// Bytes within which a web page shows that it is one.
pub const TELLING_BYTES: usize = 512;

/// Whether a body that begins so is a web page.
pub fn looks_like_page(begin: &[u8]) -> bool {
    let begin = String::from_utf8_lossy(&begin[..begin.len().min(TELLING_BYTES)]).trim_start().to_lowercase();
    begin.starts_with("<!doctype html") || begin.starts_with("<html")
}

/// The title of a web page, on one line.
pub fn title(page: &str) -> Option<String> {
    let lower = page.to_ascii_lowercase();
    let start = lower.find("<title>")? + "<title>".len();
    let end = start + lower[start..].find("</title>")?;
    let title = page[start..end].split_whitespace().collect::<Vec<_>>().join(" ");
    (!title.is_empty()).then(|| printable(&title))
}

/// The start tags called `name` (without their brackets), each with what follows it.
pub fn elements<'a>(page: &'a str, name: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let open = format!("<{name} ");
    let starts: Vec<usize> = page.match_indices(&open).map(|(start, _)| start + open.len()).collect();
    starts.into_iter().filter_map(|start| page[start..].split_once('>'))
}

/// The value of an attribute in a start tag.
pub fn attribute(tag: &str, name: &str) -> Option<String> {
    let quoted = |quote: char| {
        let opening = format!("{name}={quote}");
        let start = tag
            .match_indices(&opening)
            .find(|(at, _)| *at == 0 || tag[..*at].ends_with(char::is_whitespace))
            .map(|(at, _)| at + opening.len())?;
        tag[start..].split(quote).next()
    };
    let value = quoted('"').or_else(|| quoted('\''))?;
    Some(
        value
            .replace("&quot;", "\"")
            .replace("&#39;", "'")
            .replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&amp;", "&"),
    )
}
