//! `sdclr doctor`: what is installed and what works.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::outln;
use crate::cores::Cores;
use crate::dataset::speed;
use crate::native::CudaState;
use crate::recipe::name_of;
use crate::suite::doctor::{self, DataCheck, DeviceCheck, Examination, ListCheck};

/// Tell what is installed and what works: libtorch, CUDA, data
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Folder of the data
    #[arg(long, value_name = "DIR", env = "SDCLR_DATA")]
    data: Option<PathBuf>,
    /// Print the same as JSON
    #[arg(long)]
    json: bool,
}

impl DoctorArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let data = self.data.or_else(crate::artifact::data_folder);
        let found = doctor::examine(data.as_deref())?;
        let code = if found.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        if self.json {
            outln!("{}", serde_json::to_string_pretty(&found.to_json())?)?;
            return Ok(code);
        }
        let mut lines = program(&found);
        lines.extend(found.devices.iter().map(step));
        match &found.data {
            None => lines.push(
                "data       none fetched (sdclr fetch) or named (--data DIR, SDCLR_DATA); the digits are embedded"
                    .to_owned(),
            ),
            Some(sets) => lines.extend(sets.iter().flat_map(data_set)),
        }
        outln!("{}", lines.join("\n"))?;
        Ok(code)
    }
}

fn program(found: &Examination) -> Vec<String> {
    let environment = &found.environment;
    let mut lines = Vec::new();
    lines.push(format!(
        "sdclr      {} ({})",
        environment.sdclr,
        environment.git_commit.as_deref().unwrap_or("no checkout")
    ));
    match &found.libtorch {
        Ok(folder) => lines.push(format!("libtorch   {} in {}", environment.libtorch, folder.display())),
        Err(error) => lines.push(format!("libtorch   {}; {error}", environment.libtorch)),
    }
    let (device, threads, cores) = (&environment.device, environment.threads, Cores::available());
    lines.push(format!(
        "CPU        {device}, {}; {cores}",
        if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") }
    ));
    match found.cuda {
        CudaState::Loaded { devices } => lines.push(format!("CUDA       loaded, {devices} devices")),
        CudaState::NotInstalled { .. } => {
            lines.push("CUDA       not installed (this libtorch has no CUDA part)".to_owned())
        }
        CudaState::Failed { reason } => {
            lines.push(format!("CUDA       not loaded: {reason} (libtorch as set up for a CPU lacks it)"))
        }
    }
    let (height, width) = speed::SIDES;
    let by = match found.jpeg.simd {
        true => "SIMD",
        false => "plain C, without SIMD: install nasm, then cargo clean -p mozjpeg-sys and build again",
    };
    lines.push(match &found.jpeg.images_per_second {
        Ok(rate) => format!("JPEG       {rate:.0} images/s of {width} x {height} on one thread, by {by}"),
        Err(error) => format!("JPEG       NOT decoded: {error}"),
    });
    for check in &found.devices {
        if let tch::Device::Cuda(index) = check.device {
            lines.push(format!("  cuda:{index}   {}", check.name.as_deref().unwrap_or("(the driver gives no name)")));
        }
    }
    lines
}

fn step(check: &DeviceCheck) -> String {
    let device = check.device;
    match &check.step {
        Ok(loss) if loss.is_finite() => format!("one step   on {device:?}: loss {loss:.4}"),
        Ok(loss) => format!("one step   on {device:?} FAILED: the loss is {loss}"),
        Err(error) => format!("one step   on {device:?} FAILED: {error}"),
    }
}

/// A line on a data set; of ImageNet, one on each list.
fn data_set(check: &DataCheck) -> Vec<String> {
    match check {
        DataCheck::Unreadable(error) => vec![format!("data       {error}")],
        DataCheck::Official(name) => vec![format!("data       {}: the official download", name_of(name))],
        DataCheck::Differs { name, sha256 } => {
            let hash = sha256.as_deref().unwrap_or("no hash");
            vec![format!("data       {}: differs from the official download ({hash})", name_of(name))]
        }
        DataCheck::OtherLists { name, lists } => {
            let images = format!("data       {}: the official download", name_of(name));
            let list = |list: &String| format!("  {list}: not the published list");
            std::iter::once(images).chain(lists.iter().map(list)).collect()
        }
        DataCheck::Files { name, root, lists } => {
            let list = |list: &Result<_, _>| match list {
                Ok(ListCheck { name, official, images }) => {
                    let differs = if *official { "" } else { "; not the published list" };
                    format!("  {name}: {images} images, the first decodes{differs}")
                }
                Err(error) => format!("  {error}"),
            };
            let first = format!("data       {}: images in {}", name_of(name), root.display());
            std::iter::once(first).chain(lists.iter().map(list)).collect()
        }
    }
}
