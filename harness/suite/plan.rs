//! What there is to do in a suite. In: the suite and what to leave out or override. Out: the encoders, in the order in which
//! they run, and the jobs of each.

use std::path::{Path, PathBuf};

use super::SuiteError;
use crate::fs;
use crate::network::Foreign;
use crate::pretrain;
use crate::recipe::{EncoderId, EncoderSpec, JobId, Part, PretrainSplit, Protocol, Recipe, Suite};
use crate::split::ListName;

/// What to run of a suite; empty lists mean the suite's own choice.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Names of encoders, or one with its only list, `sdclr-D_i`; in the order in which they run.
    pub methods: Vec<String>,
    pub splits: Vec<usize>,
    pub pretrain_splits: Vec<PretrainSplit>,
    /// `key=value`, for every recipe that has the key.
    pub overrides: Vec<String>,
    /// Pre-training seeds an encoder; the first is the recipe's.
    pub seeds: usize,
    /// Classifiers a probe.
    pub probe_seeds: usize,
}

impl Default for Selection {
    fn default() -> Self {
        let (methods, splits, pretrain_splits, overrides) = Default::default();
        Self { methods, splits, pretrain_splits, overrides, seeds: 1, probe_seeds: 1 }
    }
}

/// How often, and at which size, a job takes the images of a list through the network.
#[derive(Debug, Clone)]
pub struct Pass {
    pub list: ListName,
    pub epochs: usize,
    /// Side of the views in pixels.
    pub side: i64,
    /// Whether the whole network is trained on them.
    pub trains: bool,
}

/// An encoder to make (or to leave as it starts) and to probe.
#[derive(Debug, Clone)]
pub struct PlannedEncoder {
    pub suite: String,
    pub id: EncoderId,
    /// How tables call it.
    pub label: String,
    pub recipe: Recipe,
    pub probes: Vec<(Protocol, usize)>,
    /// The checkpoint of an encoder that was trained elsewhere.
    pub checkpoint: Option<PathBuf>,
    /// The recipe whose method finds the mask that the finished encoder is looked at under: its own where that prunes, else
    /// that of the plan's first encoder that does.
    pub pruned_as: Option<Box<Recipe>>,
}

impl PlannedEncoder {
    /// The encoder that a recipe's name means (SUITE/ENCODER or FILE.toml:ENCODER), for one list and split.
    ///
    /// # Errors
    /// There is no such recipe, or its method does not take its keys.
    pub fn of_recipe(
        name: &str,
        overrides: &[String],
        list: Option<PretrainSplit>,
        split: usize,
    ) -> Result<Self, SuiteError> {
        let (suite, encoder) = Suite::of_recipe(name)?;
        let recipe = recipe_of(&suite, &encoder, overrides)?;
        Self::new(&suite, &encoder, recipe, list, split, &Selection::default())
    }

    /// The encoder of ours that a published one is probed as.
    ///
    /// # Errors
    /// The suite has no encoder of that name, or its recipe refuses an override.
    pub(super) fn published(suite: &Suite, id: &EncoderId, overrides: &[String]) -> Result<Self, SuiteError> {
        let encoder = suite.encoder(&id.encoder)?;
        let key = |text: &String| text.split_once('=').map(|(key, _)| key.trim().to_owned());
        let elsewhere = |text: &&String| {
            let has = |other: &EncoderSpec| key(text).is_some_and(|key| suite.has_key(other, &key));
            !has(encoder) && suite.encoders.iter().any(has)
        };
        let overrides: Vec<String> = overrides.iter().filter(|text| !elsewhere(text)).cloned().collect();
        let recipe = recipe_of(suite, encoder, &overrides)?;
        Self::new(suite, encoder, recipe, id.list, id.split, &Selection::default())
    }

    fn new(
        suite: &Suite,
        encoder: &EncoderSpec,
        recipe: Recipe,
        list: Option<PretrainSplit>,
        split: usize,
        selection: &Selection,
    ) -> Result<Self, SuiteError> {
        let label = match &encoder.label {
            Some(label) => label.clone(),
            None if encoder.name == encoder.method => pretrain::method_info(&encoder.method)?.label.to_owned(),
            None => encoder.name.clone(),
        };
        let seeds = 1..=selection.probe_seeds;
        let probes = suite.protocols.iter().flat_map(|&protocol| seeds.clone().map(move |seed| (protocol, seed)));
        let id = EncoderId { encoder: encoder.name.clone(), list, split, seed: 1 };
        Ok(Self {
            suite: suite.name.clone(),
            id,
            label,
            recipe,
            probes: probes.collect(),
            checkpoint: None,
            pruned_as: None,
        })
    }

    /// The same encoder by another pre-training seed, counted from 1.
    fn with_seed(mut self, seed: usize) -> Self {
        self.id.seed = seed;
        self.recipe.seed += seed as u64 - 1;
        self
    }

