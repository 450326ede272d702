//! Text of a report with its marks: code, stress, links, small drawings. What is put in as plain text is never read as markup.

use crate::text::message;

/// A line of text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Text(Vec<Span>);

/// A piece of a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Span {
    Plain(String),
    Code(String),
    Strong(String, Tone),
    Link {
        text: String,
        /// A path relative to the report's folder, percent-encoded.
        href: String,
    },
    /// A drawing in a line, as SVG; formats that have none leave it out.
    Drawing(String),
}

/// How a word is meant: colour where there is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Neutral,
    Good,
    Bad,
    Open,
}

impl Text {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn code(text: impl Into<String>) -> Self {
        Self(vec![Span::Code(message(&text.into()))])
    }

    pub(super) fn strong(text: impl Into<String>, tone: Tone) -> Self {
        Self(vec![Span::Strong(message(&text.into()), tone)])
    }

    /// A link to the file at `path`, relative to the report.
    pub(super) fn link(text: &str, path: &str) -> Self {
        Self(vec![Span::Link { text: message(text), href: percent_encoded(path) }])
    }

    pub(super) fn drawing(svg: String) -> Self {
        Self(vec![Span::Drawing(svg)])
    }

    /// This text with another behind it.
    pub(super) fn and(mut self, more: impl Into<Text>) -> Self {
        self.0.extend(more.into().0);
        self
    }

    pub fn spans(&self) -> &[Span] {
        &self.0
    }

    /// Whether there is nothing but drawings.
    pub(super) fn is_drawn(&self) -> bool {
        self.0.iter().all(|span| matches!(span, Span::Drawing(_)))
    }

    /// Its words alone.
    pub fn plain(&self) -> String {
        self.0
            .iter()
            .map(|span| match span {
                Span::Plain(text) | Span::Code(text) | Span::Strong(text, _) | Span::Link { text, .. } => text.as_str(),
                Span::Drawing(_) => "",
            })
            .collect()
    }
}

impl From<String> for Text {
    /// Control characters and others that are not seen are escaped.
    fn from(text: String) -> Self {
        Self(vec![Span::Plain(message(&text))])
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// A text of this program's own in which `**strong**`, `` `code` `` and `[links](path)` are marked.
pub(super) fn marked(text: &'static str) -> Text {
    let mut spans = Vec::new();
    let mut rest = text;
    let mut plain = String::new();
    while let Some(first) = rest.chars().next() {
        let enclosed = |open: &str, close: &str| {
            let inner = rest.strip_prefix(open)?;
            inner.split_once(close)
        };
        let found = match first {
            '*' => enclosed("**", "**").map(|(inner, after)| (Span::Strong(inner.to_owned(), Tone::Neutral), after)),
            '`' => enclosed("`", "`").map(|(inner, after)| (Span::Code(inner.to_owned()), after)),
            '[' => enclosed("[", "](").and_then(|(text, after)| {
                let (path, after) = after.split_once(')')?;
                Some((Span::Link { text: text.to_owned(), href: percent_encoded(path) }, after))
            }),
            _ => None,
        };
        match found {
            Some((span, after)) => {
                if !plain.is_empty() {
                    spans.push(Span::Plain(std::mem::take(&mut plain)));
                }
                spans.push(span);
                rest = after;
            }
            None => {
                plain.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    if !plain.is_empty() {
        spans.push(Span::Plain(plain));
    }
    Text(spans)
}

/// A path as a relative link has it; a colon too is encoded, so that no path reads as a scheme.
fn percent_encoded(path: &str) -> String {
    let kept = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/+,=@".contains(&byte);
    path.bytes().map(|byte| if kept(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_spans() {
        let text = marked("**Std** of `a*b`, see [the file](a b.csv) [1].");
        let expected = vec![
            Span::Strong("Std".to_owned(), Tone::Neutral),
            Span::Plain(" of ".to_owned()),
            Span::Code("a*b".to_owned()),
            Span::Plain(", see ".to_owned()),
            Span::Link { text: "the file".to_owned(), href: "a%20b.csv".to_owned() },
            Span::Plain(" [1].".to_owned()),
        ];
        assert_eq!(text.spans(), expected);
        assert_eq!(text.plain(), "Std of a*b, see the file [1].");
    }

    #[test]
    fn no_path_is_a_scheme() {
        assert_eq!(percent_encoded("javascript:alert(1)"), "javascript%3Aalert%281%29");
    }
}
