//! Images that are files of any size, opened only when needed. In: a list's paths. Out: the images at some places of it,
//! decoded on all cores.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::Device;

use super::DatasetError;
use super::cache::ImageCache;
use super::packed::Packed;
use super::picture::{self, Picture};
use crate::ahead::spread;
use crate::cores::Cores;
use crate::fs;

/// Most bytes of an image file, far more than a photograph has.
const FILE_BYTES: u64 = 1 << 30;

/// The images of one list, on disk.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    /// The folder that the paths are relative to.
    root: PathBuf,
    /// The list that names them, for messages.
    list: String,
    /// One a line of the list.
    paths: Arc<[Box<str>]>,
    /// Where decoded images are kept, if they are.
    cache: Option<Arc<ImageCache>>,
}

/// An image before its pixels are where they are wanted.
enum Opened {
    Decoded(Arc<Picture>),
    File { bytes: Vec<u8>, sides: (i64, i64) },
}

impl Opened {
    /// Height and width.
    fn sides(&self) -> (i64, i64) {
        match self {
            Self::Decoded(picture) => (picture.height, picture.width),
            Self::File { sides, .. } => *sides,
        }
    }
}

impl ImageFiles {
    /// The files in `root` that `list` names by `paths`.
    pub fn new(root: &Path, list: &str, paths: Vec<Box<str>>) -> Self {
        Self { root: root.to_path_buf(), list: list.to_owned(), paths: paths.into(), cache: None }
    }

    /// The same, keeping decoded images in `cache`.
    pub fn cached(self, cache: Arc<ImageCache>) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// Reads and decodes the image at `index` of the list.
    ///
    /// # Errors
    /// The file is missing or no whole image; the error names list, line and path.
    pub fn read(&self, index: i64) -> Result<Picture, DatasetError> {
        picture::decode(&self.bytes(index)?).map_err(|reason| self.undecodable(index, reason))
    }

    /// The images at `indices` of the list, in that order, to be used on `device`; read and decoded on all cores.
    ///
    /// # Errors
    /// As [`ImageFiles::read`].
    pub fn packed(&self, indices: &[i64], device: Device) -> Result<Packed, DatasetError> {
        let threads = Cores::available().loading();
        let opened = spread(threads, indices.to_vec(), |index| self.open(index))?;
        let opened: Vec<Opened> = opened.into_iter().collect::<Result<_, _>>()?;
        let sides: Vec<(i64, i64)> = opened.iter().map(Opened::sides).collect();
        Packed::filled(&sides, device, |parts| {
            let jobs = indices.iter().zip(&opened).zip(parts).collect();
            let decoded = spread(threads, jobs, |((&index, opened), part): ((&i64, &Opened), &mut [u8])| {
                self.fill(index, opened, part)
            })?;
            decoded.into_iter().collect()
        })
    }

    /// Those at `indices` that cannot be read, each with its error; read and decoded on all cores.
    ///
    /// # Errors
    /// A thread panicked.
    pub fn damaged(&self, indices: &[i64]) -> Result<Vec<DatasetError>, DatasetError> {
        let errors = spread(Cores::available().loading(), indices.to_vec(), |index| self.read(index).err())?;
        Ok(errors.into_iter().flatten().collect())
    }

    fn open(&self, index: i64) -> Result<Opened, DatasetError> {
        if let Some(picture) = self.cache.as_ref().and_then(|cache| cache.get(&self.paths[index as usize])) {
            return Ok(Opened::Decoded(picture));
        }
        let bytes = self.bytes(index)?;
        let sides = picture::sides(&bytes).map_err(|reason| self.undecodable(index, reason))?;
        Ok(Opened::File { bytes, sides })
    }

    /// Writes the pixels of an opened image into `part`.
    fn fill(&self, index: i64, opened: &Opened, part: &mut [u8]) -> Result<(), DatasetError> {
        match opened {
            Opened::Decoded(picture) => part.copy_from_slice(&picture.pixels),
            Opened::File { bytes, sides } => {
                picture::decode_into(bytes, part).map_err(|reason| self.undecodable(index, reason))?;
                if let Some(cache) = &self.cache {
                    cache.offer(&self.paths[index as usize], *sides, part);
                }
            }
        }
        Ok(())
    }

    /// The file at `index`.
    fn bytes(&self, index: i64) -> Result<Vec<u8>, DatasetError> {
        let path = self.path(index);
        fs::read_at_most(&path, FILE_BYTES).map_err(|source| {
            let (list, line) = self.line(index);
            let name = path.file_name().unwrap_or_default();
            let part = self.paths[index as usize].split('/').next().unwrap_or_default();
            match Some(self.root.join(part).join(name)).filter(|flat| *flat != path && flat.is_file()) {
                Some(found) => DatasetError::Unsorted { list, line, found, expected: path.clone() },
                None => DatasetError::ImageFile { list, line, source },
            }
        })
    }

    fn path(&self, index: i64) -> PathBuf {
        self.root.join(&*self.paths[index as usize])
    }

    /// The first line whose file does not lie in `part`, a folder beside which the paths begin, and that file.
    pub fn first_outside(&self, part: &Path) -> Option<(usize, String)> {
        let outside = |path: &str| !Path::new(path).starts_with(part.file_name().unwrap_or_default());
        let index = self.paths.iter().position(|path| outside(path))?;
        Some((index + 1, self.paths[index].to_string()))
    }

    /// The list and the line in it, for messages.
    fn line(&self, index: i64) -> (String, usize) {
        (self.list.clone(), index as usize + 1)
    }

    fn undecodable(&self, index: i64, reason: String) -> DatasetError {
        let (list, line) = self.line(index);
        DatasetError::Image { list, line, path: self.path(index), reason }
    }

    /// What tells the image from every other, whatever list names it: the first bytes of its path's sha256.
    pub fn address(&self, index: i64) -> u64 {
        use sha2::{Digest, Sha256};
        let hash = Sha256::digest(self.paths[index as usize].as_bytes());
        hash.iter().take(8).fold(0, |address, byte| address << 8 | u64::from(*byte))
    }
}
