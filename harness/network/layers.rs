//! The layers that a ResNet and its heads are made of, with the names and the initialisation of the published code.

use std::cell::Cell;

use tch::{Device, Kind, Tensor};

use super::{BnMode, NetworkError, Norming, Pass};
use crate::native::norm::{self, After};
use crate::random;

/// A part of a state dict, as a layer shows it to a visitor.
pub(super) enum Item<'a> {
    /// Trained.
    Parameter(&'a Tensor),
    /// Trained, and a convolution of the backbone: the magnitude pruning sees it.
    Prunable(&'a Tensor),
    /// Part of the state but not trained.
    Buffer(&'a Tensor),
    /// `num_batches_tracked`.
    Counter(&'a Cell<i64>),
}

/// Calls back with each named part, in the order of the published state dict.
pub(super) type Visitor<'v, 'a> = &'v mut dyn FnMut(String, Item<'a>);

/// Where fresh tensors are made, and the numbers they are filled with: each tensor draws from a generator of its own,
/// addressed by the seed and its name, so that no layer's start depends on another's.
pub(super) struct Init {
    pub seed: u64,
    pub kind: Kind,
    pub device: Device,
}

impl Init {
    fn place(&self, values: Tensor, shape: &[i64]) -> Tensor {
        values.view(shape).to_kind(self.kind).to_device(self.device)
    }

    /// Normal with deviation `std`.
    fn normal(&self, name: &str, shape: &[i64], std: f64) -> Result<Tensor, NetworkError> {
        Ok(self.place(random::normal(shape.iter().product(), random::addressed_seed(self.seed, name))? * std, shape))
    }

    /// Uniform in `[-bound, bound)`.
    fn uniform(&self, name: &str, shape: &[i64], bound: f64) -> Result<Tensor, NetworkError> {
        Ok(self.place(
            (random::uniform(shape.iter().product(), random::addressed_seed(self.seed, name))? * 2.0 - 1.0) * bound,
            shape,
        ))
    }

    fn full(&self, shape: &[i64], value: f64) -> Tensor {
        Tensor::full(shape, value, (self.kind, self.device))
    }
}

/// `[N, C, H, W]` values with the channels innermost in memory; convolutions are faster on them, also on a CPU.
pub(super) fn channels_last(tensor: &Tensor) -> Tensor {
    tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// A convolution without bias. Its place in the mask is the order in which convolutions are visited.
#[derive(Debug)]
pub(super) struct Conv {
    weight: Tensor,
    stride: i64,
    padding: i64,
    index: usize,
}

impl Conv {
    /// Kaiming normal, fan-out, ReLU. `count` numbers the convolutions of a network.
    pub fn new(
        init: &Init,
        name: &str,
        [output, input, side]: [i64; 3],
        stride: i64,
        padding: i64,
        count: &mut usize,
    ) -> Result<Self, NetworkError> {
        let fan_out = (output * side * side) as f64;
        let weight = init.normal(&format!("{name}.weight"), &[output, input, side, side], (2.0 / fan_out).sqrt())?;
        let index = *count;
        *count += 1;
        Ok(Self { weight: channels_last(&weight).set_requires_grad(true), stride, padding, index })
    }

    /// Computes in the type of `x`, with its own of `weights` where they are given.
    pub fn forward(&self, x: &Tensor, weights: Option<&[Tensor]>) -> Tensor {
        let weight = &weights.map_or(&self.weight, |weights| &weights[self.index]).to_kind(x.kind());
        let convolve =
            |x: &Tensor, stride| x.conv2d(weight, None::<&Tensor>, [stride; 2], [self.padding; 2], [1, 1], 1);
        if self.stride > 1 && weight.size()[2] == 1 && x.device() == Device::Cpu {
            // The pixels that a strided 1x1 convolution looks at, and a plain one over them. oneDNN 3.10 writes past its
            // buffer in the strided form's weight gradient when channels are few and innermost.
            let seen = x.slice(2, None, None, self.stride).slice(3, None, None, self.stride);
            return convolve(&channels_last(&seen), 1);
        }
        convolve(x, self.stride)
    }

    pub fn visit<'a>(&'a self, name: &str, visitor: Visitor<'_, 'a>) {
        visitor(format!("{name}.weight"), Item::Prunable(&self.weight));
    }
}

/// A fully connected layer.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// PyTorch's default: weight and bias uniform in ±1/sqrt(fan_in).
    pub fn new(init: &Init, name: &str, input: i64, output: i64, bias: bool) -> Result<Self, NetworkError> {
        let bound = 1.0 / (input as f64).sqrt();
        let weight = init.uniform(&format!("{name}.weight"), &[output, input], bound)?.set_requires_grad(true);
        let bias = match bias {
            true => Some(init.uniform(&format!("{name}.bias"), &[output], bound)?.set_requires_grad(true)),
            false => None,
        };
        Ok(Self { weight, bias })
    }

    /// The probe's classifier: weight N(0, 0.01), bias 0.
    pub fn classifier(init: &Init, name: &str, input: i64, classes: i64) -> Result<Self, NetworkError> {
        let weight = init.normal(&format!("{name}.weight"), &[classes, input], 0.01)?.set_requires_grad(true);
        Ok(Self { weight, bias: Some(init.full(&[classes], 0.0).set_requires_grad(true)) })
    }

    /// Computes in the type of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(x.kind()));
        x.linear(&self.weight.to_kind(x.kind()), bias.as_ref())
    }

    pub fn visit<'a>(&'a self, name: &str, visitor: Visitor<'_, 'a>) {
        visitor(format!("{name}.weight"), Item::Parameter(&self.weight));
        if let Some(bias) = &self.bias {
            visitor(format!("{name}.bias"), Item::Parameter(bias));
        }
    }
}

