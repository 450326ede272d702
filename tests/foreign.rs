//! What other programs write: arrays of NumPy and encoders of PyTorch. Every part of their description is heeded, or they
//! are refused by name.

mod golden;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proptest::prelude::*;
use sdclr::checkpoint::{self, CheckpointError, StateDict, Training, TrainingMeta};
use sdclr::dataset::Dataset;
use sdclr::npy::{self, FormatError};
use sdclr::recipe::DatasetName;
use sdclr::record::EpochRecord;
use tch::{Device, Tensor};

fn sdclr(arguments: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("sdclr")).args(arguments).env_remove("SDCLR_DATA").output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A `.npy` file with this header, padded as NumPy pads it.
fn npy_file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let length_bytes = if version == 1 { 2 } else { 4 };
    let start = 8 + length_bytes;
    let padded = (start + header.len() + 1).next_multiple_of(64) - start;
    let header = format!("{header:<0$}\n", padded - 1);
    let length = (header.len() as u32).to_le_bytes();
    [b"\x93NUMPY", [version, 0].as_slice(), &length[..length_bytes], header.as_bytes(), data].concat()
}

/// 2 x 3 numbers, as int64 and as bytes.
fn numbers(header: &str, data: &[u8]) -> Result<(Vec<usize>, Vec<i64>), FormatError> {
    npy::parse::<i64>(&npy_file(1, header, data)).map(|array| (array.shape, array.values))
}

#[test]
fn every_description_that_numpy_writes_is_read() {
    for descr in ["'|u1'", "'<u1'", "'>u1'", "\"|u1\""] {
        for version in 1..=3 {
            for header in [
                format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (2, 3), }}"),
                format!("{{'shape':(2L,3L),'fortran_order':False,'descr':{descr}}}"),
                format!("{{\"descr\": {descr}, \"fortran_order\": False, \"shape\": (2, 3)}}"),
            ] {
                let array = npy::parse::<u8>(&npy_file(version, &header, &[1, 2, 3, 4, 5, 6])).unwrap();
                assert_eq!((array.shape, array.values), (vec![2, 3], vec![1, 2, 3, 4, 5, 6]), "{header}");
            }
        }
    }
    let fortran = "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }";
    let array = npy::parse::<u8>(&npy_file(1, fortran, &[1, 4, 2, 5, 3, 6])).unwrap();
    assert_eq!(array.values, [1, 2, 3, 4, 5, 6]);
    for (descr, bytes) in [("<i8", (-2_i64).to_le_bytes()), (">i8", (-2_i64).to_be_bytes())] {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,), }}");
        assert_eq!(numbers(&header, &bytes).unwrap(), (vec![1], vec![-2]));
        let header = header.replace("(1,)", "()");
        assert_eq!(numbers(&header, &bytes).unwrap(), (vec![], vec![-2]));
    }
}

