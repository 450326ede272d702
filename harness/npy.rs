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

/// Reads a uint8 array whose shape `fits`; `expected` says in words what does.
pub fn read_uint8(path: &Path, expected: &'static str, fits: impl Fn(&[i64]) -> bool) -> Result<Tensor, NpyError> {
    let not_bytes = |reason: String| NpyError::NotBytes { path: path.to_path_buf(), reason };
    let bytes = fs::read(path)?;
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
