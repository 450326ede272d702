//! One pre-training job, from an empty or half-done folder to `encoder.safetensors` and its records.

use std::path::Path;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::order::epoch_order;
use super::{PretrainError, Trainer};
use crate::augment::{self, ViewKey, ViewParams};
use crate::checkpoint::{self, Training, TrainingMeta};
use crate::dataset::{Dataset, ImageSet};
use crate::fs::{self, FolderLock};
use crate::network::{Network, NetworkSpec};
use crate::progress::Progress;
use crate::recipe::{AugmentRecipe, Recipe};
use crate::record::{self, EpochRecord, Event, JobHeader, JobResult, RunLog};
use crate::split::IndexList;

/// The final state, in every finished folder.
pub const ENCODER: &str = "encoder.safetensors";
/// The training state, while a run is under way.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

/// What to train, and on what.
#[derive(Debug)]
pub struct PretrainJob<'a> {
    pub header: &'a JobHeader,
    pub recipe: &'a Recipe,
    pub dataset: &'a Dataset,
    pub list: &'a IndexList,
    pub device: Device,
}

/// Both views of the images at official `indices`: uint8 `[N, 2, 3, S, S]` and the parameters they were made with,
/// (image 0 view 0, image 0 view 1, image 1 view 0, ...).
pub fn two_views(
    set: &ImageSet,
    recipe: &AugmentRecipe,
    seed: u64,
    epoch: usize,
    indices: &[i64],
) -> Result<(Tensor, Vec<ViewParams>), PretrainError> {
    let images = set.resident("pre-training")?;
    let (_, _, height, width) = images.size4()?;
    let key = |image: i64, view| ViewKey { seed, epoch: epoch as u64, image: image as u64, view };
    let keys = indices.iter().flat_map(|&image| [key(image, 0), key(image, 1)]);
    let params: Vec<ViewParams> = keys.map(|key| augment::draw(recipe, key, height, width)).collect();
    let rows = Tensor::from_slice(indices).repeat_interleave_self_int(2, 0, None).to_device(images.device());
    let views = augment::views(&images.f_index_select(0, &rows)?, &params, recipe.size)?;
    Ok((views.f_view([-1, 2, 3, recipe.size, recipe.size])?, params))
}

/// Runs the job in `folder`, or finishes it where it was interrupted; a finished job is only read back.
///
/// # Errors
/// The folder holds another run or is in use; the loss is not finite; a file cannot be written. What was finished
/// before stays in the checkpoint.
pub fn run(job: &PretrainJob, folder: &Path, progress: &Progress) -> Result<JobResult, PretrainError> {
    let _lock =
        FolderLock::take(folder)?.ok_or_else(|| PretrainError::InUse { folder: folder.display().to_string() })?;
    if let Some(done) = record::read_result(&folder.join("result.json"))? {
        refuse_other(folder, &done.header.recipe_hash, &job.header.recipe_hash)?;
        if folder.join(ENCODER).exists() {
            return Ok(done);
        }
    }
    let batch_size = job.recipe.batch_size;
    let steps_per_epoch = job.list.indices.len().div_ceil(batch_size);
    let spec = NetworkSpec::of_recipe(job.recipe);
    let network = Network::new(spec, job.recipe.seed, Kind::Float, job.device)?;
    let mut trainer = Trainer::new(job.recipe, network, steps_per_epoch);
    check_last_batch(job, &trainer)?;

    let mut sitting = Sitting::open(job, folder, &mut trainer)?;
    let outcome = train(job, &mut sitting, &mut trainer, steps_per_epoch, progress);
    if let Err(error) = &outcome {
        // The error itself must come through, also where the disk is full.
        let _ = sitting.log.event(&Event::Failure { error: error.to_string() });
    }
    outcome?;

    let state = trainer.network.state();
    checkpoint::write_weights(&folder.join(ENCODER), &state)?;
    let (state_sha256, seconds) = (checkpoint::state_sha256(&state)?, sitting.seconds());
    sitting.log.event(&Event::Result { state_sha256: state_sha256.clone(), seconds })?;
    let result = JobResult { header: job.header.clone(), epochs: sitting.epochs, seconds, state_sha256, probe: None };
    record::write_result(&folder.join("result.json"), &result)?;
    fs::remove(&folder.join(CHECKPOINT))?;
    Ok(result)
}

fn refuse_other(folder: &Path, found: &str, expected: &str) -> Result<(), PretrainError> {
    if found == expected {
        return Ok(());
    }
    let [found, expected] = [found, expected].map(|hash| hash.chars().take(12).collect());
    Err(PretrainError::OtherRun { folder: folder.display().to_string(), found, expected })
}

fn check_last_batch(job: &PretrainJob, trainer: &Trainer) -> Result<(), PretrainError> {
    let (images, batch_size) = (job.list.indices.len(), job.recipe.batch_size);
    let smallest = trainer.method.smallest_batch();
    let rest = (images - 1) % batch_size + 1;
    if rest >= smallest {
        return Ok(());
    }
    Err(PretrainError::LastBatch { images, batch_size, rest, method: job.header.method.clone(), smallest })
}

