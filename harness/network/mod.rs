//! ResNet with one or two batch norms per layer, its heads, and the pruning mask (REFERENCE.md "Networks", "Pruning").
//! In: a specification and a seed, or a state dict; uint8 images, which are scaled, normalised, laid out and rounded to the
//! pass's precision here and nowhere else. Out: features, and the state dict under the published names.

mod head;
mod layers;
mod mask;
mod names;
mod resnet;
mod state;

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

pub use mask::{Kept, Mask};
pub use names::{DDP_PREFIX, Foreign, Normalization};
pub use state::StateDict;

use crate::native::group::Group;
use crate::native::weights::WorkingWeights;
use crate::native::{self, NativeError, norm};
use crate::recipe::{Depth, Precision, Recipe, Stem, name_of};
use head::HeadLayers;
use layers::{Init, Item};
use resnet::Backbone;

/// A network could not be made or filled.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(
        "the checkpoint does not fit {network}: {differences} of its names, shapes or types differ, the first are\n{first}\n\
         check --network (or the recipe), or give the checkpoint that belongs to it"
    )]
    Mismatch { network: String, differences: usize, first: String },
    #[error("no {missing} in the checkpoint; a ResNet with published names has it: check that this is such a file")]
    NotAResnet { missing: String },
    #[error("the checkpoint holds no ResNet under a known prefix: its first names are {names}; {advice}")]
    NoEncoder { names: String, advice: String },
    #[error("the checkpoint holds several ResNets, behind '{found}'; name one of them with --prefix")]
    SeveralEncoders { found: String },
    #[error(
        "conv1.weight of the checkpoint has shape {found:?}; a ResNet has [width, 3, 7, 7] (ImageNet) or [width, 3, 3, 3] \
         (CIFAR)"
    )]
    Stem { found: Vec<i64> },
    #[error(
        "the checkpoint does not say how images are normalised; say it with --normalize imagenet, none or MEAN/STD, as its \
         training did"
    )]
    NotNormalized,
    #[error("the checkpoint says itself how images are normalised; leave --normalize out")]
    NormalizedTwice,
    #[error("the checkpoint has no {missing}, which the authors' names include; export it with --names torchvision")]
    NotPublished { missing: &'static str },
    #[error(transparent)]
    Native(#[from] NativeError),
    #[error("libtorch: {}", crate::native::said(.0))]
    Torch(#[from] tch::TchError),
}

/// What follows the backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// As many linear layers, the last to `output_dim` columns.
    Projection { layers: i64, output_dim: i64 },
    /// One linear layer.
    Classifier { classes: i64 },
    /// Nothing: the feature is the output.
    None,
}

/// Everything that fixes names and shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkSpec {
    pub depth: Depth,
    pub stem: Stem,
    pub width: i64,
    pub dual_bn: bool,
    pub head: Head,
}

/// Which set of batch norm a pass goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    Dense = 0,
    Pruned = 1,
}

/// What batch norm does in a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BnMode {
    /// Normalises by the running statistics and leaves them.
    Eval,
    /// Normalises by the batch's statistics; the running ones move by `momentum` and count `updates` batches.
    Train { momentum: f64, updates: i64 },
}

/// One way through the network.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    pub branch: Branch,
    /// The convolution weights to compute with, in the order of [`Network::prunable`]; by default the trained ones.
    pub weights: Option<&'a [Tensor]>,
    pub bn: BnMode,
    /// In what convolutions and linear layers compute.
    pub precision: Precision,
}

impl Pass<'_> {
    /// The dense branch by its running statistics, in float32: how encoders are evaluated.
    pub const EVAL: Pass<'static> =
        Pass { branch: Branch::Dense, weights: None, bn: BnMode::Eval, precision: Precision::Fp32 };
}

/// Where batch norm and what follows it are one operation of ours ([`crate::native::norm`]) instead of libtorch's: in
/// training in bfloat16, with channels a multiple of 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fused {
    Never,
    OnCuda,
    /// On the CPU too, slowly: how tests prove it.
    Always,
}

/// How batch norm is computed in training: by which operation, and over whose images.
#[derive(Debug, Clone)]
struct Norming {
    fused: Fused,
    /// The processes that have slices of one batch. Between several libtorch's operations compute it.
    group: Group,
}

impl Norming {
    fn fuses(&self, x: &Tensor) -> bool {
        let here = match self.fused {
            Fused::Never => false,
            Fused::OnCuda => x.device().is_cuda(),
            Fused::Always => true,
        };
        here && self.group.is_single() && norm::takes(x)
    }
}

impl Precision {
    /// What a pass hands from layer to layer: bfloat16, or `x` as it is. Every layer computes in the type of its input,
    /// so that this is all there is to a precision; TF32 is a switch of the GPU ([`crate::native::set_tf32`]).
    fn of_activations(self, x: &Tensor) -> Tensor {
        match self {
            Precision::Fp32 | Precision::Tf32 => x.shallow_clone(),
            Precision::Bf16 => x.to_kind(Kind::BFloat16),
        }
    }
}

