//! The linear probe's part of a recipe (REFERENCE.md "Evaluation").

use serde::{Deserialize, Serialize};

use super::checks::{check, count, not_negative, positive, range, share};
use super::{DatasetName, RecipeError, name_of};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRecipes {
    pub full: ProbeRecipe,
    pub few: ProbeRecipe,
}

/// The linear probe (REFERENCE.md "Evaluation").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRecipe {
    pub epochs: usize,
    pub batch_size: usize,
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    /// The rate is multiplied by 0.1 at the start of each of these epochs, counted from 1.
    pub milestones: Vec<usize>,
    pub validate_every: usize,
    /// The accuracy on the validation list by which the tested epoch is chosen.
    pub selection: Selection,
    pub order: OrderName,
    pub train_transform: TrainTransform,
    pub test_transform: TestTransform,
    /// Black border of `pad_crop`, in pixels.
    pub padding: i64,
    /// Area of `resized_crop` as a share of the image: smallest and largest.
    pub scale: [f64; 2],
    /// Width over height of `resized_crop`: smallest and largest.
    pub ratio: [f64; 2],
    /// Short side before `resize_centre_crop` crops, in pixels.
    pub resize: i64,
    /// Side of the squares that `resized_crop` and `resize_centre_crop` make, in pixels.
    pub size: i64,
    pub flip_probability: f64,
    /// Of all that the probe draws: classifier, order, crops and flips. Not the seed of pre-training.
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    Top1,
    /// The label is among the five classes of the largest logits.
    Top5,
}

/// The order of the images in an epoch of the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderName {
    /// A permutation addressed by seed and epoch.
    Addressed,
    /// That of PyTorch's DistributedSampler, whose seed is 0 + epoch.
    DistributedSampler,
}

/// What training images of the probe go through, before a random flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainTransform {
    /// RandomCrop of the image's own size from the image with a border.
    PadCrop,
    /// RandomResizedCrop, bilinear.
    ResizedCrop,
}

/// What validation and test images of the probe go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TestTransform {
    None,
    /// Resize of the short side, bilinear, then CenterCrop.
    ResizeCentreCrop,
}

impl ProbeRecipe {
    /// Rejects values that no probe of `dataset` can have; `section` is where they stand, `probe.full` or `probe.few`.
    pub(super) fn validate(&self, section: &str, dataset: DatasetName) -> Result<(), RecipeError> {
        let key = |name: &str| format!("{section}.{name}");
        count(&key("epochs"), self.epochs)?;
        count(&key("batch_size"), self.batch_size)?;
        count(&key("validate_every"), self.validate_every)?;
        positive(&key("lr"), self.lr)?;
        not_negative(&key("weight_decay"), self.weight_decay)?;
        share(&key("flip_probability"), self.flip_probability)?;
        let momentum = (0.0..1.0).contains(&self.momentum);
        check(&key("momentum"), self.momentum.to_string(), momentum, "0 <= momentum < 1 is needed")?;
        let padding = (0..=64).contains(&self.padding);
        check(&key("padding"), self.padding.to_string(), padding, "0 to 64 pixels are needed")?;
        range(&key("scale"), self.scale)?;
        let whole = self.scale[1] <= 1.0;
        check(&key("scale"), self.scale[1].to_string(), whole, "a crop is at most the whole image, 1.0")?;
        range(&key("ratio"), self.ratio)?;
        for (name, value) in [("resize", self.resize), ("size", self.size)] {
            check(&key(name), value.to_string(), (1..=8192).contains(&value), "a number between 1 and 8192 is needed")?;
        }
        let inside = self.size <= self.resize;
        check(
            &key("size"),
            self.size.to_string(),
            inside,
            "at most probe resize is needed: it is cut from its centre",
        )?;
        // Files of any size make no batch before they are resized; images of one size are kept as one.
        let (train, test) = match dataset {
            DatasetName::Digits | DatasetName::Cifar10 | DatasetName::Cifar100 | DatasetName::Arrays => {
                (TrainTransform::PadCrop, TestTransform::None)
            }
            DatasetName::Imagenet100 | DatasetName::Imagenet | DatasetName::Folders => {
                (TrainTransform::ResizedCrop, TestTransform::ResizeCentreCrop)
            }
        };
        let expected = |transform: String| format!("the images of {} need {transform}", name_of(&dataset));
        let found = name_of(&self.train_transform);
        check(&key("train_transform"), found, self.train_transform == train, &expected(name_of(&train)))?;
        let found = name_of(&self.test_transform);
        check(&key("test_transform"), found, self.test_transform == test, &expected(name_of(&test)))
    }
}
