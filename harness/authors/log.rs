//! A published log.txt. In: its path. Out: the test accuracies per class that it reports. Treated as hostile: its size is
//! bounded, and so is the memory for it; bytes that are not text are never part of a result. UTF-16, byte order marks,
//! colour codes and carriage returns (which end a line, as in Python) are read through.
//!
//! A result block is a line of accuracies per class and a line of the best model's accuracy (REFERENCE.md "Metrics"):
//! - CIFAR, per cent: `Each class acc is 91.20 ...` and `On the best_model, test tacc is 81.23`. Lines of the
//!   validations begin otherwise, with their epoch.
//! - ImageNet, fractions: `acc per class is 0.84 ...` and `On the best_model, test top5 tacc is 93.1`, which is top-5:
//!   only the classes tell top-1. Lines of the validations look the same, but the next line begins `vali:`.

use std::borrow::Cow;
use std::path::Path;

use super::AuthorsError;
use crate::fs;
use crate::recipe::{DatasetName, hash_bytes};
use crate::scores::{self, Groups, Scores, ScoresError, mean_std};
use crate::text;

/// Real logs have less than 1 MB.
const LOG_BYTES: u64 = 16 << 20;

/// How many lines at the end the published script searches: for accuracies per class of CIFAR, of ImageNet, and for the
/// accuracy.
const CIFAR_TAIL: usize = 20;
const IMAGENET_TAIL: usize = 5;
const ACCURACY_TAIL: usize = 20;

/// How far the accuracy line of a CIFAR log may lie from the mean over classes, in points: both may be rounded to two
/// places.
const ROUNDING: f64 = 0.0101;

/// What a log reports.
#[derive(Debug, Clone, PartialEq)]
pub struct LogResult {
    /// Accuracies per class, per cent, of each block that counts, the older first: one block, or more where the log is
    /// read as the published script does.
    pub blocks: Vec<Vec<f64>>,
    /// What the reader of the numbers should know, one sentence each.
    pub warnings: Vec<String>,
    /// sha256 of the file.
    pub sha256: String,
}

impl LogResult {
    /// The scores. With several blocks, as in the published script: All and the deviation over classes are computed over all
    /// their accuracies together, the groups from the oldest block.
    ///
    /// # Errors
    /// The groups do not fit the classes.
    pub fn scores(&self, groups: &Groups) -> Result<Scores, ScoresError> {
        let together = mean_std(&self.blocks.concat());
        let oldest = scores::scores(self.blocks.first().map_or(&[], Vec::as_slice), groups)?;
        Ok(Scores { all: together.mean, class_std: together.std, ..oldest })
    }
}

/// How the logs of a data set are written.
struct Style {
    class_line: &'static str,
    accuracy_line: &'static str,
    /// From what the lines hold to per cent.
    scale: f64,
    tail: usize,
    /// Whether the accuracy line is the mean over classes.
    top1: bool,
}

fn style_of(dataset: DatasetName) -> Style {
    match dataset {
        DatasetName::Imagenet100 | DatasetName::Imagenet => Style {
            class_line: "acc per class is",
            accuracy_line: "On the best_model, test top5 tacc is",
            scale: 100.0,
            tail: IMAGENET_TAIL,
            top1: false,
        },
        _ => Style {
            class_line: "Each class acc is",
            accuracy_line: "On the best_model, test tacc is",
            scale: 1.0,
            tail: CIFAR_TAIL,
            top1: true,
        },
    }
}

