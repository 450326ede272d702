//! Checkpoints that PyTorch wrote give what torch.load gives, to the bit; our own formats give back what was put in.
//! The goldens are those of `reference/torch/checkpoint_goldens.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sdclr::checkpoint::{
    Array, CheckpointError, FORMAT, Object, StateDict, Training, TrainingMeta, Value, read_object, read_training,
    read_weights, state_sha256, write_training, write_weights,
};
use sdclr::record::EpochRecord;
use serde_json::json;
use tch::{Kind, Tensor};

fn golden(name: &str) -> PathBuf {
    // Cargo and nextest set the variable at run time too, wherever the tests were built.
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    Path::new(&root).join("fixtures/golden/checkpoint").join(name)
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// Names, types, shapes and bits agree; the order of the names is not looked at.
fn assert_same(found: &StateDict, expected: &StateDict) {
    let sorted = |state: &StateDict| {
        let mut names: Vec<_> = state.names().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(sorted(found), sorted(expected));
    for (name, tensor) in found.iter() {
        let other = expected.get(name).unwrap();
        assert_eq!((tensor.kind(), tensor.size()), (other.kind(), other.size()), "{name}");
        assert!(tensor.is_contiguous() && tensor.device() == tch::Device::Cpu, "{name}");
        assert_eq!(bytes(tensor), bytes(&other.contiguous()), "{name}");
    }
    assert_eq!(state_sha256(found).unwrap(), state_sha256(expected).unwrap());
}

#[derive(serde::Deserialize)]
struct Expected {
    epoch: Option<i64>,
    names: Vec<String>,
}

fn check_golden(name: &str) {
    let text = sdclr::fs::read_to_string(&golden("expected.json")).unwrap();
    let expected = &serde_json::from_str::<BTreeMap<String, Expected>>(&text).unwrap()[name];
    let weights = read_weights(&golden(&format!("{name}.pt"))).unwrap();
    assert_eq!(weights.epoch, expected.epoch);
    assert_eq!(weights.state.names().collect::<Vec<_>>(), expected.names, "names in the order of the file");
    assert_same(&weights.state, &read_weights(&golden(&format!("{name}.safetensors"))).unwrap().state);
}

macro_rules! goldens {
    ($($test:ident),* $(,)?) => {
        $(#[test] fn $test() { check_golden(stringify!($test)); })*
        #[test]
        fn every_golden_has_a_test() {
            let text = sdclr::fs::read_to_string(&golden("expected.json")).unwrap();
            let all = serde_json::from_str::<BTreeMap<String, Expected>>(&text).unwrap();
            let mut tested = vec![$(stringify!($test)),*];
            tested.sort_unstable();
            assert_eq!(all.keys().map(String::as_str).collect::<Vec<_>>(), tested);
        }
    };
}
goldens!(
    pretrain,
    pretrain_protocol4,
    pretrain_legacy,
    pretrain_legacy_protocol3,
    pretrain_legacy_protocol4,
    pretrain_1_7,
    probe,
    mask_3,
    views,
    views_legacy,
    dtypes,
    dtypes_big_endian,
    dtypes_no_checksums,
    bare,
);

/// Compares objects with what torch.load gave, as the golden program wrote it.
#[derive(Default)]
struct Comparison {
    /// Where each storage of the file lies in memory.
    storages: BTreeMap<u64, usize>,
}

impl Comparison {
    fn check(&mut self, found: &Object, expected: &serde_json::Value, place: &str) {
        let form = match found {
            Value::None => json!(null),
            Value::Bool(value) => json!(value),
            Value::Str(text) => json!(text),
            Value::Int(value) => json!({"int": value.to_string()}),
            Value::Float(value) => json!({"float": hex(&value.to_be_bytes())}),
            Value::Complex(real, imaginary) => {
                json!({"complex": hex(&real.to_be_bytes()) + &hex(&imaginary.to_be_bytes())})
            }
            Value::Bytes(bytes) => json!({"bytes": hex(bytes)}),
            Value::Array(array) => {
                let Array { dtype, shape, fortran_order, bytes } = array;
                let (dtype, bytes) = match dtype.strip_prefix('>') {
                    Some(code) => {
                        let words = bytes.chunks(code[1..].parse().unwrap());
                        (format!("<{code}"), words.flat_map(|word| word.iter().rev().copied()).collect())
                    }
                    None => (dtype.clone(), bytes.clone()),
                };
                json!({"array": {"dtype": dtype, "shape": shape, "fortran_order": fortran_order, "bytes": hex(&bytes)}})
            }
            Value::Dtype(name) => json!({"dtype": name}),
            Value::Device(name) => json!({"device": name}),
            Value::List(items) => return self.check_items("list", items, expected, place),
            Value::Tuple(items) => return self.check_items("tuple", items, expected, place),
            Value::Set(items) => return self.check_items("set", items, expected, place),
            Value::Dict(entries) => {
                let pairs = expected["dict"].as_array().unwrap_or_else(|| panic!("{place}: a dictionary, {expected}"));
                assert_eq!(pairs.len(), entries.len(), "{place}");
                for ((key, value), pair) in entries.iter().zip(pairs) {
                    self.check(key, &pair[0], place);
                    self.check(value, &pair[1], &format!("{place}/{key:?}"));
                }
                return;
            }
            Value::Tensor(tensor) => return self.check_tensor(tensor, &expected["tensor"], place),
        };
        assert_eq!(&form, expected, "{place}");
    }

    fn check_items(&mut self, form: &str, items: &[Object], expected: &serde_json::Value, place: &str) {
        let others = expected[form].as_array().unwrap_or_else(|| panic!("{place}: a {form}, {expected}"));
        assert_eq!(items.len(), others.len(), "{place}");
        for (index, (item, other)) in items.iter().zip(others).enumerate() {
            self.check(item, other, &format!("{place}/{index}"));
        }
    }

    fn check_tensor(&mut self, tensor: &Tensor, expected: &serde_json::Value, place: &str) {
        let kind = tensor.kind();
        let names = [
            (Kind::Float, "float32"),
            (Kind::Double, "float64"),
            (Kind::Half, "float16"),
            (Kind::BFloat16, "bfloat16"),
            (Kind::Int64, "int64"),
            (Kind::Int, "int32"),
            (Kind::Int16, "int16"),
            (Kind::Int8, "int8"),
            (Kind::Uint8, "uint8"),
            (Kind::Bool, "bool"),
            (Kind::ComplexHalf, "complex32"),
            (Kind::ComplexFloat, "complex64"),
            (Kind::ComplexDouble, "complex128"),
            (Kind::Float8e5m2, "float8_e5m2"),
            (Kind::Float8e4m3fn, "float8_e4m3fn"),
            (Kind::Float8e5m2fnuz, "float8_e5m2fnuz"),
            (Kind::Float8e4m3fnuz, "float8_e4m3fnuz"),
        ];
        let name = names.iter().find(|(known, _)| *known == kind).map(|(_, name)| *name);
        assert_eq!(json!(name), expected["dtype"], "{place}");
        assert_eq!(tensor.device(), tch::Device::Cpu, "{place}");
        let layout = [("shape", tensor.size()), ("stride", tensor.stride())];
        layout.iter().for_each(|(what, found)| assert_eq!(json!(found), expected[what], "{what} of {place}"));
        // Bits, whatever the type: copying rearranges them alone.
        let flat = tensor.contiguous().view(-1).view_dtype(Kind::Uint8);
        assert_eq!(json!(hex(&bytes(&flat))), expected["bytes"], "{place}");
        if let (Some(storage), 1..) = (expected["storage"].as_u64(), tensor.numel()) {
            let offset = expected["offset"].as_u64().unwrap() as usize * kind.elt_size_in_bytes();
            let start = (tensor.data_ptr() as usize).wrapping_sub(offset);
            assert_eq!(*self.storages.entry(storage).or_insert(start), start, "{place} shares its storage");
            let places: std::collections::BTreeSet<_> = self.storages.values().collect();
            assert_eq!(places.len(), self.storages.len(), "{place} shares only its storage");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names of the golden `.pt` files that begin with `prefix`, without their suffix.
fn golden_names(prefix: &str) -> Vec<String> {
    let files = std::fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = files.filter_map(|file| Some(file.strip_suffix(".pt")?.to_owned())).collect();
    names.retain(|name| name.starts_with(prefix));
    names.sort();
    names
}

#[test]
fn every_object_is_what_torch_load_gives() {
    let names = golden_names("");
    let names: Vec<_> =
        names.iter().filter(|name| !name.starts_with("refused_") && !name.starts_with("not_read_")).collect();
    assert!(names.len() >= 20, "{names:?}");
    for name in names {
        let text = sdclr::fs::read_to_string(&golden(&format!("{name}.json"))).unwrap();
        let expected = serde_json::from_str(&text).unwrap();
        let found = read_object(&golden(&format!("{name}.pt"))).unwrap_or_else(|error| panic!("{error}"));
        Comparison::default().check(&found, &expected, name);
    }
}

#[test]
fn objects_are_found_by_their_keys() {
    let object = read_object(&golden("probe.pt")).unwrap();
    let optimizer = object.get("optim").unwrap();
    let momentum = optimizer.get("state").unwrap().get_int(0).unwrap().get("momentum_buffer").unwrap();
    assert_eq!(momentum.as_tensor().unwrap().size(), [4, 3, 3, 3]);
    let groups = optimizer.get("param_groups").unwrap().items().unwrap();
    assert_eq!(groups[0].get("lr").unwrap().as_float(), Some(0.25), "a numpy.float64");
    let milestones = object.get("scheduler").unwrap().get("milestones").unwrap();
    assert_eq!(milestones.get_int(20).unwrap().as_int(), Some(1), "a Counter");
    assert_eq!(object.get("best_prec1").unwrap().as_tensor().unwrap().double_value(&[]), 61.5);
    assert_eq!(groups[0].get("foreach").map(|value| matches!(value, Value::None)), Some(true));
    assert!(object.get("nothing").is_none() && object.as_str().is_none());
}

/// Tensors of sorts that are known and not read say which, and where they stand.
#[test]
fn tensors_of_other_sorts_are_named() {
    let sorts = golden_names("refused_");
    assert!(sorts.len() >= 16, "{sorts:?}");
    for file in sorts {
        let sort = file.strip_prefix("refused_").unwrap();
        let words = match sort {
            "per_channel" => "qint8",
            "sparse_csr" => "sparse",
            "conjugate" => "complex64 to be conjugated",
            "negative" => "float32 to be conjugated or negated",
            other => other,
        };
        for error in [
            read_object(&golden(&format!("{file}.pt"))).map(drop).unwrap_err(),
            read_weights(&golden(&format!("{file}.pt"))).map(drop).unwrap_err(),
        ] {
            let (message, kind) = (error.to_string(), matches!(error, CheckpointError::Kind { .. }));
            assert!(kind && message.contains(&format!("has the type {words}")), "{file}: {message}");
            assert!(message.contains("w'"), "{message}");
        }
    }
}

/// Nothing is wrong with such files: they are not called damaged.
#[test]
fn what_pytorch_alone_reads_is_named() {
    let sorts = golden_names("not_read_");
    assert_eq!(sorts.len(), 6, "{sorts:?}");
    for file in sorts {
        let words = match file.strip_prefix("not_read_").unwrap() {
            "long_double" => "a number of NumPy's type 'f16' (long double)",
            "integer" => "an integer of 26 bytes",
            "complex_key" => "a key of its dictionary 'x' is a complex number",
            "storage" => "its object 'x' is a storage",
            _ => "its object 'x' is a layout or a quantisation scheme",
        };
        let error = read_weights(&golden(&format!("{file}.pt"))).map(drop).unwrap_err();
        let (message, kind) = (error.to_string(), matches!(error, CheckpointError::NotRead { .. }));
        assert!(kind && message.contains("is legal for PyTorch, not read here: "), "{file}: {message}");
        assert!(message.contains(words), "{file}: {message}");
    }
}

#[test]
fn weights_that_share_a_storage_are_parted() {
    let state = read_weights(&golden("views.pt")).unwrap().state;
    let (base, slice) = (state.get("base").unwrap(), state.get("slice").unwrap());
    let before = bytes(base);
    let _ = slice.shallow_clone().fill_(-1.0);
    assert_eq!(bytes(base), before);
}

#[test]
fn prefix_and_integer_buffers_are_kept() {
    let state = read_weights(&golden("pretrain.pt")).unwrap().state;
    assert_eq!(state.get("module.bn1.bn_list.0.num_batches_tracked").unwrap().kind(), Kind::Int64);
    assert_eq!(state.get("module.bn1.bn_list.0.num_batches_tracked").unwrap().int64_value(&[]), 2);
    assert!(state.get("bn1.bn_list.0.weight").is_none());
}

#[test]
fn the_hash_sees_values_names_shapes_and_types_but_not_order_or_layout() {
    let tensor = Tensor::arange(12, (Kind::Float, tch::Device::Cpu)).view([3, 4]);
    let of = |entries: Vec<(&str, Tensor)>| {
        state_sha256(&entries.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()).unwrap()
    };
    let base = of(vec![("a", tensor.shallow_clone()), ("b", tensor.shallow_clone())]);
    let strided = tensor.transpose(0, 1).contiguous().transpose(0, 1);
    assert!(!strided.is_contiguous());
    assert_eq!(base, of(vec![("b", tensor.shallow_clone()), ("a", strided)]));
    assert_ne!(base, of(vec![("a", tensor.shallow_clone()), ("c", tensor.shallow_clone())]));
    assert_ne!(base, of(vec![("a", tensor.shallow_clone()), ("b", tensor.view([4, 3]))]));
    assert_ne!(base, of(vec![("a", tensor.shallow_clone()), ("b", tensor.view_dtype(Kind::Int))]));
    assert_ne!(base, of(vec![("a", tensor.shallow_clone()), ("b", &tensor + 1e-6)]));
}

fn meta() -> TrainingMeta {
    let epoch = EpochRecord {
        epoch: 1,
        loss: 0.1 + 0.2,
        lr: 1.0 / 3.0,
        density: Some(0.1),
        overlap: None,
        validation_accuracy: None,
        images_per_second: 1234.5,
        seconds: 1e-3,
    };
    TrainingMeta {
        format: FORMAT,
        recipe_hash: "ab\"\u{1f4a5}".into(),
        epoch: 1,
        step: 1 << 40,
        seed: u64::MAX - 1,
        epochs: vec![epoch],
        sessions: Vec::new(),
        under_way: None,
        seconds: std::f64::consts::PI,
    }
}

fn small_state() -> StateDict {
    [("w".to_owned(), Tensor::from_slice(&[1.0f32, 2.0]))].into_iter().collect()
}

#[test]
fn weights_come_out_of_a_training_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("training.safetensors");
    let training = Training { state: small_state(), optimizer: small_state(), method: StateDict::new(), meta: meta() };
    write_training(&path, &training).unwrap();
    let weights = read_weights(&path).unwrap();
    assert_eq!((weights.epoch, weights.state.names().collect::<Vec<_>>()), (Some(1), vec!["w"]));
}

#[test]
fn training_of_another_format_or_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("training.safetensors");
    let meta = TrainingMeta { format: FORMAT + 1, ..meta() };
    write_training(
        &path,
        &Training { state: small_state(), optimizer: StateDict::new(), method: StateDict::new(), meta },
    )
    .unwrap();
    assert!(matches!(read_training(&path), Err(CheckpointError::FormatVersion { found: 3, expected: 2, .. })));
    assert!(matches!(read_weights(&path), Err(CheckpointError::FormatVersion { .. })));
    write_weights(&path, &small_state()).unwrap();
    assert!(matches!(read_training(&path), Err(CheckpointError::OwnDamaged { .. })));
    assert!(matches!(read_training(&golden("pretrain.pt")), Err(CheckpointError::OwnDamaged { .. })));
}

#[test]
fn a_training_checkpoint_that_could_not_be_read_back_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("training.safetensors");
    write_training(
        &path,
        &Training { state: small_state(), optimizer: StateDict::new(), method: StateDict::new(), meta: meta() },
    )
    .unwrap();
    let broken = TrainingMeta { seconds: f64::NAN, epoch: 2, ..meta() };
    assert!(
        write_training(
            &path,
            &Training { state: small_state(), optimizer: StateDict::new(), method: StateDict::new(), meta: broken }
        )
        .is_err()
    );
    assert_eq!(read_training(&path).unwrap().meta, meta(), "the last good one stays");
}

#[test]
fn names_and_types_that_the_format_lacks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let one = |name: &str, tensor| [(name.to_owned(), tensor)].into_iter().collect::<StateDict>();
    let complex = write_weights(&path, &one("w", Tensor::zeros([2], (Kind::ComplexFloat, tch::Device::Cpu))));
    assert!(matches!(complex, Err(CheckpointError::Kind { .. })), "{complex:?}");
    let reserved = write_weights(&path, &one("__metadata__", Tensor::from(1.0)));
    assert!(matches!(reserved, Err(CheckpointError::Malformed { .. })), "{reserved:?}");
    assert!(!path.exists());
}

const KINDS: [Kind; 10] = [
    Kind::Double,
    Kind::Float,
    Kind::Half,
    Kind::BFloat16,
    Kind::Int64,
    Kind::Int,
    Kind::Int16,
    Kind::Int8,
    Kind::Uint8,
    Kind::Bool,
];

/// A tensor of any type and small shape with any bits (0 or 1 for bool), contiguous or not.
fn tensors() -> impl Strategy<Value = Tensor> {
    (prop::sample::select(&KINDS[..]), prop::collection::vec(0..4usize, 0..5), any::<u64>(), any::<bool>()).prop_map(
        |(kind, shape, seed, flip)| {
            let count = shape.iter().product::<usize>() * kind.elt_size_in_bytes();
            let noise =
                (0..count as u64).map(|i| (seed.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8);
            let noise: Vec<u8> = noise.map(|byte| if kind == Kind::Bool { byte & 1 } else { byte }).collect();
            let shape: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
            let tensor = Tensor::from_data_size(&noise, &shape, kind);
            if flip && shape.len() >= 2 { tensor.transpose(0, -1) } else { tensor }
        },
    )
}

fn states() -> impl Strategy<Value = StateDict> {
    let name = prop_oneof![
        "[a-z0-9.]{1,12}",
        "\\PC{0,6}",
        Just("state/state/x".to_owned()),
        Just("optimizer/".to_owned()),
        Just("\u{0}\"\\\n".to_owned()),
    ];
    prop::collection::vec((name, tensors()), 1..8).prop_map(|entries| entries.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn weights_round_trip(state in states()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        write_weights(&path, &state).unwrap();
        let first = sdclr::fs::read(&path).unwrap();
        assert_same(&read_weights(&path).unwrap().state, &state);
        write_weights(&path, &state).unwrap();
        prop_assert_eq!(sdclr::fs::read(&path).unwrap(), first, "the same state gives the same bytes");
    }

    #[test]
    fn training_round_trips(state in states(), optimizer in states()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("training.safetensors");
        let training = Training { state, optimizer, method: StateDict::new(), meta: meta() };
        write_training(&path, &training).unwrap();
        let found = read_training(&path).unwrap();
        assert_same(&found.state, &training.state);
        assert_same(&found.optimizer, &training.optimizer);
        prop_assert_eq!(found.meta, training.meta);
        assert_same(&read_weights(&path).unwrap().state, &training.state);
    }
}
