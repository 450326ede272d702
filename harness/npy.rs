//! NumPy files to tensors and back: what replays, views and features are exchanged in.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, ArrayViewD};
use ndarray_npy::{ReadNpyExt, WritableElement, WriteNpyExt};
use tch::{Kind, Tensor};

use crate::fs::{self, FsError};

/// A `.npy` file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    #[error(transparent)]
    File(#[from] FsError),
    #[error("{} is not a .npy file of uint8: {reason}", path.display())]
    NotBytes { path: PathBuf, reason: String },
    #[error("{} has shape {found:?}, expected {expected}", path.display())]
    Shape { path: PathBuf, found: Vec<i64>, expected: &'static str },
    #[error("a tensor of kind {0:?} cannot be written as .npy; uint8 and float32 can")]
    Kind(Kind),
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// Refuses a `.npy` file whose header promises other than the bytes that follow it, before memory is taken for them.
///
/// # Errors
/// What the header says, in words.
pub fn check_length(bytes: &[u8], element_size: usize) -> Result<(), String> {
    let rest =
        bytes.strip_prefix(b"\x93NUMPY").filter(|rest| rest.len() >= 6).ok_or("it lacks the header of a .npy file")?;
    let (start, length) = match rest[0] {
        1 => (4, usize::from(u16::from_le_bytes([rest[2], rest[3]]))),
        _ => (6, u32::from_le_bytes([rest[2], rest[3], rest[4], rest[5]]) as usize),
    };
    let header = rest.get(start..).and_then(|rest| rest.get(..length)).ok_or("its header is cut short")?;
    let header = String::from_utf8_lossy(header);
    let shape = header.split_once("'shape'").and_then(|(_, rest)| rest.split_once('(')?.1.split_once(')'));
    let (shape, _) = shape.ok_or("its header has no shape")?;
    let sides = shape.split(',').map(str::trim).filter(|side| !side.is_empty()).map(str::parse::<usize>);
    let expected = sides
        .into_iter()
        .try_fold(element_size, |product, side| product.checked_mul(side.ok()?))
        .ok_or_else(|| format!("its shape ({shape}) is impossible"))?;
    let found = rest.len() - start - length;
    if found != expected {
        return Err(format!("its shape ({shape}) needs {expected} bytes, {found} follow"));
    }
    Ok(())
}

/// Reads a uint8 array whose shape `fits`; `expected` says in words what does.
pub fn read_uint8(path: &Path, expected: &'static str, fits: impl Fn(&[i64]) -> bool) -> Result<Tensor, NpyError> {
    let not_bytes = |reason: String| NpyError::NotBytes { path: path.to_path_buf(), reason };
    let bytes = fs::read(path)?;
    // An array of another type is told by its type, not by its length.
    if String::from_utf8_lossy(&bytes[..bytes.len().min(128)]).contains("u1") {
        check_length(&bytes, 1).map_err(not_bytes)?;
    }
    let array = ArrayD::<u8>::read_npy(Cursor::new(bytes)).map_err(|error| not_bytes(error.to_string()))?;
    let shape: Vec<i64> = array.shape().iter().map(|side| *side as i64).collect();
    if !fits(&shape) {
        return Err(NpyError::Shape { path: path.to_path_buf(), found: shape, expected });
    }
    let array = array.as_standard_layout();
    let values = array.as_slice().ok_or_else(|| not_bytes("its memory layout is not contiguous".to_owned()))?;
    Ok(Tensor::f_from_slice(values)?.f_view(shape.as_slice())?)
}

/// Writes a uint8 or float32 tensor.
pub fn write(path: &Path, tensor: &Tensor) -> Result<(), NpyError> {
    match tensor.kind() {
        Kind::Uint8 => write_array::<u8>(path, tensor),
        Kind::Float => write_array::<f32>(path, tensor),
        other => Err(NpyError::Kind(other)),
    }
}

fn write_array<T: WritableElement + tch::kind::Element + Copy>(path: &Path, tensor: &Tensor) -> Result<(), NpyError>
where
    Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
{
    let shape: Vec<usize> = tensor.size().iter().map(|side| *side as usize).collect();
    let values = Vec::<T>::try_from(tensor.f_to_device(tch::Device::Cpu)?.f_contiguous()?.f_flatten(0, -1)?)?;
    let torch = |error: ndarray::ShapeError| tch::TchError::Shape(error.to_string());
    let array = ArrayViewD::from_shape(shape, &values).map_err(torch)?;
    Ok(fs::write_with(path, |file| array.write_npy(file).map_err(std::io::Error::other))?)
}
