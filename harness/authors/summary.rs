//! The summary that the original script makes of published logs. In: a folder of run folders and which runs to take.
//! Out: per split and over the splits, All, Many, Medium, Few and the deviations over classes and over groups.

use std::path::Path;

use serde::Serialize;

use super::{AuthorsError, LOG, PublishedMethod, Run, class_counts, read_log};
use crate::recipe::{DatasetName, PretrainSplit, Protocol};
use crate::scores::{Scores, groups_of, mean_std};
use crate::split::published_splits;

/// Which logs to sum up: one run a split.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    pub dataset: DatasetName,
    pub method: PublishedMethod,
    pub pretrain_split: PretrainSplit,
    pub protocol: Protocol,
    /// Read the logs as the published script does.
    pub strict_original: bool,
}

/// What the logs say.
#[derive(Debug)]
pub struct Analysis {
    pub question: Question,
    /// How many splits there are.
    pub expected: usize,
    /// Split and scores, of the logs that could be read.
    pub splits: Vec<(usize, Scores)>,
    /// Split and reason, of the others.
    pub failures: Vec<(usize, AuthorsError)>,
    pub warnings: Vec<String>,
}

/// One number of every split, and its mean and population standard deviation over them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Column {
    pub mean: f64,
    pub std: f64,
    pub per_split: Vec<f64>,
}

/// Accuracies in per cent; the two deviations as fractions, as the published script prints them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub all: Column,
    /// Population standard deviation over the classes.
    pub class_std: Column,
    /// Population standard deviation of (many, medium, few).
    pub group_std: Column,
    pub many: Column,
    pub medium: Column,
    pub few: Column,
}

/// Reads the log of every split under `folder`, which holds the run folders directly. `data` is the folder that holds
/// split/, needed for [`DatasetName::Imagenet`] alone.
///
/// # Errors
/// No such runs were published, `folder` is none, or the class counts cannot be had. What is wrong with one run is
/// told in [`Analysis::failures`].
pub fn analyse(folder: &Path, question: Question, data: Option<&Path>) -> Result<Analysis, AuthorsError> {
    let Question { dataset, method, pretrain_split, protocol, strict_original } = question;
    let first = Run::new(dataset, method, pretrain_split, 1)?;
    let example = first.probe_folder(protocol);
    crate::fs::list_folder(folder).map_err(|source| AuthorsError::Folder { source, example })?;
    let expected = published_splits(dataset);
    let mut analysis = Analysis { question, expected, splits: Vec::new(), failures: Vec::new(), warnings: Vec::new() };
    for split in 1..=expected {
        let counts = class_counts(dataset, split, data)?;
        let name = Run { split, ..first }.probe_folder(protocol);
        let run = folder.join(&name);
        let result = match run.is_dir() {
            true => read_log(&run.join(LOG), dataset, counts.len(), strict_original),
            false => Err(AuthorsError::NoRun { name, folder: folder.to_path_buf() }),
        };
        let scored = result.and_then(|log| Ok((log.scores(&groups_of(dataset, &counts))?, log.warnings)));
        match scored {
            Ok((scores, warnings)) => {
                analysis.splits.push((split, scores));
                analysis.warnings.extend(warnings);
            }
            Err(error) => analysis.failures.push((split, error)),
        }
    }
    Ok(analysis)
}

impl Analysis {
    /// The numbers over the splits that could be read; all NaN where there is none.
    pub fn summary(&self) -> Summary {
        let column = |value: fn(&Scores) -> f64| {
            let per_split: Vec<f64> = self.splits.iter().map(|(_, scores)| value(scores)).collect();
            let over = mean_std(&per_split);
            Column { mean: over.mean, std: over.std, per_split }
        };
        Summary {
            all: column(|scores| scores.all),
            class_std: column(|scores| scores.class_std / 100.0),
            group_std: column(|scores| scores.std / 100.0),
            many: column(|scores| scores.many),
            medium: column(|scores| scores.medium),
            few: column(|scores| scores.few),
        }
    }
}
