//! What a suite's folder may hold already. In: the folder and what is to run in it. Out: nothing, or why running there would
//! damage existing results; nothing has been written then.

use std::path::Path;

use serde_json::{Value, json};

use super::SuiteError;
use super::context::{self, Context};
use super::plan::PlannedEncoder;
use crate::fs;
use crate::recipe::{JobId, Part, name_of};
use crate::record::{self, JobHeader, JobRecord, SuiteRecord};

/// Refuses a folder whose finished jobs are of a smoke run while this is none, or the other way round: its report would
/// be lost to this one's.
pub(super) fn refuse_other_scale(
    folder: &Path,
    jobs: impl Iterator<Item = JobId>,
    smoke: bool,
) -> Result<(), SuiteError> {
    for job in jobs {
        if finished(folder, &job).is_some_and(|done| done.smoke != smoke) {
            return Err(SuiteError::OtherScale { folder: folder.display().to_string(), job: job.to_string() });
        }
    }
    Ok(())
}

/// The head of the job's record, if it is finished. A record that does not read is that job's own failure.
fn finished(folder: &Path, job: &JobId) -> Option<JobHeader> {
    let record = record::read_result(&folder.join(job.to_string()).join("result.json"));
    record.ok().flatten().map(|record| record.header().clone())
}

/// Refuses a folder in which a job of `plan` was finished with another recipe or on other data.
pub(super) fn refuse_other_settings(
    context: &Context,
    plan: &[PlannedEncoder],
    folder: &Path,
) -> Result<(), SuiteError> {
    for encoder in plan {
        for job in encoder.jobs() {
            let Some(done) = finished(folder, &job) else { continue };
            let expected = match (encoder.pretrained_on(), job.part) {
                (Some(list), Part::Pretrain) => {
                    // A list that cannot be read is the job's own failure.
                    let Ok((_, header)) = context.pretraining(encoder, list) else { continue };
                    if header.recipe_hash == done.recipe_hash {
                        continue;
                    }
                    header
                }
                (list, _) => {
                    let Part::Probe { protocol, seed } = job.part else { continue };
                    let recipe = context::by_seed(&encoder.recipe, protocol, seed).to_json()?;
                    let read = |recipe: &Value| {
                        let mut keys = json!({ "probe": { name_of(&protocol): recipe["probe"][name_of(&protocol)] } });
                        let of_network = ["network", "stem", "width", "threads"];
                        // The network of an encoder that is not trained is drawn by the seed of pre-training.
                        let drawn = list.is_none().then_some("seed");
                        for key in of_network.into_iter().chain(drawn) {
                            keys[key] = recipe[key].clone();
                        }
                        keys
                    };
                    let same_data = context.dataset.sha256.as_ref().is_none_or(|sha256| *sha256 == done.data_sha256);
                    let same_limits = context.limits() == (done.limit_images, done.limit_epochs);
                    if read(&recipe) == read(&done.recipe) && same_data && same_limits {
                        continue;
                    }
                    let (limit_images, limit_epochs) = context.limits();
                    let data_sha256 = context.dataset.sha256.clone().unwrap_or_else(|| done.data_sha256.clone());
                    let (found, expected) = (read(&done.recipe), read(&recipe));
                    let found = JobHeader { recipe: found, ..done.clone() };
                    let expected = JobHeader { recipe: expected, data_sha256, limit_images, limit_epochs, ..done };
                    return Err(other_settings(folder, &job, &found, &expected));
                }
            };
            return Err(other_settings(folder, &job, &done, &expected));
        }
    }
    Ok(())
}

fn other_settings(folder: &Path, job: &JobId, found: &JobHeader, expected: &JobHeader) -> SuiteError {
    let (folder, job) = (folder.display().to_string(), job.to_string());
    SuiteError::OtherSettings { folder, job, difference: first_difference(found, expected) }
}

/// The first key in which two JSON values differ, and what each holds there; `key` is where they stand.
pub(super) fn difference(key: &str, found: &Value, expected: &Value) -> Option<(String, String, String)> {
    match (found, expected) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            keys.into_iter().find_map(|inner| {
                let key = if key.is_empty() { inner.clone() } else { format!("{key}.{inner}") };
                difference(&key, a.get(inner).unwrap_or(&Value::Null), b.get(inner).unwrap_or(&Value::Null))
            })
        }
        (a, b) if a == b => None,
        (a, b) => Some((key.to_owned(), a.to_string(), b.to_string())),
    }
}

/// The first key in which two jobs differ, and what each holds, in words.
fn first_difference(found: &JobHeader, expected: &JobHeader) -> String {
    let rest = |header: &JobHeader| {
        json!({
            "images": header.data_sha256, "limit_images": header.limit_images, "limit_epochs": header.limit_epochs,
        })
    };
    let lists = |header: &JobHeader| json!(header.splits_sha256);
    let differs = difference("", &found.recipe, &expected.recipe)
        // The hash of image files, which are never read whole, is that of the lists that name them.
        .or_else(|| difference("lists", &lists(found), &lists(expected)))
        .or_else(|| difference("", &rest(found), &rest(expected)))
        .unwrap_or_else(|| ("its hash".to_owned(), found.recipe_hash.clone(), expected.recipe_hash.clone()));
    let (key, found, expected) = differs;
    format!("{key} is {found} there and {expected} now")
}

/// Refuses a folder whose report.json has `key`, which that of the `other` kind of suite alone has.
pub(super) fn refuse_other_report(folder: &Path, key: &str, other: &'static str) -> Result<(), SuiteError> {
    let path = folder.join("report.json");
    if !fs::exists(&path)? {
        return Ok(());
    }
    // What does not parse is no report of ours.
    match serde_json::from_slice::<Value>(&fs::read(&path)?).is_ok_and(|report| report.get(key).is_some()) {
        true => Err(SuiteError::OtherReport { folder: folder.display().to_string(), found: other }),
        false => Ok(()),
    }
}

/// The finished jobs of the suite's folder that are not in `record` and belong beside it: of the same suite and scale.
pub(super) fn others(folder: &Path, record: &SuiteRecord) -> Result<Vec<JobRecord>, SuiteError> {
    let known = |job: &JobId| record.results.iter().any(|result| result.header().job == *job);
    let (mut results, damaged) = record::read_results(folder)?;
    damaged.iter().for_each(|error| tracing::warn!("{error}"));
    results.retain(|result| {
        let header = result.header();
        header.suite == record.suite && header.smoke == record.smoke && !known(&header.job)
    });
    Ok(results)
}
