//! One pre-training job, from an empty or half-done folder to `encoder.safetensors` and its records.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tch::{Device, Kind};

use super::loader::Loader;
use super::order::epoch_images;
use super::saver::Saver;
use super::{EpochStats, PretrainError, Trainer};
pub use crate::checkpoint::ENCODER;
use crate::checkpoint::{self, CheckpointError, Training, TrainingMeta, UnderWay};
use crate::clock;
use crate::fs::{self, FolderLock};
use crate::native;
use crate::native::group::{Group, GroupError};
use crate::network::{Network, NetworkSpec, StateDict};
use crate::progress::{self, Progress};
use crate::recipe::Recipe;
use crate::record::tensorboard::EventFile;
use crate::record::{
    self, Environment, EpochRecord, Event, Job, JobHeader, JobRecord, PretrainRecord, RunLog, Session,
};
use crate::split::Subset;
use crate::stop::{Request, Stop};

/// The training state, while a run is under way.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

/// What to train, and on what.
#[derive(Debug)]
pub struct PretrainJob<'a> {
    pub header: &'a JobHeader,
    pub environment: &'a Environment,
    pub recipe: &'a Recipe,
    pub list: &'a Subset,
    pub device: Device,
    /// Train by libtorch's own operations, launched one by one.
    pub eager: bool,
    /// Where given, training stops at the last epoch's end before it, but after one epoch at least.
    pub deadline: Option<Instant>,
    /// Training stops after the step under way once this asks for it.
    pub stop: &'a Stop,
    /// The processes that compute each step together. Rank 0 alone writes.
    pub group: &'a Group,
    /// Where TensorBoard finds the epochs, if it is to be shown them.
    pub tensorboard: Option<&'a Path>,
}

impl PretrainJob<'_> {
    /// Images of an epoch, those that the sampler repeats included.
    fn epoch_images(&self) -> usize {
        epoch_images(self.list.len(), self.recipe.sampler_world)
    }
}

/// Runs the job in `folder`, or finishes it where it was interrupted; a finished job is only read back.
///
/// # Errors
/// The folder holds another run or is in use; the loss is not finite; a file cannot be written. What was finished
/// before stays in the checkpoint. [`PretrainError::TimeUp`], [`PretrainError::Stopped`]: the deadline has come or a stop was
/// asked for, and the checkpoint holds it all.
pub fn run(job: &PretrainJob, folder: &Path, progress: &Progress) -> Result<PretrainRecord, PretrainError> {
    let all = |limit: Option<usize>| limit.map_or("all".to_owned(), |limit| limit.to_string());
    let limits = [job.header.limit_images, job.header.limit_epochs].map(all);
    let asked = format!("{} for {} images and {} epochs", job.header.recipe_hash, limits[0], limits[1]);
    job.group.agree("recipe, data or limits", &asked)?;
    let lock = together(job, || match job.group.rank() {
        0 => FolderLock::take(folder)?.map(Some).ok_or_else(|| PretrainError::in_use(folder)),
        _ => Ok(None),
    })?;
    let opened = together(job, || open(job, folder, lock))?;
    // One rank may see an older state of a network file system, or a folder of its own.
    let seen = match &opened {
        Opened::Finished(_) => "a finished run".to_owned(),
        Opened::ToTrain(trainer, _) => format!("{} steps", trainer.steps),
    };
    job.group.agree("what the output folder holds", &seen)?;
    let (mut trainer, mut sitting) = match opened {
        Opened::Finished(record) => return Ok(*record),
        Opened::ToTrain(trainer, sitting) => (*trainer, *sitting),
    };
    agree_on_state(job, &trainer, "at the start")?;
    let trained = native::guarded(|| train(job, &mut sitting, &mut trainer, steps_per_epoch(job), progress));
    let trained = trained.unwrap_or_else(|crash| Err(seen_by_all(job, crash.into())));
    let outcome =
        trained.and_then(|()| together(job, || sitting.saver.settle())).map_err(|error| sitting.advised(error));
    if let Err(error) = &outcome
        && !error.is_for_later()
    {
        // The error itself must come through, also where the disk is full.
        let _ = sitting.event(&Event::Failure { error: error.to_string() });
    }
    outcome?;
    together(job, || sitting.finish(job, &trainer))
}

