//! Any bytes through the `.pt` reader: it may refuse them, but not panic, nor take memory out of proportion, nor give a
//! tensor that reaches out of its storage.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../harness/pickle/mod.rs"]
mod pickle;
#[allow(dead_code)]
#[path = "../../harness/checkpoint/pt.rs"]
mod pt;
#[allow(dead_code)]
#[path = "../../harness/text.rs"]
mod text;
#[allow(dead_code)]
#[path = "../../harness/zip_directory.rs"]
mod zip_directory;

use libfuzzer_sys::fuzz_target;
use pickle::{Path, TensorSpec, Value};
use pt::{Checkpoint, Format};

fuzz_target!(|bytes: &[u8]| {
    let Some(format) = Format::of(&bytes[..bytes.len().min(512)]) else {
        return;
    };
    let Ok(mut checkpoint) = Checkpoint::open(bytes, format) else {
        return;
    };
    let root = std::mem::replace(&mut checkpoint.root, Value::None);
    let checked = root.try_map(&Path::ROOT, &mut |path, spec| {
        let _ = path.to_string();
        check(&spec, &checkpoint);
        Ok::<_, ()>(())
    });
    assert!(checked.is_ok());
    for index in 0..checkpoint.storages.len() {
        let mut memory = vec![0; checkpoint.storages[index].bytes as usize];
        let _ = checkpoint.read(index, &mut memory);
    }
});

/// Every element lies in the storage.
fn check(spec: &TensorSpec, checkpoint: &Checkpoint<&[u8]>) {
    assert_eq!(spec.shape.len(), spec.stride.len());
    if spec.shape.contains(&0) {
        return;
    }
    let last: u128 =
        spec.shape.iter().zip(&spec.stride).map(|(&extent, &stride)| u128::from(extent - 1) * u128::from(stride)).sum();
    let end = (u128::from(spec.offset) + last + 1) * u128::from(spec.dtype.bytes);
    assert!(end <= u128::from(checkpoint.storages[spec.storage].bytes), "{spec:?}");
}
