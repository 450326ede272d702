//! What to do, as data. In: a suite's TOML file and `key=value` overrides. Out: one resolved [`Recipe`] an encoder,
//! validated, whose hash keys run folders and resume. The published values are those of REFERENCE.md "Recipes published".

mod checks;
mod job;
mod overrides;
mod probe;
mod suite;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(crate) use checks::{check, share};
use checks::{count, not_negative, positive, range};
pub use job::{EncoderId, JobId, JobIdError, Part, PublishedKind};
pub(crate) use overrides::{nearest, remark};
pub use probe::{OrderName, ProbeRecipe, ProbeRecipes, Selection, TestTransform, TrainTransform};
pub use suite::{EncoderSpec, MOST_SEEDS, OwnData, Suite};

/// A recipe could not be found, read or accepted.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("no suite is called '{name}'{}; known are {known}, or give the path of a .toml file", suggestion(.near))]
    UnknownSuite { name: String, near: Option<String>, known: String },
    #[error("the suite {suite} has no encoder '{name}'{}; it has {known}", suggestion(.near))]
    UnknownEncoder { suite: String, name: String, near: Option<String>, known: String },
    #[error("'{name}' names no recipe; write SUITE/ENCODER with one of the suites {known}, or FILE.toml:ENCODER")]
    NotARecipe { name: String, known: String },
    #[error(transparent)]
    File(#[from] crate::fs::FsError),
    #[error("recipe {name} cannot be read: {reason}")]
    Syntax { name: String, reason: String },
    #[error("unknown recipe key '{key}'; {}", near_keys(.near))]
    UnknownKey { key: String, near: Vec<String> },
    #[error("override '{text}' is not of the form key=value")]
    NotAnOverride { text: String },
    #[error("recipe key '{key}' holds {found}, but {expected}")]
    Value { key: String, found: String, expected: String },
    #[error("the method {method} does not take its keys: {reason}; see [method.{method}] of an embedded suite")]
    MethodKeys { method: String, reason: String },
    #[error("a recipe cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

fn suggestion(near: &Option<String>) -> String {
    near.as_ref().map(|near| format!(" (did you mean '{near}'?)")).unwrap_or_default()
}

fn near_keys(near: &[String]) -> String {
    match near {
        [] => "nothing like it is a key: sdclr repro SUITE --dry-run shows all of them".to_owned(),
        [one] => format!("did you mean '{one}'?"),
        several => format!("did you mean one of {}?", several.join(", ")),
    }
}

/// Everything that can change a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the pre-training method.
    pub method: String,
    /// The keys that this method alone has; [`Recipe::method_keys`] types them.
    #[serde(skip)]
    pub own: serde_json::Map<String, serde_json::Value>,
    pub dataset: DatasetName,
    /// Where the images lie if they are one's own.
    #[serde(skip)]
    pub own_data: Option<OwnData>,
    pub network: Depth,
    pub stem: Stem,
    /// Channels of the first stage; 64 as published.
    pub width: i64,
    /// Columns of the head's output.
    pub output_dim: i64,
    /// Layers of the projection head: as published, 2 for SimCLR and 3 for SDCLR.
    pub head_layers: i64,
    /// Two sets of batch norm: one for the dense branch, one for the pruned.
    pub dual_bn: bool,
    /// The temperature of a constant schedule, and the minimum of the cosine.
    pub temperature: f64,
    pub temperature_schedule: TemperatureSchedule,
    /// The maximum of the cosine schedule.
    pub temperature_max: f64,
    /// Epochs that the cosine schedule takes from its maximum to its minimum: half its period.
    pub temperature_t_max: usize,
    pub optimizer: OptimizerName,
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub schedule: ScheduleName,
    pub epochs: usize,
    pub warmup_epochs: usize,
    pub batch_size: usize,
    /// Processes that the published run had: its sampler repeats the epoch's first images until their number is a multiple of
    /// this. Absent where it is 1, so that records from before the key keep their hashes.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub sampler_world: usize,
    /// In what pre-training computes; probes and evaluation always take true float32.
    pub precision: Precision,
    pub seed: u64,
    /// Threads that a job computes with on the CPU; 0: as many as the process may use. Where a job is small, another number
    /// rounds sums otherwise and trains another network.
    pub threads: usize,
    pub augment: AugmentRecipe,
    pub probe: ProbeRecipes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatasetName {
    Digits,
    Cifar10,
    Cifar100,
    Imagenet100,
    Imagenet,
    /// One's own image files, one folder a class.
    Folders,
    /// One's own images in NumPy arrays.
    Arrays,
}

impl DatasetName {
    /// Whether its images and lists are the user's own, so that nothing published names them.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Folders | Self::Arrays)
    }

    /// Whether its images are part of this program.
    pub fn is_embedded(self) -> bool {
        self == Self::Digits
    }
}

