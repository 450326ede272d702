//! What keys resume: everything that can change a result changes the hash of its job, and nothing else does.

use sdclr::network::{Network, NetworkSpec};
use sdclr::recipe::{JobId, PretrainSplit, Protocol, Recipe, Suite};
use sdclr::suite::context::{Context, Scale};
use sdclr::suite::{PlannedEncoder, Selection, plan};
use serde_json::Value;
use tch::{Device, Kind};

fn context(recipe: &Recipe, change: impl FnOnce(&mut Scale)) -> Context {
    let mut scale = Scale { device: Some("cpu".into()), ..Scale::default() };
    change(&mut scale);
    Context::open(recipe, scale).unwrap()
}

fn encoder(name: &str, overrides: &[String]) -> PlannedEncoder {
    PlannedEncoder::of_recipe(name, overrides, Some(PretrainSplit::D_i), 1).unwrap()
}

fn network(encoder: &PlannedEncoder, seed: u64) -> Network {
    Network::new(NetworkSpec::of_recipe(&encoder.recipe).probe(10), seed, Kind::Float, Device::Cpu).unwrap()
}

fn pretraining(context: &Context, encoder: &PlannedEncoder) -> String {
    context.pretraining(encoder, encoder.id.list.unwrap()).unwrap().1.recipe_hash
}

fn probing(context: &Context, encoder: &PlannedEncoder, protocol: Protocol, network: &Network) -> String {
    context.probing(encoder, &encoder.id.probe(protocol), network, false).unwrap().header.recipe_hash
}

/// Every key of a recipe, dotted, with what it holds.
fn leaves(value: &Value, prefix: &str, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(keys) => keys.iter().for_each(|(key, inner)| {
            leaves(inner, &if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") }, found);
        }),
        leaf => found.push((prefix.to_owned(), leaf.clone())),
    }
}

/// Values that a key might also hold; the first that the recipe accepts is taken.
fn others(key: &str, value: &Value) -> Vec<String> {
    let words = [
        "resnet18",
        "imagenet",
        "adam",
        "constant",
        "cosine",
        "bf16",
        "top5",
        "distributed_sampler",
        "resized_crop",
        "none",
        "resize_centre_crop",
    ];
    match value {
        Value::Bool(on) => vec![(!on).to_string()],
        Value::String(own) => words.iter().filter(|word| *word != own).map(|word| (*word).to_owned()).collect(),
        Value::Array(values) if key.ends_with("milestones") => vec![format!("[{}]", values.len() + 70)],
        Value::Array(_) => vec!["[0.5, 0.9]".into(), "[0.9, 1.1]".into()],
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap();
            [number + 0.25, number * 0.5].map(|new| format!("{new:?}")).to_vec()
        }
        Value::Number(number) => {
            let number = number.as_i64().unwrap();
            [number + 1, number - 1].map(|new| new.to_string()).to_vec()
        }
        Value::Null | Value::Object(_) => panic!("{key} holds {value}"),
    }
}

/// The recipe with `key` changed, and that changed alone.
fn changed(name: &str, key: &str, value: &Value) -> Option<PlannedEncoder> {
    // A transform belongs to the kind of images: no other value can be had for these.
    let fixed = ["method", "dataset"].contains(&key)
        || key.ends_with("_transform")
        || name.ends_with("simclr") && key == "dual_bn";
    let accepted = others(key, value).into_iter().find_map(|other| {
        // A cosine needs its other keys only where it is chosen; a size needs room in what it is cut from.
        let set = [format!("{key}={other}")];
        PlannedEncoder::of_recipe(name, &set, Some(PretrainSplit::D_i), 1).ok()
    });
    assert!(accepted.is_some() || fixed, "no other value of {key} ({value}) is accepted");
    accepted
}

#[test]
fn every_key_of_a_recipe_counts_where_it_is_read() {
    for name in ["digits-lt/sdclr", "digits-lt/simclr"] {
        let base = encoder(name, &[]);
        let context = context(&base.recipe, |_| {});
        let network = network(&base, 1);
        let hashes = |encoder: &PlannedEncoder| {
            let probe = |protocol| probing(&context, encoder, protocol, &network);
            [pretraining(&context, encoder), probe(Protocol::Full), probe(Protocol::Few)]
        };
        let expected = hashes(&base);
        let mut keys = Vec::new();
        leaves(&base.recipe.to_json().unwrap(), "", &mut keys);
        assert!(keys.len() > 60, "{} keys", keys.len());
        for (key, value) in keys {
            let Some(other) = changed(name, &key, &value) else { continue };
            let differ: Vec<bool> = hashes(&other).iter().zip(&expected).map(|(a, b)| a != b).collect();
            let reads = match key.split('.').collect::<Vec<_>>().as_slice() {
                ["probe", "full", ..] => [false, true, false],
                ["probe", "few", ..] => [false, false, true],
                // What a probe's network is made by; all else of it its tensors say.
                ["network" | "stem" | "width" | "threads"] => [true, true, true],
                _ => [true, false, false],
            };
            assert_eq!(differ, reads, "{name}: {key} changed from {value}");
        }
    }
}

#[test]
fn data_lists_limits_and_encoders_count_too() {
    let base = encoder("digits-lt/simclr", &[]);
    let whole = context(&base.recipe, |_| {});
    let (own, other) = (network(&base, 1), network(&base, 2));
    let few = |context: &Context, encoder: &PlannedEncoder, network| probing(context, encoder, Protocol::Few, network);
    let (trained, probed) = (pretraining(&whole, &base), few(&whole, &base, &own));
    assert_ne!(few(&whole, &base, &other), probed, "the encoder");
    assert_ne!(probing(&whole, &base, Protocol::Full, &own), probed, "the protocol");
    for change in [|scale: &mut Scale| scale.limit_images = Some(64), |scale: &mut Scale| scale.limit_epochs = Some(3)]
    {
        let limited = context(&base.recipe, change);
        assert_ne!(pretraining(&limited, &base), trained);
        assert_ne!(few(&limited, &base, &own), probed);
    }
    // Not what cannot change a result.
    let eager = context(&base.recipe, |scale| scale.eager = true);
    assert_eq!((pretraining(&eager, &base), few(&eager, &base, &own)), (trained.clone(), probed.clone()));
    // Another list, another split.
    let suite = Suite::open("digits-lt").unwrap();
    let all = plan(&suite, &Selection { methods: vec!["simclr".into()], ..Selection::default() }).unwrap();
    let hashes: std::collections::BTreeSet<String> = all.iter().map(|encoder| pretraining(&whole, encoder)).collect();
    assert_eq!(hashes.len(), all.len());
    let job: JobId = "simclr-D_i-split1".parse().unwrap();
    assert!(all.iter().any(|encoder| encoder.id.pretrain() == job && pretraining(&whole, encoder) == trained));
}
