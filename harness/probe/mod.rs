//! The linear probe (paper section 4.1; REFERENCE.md "Evaluation"). In: an encoder, images, lists, a protocol. Out:
//! test accuracy per class, of the classifier that did best on the validation list.

pub mod mechanism;
mod views;

use std::path::Path;
use std::time::Instant;

use tch::{Device, Kind, Tensor};

use crate::augment::AugmentError;
use crate::checkpoint::{self, CheckpointError};
use crate::clock;
use crate::dataset::{Dataset, DatasetError};
use crate::fs::{FolderLock, FsError};
use crate::native::{self, NativeError};
use crate::network::{Network, NetworkError, Pass, StateDict};
use crate::pretrain::optimizer::Optimizer;
use crate::pretrain::order::epoch_order;
use crate::pretrain::{PretrainError, read_losses};
use crate::progress::{Bar, Epoch, Progress};
use crate::random;
use crate::recipe::{OptimizerName, OrderName, ProbeRecipe, Selection};
use crate::record::tensorboard::EventFile;
use crate::record::{
    self, Environment, EpochRecord, EvaluationRecord, Event, Job, JobHeader, JobRecord, Outcome, ProbeRecord,
    RecordError, RunLog, Session,
};
use crate::scores::{self, ScoresError};
use crate::split::Subset;
use crate::stop::Stop;
pub use views::images_at_once;

/// A probe stopped.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("the probe's loss is {loss} in epoch {epoch}; its learning rate was {lr}: is the encoder sound?")]
    NotFinite { loss: f64, epoch: usize, lr: f64 },
    #[error("the {list} list holds no image of class {class}; its accuracy cannot be told: use the whole list")]
    EmptyClass { list: String, class: usize },
    #[error(
        "the network's outputs for the {list} list are not all finite; its weights are damaged, or it has diverged"
    )]
    Outputs { list: String },
    #[error("stopped by {request} before epoch {epoch} of the probe, which begins anew; run the same command again")]
    Stopped { request: crate::stop::Request, epoch: usize },
    #[error("the probe has no epoch; at least 1 is needed")]
    NoEpoch,
    #[error("{folder} is in use by {holder}; wait for it")]
    InUse { folder: String, holder: String },
    #[error(transparent)]
    Optimizer(#[from] PretrainError),
    #[error(transparent)]
    Verdict(#[from] ScoresError),
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
    #[error("libtorch: {}", crate::native::said(.0))]
    Torch(#[from] tch::TchError),
}

/// What a probe reads.
#[derive(Debug)]
pub struct ProbeData<'a> {
    pub dataset: &'a Dataset,
    /// Without, the network is evaluated as it is.
    pub training: Option<TrainingLists<'a>>,
    pub test: &'a Subset,
    /// Images of each class in the split's `D_i`: what makes a class Many, Medium or Few.
    pub class_counts: &'a [u64],
}

/// What the classifier trains on, and what its best epoch is chosen by.
#[derive(Debug, Clone, Copy)]
pub struct TrainingLists<'a> {
    pub train: &'a Subset,
    pub validation: &'a Subset,
}

/// One probe: a network with single BN and a classifier, of which only the classifier trains.
#[derive(Debug)]
pub struct ProbeJob<'a> {
    pub header: &'a JobHeader,
    pub environment: &'a Environment,
    pub recipe: &'a ProbeRecipe,
    pub network: &'a Network,
    pub data: &'a ProbeData<'a>,
    /// Training stops before the next epoch once this asks for it.
    pub stop: &'a Stop,
    /// Where TensorBoard finds the epochs, if it is to be shown them.
    pub tensorboard: Option<&'a Path>,
}

/// Pooled features `[n, C]` of the entries at `positions` of `list` under the test transform or, given an epoch, as that
/// epoch's training sees them, without gradient.
fn encode(
    network: &Network,
    list: &Subset,
    positions: &[i64],
    recipe: &ProbeRecipe,
    epoch: Option<usize>,
) -> Result<Tensor, ProbeError> {
    let _no_grad = tch::no_grad_guard();
    let mut features = Vec::new();
    views::in_chunks(list, positions, recipe, epoch, network.device(), |views| {
        features.push(network.backbone(&native::send(&views, network.device())?, &Pass::EVAL));
        Ok(())
    })?;
    Ok(Tensor::f_cat(&features, 0)?)
}

