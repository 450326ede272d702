//! Images of any sizes in one piece of memory, decoded on all cores. In: image files, or pictures. Out: a [`Packed`], which
//! is sent to a device in one transfer.

use tch::{Device, Tensor};

use super::picture::Picture;
use crate::native::{NativeError, Staging};

/// Where an image lies among the bytes of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of its first byte.
    pub offset: i64,
    pub height: i64,
    pub width: i64,
}

/// Images end to end, red, green, blue of each pixel, row by row.
#[derive(Debug)]
pub struct Packed {
    /// uint8, one dimension; page-locked where it is meant for a GPU.
    pub pixels: Tensor,
    /// One an image.
    pub places: Vec<Place>,
}

impl Packed {
    /// Images of the given heights and widths, each with what `fill` writes into its bytes: `fill` gets all of them at
    /// once, in order.
    ///
    /// # Errors
    /// There is no room, or `fill` fails.
    pub fn filled<E: From<NativeError>>(
        sides: &[(i64, i64)],
        device: Device,
        fill: impl FnOnce(Vec<&mut [u8]>) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut end = 0;
        let place = |&(height, width): &(i64, i64)| {
            let offset = end;
            end += 3 * height * width;
            Place { offset, height, width }
        };
        let places: Vec<Place> = sides.iter().map(place).collect();
        let mut staging = Staging::new(end as usize, device)?;
        let (mut rest, mut parts) = (staging.bytes(), Vec::with_capacity(places.len()));
        for place in &places {
            let (part, behind) = rest.split_at_mut(3 * (place.height * place.width) as usize);
            parts.push(part);
            rest = behind;
        }
        fill(parts)?;
        Ok(Self { pixels: staging.into_tensor(), places })
    }

    /// Decoded images, to be used on `device`.
    ///
    /// # Errors
    /// There is no room.
    pub fn of(pictures: &[Picture], device: Device) -> Result<Self, NativeError> {
        let sides: Vec<_> = pictures.iter().map(|picture| (picture.height, picture.width)).collect();
        Self::filled(&sides, device, |parts| {
            parts.into_iter().zip(pictures).for_each(|(part, picture)| part.copy_from_slice(&picture.pixels));
            Ok(())
        })
    }
}