#[test]
fn other_descriptions_are_refused_by_name() {
    let refused = |header: &str| {
        let error = npy::parse::<u8>(&npy_file(1, header, &[0; 6])).unwrap_err().to_string();
        assert!(error.len() < 500, "{error}");
        error
    };
    let plain = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3), }";
    for (from, to, words) in [
        ("|u1", "<f4", "its elements are of type '<f4', expected uint8"),
        ("|u1", "|i1", "its elements are of type '|i1'"),
        ("'|u1'", "[('a', '|u1')]", "expected a string, found '[('a', '|u1')]"),
        ("'|u1'", "'|u1\\'", "expected the end of a string"),
        ("False", "0", "expected True or False, found '0, 'shape'"),
        ("False", "FalseTrue", "expected '}', found 'True"),
        ("(2, 3)", "(2, 4)", "its shape [2, 4] needs 8 bytes, 6 follow"),
        ("(2, 3)", "[2, 3]", "expected '(', found '[2, 3]"),
        ("(2, 3)", "(6)", "its shape is a number"),
        ("(2, 3)", "(-2, 3)", "expected an extent, found '-2"),
        ("(2, 3)", "(2 3)", "expected ')', found '3)"),
        ("(2, 3)", "(4294967296, 4294967296, 4294967296)", "is impossible"),
        ("(2, 3)", "(0, 9223372036854775807, 3)", "is impossible"),
        ("(2, 3)", "(99999999999999999999999,)", "expected an extent"),
        ("'shape': (2, 3)", "'shape': (2, 3), 'shape': (6,)", "'shape' stands twice"),
        ("'shape': (2, 3)", "'shape': (2, 3), \"shape\": (6,)", "'shape' stands twice"),
        ("'shape': (2, 3), ", "", "a key is missing"),
        ("'descr'", "'dtype'", "it has the key 'dtype'"),
        (", }", ", } + {}", "'+ {}' follows it"),
    ] {
        let header = plain.replace(from, to);
        assert_ne!(header, plain);
        let error = refused(&header);
        assert!(error.contains(words), "{header}: {error}");
    }
    let deep = plain.replace("(2, 3)", &format!("({})", "1, ".repeat(65)));
    assert!(refused(&deep).contains("more than 64 dimensions"));
    assert!(refused(&"(".repeat(9_000)).contains("expected '{'"));
    assert_eq!(npy::parse::<u8>(b"PK\x03\x04").unwrap_err(), FormatError::Magic);
    assert_eq!(npy::parse::<u8>(&npy_file(4, plain, &[0; 6])).unwrap_err(), FormatError::Version(4, 0));
    let long = npy_file(2, &" ".repeat(20_000), &[]);
    assert!(matches!(npy::parse::<u8>(&long), Err(FormatError::HeaderLength(_))));
    let whole = npy_file(1, plain, &[0; 6]);
    for end in 0..whole.len() {
        assert!(npy::parse::<u8>(&whole[..end]).is_err(), "{end}");
    }
    assert!(npy::parse::<u8>(&[whole, vec![0]].concat()).unwrap_err().to_string().contains("7 follow"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No header panics, aborts, or gives a long error.
    #[test]
    fn any_header_is_read_or_refused(
        version in 0..5_u8,
        header in prop_oneof!["\\PC{0,80}", "[{}()',\":0-9a-zL|<>_ -]{0,120}", "\\{('(descr|shape|fortran_order)': ?('[|<>]?[uif][1248]'|\\([0-9]{0,20},[0-9 ,]{0,40}\\)|True|False), ?){0,5}\\}"],
        data in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let file = npy_file(version, &header, &data);
        for outcome in [npy::parse::<u8>(&file).map(|array| array.values.len()), npy::parse::<i64>(&file).map(|array| array.values.len())] {
            match outcome {
                Ok(count) => prop_assert!(count <= data.len()),
                Err(error) => prop_assert!(error.to_string().len() < 600),
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = npy::parse::<u8>(&[b"\x93NUMPY\x01\0".as_slice(), &bytes].concat());
    }
}

/// What is written is what NumPy writes.
#[test]
fn arrays_are_written_as_numpy_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    for (tensor, header) in [
        (Tensor::from_slice(&[1_u8, 2, 3]), "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }"),
        (
            Tensor::from_slice(&[1_u8, 2]).view([2, 1]).tr(),
            "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2), }",
        ),
        (
            Tensor::from_slice(&[0.5_f32]).view([] as [i64; 0]),
            "{'descr': '<f4', 'fortran_order': False, 'shape': (), }",
        ),
    ] {
        npy::write(&path, &tensor).unwrap();
        let mut data = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.contiguous().copy_data_u8(&mut data, tensor.numel());
        assert_eq!(sdclr::fs::read(&path).unwrap(), npy_file(1, header, &data));
    }
    npy::write(&path, &Tensor::from_slice(&[1_u8, 2]).view([2, 1])).unwrap();
    let back = npy::read_uint8(&path, "two rows", |shape| shape == [2, 1]).unwrap();
    assert_eq!(back, Tensor::from_slice(&[1_u8, 2]).view([2, 1]));
}

#[test]
fn pipes_and_devices_are_refused_before_they_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe.as_path(), Path::new("/dev/zero")] {
        assert!(matches!(checkpoint::read_weights(path), Err(CheckpointError::NotACheckpoint { .. })));
        assert!(npy::read_uint8(path, "any", |_| true).unwrap_err().to_string().contains("not a file"));
    }
}

