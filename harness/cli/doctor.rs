//! `sdclr doctor`: what is installed and what works.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tch::{Device, Kind};

use crate::dataset::{Content, Dataset, ImageSet};
use crate::native::{self, CudaState};
use crate::network::{Network, NetworkSpec};
use crate::pretrain::Trainer;
use crate::pretrain::loader::Loader;
use crate::random;
use crate::recipe::{DatasetName, PretrainSplit, Recipe, name_of};
use crate::split::{self, Images, ListName, Subset};
use crate::suite::environment;

/// Tell what is installed and what works: libtorch, CUDA, data
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Folder of the data
    #[arg(long, value_name = "DIR", env = "SDCLR_DATA")]
    data: Option<PathBuf>,
}

impl DoctorArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let environment = environment::describe(Device::Cpu);
        println!("sdclr      {} ({})", environment.sdclr, environment.git_commit.as_deref().unwrap_or("no checkout"));
        println!("libtorch   {} in {}", environment.libtorch, native::libtorch_folder().display());
        println!("CPU        {}, {} threads", environment.device, environment.threads);
        let mut devices = vec![Device::Cpu];
        match native::load_cuda() {
            CudaState::Loaded { devices: count } => {
                println!("CUDA       loaded, {count} devices");
                for index in 0..*count as usize {
                    println!("  cuda:{index}   {}", native::cuda_name(index).unwrap_or_default());
                    devices.push(Device::Cuda(index));
                }
            }
            CudaState::NotInstalled { .. } => println!("CUDA       not installed (this libtorch has no CUDA part)"),
            CudaState::Failed { reason } => {
                println!("CUDA       not loaded: {reason} (the CPU set of ci/setup lacks it)")
            }
        }
        let mut healthy = true;
        for device in devices {
            let outcome = one_step(device);
            healthy &= outcome.is_ok();
            match outcome {
                Ok(loss) => println!("one step   on {device:?}: loss {loss:.4}"),
                Err(error) => println!("one step   on {device:?} FAILED: {error}"),
            }
        }
        match &self.data.or_else(crate::artifact::data_folder) {
            None => println!(
                "data       none fetched (sdclr fetch) or named (--data DIR, SDCLR_DATA); the digits are embedded"
            ),
            Some(folder) => {
                for name in
                    [DatasetName::Cifar10, DatasetName::Cifar100, DatasetName::Imagenet100, DatasetName::Imagenet]
                {
                    describe_data(name, folder);
                }
            }
        }
        Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// A line on the data set in `folder`; of ImageNet, one on each list: its first image is decoded.
fn describe_data(name: DatasetName, folder: &Path) {
    let set = match Dataset::load(name, Some(folder), Device::Cpu) {
        Ok(set) => set,
        Err(error) => return println!("data       {error}"),
    };
    match (&set.content, &set.sha256) {
        (Content::Folder(root), _) => {
            println!("data       {}: images in {}", name_of(&name), root.display());
            let tail = [PretrainSplit::D_i, PretrainSplit::D_b].map(|kind| ListName::Pretrain(kind, 1));
            let probe = [ListName::FewShot(1), ListName::Train, ListName::Validation, ListName::Test];
            for list in tail.into_iter().chain(probe) {
                match first_of(&set, folder, list) {
                    Ok(line) => println!("  {line}"),
                    Err(error) => println!("  {error}"),
                }
            }
        }
        _ if set.official => println!("data       {}: the official download", name_of(&name)),
        (_, hash) => {
            let hash = hash.as_deref().unwrap_or_default();
            println!("data       {}: differs from the official download ({hash})", name_of(&name));
        }
    }
}

/// What a list of ImageNet holds, once its first image could be decoded.
fn first_of(set: &Dataset, folder: &Path, list: ListName) -> anyhow::Result<String> {
    let list = split::read(set, Some(folder), list)?;
    if let Images::Files(files) = &list.images {
        files.read(0)?;
    }
    Ok(format!("{}: {} images, the first decodes", list.name, list.len()))
}

/// A small SDCLR step from end to end, with what training would need: also our kernels, on a GPU.
fn one_step(device: Device) -> anyhow::Result<f64> {
    let kernels = device.is_cuda().then(|| "precision=bf16".to_owned());
    let overrides: Vec<String> = kernels.into_iter().chain(["batch_size=8".to_owned()]).collect();
    let recipe = Recipe::resolve("digits-lt/sdclr", &overrides)?;
    let network = Network::new(NetworkSpec::of_recipe(&recipe), recipe.seed, Kind::Float, device)?;
    let mut trainer = Trainer::new(&recipe, network, 1, false)?;
    let side = recipe.augment.size;
    let images = (random::uniform(8 * 3 * side * side, 1)? * 256.0).to_kind(Kind::Uint8).view([8, 3, side, side]);
    let set = ImageSet { images: images.to_device(device), labels: vec![0; 8] };
    let subset = Subset::of("noise".to_owned(), String::new(), &set, (0..8).collect());
    Ok(trainer.epoch(1, Loader::new(&subset, &recipe, 1..=1)?)?.mean_loss())
}
