//! Work on a GPU beside other work, and work recorded once and launched as a whole: CUDA's streams and graphs, and the
//! memory that it takes. On a CPU there is neither.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

use tch::Device;

use super::{NativeError, check, guarded};

unsafe extern "C" {
    fn sdclr_side_new(purpose: i32, device: i32, out: *mut *mut c_void) -> *mut c_char;
    fn sdclr_side_free(side: *mut c_void) -> *mut c_char;
    fn sdclr_side_enter(side: *mut c_void) -> *mut c_char;
    fn sdclr_side_leave(side: *mut c_void) -> *mut c_char;
    fn sdclr_side_join(side: *mut c_void) -> *mut c_char;
    fn sdclr_device_peak(device: i32, out: *mut i64) -> *mut c_char;
    fn sdclr_give_back() -> *mut c_char;
    fn sdclr_graph_new(side: *mut c_void, out: *mut *mut c_void) -> *mut c_char;
    fn sdclr_graph_free(graph: *mut c_void) -> *mut c_char;
    fn sdclr_graph_begin(graph: *mut c_void, sharing: *mut c_void) -> *mut c_char;
    fn sdclr_graph_end(graph: *mut c_void) -> *mut c_char;
    fn sdclr_graph_replay(graph: *mut c_void) -> *mut c_char;
}

/// A second queue of work on a GPU. What is computed here may be used elsewhere after [`SideStream::join`]; its memory may
/// be freed as soon as its last use is queued, because whatever comes here next waits for that.
#[derive(Debug)]
pub struct SideStream(*mut c_void);

/// What a side stream is for. Each purpose has one queue on a device, and whoever asks for it shares that.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    Steps,
    Views,
}

impl SideStream {
    /// The second queue for `purpose` on `device`; `None` on the CPU, which has only one.
    pub fn new(purpose: Purpose, device: Device) -> Result<Option<Self>, NativeError> {
        let Device::Cuda(index) = device else { return Ok(None) };
        let mut side = null_mut();
        // SAFETY: `side` outlives the call, which fills it unless it fails.
        check(unsafe { sdclr_side_new(purpose as i32, index as i32, &raw mut side) })?;
        Ok(Some(Self(side)))
    }

    /// Runs `work`, whose operations are queued here, behind all that is queued elsewhere so far. A panic is an error.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, NativeError> {
        // SAFETY: alive until dropped; the thread that enters leaves.
        check(unsafe { sdclr_side_enter(self.0) })?;
        let result = guarded(work);
        // SAFETY: as above.
        check(unsafe { sdclr_side_leave(self.0) })?;
        result
    }

    /// What is queued elsewhere from now on waits for what is queued here.
    pub fn join(&self) -> Result<(), NativeError> {
        // SAFETY: alive until dropped.
        check(unsafe { sdclr_side_join(self.0) })
    }
}

impl Drop for SideStream {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        warn_of("a stream", check(unsafe { sdclr_side_free(self.0) }));
    }
}

/// The most memory that libtorch ever held on `device` in this process, in bytes: tensors and workspaces, not CUDA's own
/// context. `None` on the CPU.
pub fn peak_bytes(device: Device) -> Result<Option<u64>, NativeError> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let mut peak = 0;
    // SAFETY: `peak` outlives the call.
    check(unsafe { sdclr_device_peak(index as i32, &raw mut peak) })?;
    Ok(Some(peak as u64))
}

/// Waits for the GPU and gives back the memory that libtorch keeps from earlier work. What a dropped graph held nobody else
/// could have, and what was freed on a side stream would serve that stream alone.
pub fn give_back() -> Result<(), NativeError> {
    // SAFETY: no pointers.
    check(unsafe { sdclr_give_back() })
}

/// Recorded work on a GPU, launched as one. It reads and writes the memory that it was recorded with: its inputs are
/// filled in place, and what it gives is overwritten by the next launch.
#[derive(Debug)]
pub struct Graph(*mut c_void);

impl Graph {
    /// Records what `work` queues on `side`, none of which happens before [`Graph::launch`]. The work must have run there
    /// before, so that libraries have chosen their algorithms, and may not wait for the device. Graphs of one stream that
    /// are never under way together can share memory: those after the first are given one.
    ///
    /// # Errors
    /// CUDA cannot record something that `work` does, or `work` panics.
    pub fn record<T>(
        side: &SideStream,
        sharing: Option<&Self>,
        work: impl FnOnce() -> T,
    ) -> Result<(Self, T), NativeError> {
        let mut graph = null_mut();
        // SAFETY: `graph` outlives the call, which fills it unless it fails.
        check(unsafe { sdclr_graph_new(side.0, &raw mut graph) })?;
        let graph = Self(graph);
        let result = side.run(|| {
            // SAFETY: both are alive until dropped; what begins ends below.
            check(unsafe { sdclr_graph_begin(graph.0, sharing.map_or(null_mut(), |other| other.0)) })?;
            let result = guarded(work);
            // SAFETY: as above.
            let ended = check(unsafe { sdclr_graph_end(graph.0) });
            // Why the work failed says more than that the recording then did.
            let result = result?;
            ended.map(|()| result)
        });
        Ok((graph, result.flatten()?))
    }

    /// Queues the recorded work.
    pub fn launch(&self) -> Result<(), NativeError> {
        // SAFETY: alive until dropped.
        check(unsafe { sdclr_graph_replay(self.0) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `record`, freed once.
        warn_of("a CUDA graph", check(unsafe { sdclr_graph_free(self.0) }));
    }
}

/// A destructor has nobody to give an error to.
fn warn_of(what: &str, freed: Result<(), NativeError>) {
    if let Err(error) = freed {
        tracing::warn!("{what} was not freed: {error}");
    }
}
