//! What the probe's encoder sees (REFERENCE.md "Evaluation"). In: a list, the positions in it of those
//! that are wanted, a recipe and, for training, the epoch. Out: uint8 views `[n, 3, S, S]`, chunk by chunk; those of files
//! are decoded on all cores ahead of their use.

use tch::{Device, Tensor};

use super::ProbeError;
use crate::ahead::Ahead;
use crate::augment::{self, Plan, ResizedCrop, Shift, ViewKey};
use crate::dataset::{ImageFiles, Packed, Place};
use crate::native;
use crate::recipe::ProbeRecipe;
use crate::split::{Images, Subset};

/// Images encoded at once where they are small.
const CHUNK: usize = 512;
/// Pixels encoded at once: what a network of published width makes of them stays within some GB.
const CHUNK_PIXELS: i64 = 1 << 22;

/// How many images of `pixels` pixels are encoded at once.
pub fn images_at_once(pixels: i64) -> usize {
    (CHUNK_PIXELS / pixels).clamp(1, CHUNK as i64) as usize
}

/// Gives `take` the views of the entries at `positions` of `list`, in order, under the test transform or as training sees
/// them in `epoch`. Those of files are computed on `device`, those of a tensor where it lies.
pub(super) fn in_chunks(
    list: &Subset,
    positions: &[i64],
    recipe: &ProbeRecipe,
    epoch: Option<usize>,
    device: Device,
    mut take: impl FnMut(Tensor) -> Result<(), ProbeError>,
) -> Result<(), ProbeError> {
    let Subset { rows, addresses, .. } = list;
    let key = |position: i64| {
        let image = addresses[position as usize];
        epoch.map(|epoch| ViewKey { seed: recipe.seed, epoch: epoch as u64, image, view: 0 })
    };
    match &list.images {
        Images::Resident(images) => positions.chunks(CHUNK).try_for_each(|chunk| {
            let chunk_rows: Vec<i64> = chunk.iter().map(|&position| rows[position as usize]).collect();
            let rows = native::send(&Tensor::f_from_slice(&chunk_rows)?, images.device())?;
            let images = images.f_index_select(0, &rows)?;
            let shift =
                |&position: &i64| Some(augment::draw_shift(key(position)?, recipe.padding, recipe.flip_probability));
            match chunk.iter().map(shift).collect::<Option<Vec<Shift>>>() {
                Some(shifts) => take(augment::pad_crop_flip(&images, &shifts, recipe.padding)?),
                None => take(images),
            }
        }),
        Images::Files(files) => {
            let drawn = positions.chunks(images_at_once(recipe.size * recipe.size)).map(|chunk| {
                let rows: Vec<i64> = chunk.iter().map(|&position| rows[position as usize]).collect();
                (rows, chunk.iter().map(|&position| key(position)).collect::<Option<Vec<ViewKey>>>())
            });
            let drawn: Vec<(Vec<i64>, Option<Vec<ViewKey>>)> = drawn.collect();
            let (files, recipe) = (files.clone(), recipe.clone());
            let load = move |(rows, keys)| of_files(&files, rows, keys, &recipe, device);
            for loaded in Ahead::new(1, drawn, load, |panic| Err(panic.into())) {
                let (packed, plan) = loaded?;
                take(plan.apply(&native::send(&packed.pixels, device)?)?)?;
            }
            Ok(())
        }
    }
}

/// The images at `rows` of `files` under the test transform or, given keys, as training sees them: decoded, and planned.
fn of_files(
    files: &ImageFiles,
    rows: Vec<i64>,
    keys: Option<Vec<ViewKey>>,
    recipe: &ProbeRecipe,
    device: Device,
) -> Result<(Packed, Plan), ProbeError> {
    let packed = files.packed(&rows, device)?;
    let ProbeRecipe { scale, ratio, flip_probability, resize, size, .. } = *recipe;
    let plan = match keys {
        None => Plan::of_centres(&packed.places, resize, size, device)?,
        Some(keys) => {
            let crop = |(key, place): (ViewKey, &Place)| {
                augment::draw_resized_crop(key, scale, ratio, flip_probability, place.height, place.width)
            };
            let crops: Vec<ResizedCrop> = keys.into_iter().zip(&packed.places).map(crop).collect();
            Plan::of_crops(&packed.places, &crops, size, device)?
        }
    };
    Ok((packed, plan))
}
