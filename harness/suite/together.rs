//! The records of suite folders as evidence for claims. In: folders. Out: what was observed, once it is sure that the records
//! belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::SuiteError;
use crate::fs;
use crate::paper::{Claims, Published, Row};
use crate::recipe::{JobId, Part, PretrainSplit, PublishedKind, Suite, hash_json, name_of};
use crate::record::{self, JobHeader, JobRecord, PretrainRecord, ProbeRecord, PublishedRecord, RecordError};
use crate::scores::mean_std;
use crate::verdict::{self, AuthorsValue, Observation, Sample, Training, Verdicts};

/// The record that a run on published files leaves.
pub(super) const PUBLISHED_REPORT: &str = "report.json";

/// What the records of some folders say.
#[derive(Debug, Default)]
pub struct Evidence {
    pub observations: Vec<Observation>,
    /// What pre-training itself shows, for a comparison with other records.
    pub trainings: Vec<Training>,
    /// The authors' values per split, from their logs or else their models.
    pub authors: Vec<AuthorsValue>,
    /// The suites that were found, each once.
    pub suites: Vec<String>,
}

impl Evidence {
    /// The paper's claims about the suites in it.
    ///
    /// # Errors
    /// The embedded claims are malformed, which a test excludes.
    pub fn claims(&self) -> Result<Claims, SuiteError> {
        Ok(Claims::embedded()?.of_suites(&self.suites.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    /// Everything that can be compared with other records.
    ///
    /// # Errors
    /// A value is not finite, or a run stands twice.
    pub fn sample(&self) -> Result<Sample, SuiteError> {
        Ok(Sample::new(&self.observations, &self.trainings)?)
    }

    /// The rows that `claims` may be about: what was observed and every row of the embedded suites. Of a suite of one's own the
    /// records do not tell which rows it has, so each is allowed.
    ///
    /// # Errors
    /// An embedded suite is malformed, which a test excludes.
    pub fn rows(&self, claims: &Claims) -> Result<BTreeSet<Row>, SuiteError> {
        let mut rows: BTreeSet<Row> = self.observations.iter().map(|seen| seen.row.clone()).collect();
        for name in Suite::names() {
            let suite = Suite::open(name)?;
            for (encoder, protocol) in suite
                .encoders
                .iter()
                .flat_map(|encoder| suite.protocols.iter().map(move |protocol| (encoder, *protocol)))
            {
                let lists = match encoder.lists.is_empty() {
                    true => vec![None],
                    false => vec![Some(PretrainSplit::D_b), Some(PretrainSplit::D_i)],
                };
                rows.extend(lists.into_iter().map(|pretrain_split| Row {
                    suite: suite.name.clone(),
                    protocol,
                    method: encoder.name.clone(),
                    pretrain_split,
                }));
            }
        }
        let own = |row: &&Row| self.suites.contains(&row.suite) && !Suite::names().any(|name| name == row.suite);
        let of_values = claims.values.iter().map(|claim| &claim.row);
        let named = of_values.chain(claims.orderings.iter().flat_map(|claim| [&claim.left, &claim.right]));
        rows.extend(named.filter(own).cloned());
        Ok(rows)
    }
}

/// The paper's claims judged by the records in `folders`, as `sdclr verify` judges them.
///
/// # Errors
/// Those of [`evidence`], or the records cannot be judged.
pub fn judged(folders: &[impl AsRef<Path>]) -> Result<Verdicts, SuiteError> {
    let evidence = evidence(folders)?;
    let (claims, published) = (evidence.claims()?, Published::embedded()?);
    Ok(verdict::judge(&claims, &published, &evidence.observations, &evidence.authors)?)
}

/// Reads the evidence in `folders`.
///
/// # Errors
/// A folder holds no record, a record is damaged, or two records do not belong together: another scale, other data or
/// another recipe under one name.
pub fn evidence(folders: &[impl AsRef<Path>]) -> Result<Evidence, SuiteError> {
    let mut evidence = Evidence::default();
    let mut alike = Alike::default();
    for folder in folders.iter().map(AsRef::as_ref) {
        let (results, damaged) = record::read_results(folder)?;
        if let Some(error) = damaged.into_iter().next() {
            return Err(error.into());
        }
        let probes: Vec<&ProbeRecord> = results.iter().filter_map(record::JobRecord::as_probe).collect();
        let own = probes.into_iter().filter(|probe| matches!(probe.job.header.job.part, Part::Probe { .. }));
        let (own, authors) = (own.collect::<Vec<_>>(), authors_of(folder)?);
        if own.is_empty() && authors.is_empty() {
            return Err(SuiteError::NoEvidence { folder: folder.display().to_string() });
        }
        let encoders = record::encoders(&results);
        for probe in own {
            let header = &probe.job.header;
            alike.check(folder, header)?;
            evidence.suites.push(header.suite.clone());
            evidence.observations.extend(observation(probe, &encoders)?);
        }
        evidence.trainings.extend(results.iter().filter_map(|result| training(result, &encoders)));
        evidence.suites.extend(authors.iter().map(|value| value.row.suite.clone()));
        evidence.authors.extend(authors);
    }
    evidence.suites.sort();
    evidence.suites.dedup();
    Ok(evidence)
}

fn observation(probe: &ProbeRecord, encoders: &BTreeMap<JobId, String>) -> Result<Option<Observation>, SuiteError> {
    let header = &probe.job.header;
    let (Some(protocol), Some(seed)) = (header.protocol, header.recipe["seed"].as_u64()) else { return Ok(None) };
    let (suite, method) = (header.suite.clone(), header.encoder.clone());
    let row = Row { suite, protocol, method, pretrain_split: header.pretrain_split };
    Ok(Some(Observation {
        row,
        encoder: encoders[&header.job].clone(),
        split: header.split,
        seed,
        probe_seed: header.seed,
        smoke: header.smoke,
        unofficial: !header.unofficial.is_empty(),
        departs: departs(header)?,
        values: probe.outcome.scores,
    }))
}

/// The first key in which the recipe of a probe differs from that of the embedded suite of the same name. The data set is a key;
/// seeds, threads and precision are not meant to change a result.
fn departs(header: &JobHeader) -> Result<Option<String>, SuiteError> {
    if !Suite::names().any(|name| name == header.suite) {
        return Ok(None);
    }
    let suite = Suite::open(&header.suite)?;
    let Ok(encoder) = suite.encoder(&header.encoder) else { return Ok(None) };
    let expected = suite.recipe(encoder, &[])?.to_json()?;
    let [found, expected] = [&header.recipe, &expected].map(|recipe| {
        let mut keys = settings(recipe, header);
        keys.as_object_mut().map(|keys| ["threads", "precision"].map(|key| keys.remove(key)));
        keys
    });
    let differs = super::folder::difference("", &found, &expected);
    Ok(differs.map(|(key, found, expected)| format!("{key} {found} instead of {expected}")))
}

/// The recipe in a job's record without seeds and without the other probes.
fn settings(recipe: &Value, job: &JobHeader) -> Value {
    let mut recipe = recipe.clone();
    let protocol = job.protocol.map(|protocol| name_of(&protocol)).unwrap_or_default();
    if let Some(keys) = recipe.as_object_mut() {
        keys.remove("seed");
        let mut probe = keys.remove("probe").map(|mut probes| probes[&protocol].take()).unwrap_or_default();
        probe.as_object_mut().map(|keys| keys.remove("seed"));
        keys.insert("probe".to_owned(), serde_json::json!({ protocol: probe }));
    }
    recipe
}

/// What a record of pre-training shows; `None` of other records and of an encoder that is not trained.
fn training(record: &JobRecord, encoders: &BTreeMap<JobId, String>) -> Option<Training> {
    let JobRecord::Pretrain(PretrainRecord { job, epochs }) = record else { return None };
    let mean = |values: Vec<f64>| Some(mean_std(&values)).filter(|_| !values.is_empty()).map(|found| found.mean);
    let last = &epochs[epochs.len() - epochs.len().div_ceil(10)..];
    let header = &job.header;
    Some(Training {
        suite: header.suite.clone(),
        method: header.encoder.clone(),
        pretrain_split: header.pretrain_split,
        encoder: encoders[&header.job].clone(),
        split: header.split,
        seed: header.recipe["seed"].as_u64()?,
        smoke: header.smoke,
        loss: mean(last.iter().map(|epoch| epoch.loss).collect())?,
        overlap: mean(epochs.iter().filter_map(|epoch| Some(100.0 * epoch.overlap?)).collect()),
    })
}

/// What the first record of each kind was made with.
#[derive(Default)]
struct Alike {
    /// Of each suite: the data and whether it is a smoke run.
    suites: BTreeMap<String, (String, Value)>,
    /// Of each suite and list: its hash.
    lists: BTreeMap<[String; 2], (String, Value)>,
    /// Of each suite and encoder: its recipe without seeds and, per probe, without the other probes.
    recipes: BTreeMap<[String; 3], (String, Value)>,
}

impl Alike {
    fn check(&mut self, folder: &Path, header: &JobHeader) -> Result<(), SuiteError> {
        let place = format!("{}/{}", folder.display(), header.job);
        // Data that are never read whole have the hashes of their lists alone.
        let lists = serde_json::json!(header.splits_sha256);
        let images = (header.data_sha256 != hash_json(&lists)).then_some(&header.data_sha256);
        for (list, sha256) in &header.splits_sha256 {
            one_of(&mut self.lists, [header.suite.clone(), list.clone()], &place, serde_json::json!({ list: sha256 }))?;
        }
        let scale = serde_json::json!({
            "images": images, "smoke": header.smoke,
            "limit_images": header.limit_images, "limit_epochs": header.limit_epochs,
        });
        one_of(&mut self.suites, header.suite.clone(), &place, scale)?;
        let protocol = header.protocol.map(|protocol| name_of(&protocol)).unwrap_or_default();
        let kind = [header.suite.clone(), header.encoder.clone(), protocol];
        one_of(&mut self.recipes, kind, &place, settings(&header.recipe, header))
    }
}

/// Refuses `value` where an earlier record under the same `key` has another.
fn one_of<K: Ord>(
    known: &mut BTreeMap<K, (String, Value)>,
    key: K,
    place: &str,
    value: Value,
) -> Result<(), SuiteError> {
    let (first, expected) = known.entry(key).or_insert_with(|| (place.to_owned(), value.clone()));
    match super::folder::difference("", expected, &value) {
        None => Ok(()),
        Some((key, found, expected)) => Err(SuiteError::NotTogether {
            difference: format!("{first} and {place} differ in {key}: {found} and {expected}"),
        }),
    }
}

/// What a run on published files left in `folder`; `None` where there was none.
///
/// # Errors
/// Its report.json is damaged.
pub(super) fn read_published(folder: &Path) -> Result<Option<PublishedRecord>, SuiteError> {
    let path = folder.join(PUBLISHED_REPORT);
    if !fs::exists(&path)? {
        return Ok(None);
    }
    let damaged = |error: serde_json::Error| RecordError::NotARecord {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    let report: Value = serde_json::from_slice(&fs::read(&path)?).map_err(damaged)?;
    // Only the report on published files has outcomes.
    if report.get("outcomes").is_none() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_value(report).map_err(damaged)?))
}

/// The authors' values that a run on published files found: their logs, and where one is missing their model.
pub(super) fn authors_of(folder: &Path) -> Result<Vec<AuthorsValue>, SuiteError> {
    let Some(PublishedRecord { suite, outcomes, .. }) = read_published(folder)? else { return Ok(Vec::new()) };
    let mut values: BTreeMap<(Row, usize), AuthorsValue> = BTreeMap::new();
    for kind in [PublishedKind::Model, PublishedKind::Log] {
        for found in outcomes.iter().filter(|outcome| outcome.kind == kind) {
            if found.job.as_ref().is_some_and(|job| job.header.smoke) {
                continue;
            }
            let row = Row {
                suite: suite.clone(),
                protocol: found.protocol,
                method: found.method.clone(),
                pretrain_split: Some(found.pretrain_split),
            };
            let value = AuthorsValue { row: row.clone(), split: found.split, values: found.outcome.scores };
            values.insert((row, found.split), value);
        }
    }
    Ok(values.into_values().collect())
}
