//! What suite folders hold, read back for a report. In: folders, finished or not. Out: the report's input: records, what is
//! missing, verdicts, where each record lies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::plan::{Selection, plan};
use super::together::{PUBLISHED_REPORT, authors_of, judged, read_published};
use super::{PlannedEncoder, SuiteError};
use crate::fs::{self, FsError};
use crate::recipe::{JobId, Part, Suite};
use crate::record::evidence::EvidenceRecord;
use crate::record::mechanism::{self, MechanismRecord};
use crate::record::{self, Event, Failure, Invocation, JobRecord, PublishedRecord, SuiteRecord};
use crate::verdict::Verdicts;

/// The records of one suite.
#[derive(Debug)]
pub struct ReadBack {
    /// What was trained and probed here; `None` where only the authors' files were evaluated.
    pub suite: Option<SuiteRecord>,
    /// What the authors' files said.
    pub authors: Option<PublishedRecord>,
    /// The claims judged, or why none could be.
    pub verdicts: Result<Verdicts, String>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
    folders: BTreeMap<JobId, PathBuf>,
}

impl ReadBack {
    /// The folder of each job's suite, from `out`; jobs whose suite lies in `out` itself are left out.
    ///
    /// # Errors
    /// `out` is not there.
    pub fn places(&self, out: &Path) -> Result<BTreeMap<JobId, String>, FsError> {
        let mut places = BTreeMap::new();
        for (job, folder) in &self.folders {
            let place = fs::path_between(out, folder)?.display().to_string();
            if !place.is_empty() {
                places.insert(job.clone(), place);
            }
        }
        Ok(places)
    }
}

/// Reads `folders`, which must hold one suite. What their last commands asked for and is not there counts among the
/// failures, with how far it came.
///
/// # Errors
/// A folder holds no record, a record is damaged, or the records do not belong together.
pub fn read_back(folders: &[PathBuf]) -> Result<ReadBack, SuiteError> {
    let mut found = Found::default();
    folders.iter().try_for_each(|folder| found.add(folder))?;
    let mut suites: Vec<String> = found.results.iter().map(|record| record.header().suite.clone()).collect();
    suites.extend(found.invocations.iter().map(|(suite, _)| suite.clone()));
    suites.extend(found.authors.iter().map(|record| record.suite.clone()));
    suites.sort();
    suites.dedup();
    let names = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
    let suite = match suites.as_slice() {
        [suite] => suite.clone(),
        _ => return Err(SuiteError::SeveralSuites { folders: names, suites: suites.join(", ") }),
    };
    let judged = match found.with_evidence.is_empty() {
        true => Err(SuiteError::NoEvidence { folder: names }),
        false => judged(&found.with_evidence),
    };
    let verdicts = match judged {
        Ok(verdicts) => Ok(verdicts),
        Err(error @ (SuiteError::NoEvidence { .. } | SuiteError::Verdict(_))) => Err(error.why_no_verdict()),
        Err(error) => return Err(error),
    };
    let own = !found.results.is_empty() || !found.invocations.is_empty();
    let record = own.then(|| found.record(suite));
    Ok(ReadBack { suite: record, authors: found.authors, verdicts, files: found.files, folders: found.folders })
}

/// What the folders hold.
#[derive(Default)]
struct Found {
    results: Vec<JobRecord>,
    mechanisms: Vec<MechanismRecord>,
    evidence: Vec<EvidenceRecord>,
    /// Of each folder that says so: its suite, and what was asked for.
    invocations: Vec<(String, Invocation)>,
    authors: Option<PublishedRecord>,
    files: Vec<PathBuf>,
    folders: BTreeMap<JobId, PathBuf>,
    /// The folders that have a finished probe or the authors' files.
    with_evidence: Vec<PathBuf>,
    missing: Vec<Failure>,
    /// The jobs that the commands asked for, in their order.
    planned: Vec<JobId>,
}

impl Found {
    fn add(&mut self, folder: &Path) -> Result<(), SuiteError> {
        let (results, damaged) = record::read_results(folder)?;
        let (mechanisms, damaged_mechanisms) = mechanism::read_all(folder, &results);
        let (evidence, damaged_evidence) = record::evidence::read(folder)?;
        if let Some(error) = damaged.into_iter().next() {
            return Err(error.into());
        }
        // The report goes without them, as after a run.
        damaged_mechanisms.iter().chain(&damaged_evidence).for_each(|error| tracing::warn!("{error}"));
        let of_job = |record: &MechanismRecord| folder.join(record.job.to_string()).join(mechanism::FILE);
        self.files.extend(mechanisms.iter().map(of_job));
        self.files.extend(record::evidence::files(folder)?);
        self.mechanisms.extend(mechanisms);
        self.evidence.extend(evidence);
        let (authors, about) = (read_published(folder)?, record::read_folder(folder)?);
        if results.is_empty() && authors.is_none() && about.is_none() {
            return Err(SuiteError::NoRecord { folder: folder.display().to_string() });
        }
        let of_suite = |record: &JobRecord| !matches!(record.header().job.part, Part::Published { .. });
        let probed = results.iter().any(|record| of_suite(record) && record.as_probe().is_some());
        if probed || !authors_of(folder)?.is_empty() {
            self.with_evidence.push(folder.to_path_buf());
        }
        for result in results {
            let job = result.header().job.clone();
            self.files.push(folder.join(job.to_string()).join("result.json"));
            if let Some(other) = self.folders.insert(job.clone(), folder.to_path_buf()) {
                let difference = format!("{} and {} both hold {job}", other.display(), folder.display());
                return Err(SuiteError::NotTogether { difference });
            }
            if of_suite(&result) {
                self.results.push(result);
            }
        }
        if let Some(authors) = authors {
            self.files.push(folder.join(PUBLISHED_REPORT));
            self.authors = Some(authors);
        }
        if let Some(about) = about {
            self.files.push(folder.join(record::FOLDER));
            self.look_for_missing(folder, &about.invocation);
            self.invocations.push((about.suite, about.invocation));
        }
        Ok(())
    }