/// A Python with PyTorch and NumPy, or nothing and a word about it.
fn python() -> Option<PathBuf> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap());
    let python = std::env::var_os("SDCLR_ORACLE_PYTHON").map_or(root.join(".oracle/bin/python"), PathBuf::from);
    let found = python.exists().then_some(python);
    if found.is_none() {
        eprintln!("skipped: no Python with PyTorch; ci/oracle --env makes one");
    }
    found
}

/// One made-up batch, as large as a real one, in the binary version and pickled in many ways.
const BATCHES: &str = r"
import os, pickle, sys
import numpy as np
pixels = (np.arange(10000 * 3072, dtype=np.uint32) * 2654435761 >> 21).astype(np.uint8).reshape(10000, 3072)
labels = (np.arange(10000) % 10).tolist()
os.makedirs('binary/cifar-10-batches-bin')
records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], 1)
names = [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch']
def folder(name, write):
    os.makedirs(name, exist_ok=True)
    write(f'{name}/{names[0]}')
    for other in names[1:]:
        os.link(f'{name}/{names[0]}', f'{name}/{other}')
folder('binary/cifar-10-batches-bin', records.tofile)
for name in names:
    os.rename(f'binary/cifar-10-batches-bin/{name}', f'binary/cifar-10-batches-bin/{name}.bin')
def batch(name, array, protocol, key=lambda text: text.encode()):
    contents = {key('data'): array, key('labels'): labels, key('filenames'): [b'image'] * 10000}
    def write(path):
        with open(path, 'wb') as file:
            pickle.dump(contents, file, protocol=protocol)
    folder(f'{name}/cifar-10-batches-py', write)
for protocol in range(2, 6):
    batch(f'c{protocol}', pixels, protocol)
    batch(f'text{protocol}', pixels, protocol, str)
batch('f2', np.asfortranarray(pixels), 2)
batch('f4', np.asfortranarray(pixels), 4)
batch('f5', np.asfortranarray(pixels), 5)
batch('hwc', pixels.reshape(10000, 3, 32, 32).transpose(0, 2, 3, 1).copy(), 4)
batch('hwc5', pixels.reshape(10000, 3, 32, 32).transpose(0, 2, 3, 1).copy(), 5)
batch('int8', pixels.view(np.int8), 4)
batch('int16', pixels.astype(np.int16), 5)
batch('list', [0], 4)
";

#[test]
fn cifar_as_python_pickles_it_is_read_or_refused_by_name() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(python).args(["-c", BATCHES]).current_dir(folder.path()).status().unwrap();
    assert!(status.success());
    let load = |name: &str| Dataset::load(DatasetName::Cifar10, Some(&folder.path().join(name)), Device::Cpu);
    let expected = load("binary").unwrap().sha256;
    for name in ["c2", "c3", "c4", "c5", "text2", "text5", "f2", "f4", "f5"] {
        assert_eq!(load(name).unwrap_or_else(|error| panic!("{name}: {error}")).sha256, expected, "{name}");
    }
    for (name, words) in [
        ("hwc", "its array 'data' has shape (10000, 32, 32, 3), expected (10000, 3072)"),
        ("hwc5", "its array 'data' has shape (10000, 32, 32, 3), expected (10000, 3072)"),
        ("int8", "its array 'data' has the type |i1, expected |u1 (uint8)"),
        ("int16", "its array 'data' has the type <i2, expected |u1 (uint8)"),
        ("list", "it has no array 'data'"),
    ] {
        let error = load(name).unwrap_err().to_string();
        assert!(error.contains(words), "{name}: {error}");
    }
}

/// Runs `sdclr features` for the images beside `features.npy`; gives its output and the file's path.
fn features(folder: &Path, checkpoint: &Path, network: &str, more: &[&str]) -> (Output, PathBuf) {
    let out = tempfile::Builder::new().suffix(".npy").tempfile().unwrap().into_temp_path().keep().unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    let (images, from, to) = (path("images.npy"), checkpoint.display().to_string(), out.display().to_string());
    let arguments = ["features", &from, "--network", network, "--layer", "backbone", "--images", &images, "--out", &to];
    (sdclr(&[arguments.as_slice(), &["--device", "cpu"], more].concat()), out)
}

