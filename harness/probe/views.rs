//! What the probe's encoder sees (REFERENCE.md "Evaluation"). In: a list, the positions in it of those
//! that are wanted, a recipe and, for training, the epoch. Out: uint8 views `[n, 3, S, S]`, chunk by chunk; those of files
//! are decoded on all cores ahead of their use.

use std::sync::mpsc::sync_channel;

use tch::Tensor;

use super::ProbeError;
use crate::augment::{self, Shift, ViewKey};
use crate::dataset::ImageFiles;
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
/// them in `epoch`.
pub(super) fn in_chunks(
    list: &Subset,
    positions: &[i64],
    recipe: &ProbeRecipe,
    epoch: Option<usize>,
    mut take: impl FnMut(Tensor) -> Result<(), ProbeError>,
) -> Result<(), ProbeError> {
    // Not the images: tensors are not shared between threads.
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
            let view = |position: i64| view_of_file(files, rows[position as usize], recipe, key(position));
            let chunks = positions.chunks(images_at_once(recipe.size * recipe.size)).map(<[i64]>::to_vec);
            let views = |chunk| {
                let views: Result<Vec<Tensor>, ProbeError> = native::parallel_map(chunk, view)?.into_iter().collect();
                Ok(Tensor::f_stack(&views?, 0)?)
            };
            ahead(chunks, views, take)
        }
    }
}

/// The image at `index` of `files` under the test transform or, given a key, as training sees it: uint8
/// `[3, size, size]`.
fn view_of_file(
    files: &ImageFiles,
    index: i64,
    recipe: &ProbeRecipe,
    key: Option<ViewKey>,
) -> Result<Tensor, ProbeError> {
    let picture = files.read(index)?;
    let ProbeRecipe { scale, ratio, flip_probability, resize, size, .. } = *recipe;
    Ok(match key {
        None => augment::resize_centre_crop(&picture, resize, size)?,
        Some(key) => {
            let view = augment::draw_resized_crop(key, scale, ratio, flip_probability, picture.height, picture.width);
            augment::resized_crop(&picture, view, size)?
        }
    })
}

/// Gives `take` what `make` makes of each job, in order, while a thread of its own makes the next ones: at most three
/// results exist at once. The first error of either ends both.
fn ahead<J: Send, R: Send>(
    jobs: impl Iterator<Item = J> + Send,
    make: impl Fn(J) -> Result<R, ProbeError> + Send,
    mut take: impl FnMut(R) -> Result<(), ProbeError>,
) -> Result<(), ProbeError> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        let maker = scope.spawn(move || {
            for job in jobs {
                let made = make(job);
                let failed = made.is_err();
                if sender.send(made).is_err() || failed {
                    break;
                }
            }
        });
        let outcome = receiver.into_iter().try_for_each(|made| take(made?));
        // A panic of the maker goes on here with its own words.
        maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome
    })
}