/// Depth of the ResNet: BasicBlock up to 34, Bottleneck from 50.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Depth {
    Resnet10,
    Resnet18,
    Resnet34,
    Resnet50,
    Resnet101,
    Resnet152,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// 3x3 convolution, stride 1, no pooling.
    Cifar,
    /// 7x7 convolution, stride 2, padding 3, then 3x3 max-pool, stride 2.
    Imagenet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    Sgd,
    Lars,
    Adam,
}

/// Weights, batch-norm statistics, loss and optimiser are float32 in all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// True float32, as published.
    Fp32,
    /// float32 whose products a GPU rounds to 10 bits first.
    Tf32,
    /// Convolutions and linear layers in bfloat16.
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    Cosine,
    Constant,
}

/// The temperature over the epochs (REFERENCE.md "Temperature schedules").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemperatureSchedule {
    Constant,
    /// `min + (max - min) * 0.5 * (1 + cos(pi * epoch / t_max))`, epochs counted from 1.
    Cosine,
}

/// The pre-training augmentation (REFERENCE.md "Augmentation").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugmentRecipe {
    /// Side of the square views in pixels.
    pub size: i64,
    /// Area of the crop as a share of the image: smallest and largest.
    pub scale: [f64; 2],
    /// Width over height of the crop: smallest and largest.
    pub ratio: [f64; 2],
    pub flip_probability: f64,
    pub jitter_probability: f64,
    /// Factors are uniform in `[1 - x, 1 + x]`.
    pub brightness: f64,
    pub contrast: f64,
    pub saturation: f64,
    /// The shift is uniform in `[-x, x]`, in turns of the colour circle.
    pub hue: f64,
    pub grayscale_probability: f64,
    pub blur_probability: f64,
    /// Standard deviation of the blur in pixels: smallest and largest.
    pub blur_sigma: [f64; 2],
}

/// Which probe: all labelled training images, or the balanced few-shot list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Full,
    Few,
}

/// Which list the pre-training reads: long-tailed `D_i` or balanced `D_b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[allow(non_camel_case_types)]
pub enum PretrainSplit {
    #[value(name = "D_i")]
    D_i,
    #[value(name = "D_b")]
    D_b,
}

/// For keys that are absent where they are 1.
pub(crate) fn one() -> usize {
    1
}

pub(crate) fn is_one(value: &usize) -> bool {
    *value == 1
}

/// The embedded suite of the published runs that most of the paper is about.
pub const REFERENCE_SUITE: &str = "cifar10-lt";