/// A line that belongs to a result; lines count from 1.
enum Mark<'a> {
    Classes { line: usize, values: &'a str },
    Accuracy { line: usize, value: &'a str },
}

/// A line of classes and its line of accuracy, parsed.
#[derive(Debug)]
struct Block {
    line: usize,
    per_class: Vec<f64>,
    accuracy: f64,
}

/// Reads the log at `path` of a probe with `classes` classes. By default the last complete block counts, wherever it
/// stands; with `strict_original` those count that the published script finds in the last lines.
///
/// # Errors
/// The file is missing, too large or no file, holds no complete result (it was cut short), or a result has another
/// number of classes or something else than accuracies.
pub fn read_log(
    path: &Path,
    dataset: DatasetName,
    classes: usize,
    strict_original: bool,
) -> Result<LogResult, AuthorsError> {
    let bytes = fs::read_at_most(path, LOG_BYTES)?;
    let sha256 = hash_bytes(&bytes);
    if bytes.is_empty() {
        return Err(AuthorsError::EmptyLog { path: path.to_path_buf() });
    }
    let text = plain_lines(text::decoded(&bytes));
    let log = Log { path, style: style_of(dataset), classes, text, sha256 };
    if strict_original { log.as_the_script_reads() } else { log.last_block() }
}

/// The text without codes that set a colour or clear a line (`ESC [ ... m` and `K`), every line of it ended by a newline alone.
fn plain_lines(text: Cow<str>) -> Cow<str> {
    if !text.contains(['\r', '\u{1b}']) {
        return text;
    }
    let ended = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut parts = ended.split("\u{1b}[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').strip_prefix(['m', 'K']) {
            Some(rest) => plain += rest,
            None => plain.extend(["\u{1b}[", part]),
        }
    }
    plain.into()
}

struct Log<'a> {
    path: &'a Path,
    style: Style,
    classes: usize,
    text: Cow<'a, str>,
    sha256: String,
}

impl Log<'_> {
    fn last_block(&self) -> Result<LogResult, AuthorsError> {
        let marks: Vec<Mark> = self.marks().filter(|(_, validation)| !validation).map(|(mark, _)| mark).collect();
        let (pairs, left_over) = paired(&marks);
        let Some((&(line, values, accuracy), earlier)) = pairs.split_last() else {
            return Err(self.no_result());
        };
        let block = self.block(line, values, accuracy)?;
        let mut warnings = Vec::new();
        let differing = earlier.iter().filter(|&&(line, values, accuracy)| {
            !self.block(line, values, accuracy).is_ok_and(|older| older.per_class == block.per_class)
        });
        match differing.count() {
            0 => {}
            count => warnings.push(format!(
                "{}: {count} of {} earlier results differ from the last, on line {line}, which counts",
                text::shown(self.path),
                earlier.len()
            )),
        }
        if left_over.is_some_and(|left_over| left_over > line) {
            warnings.push(format!(
                "{}: its last result was cut short; the complete one before it, on line {line}, counts",
                text::shown(self.path)
            ));
        }
        warnings.extend(self.disagreement(&block));
        Ok(LogResult { blocks: vec![block.per_class], warnings, sha256: self.sha256.clone() })
    }

    /// The script takes every line of classes among the last few, and wants a line of accuracy near the end too.
    fn as_the_script_reads(&self) -> Result<LogResult, AuthorsError> {
        let lines = self.text.lines().count();
        let after = |tail: usize| lines.saturating_sub(tail);
        let mut blocks = Vec::new();
        let mut accuracy = None;
        for (mark, _) in self.marks() {
            match mark {
                Mark::Classes { line, values } if line > after(self.style.tail) => {
                    blocks.push(self.accuracies(line, values)?);
                }
                Mark::Accuracy { line, value } if line > after(ACCURACY_TAIL) => accuracy = Some((line, value)),
                _ => {}
            }
        }
        match (accuracy, blocks.is_empty()) {
            (Some((line, value)), false) => self.number(line, value)?,
            _ => {
                return Err(match self.no_result() {
                    hidden @ AuthorsError::Hidden { .. } => hidden,
                    _ => AuthorsError::NoResultAtEnd { path: self.path.to_path_buf() },
                });
            }
        };
        let mut warnings = Vec::new();
        if blocks.len() > 1 {
            warnings.push(format!(
                "{}: {} results among its last lines are taken together, as the published script does",
                text::shown(self.path),
                blocks.len()
            ));
        }
        Ok(LogResult { blocks, warnings, sha256: self.sha256.clone() })
    }

    /// The lines that belong to results, and whether each is that of a validation, told by the line after it.
    fn marks(&self) -> impl Iterator<Item = (Mark<'_>, bool)> {
        let Style { class_line, accuracy_line, .. } = self.style;
        let following = self.text.lines().skip(1).map(Some).chain([None]);
        self.text.lines().zip(following).enumerate().filter_map(move |(index, (text, next))| {
            let line = index + 1;
            let classes = text.strip_prefix(class_line).map(|values| Mark::Classes { line, values });
            let mark = classes.or_else(|| text.strip_prefix(accuracy_line).map(|value| Mark::Accuracy { line, value }));
            mark.map(|mark| (mark, next.is_some_and(|next| next.starts_with("vali:"))))
        })
    }

    fn block(
        &self,
        line: usize,
        values: &str,
        (accuracy_line, accuracy): (usize, &str),
    ) -> Result<Block, AuthorsError> {
        let accuracy = self.number(accuracy_line, accuracy)?;
        Ok(Block { line, per_class: self.accuracies(line, values)?, accuracy })
    }

    /// Accuracies per class in per cent.
    fn accuracies(&self, line: usize, values: &str) -> Result<Vec<f64>, AuthorsError> {
        let found = values.split_whitespace().count();
        if found != self.classes {
            let path = self.path.to_path_buf();
            return Err(AuthorsError::Classes { path, line, found, expected: self.classes });
        }
        let Style { scale, .. } = self.style;
        let expected = if scale == 1.0 { "an accuracy between 0 and 100" } else { "an accuracy between 0 and 1" };
        let value = |word: &str| {
            let value = word.parse::<f64>().ok().filter(|value| (0.0..=100.0 / scale).contains(value));
            value.map(|value| value * scale).ok_or_else(|| self.bad_value(line, word, expected))
        };
        values.split_whitespace().map(value).collect()
    }

    /// The accuracy of a line of accuracy, always per cent.
    fn number(&self, line: usize, value: &str) -> Result<f64, AuthorsError> {
        let value = value.trim();
        let number = value.parse::<f64>().ok().filter(|value| (0.0..=100.0).contains(value));
        number.ok_or_else(|| self.bad_value(line, value, "an accuracy between 0 and 100"))
    }

    fn disagreement(&self, block: &Block) -> Option<String> {
        let mean = mean_std(&block.per_class).mean;
        (self.style.top1 && (mean - block.accuracy).abs() > ROUNDING).then(|| {
            format!(
                "{}: the mean over the classes on line {} is {mean:.2}, but the accuracy beside it is {:.2}; the classes count",
                text::shown(self.path),
                block.line,
                block.accuracy
            )
        })
    }

    fn bad_value(&self, line: usize, found: &str, expected: &'static str) -> AuthorsError {
        // Lines of hostile files are long.
        let found = text::printable(&found.chars().take(40).collect::<String>());
        AuthorsError::Value { path: self.path.to_path_buf(), line, found, expected }
    }

    /// Why there is no result: what the lines begin with hides it, or it is not there. Every CIFAR log holds the accuracies
    /// of validations behind their epoch; the line of accuracy is a result's alone.
    fn no_result(&self) -> AuthorsError {
        let Style { class_line, accuracy_line, .. } = self.style;
        let path = self.path.to_path_buf();
        let hidden = |text: &str| text.find(accuracy_line).is_some_and(|at| at > 0);
        match self.text.lines().position(hidden) {
            Some(index) => AuthorsError::Hidden { path, line: index + 1, accuracy_line, class_line },
            None => AuthorsError::NoResult { path, class_line, accuracy_line },
        }
    }
}

