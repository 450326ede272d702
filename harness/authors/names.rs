//! Names of the published runs and where their files lie (REFERENCE.md "Recipes published").

use clap::ValueEnum;
use serde::Serialize;

use crate::recipe::{DatasetName, EncoderId, PretrainSplit, Protocol, name_of};
use crate::split::{SplitError, published_splits};

use super::AuthorsError;

/// The suites with published runs, and their data sets.
pub const SUITES: [(&str, DatasetName); 4] = [
    ("cifar10-lt", DatasetName::Cifar10),
    ("cifar100-lt", DatasetName::Cifar100),
    ("imagenet100-lt", DatasetName::Imagenet100),
    ("imagenet-lt-exp", DatasetName::Imagenet),
];

/// The log in the folder of a probe.
pub const LOG: &str = "log.txt";

/// The data set of a suite with published runs.
pub fn dataset_of(suite: &str) -> Result<DatasetName, AuthorsError> {
    let known = SUITES.map(|(name, _)| name).join(", ");
    SUITES
        .iter()
        .find(|(name, _)| *name == suite)
        .map(|(_, dataset)| *dataset)
        .ok_or_else(|| AuthorsError::Suite { found: suite.to_owned(), known })
}

/// The error of a data set for which nothing was published.
pub(super) fn unpublished(dataset: DatasetName) -> AuthorsError {
    let known = SUITES.map(|(_, dataset)| name_of(&dataset)).join(", ");
    AuthorsError::Suite { found: name_of(&dataset), known }
}

/// The methods of which there are published runs, by the names of our encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum PublishedMethod {
    Simclr,
    Sdclr,
}

/// The methods with which runs on `dataset` were published.
pub fn methods_of(dataset: DatasetName) -> &'static [PublishedMethod] {
    match dataset {
        DatasetName::Imagenet => &[PublishedMethod::Simclr],
        _ => &[PublishedMethod::Simclr, PublishedMethod::Sdclr],
    }
}

/// The method of a name on the command line.
pub fn method_called(name: &str) -> Result<PublishedMethod, AuthorsError> {
    PublishedMethod::from_str(name, false).map_err(|_| AuthorsError::UnknownMethod { found: name.to_owned() })
}

/// One published pre-training and the probes of its encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub dataset: DatasetName,
    pub method: PublishedMethod,
    pub pretrain_split: PretrainSplit,
    /// Counted from 1; ImageNet's lists have but one.
    pub split: usize,
}

impl Run {
    /// A run with a published name.
    ///
    /// # Errors
    /// No such run was published.
    pub fn new(
        dataset: DatasetName,
        method: PublishedMethod,
        pretrain_split: PretrainSplit,
        split: usize,
    ) -> Result<Self, AuthorsError> {
        if !SUITES.iter().any(|(_, known)| *known == dataset) {
            return Err(unpublished(dataset));
        }
        if !methods_of(dataset).contains(&method) {
            return Err(AuthorsError::Method { dataset, method });
        }
        let last = published_splits(dataset);
        if !(1..=last).contains(&split) {
            return Err(SplitError::Number { dataset: name_of(&dataset), found: split, last }.into());
        }
        Ok(Self { dataset, method, pretrain_split, split })
    }

    /// Our own run of the same encoder.
    pub fn encoder(&self) -> EncoderId {
        let Self { method, pretrain_split, split, .. } = self;
        EncoderId { encoder: name_of(method), list: Some(*pretrain_split), split: *split, seed: 1 }
    }

    /// Folder of the pre-training.
    pub fn pretrain_folder(&self) -> String {
        let Self { method, pretrain_split, split, .. } = self;
        let sdclr = *method == PublishedMethod::Sdclr;
        let list = name_of(pretrain_split);
        let tail = match pretrain_split {
            PretrainSplit::D_i => "LT",
            PretrainSplit::D_b => "BL",
        };
        let pruned = |ratio: &str| if sdclr { format!("_pruneP{ratio}DualBN") } else { String::new() };
        match self.dataset {
            DatasetName::Cifar100 => format!(
                "res18_cifar100_scheduling_sgd_temp0.2_wd1e-4_lr0.5_b512_o128_twolayerProj_epoch2000_\
                 cifar100_split{split}_{list}_newNT_s10{}",
                pruned("0.9")
            ),
            DatasetName::Imagenet100 => format!(
                "imageNet_100_{tail}_train_res50_scheduling_sgd_lr0.5_temp{}_epoch500_batch256{}",
                if sdclr { "0.3" } else { "0.2" },
                pruned("0.3")
            ),
            DatasetName::Imagenet => {
                format!("imageNet_{tail}_exp_train_res50_scheduling_sgd_lr0.5_temp0.2_epoch500_batch256")
            }
            DatasetName::Cifar10 | DatasetName::Digits | DatasetName::Folders | DatasetName::Arrays => format!(
                "res18_scheduling_sgd_temp0.2_wd1e-4_lr0.5_b512_twolayerProj_epoch2000_\
                 split{split}_{list}_newNT_s10{}",
                pruned("0.9")
            ),
        }
    }

    /// Folder of a probe: that of the pre-training and what the probe appends.
    pub fn probe_folder(&self, protocol: Protocol) -> String {
        let split = self.split;
        let appended = match (self.dataset, protocol) {
            (DatasetName::Imagenet100, Protocol::Full) => "lr30_wd0_epoch30_b512_d10d20_s1".to_owned(),
            (DatasetName::Imagenet, Protocol::Full) => "lr30_wd0_epoch30_b512_d10d20".to_owned(),
            (DatasetName::Imagenet100, Protocol::Few) => {
                "imageNet_100_sub_balance_train_0.01_lr30_fix2layer4_wd0_epoch30_b512_d10d20".to_owned()
            }
            (DatasetName::Imagenet, Protocol::Few) => {
                "imageNet_sub_balance_train_0.01_lr30_fix2layer4_wd0_epoch30_b512_d10d20".to_owned()
            }
            (_, Protocol::Full) => "f2layer4_d10d20_wd0_lr30_freezeBN".to_owned(),
            (DatasetName::Cifar100, Protocol::Few) => {
                format!("cifar100_split{split}_S_b_f2layer4_d40d60_wd0_lr30_freezeBN")
            }
            (_, Protocol::Few) => format!("split{split}_S_b_f2layer4_d40d60_wd0_lr30_freezeBN"),
        };
        format!("{}__{appended}", self.pretrain_folder())
    }

    /// Epochs of the pre-training.
    pub fn epochs(&self) -> i64 {
        match self.dataset {
            DatasetName::Imagenet100 | DatasetName::Imagenet => 500,
            _ => 2000,
        }
    }

    /// The checkpoint in the folder of the pre-training.
    pub fn pretrain_file(&self) -> String {
        format!("model_{}.pt", self.epochs())
    }

    /// The folders that hold the pre-trainings and the probes of this data set.
    pub fn parents(&self) -> (&'static str, &'static str) {
        match self.dataset {
            DatasetName::Cifar100 => ("checkpoints_cifar100", "checkpoints_cifar100_tune"),
            DatasetName::Imagenet100 | DatasetName::Imagenet => ("checkpoints_imagenet", "checkpoints_imagenet_tune"),
            DatasetName::Cifar10 | DatasetName::Digits | DatasetName::Folders | DatasetName::Arrays => {
                ("checkpoints", "checkpoints_tune")
            }
        }
    }
}