/// A job's folder, looked into.
enum Opened {
    Finished(Box<PretrainRecord>),
    ToTrain(Box<Trainer>, Box<Sitting>),
}

/// What every rank does, once it is sure that all of them could.
fn together<T>(job: &PretrainJob, own: impl FnOnce() -> Result<T, PretrainError>) -> Result<T, PretrainError> {
    let own = native::guarded(own).map_err(PretrainError::from).flatten();
    let error = own.as_ref().err().map(ToString::to_string);
    let others = job.group.all_well(error.as_deref());
    let done = own?;
    others?;
    Ok(done)
}

/// An error of the training steps. All ranks see a loss that is not finite; any other one stops this rank, and the others with
/// it.
fn seen_by_all(job: &PretrainJob, error: PretrainError) -> PretrainError {
    match error {
        PretrainError::NotFinite { .. } => error,
        PretrainError::Group(ref seen) if !matches!(seen, GroupError::Native(_)) => error,
        other if job.group.is_single() => other,
        other => job.group.ended(&other.to_string()).into(),
    }
}

/// Makes sure that the ranks have the same network and optimiser, bit for bit, by one number.
fn agree_on_state(job: &PretrainJob, trainer: &Trainer, when: &str) -> Result<(), PretrainError> {
    if job.group.is_single() {
        return Ok(());
    }
    let parts = [trainer.network.state(), trainer.optimizer.state(), trainer.method.state()];
    let sums = parts.iter().map(StateDict::bits).collect::<Result<Vec<_>, _>>();
    let sums = sums.map_err(|error| seen_by_all(job, error.into()))?;
    Ok(job.group.agree(&format!("network and optimiser {when}"), &format!("bits that add up to {sums:?}"))?)
}

fn open(job: &PretrainJob, folder: &Path, lock: Option<FolderLock>) -> Result<Opened, PretrainError> {
    if let Some(done) = record::read_result(&folder.join("result.json"))? {
        refuse_other(folder, &done.header().recipe_hash, &job.header.recipe_hash)?;
        if let (JobRecord::Pretrain(done), true) = (done, fs::exists(&folder.join(ENCODER))?) {
            checkpoint::read_own_weights(&folder.join(ENCODER), &done.job.state_sha256)?;
            if let (Some(shown), 0) = (job.tensorboard, job.group.rank()) {
                EventFile::of_finished(shown, &done.job.header, &done.epochs)?;
            }
            if job.group.rank() == 0 {
                // The process may have been killed between its last two deeds.
                fs::remove(&folder.join(CHECKPOINT))?;
            }
            return Ok(Opened::Finished(Box::new(done)));
        }
    }
    let steps_per_epoch = steps_per_epoch(job);
    let spec = NetworkSpec::of_recipe(job.recipe);
    let mut network = Network::new(spec, job.recipe.seed, Kind::Float, job.device)?;
    network.set_group(job.group.clone());
    let mut trainer = Trainer::new(job.recipe, network, steps_per_epoch, job.eager)?;
    check_last_batch(job, &trainer)?;

    let sitting = Sitting::open(job, folder, lock, &mut trainer)?;
    Ok(Opened::ToTrain(Box::new(trainer), Box::new(sitting)))
}

fn steps_per_epoch(job: &PretrainJob) -> usize {
    job.epoch_images().div_ceil(job.recipe.batch_size)
}

fn refuse_other(folder: &Path, found: &str, expected: &str) -> Result<(), PretrainError> {
    if found == expected {
        return Ok(());
    }
    let [found, expected] = [found, expected].map(|hash| hash.chars().take(12).collect());
    Err(PretrainError::OtherRun { folder: folder.display().to_string(), found, expected })
}