/// Line of classes, its values, and the line of accuracy with its value.
type Pair<'a> = (usize, &'a str, (usize, &'a str));

/// Each line of classes with the accuracy that follows it at once or, where none does, with one just before that belongs
/// to no other; and the last line that stayed alone.
fn paired<'a>(marks: &[Mark<'a>]) -> (Vec<Pair<'a>>, Option<usize>) {
    let (mut pairs, mut alone) = (Vec::new(), None);
    let mut before: Option<(usize, &str)> = None;
    let mut rest = marks;
    while let [first, others @ ..] = rest {
        rest = others;
        let earlier = before.take();
        match (first, others) {
            (Mark::Classes { line, values }, [Mark::Accuracy { line: at, value }, others @ ..]) => {
                alone = earlier.map(|(line, _)| line).or(alone);
                pairs.push((*line, *values, (*at, *value)));
                rest = others;
            }
            (Mark::Classes { line, values }, _) => match earlier {
                Some(accuracy) => pairs.push((*line, *values, accuracy)),
                None => alone = Some(*line),
            },
            (Mark::Accuracy { line, value }, _) => {
                alone = earlier.map(|(line, _)| line).or(alone);
                before = Some((*line, *value));
            }
        }
    }
    (pairs, before.map(|(line, _)| line).or(alone))
}