impl NetworkSpec {
    /// The pre-training network of a recipe.
    pub fn of_recipe(recipe: &Recipe) -> Self {
        Self {
            depth: recipe.network,
            stem: recipe.stem,
            width: recipe.width,
            dual_bn: recipe.dual_bn,
            head: Head::Projection { layers: recipe.head_layers, output_dim: recipe.output_dim },
        }
    }

    /// The same backbone with single BN and a classifier: the network of the probe.
    pub fn probe(self, classes: i64) -> Self {
        Self { dual_bn: false, head: Head::Classifier { classes }, ..self }
    }

    /// The backbone that a state dict without prefix holds, given the depth. The stem is told by conv1's shape.
    ///
    /// # Errors
    /// There is no conv1 of a ResNet.
    pub fn detect_backbone(state: &StateDict, depth: Depth) -> Result<Self, NetworkError> {
        let conv1 = state.get("conv1.weight").map(Tensor::size);
        let conv1 = conv1.ok_or_else(|| NetworkError::NotAResnet { missing: "conv1.weight".into() })?;
        let (width, stem) = match conv1[..] {
            [width, 3, 7, 7] if width > 0 => (width, Stem::Imagenet),
            [width, 3, 3, 3] if width > 0 => (width, Stem::Cifar),
            _ => return Err(NetworkError::Stem { found: conv1 }),
        };
        Ok(Self { depth, stem, width, dual_bn: state.get("bn1.bn_list.0.weight").is_some(), head: Head::None })
    }

    /// The specification that a state dict without prefix was made with, given the depth, which names alone do not tell.
    ///
    /// # Errors
    /// A name that every such network has is missing.
    pub fn detect(state: &StateDict, depth: Depth) -> Result<Self, NetworkError> {
        let size = |name: &str, dimensions: usize| {
            let shape = state.get(name).map(Tensor::size).filter(|shape| shape.len() == dimensions);
            shape.ok_or_else(|| NetworkError::NotAResnet { missing: format!("{dimensions}-dimensional {name}") })
        };
        let last = [3, 2].map(|layers| (layers, format!("fc.fc{layers}.weight")));
        let head = match last.into_iter().find(|(_, name)| state.get(name).is_some()) {
            Some((layers, last)) => Head::Projection { layers, output_dim: size(&last, 2)?[0] },
            None => Head::Classifier { classes: size("fc.weight", 2)?[0] },
        };
        Ok(Self { head, ..Self::detect_backbone(state, depth)? })
    }

    /// Columns of the pooled feature.
    pub fn feature_dim(&self) -> i64 {
        self.depth.feature_dim(self.width)
    }
}

impl std::fmt::Display for NetworkSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let bn = if self.dual_bn { "dual" } else { "single" };
        write!(f, "{} (width {}, {} stem, {bn} BN, ", name_of(&self.depth), self.width, name_of(&self.stem))?;
        match self.head {
            Head::Projection { layers, output_dim } => write!(f, "projection head of {layers} layers to {output_dim})"),
            Head::Classifier { classes } => write!(f, "classifier of {classes} classes)"),
            Head::None => write!(f, "no head)"),
        }
    }
}

/// A ResNet and its head.
#[derive(Debug)]
pub struct Network {
    spec: NetworkSpec,
    /// Of weights and statistics.
    kind: Kind,
    norming: Norming,
    backbone: Backbone,
    head: HeadLayers,
}

impl Network {
    /// A freshly initialised network; each tensor's numbers are addressed by `seed` and its name.
    pub fn new(spec: NetworkSpec, seed: u64, kind: Kind, device: Device) -> Result<Self, NetworkError> {
        let init = Init { seed, kind, device };
        let (backbone, head) = (Backbone::new(&init, &spec)?, HeadLayers::new(&init, &spec)?);
        let norming = Norming { fused: Fused::Never, group: Group::default() };
        Ok(Self { spec, kind, norming, backbone, head })
    }

    /// The same backbone under a fresh head, whose numbers are addressed by a `seed` of its own.
    pub fn with_fresh_head(self, seed: u64) -> Result<Self, NetworkError> {
        let init = Init { seed, kind: self.kind, device: self.device() };
        Ok(Self { head: HeadLayers::new(&init, &self.spec)?, ..self })
    }

    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// Has batch norm fused from here on; at first it never is. Kernels are compiled for the network's device.
    ///
    /// # Errors
    /// They cannot be.
    pub fn set_fused(&mut self, fused: Fused) -> Result<(), NetworkError> {
        if fused != Fused::Never {
            norm::load(self.device())?;
        }
        self.norming.fused = fused;
        Ok(())
    }

    /// From here on the images of a pass in training are this process's slice of a batch of the `group`.
    pub fn set_group(&mut self, group: Group) {
        self.norming.group = group;
    }

    /// The processes that have slices of one batch.
    pub fn group(&self) -> &Group {
        &self.norming.group
    }

    /// Of weights, statistics and outputs.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where the network's tensors live.
    pub fn device(&self) -> Device {
        self.backbone.device()
    }