    /// What its jobs take through the network.
    pub fn passes(&self) -> Vec<Pass> {
        self.jobs().flat_map(|job| self.passes_of(&job)).collect()
    }

    /// What `job` takes through the network: pre-training its list, a probe those of training, validation and test.
    pub fn passes_of(&self, job: &JobId) -> Vec<Pass> {
        let (split, recipe) = (self.id.split, &self.recipe);
        let Some(protocol) = job.protocol() else {
            let (epochs, side) = (recipe.epochs, recipe.augment.size);
            let list = self.pretrained_on().map(|list| ListName::Pretrain(list, split));
            return list.into_iter().map(|list| Pass { list, epochs, side, trains: true }).collect();
        };
        let probe = recipe.probe(protocol);
        let train = match protocol {
            Protocol::Full => ListName::Train,
            Protocol::Few => ListName::FewShot(split),
        };
        let lists =
            [(train, probe.epochs), (ListName::Validation, probe.epochs / probe.validate_every), (ListName::Test, 1)];
        lists.map(|(list, epochs)| Pass { list, epochs, side: probe.size, trains: false }).to_vec()
    }

    /// The list that it is pre-trained on here; `None` where it is left as drawn, or was trained elsewhere.
    pub fn pretrained_on(&self) -> Option<PretrainSplit> {
        self.id.list.filter(|_| self.checkpoint.is_none())
    }

    /// Its pre-training, where it has one, and its probes.
    pub fn jobs(&self) -> impl Iterator<Item = JobId> + Clone {
        let pretrain = self.pretrained_on().map(|_| Part::Pretrain);
        let probes = self.probes.iter().map(|&(protocol, seed)| Part::Probe { protocol, seed });
        pretrain.into_iter().chain(probes).map(|part| JobId { encoder: self.id.clone(), part })
    }
}

/// The recipe of `encoder`, accepted by its method.
pub(super) fn recipe_of(suite: &Suite, encoder: &EncoderSpec, overrides: &[String]) -> Result<Recipe, SuiteError> {
    let recipe = suite.recipe(encoder, overrides)?;
    let trained = pretrain::method_info(&encoder.method)?.build.is_some();
    if trained || !encoder.lists.is_empty() {
        // Makes the method once, to have its keys checked before anything runs.
        pretrain::method_of(&recipe)?;
    }
    if trained && encoder.lists.is_empty() {
        return Err(SuiteError::NoLists { encoder: encoder.name.clone() });
    }
    Ok(recipe)
}

/// The encoders that `selection` names, each with its only list where one is given; without names the suite's default.
pub(super) fn chosen<'a>(
    suite: &'a Suite,
    selection: &Selection,
) -> Result<Vec<(&'a EncoderSpec, Option<PretrainSplit>)>, SuiteError> {
    let named = selection.methods.iter().map(|name| suite.encoder_and_list(name));
    match selection.methods.is_empty() {
        false => Ok(named.collect::<Result<_, _>>()?),
        true => Ok(suite.encoders.iter().filter(|encoder| encoder.default).map(|encoder| (encoder, None)).collect()),
    }
}

/// The splits that `selection` names, in order; without any those of the suite.
pub(super) fn splits(suite: &Suite, selection: &Selection) -> Result<Vec<usize>, SuiteError> {
    if let Some(&found) = selection.splits.iter().find(|split| !suite.splits.contains(split)) {
        let known = suite.splits.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(SuiteError::UnknownSplit { suite: suite.name.clone(), found, known });
    }
    let mut splits = if selection.splits.is_empty() { suite.splits.clone() } else { selection.splits.clone() };
    splits.sort_unstable();
    splits.dedup();
    Ok(splits)
}

/// The recipe of each of the `encoders`. A key that one method alone has is overridden in the recipes of that method, so that
/// its ablations keep their baseline.
pub(super) fn recipes<'a>(
    suite: &Suite,
    encoders: impl Iterator<Item = &'a EncoderSpec> + Clone,
    overrides: &[String],
) -> Result<Vec<Recipe>, SuiteError> {
    let key = |text: &str| text.split_once('=').map(|(key, _)| key.trim().to_owned());
    let has = |encoder: &EncoderSpec, text: &str| key(text).is_some_and(|key| suite.has_key(encoder, &key));
    encoders
        .clone()
        .map(|encoder| {
            let elsewhere = |text: &String| !has(encoder, text) && encoders.clone().any(|other| has(other, text));
            let overrides: Vec<String> = overrides.iter().filter(|text| !elsewhere(text)).cloned().collect();
            recipe_of(suite, encoder, &overrides)
        })
        .collect()
}

