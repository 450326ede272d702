//! `sdclr split make`: what its lists hold, in which format, and one clear error for each thing that cannot be.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::{Command, Output};

use ndarray::{Array1, Array4};
use ndarray_npy::{ReadNpyExt, WriteNpyExt};
use sdclr::split::make::{Decay, MadeList, Source, Wanted, make};

fn wanted(decay: Decay, ratio: f64, per_class: usize) -> Wanted {
    Wanted { decay, ratio, per_class, validation: None, splits: 5, seed: 1 }
}

/// `count` images of each of `classes` classes, which alternate.
fn labels(classes: usize, count: usize) -> Vec<i64> {
    (0..classes * count).map(|image| (image % classes) as i64).collect()
}

/// The positions in each list, by its name.
fn positions(lists: &[MadeList]) -> BTreeMap<String, Vec<i64>> {
    let read = |list: &MadeList| Array1::<i64>::read_npy(list.bytes.as_slice()).unwrap().to_vec();
    lists.iter().map(|list| (list.name.clone(), read(list))).collect()
}

fn descending(counts: &[usize]) -> Vec<usize> {
    let mut counts = counts.to_vec();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts
}

/// The counts of every published long-tailed list of CIFAR, from their own largest class at a ratio of 100.
#[test]
fn exponential_counts_are_the_published_ones() {
    let mut compared = 0;
    for row in include_str!("../fixtures/class_counts.csv").lines().filter(|row| row.contains("_D_i.npy")) {
        let counts: Vec<usize> = row.rsplit(',').next().unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
        let counts = descending(&counts);
        assert_eq!(Decay::Exp.counts(counts.len(), counts[0], 100.0), counts, "{row}");
        compared += 1;
    }
    assert_eq!(compared, 10);
}

#[test]
fn counts_fall_from_the_largest_class_to_the_ratio() {
    // 1000 / 1000^(c / 3), exact in whole numbers.
    assert_eq!(Decay::Exp.counts(4, 1000, 1000.0), [1000, 100, 10, 1]);
    // By hand: least 10, q(c) = ((c + 0.5) / 3)^(-1/6).
    let q = |c: f64| ((c + 0.5) / 3.0).powf(-1.0 / 6.0);
    let middle = 10.0 + 90.0 * (q(1.0) - q(2.0)) / (q(0.0) - q(2.0));
    assert_eq!(Decay::Pareto.counts(3, 100, 10.0), [100, middle as usize, 10]);
    for decay in [Decay::Exp, Decay::Pareto] {
        assert_eq!(decay.counts(7, 30, 1.0), [30; 7]);
        for (classes, most, ratio) in [(2, 100, 100.0), (10, 4500, 100.0), (100, 450, 112.5), (1000, 1280, 256.0)] {
            let counts = decay.counts(classes, most, ratio);
            assert_eq!((counts[0], counts[classes - 1]), (most, (most as f64 / ratio) as usize));
            assert!(counts.is_sorted_by(|a, b| a >= b));
        }
    }
    // A Pareto tail falls faster at first.
    assert!(Decay::Pareto.counts(100, 1280, 256.0)[10] < Decay::Exp.counts(100, 1280, 256.0)[10]);
}

#[test]
fn lists_have_the_published_properties() {
    let (labels, per_class) = (labels(10, 500), 450);
    for decay in [Decay::Exp, Decay::Pareto] {
        let lists = make(&Source::of_labels(&labels), &wanted(decay, 100.0, per_class)).unwrap();
        let counts = decay.counts(10, per_class, 100.0);
        let positions = positions(&lists);
        assert_eq!(positions.len(), 2 + 5 * 3);
        let sets: BTreeMap<&str, HashSet<i64>> =
            positions.iter().map(|(name, list)| (name.as_str(), list.iter().copied().collect())).collect();
        for list in &lists {
            let images = &positions[&list.name];
            assert_eq!(sets[&*list.name].len(), images.len(), "{} repeats an image", list.name);
            assert!(!images.is_sorted(), "{} is sorted by class", list.name);
            let mut found = vec![0; 10];
            images.iter().for_each(|&image| found[labels[image as usize] as usize] += 1);
            assert_eq!(found, list.class_counts);
            assert!(images.iter().all(|image| (0..5000).contains(image)));
        }
        let (train, held_out) = (&sets["trainIdxList.npy"], &sets["valIdxList.npy"]);
        assert_eq!((train.len(), held_out.len()), (4500, 500));
        assert!(train.is_disjoint(held_out));
        let by_name: BTreeMap<&str, &MadeList> = lists.iter().map(|list| (list.name.as_str(), list)).collect();
        let mut orders = HashSet::new();
        for split in 1..=5 {
            let name = |kind: &str| format!("split{split}_{kind}.npy");
            let [tail, even, few] = ["D_i", "D_b", "S_b"].map(|kind| by_name[&*name(kind)]);
            let total: usize = counts.iter().sum();
            assert_eq!(descending(&tail.class_counts), counts);
            assert_eq!(even.class_counts, [total / 10; 10]);
            assert_eq!(few.class_counts, [counts[9]; 10]);
            let [tail, even, few] = ["D_i", "D_b", "S_b"].map(|kind| &sets[&*name(kind)]);
            assert!(few.is_subset(tail) && few.is_subset(even));
            assert!(tail.is_subset(train) && even.is_subset(train));
            orders.insert(by_name[&*name("D_i")].class_counts.clone());
        }
        assert!(orders.len() > 1, "every split has the same frequent classes");
    }
}

