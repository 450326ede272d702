//! Text that others wrote, made safe to print.

/// What is not printable escaped, and cut after 300 bytes.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::new();
    for character in text.chars() {
        if safe.len() > 300 {
            safe.push_str("...");
            break;
        }
        match character {
            '\'' | '"' | '\\' => safe.push(character),
            _ => safe.extend(character.escape_debug()),
        }
    }
    safe
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
