//! The one door to what tch does not expose of libtorch: seeded generators, the fused optimiser, the switches for TF32
//! and determinism, page-locked memory, streams and graphs, working copies of weights, kernels of our own, and loading CUDA.
//! The C++ files are the other side; every function here that does not say otherwise is safe to call.

pub mod augment;
mod cuda;
pub mod graph;
pub mod norm;
pub mod weights;

use std::ffi::{CStr, c_char, c_void};
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

pub use cuda::{CudaState, cuda_name, libtorch_folder, load_cuda};

/// A call into libtorch failed; the message is libtorch's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct NativeError(String);

impl NativeError {
    /// libtorch appends a C++ stack trace; its first line says what was wrong.
    fn of(text: &str) -> Self {
        Self(text.lines().next().unwrap_or_default().to_owned())
    }
}

impl From<tch::TchError> for NativeError {
    fn from(error: tch::TchError) -> Self {
        match error {
            tch::TchError::Torch(text) => Self::of(&text),
            other => Self::of(&other.to_string()),
        }
    }
}

unsafe extern "C" {
    fn sdclr_free(message: *mut c_char);
    fn sdclr_torch_version() -> *const c_char;
    fn sdclr_randperm(n: i64, seed: u64, out: *mut i64) -> *mut c_char;
    fn sdclr_uniform(out: *mut c_void, seed: u64) -> *mut c_char;
    fn sdclr_normal(out: *mut c_void, seed: u64) -> *mut c_char;
    fn sdclr_fused_sgd(
        params: *mut *mut c_void,
        grads: *mut *mut c_void,
        count: usize,
        buffers: *mut *mut c_void,
        buffer_count: usize,
        weight_decay: f64,
        momentum: f64,
        lr: *mut c_void,
    ) -> *mut c_char;
    fn sdclr_parallel_for(
        count: usize,
        body: unsafe extern "C" fn(*mut c_void, usize),
        context: *mut c_void,
    ) -> *mut c_char;
    fn sdclr_set_tf32(allow: bool) -> *mut c_char;
    fn sdclr_tf32(out: *mut i32) -> *mut c_char;
    fn sdclr_set_deterministic(on: bool) -> *mut c_char;
    fn sdclr_determinism() -> i32;
    fn sdclr_pin(tensor: *mut c_void) -> *mut c_char;
    fn sdclr_gradients(
        output: *mut c_void,
        gradient: *mut c_void,
        inputs: *mut *mut c_void,
        count: usize,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

fn check(message: *mut c_char) -> Result<(), NativeError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns either null or a NUL-terminated string from strdup, which we free once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        sdclr_free(message);
        text
    };
    Err(NativeError::of(&text))
}

/// The version of the libtorch that this binary was compiled against, e.g. `2.11.0`.
pub fn torch_version() -> String {
    // SAFETY: a static string of the shim.
    unsafe { CStr::from_ptr(sdclr_torch_version()) }.to_string_lossy().into_owned()
}

