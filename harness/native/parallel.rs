//! Work spread over libtorch's own CPU threads.

use std::ffi::{c_char, c_void};
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};

use super::{NativeError, check};

unsafe extern "C" {
    fn sdclr_parallel_for(
        count: usize,
        body: unsafe extern "C" fn(*mut c_void, usize),
        context: *mut c_void,
    ) -> *mut c_char;
}

/// `work` on every job, spread over libtorch's own CPU threads; each job's tensor operations stay on its thread. One
/// meeting of the threads instead of one per operation: faster on small tensors, and far less sensitive to other load.
///
/// # Errors
/// libtorch could not run a job.
///
/// # Panics
/// Passes on a panic of `work`, after all jobs have ended.
pub fn parallel_map<T: Send, R: Send>(jobs: Vec<T>, work: impl Fn(T) -> R + Sync) -> Result<Vec<R>, NativeError> {
    type Slot<T, R> = Mutex<(Option<T>, Option<std::thread::Result<R>>)>;
    struct Context<'a, T, R, F> {
        slots: &'a [Slot<T, R>],
        work: &'a F,
    }
    unsafe extern "C" fn body<T, R, F: Fn(T) -> R>(context: *mut c_void, index: usize) {
        // SAFETY: `context` is the Context of the call below, which outlives it; slots lock, so sharing is sound.
        let context = unsafe { &*(context as *const Context<'_, T, R, F>) };
        let mut slot = context.slots[index].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = slot.0.take() {
            // A panic must not cross the C++ frames.
            slot.1 = Some(std::panic::catch_unwind(AssertUnwindSafe(|| (context.work)(job))));
        }
    }
    fn monomorphic<T, R, F: Fn(T) -> R>(_: &F) -> unsafe extern "C" fn(*mut c_void, usize) {
        body::<T, R, F>
    }
    let slots: Vec<Slot<T, R>> = jobs.into_iter().map(|job| Mutex::new((Some(job), None))).collect();
    let mut context = Context { slots: &slots, work: &work };
    let function = monomorphic::<T, R, _>(&work);
    // SAFETY: `function` reads `context` as the type that it has, and only during the call. It never unwinds.
    let ran = check(unsafe { sdclr_parallel_for(slots.len(), function, (&raw mut context).cast()) });
    let results = slots.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1);
    ran.and_then(|()| in_order(results))
}

/// One result a job, in the order of the jobs.
///
/// # Errors
/// A job was not run: without its result, those behind it would pass for others.
fn in_order<R>(results: impl ExactSizeIterator<Item = Option<std::thread::Result<R>>>) -> Result<Vec<R>, NativeError> {
    let jobs = results.len();
    let mut done = Vec::with_capacity(jobs);
    for (index, result) in results.enumerate() {
        match result {
            Some(Ok(value)) => done.push(value),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => return Err(NativeError(format!("job {index} of {jobs} was not run by its threads"))),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        let squares = parallel_map((0..1000_u64).collect(), |i| i * i).unwrap();
        assert_eq!(squares, (0..1000).map(|i| i * i).collect::<Vec<u64>>());
    }

    /// A result that is missing used to shift all behind it, so that images got the labels of others.
    #[test]
    fn a_job_without_a_result_is_an_error() {
        let results = vec![Some(Ok(1)), None, Some(Ok(3))];
        let error = in_order(results.into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "libtorch: job 1 of 3 was not run by its threads");
    }
}
