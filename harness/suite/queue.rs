//! Jobs, done by several workers of this process beside other processes on the same folder. In: the jobs, each in a folder of
//! its own. Out: each one's outcome. A probe waits for its encoder's pre-training; a job that another process holds is left to it
//! and read back when it is finished, or taken over when that process is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tch::Device;

use super::budget::Clock;
use super::context::{Context, Scale};
use super::plan::PlannedEncoder;
use super::{SuiteError, guarded};
use crate::cores::Cores;
use crate::fs::{self, FolderLock};
use crate::pretrain::PretrainError;
use crate::probe::ProbeError;
use crate::progress::Jobs;
use crate::recipe::{JobId, Recipe};

/// Pause before a job that another process holds is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// What every worker needs.
pub(super) struct Work<'a, T> {
    pub tasks: Vec<Task<'a, T>>,
    /// Of the data and the threads that all jobs share.
    pub recipe: &'a Recipe,
    pub scale: &'a Scale,
    pub folder: &'a Path,
    /// When pre-training has to stop at an epoch's end.
    pub deadline: Option<Instant>,
}

/// A job.
pub(super) struct Task<'a, T> {
    pub id: JobId,
    /// The place of the task that has to be finished before.
    pub needs: Option<usize>,
    /// Does it, or reads it back where it is finished.
    pub run: Box<Run<'a, T>>,
}

type Run<'a, T> = dyn Fn(&Context) -> Result<T, SuiteError> + Sync + 'a;

/// Each job in its order, and what came of it.
pub(super) type Outcomes<T> = Vec<(JobId, Result<T, SuiteError>)>;

struct State<T> {
    /// Places of the jobs that nobody here has begun, and from when on they may be asked for.
    waiting: BTreeMap<usize, Instant>,
    running: BTreeSet<usize>,
    clock: Clock,
    outcomes: BTreeMap<usize, Result<T, SuiteError>>,
    /// Already reported as in use.
    told: BTreeSet<usize>,
    /// Nobody begins another job: the ranks that train together have lost each other, or one of them was asked to stop.
    ended: bool,
}

enum Next {
    Job(usize),
    Wait(Duration),
    Finished,
}

impl<T> State<T> {
    /// The first job that may begin now.
    fn next(&mut self, tasks: &[Task<T>], stopped: bool) -> Next {
        if stopped {
            for (place, _) in std::mem::take(&mut self.waiting) {
                self.outcomes.insert(place, Err(SuiteError::Left));
            }
        }
        let now = Instant::now();
        let places: Vec<(usize, Instant)> = self.waiting.iter().map(|(place, from)| (*place, *from)).collect();
        for (place, from) in places {
            let Task { id, needs, .. } = &tasks[place];
            let blocked = needs.is_some_and(|needs| self.waiting.contains_key(&needs) || self.running.contains(&needs));
            if blocked || from > now {
                continue;
            }
            self.waiting.remove(&place);
            if !self.clock.may_start(id) {
                self.outcomes.insert(place, Err(SuiteError::Left));
                continue;
            }
            self.running.insert(place);
            return Next::Job(place);
        }
        match self.waiting.is_empty() {
            // Workers with nothing to do end; the last jobs finish without them.
            true => Next::Finished,
            false => Next::Wait(AGAIN / 4),
        }
    }
}

/// How many jobs of `plan` run at once on `device` by default: on the CPU as many as there are processors for their
/// threads, where the recipes fix those; on a GPU one, since a step that is recorded has the device alone.
pub(super) fn at_once(plan: &[PlannedEncoder], device: Device) -> usize {
    let threads = plan.iter().map(|encoder| encoder.recipe.threads).max().unwrap_or(0);
    let fixed = plan.iter().all(|encoder| encoder.recipe.threads > 0);
    if fixed && device == Device::Cpu { (Cores::available().used() / threads).max(1) } else { 1 }
}