/// The relative difference of the features in two files.
fn apart(found: &Path, expected: &Path) -> f64 {
    let [found, expected] = [found, expected].map(|path| Tensor::read_npy(path).unwrap());
    assert_eq!(found.size(), expected.size());
    (&found - &expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[])
}

#[test]
fn a_foreign_encoder_gives_pytorchs_features() {
    let folder = golden::path("encoder");
    let foreign = folder.join("foreign.pt");
    let (output, out) = features(&folder, &foreign, "resnet10", &["--normalize", "0.5,0.5,0.5/0.25,0.25,0.25"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("images normalised by 0.5,0.5,0.5/0.25,0.25,0.25"), "{}", said(&output));
    assert!(apart(&out, &folder.join("features.npy")) < 1e-5);
    for (more, words) in [
        (&[][..], "the checkpoint does not say how images are normalised; say it with --normalize"),
        (&["--normalize", "cifar"], "expected imagenet, none, or MEAN/STD"),
        (&["--normalize", "0,0,0/1,0,1"], "the deviations finite and above 0"),
        (&["--normalize", "none", "--prefix", "model."], "its first names are module._orig_mod.conv1.weight"),
    ] {
        let (output, _) = features(&folder, &foreign, "resnet10", more);
        assert!(!output.status.success() && said(&output).contains(words), "{more:?}: {}", said(&output));
    }
}

/// Checkpoints that PyTorch writes give its features, whatever program named their tensors; our export comes back.
#[test]
fn encoders_of_other_programs_load() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("reference/torch/foreign_encoders.py");
    let output = Command::new(python)
        .arg(program)
        .args(["--out", folder.path().to_str().unwrap()])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let imagenet = ["--normalize", "imagenet"];
    let expected = folder.path().join("features.npy");
    for name in [
        "plain.pt",
        "headless.safetensors",
        "no_counters.pt",
        "parallel.pt",
        "twice_parallel.pt",
        "compiled.pt",
        "parallel_compiled.pt",
        "solo_learn.pt",
        "moco.pt",
        "swav.pt",
    ] {
        let (output, out) = features(folder.path(), &folder.path().join(name), "resnet18", &imagenet);
        assert!(output.status.success(), "{name}: {}", said(&output));
        let apart = apart(&out, &expected);
        println!("{name}: {apart:e}");
        assert!(apart < 1e-5, "{name}: {apart:e}");
    }
    let other = folder.path().join("other.pt");
    let (output, _) = features(folder.path(), &other, "resnet18", &imagenet);
    assert!(said(&output).contains("a ResNet stands behind net.trunk.: name it with --prefix"), "{}", said(&output));
    let (output, out) =
        features(folder.path(), &other, "resnet18", &[&imagenet[..], &["--prefix", "net.trunk."]].concat());
    assert!(output.status.success() && apart(&out, &expected) < 1e-5, "{}", said(&output));

    let [plain, exported] = ["plain.pt", "exported.pt"].map(|name| folder.path().join(name).display().to_string());
    let output = sdclr(&["export", &plain, "--format", "torch-pt", "--names", "torchvision", "--out", &exported]);
    assert!(output.status.success(), "{}", said(&output));
    let (output, out) = features(folder.path(), Path::new(&exported), "resnet18", &imagenet);
    assert!(output.status.success() && apart(&out, &expected) < 1e-5, "{}", said(&output));
    let output = sdclr(&["export", &plain, "--format", "torch-pt", "--names", "published", "--out", &exported]);
    assert!(said(&output).contains("has no normalize.mean and normalize.std"), "{}", said(&output));
}

fn golden_encoder() -> StateDict {
    checkpoint::read_weights(&golden::path("encoder/foreign.pt")).unwrap().state
}

