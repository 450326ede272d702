//! The process: how it starts, and panics as errors.

use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};

use super::switches::CUBLAS_WORKSPACE;
use super::{NativeError, load_cuda};

/// Sets up the process, as the first thing in it: panics kept for [`guarded`], CUDA loaded, and freed tensor memory kept
/// for the next step. By default glibc gives every large block back to the kernel, which then zeroes it page by page,
/// again and again.
pub fn prepare() {
    let (name, value) = CUBLAS_WORKSPACE;
    // SAFETY: plain settings of the allocator and of the environment, made before any other thread starts.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        // cuBLAS reads it as it starts, which is too late to ask whether anybody wants determinism.
        if std::env::var_os(name).is_none() {
            std::env::set_var(name, value);
        }
    }
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        let line = first_line(text.unwrap_or("no reason given"));
        let place = panic.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
        let mut last = last_panic();
        // What a thread panicked of says more than that it did.
        if !last.starts_with(CLOSED_OUTPUT) {
            *last = format!("{line}{place}");
        }
    }));
    load_cuda();
}

/// What a panic's text says: of what libtorch threw, which tch wraps with its newlines escaped, libtorch's own message,
/// without the C++ stack behind it.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let Some((_, thrown)) = line.split_once(": Torch(\"") else { return line.to_owned() };
    let said = thrown.split("\\n").next().unwrap_or_default();
    let remedy = if said.contains("out of memory") { "; choose a smaller batch_size (--set)" } else { "" };
    format!("{said}{remedy}")
}

/// How `println!` panics where nobody reads its output any more.
const CLOSED_OUTPUT: &str = "failed printing to stdout: Broken pipe";

/// Whether the last panic was that nobody reads the output any more, as behind `| head`.
pub fn is_output_closed() -> bool {
    last_panic().starts_with(CLOSED_OUTPUT)
}

/// What the last panic said, and where: of any thread, since libtorch's workers run parts of our work.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

fn last_panic() -> std::sync::MutexGuard<'static, String> {
    LAST_PANIC.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body` and turns a panic into an error: tch panics where libtorch throws, out of memory above all.
pub fn guarded<T>(body: impl FnOnce() -> T) -> Result<T, NativeError> {
    std::panic::catch_unwind(AssertUnwindSafe(body))
        .map_err(|_| NativeError(format!("stopped unexpectedly: {}", last_panic())))
}