/// Does the jobs of `work` with `workers` workers, each with data of its own.
///
/// # Errors
/// A worker cannot load the data.
pub(super) fn run<T: Send>(
    work: &Work<T>,
    clock: Clock,
    first: Context,
    workers: usize,
    bar: &Jobs,
) -> Result<Outcomes<T>, SuiteError> {
    let workers = workers.min(work.tasks.len());
    let now = Instant::now();
    let state = State {
        waiting: (0..work.tasks.len()).map(|place| (place, now)).collect(),
        running: BTreeSet::new(),
        clock,
        outcomes: BTreeMap::new(),
        told: BTreeSet::new(),
        ended: false,
    };
    let shared = (Mutex::new(state), Condvar::new());
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..workers)
            .map(|_| {
                scope.spawn(|| match Context::open(work.recipe, work.scale.clone()) {
                    Ok(context) => worker(work, &shared, context, bar),
                    // The first worker, which has its data, does the jobs.
                    Err(error) => {
                        tracing::warn!("fewer jobs run at once: {error}");
                        Ok(())
                    }
                })
            })
            .collect();
        worker(work, &shared, first, bar)?;
        // A worker catches the panics of its jobs.
        others.into_iter().try_for_each(|other| other.join().unwrap_or(Ok(())))
    })?;
    let mut outcomes = shared.0.into_inner().unwrap_or_else(PoisonError::into_inner).outcomes;
    let outcome =
        |(place, task): (usize, &Task<T>)| (task.id.clone(), outcomes.remove(&place).unwrap_or(Err(SuiteError::Left)));
    Ok(work.tasks.iter().enumerate().map(outcome).collect())
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn worker<T>(
    work: &Work<T>,
    (state, changed): &(Mutex<State<T>>, Condvar),
    mut context: Context,
    bar: &Jobs,
) -> Result<(), SuiteError> {
    context.deadline = work.deadline;
    loop {
        let mut held = lock(state);
        let stopped = held.ended || work.scale.stop.requested().is_some();
        let place = match held.next(&work.tasks, stopped) {
            Next::Job(place) => place,
            Next::Finished => return Ok(()),
            Next::Wait(time) => {
                drop(changed.wait_timeout(held, time));
                continue;
            }
        };
        drop(held);
        let Task { id, run, .. } = &work.tasks[place];
        // Another process's job is neither begun nor counted.
        let holder = held_by_another(&work.folder.join(id.to_string()));
        if let Some(holder) = holder {
            let mut held = lock(state);
            if held.told.insert(place) {
                tracing::info!("{id} is in use by {holder}; its result is read back when it is there");
            }
            held.running.remove(&place);
            held.waiting.insert(place, Instant::now() + AGAIN);
            continue;
        }
        let mut in_use = false;
        let outcome = bar.run(&id.to_string(), || {
            let outcome = guarded(|| run(&context));
            in_use = matches!(&outcome, Err(error) if is_in_use(error));
            outcome
        });
        let mut held = lock(state);
        held.running.remove(&place);
        match outcome {
            Err(error) if in_use => {
                // Taken in the moment between.
                tracing::debug!("{id}: {error}");
                held.waiting.insert(place, Instant::now() + AGAIN);
            }
            outcome => {
                held.clock.stopped |= matches!(&outcome, Err(error) if error.is_for_later());
                held.ended |= matches!(&outcome, Err(SuiteError::Pretrain(error)) if error.ends_all());
                held.outcomes.insert(place, outcome);
            }
        }
        drop(held);
        changed.notify_all();
    }
}

/// Who else works in the job's `folder`, if anybody does.
fn held_by_another(folder: &Path) -> Option<String> {
    // A folder that cannot be made or locked is the job's own failure.
    let held = fs::is_folder(folder).unwrap_or(false) && matches!(FolderLock::take(folder), Ok(None));
    held.then(|| FolderLock::holder(folder))
}

fn is_in_use(error: &SuiteError) -> bool {
    matches!(error, SuiteError::Pretrain(PretrainError::InUse { .. }) | SuiteError::Probe(ProbeError::InUse { .. }))
}
