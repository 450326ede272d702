//! What is installed and what works. In: the folder of the data. Out: a report on libtorch, every device and every data set.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Device, Kind};

use super::{SuiteError, environment};
use crate::cores::Cores;
use crate::dataset::{Content, Dataset, DatasetError, ImageSet, speed};
use crate::native::{self, CudaState, NativeError};
use crate::network::{Network, NetworkSpec};
use crate::pretrain::Trainer;
use crate::pretrain::loader::Loader;
use crate::random;
use crate::recipe::{DatasetName, Recipe};
use crate::record::Environment;
use crate::split::{self, Images, ListName, Subset};

/// The version of what `sdclr doctor --json` prints.
const FORMAT: u32 = 1;

/// What [`examine`] found.
#[derive(Debug)]
pub struct Examination {
    /// Of the CPU.
    pub environment: Environment,
    pub libtorch: Result<PathBuf, NativeError>,
    pub cuda: &'static CudaState,
    pub jpeg: JpegCheck,
    /// The CPU, then every GPU.
    pub devices: Vec<DeviceCheck>,
    /// One entry a data set; `None`: no folder was named, and none was fetched.
    pub data: Option<Vec<DataCheck>>,
}

/// How JPEGs are decoded.
#[derive(Debug)]
pub struct JpegCheck {
    pub simd: bool,
    /// By one thread, of common sides.
    pub images_per_second: Result<f64, String>,
}

/// One device.
#[derive(Debug)]
pub struct DeviceCheck {
    pub device: Device,
    /// The driver's name of a GPU.
    pub name: Option<String>,
    /// The loss of a small SDCLR step.
    pub step: Result<f64, SuiteError>,
}

/// One data set.
#[derive(Debug)]
pub enum DataCheck {
    Unreadable(DatasetError),
    Official(DatasetName),
    Differs {
        name: DatasetName,
        sha256: Option<String>,
    },
    /// The images are the official ones, these lists are not the published ones.
    OtherLists {
        name: DatasetName,
        lists: Vec<String>,
    },
    /// Images that are files under `root`, and the lists that name them.
    Files {
        name: DatasetName,
        root: PathBuf,
        lists: Vec<Result<ListCheck, SuiteError>>,
    },
}

/// A list of ImageNet whose first image could be decoded.
#[derive(Debug)]
pub struct ListCheck {
    pub name: String,
    /// Whether it is the published one.
    pub official: bool,
    pub images: usize,
}

impl Examination {
    /// Whether every device computes.
    pub fn is_healthy(&self) -> bool {
        self.devices.iter().all(|check| check.step.as_ref().is_ok_and(|loss| loss.is_finite()))
    }

    /// All of it for programs; what failed is `{ "error": text }`.
    pub fn to_json(&self) -> Value {
        let failed = |error: &dyn std::fmt::Display| json!({ "error": error.to_string() });
        let device = |check: &DeviceCheck| {
            let step = check.step.as_ref().map_or_else(|error| failed(error), |loss| json!({ "loss": loss }));
            json!({ "device": format!("{:?}", check.device), "name": check.name, "step": step })
        };
        let list = |list: &Result<ListCheck, SuiteError>| match list {
            Ok(ListCheck { name, official, images }) => json!({ "list": name, "official": official, "images": images }),
            Err(error) => failed(error),
        };
        let data = |check: &DataCheck| match check {
            DataCheck::Unreadable(error) => failed(error),
            DataCheck::Official(name) => json!({ "dataset": name, "official": true }),
            DataCheck::Differs { name, sha256 } => json!({ "dataset": name, "official": false, "sha256": sha256 }),
            DataCheck::OtherLists { name, lists } => {
                json!({ "dataset": name, "official": true, "other_lists": lists })
            }
            DataCheck::Files { name, root, lists } => {
                json!({ "dataset": name, "root": root, "lists": lists.iter().map(list).collect::<Vec<_>>() })
            }
        };
        let rate = self.jpeg.images_per_second.as_ref().map_or_else(|error| failed(error), |rate| json!(rate));
        json!({
            "format": FORMAT,
            "healthy": self.is_healthy(),
            "environment": self.environment,
            "cores": Cores::available().to_string(),
            "libtorch": self.libtorch.as_ref().map_or_else(|error| failed(error), |folder| json!(folder)),
            "cuda": format!("{:?}", self.cuda),
            "jpeg": { "simd": self.jpeg.simd, "images_per_second": rate },
            "devices": self.devices.iter().map(device).collect::<Vec<_>>(),
            "data": self.data.as_ref().map(|data_sets| data_sets.iter().map(data).collect::<Vec<_>>()),
        })
    }
}

