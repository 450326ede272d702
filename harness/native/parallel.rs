//! Work spread over libtorch's own CPU threads.

use std::ffi::{c_char, c_void};
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};

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
/// # Panics
/// Passes on a panic of `work`, after all jobs have ended.
pub fn parallel_map<T: Send, R: Send>(jobs: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
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
    // SAFETY: `function` reads `context` as the type that it has, and only during the call. It never unwinds, so the
    // shim has nothing to report.
    unsafe { sdclr_parallel_for(slots.len(), function, (&raw mut context).cast()) };
    slots
        .into_iter()
        .filter_map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1)
        .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect()
}
