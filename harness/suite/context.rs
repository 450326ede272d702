//! What the jobs of one command share: the data set, the device, the limits; and how one job is put together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use tch::{Device, Kind};

use super::SuiteError;
use super::environment;
use super::plan::PlannedEncoder;
use crate::checkpoint;
use crate::dataset::{Dataset, ImageCache};
use crate::fs::FolderLock;
use crate::native;
use crate::native::group::Group;
use crate::network::{Foreign, Network, NetworkSpec, StateDict};
use crate::pretrain::run::{self, ENCODER, PretrainJob};
use crate::pretrain::{self, PretrainError};
use crate::probe::mechanism::{Pruning, changes, layers};
use crate::probe::{self, ProbeData, ProbeJob, TrainingLists};
use crate::progress::Progress;
use crate::recipe::{JobId, PretrainSplit, ProbeRecipe, Protocol, Recipe, hash_json, name_of};
use crate::record::mechanism::{self, MechanismRecord};
use crate::record::{self, Environment, Job, JobHeader, JobRecord, PretrainRecord};
use crate::split::{self, ListName, SplitError, Subset};
use crate::stop::Stop;

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
    /// Decode every image file before the first job.
    pub check_data: bool,
    /// Where decoded image files are kept.
    pub cache: Option<Arc<ImageCache>>,
    /// Who may ask for a stop.
    pub stop: Stop,
    /// The processes that pre-train together.
    pub group: Group,
    /// Of encoders that were trained elsewhere.
    pub foreign: Foreign,
    /// The folder in which TensorBoard is shown the epochs of every job.
    pub tensorboard: Option<PathBuf>,
}

impl Scale {
    /// Whether the limits make it a smoke run.
    pub fn is_smoke(&self) -> bool {
        self.limit_images.is_some() || self.limit_epochs.is_some()
    }
}

/// Image files that are decoded between two questions for a stop: moments, also on one core.
const CHECKED_AT_ONCE: usize = 64;

/// Loaded data and the device to work on.
#[derive(Debug)]
pub struct Context {
    pub dataset: Dataset,
    pub device: Device,
    /// When pre-training has to stop at an epoch's end.
    pub deadline: Option<Instant>,
    /// How encoders from elsewhere are read.
    pub foreign: Foreign,
    scale: Scale,
    /// Lists that were warned of.
    warned: Mutex<BTreeSet<ListName>>,
    pub(super) environment: Environment,
}

/// Of a recipe's keys those that pre-training reads: all but how it is probed.
fn pretraining_keys(recipe: &Recipe) -> Result<Value, SuiteError> {
    let mut keys = recipe.to_json()?;
    keys.as_object_mut().map(|keys| keys.remove("probe"));
    Ok(keys)
}

/// The recipe of a probe by its `seed`th seed, counted from 1: the first is the recipe's own.
pub(super) fn by_seed(recipe: &Recipe, protocol: Protocol, seed: usize) -> Recipe {
    let mut recipe = recipe.clone();
    let probe = match protocol {
        Protocol::Full => &mut recipe.probe.full,
        Protocol::Few => &mut recipe.probe.few,
    };
    probe.seed += seed as u64 - 1;
    recipe
}

/// Those that a probe reads, beside what its network's tensors say; an evaluation reads how the test's images are cut.
fn probe_keys(recipe: &Recipe, protocol: Protocol, test_only: bool) -> Value {
    let probe = recipe.probe(protocol);
    let read = match test_only {
        true => json!({ "test_transform": probe.test_transform, "resize": probe.resize, "size": probe.size }),
        false => json!(probe),
    };
    json!({ "network": recipe.network, "stem": recipe.stem, "width": recipe.width, "threads": recipe.threads, "probe": read })
}

impl Context {
    /// Loads the data set that `recipe` names.
    pub fn open(recipe: &Recipe, scale: Scale) -> Result<Self, SuiteError> {
        let device = environment::device(scale.device.as_deref())?;
        if recipe.threads > 0 {
            tch::set_num_threads(recipe.threads as i32);
        }
        native::set_deterministic(scale.deterministic)?;
        let dataset = Dataset::of_recipe(recipe, scale.data.as_deref(), device)?;
        if !dataset.official {
            tracing::warn!(
                "the {} images are not those of the official download; every table will say so",
                name_of(&recipe.dataset)
            );
        }
        let environment = Environment { eager: scale.eager, ..environment::describe(device)? };
        Ok(Self {
            dataset,
            device,
            deadline: None,
            foreign: scale.foreign.clone(),
            scale,
            warned: Mutex::default(),
            environment,
        })
    }

