//! `sdclr views`: the pre-training views of given images, to look at and to check.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::outln;
use super::{Numbers, recipe_file};
use crate::fs::Inputs;
use crate::pretrain::views;
use crate::recipe::{PretrainSplit, Recipe};
use crate::split::ListName;
use crate::suite::context::{Context, Scale};

/// Write the pre-training views of given images: views.png, views.npy, params.jsonl
///
/// The views are those that pre-training uses for these images in this epoch, whatever batch they are in.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  sdclr views --recipe cifar10-lt/sdclr --data DIR --split 1 --indices 100-163 --epoch 1 --out views")]
pub(super) struct ViewsArgs {
    /// SUITE/ENCODER, or FILE.toml:ENCODER
    #[arg(long)]
    recipe: String,
    /// Folder of the data
    #[arg(long, value_name = "DIR", env = "SDCLR_DATA")]
    data: Option<PathBuf>,
    /// Number of the published split
    #[arg(long, value_name = "N")]
    split: usize,
    /// Positions in the official training order, e.g. 100-163 or 3,14
    #[arg(long, value_name = "RANGE")]
    indices: Numbers,
    /// Epoch of pre-training, counted from 1
    #[arg(long, value_name = "E", value_parser = clap::value_parser!(u32).range(1..))]
    epoch: u32,
    /// Folder for the three files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Override a recipe key
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
    set: Vec<String>,
}

impl ViewsArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let data = self.data.or_else(crate::artifact::data_folder);
        let inputs =
            Inputs::default().file("the recipe", recipe_file(&self.recipe)).folder("the data", data.as_deref());
        inputs.spare_in("--out", &self.out, &["views.npy", "params.jsonl", "views.png"])?;
        let recipe = Recipe::resolve(&self.recipe, &self.set)?;
        let scale = Scale { data, device: Some("cpu".to_owned()), ..Scale::default() };
        let context = Context::open(&recipe, scale)?;
        // Says so where the split does not exist; the views themselves do not depend on it.
        context.list(ListName::Pretrain(PretrainSplit::D_i, self.split))?;
        let mut indices = self.indices.0;
        indices.sort_unstable();
        indices.dedup();
        let set = context.dataset.train("sdclr views")?;
        views::write(&self.out, set, &recipe, self.epoch as usize, &indices)?;
        outln!("{} images, 2 views each: {}", indices.len(), self.out.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
