//! `sdclr views`: the pre-training views of given images, to look at and to check.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use image::{ImageFormat, Rgb, RgbImage};
use tch::{Device, Tensor};

use super::output::outln;
use super::{Numbers, recipe_file};
use crate::augment;
use crate::fs::{self, Inputs};
use crate::npy;
use crate::pretrain::loader::draw_views;
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
        let set = context.dataset.train("sdclr views")?;
        let mut indices = self.indices.0;
        indices.sort_unstable();
        indices.dedup();
        if let Some(index) = indices.iter().find(|index| **index >= set.labels.len() as i64) {
            anyhow::bail!("there is no image {index}: the official training order has {} images", set.labels.len());
        }
        // Says so where the split does not exist; the views themselves do not depend on it.
        context.list(ListName::Pretrain(PretrainSplit::D_i, self.split))?;
        let (_, _, height, width) = set.images.size4()?;
        let draw =
            |&index: &i64| draw_views(&recipe.augment, recipe.seed, self.epoch as usize, index as u64, (height, width));
        let params: Vec<_> = indices.iter().flat_map(draw).collect();
        let originals = set.images.index_select(0, &Tensor::from_slice(&indices));
        let size = recipe.augment.size;
        let views = augment::views(&originals.repeat_interleave_self_int(2, 0, None), &params, size)?;
        let views = views.view([-1, 2, 3, size, size]);

        npy::write(&self.out.join("views.npy"), &views)?;
        fs::write_with(&self.out.join("params.jsonl"), |file| {
            for (i, params) in params.iter().enumerate() {
                let mut line = serde_json::to_value(params)?;
                line["index"] = indices[i / 2].into();
                line["view"] = (i % 2).into();
                writeln!(file, "{line}")?;
            }
            Ok(())
        })?;
        write_grid(&self.out.join("views.png"), &originals, &views)?;
        outln!("{} images, 2 views each: {}", indices.len(), self.out.display())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// One cell an image: the original, view 0 and view 1 side by side; cells in rows of four.
fn write_grid(path: &Path, originals: &Tensor, views: &Tensor) -> anyhow::Result<()> {
    const COLUMNS: usize = 4;
    const GAP: u32 = 4;
    let [count, _, height, width] = <[i64; 4]>::try_from(originals.size())
        .map_err(|shape| anyhow::anyhow!("images of shape {shape:?} cannot be drawn"))?;
    let size = views.size()[4];
    // Small images are magnified.
    let zoom = (64 / size).max(1) as u32;
    let (cell_width, cell_height) = ((width + 2 * size) as u32 + 2, height.max(size) as u32);
    let rows = (count as usize).div_ceil(COLUMNS) as u32;
    let sheet_width = COLUMNS as u32 * (cell_width * zoom + GAP);
    let mut sheet = RgbImage::from_pixel(sheet_width, rows * (cell_height * zoom + GAP), Rgb([255, 255, 255]));
    for i in 0..count {
        let left = (i as usize % COLUMNS) as u32 * (cell_width * zoom + GAP);
        let top = (i as usize / COLUMNS) as u32 * (cell_height * zoom + GAP);
        let parts = [originals.get(i), views.get(i).get(0), views.get(i).get(1)];
        for (part, shift) in parts.iter().zip([0, width as u32 + 1, (width + size) as u32 + 2]) {
            draw(&mut sheet, part, left + shift * zoom, top, zoom)?;
        }
    }
    let mut bytes = std::io::Cursor::new(Vec::new());
    sheet.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(fs::write(path, bytes.get_ref())?)
}

/// Draws a uint8 image `[3, H, W]`, every pixel `zoom` times.
fn draw(sheet: &mut RgbImage, image: &Tensor, left: u32, top: u32, zoom: u32) -> anyhow::Result<()> {
    let (_, height, width) = image.size3()?;
    let pixels = Vec::<u8>::try_from(image.to_device(Device::Cpu).permute([1, 2, 0]).contiguous().flatten(0, -1))?;
    for y in 0..height as u32 * zoom {
        for x in 0..width as u32 * zoom {
            let at = ((y / zoom * width as u32 + x / zoom) * 3) as usize;
            sheet.put_pixel(left + x, top + y, Rgb([pixels[at], pixels[at + 1], pixels[at + 2]]));
        }
    }
    Ok(())
}
