//! What the authors published: the names of their run folders, and their logs. In: a folder with their files. Out:
//! which runs are there, the accuracies per class that each log reports, and the summary that the original script
//! makes of them. Implements REFERENCE.md "Recipes published" (names), "Evaluation" and "Metrics" (log lines).

mod counts;
mod log;
mod names;
mod summary;
mod tree;

pub use counts::{class_counts, counts_of_list};
pub use log::{LogResult, read_log};
pub use names::{LOG, PublishedMethod, Run, SUITES, dataset_of, method_called, methods_of};
pub use summary::{Analysis, Column, Question, Summary, analyse};
pub use tree::{Found, Tree};

use std::path::PathBuf;

use crate::fs::FsError;
use crate::recipe::{DatasetName, name_of};
use crate::scores::ScoresError;
use crate::split::SplitError;
use crate::text::shown;

/// Something that was published could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum AuthorsError {
    #[error("nothing was published for '{found}'; there are files for {known}")]
    Suite { found: String, known: String },
    #[error("no run of {} on {} was published; use simclr", name_of(.method), name_of(.dataset))]
    Method { dataset: DatasetName, method: PublishedMethod },
    #[error("no published run is of '{found}'; there are runs of simclr and sdclr")]
    UnknownMethod { found: String },
    #[error(transparent)]
    Split(#[from] SplitError),
    #[error("{source}; the folder must hold what the authors' archives unpack to, e.g. {example}")]
    Folder { source: FsError, example: String },
    #[error("no folder of a published run of {suite} lies under {}; the first looked for is {example}", shown(folder))]
    Nothing { suite: String, folder: PathBuf, example: String },
    #[error(
        "{} holds over {limit} files and folders, too many to search; name the folder that the archives were unpacked to",
        shown(folder)
    )]
    TooMany { folder: PathBuf, limit: usize },
    #[error("there are {} folders called {name}: {}; keep one, or name a folder that holds one", .found.len(), .found.join(", "))]
    Twice { name: String, found: Vec<String> },
    #[error("there is no folder {name} in {}", shown(folder))]
    NoRun { name: String, folder: PathBuf },
    #[error(transparent)]
    File(#[from] FsError),
    #[error(
        "{} holds no complete result: lines that begin '{class_line}' and '{accuracy_line}' are expected together; it looks \
         cut short: copy it again",
        shown(path)
    )]
    NoResult { path: PathBuf, class_line: &'static str, accuracy_line: &'static str },
    #[error("{} is empty: its run wrote nothing, or the copy failed; copy it again", shown(path))]
    EmptyLog { path: PathBuf },
    #[error(
        "{}, line {line}, holds '{accuracy_line}' in its middle; results are read from lines that begin with that or with \
         '{class_line}': remove what stands before them, such as time stamps",
        shown(path)
    )]
    Hidden { path: PathBuf, line: usize, accuracy_line: &'static str, class_line: &'static str },
    #[error(
        "{} holds no complete result in its last lines, where the published script looks for one; leave --strict-original \
         out to have the whole log looked through",
        shown(path)
    )]
    NoResultAtEnd { path: PathBuf },
    #[error(
        "{}, line {line}, has accuracies of {found} classes, expected {expected}; is it the log of this data set?",
        shown(path)
    )]
    Classes { path: PathBuf, line: usize, found: usize, expected: usize },
    #[error("{}, line {line}: '{found}' stands where {expected} is expected; copy the log again", shown(path))]
    Value { path: PathBuf, line: usize, found: String, expected: &'static str },
    #[error(transparent)]
    Verdict(#[from] ScoresError),
    #[error(
        "the class counts of {} come from its long-tailed list, which is not part of this program: name the folder that \
         holds split/{list} with --data DIR (or SDCLR_DATA); the list is in the authors' repository",
        name_of(.dataset)
    )]
    NoList { dataset: DatasetName, list: &'static str },
    #[error(
        "{} is not the published list: its git blob id is {found}, expected {expected}; download it again",
        shown(path)
    )]
    OtherList { path: PathBuf, found: String, expected: &'static str },
    #[error("line {line} of the list does not end in a class between 0 and {last}; download it again")]
    ListLine { line: usize, last: usize },
    #[error("the table of class counts lacks {list}; this program is damaged: build it again")]
    NoCounts { list: String },
}
