//! The names of state dicts: those of published files, what the probe makes of a pre-training checkpoint (REFERENCE.md
//! "Networks" and "Evaluation"), and those under which other programs write a ResNet.

use tch::{Kind, Tensor};

use super::{NetworkError, StateDict};
use crate::text::printable;

/// What DistributedDataParallel puts before every name.
pub const DDP_PREFIX: &str = "module.";

/// What wrappers and training programs put before an encoder's names, in any order: DistributedDataParallel,
/// torch.compile, solo-learn, MoCo.
const PREFIXES: [&str; 4] = [DDP_PREFIX, "_orig_mod.", "backbone.", "encoder_q."];

/// How a network scales its input: mean and deviation of each channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalization {
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

impl Normalization {
    pub const IMAGENET: Self = Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
    pub const NONE: Self = Self { mean: [0.0; 3], std: [1.0; 3] };
}

impl std::str::FromStr for Normalization {
    type Err = String;

    /// `imagenet`, `none`, or three means and three deviations: `M,M,M/S,S,S`.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected imagenet, none, or MEAN/STD as in 0.5,0.5,0.5/0.25,0.25,0.25".to_owned();
        match text {
            "imagenet" => return Ok(Self::IMAGENET),
            "none" => return Ok(Self::NONE),
            _ => {}
        }
        let numbers = |text: &str| -> Option<[f64; 3]> {
            let numbers: Vec<f64> = text.split(',').map(|number| number.trim().parse().ok()).collect::<Option<_>>()?;
            numbers.try_into().ok()
        };
        let (mean, std) = text.split_once('/').ok_or_else(expected)?;
        let (mean, std) = numbers(mean).zip(numbers(std)).ok_or_else(expected)?;
        let usable = |number: &f64| number.is_finite() && *number > 0.0;
        if !mean.iter().all(|number| number.is_finite()) || !std.iter().all(usable) {
            return Err("the means must be finite, the deviations finite and above 0".to_owned());
        }
        Ok(Self { mean, std })
    }
}

impl std::fmt::Display for Normalization {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let join = |numbers: [f64; 3]| numbers.map(|number| number.to_string()).join(",");
        write!(f, "{}/{}", join(self.mean), join(self.std))
    }
}

/// What a caller says about an encoder that another program wrote.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Foreign {
    /// What stands before conv1.weight in the checkpoint, where it is not found by itself (module., _orig_mod., backbone. and encoder_q. are)
    #[arg(long, value_name = "NAMES")]
    pub prefix: Option<String>,
    /// How images in [0, 1] are normalised, where the checkpoint does not say: imagenet, none or MEAN/STD, as in 0.5,0.5,0.5/0.25,0.25,0.25
    #[arg(long, value_name = "HOW")]
    pub normalize: Option<Normalization>,
}

