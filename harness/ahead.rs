//! Work done by other threads: spread over several, or ahead of its use by one. In: jobs. Out: one result a job, in the order
//! of the jobs.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::native::{NativeError, guarded};

/// `work` on every job, by at most `threads` threads, which take the jobs in their order.
///
/// # Errors
/// `work` panicked; all jobs have ended by then.
pub fn spread<T: Send, R: Send>(
    threads: usize,
    jobs: Vec<T>,
    work: impl Fn(T) -> R + Sync,
) -> Result<Vec<R>, NativeError> {
    let count = jobs.len();
    let left = Mutex::new(jobs.into_iter().enumerate());
    // The lock is held while a job is taken, not while it is done.
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let some = || {
        let mut done = Vec::new();
        while let Some((index, job)) = next() {
            done.push((index, guarded(|| work(job))));
        }
        done
    };
    let done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(count)).map(|_| scope.spawn(some)).collect();
        let mut done = some();
        // None panics: what could is guarded.
        done.extend(others.into_iter().filter_map(|thread| thread.join().ok()).flatten());
        done
    });
    let mut slots: Vec<Option<R>> = (0..count).map(|_| None).collect();
    for (index, result) in done {
        slots[index] = Some(result?);
    }
    // Without its result, those behind a job would pass for others.
    let missing = |index: usize| NativeError::of(&format!("job {index} of {count} was not done by its thread"));
    slots.into_iter().enumerate().map(|(index, slot)| slot.ok_or_else(|| missing(index))).collect()
}

/// What a thread of its own makes of jobs, in order, ahead of its use.
#[derive(Debug)]
pub struct Ahead<T> {
    /// `None` when this is dropped, which ends the thread.
    made: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Ahead<T> {
    /// Makes one result of each of `jobs`, until nobody takes any more. At most `waiting` results wait, beside the one that
    /// the thread has in hand. A panic, of a job or while it is made, becomes what `failed` makes of it, and ends the rest.
    pub fn new<J>(
        waiting: usize,
        jobs: impl IntoIterator<Item = J, IntoIter: Send + 'static>,
        mut make: impl FnMut(J) -> T + Send + 'static,
        failed: impl Fn(NativeError) -> T + Send + 'static,
    ) -> Self {
        let (sender, made) = sync_channel(waiting);
        let mut jobs = jobs.into_iter();
        let thread = std::thread::spawn(move || {
            loop {
                let (result, last) = match guarded(|| jobs.next().map(&mut make)) {
                    Ok(None) => return,
                    Ok(Some(result)) => (result, false),
                    Err(panic) => (failed(panic), true),
                };
                if sender.send(result).is_err() || last {
                    return;
                }
            }
        });
        Self { made: Some(made), thread: Some(thread) }
    }
}

impl<T> Iterator for Ahead<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.made.as_ref()?.recv().ok()
    }
}

impl<T> Drop for Ahead<T> {
    fn drop(&mut self) {
        drop(self.made.take());
        // The thread catches its panics.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        for threads in [0, 1, 3, 2000] {
            let squares = spread(threads, (0..1000_u64).collect(), |i| i * i).unwrap();
            assert_eq!(squares, (0..1000).map(|i| i * i).collect::<Vec<u64>>());
        }
        assert!(spread(4, Vec::<u64>::new(), |i| i).unwrap().is_empty());
        let ahead = Ahead::new(2, 0..1000_u64, |i| i * i, |_| 0);
        assert!(ahead.eq((0..1000).map(|i| i * i)));
    }

    #[test]
    fn a_panic_is_an_error_and_ends_what_is_made_ahead() {
        let error = spread(2, vec![1, 0, 2], |i| assert!(i > 0, "no {i}")).unwrap_err();
        assert!(error.to_string().contains("stopped unexpectedly"), "{error}");
        let make = |i: u64| if i == 3 { panic!("no {i}") } else { Ok(i) };
        let mut ahead = Ahead::new(1, 0.., make, Err);
        assert!(ahead.by_ref().take(3).all(|made| made.is_ok()));
        assert!(ahead.next().unwrap().unwrap_err().to_string().contains("stopped unexpectedly"));
        assert!(ahead.next().is_none());
    }

    /// As where training stops in the middle of an epoch.
    #[test]
    fn what_nobody_takes_is_not_waited_for() {
        let mut ahead = Ahead::new(1, 0.., |i: u64| i, |_| 0);
        assert_eq!(ahead.next(), Some(0));
        drop(ahead);
    }
}
