//! What pruning does to an encoder: counted and measured right, recorded beside the encoder by `sdclr repro`, and measured anew
//! where it is missing.

use std::path::Path;
use std::process::{Command, Output};

use sdclr::dataset::Dataset;
use sdclr::network::{Kept, Mask, Network, NetworkSpec};
use sdclr::probe::mechanism::{self, Pruning};
use sdclr::random;
use sdclr::recipe::{DatasetName, PretrainSplit, Protocol, Recipe};
use sdclr::record::mechanism::{MechanismRecord, Representation};
use sdclr::split::{self, ListName};
use sdclr::verdict::mechanism::rows;
use tch::{Device, Kind, Tensor};

#[test]
fn overlap_is_counted() {
    let weights = random::uniform(2 * 3 * 3 * 3, 7).unwrap().view([2, 3, 3, 3]).to_kind(Kind::Float);
    let mask = |kept: [i64; 3]| {
        let flat = Tensor::zeros([54], (Kind::Float, Device::Cpu));
        kept.iter().for_each(|&place| drop(flat.get(place).fill_(1.0)));
        Mask::of_flat(&[&weights], &flat).unwrap().unwrap()
    };
    let (now, earlier) = (mask([0, 5, 53]), mask([5, 6, 53]));
    assert_eq!(now.kept(Some(&earlier)), Kept { density: 3.0 / 54.0, overlap: Some(2.0 / 3.0) });
    assert_eq!(now.kept(Some(&now)).overlap, Some(1.0));
    assert_eq!(now.kept(None), Kept { density: 3.0 / 54.0, overlap: None });
    let nothing = Mask::of_flat(&[&weights], &Tensor::zeros([54], (Kind::Float, Device::Cpu))).unwrap().unwrap();
    assert_eq!(nothing.kept(Some(&now)), Kept { density: 0.0, overlap: None });
}

/// A mask that keeps all changes nothing; one that drops much changes much, also where batch norm is adjusted.
#[test]
fn the_change_is_that_of_the_mask() {
    tch::set_num_threads(1);
    let recipe = Recipe::resolve("digits-lt/simclr", &["output_dim=8".into()]).unwrap();
    let dataset = Dataset::load(DatasetName::Digits, None, Device::Cpu).unwrap();
    let list = split::read(&dataset, None, ListName::Pretrain(PretrainSplit::D_i, 1)).unwrap();
    let class_counts = list.class_counts(10);
    let changes = |ratio: f64, trained_pruned: bool| {
        let network = Network::new(NetworkSpec::of_recipe(&recipe), 3, Kind::Float, Device::Cpu).unwrap();
        let mask = Mask::magnitude(&network.prunable(), ratio, 0.0, 0).unwrap();
        let layers = mechanism::layers(&network, &mask).unwrap();
        let (weights, kept) = layers.iter().fold((0, 0), |sum, layer| (sum.0 + layer.weights, sum.1 + layer.kept));
        assert_eq!((layers.len(), layers[0].layer.as_str()), (12, "conv1.weight"));
        assert!((kept as f64 / weights as f64 - mask.density()).abs() < 1e-12);
        let (network, mask, list, recipe) = (&network, &mask, &list, recipe.probe(Protocol::Full));
        let pruning = Pruning { network, mask, trained_pruned, list, recipe, class_counts: &class_counts };
        mechanism::changes(&pruning).unwrap()
    };
    for (ratio, trained_pruned, low, high) in
        [(0.0, true, -1e-12, 1e-12), (0.5, true, 1e-6, 1.0), (0.9, false, 1e-3, 2.0)]
    {
        let changes = changes(ratio, trained_pruned);
        assert_eq!(
            changes.iter().map(|change| change.representation).collect::<Vec<_>>(),
            [Representation::Backbone, Representation::Head]
        );
        for change in changes {
            assert_eq!(change.classes.iter().map(|class| class.images).collect::<Vec<_>>(), class_counts);
            assert_eq!(
                change.classes.iter().map(|class| class.most_changed).sum::<u64>(),
                (list.len() as u64).div_ceil(10)
            );
            assert!(change.classes.iter().all(|class| (low..=high).contains(&class.mean)), "{ratio}: {change:?}");
        }
    }
}

fn repro(out: &Path, more: &[&str]) -> Output {
    let short = ["--limit-images", "64", "--limit-epochs", "2", "--splits", "1", "--device", "cpu", "--out"];
    let program = assert_cmd::cargo::cargo_bin!("sdclr");
    Command::new(program).args(["repro", "digits-lt"]).args(short).arg(out).args(more).output().unwrap()
}

#[test]
fn a_suite_records_it_and_makes_up_for_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let path = |encoder: &str| out.join(format!("{encoder}-split1/mechanism.json"));
    let read = |encoder: &str| -> MechanismRecord {
        let text = std::fs::read(path(encoder)).unwrap();
        MechanismRecord { seconds: 0.0, ..serde_json::from_slice(&text).unwrap() }
    };

    // Without a method that prunes there is nothing to look at.
    let first = repro(out, &["--methods", "simclr-D_i"]);
    assert!(first.status.success(), "{}", said(&first));
    assert!(!path("simclr-D_i").exists());
    let all = repro(out, &["--methods", "simclr,sdclr"]);
    assert!(all.status.success(), "{}", said(&all));
    let encoders = ["simclr-D_b", "simclr-D_i", "sdclr-D_i"];
    let records = encoders.map(read);
    assert_eq!(records.each_ref().map(|record| record.trained_pruned), [false, false, true]);
    for record in &records {
        assert!(record.smoke && record.prune_ratio == 0.9, "{record:?}");
        assert_eq!(record.splits_sha256.keys().collect::<Vec<_>>(), ["split1_D_i.npy"]);
    }

    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    let answer = "SDCLR, pooled features: rank correlation of a class's frequency with its change ";
    assert!(report.contains("## The mechanism") && report.contains(answer), "{report}");
    assert!(report.contains("one split gives no interval") && out.join("plots/mask_overlap.svg").exists());

    std::fs::remove_file(path("sdclr-D_i")).unwrap();
    let again = repro(out, &["--methods", "simclr,sdclr"]);
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(encoders.map(read), records);

    // An encoder that stands on two splits is one run, two encoders are two.
    let mut two = vec![records[0].clone(); 2];
    two[1].job.encoder.split = 2;
    let correlation = |two: &[MechanismRecord]| rows(two).unwrap()[0].correlation.clone().unwrap();
    assert_eq!((correlation(&two).values.len(), correlation(&two).interval), (1, None));
    two[1].state_sha256 = "another".to_owned();
    assert!(correlation(&two).values.len() == 2 && correlation(&two).interval.is_some());

    // One of another encoder is not believed.
    std::fs::copy(path("simclr-D_b"), path("sdclr-D_i")).unwrap();
    let other = repro(out, &["--methods", "sdclr"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(said(&other).contains("its encoder is another than that of result.json"), "{}", said(&other));
}
