//! Where a job runs: the device that was asked for, and what records say of machine and program.

use std::path::Path;
use std::process::Command;

use tch::{Cuda, Device};

use super::SuiteError;
use crate::native::{self, CudaState, NativeError};
use crate::record::Environment;

/// The device called `name`: `cpu`, `cuda` or `cuda:N`; without a name the first CUDA device, or the CPU. Computes in true
/// float32 until a recipe asks for something else.
///
/// # Errors
/// The device is not there, and why; or it cannot be kept from TF32.
pub fn device(name: Option<&str>) -> Result<Device, SuiteError> {
    let state = native::load_cuda();
    native::set_tf32(false)?;
    let devices = match state {
        CudaState::Loaded { devices } if Cuda::is_available() => *devices as usize,
        _ => 0,
    };
    let index = match name {
        None if devices > 0 => 0,
        None | Some("cpu") => return Ok(Device::Cpu),
        Some("cuda") => 0,
        Some(text) => match text.strip_prefix("cuda:").and_then(|index| index.parse().ok()) {
            Some(index) => index,
            None => return Err(SuiteError::DeviceName { found: text.to_owned() }),
        },
    };
    if index < devices {
        return Ok(Device::Cuda(index));
    }
    let reason = match state {
        CudaState::Loaded { devices: 0 } => "libtorch's CUDA part is loaded but sees no device".to_owned(),
        CudaState::Loaded { devices } => format!("there are {devices}, counted from 0"),
        CudaState::NotInstalled { looked_in } => format!("the libtorch in {} has no CUDA part", looked_in.display()),
        CudaState::Failed { reason } => format!("libtorch's CUDA part does not load: {reason}"),
    };
    Err(SuiteError::NoDevice { found: format!("cuda:{index}"), reason })
}

/// What records say of the machine and of this program.
///
/// # Errors
/// libtorch does not tell whether it computes deterministically.
pub fn describe(device: Device) -> Result<Environment, NativeError> {
    let name = match device {
        Device::Cuda(index) => native::cuda_name(index).unwrap_or_else(|| format!("CUDA device {index}")),
        _ => cpu_model(),
    };
    Ok(Environment {
        device: name,
        threads: tch::get_num_threads() as usize,
        libtorch: native::torch_version(),
        deterministic: native::determinism()?.algorithms,
        eager: false,
        git_commit: git_commit(),
        sdclr: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// The processor's model as the kernel names it.
fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, model)| model.trim().to_owned())
}

/// The commit of the checkout that the running binary lies in, `-dirty` where files differ from it; of an installed binary, the
/// commit in the file beside it.
fn git_commit() -> Option<String> {
    let binary = std::env::current_exe().ok()?;
    if let Ok(commit) = std::fs::read_to_string(binary.with_file_name("commit")) {
        return Some(commit.trim().to_owned());
    }
    let arguments = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"];
    let folder = binary.parent().unwrap_or(Path::new("."));
    let output =
        Command::new("git").env("GIT_OPTIONAL_LOCKS", "0").arg("-C").arg(folder).args(arguments).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}