    /// A whole list, whatever the limits.
    fn whole_list(&self, name: ListName) -> Result<Subset, SuiteError> {
        let list = split::read(&self.dataset, self.scale.data.as_deref(), name)?;
        if !list.official && self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(name) {
            tracing::warn!("{} is not the published list; every table will say so", list.name);
        }
        Ok(list.cached(self.scale.cache.as_ref()))
    }

    /// A list, cut to its first entries where images are limited.
    pub fn list(&self, name: ListName) -> Result<Subset, SuiteError> {
        Ok(self.whole_list(name)?.limited(self.scale.limit_images))
    }

    /// Reads every list of one's own that `plan` uses: one that a job deep in the plan cannot use is refused before any
    /// training. Published lists may be missing where no job that is left reads them.
    ///
    /// # Errors
    /// A list cannot be used, or no test image of a class is named.
    pub(super) fn check_own_lists(&self, plan: &[PlannedEncoder]) -> Result<(), SuiteError> {
        if self.dataset.own.is_none() {
            return Ok(());
        }
        // The classes of every split are grouped by its long-tailed list.
        let tails = plan.iter().map(|encoder| ListName::Pretrain(PretrainSplit::D_i, encoder.id.split));
        let lists = plan.iter().flat_map(PlannedEncoder::passes).map(|pass| pass.list).chain(tails);
        for name in lists.collect::<BTreeSet<_>>() {
            let list = self.whole_list(name)?;
            let expected = self.dataset.classes.len();
            let found = list.class_counts(expected).into_iter().filter(|count| *count > 0).count();
            if name == ListName::Test && found < expected {
                return Err(SplitError::TestClasses { list: list.name, found, expected }.into());
            }
        }
        Ok(())
    }

