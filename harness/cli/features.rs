//! `sdclr features`: what an encoder makes of given images.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tch::{Kind, Tensor};

use super::output::outln;
use crate::checkpoint;
use crate::fs::Inputs;
use crate::network::{Foreign, Network, NetworkSpec, Pass};
use crate::npy;
use crate::probe::images_at_once;
use crate::recipe::Depth;
use crate::suite::environment;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Layer {
    /// The pooled feature
    Backbone,
    /// The head's output, before any normalisation
    Head,
}

/// Write an encoder's features of given images
///
/// Eval mode, dense branch, images divided by 255. Width, stem, batch norms and head are read off the checkpoint, which may be
/// another program's (torchvision, solo-learn, MoCo, ...).
#[derive(Debug, Args)]
#[command(after_help = "Example:
  sdclr features model_2000.pt --network resnet18 --layer backbone --images images.npy --out features.npy
  sdclr features resnet50.pth --network resnet50 --normalize imagenet --layer backbone --images images.npy --out features.npy")]
pub(super) struct FeaturesArgs {
    /// A checkpoint, .pt or .safetensors
    checkpoint: PathBuf,
    /// Depth of the ResNet
    #[arg(long)]
    network: Depth,
    #[arg(long)]
    layer: Layer,
    /// uint8 [n, 3, H, W]
    #[arg(long, value_name = "FILE.npy")]
    images: PathBuf,
    /// float32 [n, C]
    #[arg(long, value_name = "FILE.npy")]
    out: PathBuf,
    #[command(flatten)]
    foreign: Foreign,
    /// cpu or cuda:N [default: CUDA where it is]
    #[arg(long)]
    device: Option<String>,
}

impl FeaturesArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let inputs = Inputs::default().file("the checkpoint", &*self.checkpoint).file("the images", &*self.images);
        inputs.spare("--out", &*self.out)?;
        let device = environment::device(self.device.as_deref())?;
        let fits = |shape: &[usize]| shape.len() == 4 && shape[1] == 3 && shape.iter().all(|side| *side > 0);
        let images = npy::read_uint8(&self.images, "[n, 3, H, W], none of them 0", fits)?;
        let state = checkpoint::read_encoder(&self.checkpoint)?.state;
        super::warn_not_finite(&state);
        let state = state.encoder(&self.foreign)?;
        let (state, spec) = match self.layer {
            Layer::Backbone => {
                let state = state.dense_backbone();
                let spec = NetworkSpec::detect_backbone(&state, self.network)?;
                (state, spec)
            }
            Layer::Head => {
                let spec = NetworkSpec::detect(&state, self.network)?;
                (state, spec)
            }
        };
        let network = Network::new(spec, 0, Kind::Float, device)?;
        network.load(&state)?;
        let at_once = images_at_once(images.size()[2] * images.size()[3]).min(256) as i64;
        let features = tch::no_grad(|| {
            let encode = |images: Tensor| network.forward(&images.to_device(device), &Pass::EVAL);
            Tensor::f_cat(&images.split(at_once, 0).into_iter().map(encode).collect::<Vec<_>>(), 0)
        })?;
        let spoiled = features.isfinite().logical_not().any_dim(1, false).to_kind(Kind::Int64).sum(Kind::Int64);
        let spoiled = spoiled.int64_value(&[]);
        if spoiled > 0 {
            tracing::warn!("the features of {spoiled} of {} images are not all finite", features.size()[0]);
        }
        npy::write(&self.out, &features)?;
        if let Some(normalization) = self.foreign.normalize {
            outln!("images normalised by {normalization}, as given")?;
        }
        outln!("{}: float32 {:?}", self.out.display(), features.size())?;
        Ok(ExitCode::SUCCESS)
    }
}
