//! Real CIFAR and the published lists, where `SDCLR_DATA` names them; elsewhere these tests say that they were skipped.

mod skip;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sdclr::artifact::registry::Registry;
use sdclr::dataset::Dataset;
use sdclr::recipe::{DatasetName, PretrainSplit};
use sdclr::split::{self, ListName, read};
use skip::skip;
use tch::Device;

fn data() -> Option<PathBuf> {
    let data = std::env::var_os("SDCLR_DATA").map(PathBuf::from);
    if data.is_none() {
        skip("data", "SDCLR_DATA is not set");
    }
    data
}

fn sorted_counts(dataset: &Dataset, data: Option<&Path>, list: ListName) -> Vec<u64> {
    let mut counts = read(dataset, data, list).unwrap().class_counts(dataset.classes.len());
    counts.sort_unstable();
    counts
}

/// Class counts as REFERENCE.md "Data, measured" has them.
#[test]
fn cifar10_and_its_lists_are_the_official_ones() {
    let Some(data) = data() else { return };
    let set = Dataset::load(DatasetName::Cifar10, Some(&data), Device::Cpu).unwrap();
    assert!(set.official);
    assert_eq!(set.train("").unwrap().images.size(), [50_000, 3, 32, 32]);
    let data = Some(data.as_path());
    for split in 1..=5 {
        let tail = sorted_counts(&set, data, ListName::Pretrain(PretrainSplit::D_i, split));
        assert_eq!(tail, [45, 75, 125, 208, 348, 581, 969, 1617, 2697, 4500]);
        assert_eq!(sorted_counts(&set, data, ListName::Pretrain(PretrainSplit::D_b, split)), [1116; 10]);
        assert_eq!(sorted_counts(&set, data, ListName::FewShot(split)), [45; 10]);
        let few = read(&set, data, ListName::FewShot(split)).unwrap();
        assert_eq!(few.name, format!("cifar10_imbSub_with_subsets/split{split}_S_b.npy"));
        assert!(few.official);
    }
    assert_eq!(sorted_counts(&set, data, ListName::Train), [4500; 10]);
    assert_eq!(sorted_counts(&set, data, ListName::Validation), [500; 10]);
    assert_eq!(read(&set, data, ListName::Test).unwrap().len(), 10_000);
}