/// Looks at libtorch, takes a step on every device, and opens every data set under `data`.
///
/// # Errors
/// libtorch does not tell how it is set up.
pub fn examine(data: Option<&Path>) -> Result<Examination, SuiteError> {
    let environment = environment::describe(Device::Cpu)?;
    let cuda = native::load_cuda();
    let mut devices = vec![Device::Cpu];
    if let CudaState::Loaded { devices: count } = cuda {
        devices.extend((0..*count as usize).map(Device::Cuda));
    }
    let check = |device| DeviceCheck {
        device,
        name: if let Device::Cuda(index) = device { native::cuda_name(index) } else { None },
        step: one_step(device),
    };
    let names = [DatasetName::Cifar10, DatasetName::Cifar100, DatasetName::Imagenet100, DatasetName::Imagenet];
    Ok(Examination {
        environment,
        libtorch: native::libtorch_folder(),
        cuda,
        jpeg: JpegCheck { simd: speed::uses_simd(), images_per_second: speed::decoding_rate() },
        devices: devices.into_iter().map(check).collect(),
        data: data.map(|folder| names.into_iter().map(|name| examine_data(name, folder)).collect()),
    })
}

/// A small SDCLR step from end to end, with what training would need: also our kernels, on a GPU.
fn one_step(device: Device) -> Result<f64, SuiteError> {
    let kernels = device.is_cuda().then(|| "precision=bf16".to_owned());
    let overrides: Vec<String> = kernels.into_iter().chain(["batch_size=8".to_owned()]).collect();
    let recipe = Recipe::resolve("digits-lt/sdclr", &overrides)?;
    let network = Network::new(NetworkSpec::of_recipe(&recipe), recipe.seed, Kind::Float, device)?;
    let mut trainer = Trainer::new(&recipe, network, 1, false)?;
    let side = recipe.augment.size;
    let images = random::uniform(8 * 3 * side * side, 1)?.f_mul_scalar(256.0).map_err(NativeError::from)?;
    let images = images.to_kind(Kind::Uint8).view([8, 3, side, side]);
    let set = ImageSet { images: images.to_device(device), labels: vec![0; 8] };
    let subset = Subset::of("noise".to_owned(), String::new(), &set, (0..8).collect());
    Ok(trainer.epoch(1, Loader::new(&subset, &recipe, device, 1..=1)?)?.mean_loss())
}

fn examine_data(name: DatasetName, folder: &Path) -> DataCheck {
    let set = match Dataset::load(name, Some(folder), Device::Cpu) {
        Ok(set) => set,
        Err(error) => return DataCheck::Unreadable(error),
    };
    if let Content::Folder(root) = &set.content {
        let lists = ListName::all(1).map(|list| first_of(&set, folder, list)).collect();
        return DataCheck::Files { name, root: root.clone(), lists };
    }
    if !set.official {
        return DataCheck::Differs { name, sha256: set.sha256 };
    }
    // One that is missing or damaged is an error where it is needed.
    let lists =
        ListName::all(split::published_splits(name)).filter_map(|list| split::read(&set, Some(folder), list).ok());
    let lists: Vec<String> = lists.filter(|list| !list.official).map(|list| list.name).collect();
    match lists.is_empty() {
        true => DataCheck::Official(name),
        false => DataCheck::OtherLists { name, lists },
    }
}

/// What a list of ImageNet holds, once its first image could be decoded.
fn first_of(set: &Dataset, folder: &Path, list: ListName) -> Result<ListCheck, SuiteError> {
    let list = split::read(set, Some(folder), list)?;
    if let Images::Files(files) = &list.images {
        files.read(0)?;
    }
    Ok(ListCheck { images: list.len(), official: list.official, name: list.name })
}