    /// Where the command asks for it, decodes every image file of `lists`, until a stop is asked for, which the jobs heed next.
    ///
    /// # Errors
    /// A list cannot be read, or names files that cannot be decoded: all of them.
    pub fn check_data(&self, lists: impl Iterator<Item = ListName>) -> Result<(), SuiteError> {
        if !self.scale.check_data {
            return Ok(());
        }
        let mut damaged = Vec::new();
        'lists: for name in lists.collect::<BTreeSet<_>>() {
            let list = self.list(name)?;
            tracing::info!("decoding the {} images of {}", list.len(), list.name);
            for rows in list.rows.chunks(CHECKED_AT_ONCE) {
                if self.scale.stop.requested().is_some() {
                    break 'lists;
                }
                damaged.extend(list.damaged(rows)?);
            }
        }
        if damaged.is_empty() { Ok(()) } else { Err(SuiteError::Damaged { files: damaged }) }
    }

    /// How many images and epochs the command leaves.
    pub(super) fn limits(&self) -> (Option<usize>, Option<usize>) {
        (self.scale.limit_images, self.scale.limit_epochs)
    }

    /// The processes that pre-train together.
    pub fn group(&self) -> &Group {
        &self.scale.group
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
        encoder: &PlannedEncoder,
        job: &JobId,
        recipe: &Recipe,
        read: Value,
        lists: &[&Subset],
        network: Option<&str>,
    ) -> Result<JobHeader, SuiteError> {
        let Scale { limit_images, limit_epochs, .. } = self.scale;
        let splits: BTreeMap<String, String> =
            lists.iter().map(|list| (list.name.clone(), list.sha256.clone())).collect();
        let data_sha256 = self.dataset.sha256.clone().unwrap_or_else(|| hash_json(&json!(splits)));
        let protocol = job.protocol();
        let recipe_hash = hash_json(&json!({
            "recipe": read,
            "data": data_sha256,
            "splits": splits,
            "protocol": protocol,
            "encoder": network,
            "limit_images": limit_images,
            "limit_epochs": limit_epochs,
        }));
        let smoke = self.scale.is_smoke();
        let unofficial = self.unofficial(encoder, lists);
        Ok(JobHeader {
            format: record::FORMAT,
            suite: encoder.suite.clone(),
            job: job.clone(),
            encoder: encoder.id.encoder.clone(),
            label: encoder.label.clone(),
            method: recipe.method.clone(),
            pretrain_split: encoder.id.list,
            split: encoder.id.split,
            protocol,
            recipe: recipe.to_json()?,
            recipe_hash,
            data_sha256,
            splits_sha256: splits,
            seed: protocol.map_or(recipe.seed, |protocol| recipe.probe(protocol).seed),
            smoke,
            stamp: record::stamp(smoke, !unofficial.is_empty()),
            unofficial,
            limit_images,
            limit_epochs,
            checkpoint: encoder.checkpoint.as_ref().map(|path| path.display().to_string()),
            checkpoint_sha256: None,
        })
    }

    /// Which of a job's inputs differ from the published ones, that of its encoder's pre-training among them.
    fn unofficial(&self, encoder: &PlannedEncoder, lists: &[&Subset]) -> Vec<String> {
        // For an encoder from elsewhere it may not be here.
        let trained_on =
            encoder.id.list.and_then(|list| self.whole_list(ListName::Pretrain(list, encoder.id.split)).ok());
        let lists = trained_on.iter().chain(lists.iter().copied());
        let differing: BTreeSet<&str> = lists.filter(|list| !list.official).map(|list| list.name.as_str()).collect();
        let images = (!self.dataset.official).then_some("images");
        images.into_iter().chain(differing).map(str::to_owned).collect()
    }

    /// The list and the head of the records of an encoder's pre-training.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn pretraining(
        &self,
        encoder: &PlannedEncoder,
        list: PretrainSplit,
    ) -> Result<(Subset, JobHeader), SuiteError> {
        let recipe = &encoder.recipe;
        let list = self.list(ListName::Pretrain(list, encoder.id.split))?;
        let read = pretraining_keys(recipe)?;
        let header = self.header(encoder, &encoder.id.pretrain(), recipe, read, &[&list], None)?;
        Ok((list, header))
    }

    /// Pre-trains into `folder`, resumes there, or reads back what is finished.
    pub fn pretrain(
        &self,
        encoder: &PlannedEncoder,
        list: PretrainSplit,
        folder: &Path,
        progress: &Progress,
    ) -> Result<PretrainRecord, SuiteError> {
        let prepared = self.pretraining(encoder, list);
        let reason = prepared.as_ref().err().map(ToString::to_string);
        let others = self.group().all_well(reason.as_deref());
        let (list, header) = prepared?;
        others?;
        let job = PretrainJob {
            header: &header,
            environment: &self.environment,
            recipe: &encoder.recipe,
            list: &list,
            device: self.device,
            eager: self.scale.eager,
            deadline: self.deadline,
            stop: &self.scale.stop,
            group: &self.scale.group,
            tensorboard: self.scale.tensorboard.as_deref(),
        };
        Ok(run::run(&job, folder, progress)?)
    }

    /// Looks at a pre-trained encoder of `folder` under the mask of `encoder.pruned_as`, and writes what it finds beside the
    /// encoder's record, where that is not there already.
    ///
    /// # Errors
    /// The folder holds what was found otherwise; a file cannot be read or written.
    pub fn mechanism(&self, encoder: &PlannedEncoder, done: &PretrainRecord, folder: &Path) -> Result<(), SuiteError> {
        let Some(pruned_as) = &encoder.pruned_as else { return Ok(()) };
        let start = Instant::now();
        let tail = ListName::Pretrain(PretrainSplit::D_i, encoder.id.split);
        let list = self.list(tail)?;
        let trained_pruned = pruned_as.method == encoder.recipe.method;
        let Job { header, state_sha256, .. } = &done.job;
        let splits_sha256 = BTreeMap::from([(list.name.clone(), list.sha256.clone())]);
        let mechanism_hash = hash_json(&json!({
            "encoder": state_sha256,
            "data": header.data_sha256,
            "splits": splits_sha256,
            "limit_images": self.scale.limit_images,
            "images": probe_keys(&encoder.recipe, Protocol::Full, true),
            "pruned": { "method": pruned_as.method, "keys": pruned_as.own, "seed": pruned_as.seed },
            "trained_pruned": trained_pruned,
        }));
        match mechanism::read(folder, &done.job)? {
            Some(known) if known.mechanism_hash == mechanism_hash => return Ok(()),
            Some(_) => {
                return Err(SuiteError::OtherMechanism { path: folder.join(mechanism::FILE).display().to_string() });
            }
            None => {}
        }
        let network = Network::new(NetworkSpec::of_recipe(&encoder.recipe), header.seed, Kind::Float, self.device)?;
        network.load(&checkpoint::read_own_weights(&folder.join(ENCODER), state_sha256)?.state)?;
        let mut method = pretrain::method_of(pruned_as)?;
        method.begin_epoch(&network, pruned_as.epochs + 1)?;
        let (Some(mask), Some(prune_ratio)) = (method.mask(), method.prune_ratio()) else { return Ok(()) };
        let class_counts = self.whole_list(tail)?.class_counts(self.dataset.classes.len());
        let (list, recipe, class_counts) = (&list, encoder.recipe.probe(Protocol::Full), class_counts.as_slice());
        let pruning = Pruning { network: &network, mask, trained_pruned, list, recipe, class_counts };
        let (layers, changes) = (layers(&network, mask)?, changes(&pruning)?);
        let record = MechanismRecord {
            format: record::FORMAT,
            suite: encoder.suite.clone(),
            job: header.job.clone(),
            label: encoder.label.clone(),
            state_sha256: state_sha256.clone(),
            mechanism_hash,
            data_sha256: header.data_sha256.clone(),
            splits_sha256,
            prune_ratio,
            trained_pruned,
            smoke: header.smoke,
            stamp: header.stamp.clone(),
            environment: self.environment.clone(),
            seconds: start.elapsed().as_secs_f64(),
            layers,
            changes,
        };
        // Whoever takes the lock clears away what is half written.
        let _lock = FolderLock::take(folder)?.ok_or_else(|| PretrainError::in_use(folder))?;
        if mechanism::read(folder, &done.job)?.is_some() {
            return Ok(());
        }
        Ok(record::write_json(&folder.join(mechanism::FILE), &record)?)
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

    /// What the probe or evaluation `job` of `encoder` reads, for `network`.
    ///
    /// # Errors
    /// The job is a pre-training, or a list cannot be read.
    pub fn probing(
        &self,
        encoder: &PlannedEncoder,
        job: &JobId,
        network: &Network,
        test_only: bool,
    ) -> Result<Probing, SuiteError> {
        let (recipe, split) = (&encoder.recipe, encoder.id.split);
        let protocol = job.protocol().ok_or_else(|| SuiteError::NoOutcome { job: job.clone() })?;
        let train = match protocol {
            Protocol::Full => ListName::Train,
            Protocol::Few => ListName::FewShot(split),
        };
        // An evaluation reads no list that it does not need: that of all training images may not be there.
        let training = match test_only {
            true => None,
            false => Some([self.list(train)?, self.list(ListName::Validation)?]),
        };
        let test = self.list(ListName::Test)?;
        // Groups always come from the whole long-tailed list of the same number, also for models trained on D_b.
        let tail = self.whole_list(ListName::Pretrain(PretrainSplit::D_i, split))?;
        let class_counts = tail.class_counts(self.dataset.classes.len());
        let sha256 = checkpoint::state_sha256(&network.state())?;
        let lists: Vec<&Subset> = training.iter().flatten().chain([&test, &tail]).collect();
        let read = probe_keys(recipe, protocol, test_only);
        let mut header = self.header(encoder, job, recipe, read, &lists, Some(&sha256))?;
        if encoder.checkpoint.is_some() {
            header.checkpoint_sha256 = Some(checkpoint::state_sha256(&network.state().dense_backbone())?);
        }
        Ok(Probing { header, recipe: recipe.probe(protocol).clone(), training, test, class_counts })
    }

    /// Does the probe or evaluation `job` of `encoder` with `network`; records go to `folder` where one is given.
    pub fn probe(
        &self,
        encoder: &PlannedEncoder,
        job: &JobId,
        network: &Network,
        test_only: bool,
        folder: Option<&Path>,
        progress: &Progress,
    ) -> Result<JobRecord, SuiteError> {
        let Probing { header, recipe, training, test, class_counts } =
            self.probing(encoder, job, network, test_only)?;
        let training = training.as_ref().map(|[train, validation]| TrainingLists { train, validation });
        let data = ProbeData { dataset: &self.dataset, training, test: &test, class_counts: &class_counts };
        let job = ProbeJob {
            header: &header,
            environment: &self.environment,
            recipe: &recipe,
            network,
            data: &data,
            stop: &self.scale.stop,
            tensorboard: self.scale.tensorboard.as_deref(),
        };
        Ok(probe::run(&job, folder, progress)?)
    }
}

/// What a probe or an evaluation reads.
pub struct Probing {
    pub header: JobHeader,
    recipe: ProbeRecipe,
    /// Of a probe: what the classifier trains on, and what its best epoch is chosen by.
    training: Option<[Subset; 2]>,
    test: Subset,
    class_counts: Vec<u64>,
}
