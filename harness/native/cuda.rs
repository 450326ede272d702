//! Looking for CUDA: which libtorch runs, whether its CUDA part loads, and what the devices are called.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};

use tch::Cuda;

use super::NativeError;

/// What came of looking for CUDA at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaState {
    /// `libtorch_cuda.so` is loaded and sees this many devices.
    Loaded { devices: i64 },
    /// The libtorch at hand has no CUDA part: the CPU set.
    NotInstalled { looked_in: PathBuf },
    /// It is there, but the loader refused it.
    Failed { reason: String },
}

/// Loads `libtorch_cuda.so` if the libtorch in use has one. Must run before the first CUDA query, whose answer
/// libtorch caches; later calls return the first answer.
pub fn load_cuda() -> &'static CudaState {
    static STATE: std::sync::OnceLock<CudaState> = std::sync::OnceLock::new();
    STATE.get_or_init(|| {
        let folder = match libtorch_folder() {
            Ok(folder) => folder,
            Err(error) => return CudaState::Failed { reason: error.to_string() },
        };
        if !folder.join("libtorch_cuda.so").exists() {
            return CudaState::NotInstalled { looked_in: folder };
        }
        // SAFETY: a static NUL-terminated name; libtorch's own initialisers run, as they do for `import torch`.
        let handle = unsafe { libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if handle.is_null() {
            // SAFETY: dlerror returns a string (never null after a failed dlopen) valid until the next dl call.
            let reason = unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned();
            return CudaState::Failed { reason };
        }
        CudaState::Loaded { devices: Cuda::device_count() }
    })
}

/// The folder that the running binary's `libtorch_cpu.so` was loaded from.
///
/// # Errors
/// The kernel does not tell what is loaded.
pub fn libtorch_folder() -> Result<PathBuf, NativeError> {
    const MAPS: &str = "/proc/self/maps";
    let maps = std::fs::read_to_string(MAPS).map_err(|error| NativeError(format!("{MAPS} cannot be read: {error}")))?;
    let mut paths = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    let library = paths.find(|path| path.ends_with("libtorch_cpu.so"));
    let folder = library.and_then(Path::parent).map(Path::to_path_buf);
    folder.ok_or_else(|| NativeError(format!("{MAPS} names no libtorch_cpu.so; link libtorch dynamically")))
}

/// The name of CUDA device `index` as the driver gives it, e.g. `NVIDIA H200`.
pub fn cuda_name(index: usize) -> Option<String> {
    driver_text(c"cuDeviceGetName", index)
}

/// Where CUDA device `index` is: the machine, which a container shares with others, and the place on its bus.
pub(super) fn cuda_place(index: usize) -> Option<String> {
    let machine = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{} {}", machine.trim(), driver_text(c"cuDeviceGetPCIBusId", index)?))
}

/// What a function of the driver that gives a text says of a device.
fn driver_text(function: &CStr, index: usize) -> Option<String> {
    type Init = unsafe extern "C" fn(u32) -> i32;
    type Get = unsafe extern "C" fn(*mut i32, i32) -> i32;
    type Text = unsafe extern "C" fn(*mut c_char, i32, i32) -> i32;
    // SAFETY: libcuda's C interface as documented (CUDA driver API: cuInit, cuDeviceGet, cuDeviceGetName,
    // cuDeviceGetPCIBusId); every symbol is checked for null before its address is taken as the documented function type.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        if library.is_null() {
            return None;
        }
        let symbol = |name: &CStr| {
            let address = libc::dlsym(library, name.as_ptr());
            (!address.is_null()).then_some(address)
        };
        let init: Init = std::mem::transmute(symbol(c"cuInit")?);
        let get: Get = std::mem::transmute(symbol(c"cuDeviceGet")?);
        let get_text: Text = std::mem::transmute(symbol(function)?);
        let mut device = 0;
        let mut text = [0 as c_char; 256];
        if init(0) != 0 || get(&mut device, index as i32) != 0 || get_text(text.as_mut_ptr(), 255, device) != 0 {
            return None;
        }
        Some(CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
    }
}