#[test]
fn a_seed_always_gives_the_same_bytes() {
    let source = Source::of_labels(&labels(5, 60));
    let of_seed = |seed| make(&source, &Wanted { seed, ..wanted(Decay::Exp, 10.0, 50) }).unwrap();
    assert_eq!(of_seed(1), of_seed(1));
    for (one, other) in of_seed(1).iter().zip(of_seed(2)) {
        assert_eq!(one.name, other.name);
        assert_ne!(one.bytes, other.bytes, "{}", one.name);
    }
    // Fewer splits are the first of more.
    let fewer = make(&source, &Wanted { splits: 2, ..wanted(Decay::Exp, 10.0, 50) }).unwrap();
    assert_eq!(fewer, of_seed(1)[..fewer.len()]);
}

fn split_make(data: &Path, out: &Path, more: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("sdclr"))
        .args(["split", "make", "--classes-decay", "exp", "--seeds", "2", "--data"])
        .args([data, Path::new("--out"), out])
        .args(more)
        .output()
        .unwrap()
}

fn succeed(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The one error, without the paths of this run.
fn error(folder: &Path, output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!((output.status.code(), said.matches("error:").count()), (Some(1), 1), "{said}");
    said.trim().replace(&folder.display().to_string(), "[DIR]")
}

fn touch(path: &Path) {
    sdclr::fs::write(path, b"").unwrap();
}

/// Three classes, 12 training images and 2 test images each; no list needs their pixels.
fn image_folder(root: &Path) {
    for class in ["ant", "bee", "great cat"] {
        (0..12).for_each(|i| touch(&root.join(format!("train/{class}/{i:02}.jpg"))));
        (0..2).for_each(|i| touch(&root.join(format!("val/{class}/v{i}.PNG"))));
    }
    touch(&root.join("train/ant/deeper/.hidden"));
}

#[test]
fn image_folders_give_lines_of_path_and_label() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("made/split"));
    image_folder(&data);
    succeed(&split_make(&data, &out, &["--ratio", "5", "--per-class", "10"]));
    let mut names: Vec<String> =
        std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let of_split = |split| ["D_b", "D_i", "S_b"].map(|kind| format!("split{split}_{kind}.txt"));
    let fixed = ["test.txt", "train.txt", "val.txt"].map(str::to_owned);
    assert_eq!(names, [of_split(1), of_split(2), fixed].concat());
    let lines = |name: &str| {
        let text = std::fs::read_to_string(out.join(name)).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    // 10 / 5^(c / 2): 10, 4, 2.
    assert_eq!(["split1_D_i.txt", "split1_D_b.txt", "split1_S_b.txt"].map(|name| lines(name).len()), [16, 15, 6]);
    assert_eq!(["train.txt", "val.txt", "test.txt"].map(|name| lines(name).len()), [33, 3, 6]);
    for line in lines("train.txt").iter().chain(&lines("split2_D_b.txt")) {
        let (path, label) = line.rsplit_once(' ').unwrap();
        let class = ["ant", "bee", "great cat"][label.parse::<usize>().unwrap()];
        assert!(path.starts_with(&format!("train/{class}/")) && data.join(path).is_file(), "{line}");
    }
    assert!(lines("test.txt").iter().all(|line| line.starts_with("val/")));
    // What is there is never overwritten.
    let before = std::fs::read(out.join("train.txt")).unwrap();
    let again = split_make(&data, &out, &["--ratio", "5", "--per-class", "10", "--seed", "2"]);
    insta::assert_snapshot!("split_make_again", error(folder.path(), &again));
    assert_eq!(std::fs::read(out.join("train.txt")).unwrap(), before);
}

