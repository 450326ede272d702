//! Text that others wrote, made safe to print.

use std::path::Path;

/// Most bytes of a foreign name or value in a message.
const NAME_BYTES: usize = 300;
/// Most bytes of a path; Linux takes 4,096.
const PATH_BYTES: usize = 4096;
/// Most bytes of a whole message.
const MESSAGE_BYTES: usize = 16 << 10;

/// A foreign name or value: control, direction and other invisible characters escaped, and cut after 300 bytes.
pub(crate) fn printable(text: &str) -> String {
    escaped(text, NAME_BYTES, |character| matches!(character, '\'' | '"' | '\\'))
}

/// A whole message before it is printed: as [`printable`], but it may have several lines and 16 KiB. Guards what quotes
/// foreign text without [`printable`], such as the errors of other crates.
pub(crate) fn message(text: &str) -> String {
    escaped(text, MESSAGE_BYTES, |character| matches!(character, '\'' | '"' | '\\' | '\n' | '\t'))
}

/// A path; in quotes where it holds what would not be seen, such as a blank at the end of a name.
pub(crate) fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    let safe = escaped(&text, PATH_BYTES, |character| matches!(character, '\'' | '"' | '\\'));
    let blank_at_an_end = |part: &str| part.starts_with(' ') || part.ends_with(' ');
    match safe != text || text.is_empty() || text.split('/').any(blank_at_an_end) {
        true => format!("'{safe}'"),
        false => safe,
    }
}

fn escaped(text: &str, most: usize, plain: impl Fn(char) -> bool) -> String {
    let mut safe = String::new();
    for character in text.chars() {
        if safe.len() > most {
            safe.push_str("...");
            break;
        }
        match plain(character) {
            true => safe.push(character),
            false => safe.extend(character.escape_debug()),
        }
    }
    safe
}

/// `1 split`, `3 splits`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// As one word of a shell's command.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./=,:+@%".contains(character);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The bytes of a text file as text: without the byte order mark, and UTF-16 (either order, with or without its
/// mark) decoded. What does not decode becomes U+FFFD.
pub(crate) fn decoded(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes).into(),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes).into(),
        // Text that begins with an ASCII character.
        [1..=127, 0, ..] => utf16(bytes, u16::from_le_bytes).into(),
        [0, 1..=127, ..] => utf16(bytes, u16::from_be_bytes).into(),
        _ => String::from_utf8_lossy(bytes),
    }
}

/// Why `text` is not the TOML that was expected, with the line; without the source, which may be long.
pub(crate) fn toml_reason(text: &str, error: &toml::de::Error) -> String {
    let before = |span: std::ops::Range<usize>| text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
    let line = error.span().map(|span| format!("line {}: ", before(span) + 1)).unwrap_or_default();
    line + &plain_words(&error.message().split_whitespace().collect::<Vec<_>>().join(" "))
}

/// What serde says of a value, in words that are not Rust's.
pub(crate) fn plain_words(reason: &str) -> String {
    const WORDS: [(&str, &str); 8] = [
        ("f64", "a number"),
        ("f32", "a number"),
        ("i64", "a whole number"),
        ("usize", "a whole number of at least 0"),
        ("u64", "a whole number of at least 0"),
        ("u32", "a whole number of at least 0"),
        ("a boolean", "true or false"),
        ("a sequence", "a list"),
    ];
    let plain = |text: String, (rust, plain): &(&str, &str)| {
        text.replace(&format!("expected {rust}"), &format!("expected {plain}"))
    };
    printable(&WORDS.iter().fold(reason.to_owned(), plain))
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    char::decode_utf16(units).map(|character| character.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a file that is none of ours looks like, by its first bytes: goes on after "it".
pub(crate) fn describe(head: &[u8]) -> String {
    match std::str::from_utf8(&head[..head.len().min(24)]) {
        Ok("") => "is empty".to_owned(),
        Ok(text) => format!("begins with the text '{}'", text.escape_debug()),
        Err(_) => {
            let bytes: Vec<_> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            format!("begins with the bytes {}", bytes.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_a_shell_as_they_are() {
        for text in ["", "a b", "it's", "$HOME", "*", "a\nb", "epochs=5", "\\", "\"", "~", "-x"] {
            let command = format!("printf '<%s>' {}", shell_word(text));
            let said = std::process::Command::new("bash").args(["-c", &command]).output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), format!("<{text}>"));
        }
    }

    #[test]
    fn what_cannot_be_seen_is_escaped() {
        let hostile = "a\u{1b}[2J\u{9b}1m\r\u{202e}b\u{2066}\u{feff}c'\"\\";
        assert_eq!(printable(hostile), "a\\u{1b}[2J\\u{9b}1m\\r\\u{202e}b\\u{2066}\\u{feff}c'\"\\");
        assert_eq!(message("one\n\u{1b}two"), "one\n\\u{1b}two");
        for character in
            ('\0'..='\u{1f}').chain('\u{7f}'..='\u{9f}').chain('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}')
        {
            assert!(!printable(&character.to_string()).contains(character), "{character:?}");
        }
        assert!(printable(&"a".repeat(100_000)).len() < 310);
        assert!(message(&"[".repeat(100_000)).len() < 17_000);
    }

    #[test]
    fn types_have_plain_names() {
        let reason = |text: &str| plain_words(&serde_json::from_str::<f64>(text).unwrap_err().to_string());
        assert_eq!(reason("null"), "invalid type: null, expected a number at line 1 column 4");
        let error = toml::from_str::<std::collections::HashMap<String, usize>>("\na = 'b'").unwrap_err();
        let found = toml_reason("\na = 'b'", &error);
        assert_eq!(found, "line 2: invalid type: string \"b\", expected a whole number of at least 0");
    }

    #[test]
    fn odd_paths_are_quoted() {
        for (path, expected) in [
            ("/data/x.JPEG", "/data/x.JPEG"),
            ("/my data/it's", "/my data/it's"),
            ("/d/x.JPEG ", "'/d/x.JPEG '"),
            ("/d /x", "'/d /x'"),
            ("/d/\u{feff}train/x", "'/d/\\u{feff}train/x'"),
            ("", "''"),
        ] {
            assert_eq!(shown(Path::new(path)), expected);
        }
    }

    #[test]
    fn text_of_either_byte_order_is_decoded() {
        let text = "acc is 1.0\nü";
        let le: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let be: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let marked = |mark: &[u8], body: &[u8]| [mark, body].concat();
        for bytes in [
            text.as_bytes().to_vec(),
            marked(&[0xef, 0xbb, 0xbf], text.as_bytes()),
            marked(&[0xff, 0xfe], &le),
            marked(&[0xfe, 0xff], &be),
            le,
            be,
        ] {
            assert_eq!(decoded(&bytes), text);
        }
        assert_eq!(decoded(&[0xff, 0xfe, 0x00, 0xd8]), "\u{fffd}");
    }
}