/// One process's share of a run, which may take several.
struct Sitting {
    log: RunLog,
    epochs: Vec<EpochRecord>,
    earlier_seconds: f64,
    start: Instant,
    checkpoint: std::path::PathBuf,
    saved_epoch: usize,
    saved_at: Instant,
    save_cost: Duration,
}

impl Sitting {
    /// Takes up the folder's checkpoint, if there is one, into `trainer`.
    fn open(job: &PretrainJob, folder: &Path, trainer: &mut Trainer) -> Result<Self, PretrainError> {
        let checkpoint = folder.join(CHECKPOINT);
        let (mut epochs, mut earlier_seconds) = (Vec::new(), 0.0);
        if checkpoint.exists() {
            let Training { state, optimizer, meta } = checkpoint::read_training(&checkpoint)?;
            refuse_other(folder, &meta.recipe_hash, &job.header.recipe_hash)?;
            trainer.network.load(&state)?;
            trainer.optimizer.load(&optimizer)?;
            trainer.steps = meta.step;
            (epochs, earlier_seconds) = (meta.epochs, meta.seconds);
        }
        let saved_epoch = epochs.len();
        let log = RunLog::open(&folder.join("run.jsonl"), job.header, saved_epoch)?;
        let now = Instant::now();
        let save_cost = Duration::ZERO;
        Ok(Self { log, epochs, earlier_seconds, start: now, checkpoint, saved_epoch, saved_at: now, save_cost })
    }

    fn seconds(&self) -> f64 {
        self.earlier_seconds + self.start.elapsed().as_secs_f64()
    }

    /// Writes the training state, unless the last one is so recent that writing would cost over 5 % of the time.
    fn save(&mut self, job: &PretrainJob, trainer: &Trainer) -> Result<(), PretrainError> {
        if self.saved_at.elapsed() < 20 * self.save_cost {
            return Ok(());
        }
        let start = Instant::now();
        let meta = TrainingMeta {
            format: checkpoint::FORMAT,
            recipe_hash: job.header.recipe_hash.clone(),
            epoch: self.epochs.len(),
            step: trainer.steps,
            seed: job.recipe.seed,
            epochs: self.epochs.clone(),
            seconds: self.seconds(),
        };
        let training = Training { state: trainer.network.state(), optimizer: trainer.optimizer.state(), meta };
        checkpoint::write_training(&self.checkpoint, &training)?;
        (self.saved_epoch, self.saved_at, self.save_cost) = (self.epochs.len(), Instant::now(), start.elapsed());
        Ok(())
    }
}

fn train(
    job: &PretrainJob,
    sitting: &mut Sitting,
    trainer: &mut Trainer,
    steps_per_epoch: usize,
    progress: &Progress,
) -> Result<(), PretrainError> {
    let epochs = job.header.limit_epochs.unwrap_or(usize::MAX).min(job.recipe.epochs);
    let done = sitting.epochs.len();
    let bar = progress.bar(&job.header.job, "steps", epochs * steps_per_epoch, done * steps_per_epoch);
    for epoch in done + 1..=epochs {
        let start = Instant::now();
        let density = trainer.method.begin_epoch(&trainer.network, epoch)?;
        let order = epoch_order(job.list.indices.len(), epoch, 0, 1)?;
        let (mut sum, mut rate) = (0.0, 0.0);
        for (step, batch) in order.chunks(job.recipe.batch_size).enumerate() {
            let indices: Vec<i64> = batch.iter().map(|&position| job.list.indices[position as usize]).collect();
            let (views, _) = two_views(&job.dataset.train, &job.recipe.augment, job.recipe.seed, epoch, &indices)?;
            let (loss, lr) = trainer.step(&(views.to_kind(Kind::Float) / 255.0))?;
            if !loss.is_finite() {
                let checkpoint = (sitting.saved_epoch > 0).then(|| (sitting.saved_epoch, sitting.checkpoint.clone()));
                return Err(PretrainError::NotFinite { loss, epoch, step: step + 1, lr, checkpoint });
            }
            (sum, rate) = (sum + loss, lr);
            let seen = (step * job.recipe.batch_size + batch.len()) as f64;
            let speed = seen / start.elapsed().as_secs_f64();
            bar.set_message(format!("epoch {epoch}/{epochs}, loss {loss:.4}, {speed:.0} images/s"));
            bar.inc(1);
        }
        // A finite loss may still have had gradients that were not; no such state is saved.
        if !trainer.parameters_are_finite() {
            let checkpoint = (sitting.saved_epoch > 0).then(|| (sitting.saved_epoch, sitting.checkpoint.clone()));
            return Err(PretrainError::NotFinite {
                loss: f64::NAN,
                epoch,
                step: steps_per_epoch,
                lr: rate,
                checkpoint,
            });
        }
        let seconds = start.elapsed().as_secs_f64();
        let record = EpochRecord {
            epoch,
            loss: sum / steps_per_epoch as f64,
            lr: rate,
            density,
            validation_accuracy: None,
            images_per_second: order.len() as f64 / seconds,
            seconds,
        };
        sitting.log.event(&Event::Epoch(record.clone()))?;
        sitting.epochs.push(record);
        sitting.save(job, trainer)?;
    }
    bar.finish_and_clear();
    Ok(())
}