fn check_last_batch(job: &PretrainJob, trainer: &Trainer) -> Result<(), PretrainError> {
    let (images, batch_size) = (job.epoch_images(), job.recipe.batch_size);
    let smallest = trainer.method.smallest_batch();
    let rest = (images - 1) % batch_size + 1;
    if rest < job.group.size() {
        return Err(PretrainError::FewImages { images, batch_size, rest, ranks: job.group.size() });
    }
    if rest >= smallest {
        return Ok(());
    }
    Err(PretrainError::LastBatch { images, batch_size, rest, method: job.header.label.clone(), smallest })
}

/// Whether the counters are those that this run has at that place: believed, they would shift its schedule.
fn check_counters(job: &PretrainJob, path: &Path, meta: &TrainingMeta) -> Result<(), PretrainError> {
    let steps_per_epoch = steps_per_epoch(job);
    let begun = meta.under_way.as_ref().map_or(0, |begun| begun.losses.len());
    let (epochs, steps) = (meta.epoch, meta.epoch.saturating_mul(steps_per_epoch).saturating_add(begun));
    let right = begun < steps_per_epoch && epochs <= job.recipe.epochs && meta.step == steps as u64;
    if right && meta.seed == job.recipe.seed {
        return Ok(());
    }
    let found = format!(
        "it says that {} steps by seed {} made {epochs} epochs and {begun} steps of {steps_per_epoch}",
        meta.step, meta.seed
    );
    Err(CheckpointError::OwnDamaged { path: path.to_path_buf(), found }.into())
}

/// One process's share of a run, which may take several.
struct Sitting {
    folder: PathBuf,
    /// Of rank 0.
    log: Option<RunLog>,
    /// Those before and this one.
    sessions: Vec<Session>,
    epochs: Vec<EpochRecord>,
    /// Of the epoch that an earlier session began.
    under_way: Option<UnderWay>,
    earlier_seconds: f64,
    start: Instant,
    saver: Saver,
    /// Of rank 0. Given back last: the saver may still be writing.
    lock: Option<FolderLock>,
}

impl Sitting {
    /// Takes up the folder's checkpoint, if there is one, into `trainer`.
    fn open(
        job: &PretrainJob,
        folder: &Path,
        lock: Option<FolderLock>,
        trainer: &mut Trainer,
    ) -> Result<Self, PretrainError> {
        let checkpoint = folder.join(CHECKPOINT);
        let (mut epochs, mut sessions, mut earlier_seconds) = (Vec::new(), Vec::new(), 0.0);
        let mut under_way = None;
        if fs::exists(&checkpoint)? {
            let Training { state, optimizer, method, meta } = checkpoint::read_training(&checkpoint)?;
            refuse_other(folder, &meta.recipe_hash, &job.header.recipe_hash)?;
            check_counters(job, &checkpoint, &meta)?;
            trainer.network.load(&state)?;
            trainer.optimizer.load(&optimizer)?;
            trainer.steps = meta.step;
            match &meta.under_way {
                Some(begun) => trainer.continue_epoch(meta.epoch + 1, begun.losses.len(), &method)?,
                // With the mask of the last epoch, which the next one's is compared with.
                None if !method.is_empty() => trainer.continue_epoch(meta.epoch, steps_per_epoch(job), &method)?,
                None => {}
            }
            (epochs, sessions, earlier_seconds) = (meta.epochs, meta.sessions, meta.seconds);
            under_way = meta.under_way;
        }
        let saved_epoch = epochs.len();
        let environment = job.environment.clone();
        let session = Session { from_epoch: saved_epoch, ranks: job.group.size(), environment };
        let log = match job.group.rank() {
            0 => Some(RunLog::open(&folder.join("run.jsonl"), job.header, &session, job.tensorboard)?),
            _ => None,
        };
        sessions.push(session);
        Ok(Self {
            folder: folder.to_path_buf(),
            log,
            sessions,
            epochs,
            under_way,
            earlier_seconds,
            start: Instant::now(),
            saver: Saver::new(checkpoint, saved_epoch),
            lock,
        })
    }

