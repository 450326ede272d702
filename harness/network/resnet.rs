//! The backbone: ResNet with torchvision's layer names (REFERENCE.md "Networks").

use clap::ValueEnum;
use tch::{Device, Tensor};

use super::layers::{BatchNorm, Conv, Init, Normalize, Visitor, channels_last};
use super::{NetworkError, NetworkSpec, Norming, Pass, StateDict};
use crate::native::norm::After;
use crate::recipe::{Depth, Stem};

impl Depth {
    /// Blocks per stage, and whether they are bottlenecks.
    fn blocks(self) -> ([usize; 4], bool) {
        match self {
            Depth::Resnet10 => ([1, 1, 1, 1], false),
            Depth::Resnet18 => ([2, 2, 2, 2], false),
            Depth::Resnet34 => ([3, 4, 6, 3], false),
            Depth::Resnet50 => ([3, 4, 6, 3], true),
            Depth::Resnet101 => ([3, 4, 23, 3], true),
            Depth::Resnet152 => ([3, 8, 36, 3], true),
        }
    }

    /// The depth whose blocks `state` holds, names without prefix; `None` where there is no such.
    pub fn of_state(state: &StateDict) -> Option<Self> {
        let has = |stage: usize, block: usize, convolution: usize| {
            state.get(&format!("layer{}.{block}.conv{convolution}.weight", stage + 1)).is_some()
        };
        Self::value_variants().iter().copied().find(|depth| {
            let (blocks, bottleneck) = depth.blocks();
            let fits = |(stage, &count): (usize, &usize)| has(stage, count - 1, 2) && !has(stage, count, 2);
            blocks.iter().enumerate().all(fits) && has(0, 0, 3) == bottleneck
        })
    }

    /// Channels of the pooled feature for a first stage of `width`: 512 for ResNet-18 of width 64, 2048 for ResNet-50.
    pub fn feature_dim(self, width: i64) -> i64 {
        width * 8 * if self.blocks().1 { 4 } else { 1 }
    }
}

/// A convolution and the batch norm behind it, which a block knows under two names.
#[derive(Debug)]
struct ConvBn {
    conv: Conv,
    bn: BatchNorm,
    conv_name: String,
    bn_name: String,
}

impl ConvBn {
    fn forward(&self, x: &Tensor, pass: &Pass, norming: &Norming, after: After) -> Tensor {
        self.bn.forward(&self.conv.forward(x, pass.weights), pass, norming, after)
    }

    fn visit<'a>(&'a self, visitor: Visitor<'_, 'a>) {
        self.conv.visit(&self.conv_name, visitor);
        self.bn.visit(&self.bn_name, visitor);
    }
}

/// BasicBlock (two 3x3 convolutions) or Bottleneck (1x1, 3x3 with the stride, 1x1), around a shortcut.
#[derive(Debug)]
struct Block {
    layers: Vec<ConvBn>,
    downsample: Option<ConvBn>,
}

impl Block {
    fn forward(&self, x: &Tensor, pass: &Pass, norming: &Norming) -> Tensor {
        let shortcut = self.downsample.as_ref().map(|downsample| downsample.forward(x, pass, norming, After::Nothing));
        let mut y = x.shallow_clone();
        for (index, layer) in self.layers.iter().enumerate() {
            let last = index + 1 == self.layers.len();
            let after = if last { After::AddRelu(shortcut.as_ref().unwrap_or(x)) } else { After::Relu };
            y = layer.forward(&y, pass, norming, after);
        }
        y
    }
}

#[derive(Debug)]
pub(super) struct Backbone {
    normalize: Normalize,
    stem: ConvBn,
    pool: bool,
    stages: Vec<Vec<Block>>,
}

impl Backbone {
    pub fn new(init: &Init, spec: &NetworkSpec) -> Result<Self, NetworkError> {
        let mut count = 0;
        let mut conv_bn = |conv_name: String, bn_name: String, shape: [i64; 3], stride: i64| {
            let padding = shape[2] / 2;
            let conv = Conv::new(init, &conv_name, shape, stride, padding, &mut count)?;
            Ok::<_, NetworkError>(ConvBn { conv, bn: BatchNorm::new(init, shape[0], spec.dual_bn), conv_name, bn_name })
        };
        let (side, stride) = match spec.stem {
            Stem::Cifar => (3, 1),
            Stem::Imagenet => (7, 2),
        };
        let stem = conv_bn("conv1".into(), "bn1".into(), [spec.width, 3, side], stride)?;

        let (blocks, bottleneck) = spec.depth.blocks();
        let expansion = if bottleneck { 4 } else { 1 };
        let mut channels = spec.width;
        let mut stages = Vec::new();
        for (stage, &count) in blocks.iter().enumerate() {
            let planes = spec.width << stage;
            let output = planes * expansion;
            let mut stage_blocks = Vec::new();
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = format!("layer{}.{block}", stage + 1);
                // Shape and stride of each convolution, in order.
                let shapes = match bottleneck {
                    false => vec![([planes, channels, 3], stride), ([planes, planes, 3], 1)],
                    true => vec![([planes, channels, 1], 1), ([planes, planes, 3], stride), ([output, planes, 1], 1)],
                };
                let layers = shapes
                    .into_iter()
                    .enumerate()
                    .map(|(i, (shape, stride))| {
                        conv_bn(format!("{name}.conv{}", i + 1), format!("{name}.bn{}", i + 1), shape, stride)
                    })
                    .collect::<Result<_, _>>()?;
                let downsample = if stride != 1 || channels != output {
                    let (conv, bn) = if spec.dual_bn { ("conv", "bn") } else { ("0", "1") };
                    let [conv, bn] = [conv, bn].map(|part| format!("{name}.downsample.{part}"));
                    Some(conv_bn(conv, bn, [output, channels, 1], stride)?)
                } else {
                    None
                };
                channels = output;
                stage_blocks.push(Block { layers, downsample });
            }
            stages.push(stage_blocks);
        }
        Ok(Self { normalize: Normalize::new(init), stem, pool: spec.stem == Stem::Imagenet, stages })
    }

    /// Images `[N, 3, H, W]` (uint8, or in `[0, 1]`) to pooled features `[N, C]`.
    pub fn forward(&self, images: &Tensor, pass: &Pass, norming: &Norming) -> Tensor {
        let x = pass.precision.of_activations(&channels_last(&self.normalize.forward(images)));
        let mut x = self.stem.forward(&x, pass, norming, After::Relu);
        if self.pool {
            x = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        }
        for block in self.stages.iter().flatten() {
            x = block.forward(&x, pass, norming);
        }
        x.adaptive_avg_pool2d([1, 1]).flatten(1, -1)
    }

    pub fn device(&self) -> Device {
        self.normalize.device()
    }

    pub fn visit<'a>(&'a self, visitor: Visitor<'_, 'a>) {
        self.normalize.visit("normalize", visitor);
        self.stem.visit(visitor);
        for block in self.stages.iter().flatten() {
            block.layers.iter().chain(&block.downsample).for_each(|layer| layer.visit(visitor));
        }
    }
}
