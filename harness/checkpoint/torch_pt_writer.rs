//! Writes the zip format of `torch.save`: a pickle that names the tensors, and one entry per storage, stored as it is and
//! aligned so that it can be mapped. Only what `torch.load(weights_only=True)` accepts stands in the pickle.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use tch::{Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::{CheckpointError, StateDict, kind_error};
use crate::fs;

/// The folder that all entries lie in; torch.save takes the file's name, torch.load takes any.
const FOLDER: &str = "archive";
/// Of each storage within the file, as torch.save aligns them.
const ALIGNMENT: u16 = 64;

/// What stands at the root of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// The state dict itself.
    State,
    /// `{"epoch": ..., "state_dict": ...}`, the epoch `None` where it is not known.
    Checkpoint { epoch: Option<i64> },
}

/// Writes the file whole or not at all, one tensor at a time.
pub(super) fn write(path: &Path, root: Root, state: &StateDict) -> Result<(), CheckpointError> {
    let pickle = pickle(path, root, state)?;
    let mut bytes = Vec::new();
    Ok(fs::write_with(path, |file| {
        let mut failure = None;
        let mut archive = ZipWriter::new(Remembering { file, position: 0, end: 0, failure: &mut failure });
        entry(&mut archive, "data.pkl", &pickle)?;
        entry(&mut archive, "byteorder", b"little")?;
        for (key, (name, tensor)) in state.iter().enumerate() {
            super::copy_bytes(name, tensor, &mut bytes).map_err(std::io::Error::other)?;
            entry(&mut archive, &format!("data/{key}"), &bytes)?;
        }
        entry(&mut archive, "version", b"3\n")?;
        archive.finish()?;
        failure.map_or(Ok(()), Err)
    })?)
}

/// A file whose first failure is kept for later. The archive's writer prints the failures that it meets while it is
/// dropped, so it is shown none.
struct Remembering<'a, W> {
    file: W,
    position: u64,
    end: u64,
    failure: &'a mut Option<std::io::Error>,
}

impl<W: Write + Seek> Remembering<'_, W> {
    fn attempt(&mut self, act: impl FnOnce(&mut W) -> std::io::Result<()>) {
        if self.failure.is_none() {
            *self.failure = act(&mut self.file).err();
        }
    }
}

impl<W: Write + Seek> Write for Remembering<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.attempt(|file| file.write_all(bytes));
        self.position += bytes.len() as u64;
        self.end = self.end.max(self.position);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.attempt(Write::flush);
        Ok(())
    }
}

impl<W: Write + Seek> Seek for Remembering<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.end.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(std::io::ErrorKind::InvalidInput)?;
        let position = self.position;
        self.attempt(|file| file.seek(SeekFrom::Start(position)).map(drop));
        Ok(position)
    }
}

fn entry(archive: &mut ZipWriter<impl Write + Seek>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(ALIGNMENT)
        // The same bytes whenever it is written.
        .last_modified_time(DateTime::default())
        .large_file(bytes.len() > u32::MAX as usize);
    archive.start_file(format!("{FOLDER}/{name}"), options)?;
    archive.write_all(bytes)
}

/// The pickle, protocol 2. Every function below leaves one object on the unpickler's stack.
fn pickle(path: &Path, root: Root, state: &StateDict) -> Result<Vec<u8>, CheckpointError> {
    let mut out = b"\x80\x02".to_vec();
    if let Root::Checkpoint { epoch } = root {
        out.extend(b"}(");
        text(&mut out, "epoch");
        match epoch {
            Some(epoch) => integer(&mut out, epoch),
            None => out.push(b'N'),
        }
        text(&mut out, "state_dict");
    }
    ordered_dict(&mut out);
    out.push(b'(');
    for (key, (name, tensor)) in state.iter().enumerate() {
        text(&mut out, name);
        let kind = tensor.kind();
        let storage = storage_name(kind).filter(|_| !tensor.is_sparse());
        let storage = storage.ok_or_else(|| kind_error(path, name, format!("{kind:?}")))?;
        rebuilt(&mut out, &key.to_string(), storage, tensor);
    }
    out.push(b'u');
    if root != Root::State {
        out.push(b'u');
    }
    out.push(b'.');
    Ok(out)
}

/// The class of storage that holds elements of `kind`.
fn storage_name(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Double => "DoubleStorage",
        Kind::Float => "FloatStorage",
        Kind::Half => "HalfStorage",
        Kind::BFloat16 => "BFloat16Storage",
        Kind::Int64 => "LongStorage",
        Kind::Int => "IntStorage",
        Kind::Int16 => "ShortStorage",
        Kind::Int8 => "CharStorage",
        Kind::Uint8 => "ByteStorage",
        Kind::Bool => "BoolStorage",
        _ => return None,
    })
}

/// `torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())` of a contiguous tensor.
fn rebuilt(out: &mut Vec<u8>, key: &str, storage: &str, tensor: &Tensor) {
    global(out, "torch._utils", "_rebuild_tensor_v2");
    out.extend(b"((");
    text(out, "storage");
    global(out, "torch", storage);
    text(out, key);
    text(out, "cpu");
    integer(out, tensor.numel() as i64);
    out.extend(b"tQ");
    integer(out, 0);
    let shape = tensor.size();
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    for extents in [shape, strides] {
        out.push(b'(');
        extents.into_iter().for_each(|extent| integer(out, extent));
        out.push(b't');
    }
    out.push(b'\x89');
    ordered_dict(out);
    out.extend(b"tR");
}

fn ordered_dict(out: &mut Vec<u8>) {
    global(out, "collections", "OrderedDict");
    out.extend(b")R");
}

fn global(out: &mut Vec<u8>, module: &str, name: &str) {
    out.extend(format!("c{module}\n{name}\n").bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn integer(out: &mut Vec<u8>, value: i64) {
    match (u8::try_from(value), i32::try_from(value)) {
        (Ok(byte), _) => out.extend([b'K', byte]),
        (_, Ok(word)) => {
            out.push(b'J');
            out.extend(word.to_le_bytes());
        }
        _ => {
            out.extend([0x8a, 8]);
            out.extend(value.to_le_bytes());
        }
    }
}