/// NaN is told by features and export; a name that stands twice is refused.
#[test]
fn weights_that_are_not_finite_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = golden_encoder();
    let name = "module._orig_mod.conv1.weight";
    let spoiled = state.get(name).unwrap() * f64::NAN;
    state.insert(name.to_owned(), spoiled);
    let path = folder.path().join("nan.safetensors");
    checkpoint::write_weights(&path, &state).unwrap();
    let (output, _) = features(&golden::path("encoder"), &path, "resnet10", &["--normalize", "none"]);
    let words = said(&output);
    assert!(output.status.success(), "{words}");
    assert!(
        words.contains(
            "warning: 1 tensors of the checkpoint hold NaN or infinity, the first is 'module._orig_mod.conv1"
        )
    );
    assert!(words.contains("warning: the features of 2 of 2 images are not all finite"), "{words}");
    let [from, to] = [path, folder.path().join("out.pt")].map(|path| path.display().to_string());
    let output = sdclr(&["export", &from, "--format", "torch-pt", "--names", "torchvision", "--out", &to]);
    assert!(output.status.success() && said(&output).contains("hold NaN or infinity"), "{}", said(&output));

    assert!(checkpoint::sane(&golden_encoder()).is_ok());
    let error = checkpoint::sane(&state).unwrap_err().to_string();
    assert!(error.contains("'module._orig_mod.conv1.weight' holds NaN, at most 1e6 is sane"), "{error}");
    let huge = state.get(name).unwrap().nan_to_num(7.6e29, None, None);
    state.insert(name.to_owned(), huge);
    assert!(checkpoint::sane(&state).is_err());
}

#[test]
fn names_that_stand_twice_in_safetensors_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("twice.safetensors");
    let tensor = |dtype: &str| format!(r#""w":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,4]}}"#);
    for (header, words) in [
        (format!("{{{},{}}}", tensor("F32"), tensor("I32")), "'w' stands twice"),
        (format!("{{{},{}}}", tensor("F32"), tensor("F32").replace('w', "\\u0077")), "'w' stands twice"),
        (format!(r#"{{"__metadata__":{{"a":"1","a":"2"}},{}}}"#, tensor("F32")), "'a' stands twice"),
    ] {
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat();
        sdclr::fs::write(&path, &file).unwrap();
        let error = checkpoint::read_weights(&path).unwrap_err();
        assert!(matches!(error, CheckpointError::Malformed { .. }) && error.to_string().contains(words), "{error}");
    }
}

fn record(epoch: usize) -> EpochRecord {
    EpochRecord {
        epoch,
        loss: 1.0,
        lr: 0.1,
        density: None,
        overlap: None,
        validation_accuracy: None,
        images_per_second: 1.0,
        seconds: 1.0,
    }
}

fn training() -> Training {
    let (format, recipe_hash, sessions) = (checkpoint::FORMAT, "hash".to_owned(), Vec::new());
    let epochs = vec![record(1), record(2)];
    let meta = TrainingMeta {
        format,
        recipe_hash,
        epoch: 2,
        step: 6,
        seed: 0,
        epochs,
        sessions,
        seconds: 1.0,
        under_way: None,
    };
    Training { state: golden_encoder(), optimizer: StateDict::new(), method: StateDict::new(), meta }
}

/// One flipped bit anywhere in the tensors of our own files is found, and the remedy is the one for them.
#[test]
fn own_files_are_compared_with_their_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    checkpoint::write_training(&path, &training()).unwrap();
    let whole = sdclr::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in [header, header + 1234, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        sdclr::fs::write(&path, &flipped).unwrap();
        for error in [checkpoint::read_training(&path).unwrap_err(), checkpoint::read_weights(&path).unwrap_err()] {
            assert!(matches!(error, CheckpointError::OwnHash { .. }), "{error}");
            assert!(error.to_string().contains("run the same command again to train it anew"), "{error}");
        }
    }
    for end in [0, 7, header - 1, header + 100] {
        sdclr::fs::write(&path, &whole[..end]).unwrap();
        let error = checkpoint::read_training(&path).unwrap_err();
        assert!(matches!(error, CheckpointError::OwnDamaged { .. }), "{end}: {error}");
    }

    let encoder = folder.path().join(checkpoint::ENCODER);
    checkpoint::write_weights(&encoder, &golden_encoder()).unwrap();
    let recorded = checkpoint::state_sha256(&golden_encoder()).unwrap();
    checkpoint::read_own_weights(&encoder, &recorded).unwrap();
    let record = folder.path().join("result.json");
    sdclr::fs::write(&record, format!("{{\"state_sha256\": \"{recorded}\"}}").as_bytes()).unwrap();
    checkpoint::read_encoder(&encoder).unwrap();
    let mut bytes = sdclr::fs::read(&encoder).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    sdclr::fs::write(&encoder, &bytes).unwrap();
    let found = checkpoint::state_sha256(&checkpoint::read_weights(&encoder).unwrap().state).unwrap();
    let error = checkpoint::read_encoder(&encoder).unwrap_err().to_string();
    assert!(error.contains(&found[..12]) && error.contains(&recorded[..12]) && error.contains("delete it"), "{error}");
    let arguments = ["probe", encoder.to_str().unwrap(), "--recipe", "digits-lt/simclr", "--split", "1"];
    let output = sdclr(&[&arguments[..], &["--protocol", "few", "--device", "cpu", "--normalize", "none"]].concat());
    assert!(said(&output).contains("is not the file that was recorded"), "{}", said(&output));
    // Elsewhere it is anybody's file.
    let moved = folder.path().join("moved.safetensors");
    std::fs::copy(&encoder, &moved).unwrap();
    checkpoint::read_encoder(&moved).unwrap();
}

#[test]
fn counters_that_disagree_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let refused = |change: fn(&mut TrainingMeta), words: &str| {
        let mut training = training();
        change(&mut training.meta);
        checkpoint::write_training(&path, &training).unwrap();
        let error = checkpoint::read_training(&path).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("delete it"), "{error}");
    };
    refused(|meta| meta.step = 1 << 63, "9223372036854775808 steps made 2 epochs");
    refused(|meta| meta.step = 1, "1 steps made 2 epochs");
    refused(|meta| meta.epoch = 3, "3 epochs are finished and holds the records of 2");
    refused(|meta| meta.epochs[1].epoch = 1, "the record of its epoch 2 is numbered 1");
}