fn write_npy<T: ndarray_npy::WritableElement>(path: &Path, values: Vec<T>) {
    write_array(path, &Array1::from(values));
}

fn write_array(path: &Path, array: &impl WriteNpyExt) {
    let mut bytes = Vec::new();
    array.write_npy(&mut bytes).unwrap();
    sdclr::fs::write(path, &bytes).unwrap();
}

#[test]
fn arrays_give_positions() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("arrays"), folder.path().join("split"));
    std::fs::create_dir(&data).unwrap();
    let images = Array4::<u8>::zeros((60, 4, 4, 3));
    write_array(&data.join("images.npy"), &images);
    write_npy(&data.join("labels.npy"), labels(3, 20));
    succeed(&split_make(&data, &out, &["--ratio", "9", "--per-class", "18"]));
    let tail = Array1::<i64>::read_npy(std::fs::File::open(out.join("split2_D_i.npy")).unwrap()).unwrap();
    assert_eq!(tail.len(), 18 + 6 + 2);
    // The same bytes as the library's, and labels of uint8 count as well.
    let made = make(&Source::of_labels(&labels(3, 20)), &wanted(Decay::Exp, 9.0, 18)).unwrap();
    for list in made.iter().filter(|list| out.join(&list.name).exists()) {
        assert_eq!(std::fs::read(out.join(&list.name)).unwrap(), list.bytes, "{}", list.name);
    }
    write_npy(&data.join("labels.npy"), labels(3, 20).iter().map(|&label| label as u8).collect::<Vec<_>>());
    let again = folder.path().join("again");
    succeed(&split_make(&data, &again, &["--ratio", "9", "--per-class", "18"]));
    assert_eq!(
        std::fs::read(again.join("split1_D_b.npy")).unwrap(),
        std::fs::read(out.join("split1_D_b.npy")).unwrap()
    );
}

#[test]
fn what_cannot_be_is_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (data, out) = (folder.join("data"), folder.join("split"));
    image_folder(&data);
    let mut errors = Vec::new();
    let mut refuse = |data: &Path, more: &[&str]| {
        errors.push(error(folder, &split_make(data, &out, more)));
        assert!(!out.exists());
    };
    refuse(&data, &["--ratio", "5", "--per-class", "12"]);
    refuse(&data, &["--ratio", "5", "--per-class", "10", "--validation", "3"]);
    refuse(&data, &["--ratio", "0.5", "--per-class", "10"]);
    refuse(&data, &["--ratio", "NaN", "--per-class", "10"]);
    refuse(&data, &["--ratio", "11", "--per-class", "10"]);
    refuse(&folder.join("nothing"), &["--ratio", "5", "--per-class", "10"]);
    let small = ["--ratio", "2", "--per-class", "4"];
    touch(&data.join("val/dog/1.jpg"));
    refuse(&data, &small);
    std::fs::remove_dir_all(data.join("val/dog")).unwrap();
    touch(&data.join("train/bee/notes.txt"));
    refuse(&data, &small);
    std::fs::remove_file(data.join("train/bee/notes.txt")).unwrap();
    let one = folder.join("one");
    touch(&one.join("train/ant/1.jpg"));
    touch(&one.join("test/ant/1.jpg"));
    refuse(&one, &small);
    let broken = folder.join("broken.npz");
    sdclr::fs::write(&broken, b"PK").unwrap();
    refuse(&broken, &small);
    let pair = folder.join("pair");
    std::fs::create_dir(&pair).unwrap();
    write_array(&pair.join("images.npy"), &Array4::<u8>::zeros((4, 4, 5, 3)));
    write_npy(&pair.join("labels.npy"), vec![0_i64, 1, 0]);
    refuse(&pair, &small);
    write_array(&pair.join("images.npy"), &Array4::<u8>::zeros((4, 4, 4, 3)));
    refuse(&pair, &small);
    write_npy(&pair.join("labels.npy"), vec![0_i64, 1, 0, -1]);
    refuse(&pair, &small);
    write_npy(&pair.join("labels.npy"), vec![0_i64, 1, 0, 1]);
    refuse(&pair, &small);
    write_npy(&pair.join("labels.npy"), vec![0_i64, 1, 3, 0]);
    refuse(&pair, &small);
    write_npy(&pair.join("labels.npy"), vec![0.5_f32; 4]);
    refuse(&pair, &small);
    insta::assert_snapshot!("split_make_errors", errors.join("\n"));
}