/// The encoders of `suite` in the order in which they run: seed by seed, and in a seed split by split, so that an interrupted
/// suite has whole splits.
///
/// # Errors
/// An encoder or split does not exist, or a recipe refuses an override.
pub fn plan(suite: &Suite, selection: &Selection) -> Result<Vec<PlannedEncoder>, SuiteError> {
    let chosen = chosen(suite, selection)?;
    let recipes = recipes(suite, chosen.iter().map(|(encoder, _)| *encoder), &selection.overrides)?;
    let splits = splits(suite, selection)?;
    let mut planned: Vec<PlannedEncoder> = Vec::new();
    for &split in &splits {
        for ((encoder, only), recipe) in chosen.iter().zip(&recipes) {
            let lists: Vec<Option<PretrainSplit>> = match (encoder.lists.as_slice(), only) {
                ([], _) => vec![None],
                (_, Some(list)) => vec![Some(*list)],
                (own, None) if selection.pretrain_splits.is_empty() => own.iter().copied().map(Some).collect(),
                (_, None) => selection.pretrain_splits.iter().copied().map(Some).collect(),
            };
            for list in lists {
                let new = PlannedEncoder::new(suite, encoder, recipe.clone(), list, split, selection)?;
                // Named twice, it runs once.
                if planned.iter().all(|known| known.id != new.id) {
                    planned.push(new);
                }
            }
        }
    }
    let prunes = |encoder: &PlannedEncoder| {
        let prunes = pretrain::method_of(&encoder.recipe).is_ok_and(|method| method.prune_ratio().is_some());
        prunes.then(|| Box::new(encoder.recipe.clone()))
    };
    let first = planned.iter().find_map(prunes);
    for encoder in &mut planned {
        encoder.pruned_as = prunes(encoder).or_else(|| first.clone());
    }
    // An encoder that is not trained is drawn by its seed too.
    Ok((1..=selection.seeds)
        .flat_map(|seed| planned.iter().cloned().map(move |encoder| encoder.with_seed(seed)))
        .collect())
}

/// Refuses names of jobs that `plan` does not have.
pub(super) fn check_names(suite: &Suite, plan: &[PlannedEncoder], names: &[JobId]) -> Result<(), SuiteError> {
    let known: Vec<JobId> = plan.iter().flat_map(PlannedEncoder::jobs).collect();
    match names.iter().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(found) => Err(SuiteError::UnknownJob {
            suite: suite.name.clone(),
            found: found.clone(),
            known: known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// Encoders that were trained elsewhere: checkpoints called NAME-LIST-splitN.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    pub folder: PathBuf,
    pub name: String,
    /// How their tensors are called and their images normalised.
    pub foreign: Foreign,
}

/// How a checkpoint's file may end.
const ENDINGS: [&str; 3] = ["safetensors", "pt", "pth"];

/// The encoders of `elsewhere` that are there, as if `suite` had trained them, and the names of those that are not.
///
/// # Errors
/// The name is one of the suite's own or no name of an encoder, none is there, or one is there twice.
pub fn plan_elsewhere(
    suite: &Suite,
    selection: &Selection,
    elsewhere: &Elsewhere,
) -> Result<(Vec<PlannedEncoder>, Vec<String>), SuiteError> {
    let Elsewhere { folder, name, .. } = elsewhere;
    let base = suite.encoders.iter().find(|encoder| !encoder.lists.is_empty());
    let base = base.ok_or_else(|| SuiteError::NoLists { encoder: name.clone() })?;
    let mut recipe = suite.recipe(base, &selection.overrides)?;
    recipe.own.clear();
    recipe.method.clone_from(name);
    let lists = match selection.pretrain_splits.as_slice() {
        [] => &[PretrainSplit::D_b, PretrainSplit::D_i],
        chosen => chosen,
    };
    let (mut planned, mut missing) = (Vec::new(), Vec::new());
    for split in splits(suite, selection)? {
        for &list in lists {
            let id = EncoderId { encoder: name.clone(), list: Some(list), split, seed: 1 };
            if id.to_string().parse() != Ok(id.clone()) || suite.encoder(name).is_ok() {
                return Err(SuiteError::NotANewName { name: name.clone(), suite: suite.name.clone() });
            }
            let Some(checkpoint) = checkpoint_of(folder, &id)? else {
                missing.push(id.to_string());
                continue;
            };
            let new = PlannedEncoder::new(suite, base, recipe.clone(), Some(list), split, selection)?;
            planned.push(PlannedEncoder { id, label: name.clone(), checkpoint: Some(checkpoint), ..new });
        }
    }
    if planned.is_empty() {
        let (folder, example) = (folder.display().to_string(), missing.first().cloned().unwrap_or_default());
        return Err(SuiteError::NoneElsewhere { folder, example });
    }
    Ok((planned, missing))
}

/// The checkpoint of `id` in `folder`, if it is there.
fn checkpoint_of(folder: &Path, id: &EncoderId) -> Result<Option<PathBuf>, SuiteError> {
    let mut found = Vec::new();
    for ending in ENDINGS {
        let path = folder.join(format!("{id}.{ending}"));
        if fs::is_file(&path)? {
            found.push(path);
        }
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(SuiteError::TwiceElsewhere {
            found: found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and "),
        }),
    }
}