/// A central directory of many large fields is refused before it takes memory.
#[test]
fn directories_of_pt_files_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.pt");
    let (entries, field) = (200_u16, 60_000_usize);
    let mut directory = Vec::new();
    for index in 0..entries {
        let mut entry = vec![0; 46];
        entry[..4].copy_from_slice(b"PK\x01\x02");
        entry[28..30].copy_from_slice(&5_u16.to_le_bytes());
        entry[30..32].copy_from_slice(&(field as u16).to_le_bytes());
        directory.extend(entry);
        directory.extend(format!("{index:05}").bytes());
        directory.extend(vec![0; field]);
    }
    let mut file = b"PK\x03\x04".to_vec();
    let start = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([entries.to_le_bytes(), entries.to_le_bytes()].concat());
    file.extend([(directory.len() as u32).to_le_bytes(), start.to_le_bytes()].concat());
    file.extend([0; 2]);
    sdclr::fs::write(&path, &file).unwrap();
    let error = checkpoint::read_weights(&path).unwrap_err().to_string();
    assert!(error.contains("bytes of its zip directory"), "{error}");
}

/// A failure to write an export is one error, without words of the zip crate.
#[test]
fn an_export_that_cannot_be_written_is_one_error() {
    let folder = tempfile::tempdir().unwrap();
    let [from, to] = [golden::path("encoder/foreign.pt"), folder.path().join("out.pt")];
    // Files of 16 blocks of 512 or 1024 bytes: less than the export has.
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$@\"";
    let output = Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(assert_cmd::cargo::cargo_bin!("sdclr"))
        .args(["export", "--format", "torch-pt", "--names", "torchvision"])
        .args([from.to_str().unwrap(), "--out", to.to_str().unwrap()])
        .output()
        .unwrap();
    let words = said(&output);
    assert!(!output.status.success() && words.starts_with("error:") && !words.contains("ZipWriter"), "{words}");
    assert!(!to.exists());
}