    /// Notes what `invocation` asked for and `folder` lacks.
    fn look_for_missing(&mut self, folder: &Path, invocation: &Invocation) {
        match planned(invocation) {
            Ok(encoders) => {
                for job in encoders.iter().flat_map(PlannedEncoder::jobs) {
                    if !fs::exists(&folder.join(job.to_string()).join("result.json")).unwrap_or(false) {
                        let error = progress_of(&folder.join(job.to_string()));
                        self.missing.push(Failure { job: job.to_string(), error });
                    }
                    self.planned.push(job);
                }
            }
            Err(error) => tracing::warn!("what is missing in {} cannot be told: {error}", folder.display()),
        }
    }

    /// The record of one suite, its jobs in the order of the commands.
    fn record(&mut self, suite: String) -> SuiteRecord {
        let mut results = std::mem::take(&mut self.results);
        let place = |job: &JobId| self.planned.iter().position(|known| known == job).unwrap_or(usize::MAX);
        results.sort_by_key(|record| place(&record.header().job));
        self.mechanisms.sort_by_key(|record| place(&record.job));
        // What one folder lacks may lie in another.
        self.missing.retain(|missing| self.folders.keys().all(|job| job.to_string() != missing.job));
        self.missing.dedup_by(|a, b| a.job == b.job);
        let invocation = joined(self.invocations.iter().map(|(_, invocation)| invocation));
        let invocation = invocation.unwrap_or_else(|| of_results(&results, &suite));
        let smoke = results.iter().any(|record| record.header().smoke);
        SuiteRecord {
            suite,
            invocation,
            smoke,
            results,
            mechanisms: std::mem::take(&mut self.mechanisms),
            evidence: std::mem::take(&mut self.evidence),
            failures: std::mem::take(&mut self.missing),
            seconds: None,
        }
    }
}

/// What `invocation` asked for; nothing of encoders that were trained elsewhere.
fn planned(invocation: &Invocation) -> Result<Vec<PlannedEncoder>, SuiteError> {
    if invocation.encoders.is_some() {
        return Ok(Vec::new());
    }
    let Invocation { suite, methods, splits, pretrain_splits, overrides, seeds, probe_seeds, .. } = invocation.clone();
    plan(&Suite::open(&suite)?, &Selection { methods, splits, pretrain_splits, overrides, seeds, probe_seeds })
}

/// How far a job that is not finished came.
fn progress_of(folder: &Path) -> String {
    let path = folder.join("run.jsonl");
    if !fs::exists(&path).unwrap_or(false) {
        return "not begun".to_owned();
    }
    let events = match record::read_events(&path) {
        Ok(events) => events,
        Err(error) => return error.to_string(),
    };
    match events.last() {
        Some((Event::Failure { error }, _)) => error.clone(),
        _ => match events.iter().filter(|(event, _)| matches!(event, Event::Epoch(_))).count() {
            1 => "stopped after 1 epoch".to_owned(),
            epochs => format!("stopped after {epochs} epochs"),
        },
    }
}

/// One command for what several asked: the union of what they named. Their recipes are the same.
fn joined<'a>(invocations: impl Iterator<Item = &'a Invocation>) -> Option<Invocation> {
    let mut invocations = invocations.cloned();
    let mut all = invocations.next()?;
    for more in invocations {
        union(&mut all.methods, more.methods);
        union(&mut all.splits, more.splits);
        union(&mut all.pretrain_splits, more.pretrain_splits);
        all.seeds = all.seeds.max(more.seeds);
        all.probe_seeds = all.probe_seeds.max(more.probe_seeds);
    }
    all.splits.sort_unstable();
    Some(all)
}

/// A command that asks for what `results` has, where no folder says what was asked for.
fn of_results(results: &[JobRecord], suite: &str) -> Invocation {
    let ids = || results.iter().map(|record| &record.header().job);
    let mut splits: Vec<usize> = ids().map(|job| job.encoder.split).collect();
    splits.sort_unstable();
    splits.dedup();
    let probe_seed = |job: &JobId| if let Part::Probe { seed, .. } = job.part { seed } else { 1 };
    Invocation {
        suite: suite.to_owned(),
        splits,
        seeds: ids().map(|job| job.encoder.seed).max().unwrap_or(1),
        probe_seeds: ids().map(probe_seed).max().unwrap_or(1),
        ..Invocation::default()
    }
}

/// Adds `more` to `all`; an empty list stands for everything.
fn union<T: PartialEq>(all: &mut Vec<T>, more: Vec<T>) {
    match all.is_empty() || more.is_empty() {
        true => all.clear(),
        false => {
            let new: Vec<T> = more.into_iter().filter(|item| !all.contains(item)).collect();
            all.extend(new);
        }
    }
}