/// Pooled features of all of `list` under the test transform.
fn encode_whole(network: &Network, list: &Subset, recipe: &ProbeRecipe) -> Result<Tensor, ProbeError> {
    let positions: Vec<i64> = (0..list.len() as i64).collect();
    encode(network, list, &positions, recipe, None)
}

/// How many images of each class there are in `list`, and how many the classifier gets right.
fn count_correct(
    network: &Network,
    features: &Tensor,
    list: &Subset,
    classes: usize,
) -> Result<Vec<[u64; 2]>, ProbeError> {
    let logits = tch::no_grad(|| network.head(features, &Pass::EVAL));
    // argmax over NaN still returns a class, always the same one.
    if logits.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(ProbeError::Outputs { list: list.name.clone() });
    }
    let predicted = Vec::<i64>::try_from(logits.f_argmax(1, false)?.f_to_device(Device::Cpu)?)?;
    let mut counts = vec![[0; 2]; classes];
    for (&label, predicted) in list.labels.iter().zip(predicted) {
        counts[label as usize][0] += 1;
        counts[label as usize][1] += u64::from(label == predicted);
    }
    Ok(counts)
}

/// Share of images in per cent whose label is among the most likely classes that `selection` counts.
fn accuracy(network: &Network, features: &Tensor, labels: &Tensor, selection: Selection) -> Result<f64, ProbeError> {
    let _no_grad = tch::no_grad_guard();
    let logits = network.head(features, &Pass::EVAL);
    let hits = match selection {
        Selection::Top1 => logits.f_argmax(1, false)?.f_eq_tensor(labels)?,
        Selection::Top5 => {
            let (_, likely) = logits.f_topk(logits.size()[1].min(5), 1, true, true)?;
            likely.f_eq_tensor(&labels.f_view([-1, 1])?)?
        }
    };
    Ok(100.0 * hits.f_sum(Kind::Int64)?.f_double_value(&[])? / labels.size()[0] as f64)
}

/// Runs the probe; where `folder` is given its records go there, and a finished probe is only read back.
///
/// # Errors
/// The loss or the outputs are not finite, a class has no test image, or a file cannot be written.
pub fn run(job: &ProbeJob, folder: Option<&Path>, progress: &Progress) -> Result<JobRecord, ProbeError> {
    let session = Session { from_epoch: 0, ranks: 1, environment: job.environment.clone() };
    let mut log = None;
    let mut lock = None;
    if let Some(folder) = folder {
        lock = Some(FolderLock::take(folder)?.ok_or_else(|| in_use(folder))?);
        match record::read_result(&folder.join("result.json"))? {
            // A probe is cheap beside its encoder: one of another recipe is simply run anew.
            Some(done) if done.header().recipe_hash == job.header.recipe_hash => {
                if let (Some(shown), Some(done)) = (job.tensorboard, done.as_probe()) {
                    EventFile::of_finished(shown, &done.job.header, &done.epochs)?;
                }
                return Ok(done);
            }
            _ => log = Some(RunLog::open(&folder.join("run.jsonl"), job.header, &session, job.tensorboard)?),
        }
    }
    // Whatever the precision of the encoder's training: features and classifier are true float32.
    native::set_tf32(false)?;
    let start = Instant::now();
    let outcome = evaluate(job, &mut log, progress);
    if let (Err(error), Some(log)) = (&outcome, &mut log) {
        // The error itself must come through, also where the disk is full.
        let _ = log.event(&Event::Failure { error: error.to_string() });
    }
    let (trained, outcome) = outcome?;
    if let (Some(folder), Some(lock)) = (folder, &lock)
        && !lock.is_held()
    {
        return Err(in_use(folder));
    }
    let state_sha256 = checkpoint::state_sha256(&job.network.state())?;
    let (header, seconds) = (job.header.clone(), start.elapsed().as_secs_f64());
    if let Some(log) = &mut log {
        log.event(&Event::Outcome(outcome.clone()))?;
        log.event(&Event::Result { state_sha256: state_sha256.clone(), seconds })?;
    }
    let job = Job { header, sessions: vec![session], seconds, state_sha256, ended: Some(clock::now()) };
    let record = match trained {
        Some(Trained { epochs, best_epoch, best_validation_accuracy }) => {
            JobRecord::Probe(ProbeRecord { job, epochs, best_epoch, best_validation_accuracy, outcome })
        }
        None => JobRecord::Evaluation(EvaluationRecord { job, outcome }),
    };
    if let Some(folder) = folder {
        record::write_result(&folder.join("result.json"), &record)?;
    }
    Ok(record)
}

