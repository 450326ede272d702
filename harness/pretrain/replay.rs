//! Training on given inputs, so that any PyTorch run can be held against ours. In: a folder with `replay.toml`,
//! `init.pt` and `views.npy`. Out: losses, densities and digests of the final state; the comparison with
//! `expected.json` where there is one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::{PretrainError, Trainer};
use crate::checkpoint;
use crate::fs;
use crate::native::group::Group;
use crate::network::{Network, NetworkSpec, Pass, StateDict};
use crate::npy::{self, NpyError};
use crate::recipe::{Depth, REFERENCE_SUITE, Recipe, RecipeError, Suite};
use crate::record::Environment;
use crate::record::evidence::{EvidenceRecord, Kind as EvidenceKind};

/// A replay could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("{} does not parse: {reason}", path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error("{} lacks the keys of a replay report: {reason}; write it with sdclr replay --out", path.display())]
    Report { path: PathBuf, reason: String },
    #[error("replay.toml is of method {method} but has no prune_ratio; add it, 0.9 as published")]
    NoPruneRatio { method: String },
    #[error("init.pt holds {found}, but replay.toml asks for {expected}")]
    OtherNetwork { found: String, expected: String },
    #[error("views.npy has {found} steps, but replay.toml says steps_per_epoch = {expected}")]
    Steps { found: i64, expected: usize },
    #[error("views.npy has batches of {images} images, too few for {ranks} processes; start at most {images}")]
    FewImages { images: usize, ranks: usize },
    #[error("the loss is {loss} in epoch {epoch}, step {step}, at learning rate {lr}: the run diverged")]
    NotFinite { loss: f64, epoch: usize, step: usize, lr: f64 },
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Npy(#[from] NpyError),
    #[error(transparent)]
    Pretrain(#[from] PretrainError),
}

macro_rules! via_pretrain {
    ($($error:ty),*) => {
        $(impl From<$error> for ReplayError {
            fn from(error: $error) -> Self {
                Self::Pretrain(error.into())
            }
        })*
    };
}
via_pretrain!(crate::checkpoint::CheckpointError, crate::network::NetworkError, crate::fs::FsError, tch::TchError);

/// `replay.toml`; the names are those of recipes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayConfig {
    method: String,
    network: Depth,
    output_dim: i64,
    temperature: f64,
    /// Of a method that prunes.
    prune_ratio: Option<f64>,
    lr: f64,
    momentum: f64,
    weight_decay: f64,
    epochs: usize,
    warmup_epochs: usize,
    steps_per_epoch: usize,
}

impl ReplayConfig {
    /// The recipe of a replay: the given keys over a published recipe, whose other keys a replay does not use.
    fn recipe(&self) -> Result<Recipe, ReplayError> {
        let suite = Suite::open(REFERENCE_SUITE)?;
        let encoder = suite.encoder(&self.method)?;
        let base = suite.recipe(encoder, &[])?;
        let Self { network, output_dim, temperature, lr, momentum, weight_decay, epochs, warmup_epochs, .. } = *self;
        let mut recipe =
            Recipe { network, output_dim, temperature, lr, momentum, weight_decay, epochs, warmup_epochs, ..base };
        // In the file of a method that prunes nothing the ratio says nothing.
        if let Some(own) = recipe.own.get_mut("prune_ratio") {
            *own = self.prune_ratio.ok_or_else(|| ReplayError::NoPruneRatio { method: self.method.clone() })?.into();
        }
        recipe.validate()?;
        Ok(recipe)
    }
}

/// A tensor in three numbers, computed in float64.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Digest {
    pub l2: f64,
    pub sum: f64,
    pub numel: usize,
}

impl Digest {
    fn of(tensor: &Tensor) -> Self {
        let values = tensor.to_kind(Kind::Double);
        let [l2, sum] = [values.norm(), values.sum(Kind::Double)].map(|value| value.double_value(&[]));
        Self { l2, sum, numel: tensor.numel() }
    }
}

/// What a replay did: the JSON that it prints, and the keys of `expected.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReplayReport {
    /// Processes that computed it.
    #[serde(default)]
    pub ranks: usize,
    /// Images of the first step on each of them.
    #[serde(default)]
    pub images_per_rank: Vec<i64>,
    /// One per step.
    pub losses: Vec<f64>,
    /// Share of kept weights per epoch; empty for SimCLR.
    pub density: Vec<f64>,
    /// Rate of the last step.
    pub final_lr: f64,
    /// By tensor name as in `init.pt`, prefix kept.
    pub state: BTreeMap<String, Digest>,
    /// Frobenius norm of the head's output in eval mode, dense branch, on view 0 of the first step's batch.
    pub eval_features_l2: f64,
    /// Its first 2 rows and 8 columns.
    pub eval_features_head: Vec<Vec<f64>>,
}

