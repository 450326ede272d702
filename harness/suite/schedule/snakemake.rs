//! A Snakefile over the list as JSON: a rule for each job that is not done. Its mark, not the record, is the rule's output,
//! since Snakemake deletes outputs before it runs a rule.

use super::{JobList, Place};

const SNAKEFILE: &str = include_str!("Snakefile");

/// The Snakefile.
pub(super) fn snakefile(list: &JobList, place: &Place) -> Result<String, serde_json::Error> {
    let folder = serde_json::to_string(&place.folder.display().to_string())?;
    Ok(SNAKEFILE.replace("@FOLDER@", &folder).replace("@JOBS@", &serde_json::to_string_pretty(list)?))
}