/// The seed of a generator that is used for one thing only: randomness here is addressed, not consumed, so nothing that
/// is drawn depends on what was drawn before.
pub fn addressed_seed(seed: u64, address: &str) -> u64 {
    let digest = Sha256::digest(format!("{seed}/{address}"));
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

/// `torch.randperm(n)` of a fresh CPU generator seeded with `seed`; the global generator is not touched.
pub fn randperm(n: usize, seed: u64) -> Result<Vec<i64>, NativeError> {
    let mut order = vec![0; n];
    // SAFETY: `order` has room for exactly n values.
    check(unsafe { sdclr_randperm(n as i64, seed, order.as_mut_ptr()) })?;
    Ok(order)
}

/// Uniform numbers in `[0, 1)` of a fresh CPU generator seeded with `seed`: float32 `[n]` on the CPU.
pub fn uniform(n: i64, seed: u64) -> Result<Tensor, NativeError> {
    let out = Tensor::empty([n], (Kind::Float, Device::Cpu));
    // SAFETY: `as_ptr` is the address of the at::Tensor that tch owns, alive during the call.
    check(unsafe { sdclr_uniform(out.as_ptr() as *mut c_void, seed) })?;
    Ok(out)
}

/// Standard normal numbers of a fresh CPU generator seeded with `seed`: float32 `[n]` on the CPU.
pub fn normal(n: i64, seed: u64) -> Result<Tensor, NativeError> {
    let out = Tensor::empty([n], (Kind::Float, Device::Cpu));
    // SAFETY: as in `uniform`.
    check(unsafe { sdclr_normal(out.as_ptr() as *mut c_void, seed) })?;
    Ok(out)
}

/// One step of SGD with momentum over all tensors at once (`torch._fused_sgd_`, no Nesterov, no dampening):
/// `buffer = momentum * buffer + grad + weight_decay * param`, `param -= lr * buffer`. Without momentum the buffers are
/// left alone. The rate `lr` is one number, on the CPU or, in float32, where the parameters are, so that a
/// recorded step reads the current one.
///
/// # Errors
/// The lists differ in length, or the tensors of one parameter in shape, kind or device.
pub fn fused_sgd(
    params: &[Tensor],
    grads: &[Tensor],
    buffers: &[Tensor],
    weight_decay: f64,
    momentum: f64,
    lr: &Tensor,
) -> Result<(), NativeError> {
    if params.len() != grads.len() || params.len() != buffers.len() {
        return Err(NativeError(format!(
            "fused SGD wants one gradient and one buffer per parameter, got {} parameters, {} gradients, {} buffers",
            params.len(),
            grads.len(),
            buffers.len()
        )));
    }
    let grads =
        params.iter().zip(grads).map(|(param, grad)| laid_out_like(param, grad)).collect::<Result<Vec<_>, _>>()?;
    for (param, buffer) in params.iter().zip(buffers) {
        if !same_layout(param, buffer) || param.size() != buffer.size() || param.kind() != buffer.kind() {
            let (wanted, found) = (param.size(), buffer.size());
            return Err(NativeError(format!("a momentum buffer of shape {found:?} is not laid out as its {wanted:?}")));
        }
    }
    let count = params.len();
    let buffers = if momentum == 0.0 { &[] } else { buffers };
    let mut p = pointers(params);
    let mut g = pointers(&grads);
    let mut b = pointers(buffers);
    // SAFETY: lists of as many addresses of at::Tensors as their lengths say, which outlive the call; parameters,
    // gradients and buffers agree in shape, kind, device and memory layout, which the kernel takes for granted.
    check(unsafe {
        sdclr_fused_sgd(
            p.as_mut_ptr(),
            g.as_mut_ptr(),
            count,
            b.as_mut_ptr(),
            buffers.len(),
            weight_decay,
            momentum,
            lr.as_ptr() as *mut c_void,
        )
    })
}

/// Whether two tensors of one shape lie alike in memory; the stride of a side of 1 means nothing.
fn same_layout(a: &Tensor, b: &Tensor) -> bool {
    let strides = |tensor: &Tensor| {
        let sides = tensor.size().into_iter().zip(tensor.stride());
        sides.filter(|(side, _)| *side != 1).map(|(_, stride)| stride).collect::<Vec<_>>()
    };
    strides(a) == strides(b)
}

/// `grad` in the memory layout of `param`, copied only where it differs.
fn laid_out_like(param: &Tensor, grad: &Tensor) -> Result<Tensor, NativeError> {
    if param.size() != grad.size() || param.kind() != grad.kind() || param.device() != grad.device() {
        let (wanted, found) = (param.size(), grad.size());
        return Err(NativeError(format!("a gradient of shape {found:?} does not fit its parameter of {wanted:?}")));
    }
    if same_layout(param, grad) {
        return Ok(grad.shallow_clone());
    }
    Ok(tch::no_grad(|| {
        let mut copy = param.empty_like();
        copy.copy_(grad);
        copy
    }))
}

fn pointers<T: std::borrow::Borrow<Tensor>>(tensors: &[T]) -> Vec<*mut c_void> {
    tensors.iter().map(|tensor| tensor.borrow().as_ptr() as *mut c_void).collect()
}

/// The gradient of each of the `inputs` where that of `output` is `gradient` (`torch.autograd.grad`); tch starts from
/// scalars alone.
///
/// # Errors
/// `output` does not come from one of them.
pub fn gradients(output: &Tensor, gradient: &Tensor, inputs: &[&Tensor]) -> Result<Vec<Tensor>, NativeError> {
    let gradients: Vec<Tensor> = inputs.iter().map(|_| Tensor::new()).collect();
    let (mut from, mut to) = (pointers(inputs), pointers(&gradients));
    // SAFETY: addresses of at::Tensors, as many as said, which outlive the call; those written are nobody else's.
    check(unsafe {
        sdclr_gradients(
            output.as_ptr() as *mut c_void,
            gradient.as_ptr() as *mut c_void,
            from.as_mut_ptr(),
            inputs.len(),
            to.as_mut_ptr(),
        )
    })?;
    Ok(gradients)
}

/// Whether float32 matrix products (cuBLAS) and convolutions (cuDNN) on CUDA use TF32, in the whole process. Off is the
/// faithful setting: the paper's GPUs had none, and cuDNN's default is on. Read back from libtorch before it is believed.
///
/// # Errors
/// libtorch keeps another setting, or the environment overrides it inside NVIDIA's libraries.
pub fn set_tf32(allow: bool) -> Result<(), NativeError> {
    // The libraries read the variable themselves, whatever libtorch asks for: 0 turns TF32 off everywhere.
    if let Some(text) = std::env::var_os("NVIDIA_TF32_OVERRIDE")
        && (text == "0") == allow
    {
        let (text, state) = (text.to_string_lossy(), if allow { "on" } else { "off" });
        return Err(NativeError(format!("NVIDIA_TF32_OVERRIDE={text} would override TF32, wanted {state}; unset it")));
    }
    // SAFETY: no pointers.
    check(unsafe { sdclr_set_tf32(allow) })?;
    match tf32()? {
        found if found == [allow; 2] => Ok(()),
        [blas, dnn] => Err(NativeError(format!("TF32 was set to {allow}, but is {blas} in cuBLAS and {dnn} in cuDNN"))),
    }
}

/// Whether TF32 is allowed for matrix products (cuBLAS) and for convolutions (cuDNN).
///
/// # Errors
/// libtorch's older and newer settings disagree.
pub fn tf32() -> Result<[bool; 2], NativeError> {
    let mut bits = 0;
    // SAFETY: `bits` outlives the call.
    check(unsafe { sdclr_tf32(&raw mut bits) })?;
    Ok([bits & 1 != 0, bits & 2 != 0])
}

/// The workspaces with which cuBLAS sums in the same order every time.
const CUBLAS_WORKSPACE: (&str, &str) = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8");

/// Whether the process keeps to algorithms that give the same bits every time. Without, cuDNN tries which algorithm is
/// fastest for each shape. Runs on the CPU give the same bits either way.
///
/// # Errors
/// libtorch keeps another setting, or the environment gives cuBLAS a workspace that is not deterministic.
pub fn set_deterministic(on: bool) -> Result<(), NativeError> {
    let (name, wanted) = CUBLAS_WORKSPACE;
    if let Some(text) = std::env::var_os(name).filter(|text| on && text != wanted && text != ":16:8") {
        let text = text.to_string_lossy();
        return Err(NativeError(format!("{name}={text} is not deterministic; unset it, or set it to {wanted}")));
    }
    // SAFETY: no pointers.
    check(unsafe { sdclr_set_deterministic(on) })?;
    let wanted = Determinism { algorithms: on, cudnn: on, benchmark: !on };
    match determinism() {
        found if found == wanted => Ok(()),
        found => Err(NativeError(format!("determinism was set to {wanted:?}, but libtorch keeps {found:?}"))),
    }
}

/// libtorch's switches that decide whether two runs give the same bits on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Determinism {
    /// An operation without a deterministic algorithm is an error.
    pub algorithms: bool,
    pub cudnn: bool,
    /// cuDNN tries which algorithm is fastest.
    pub benchmark: bool,
}

/// How those switches stand.
pub fn determinism() -> Determinism {
    // SAFETY: no pointers.
    let bits = unsafe { sdclr_determinism() };
    Determinism { algorithms: bits & 1 != 0, cudnn: bits & 2 != 0, benchmark: bits & 4 != 0 }
}

/// `host` made ready to be sent to `device` without waiting: for CUDA in page-locked memory, else as it is.
pub fn staged(host: Tensor, device: Device) -> Result<Tensor, NativeError> {
    if device.is_cuda() {
        // SAFETY: the address of the at::Tensor that tch owns, which nobody else can see.
        check(unsafe { sdclr_pin(host.as_ptr() as *mut c_void) })?;
    }
    Ok(host)
}

/// `host` on `device`. From page-locked memory ([`staged`]) the copy is queued and the call returns at once; libtorch
/// keeps the memory until the copy is done.
pub fn send(host: &Tensor, device: Device) -> Result<Tensor, NativeError> {
    Ok(host.f_to_device_(device, host.kind(), true, false)?)
}

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
