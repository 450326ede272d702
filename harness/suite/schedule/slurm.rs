//! A job array of Slurm: a task for each encoder. Before its time is up a task is sent SIGTERM, saves, and is queued again.

use super::{JobList, Place, SuiteError, branches, short_name};
use crate::text::{printable, shell_word};

const SCRIPT: &str = include_str!("slurm.sh");

/// The script for sbatch.
///
/// # Errors
/// An `#SBATCH` line cannot hold the folder's name.
pub(super) fn script(list: &JobList, place: &Place) -> Result<String, SuiteError> {
    let tasks = list.tasks();
    let folder = place.folder.display().to_string();
    if folder.contains(['"', '\\', '\n']) {
        return Err(SuiteError::SlurmFolder { folder: printable(&folder) });
    }
    Ok(SCRIPT
        .replace("@WORD@", &shell_word(&folder))
        .replace("@NAME@", &short_name(&list.suite))
        .replace("@LAST@", &tasks.len().saturating_sub(1).to_string())
        // Slurm replaces what follows a % in names of files.
        .replace("@FOLDER@", &folder.replace('%', "%%"))
        .replace("@TASKS@\n", &branches(&tasks)))
}