    /// Makes sure that no other host has taken this process for dead, which may have been suspended for long.
    fn check_lock(&self) -> Result<(), PretrainError> {
        match &self.lock {
            Some(lock) if !lock.is_held() => Err(PretrainError::in_use(&self.folder)),
            _ => Ok(()),
        }
    }

    fn event(&mut self, event: &Event) -> Result<(), PretrainError> {
        self.check_lock()?;
        Ok(self.log.as_mut().map_or(Ok(()), |log| log.event(event))?)
    }

    /// The record of the finished run; rank 0 writes it and the encoder.
    fn finish(&mut self, job: &PretrainJob, trainer: &Trainer) -> Result<PretrainRecord, PretrainError> {
        let state = trainer.network.state();
        checkpoint::sane(&state).map_err(|error| self.advised(error.into()))?;
        let (state_sha256, seconds) = (checkpoint::state_sha256(&state)?, self.seconds());
        let (sessions, epochs) = (self.sessions.clone(), self.epochs.clone());
        let (header, ended) = (job.header.clone(), Some(clock::now()));
        let job = Job { header, sessions, seconds, state_sha256: state_sha256.clone(), ended };
        let record = PretrainRecord { job, epochs };
        if self.log.is_some() {
            self.check_lock()?;
            checkpoint::write_weights(&self.folder.join(ENCODER), &state)?;
            self.event(&Event::Result { state_sha256, seconds })?;
            record::write_result(&self.folder.join("result.json"), &JobRecord::Pretrain(record.clone()))?;
            fs::remove(&self.folder.join(CHECKPOINT))?;
        }
        Ok(record)
    }

    fn seconds(&self) -> f64 {
        self.earlier_seconds + self.start.elapsed().as_secs_f64()
    }

    /// Has the training state written, if it is time or this is the session's `last`.
    fn save(&mut self, job: &PretrainJob, trainer: &Trainer, last: bool) -> Result<(), PretrainError> {
        if self.log.is_none() {
            return Ok(());
        }
        self.check_lock()?;
        let meta = TrainingMeta {
            format: checkpoint::FORMAT,
            recipe_hash: job.header.recipe_hash.clone(),
            epoch: self.epochs.len(),
            step: trainer.steps,
            seed: job.recipe.seed,
            epochs: self.epochs.clone(),
            sessions: self.sessions.clone(),
            seconds: self.seconds(),
            under_way: self.under_way.clone(),
        };
        self.saver.save(last, || Training {
            state: trainer.network.state().on_cpu(),
            optimizer: trainer.optimizer.state().on_cpu(),
            method: trainer.method.state().on_cpu(),
            meta,
        })
    }

    /// The error, with advice and the last good checkpoint where the weights are finite but of no use.
    fn advised(&self, error: PretrainError) -> PretrainError {
        match error {
            PretrainError::Checkpoint(error @ CheckpointError::Insane(_)) => {
                PretrainError::Useless { reason: error.to_string(), checkpoint: self.saver.last_good() }
            }
            other => other,
        }
    }

