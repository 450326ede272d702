//! A job array of Slurm: a task for each encoder. Before its time is up a task is sent SIGTERM, saves, and is queued again.

use super::{JobList, Place, branches, short_name};

const SCRIPT: &str = include_str!("slurm.sh");

/// The script for sbatch.
pub(super) fn script(list: &JobList, place: &Place) -> String {
    let tasks = list.tasks();
    SCRIPT
        .replace("@NAME@", &short_name(&list.suite))
        .replace("@LAST@", &tasks.len().saturating_sub(1).to_string())
        .replace("@FOLDER@", &place.folder.display().to_string())
        .replace("@TASKS@\n", &branches(&tasks))
}