/// Batch norm, once or once per branch (REFERENCE.md "Networks", Dual BN).
#[derive(Debug)]
pub(super) struct BatchNorm {
    branches: Vec<BranchNorm>,
}

#[derive(Debug)]
struct BranchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Cell<i64>,
}

const BN_EPSILON: f64 = 1e-5;

impl BatchNorm {
    pub fn new(init: &Init, channels: i64, dual: bool) -> Self {
        let branch = || BranchNorm {
            weight: init.full(&[channels], 1.0).set_requires_grad(true),
            bias: init.full(&[channels], 0.0).set_requires_grad(true),
            running_mean: init.full(&[channels], 0.0),
            running_var: init.full(&[channels], 1.0),
            num_batches_tracked: Cell::new(0),
        };
        Self { branches: (0..if dual { 2 } else { 1 }).map(|_| branch()).collect() }
    }

    /// Batch norm and what follows it. Gives the type of `x`; sums and statistics are those of the weight's type, also
    /// for bfloat16 in and out.
    pub fn forward(&self, x: &Tensor, pass: &Pass, norming: &Norming, after: After) -> Tensor {
        // With one shared batch norm both branches use it.
        let bn = &self.branches[(pass.branch as usize).min(self.branches.len() - 1)];
        let (training, momentum) = match pass.bn {
            BnMode::Eval => (false, 0.0),
            BnMode::Train { momentum, updates } => {
                bn.num_batches_tracked.set(bn.num_batches_tracked.get() + updates);
                (true, momentum)
            }
        };
        let BranchNorm { weight, bias, running_mean, running_var, .. } = bn;
        let norm = norm::BatchNorm { weight, bias, running_mean, running_var, epsilon: BN_EPSILON, momentum };
        if training && norming.fuses(x) {
            return norm::batch_norm(x, &norm, after);
        }
        let [weight, bias, mean, var] = [weight, bias, running_mean, running_var].map(Some);
        let over_ranks = if training { norming.group.batch_norm(x, &norm) } else { None };
        let mut y =
            over_ranks.unwrap_or_else(|| x.batch_norm(weight, bias, mean, var, training, momentum, BN_EPSILON, true));
        match after {
            After::Nothing => y,
            After::Relu => y.relu_(),
            After::AddRelu(residual) => y.g_add_(residual).relu_(),
        }
    }

    pub fn visit<'a>(&'a self, name: &str, visitor: Visitor<'_, 'a>) {
        for (index, bn) in self.branches.iter().enumerate() {
            let name = match self.branches.len() {
                1 => name.to_owned(),
                _ => format!("{name}.bn_list.{index}"),
            };
            visitor(format!("{name}.weight"), Item::Parameter(&bn.weight));
            visitor(format!("{name}.bias"), Item::Parameter(&bn.bias));
            visitor(format!("{name}.running_mean"), Item::Buffer(&bn.running_mean));
            visitor(format!("{name}.running_var"), Item::Buffer(&bn.running_var));
            visitor(format!("{name}.num_batches_tracked"), Item::Counter(&bn.num_batches_tracked));
        }
    }
}

/// Scaling to `[0, 1]` and then `(x - mean) / std` per channel: the first thing that a network does with images.
#[derive(Debug)]
pub(super) struct Normalize {
    mean: Tensor,
    std: Tensor,
}

impl Normalize {
    pub fn new(init: &Init) -> Self {
        let vector = |values: [f64; 3]| Tensor::from_slice(&values).to_kind(init.kind).to_device(init.device);
        Self { mean: vector([0.485, 0.456, 0.406]), std: vector([0.229, 0.224, 0.225]) }
    }

    pub fn device(&self) -> Device {
        self.mean.device()
    }

    /// Images `[N, 3, H, W]`, uint8; floating-point numbers are taken to be in `[0, 1]` already.
    pub fn forward(&self, images: &Tensor) -> Tensor {
        let x = match images.kind() {
            Kind::Uint8 => images.to_kind(self.mean.kind()) / 255.0,
            _ => images.shallow_clone(),
        };
        (x - self.mean.view([1, 3, 1, 1])) / self.std.view([1, 3, 1, 1])
    }

    pub fn visit<'a>(&'a self, name: &str, visitor: Visitor<'_, 'a>) {
        visitor(format!("{name}.mean"), Item::Buffer(&self.mean));
        visitor(format!("{name}.std"), Item::Buffer(&self.std));
    }
}