impl StateDict {
    /// The prefix that every name carries: `module.` or nothing.
    pub fn ddp_prefix(&self) -> &'static str {
        if !self.is_empty() && self.names().all(|name| name.starts_with(DDP_PREFIX)) { DDP_PREFIX } else { "" }
    }

    /// The same tensors without `prefix`.
    pub fn without_prefix(&self, prefix: &str) -> Self {
        self.iter()
            .map(|(name, tensor)| (name.strip_prefix(prefix).unwrap_or(name).to_owned(), tensor.shallow_clone()))
            .collect()
    }

    /// The same tensors with `prefix` before each name.
    pub fn with_prefix(&self, prefix: &str) -> Self {
        self.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone())).collect()
    }

    /// [`StateDict::resnet`] with its normalisation, which the file has or the caller gives.
    ///
    /// # Errors
    /// No ResNet is found; both have a normalisation, or neither.
    pub fn encoder(&self, foreign: &Foreign) -> Result<Self, NetworkError> {
        let mut state = self.resnet(foreign.prefix.as_deref())?;
        match (state.has_normalization(), foreign.normalize) {
            (true, Some(_)) => return Err(NetworkError::NormalizedTwice),
            (false, None) => return Err(NetworkError::NotNormalized),
            (true, None) => {}
            (false, Some(Normalization { mean, std })) => {
                for (name, values) in [("normalize.mean", mean), ("normalize.std", std)] {
                    state.insert(name.to_owned(), Tensor::from_slice(&values).to_kind(Kind::Float));
                }
            }
        }
        Ok(state)
    }

    /// The ResNet in a state dict of this or another program, under the names used here: without prefix (the given one, or
    /// a chain of the known), with zeros for the counters of batch norm where there are none. Tensors outside the prefix
    /// are left out.
    ///
    /// # Errors
    /// No prefix leads to a ResNet, or more than one does.
    pub fn resnet(&self, prefix: Option<&str>) -> Result<Self, NetworkError> {
        let prefix = match prefix {
            Some(prefix) => prefix,
            None => self.encoder_prefix()?,
        };
        let mut state: Self = self
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.shallow_clone())))
            .collect();
        if !state.holds_resnet() {
            return Err(self.no_resnet());
        }
        if !state.names().any(|name| name.ends_with(".num_batches_tracked")) {
            let norms: Vec<String> =
                state.names().filter_map(|name| Some(name.strip_suffix(".running_mean")?.to_owned())).collect();
            for norm in norms {
                state.insert(format!("{norm}.num_batches_tracked"), Tensor::from(0_i64));
            }
        }
        Ok(state)
    }

    /// Whether the state says how images are normalised.
    pub fn has_normalization(&self) -> bool {
        self.names().any(|name| name.starts_with("normalize."))
    }

    /// What stands before the names of the one ResNet in a state dict.
    fn encoder_prefix(&self) -> Result<&str, NetworkError> {
        let is_known = |prefix: &&str| {
            let mut rest = *prefix;
            while let Some(after) = PREFIXES.iter().find_map(|known| rest.strip_prefix(known)) {
                rest = after;
            }
            rest.is_empty()
        };
        let resnets = self.resnets();
        let known: Vec<&str> = resnets.iter().copied().filter(is_known).collect();
        match known[..] {
            [prefix] => Ok(prefix),
            [] => Err(self.no_resnet()),
            [..] => {
                let found = known.iter().map(|prefix| printable(prefix)).collect::<Vec<_>>().join(", ");
                Err(NetworkError::SeveralEncoders { found })
            }
        }
    }

    /// The prefixes behind which the names of a ResNet stand.
    fn resnets(&self) -> Vec<&str> {
        let prefixes = self.names().filter_map(|name| name.strip_suffix("conv1.weight"));
        prefixes
            .filter(|prefix| {
                let has = |name: &str| self.get(&format!("{prefix}{name}")).is_some();
                has("layer1.0.conv1.weight") && has("layer4.0.conv1.weight")
            })
            .collect()
    }

    fn holds_resnet(&self) -> bool {
        self.resnets().contains(&"")
    }

    /// The error that shows what there is instead.
    fn no_resnet(&self) -> NetworkError {
        let shown = |names: Vec<&str>| names.into_iter().map(printable).collect::<Vec<_>>().join(", ");
        let others: Vec<&str> = self.resnets().into_iter().filter(|prefix| !prefix.is_empty()).take(3).collect();
        let advice = match others.is_empty() {
            true => "name what stands before conv1.weight with --prefix, if the file holds a ResNet".to_owned(),
            false => format!("a ResNet stands behind {}: name it with --prefix", shown(others)),
        };
        NetworkError::NoEncoder { names: shown(self.names().take(5).collect()), advice }
    }

    /// The dense branch of the backbone under single-BN names: no head, no pruned batch norm. What belongs to no ResNet,
    /// as the prototypes of SwAV, is left out too.
    pub fn dense_backbone(&self) -> Self {
        let belongs = |name: &str| {
            ["conv1.", "bn1.", "layer", "normalize."].iter().any(|start| name.starts_with(start))
                && !name.contains(".bn_list.1.")
        };
        self.iter()
            .filter(|(name, _)| belongs(name))
            .map(|(name, tensor)| {
                let name = name
                    .replace(".bn_list.0.", ".")
                    .replace("downsample.conv.", "downsample.0.")
                    .replace("downsample.bn.", "downsample.1.");
                (name, tensor.shallow_clone())
            })
            .collect()
    }

    /// The tensors that hold a number which is not finite, by name.
    pub fn not_finite(&self) -> Vec<&str> {
        let finite = |tensor: &Tensor| {
            !tensor.is_floating_point() || tensor.numel() == 0 || tensor.isfinite().all().int64_value(&[]) != 0
        };
        self.iter().filter(|(_, tensor)| !finite(tensor)).map(|(name, _)| name).collect()
    }
}
