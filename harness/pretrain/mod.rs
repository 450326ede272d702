//! Contrastive pre-training (paper section 3; REFERENCE.md "Steps", "Optimiser and schedule"). In: images, a list, a
//! recipe. Out: an encoder and a log. The trainer knows no method by name: each is one file behind [`Method`].

pub mod batches;
pub mod loss;
pub mod optimizer;
pub mod order;
mod recorder;
pub mod replay;
pub mod run;
mod saver;
pub mod schedule;
pub mod sdclr;
pub mod simclr;
mod trainer;

use tch::{Device, Kind, Tensor};

use crate::augment::AugmentError;
use crate::checkpoint::CheckpointError;
use crate::dataset::DatasetError;
use crate::fs::FsError;
use crate::native::NativeError;
use crate::network::{Network, NetworkError};
use crate::recipe::{MethodName, Recipe};
use crate::record::RecordError;
pub use trainer::Trainer;

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
        "the last batch of {images} images in batches of {batch_size} would hold {rest}, but {method} needs {smallest} \
         for batch norm; choose another batch_size (--set) or number of images"
    )]
    LastBatch { images: usize, batch_size: usize, rest: usize, method: String, smallest: usize },
    #[error("the training state lacks the optimiser's '{name}'; it is of another optimiser: use a new folder")]
    OptimizerState { name: String },
    #[error(
        "{folder} holds a run of another recipe, data set or split (its hash {found}, this one {expected}); choose \
         another --out, or remove the folder to start afresh"
    )]
    OtherRun { folder: String, found: String, expected: String },
    #[error("budget used up after epoch {epoch} of {epochs}: the same command goes on")]
    TimeUp { epoch: usize, epochs: usize },
    #[error("{folder} is in use by another process; wait for it or choose another --out")]
    InUse { folder: String },
    #[error("a training step could not be recorded as a CUDA graph ({0}); run with --eager, which records none")]
    Recording(NativeError),
    #[error("the kernels of batch norm could not be made ready for the GPU: {0}")]
    Kernels(NetworkError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Augment(#[from] AugmentError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    File(#[from] FsError),
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

fn last_good(checkpoint: &Option<(usize, std::path::PathBuf)>) -> String {
    match checkpoint {
        Some((epoch, path)) => format!("the last good checkpoint is {} (epoch {epoch})", path.display()),
        None => "no checkpoint had been written".to_owned(),
    }
}

/// A pre-training method: which views go through which branch, which loss joins them, what happens as an epoch starts.
pub trait Method {
    /// Images that a batch needs at least.
    fn smallest_batch(&self) -> usize;

    /// Called before an epoch's first step; the share of prunable weights that its mask keeps, where there is one.
    fn begin_epoch(&mut self, network: &Network, epoch: usize) -> Result<Option<f64>, PretrainError>;

    /// The scalar loss of one batch. `views` is `[N, 2, 3, H, W]` in `[0, 1]`; running statistics move.
    fn loss(&self, network: &Network, views: &Tensor) -> Result<Tensor, PretrainError>;
}

/// The method that a recipe names.
pub fn method_of(recipe: &Recipe) -> Box<dyn Method> {
    match recipe.method {
        MethodName::Simclr => Box::new(simclr::SimClr { temperature: recipe.temperature, precision: recipe.precision }),
        MethodName::Sdclr => Box::new(sdclr::SdClr::new(recipe)),
    }
}

/// The values of losses that [`Trainer::step`] gave, fetched from their device as one vector.
pub fn read_losses(losses: &[Tensor]) -> Result<Vec<f64>, PretrainError> {
    Ok(Vec::try_from(Tensor::f_stack(losses, 0)?.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?)?)
}