fn in_use(folder: &Path) -> ProbeError {
    ProbeError::InUse { folder: folder.display().to_string(), holder: FolderLock::holder(folder) }
}

/// Trains (where there are lists for it), restores the best classifier and tests it, once.
fn evaluate(
    job: &ProbeJob,
    log: &mut Option<RunLog>,
    progress: &Progress,
) -> Result<(Option<Trained>, Outcome), ProbeError> {
    let ProbeData { dataset, test, class_counts, .. } = job.data;
    let classes = dataset.classes.len();
    let limited = job.header.limit_epochs.unwrap_or(usize::MAX).min(job.recipe.epochs);
    let epochs = if job.data.training.is_some() { limited } else { 0 };
    let bar = progress.bar(&job.header.job.to_string(), "epochs", epochs, 0);
    bar.set_message("features of test images");
    // Before the epochs, so that a file that cannot be read does not cost them.
    let features = encode_whole(job.network, test, job.recipe)?;
    let trained = match &job.data.training {
        None => None,
        Some(lists) => Some(train(job, lists, epochs, log, &bar)?),
    };
    let counts = count_correct(job.network, &features, test, classes)?;
    if let (Some(class), false) = (counts.iter().position(|[images, _]| *images == 0), job.header.smoke) {
        return Err(ProbeError::EmptyClass { list: test.name.clone(), class });
    }
    // A smoke run's short list may miss a class, which then counts as 0 %.
    let accuracy = |[images, right]: &[u64; 2]| 100.0 * *right as f64 / (*images).max(1) as f64;
    let per_class: Vec<f64> = counts.iter().map(accuracy).collect();
    let scores = scores::scores(&per_class, &scores::groups_of(dataset.name, class_counts))?;
    Ok((trained, Outcome { per_class, class_counts: class_counts.to_vec(), scores }))
}

/// The trained part of a probe network: its last layer.
#[derive(Debug)]
pub struct Classifier(StateDict);

impl Classifier {
    /// The classifier of `network`, sharing its storage.
    pub fn of(network: &Network) -> Self {
        Self(network.parameters().into_iter().filter(|(name, _)| name.starts_with("fc.")).collect())
    }

    /// Weight and bias by name.
    pub fn parameters(&self) -> &StateDict {
        &self.0
    }

    /// A copy to come back to.
    fn snapshot(&self) -> Vec<Tensor> {
        self.0.iter().map(|(_, tensor)| tensor.detach().copy()).collect()
    }

    fn restore(&self, snapshot: &[Tensor]) {
        tch::no_grad(|| {
            for ((_, tensor), saved) in self.0.iter().zip(snapshot) {
                tensor.shallow_clone().copy_(saved);
            }
        });
    }
}

/// The records of the epochs, and the best one with its validation accuracy in per cent.
struct Trained {
    epochs: Vec<EpochRecord>,
    best_epoch: usize,
    best_validation_accuracy: f64,
}

