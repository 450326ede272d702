//! What the jobs of one command share: the data set, the device, the limits; and how one job is put together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use tch::{Device, Kind};

use super::SuiteError;
use super::environment;
use crate::checkpoint;
use crate::dataset::Dataset;
use crate::native;
use crate::network::{Network, NetworkSpec, StateDict};
use crate::pretrain::run::{self, PretrainJob};
use crate::probe::{self, ProbeData, ProbeJob, TrainingLists};
use crate::progress::Progress;
use crate::recipe::{DatasetName, PretrainSplit, Protocol, Recipe, hash_json, name_of};
use crate::record::{Environment, JobHeader, JobResult, SMOKE_STAMP};
use crate::split::{self, IndexList, ListName};

/// What a command line says about where and how much to run.
#[derive(Debug, Clone, Default)]
pub struct Scale {
    /// The folder of the data, in the layout that users have.
    pub data: Option<PathBuf>,
    /// `cpu`, `cuda:N`; by default CUDA where it is.
    pub device: Option<String>,
    /// Same bits in every run on one GPU.
    pub deterministic: bool,
    /// Every operation launched by itself, no training step as a CUDA graph.
    pub eager: bool,
    /// First entries of every list.
    pub limit_images: Option<usize>,
    /// Epochs of pre-training and of each probe.
    pub limit_epochs: Option<usize>,
}

/// Loaded data and the device to work on.
#[derive(Debug)]
pub struct Context {
    pub dataset: Dataset,
    pub device: Device,
    /// When pre-training has to stop at an epoch's end.
    pub deadline: Option<Instant>,
    scale: Scale,
    environment: Environment,
}

/// Which job this is.
#[derive(Debug, Clone)]
pub struct Identity {
    pub suite: String,
    /// Folder of the job inside the suite's.
    pub job: String,
    /// `simclr`, `sdclr`, `random`.
    pub method: String,
    pub pretrain_split: Option<PretrainSplit>,
    pub split: usize,
}

impl Identity {
    /// The identity of a job that a command names by its recipe alone.
    pub fn of_command(name: &str, recipe: &Recipe, pretrain_split: Option<PretrainSplit>, split: usize) -> Self {
        let suite = name.rsplit_once('/').map_or(name, |(suite, _)| suite).to_owned();
        let method = name_of(&recipe.method);
        let job = match &pretrain_split {
            Some(list) => format!("{method}-{}-split{split}", name_of(list)),
            None => format!("{method}-split{split}"),
        };
        Self { suite, job, method, pretrain_split, split }
    }
}