/// A list in the place of a published one is told from it.
#[test]
fn another_list_is_not_the_published_one() {
    let Some(data) = data() else { return };
    let set = Dataset::load(DatasetName::Cifar10, Some(&data), Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |data: &Path| data.join("split/cifar10_imbSub_with_subsets/split1_S_b.npy");
    let mut list = std::fs::read(path(&data)).unwrap();
    for (change, official) in [(0, true), (1, false)] {
        // The lowest byte of the last entry: another image that exists, and stands in no other entry.
        let last = list.len() - 8;
        list[last] ^= change;
        sdclr::fs::write(&path(folder.path()), &list).unwrap();
        assert_eq!(read(&set, Some(folder.path()), ListName::FewShot(1)).unwrap().official, official);
    }
}

#[test]
fn the_registry_knows_every_published_list() {
    use DatasetName::{Cifar10, Cifar100, Imagenet, Imagenet100};
    let registry = Registry::load(None).unwrap();
    for dataset in [Cifar10, Cifar100, Imagenet100, Imagenet] {
        for list in ListName::all(split::published_splits(dataset)) {
            let name = split::name(dataset, list);
            // CIFAR's test list is its whole test file.
            assert!(name == "test" || registry.file(&format!("split/{name}")).is_some(), "{name}");
        }
    }
}

#[test]
fn cifar100_and_its_lists_are_the_official_ones() {
    let Some(data) = data() else { return };
    let set = Dataset::load(DatasetName::Cifar100, Some(&data), Device::Cpu).unwrap();
    assert!(set.official);
    let data = Some(data.as_path());
    for split in 1..=5 {
        let tail = sorted_counts(&set, data, ListName::Pretrain(PretrainSplit::D_i, split));
        assert_eq!((tail[0], tail[99], tail.iter().sum::<u64>()), (4, 450, 9754));
        assert_eq!(sorted_counts(&set, data, ListName::Pretrain(PretrainSplit::D_b, split)), [97; 100]);
    }
}

/// A batch as Python 2 pickled it: `data` through numpy's constructor and state, strings as bytes; column by column where
/// `fortran_order` says so.
fn python_batch(binary: &[u8], fortran_order: bool) -> Vec<u8> {
    let mut pickle = b"\x80\x02}q\x00(U\x0bbatch_labelq\x01U\x04testq\x02U\x06labelsq\x03]q\x04(".to_vec();
    for record in binary.chunks(3073) {
        pickle.extend([b'K', record[0]]);
    }
    pickle.extend(
        b"eU\x04datacnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01",
    );
    pickle.extend(b"M\x10'M\x00\x0c\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\x09(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb");
    pickle.extend([if fortran_order { 0x88 } else { 0x89 }, b'T']);
    pickle.extend(((binary.len() / 3073 * 3072) as u32).to_le_bytes());
    let rows = binary.len() / 3073;
    pickle.extend((0..rows * 3072).map(|at| match fortran_order {
        true => binary[at % rows * 3073 + 1 + at / rows],
        false => binary[at / 3072 * 3073 + 1 + at % 3072],
    }));
    pickle.extend(b"tbu.");
    pickle
}

#[test]
fn the_python_version_holds_the_same_images() {
    let Some(data) = data() else { return };
    let folder = tempfile::tempdir().unwrap();
    let python = folder.path().join("cifar-10-batches-py");
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        let binary = std::fs::read(data.join(format!("cifar-10-batches-bin/{name}.bin"))).unwrap();
        sdclr::fs::write(&python.join(name), &python_batch(&binary, name == "data_batch_3")).unwrap();
    }
    let set = Dataset::load(DatasetName::Cifar10, Some(folder.path()), Device::Cpu).unwrap();
    assert!(set.official);

    let batch = std::fs::read(python.join("data_batch_2")).unwrap();
    sdclr::fs::write(&python.join("data_batch_2"), &batch[..batch.len() / 2]).unwrap();
    let error = Dataset::load(DatasetName::Cifar10, Some(folder.path()), Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("data_batch_2 is not a batch of the python version"), "{error}");
}

#[test]
fn the_embedded_digits_are_long_tailed_as_documented() {
    let set = Dataset::load(DatasetName::Digits, None, Device::Cpu).unwrap();
    let images = &set.train("").unwrap().images;
    assert_eq!(images.size(), [1797, 3, 16, 16]);
    let shades: BTreeSet<u8> = Vec::try_from(images.flatten(0, -1)).unwrap().into_iter().collect();
    assert_eq!(shades, (0..=16).map(|shade| (f64::from(shade) * 255.0 / 16.0).round() as u8).collect());
    for split in 1..=3 {
        let tail = sorted_counts(&set, None, ListName::Pretrain(PretrainSplit::D_i, split));
        assert_eq!(tail, [2, 2, 4, 7, 12, 18, 28, 42, 65, 100]);
        assert_eq!(sorted_counts(&set, None, ListName::Pretrain(PretrainSplit::D_b, split)), [28; 10]);
        assert_eq!(sorted_counts(&set, None, ListName::FewShot(split)), [5; 10]);
        assert_eq!(read(&set, None, ListName::FewShot(split)).unwrap().name, format!("split{split}_S_b.npy"));
    }
    let lists = [ListName::Train, ListName::Validation, ListName::Test].map(|name| read(&set, None, name).unwrap());
    let mut all: Vec<i64> = lists.iter().flat_map(|list| list.rows.clone()).collect();
    all.sort_unstable();
    assert_eq!(all, (0..1797).collect::<Vec<_>>(), "train, validation and test do not part the images");
}