/// Trains the classifier and leaves the network with the best one on the validation list.
fn train(
    job: &ProbeJob,
    lists: &TrainingLists,
    epochs: usize,
    log: &mut Option<RunLog>,
    bar: &Bar,
) -> Result<Trained, ProbeError> {
    let ProbeJob { recipe, network, .. } = job;
    let validation = encode_whole(network, lists.validation, recipe)?;
    let validation_labels = Tensor::f_from_slice(&lists.validation.labels)?.f_to_device(network.device())?;

    let classifier = Classifier::of(network);
    let mut optimizer =
        Optimizer::new(OptimizerName::Sgd, recipe.momentum, recipe.weight_decay, classifier.parameters());
    let mut best: Option<(usize, f64, Vec<Tensor>)> = None;
    bar.reset_elapsed();
    let mut records = Vec::new();
    for epoch in 1..=epochs {
        if let Some(request) = job.stop.requested() {
            return Err(ProbeError::Stopped { request, epoch });
        }
        let start = Instant::now();
        let reached = recipe.milestones.iter().filter(|milestone| **milestone <= epoch).count();
        let lr = recipe.lr * 0.1_f64.powi(reached as i32);
        let loss = train_epoch(network, lists.train, recipe, &mut optimizer, epoch, lr)?;
        let mut record = EpochRecord {
            epoch,
            loss,
            lr,
            density: None,
            overlap: None,
            validation_accuracy: None,
            images_per_second: lists.train.len() as f64 / start.elapsed().as_secs_f64(),
            seconds: 0.0,
        };
        // The last epoch is always validated, so that there is a best one when epochs are limited.
        if epoch % recipe.validate_every == 0 || epoch == epochs {
            let accuracy = accuracy(network, &validation, &validation_labels, recipe.selection)?;
            record.validation_accuracy = Some(accuracy);
            if best.as_ref().is_none_or(|(_, known, _)| accuracy > *known) {
                best = Some((epoch, accuracy, classifier.snapshot()));
            }
        }
        record.seconds = start.elapsed().as_secs_f64();
        bar.inc(1);
        bar.epoch(Epoch { epoch, epochs, loss, images_per_second: record.images_per_second });
        if let Some(log) = log {
            log.event(&Event::Epoch(record.clone()))?;
        }
        records.push(record);
    }
    let (best_epoch, best_validation_accuracy, snapshot) = best.ok_or(ProbeError::NoEpoch)?;
    classifier.restore(&snapshot);
    Ok(Trained { epochs: records, best_epoch, best_validation_accuracy })
}

/// Steps whose features are computed at once: those of all of ImageNet would take 10 GB.
const STEPS_AHEAD: usize = 16;

/// One epoch over `list`, in the recipe's order with addressed crops and flips, at rate `lr`; the mean loss over images.
pub fn train_epoch(
    network: &Network,
    list: &Subset,
    recipe: &ProbeRecipe,
    optimizer: &mut Optimizer,
    epoch: usize,
    lr: f64,
) -> Result<f64, ProbeError> {
    let order = match recipe.order {
        OrderName::Addressed => {
            let seed = random::addressed_seed(recipe.seed, &format!("probe order/{epoch}"));
            random::randperm(list.len(), seed)?
        }
        OrderName::DistributedSampler => epoch_order(list.len(), epoch, 0, 1)?,
    };
    let mut losses = Vec::new();
    // The encoder is frozen: features of many steps may be computed in large chunks before their small steps.
    for ahead in order.chunks(recipe.batch_size * STEPS_AHEAD) {
        let features = encode(network, list, ahead, recipe, Some(epoch))?;
        let labels: Vec<i64> = ahead.iter().map(|&position| list.labels[position as usize]).collect();
        let labels = native::send(&Tensor::f_from_slice(&labels)?, network.device())?;
        for (step, batch) in ahead.chunks(recipe.batch_size).enumerate() {
            let (start, length) = ((step * recipe.batch_size) as i64, batch.len() as i64);
            let logits = network.head(&features.narrow(0, start, length), &Pass::EVAL);
            let loss = logits.f_cross_entropy_loss(
                &labels.narrow(0, start, length),
                None::<&Tensor>,
                tch::Reduction::Mean,
                -100,
                0.0,
            )?;
            let gradients = Tensor::f_run_backward(&[&loss], optimizer.parameters(), false, false)?;
            optimizer.step(&gradients, lr)?;
            losses.push(loss.detach());
        }
    }
    // Looked at once an epoch, so that no step waits for the one before; nothing is judged or kept before that.
    let losses = read_losses(&losses)?;
    if let Some(&loss) = losses.iter().find(|loss| !loss.is_finite()) {
        return Err(ProbeError::NotFinite { loss, epoch, lr });
    }
    let sum: f64 =
        losses.iter().zip(order.chunks(recipe.batch_size)).map(|(loss, batch)| loss * batch.len() as f64).sum();
    Ok(sum / order.len() as f64)
}
