//! Our encoders in the form that other programs take. In: the weights of any checkpoint of a ResNet with published names.
//! Out: a state dict under the authors' names or torchvision's, and the Python that loads it (REFERENCE.md "Networks").

use std::path::Path;

use super::{Root, Weights};
use crate::network::{DDP_PREFIX, Head, NetworkError, NetworkSpec, StateDict};
use crate::recipe::{Depth, Stem, name_of};

/// Whose names the tensors get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Names {
    /// The authors': {epoch, state_dict} with both batch norms and the head
    Published,
    /// torchvision's: the dense branch of the backbone; the head only where it is a classifier
    Torchvision,
}

/// What is to be written.
#[derive(Debug)]
pub struct Export {
    pub state: StateDict,
    /// What stands at the root of a PyTorch file.
    pub root: Root,
    pub spec: NetworkSpec,
    names: Names,
}

/// How the exported file is read in Python.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The zip format of torch.save
    TorchPt,
    /// Names and tensors alone
    Safetensors,
}

impl Export {
    /// Renames `weights`; the tensors are shared, not copied.
    ///
    /// Published names carry `module.`, but for a classifier behind the CIFAR stem, as the authors' files do.
    /// Torchvision's have no `normalize`, no pruned batch norm and no projection head.
    ///
    /// # Errors
    /// The weights are not those of a ResNet, or lack what the authors' names include.
    pub fn new(weights: &Weights, names: Names) -> Result<Self, NetworkError> {
        let plain = weights.state.resnet(None)?;
        let depth = Depth::of_state(&plain)
            .ok_or_else(|| NetworkError::NotAResnet { missing: "layer1 to layer4 of a known depth".into() })?;
        let headless = !plain.names().any(|name| name.starts_with("fc."));
        let spec = match headless {
            true => NetworkSpec::detect_backbone(&plain, depth)?,
            false => NetworkSpec::detect(&plain, depth)?,
        };
        let is_classifier = matches!(spec.head, Head::Classifier { .. });
        let (state, root) = match names {
            Names::Published if headless => return Err(NetworkError::NotPublished { missing: "head" }),
            Names::Published if !plain.has_normalization() => {
                return Err(NetworkError::NotPublished { missing: "normalize.mean and normalize.std" });
            }
            Names::Published => {
                let bare = is_classifier && spec.stem == Stem::Cifar;
                let prefix = if bare { "" } else { DDP_PREFIX };
                (plain.with_prefix(prefix), Root::Checkpoint { epoch: weights.epoch })
            }
            Names::Torchvision => {
                let classifier = plain.iter().filter(|(name, _)| is_classifier && name.starts_with("fc."));
                let classifier = classifier.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
                let backbone = plain.dense_backbone().into_iter().filter(|(name, _)| !name.starts_with("normalize."));
                (backbone.chain(classifier).collect(), Root::State)
            }
        };
        Ok(Self { state, root, spec, names })
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.state.iter().map(|(_, tensor)| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// A tensor of a type that the format lacks, and everything that the disk may refuse.
    pub fn write(&self, path: &Path, format: Format) -> Result<(), super::CheckpointError> {
        match format {
            Format::TorchPt => super::torch_pt_writer::write(path, self.root, &self.state),
            Format::Safetensors => super::write_weights(path, &self.state),
        }
    }

    /// The lines of Python that load the file at `path`.
    pub fn python(&self, path: &Path, format: Format) -> String {
        // Quoted as JSON, which Python reads too.
        let path = serde_json::Value::from(path.display().to_string()).to_string();
        let load = match format {
            Format::TorchPt => format!("torch.load({path})"),
            Format::Safetensors => format!("safetensors.torch.load_file({path})"),
        };
        match (self.names, format) {
            (Names::Published, Format::TorchPt) => format!("state = {load}[\"state_dict\"]\n"),
            (Names::Published, Format::Safetensors) => format!("state = {load}\n"),
            (Names::Torchvision, _) => self.torchvision_python(&load),
        }
    }

    /// What to change in torchvision's network so that it takes the weights, all of them.
    fn torchvision_python(&self, load: &str) -> String {
        let NetworkSpec { depth, stem, width, head, .. } = self.spec;
        let classes = match head {
            Head::Classifier { classes } => format!("num_classes={classes}"),
            Head::Projection { .. } | Head::None => String::new(),
        };
        let mut lines = vec![match depth {
            Depth::Resnet10 => {
                let arguments = ["torchvision.models.resnet.BasicBlock", "[1, 1, 1, 1]", &classes];
                let arguments: Vec<_> = arguments.into_iter().filter(|argument| !argument.is_empty()).collect();
                format!("model = torchvision.models.ResNet({})", arguments.join(", "))
            }
            _ => format!("model = torchvision.models.{}({classes})", name_of(&depth)),
        }];
        if width != 64 {
            lines[0] += &format!("  # of width 64, which does not take these weights of width {width}");
        }
        if stem == Stem::Cifar {
            lines
                .push(format!("model.conv1 = torch.nn.Conv2d(3, {width}, 3, padding=1, bias=False)  # the CIFAR stem"));
            lines.push("model.maxpool = torch.nn.Identity()".into());
        }
        if classes.is_empty() {
            lines.push(
                "model.fc = torch.nn.Identity()  # the file holds no classifier; the output is the feature".into(),
            );
        }
        lines.push(format!("model.load_state_dict({load})"));
        lines.push("# torchvision does not normalise; images in [0, 1] first go through".into());
        lines.push("normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])".into());
        lines.join("\n") + "\n"
    }
}