/// The name that serde gives to a unit variant: `sdclr`, `resnet18`, `D_i`.
pub fn name_of(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

impl Recipe {
    /// The recipe called `name` (SUITE/ENCODER or FILE.toml:ENCODER) with `overrides` (`key=value`) applied.
    pub fn resolve(name: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        let (suite, encoder) = Suite::of_recipe(name)?;
        suite.recipe(&encoder, overrides)
    }

    /// The method's own keys as the type that the method gives them.
    ///
    /// # Errors
    /// A key is missing, unknown or of another type.
    pub fn method_keys<T: serde::de::DeserializeOwned>(&self) -> Result<T, RecipeError> {
        serde_json::from_value(serde_json::Value::Object(self.own.clone())).map_err(|error| RecipeError::MethodKeys {
            method: self.method.clone(),
            reason: crate::text::plain_words(&error.to_string()),
        })
    }

    /// Rejects values that no run can have, naming the key, what it holds and what is allowed.
    pub(crate) fn validate(&self) -> Result<(), RecipeError> {
        count("epochs", self.epochs)?;
        let expected = "a whole number of at least 2 is needed: the loss contrasts images";
        check("batch_size", self.batch_size.to_string(), self.batch_size >= 2, expected)?;
        let world = (1..=1024).contains(&self.sampler_world);
        check("sampler_world", self.sampler_world.to_string(), world, "1 to 1024 processes are needed")?;
        for (key, value) in
            [("width", self.width), ("output_dim", self.output_dim), ("augment.size", self.augment.size)]
        {
            check(key, value.to_string(), (1..=8192).contains(&value), "a number between 1 and 8192 is needed")?;
        }
        check("head_layers", self.head_layers.to_string(), matches!(self.head_layers, 2 | 3), "2 or 3 is needed")?;
        positive("temperature", self.temperature)?;
        if self.temperature_schedule == TemperatureSchedule::Cosine {
            let allowed = self.temperature_max.is_finite() && self.temperature_max >= self.temperature;
            let expected = "at least the minimum is needed, which is the key temperature";
            check("temperature_max", self.temperature_max.to_string(), allowed, expected)?;
            count("temperature_t_max", self.temperature_t_max)?;
        }
        positive("lr", self.lr)?;
        not_negative("weight_decay", self.weight_decay)?;
        check(
            "momentum",
            self.momentum.to_string(),
            (0.0..1.0).contains(&self.momentum),
            "0 <= momentum < 1 is needed",
        )?;
        check("threads", self.threads.to_string(), self.threads <= 1024, "at most 1024 are needed; 0: all")?;
        let a = &self.augment;
        range("augment.scale", a.scale)?;
        check("augment.scale", a.scale[1].to_string(), a.scale[1] <= 1.0, "a crop is at most the whole image, 1.0")?;
        range("augment.ratio", a.ratio)?;
        range("augment.blur_sigma", a.blur_sigma)?;
        for (key, value) in [
            ("augment.flip_probability", a.flip_probability),
            ("augment.jitter_probability", a.jitter_probability),
            ("augment.grayscale_probability", a.grayscale_probability),
            ("augment.blur_probability", a.blur_probability),
            ("augment.brightness", a.brightness),
            ("augment.contrast", a.contrast),
            ("augment.saturation", a.saturation),
        ] {
            share(key, value)?;
        }
        check("augment.hue", a.hue.to_string(), (0.0..=0.5).contains(&a.hue), "0 to 0.5 turns are needed")?;
        for (name, probe) in [("full", &self.probe.full), ("few", &self.probe.few)] {
            probe.validate(&format!("probe.{name}"), self.dataset)?;
        }
        Ok(())
    }

    /// The probe of `protocol`.
    pub fn probe(&self, protocol: Protocol) -> &ProbeRecipe {
        match protocol {
            Protocol::Full => &self.probe.full,
            Protocol::Few => &self.probe.few,
        }
    }

    /// The recipe as JSON with its keys in order, the method's own among them: what records hold and hashes cover.
    ///
    /// # Errors
    /// It holds a number that JSON lacks.
    pub fn to_json(&self) -> Result<serde_json::Value, RecipeError> {
        // serde_json's map is ordered by key, which makes the text canonical.
        let mut value = serde_json::to_value(self)?;
        if let serde_json::Value::Object(keys) = &mut value {
            keys.extend(self.own.clone());
        }
        Ok(value)
    }
}

/// Lower-case hexadecimal sha256 of the canonical JSON of `value` (keys in order, no spaces).
pub fn hash_json(value: &serde_json::Value) -> String {
    hash_bytes(value.to_string().as_bytes())
}

/// Lower-case hexadecimal sha256.
pub fn hash_bytes(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