impl ReplayReport {
    /// Reads an `expected.json`.
    ///
    /// # Errors
    /// It is missing, or lacks a key.
    pub fn read(path: &Path) -> Result<Self, ReplayError> {
        serde_json::from_str(&fs::read_to_string(path)?)
            .map_err(|error| ReplayError::Report { path: path.to_owned(), reason: error.to_string() })
    }
}

/// Trains as `folder` says, each rank of `group` on its slice of every batch. Gives the report and the final state, named as in `init.pt`.
///
/// # Errors
/// A file is missing or does not fit the others, or the loss is not finite.
pub fn run(folder: &Path, device: Device, group: &Group) -> Result<(ReplayReport, StateDict), ReplayError> {
    let path = folder.join("replay.toml");
    let text = fs::read_to_string(&path)?;
    let syntax = |error: toml::de::Error| ReplayError::Syntax { path, reason: error.to_string() };
    let config: ReplayConfig = toml::from_str(&text).map_err(syntax)?;
    let recipe = config.recipe()?;

    let init = checkpoint::read_weights(&folder.join("init.pt"))?.state;
    let prefix = init.ddp_prefix();
    let init = init.without_prefix(prefix);
    let spec = NetworkSpec::detect(&init, config.network)?;
    let expected = NetworkSpec { width: spec.width, stem: spec.stem, ..NetworkSpec::of_recipe(&recipe) };
    if spec != expected {
        return Err(ReplayError::OtherNetwork { found: spec.to_string(), expected: expected.to_string() });
    }
    let mut network = Network::new(spec, recipe.seed, Kind::Float, device)?;
    network.load(&init)?;
    network.set_group(group.clone());

    let shape = "[steps_per_epoch, batch, 2, 3, H, W] with a batch of 2 or more";
    let fits = |shape: &[usize]| shape.len() == 6 && shape[2..4] == [2, 3] && shape[1] >= 2;
    let views = npy::read_uint8(&folder.join("views.npy"), shape, fits)?;
    if views.size()[0] != config.steps_per_epoch as i64 {
        return Err(ReplayError::Steps { found: views.size()[0], expected: config.steps_per_epoch });
    }
    let batch = |step: usize| views.get(step as i64).to_device(device);
    let images = views.size()[1] as usize;
    if images < group.size() {
        return Err(ReplayError::FewImages { images, ranks: group.size() });
    }
    let inputs = format!("{text}, {}, {}", checkpoint::state_sha256(&init)?, Digest::of(&views).sum);
    group.agree("their inputs", &inputs).map_err(PretrainError::from)?;
    let own = group.slice(images);
    let slice = |step| batch(step).narrow(0, own.start as i64, own.len() as i64);

    let mut trainer = Trainer::new(&recipe, network, config.steps_per_epoch, false)?;
    let (mut losses, mut density, mut images_per_rank) = (Vec::new(), Vec::new(), Vec::new());
    for epoch in 1..=recipe.epochs {
        let stats = trainer.epoch(epoch, (0..config.steps_per_epoch).map(|step| Ok(slice(step))));
        let stats = stats.map_err(|error| match error {
            PretrainError::NotFinite { loss, epoch, step, lr, .. } => ReplayError::NotFinite { loss, epoch, step, lr },
            error => error.into(),
        })?;
        density.extend(stats.density);
        losses.extend(stats.losses);
        images_per_rank = stats.slices;
    }
    let final_lr = trainer.schedule.rate(trainer.steps);
    let features = tch::no_grad(|| trainer.network.forward(&batch(0).select(1, 0), &Pass::EVAL)).to_kind(Kind::Double);
    let corner = features.narrow(0, 0, 2).narrow(1, 0, features.size()[1].min(8)).contiguous();
    let state = trainer.network.state().with_prefix(prefix);
    let report = ReplayReport {
        ranks: group.size(),
        images_per_rank,
        losses,
        density,
        final_lr,
        state: state.iter().map(|(name, tensor)| (name.to_owned(), Digest::of(tensor))).collect(),
        eval_features_l2: features.norm().double_value(&[]),
        eval_features_head: Vec::<Vec<f64>>::try_from(&corner)?,
    };
    Ok((report, state))
}

/// How far a replay may be from what was expected.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Tolerance {
    /// Relative tolerance of the first loss
    #[arg(long = "first-loss-tolerance", value_name = "X", default_value_t = 1e-5)]
    pub first_loss: f64,
    /// Relative tolerance of the other losses
    #[arg(long = "loss-tolerance", value_name = "X", default_value_t = 2e-3)]
    pub loss: f64,
    /// Absolute tolerance of densities
    #[arg(long = "density-tolerance", value_name = "X", default_value_t = 2e-6)]
    pub density: f64,
    /// Relative tolerance of the l2 norms of tensors and features, and of the final rate
    #[arg(long = "l2-tolerance", value_name = "X", default_value_t = 1e-3)]
    pub l2: f64,
}