    /// Images `[N, 3, H, W]` to pooled features `[N, C]`, in bfloat16 where the pass is. Images are uint8; floating-point
    /// numbers, which tests have, are taken to be in `[0, 1]` already.
    pub fn backbone(&self, images: &Tensor, pass: &Pass) -> Tensor {
        self.backbone.forward(images, pass, &self.norming)
    }

    /// Pooled features `[N, C]` to the head's output, before any normalisation.
    pub fn head(&self, features: &Tensor, pass: &Pass) -> Tensor {
        self.head.forward(features, pass, &self.norming).to_kind(self.kind)
    }

    /// Images as [`Network::backbone`] takes them to the head's output, which has the type of the weights in every precision.
    pub fn forward(&self, images: &Tensor, pass: &Pass) -> Tensor {
        self.head(&self.backbone(images, pass), pass)
    }

    fn visit<'a>(&'a self, visitor: &mut dyn FnMut(String, Item<'a>)) {
        self.backbone.visit(visitor);
        self.head.visit(visitor);
    }

    /// The trained tensors with their names, in state-dict order. They share storage with the network.
    pub fn parameters(&self) -> StateDict {
        let mut parameters = Vec::new();
        self.visit(&mut |name, item| {
            if let Item::Parameter(tensor) | Item::Prunable(tensor) = item {
                parameters.push((name, tensor.shallow_clone()));
            }
        });
        parameters.into_iter().collect()
    }

    /// The convolution weights of the backbone, stem and down-sampling included, in state-dict order.
    pub fn prunable(&self) -> Vec<&Tensor> {
        let mut weights = Vec::new();
        self.visit(&mut |_, item| {
            if let Item::Prunable(weight) = item {
                weights.push(weight);
            }
        });
        weights
    }

    /// The names of [`Network::prunable`].
    pub fn prunable_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        self.visit(&mut |name, item| {
            if let Item::Prunable(_) = item {
                names.push(name);
            }
        });
        names
    }

    /// `num_batches_tracked` of every batch norm, in state-dict order.
    pub fn counters(&self) -> Vec<&Cell<i64>> {
        let mut counters = Vec::new();
        self.visit(&mut |_, item| {
            if let Item::Counter(count) = item {
                counters.push(count);
            }
        });
        counters
    }

    /// The convolution weights of a step in `precision`, dense and, where there is a mask, pruned, made all at once.
    ///
    /// # Errors
    /// The mask is of another network.
    pub fn working_weights(&self, precision: Precision, mask: Option<&Mask>) -> Result<WorkingWeights, NetworkError> {
        let weights: Vec<Tensor> = self.prunable().into_iter().map(Tensor::shallow_clone).collect();
        let masks = mask.map(Mask::parts).unwrap_or_default();
        Ok(native::weights::working_weights(&weights, masks, precision == Precision::Bf16)?)
    }

    /// A copy of the whole state under the published names (no `module.`).
    pub fn state(&self) -> StateDict {
        let mut state = Vec::new();
        self.visit(&mut |name, item| {
            let tensor = match item {
                Item::Parameter(tensor) | Item::Prunable(tensor) | Item::Buffer(tensor) => tensor.detach().copy(),
                Item::Counter(count) => Tensor::from(count.get()),
            };
            state.push((name, tensor));
        });
        state.into_iter().collect()
    }

    /// Fills the network from `state`, names without prefix.
    ///
    /// # Errors
    /// Any name is missing or unknown, any shape differs, or what should be floating-point numbers is not; then nothing was changed.
    pub fn load(&self, state: &StateDict) -> Result<(), NetworkError> {
        let mut differences = Vec::new();
        let mut ours = std::collections::HashSet::new();
        self.visit(&mut |name, item| {
            let (expected, floating) = match item {
                Item::Parameter(tensor) | Item::Prunable(tensor) | Item::Buffer(tensor) => (tensor.size(), true),
                Item::Counter(_) => (vec![], false),
            };
            match state.get(&name).map(|found| (found.size(), found)) {
                None => differences.push(format!("  {name}: expected {expected:?}, not in the checkpoint")),
                Some((found, _)) if found != expected => {
                    differences.push(format!("  {name}: expected {expected:?}, found {found:?}"));
                }
                Some((_, found)) if floating && !found.is_floating_point() => {
                    differences.push(format!("  {name}: expected floating-point numbers, found {:?}", found.kind()));
                }
                Some(_) => {}
            }
            ours.insert(name);
        });
        for (name, tensor) in state.iter().filter(|(name, _)| !ours.contains(*name)) {
            differences.push(format!("  {name}: not expected, found {:?}", tensor.size()));
        }
        if !differences.is_empty() {
            let first = differences[..differences.len().min(8)].join("\n");
            return Err(NetworkError::Mismatch {
                network: self.spec.to_string(),
                differences: differences.len(),
                first,
            });
        }
        tch::no_grad(|| {
            self.visit(&mut |name, item| match (state.get(&name), item) {
                (Some(new), Item::Parameter(old) | Item::Prunable(old) | Item::Buffer(old)) => {
                    old.shallow_clone().copy_(new);
                }
                (Some(new), Item::Counter(count)) => count.set(new.int64_value(&[])),
                (None, _) => {}
            });
        });
        Ok(())
    }
}