/// Refuses to pre-train on files: a later part of the program.
pub(super) fn refuse_imagenet_pretraining(
    suite: &str,
    recipe: &Recipe,
    pretrain_split: Option<PretrainSplit>,
) -> Result<(), SuiteError> {
    match (recipe.dataset, pretrain_split) {
        (DatasetName::Imagenet100 | DatasetName::Imagenet, Some(_)) => {
            Err(SuiteError::ImagenetPretraining { suite: suite.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Of a recipe's keys those that pre-training reads: all but how it is probed.
fn pretraining_keys(recipe: &Recipe) -> Value {
    let mut keys = recipe.to_json();
    keys.as_object_mut().map(|keys| keys.remove("probe"));
    keys
}

/// Those that a probe reads, beside what its network's tensors say; an evaluation reads how the test's images are cut.
fn probe_keys(recipe: &Recipe, protocol: Protocol, test_only: bool) -> Value {
    let probe = recipe.probe(protocol);
    let read = match test_only {
        true => json!({ "test_transform": probe.test_transform, "resize": probe.resize, "size": probe.size }),
        false => json!(probe),
    };
    json!({ "network": recipe.network, "stem": recipe.stem, "width": recipe.width, "probe": read })
}

impl Context {
    /// Loads the data set that `recipe` names.
    pub fn open(recipe: &Recipe, scale: Scale) -> Result<Self, SuiteError> {
        let device = environment::device(scale.device.as_deref())?;
        native::set_deterministic(scale.deterministic)?;
        let dataset = Dataset::load(recipe.dataset, scale.data.as_deref(), device)?;
        if !dataset.official {
            eprintln!("warning: the {} data differ from the official download", name_of(&recipe.dataset));
        }
        let environment = Environment { eager: scale.eager, ..environment::describe(device) };
        Ok(Self { dataset, device, deadline: None, scale, environment })
    }

    /// A whole list, whatever the limits.
    fn whole_list(&self, name: ListName) -> Result<IndexList, SuiteError> {
        Ok(split::read(&self.dataset, self.scale.data.as_deref(), name)?)
    }

    /// A list, cut to its first entries where images are limited.
    pub fn list(&self, name: ListName) -> Result<IndexList, SuiteError> {
        Ok(self.whole_list(name)?.limited(self.scale.limit_images))
    }

    /// Whether every operation is launched by itself.
    pub fn eager(&self) -> bool {
        self.scale.eager
    }

    /// How many of a recipe's epochs the limits leave.
    pub fn epochs(&self, epochs: usize) -> usize {
        self.scale.limit_epochs.unwrap_or(usize::MAX).min(epochs)
    }

    /// The head of a job's records. The hash covers what the job's outcome depends on, of the recipe the keys `read`. Data
    /// that are never read whole are identified by the lists that the job reads.
    fn header(
        &self,
        identity: &Identity,
        recipe: &Recipe,
        read: Value,
        protocol: Option<Protocol>,
        lists: &[&IndexList],
        encoder: Option<&str>,
    ) -> JobHeader {
        let Scale { limit_images, limit_epochs, .. } = self.scale;
        let splits: BTreeMap<String, String> =
            lists.iter().map(|list| (list.name.clone(), list.sha256.clone())).collect();
        let data_sha256 = self.dataset.sha256.clone().unwrap_or_else(|| hash_json(&json!(splits)));
        let recipe_hash = hash_json(&json!({
            "recipe": read,
            "data": data_sha256,
            "splits": splits,
            "protocol": protocol,
            "encoder": encoder,
            "limit_images": limit_images,
            "limit_epochs": limit_epochs,
        }));
        let smoke = limit_images.is_some() || limit_epochs.is_some();
        JobHeader {
            suite: identity.suite.clone(),
            job: identity.job.clone(),
            method: identity.method.clone(),
            pretrain_split: identity.pretrain_split,
            split: identity.split,
            protocol,
            recipe: recipe.to_json(),
            recipe_hash,
            data_sha256,
            splits_sha256: splits,
            seed: protocol.map_or(recipe.seed, |protocol| recipe.probe(protocol).seed),
            environment: self.environment.clone(),
            smoke,
            stamp: smoke.then(|| SMOKE_STAMP.to_owned()),
            limit_images,
            limit_epochs,
        }
    }

    /// Pre-trains into `folder`, resumes there, or reads back what is finished.
    pub fn pretrain(
        &self,
        identity: &Identity,
        recipe: &Recipe,
        pretrain_split: PretrainSplit,
        folder: &Path,
        progress: &Progress,
    ) -> Result<JobResult, SuiteError> {
        refuse_imagenet_pretraining(&identity.suite, recipe, Some(pretrain_split))?;
        let list = self.list(ListName::Pretrain(pretrain_split, identity.split))?;
        let header = self.header(identity, recipe, pretraining_keys(recipe), None, &[&list], None);
        let (device, deadline) = (self.device, self.deadline);
        let eager = self.scale.eager;
        let job = PretrainJob { header: &header, recipe, dataset: &self.dataset, list: &list, device, eager, deadline };
        Ok(run::run(&job, folder, progress)?)
    }

    /// The untrained probe network of a recipe: the baseline that every encoder has to beat. Its backbone is drawn by the
    /// seed of pre-training, which would begin with it; its classifier by that of the probe.
    pub fn random_encoder(&self, recipe: &Recipe, protocol: Protocol) -> Result<Network, SuiteError> {
        let spec = NetworkSpec::of_recipe(recipe).probe(self.dataset.classes.len() as i64);
        let network = Network::new(spec, recipe.seed, Kind::Float, self.device)?;
        Ok(network.with_fresh_head(recipe.probe(protocol).seed)?)
    }

    /// The probe network with the dense backbone of a pre-training checkpoint's `weights` and a fresh classifier; with
    /// `test_only` the checkpoint's own classifier.
    pub fn encoder(
        &self,
        recipe: &Recipe,
        protocol: Protocol,
        weights: &StateDict,
        test_only: bool,
    ) -> Result<Network, SuiteError> {
        let weights = weights.without_prefix(weights.ddp_prefix());
        let network = self.random_encoder(recipe, protocol)?;
        let own = |name: &str| name.starts_with("fc.");
        let state: StateDict = match test_only {
            true => weights,
            false => {
                let classifier = network.state().into_iter().filter(|(name, _)| own(name));
                weights.dense_backbone().into_iter().chain(classifier).collect()
            }
        };
        network.load(&state)?;
        Ok(network)
    }

    /// Probes `network`; records go to `folder` where one is given.
    #[allow(clippy::too_many_arguments)]
    pub fn probe(
        &self,
        identity: &Identity,
        recipe: &Recipe,
        protocol: Protocol,
        network: &Network,
        test_only: bool,
        folder: Option<&Path>,
        progress: &Progress,
    ) -> Result<JobResult, SuiteError> {
        let train = match protocol {
            Protocol::Full => ListName::Train,
            Protocol::Few => ListName::FewShot(identity.split),
        };
        // An evaluation reads no list that it does not need: that of all training images may not be there.
        let training = match test_only {
            true => None,
            false => Some([self.list(train)?, self.list(ListName::Validation)?]),
        };
        let test = self.list(ListName::Test)?;
        // Groups always come from the whole long-tailed list of the same number, also for models trained on D_b.
        let tail = self.whole_list(ListName::Pretrain(PretrainSplit::D_i, identity.split))?;
        let class_counts = tail.class_counts(&self.dataset.train, self.dataset.classes.len());
        let encoder = checkpoint::state_sha256(&network.state())?;
        let lists: Vec<&IndexList> = training.iter().flatten().chain([&test, &tail]).collect();
        let read = probe_keys(recipe, protocol, test_only);
        let header = self.header(identity, recipe, read, Some(protocol), &lists, Some(&encoder));
        let training = training.as_ref().map(|[train, validation]| TrainingLists { train, validation });
        let data = ProbeData { dataset: &self.dataset, training, test: &test, class_counts: &class_counts };
        let recipe = recipe.probe(protocol);
        let job = ProbeJob { header: &header, recipe, network, data: &data };
        Ok(probe::run(&job, folder, progress)?)
    }
}
