//! Which names entries of an archive may have, so that each stays in its folder, collides with no other on any file
//! system, and is read in the same way by every program.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::bounds;

/// Why an entry's name is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The name itself, whatever else there is.
    Name(&'static str),
    /// The entries before it.
    Duplicate(String),
    Bound {
        what: &'static str,
        found: usize,
        allowed: usize,
    },
}

/// Checks a name as it stands in the archive, without the slash that ends a folder's.
pub(super) fn check(name: &[u8]) -> Result<&str, Refusal> {
    let Ok(name) = std::str::from_utf8(name) else { return Err(Refusal::Name("has a name that is not UTF-8")) };
    let parts = || name.split('/');
    for (what, found, allowed) in [
        ("bytes of its name", name.len(), bounds::NAME_BYTES),
        ("folders deep", parts().count(), bounds::DEPTH),
        ("bytes of a part of its name", parts().map(str::len).max().unwrap_or(0), bounds::PART_BYTES),
    ] {
        if found > allowed {
            return Err(Refusal::Bound { what, found, allowed });
        }
    }
    let reason = if name.starts_with('/') {
        "has an absolute path"
    } else if parts().any(|part| part == "..") {
        "leads out of the archive"
    } else if parts().any(|part| part.is_empty() || part == ".") {
        "has an empty or a '.' part in its name"
    } else if name.contains('\\') {
        "has a backslash in its name"
    } else if name.contains(char::is_control) {
        "has a control character in its name"
    } else if name.contains(|character: char| matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')) {
        "has a character in its name that turns the direction of writing"
    } else {
        return Ok(name);
    };
    Err(Refusal::Name(reason))
}

/// The names so far.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// By lower-case path: some file systems take `A` and `a` for one.
    nodes: HashMap<String, Node>,
}

#[derive(Debug)]
struct Node {
    spelling: String,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Kind {
    File,
    Folder,
    /// A folder that has no entry of its own so far.
    Implied,
}

impl Tree {
    /// Adds a checked name; its parents become folders.
    pub(super) fn add(&mut self, name: &str, folder: bool) -> Result<(), Refusal> {
        for (end, _) in name.match_indices('/') {
            self.add_node(&name[..end], Kind::Implied)?;
        }
        self.add_node(name, if folder { Kind::Folder } else { Kind::File })
    }

    fn add_node(&mut self, path: &str, kind: Kind) -> Result<(), Refusal> {
        match self.nodes.entry(path.to_lowercase()) {
            Entry::Vacant(place) => {
                place.insert(Node { spelling: path.to_owned(), kind });
                Ok(())
            }
            Entry::Occupied(mut place) => {
                let before = place.get_mut();
                let reason = match (before.kind, kind) {
                    _ if before.spelling != path => {
                        format!(
                            "differs from '{}' only in upper and lower case",
                            crate::text::printable(&before.spelling)
                        )
                    }
                    (Kind::Folder | Kind::Implied, Kind::Implied) => return Ok(()),
                    (Kind::Implied, Kind::Folder) => {
                        before.kind = Kind::Folder;
                        return Ok(());
                    }
                    (Kind::File, Kind::Implied) => {
                        format!("lies in '{}', which is a file", crate::text::printable(path))
                    }
                    _ => "has the name of an entry before it".to_owned(),
                };
                Err(Refusal::Duplicate(reason))
            }
        }
    }
}