    /// The error, with the last good checkpoint where training diverged.
    fn with_checkpoint(&mut self, error: PretrainError) -> PretrainError {
        let PretrainError::NotFinite { loss, epoch, step, lr, .. } = error else { return error };
        match self.saver.settle() {
            Ok(()) => PretrainError::NotFinite { loss, epoch, step, lr, checkpoint: self.saver.last_good() },
            Err(error) => error,
        }
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
    let bar = progress.bar(&job.header.job.to_string(), "steps", epochs * steps_per_epoch, done * steps_per_epoch);
    let taken = sitting.under_way.as_ref().map_or(0, |begun| begun.losses.len());
    let group = job.group.clone();
    let mut loader =
        together(job, || Loader::of_rank(job.list, job.recipe, job.device, group, done + 1..=epochs, taken))?;
    for epoch in done + 1..=epochs {
        let begun = sitting.under_way.take().unwrap_or_default();
        let batches = loader.by_ref().take(steps_per_epoch - begun.losses.len());
        let mut asked = Asked { job, steps: 0, request: Ok(None) };
        let batches = batches.take_while(|_| asked.before_step()).inspect(|_| bar.inc(1));
        let trained = trainer.loaded_part(epoch, batches);
        let (stats, unloaded) = trained.map_err(|error| sitting.with_checkpoint(seen_by_all(job, error)))?;
        let request = asked.request?;
        let done = joined(begun, &stats);
        let steps = done.losses.len();
        if let Some(error) = unloaded {
            // The steps before it are kept, for when the file is there again.
            sitting.under_way = Some(done);
            together(job, || sitting.save(job, trainer, true))?;
            return Err(error);
        }
        if steps < steps_per_epoch {
            let short = PretrainError::ShortEpoch { epoch, found: steps, expected: steps_per_epoch };
            let request = request.ok_or(short)?;
            sitting.under_way = Some(done);
            together(job, || sitting.save(job, trainer, true))?;
            return Err(PretrainError::Stopped { request, epoch, epochs, steps });
        }
        let time = Duration::from_secs_f64(done.seconds);
        let time_up = job.deadline.is_some_and(|deadline| Instant::now() + time > deadline);
        let time_up = epoch < epochs && job.group.largest(time_up.into())? > 0;
        agree_on_state(job, trainer, &format!("after epoch {epoch}"))?;
        let record = record_of(epoch, &done, &stats);
        let EpochRecord { loss, images_per_second, .. } = record;
        bar.epoch(progress::Epoch { epoch, epochs, loss, images_per_second });
        together(job, || sitting.event(&Event::Epoch(record.clone())))?;
        sitting.epochs.push(record);
        let stopped = requested(job)?.filter(|_| epoch < epochs);
        together(job, || sitting.save(job, trainer, time_up || stopped.is_some()))?;
        if let Some(request) = stopped {
            return Err(PretrainError::Stopped { request, epoch: epoch + 1, epochs, steps: 0 });
        }
        if time_up {
            return Err(PretrainError::TimeUp { epoch, epochs });
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Steps between two questions of several ranks whether one of them was asked to stop.
const AGREE: usize = 16;

/// The stop that all ranks make together.
struct Asked<'a> {
    job: &'a PretrainJob<'a>,
    steps: usize,
    request: Result<Option<Request>, GroupError>,
}

impl Asked<'_> {
    /// Whether the next step is taken. Every rank asks before every step.
    fn before_step(&mut self) -> bool {
        if self.job.group.is_single() || self.steps.is_multiple_of(AGREE) {
            self.request = requested(self.job);
        }
        self.steps += 1;
        matches!(self.request, Ok(None))
    }
}

/// The request that any rank has.
fn requested(job: &PretrainJob) -> Result<Option<Request>, GroupError> {
    Ok(Request::of_number(job.group.largest(Request::number(job.stop.requested()))?))
}

/// The part of an epoch that earlier sessions did, and what came behind it.
fn joined(begun: UnderWay, stats: &EpochStats) -> UnderWay {
    UnderWay {
        losses: begun.losses.into_iter().chain(stats.losses.iter().copied()).collect(),
        images: begun.images + stats.images,
        seconds: begun.seconds + stats.seconds,
    }
}

fn record_of(epoch: usize, done: &UnderWay, stats: &EpochStats) -> EpochRecord {
    EpochRecord {
        epoch,
        loss: done.losses.iter().sum::<f64>() / done.losses.len() as f64,
        lr: stats.rates.last().copied().unwrap_or(f64::NAN),
        density: stats.density,
        overlap: stats.overlap,
        validation_accuracy: None,
        images_per_second: done.images as f64 / done.seconds,
        seconds: done.seconds,
    }
}
