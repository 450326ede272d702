//! Contrastive pre-training (paper section 3; REFERENCE.md "Steps", "Optimiser and schedule"). In: images, a list, a
//! recipe. Out: an encoder and a log. The trainer knows no method by name: each is one file behind [`Method`].

pub mod loader;
pub mod loss;
pub mod optimizer;
pub mod order;
mod recorder;
pub mod replay;
pub mod run;
mod saver;
pub mod schedule;
pub mod temperature;
mod trainer;
pub mod views;

use std::path::Path;

use tch::Tensor;

use crate::augment::AugmentError;
use crate::checkpoint::CheckpointError;
use crate::dataset::DatasetError;
use crate::fs::{FolderLock, FsError};
use crate::native::NativeError;
use crate::native::group::GroupError;
use crate::network::{Kept, Mask, Network, NetworkError, StateDict};
use crate::recipe::{Recipe, RecipeError};
use crate::record::RecordError;
pub use trainer::{EpochStats, Trainer, read_losses};

/// Pre-training stopped.
#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    #[error(
        "the loss is {loss} in epoch {epoch}, step {step}, at learning rate {lr}: training diverged; lower lr or raise \
         temperature or warmup_epochs (--set), {}",
        last_good(.checkpoint)
    )]
    NotFinite { loss: f64, epoch: usize, step: usize, lr: f64, checkpoint: Option<(usize, std::path::PathBuf)> },
    #[error(
        "{reason}: training diverged; lower lr or raise temperature or warmup_epochs (--set), {}",
        last_good(.checkpoint)
    )]
    Useless { reason: String, checkpoint: Option<(usize, std::path::PathBuf)> },
    #[error("epoch {epoch} ended after {found} of its {expected} steps; run the same command again")]
    ShortEpoch { epoch: usize, found: usize, expected: usize },
    #[error(
        "the last batch of {images} images in batches of {batch_size} would hold {rest}, but {method} needs {smallest} \
         for batch norm; choose another batch_size (--set) or number of images"
    )]
    LastBatch { images: usize, batch_size: usize, rest: usize, method: String, smallest: usize },
    #[error(
        "the last batch of {images} images in batches of {batch_size} would hold {rest}, too few for {ranks} processes; start fewer, or \
         choose another batch_size (--set)"
    )]
    FewImages { images: usize, batch_size: usize, rest: usize, ranks: usize },
    #[error("no method is called '{found}'; known are {known}")]
    UnknownMethod { found: String, known: String },
    #[error("the encoder {encoder} of method {method} is not trained; leave its lists out")]
    Untrained { encoder: String, method: String },
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error("the training state lacks the method's '{name}' of this network; it is of another run: use a new folder")]
    MethodState { name: String },
    #[error("the training state lacks the optimiser's '{name}'; it is of another optimiser: use a new folder")]
    OptimizerState { name: String },
    #[error(
        "{folder} holds a run of another recipe, data set or split (its hash {found}, this one {expected}); choose \
         another --out, or remove the folder to start afresh"
    )]
    OtherRun { folder: String, found: String, expected: String },
    #[error(
        "stopped by {request} in epoch {epoch} of {epochs}, after {steps} of its steps, with a checkpoint; run the same command again \
         to continue"
    )]
    Stopped { request: crate::stop::Request, epoch: usize, epochs: usize, steps: usize },
    #[error("budget used up after epoch {epoch} of {epochs}: run the same command again to continue")]
    TimeUp { epoch: usize, epochs: usize },
    #[error("{folder} is in use by {holder}; wait for it or choose another --out")]
    InUse { folder: String, holder: String },
    #[error("a training step could not be recorded as a CUDA graph ({0}); run with --eager, which records none")]
    Recording(NativeError),
    #[error(
        "a step was asked for before an epoch had begun, which finds the mask and the temperature; begin one first"
    )]
    NoEpoch,
    #[error("the kernels of batch norm could not be made ready for the GPU: {0}")]
    Kernels(NetworkError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Augment(#[from] AugmentError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    File(#[from] FsError),
    #[error("libtorch: {}", crate::native::said(.0))]
    Torch(#[from] tch::TchError),
}

impl PretrainError {
    /// That another process holds the lock on `folder`.
    pub fn in_use(folder: &Path) -> Self {
        Self::InUse { folder: folder.display().to_string(), holder: FolderLock::holder(folder) }
    }

    /// Whether nothing is wrong, and the same command continues where this one ended.
    pub fn is_for_later(&self) -> bool {
        matches!(self, Self::TimeUp { .. } | Self::Stopped { .. })
    }

    /// Whether no other job may begin.
    pub fn ends_all(&self) -> bool {
        self.is_apart() || matches!(self, Self::Stopped { .. })
    }

    /// Whether the ranks that train together no longer agree on what comes next: their processes have to end.
    pub fn is_apart(&self) -> bool {
        matches!(self, Self::Group(error) if !error.is_shared())
    }
}

fn last_good(checkpoint: &Option<(usize, std::path::PathBuf)>) -> String {
    match checkpoint {
        Some((epoch, path)) => format!("the last good checkpoint is {} (epoch {epoch})", path.display()),
        None => "no checkpoint had been written".to_owned(),
    }
}

/// A pre-training method: which views go through which branch, which loss joins them, what happens as an epoch starts. What
/// changes from step to step or from epoch to epoch is a tensor that keeps its place, so that a recorded step reads the
/// current value.
pub trait Method {
    /// Images that a batch needs at least.
    fn smallest_batch(&self) -> usize;

    /// Called before an epoch's first step, and gives what its mask keeps, where there is one.
    fn begin_epoch(&mut self, network: &Network, epoch: usize) -> Result<Option<Kept>, PretrainError>;

    /// The scalar loss of one batch. `views` is uint8 `[N, 2, 3, H, W]`; running statistics move.
    fn loss(&self, network: &Network, views: &Tensor) -> Result<Tensor, PretrainError>;

    /// The mask of the epoch begun last, where the method prunes.
    fn mask(&self) -> Option<&Mask> {
        None
    }

    /// The share of weights that it drops, where it prunes.
    fn prune_ratio(&self) -> Option<f64> {
        None
    }

    /// What [`Method::begin_epoch`] found and the rest of the epoch or the next one needs, if later weights do not give it again.
    fn state(&self) -> StateDict {
        StateDict::new()
    }

    /// Takes `epoch` up in its middle or at its end with the [`Method::state`] of then, and gives what its beginning gave.
    ///
    /// # Errors
    /// The state is of another method or network.
    fn load(&mut self, network: &Network, epoch: usize, _state: &StateDict) -> Result<Option<Kept>, PretrainError> {
        self.begin_epoch(network, epoch)
    }
}

/// What the rest of the program knows of a method.
#[derive(Debug, Clone, Copy)]
pub struct MethodInfo {
    /// In suites, records and folders.
    pub name: &'static str,
    /// In tables and figures.
    pub label: &'static str,
    /// Where tables list it: ascending.
    pub order: usize,
    /// Its mark in figures.
    pub marker: Marker,
    /// Makes the method of a recipe, checking the keys that it alone has; `None`: an encoder that stays as it was drawn.
    pub build: Option<Build>,
}

/// How a method is made of a recipe.
pub type Build = fn(&Recipe) -> Result<Box<dyn Method>, RecipeError>;

/// The shape of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
}

/// Declares each method's file, named as the method, and lists its `INFO`.
macro_rules! methods {
    ($($method:ident),* $(,)?) => {
        $(pub mod $method;)*
        /// Every method.
        pub const METHODS: &[&MethodInfo] = &[$(&$method::INFO),*];
    };
}
methods!(random, simclr, sdclr);

/// The method called `name`.
///
/// # Errors
/// There is none.
pub fn method_info(name: &str) -> Result<&'static MethodInfo, PretrainError> {
    METHODS.iter().copied().find(|info| info.name == name).ok_or_else(|| PretrainError::UnknownMethod {
        found: name.to_owned(),
        known: METHODS.iter().map(|info| info.name).collect::<Vec<_>>().join(", "),
    })
}

/// The method that a recipe names.
///
/// # Errors
/// There is none, it trains nothing, or it does not take the recipe's keys.
pub fn method_of(recipe: &Recipe) -> Result<Box<dyn Method>, PretrainError> {
    let info = method_info(&recipe.method)?;
    let untrained = || PretrainError::Untrained { encoder: info.label.to_owned(), method: info.name.to_owned() };
    Ok(info.build.ok_or_else(untrained)?(recipe)?)
}
