//! Lists as text: those of ImageNet, lines `PATH LABEL` (REFERENCE.md "Evaluation", Lists), and one's own of positions. In: a
//! list's bytes. Out: its images and labels, or the positions, every line checked.

use std::collections::HashSet;
use std::path::Path;

use super::{Images, SplitError, Subset};
use crate::dataset::ImageFiles;
use crate::recipe::hash_bytes;
use crate::text::decoded;

/// The list called `name` in `bytes`, in UTF-8 or UTF-16; its images lie in the folder `root`.
///
/// # Errors
/// A line is not of the form `PATH LABEL`, its path leads out of the folder or is named before, its label is not below
/// `classes`, or there is no line.
pub fn parse(name: String, bytes: &[u8], root: &Path, classes: usize) -> Result<Subset, SplitError> {
    let text = decoded(bytes);
    let mut seen = HashSet::new();
    let (mut paths, mut labels) = (Vec::<Box<str>>::new(), Vec::new());
    for (line, found) in (1..).zip(text.lines()) {
        let wrong = |reason: String| SplitError::Line { list: name.clone(), line, found: shortened(found), reason };
        let (path, label) = entry(found, classes).map_err(wrong)?;
        if !seen.insert(path) {
            return Err(wrong("names an image that an earlier line names".to_owned()));
        }
        paths.push(path.into());
        labels.push(label);
    }
    if paths.is_empty() {
        return Err(SplitError::Empty { list: name });
    }
    let rows: Vec<i64> = (0..labels.len() as i64).collect();
    let files = ImageFiles::new(root, &name, paths);
    let addresses = rows.iter().map(|&row| files.address(row)).collect();
    let sha256 = hash_bytes(bytes);
    Ok(Subset { name, sha256, official: true, images: Images::Files(files), rows, labels, addresses })
}

/// Positions, one a line, as `numpy.savetxt(..., fmt="%d")` writes them.
///
/// # Errors
/// A line is no such number.
pub fn positions(name: &str, bytes: &[u8]) -> Result<Vec<i64>, SplitError> {
    let position = |(line, found): (usize, &str)| {
        found.trim().parse::<i64>().map_err(|_| SplitError::Line {
            list: name.to_owned(),
            line,
            found: shortened(found),
            reason: "is not a position: a whole number is expected on each line".to_owned(),
        })
    };
    (1..).zip(decoded(bytes).lines()).map(position).collect()
}

/// Path and label of a line, or what is wrong with it. Blanks around either are not part of them, as in Python's `split`.
fn entry(line: &str, classes: usize) -> Result<(&str, i64), String> {
    let form = || "is not of the form PATH LABEL".to_owned();
    let (path, label) = line.trim_end().rsplit_once([' ', '\t']).ok_or_else(form)?;
    let path = path.trim_end();
    if path.is_empty() || label.is_empty() || !label.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(form());
    }
    let stays = |part: &str| !matches!(part, "" | "." | "..");
    let strange = |character: char| character.is_control() || matches!(character, '\\' | char::REPLACEMENT_CHARACTER);
    if !path.split('/').all(stays) || path.contains(strange) {
        return Err("has a path that is not plain names joined by /, relative to the folder of the images".to_owned());
    }
    match label.parse::<usize>() {
        Ok(label) if label < classes => Ok((path, label as i64)),
        _ => Err(format!("has a label that is not one of 0 to {}", classes - 1)),
    }
}

/// A line as a message shows it.
fn shortened(line: &str) -> String {
    const MOST: usize = 120;
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}...", &line[..end]),
        None => format!("{line:?}"),
    }
}