/// One number beside the expected one.
#[derive(Debug, Clone)]
pub struct Comparison {
    pub what: String,
    pub found: f64,
    pub expected: f64,
    /// Relative, or absolute for densities and counts.
    pub difference: f64,
    /// `None`: shown, not judged.
    pub allowed: Option<f64>,
}

impl Comparison {
    /// Whether it is judged and too far off; a difference that is not a number is.
    pub fn differs(&self) -> bool {
        self.allowed.is_some_and(|allowed| self.difference.is_nan() || self.difference > allowed)
    }
}

/// Every number of `found` beside the one of `expected`, those that only one side has included.
pub fn compare(found: &ReplayReport, expected: &ReplayReport, tolerance: &Tolerance) -> Vec<Comparison> {
    let relative = |a: f64, b: f64| if a == b { 0.0 } else { (a - b).abs() / b.abs().max(1e-12) };
    let row = |what: String, found: f64, expected: f64, allowed: Option<f64>| Comparison {
        what,
        found,
        expected,
        difference: relative(found, expected),
        allowed,
    };
    let at = |values: &[f64], i: usize| values.get(i).copied().unwrap_or(f64::NAN);
    let mut rows = Vec::new();
    for i in 0..found.losses.len().max(expected.losses.len()) {
        let allowed = if i == 0 { tolerance.first_loss } else { tolerance.loss };
        rows.push(row(format!("loss of step {}", i + 1), at(&found.losses, i), at(&expected.losses, i), Some(allowed)));
    }
    for i in 0..found.density.len().max(expected.density.len()) {
        let (a, b) = (at(&found.density, i), at(&expected.density, i));
        let mut row = row(format!("density of epoch {}", i + 1), a, b, Some(tolerance.density));
        row.difference = (a - b).abs();
        rows.push(row);
    }
    rows.push(row("final_lr".to_owned(), found.final_lr, expected.final_lr, Some(tolerance.l2)));
    let names: std::collections::BTreeSet<&String> = found.state.keys().chain(expected.state.keys()).collect();
    let absent = Digest { l2: f64::NAN, sum: f64::NAN, numel: 0 };
    for name in names {
        let [a, b] = [&found.state, &expected.state].map(|state| state.get(name).unwrap_or(&absent));
        let counter = name.ends_with("num_batches_tracked");
        rows.push(row(format!("l2 of {name}"), a.l2, b.l2, Some(if counter { 0.0 } else { tolerance.l2 })));
        rows.push(row(format!("numel of {name}"), a.numel as f64, b.numel as f64, Some(0.0)));
        rows.push(row(format!("sum of {name}"), a.sum, b.sum, None));
    }
    let (a, b) = (found.eval_features_l2, expected.eval_features_l2);
    rows.push(row("eval_features_l2".to_owned(), a, b, Some(tolerance.l2)));
    for (i, (a, b)) in found.eval_features_head.iter().zip(&expected.eval_features_head).enumerate() {
        for (j, (a, b)) in a.iter().zip(b).enumerate() {
            rows.push(row(format!("eval_features_head[{i}][{j}]"), *a, *b, None));
        }
    }
    rows
}

/// The judged `rows` of the replay of `folder` as a record.
pub fn evidence(folder: &Path, rows: &[Comparison], environment: Environment) -> EvidenceRecord {
    let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
    let compared = format!("losses, densities and final state of {} with its expected.json", folder.display());
    let mut record =
        EvidenceRecord::new(EvidenceKind::StepTolerance, &format!("replay-{name}"), &compared, environment);
    for row in rows {
        if let Some(allowed) = row.allowed {
            record.add(&row.what, row.difference, allowed);
        }
    }
    record
}

/// What differs, or where nothing does, the largest difference of each judged kind; and the largest unjudged one.
pub fn table(rows: &[Comparison]) -> String {
    let kind = |row: &Comparison| row.what.chars().take_while(|c| ![' ', '['].contains(c)).collect::<String>();
    let mut shown: Vec<&Comparison> = rows.iter().filter(|row| row.differs()).collect();
    let mut worst: BTreeMap<String, &Comparison> = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.differs()) {
        let entry = worst.entry(kind(row)).or_insert(row);
        if row.difference > entry.difference {
            *entry = row;
        }
    }
    shown.extend(worst.values());
    let width = shown.iter().map(|row| row.what.len()).max().unwrap_or(0);
    let mut text = format!("{:width$}  {:>16} {:>16} {:>11} {:>9}\n", "", "found", "expected", "difference", "allowed");
    for row in shown {
        let allowed = row.allowed.map_or("-".to_owned(), |allowed| format!("{allowed:.0e}"));
        let verdict = match (row.differs(), row.allowed) {
            (true, _) => "DIFFERS",
            (false, Some(_)) => "worst of its kind",
            (false, None) => "worst of its kind, not judged",
        };
        let Comparison { what, found, expected, difference, .. } = row;
        text +=
            &format!("{what:width$}  {found:>16.9e} {expected:>16.9e} {difference:>11.3e} {allowed:>9}  {verdict}\n");
    }
    text
}
