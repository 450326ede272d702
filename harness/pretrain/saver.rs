//! Training checkpoints without stalling: the state is copied at once, the file is written by a thread of its own. In: the
//! state at an epoch's end. Out: the checkpoint on disk, some time later; what went wrong, at the next look.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::PretrainError;
use crate::checkpoint::{self, Training};
use crate::native;

/// A run stands still for at most one part in so many, while its state is copied.
const COPYING: u32 = 100;
/// And writes for at most one part in so many.
const WRITING: u32 = 20;

/// Writes the checkpoints of one run, one at a time.
#[derive(Debug)]
pub struct Saver {
    path: PathBuf,
    /// The last epoch that is safely on disk; 0: none.
    saved_epoch: usize,
    writing: Option<JoinHandle<Written>>,
    /// When the last state was copied, and how long the copy and the writing took.
    copied_at: Instant,
    copying: Duration,
    written_in: Duration,
}

/// The epoch, the time it took, and what came of it.
type Written = (usize, Duration, Result<(), PretrainError>);

impl Saver {
    /// A saver to `path`, where a checkpoint of `saved_epoch` lies already (0: none).
    pub fn new(path: PathBuf, saved_epoch: usize) -> Self {
        let none = Duration::ZERO;
        Self { path, saved_epoch, writing: None, copied_at: Instant::now(), copying: none, written_in: none }
    }

    /// Starts to write what `state` gives, a copy on the CPU, unless a checkpoint is being written or the last is so recent
    /// that another would cost too much of the time. The `last` of a sitting is written in any case, and waited for.
    ///
    /// # Errors
    /// The checkpoint before, or the last, could not be written.
    pub fn save(&mut self, last: bool, state: impl FnOnce() -> Training) -> Result<(), PretrainError> {
        if !last && self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return Ok(());
        }
        self.settle()?;
        if !last && self.copied_at.elapsed() < (COPYING * self.copying).max(WRITING * self.written_in) {
            return Ok(());
        }
        let start = Instant::now();
        let training = state();
        (self.copied_at, self.copying) = (Instant::now(), start.elapsed());
        let path = self.path.clone();
        self.writing = Some(std::thread::spawn(move || {
            let (epoch, start) = (training.meta.epoch, Instant::now());
            let write =
                || checkpoint::sane(&training.state).and_then(|()| checkpoint::write_training(&path, &training));
            let written = native::guarded(|| write().map_err(PretrainError::from));
            (epoch, start.elapsed(), written.map_err(PretrainError::from).flatten())
        }));
        if last { self.settle() } else { Ok(()) }
    }

    /// Waits for the checkpoint that is being written, if any.
    ///
    /// # Errors
    /// It could not be written.
    pub fn settle(&mut self) -> Result<(), PretrainError> {
        // The thread catches its panics: there is always an outcome.
        if let Some(Ok((epoch, seconds, outcome))) = self.writing.take().map(JoinHandle::join) {
            self.written_in = seconds;
            outcome?;
            self.saved_epoch = epoch;
        }
        Ok(())
    }

    /// The last checkpoint on disk and its epoch.
    pub fn last_good(&self) -> Option<(usize, PathBuf)> {
        (self.saved_epoch > 0).then(|| (self.saved_epoch, self.path.clone()))
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // Nobody else may use the folder before the last byte is written. An error here follows another, which is told.
        let _ = self.settle();
    }
}
