//! The pre-training views of given images, to look at and to check. In: images, a recipe, an epoch. Out: `views.npy`,
//! `params.jsonl` with what was drawn, and `views.png`.

use std::io::Write;
use std::path::Path;

use tch::{Device, TchError, Tensor};

use super::loader::draw_views;
use crate::augment::{self, AugmentError};
use crate::dataset::ImageSet;
use crate::fs::{self, FsError};
use crate::npy::{self, NpyError};
use crate::recipe::Recipe;

/// Views could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ViewsError {
    #[error("there is no image {found}: the official training order has {images} images")]
    NoImage { found: i64, images: usize },
    #[error("the sheet of views cannot be written as PNG: {0}")]
    Png(#[from] png::EncodingError),
    #[error(transparent)]
    Augment(#[from] AugmentError),
    #[error(transparent)]
    Npy(#[from] NpyError),
    #[error(transparent)]
    File(#[from] FsError),
    #[error("libtorch: {}", crate::native::said(.0))]
    Torch(#[from] TchError),
}

/// Writes the views that pre-training uses of the images at `indices` of `set` in `epoch`, whatever batch they are in, into
/// `folder`.
///
/// # Errors
/// `set` has no such image, or a file cannot be written.
pub fn write(folder: &Path, set: &ImageSet, recipe: &Recipe, epoch: usize, indices: &[i64]) -> Result<(), ViewsError> {
    if let Some(&found) = indices.iter().find(|index| **index >= set.labels.len() as i64) {
        return Err(ViewsError::NoImage { found, images: set.labels.len() });
    }
    let (_, _, height, width) = set.images.size4()?;
    let draw = |&index: &i64| draw_views(&recipe.augment, recipe.seed, epoch, (index as u64, 0), (height, width));
    let params: Vec<_> = indices.iter().flat_map(draw).collect();
    let originals = set.images.f_index_select(0, &Tensor::from_slice(indices))?;
    let size = recipe.augment.size;
    let views = augment::views(&originals.f_repeat_interleave_self_int(2, 0, None)?, &params, size)?;
    let views = views.f_view([-1, 2, 3, size, size])?;
    npy::write(&folder.join("views.npy"), &views)?;
    fs::write_with(&folder.join("params.jsonl"), |file| {
        for (i, params) in params.iter().enumerate() {
            let mut line = serde_json::to_value(params)?;
            line["index"] = indices[i / 2].into();
            line["view"] = (i % 2).into();
            writeln!(file, "{line}")?;
        }
        Ok(())
    })?;
    write_grid(&folder.join("views.png"), &originals, &views)
}

/// One cell an image: the original, view 0 and view 1 side by side; cells in rows of four.
fn write_grid(path: &Path, originals: &Tensor, views: &Tensor) -> Result<(), ViewsError> {
    const COLUMNS: usize = 4;
    const GAP: usize = 4;
    let (count, _, height, width) = originals.size4()?;
    let (count, height, width, size) = (count as usize, height as usize, width as usize, views.size()[4] as usize);
    // Small images are magnified.
    let zoom = (64 / size).max(1);
    let (cell_width, cell_height) = (width + 2 * size + 2, height.max(size));
    let sheet_width = COLUMNS * (cell_width * zoom + GAP);
    let sheet_height = count.div_ceil(COLUMNS) * (cell_height * zoom + GAP);
    let mut sheet = vec![255; 3 * sheet_width * sheet_height];
    for i in 0..count {
        let left = i % COLUMNS * (cell_width * zoom + GAP);
        let top = i / COLUMNS * (cell_height * zoom + GAP);
        let (original, pair) = (originals.get(i as i64), views.get(i as i64));
        for (part, shift) in [(original, 0), (pair.get(0), width + 1), (pair.get(1), width + size + 2)] {
            draw(&mut sheet[3 * (top * sheet_width + left + shift * zoom)..], sheet_width, &part, zoom)?;
        }
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, sheet_width as u32, sheet_height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&sheet)?;
    Ok(fs::write(path, &bytes)?)
}

/// Draws a uint8 image `[3, H, W]`, every pixel `zoom` times, from the corner where `sheet` begins, whose rows have
/// `sheet_width` pixels.
fn draw(sheet: &mut [u8], sheet_width: usize, image: &Tensor, zoom: usize) -> Result<(), ViewsError> {
    let (_, height, width) = image.size3()?;
    let (height, width) = (height as usize, width as usize);
    let pixels = Vec::<u8>::try_from(image.to_device(Device::Cpu).permute([1, 2, 0]).contiguous().flatten(0, -1))?;
    for y in 0..height * zoom {
        for x in 0..width * zoom {
            let pixel = &pixels[3 * (y / zoom * width + x / zoom)..][..3];
            sheet[3 * (y * sheet_width + x)..][..3].copy_from_slice(pixel);
        }
    }
    Ok(())
}
