//! The record seen as a table: results of one setting on several splits together, and differences between settings,
//! paired by split.

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, Format};
use crate::paper::Row;
use crate::pretrain::{MethodInfo, method_info};
use crate::recipe::{JobId, Part, PretrainSplit, Protocol, name_of};
use crate::record::{self, Job, JobHeader, Outcome, PretrainRecord, ProbeRecord, PublishedRecord, SuiteRecord};
use crate::scores::{MeanStd, mean_std};
use crate::text::{counted, printable};
use crate::verdict::{Verdicts, groups};

/// What was run, the split aside. Ordered as tables list it: by probe, then method, the untrained encoder first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Setting {
    pub protocol: Protocol,
    order: usize,
    pub encoder: String,
    pub pretrain_split: Option<PretrainSplit>,
    pub method: String,
    label: String,
}

impl Setting {
    /// That of a job, as if it were of `protocol`.
    pub(super) fn of(header: &JobHeader, protocol: Protocol) -> Self {
        let JobHeader { encoder, method, label, pretrain_split, .. } = header.clone();
        let label = printable(&label);
        let order = info(&method).map_or(usize::MAX, |info| info.order);
        Self { protocol, order, encoder, method, label, pretrain_split }
    }

    /// That of a published run of `method`, which our encoder of that name repeats.
    pub(super) fn published(method: &str, pretrain_split: PretrainSplit, protocol: Protocol) -> Self {
        let (label, order) = info(method).map_or((method, usize::MAX), |info| (info.label, info.order));
        let (label, method) = (label.to_owned(), method.to_owned());
        Self { protocol, order, encoder: method.clone(), method, label, pretrain_split: Some(pretrain_split) }
    }

    /// The row of the paper's tables that it repeats.
    pub(super) fn row(&self, suite: &str) -> Row {
        let (protocol, method) = (self.protocol, self.encoder.clone());
        Row { suite: suite.to_owned(), protocol, method, pretrain_split: self.pretrain_split }
    }

    /// Whether pre-training was left out.
    pub(super) fn is_untrained(&self) -> bool {
        self.pretrain_split.is_none()
    }

    /// What is known of its method; `None` of one that this program lacks.
    pub(super) fn info(&self) -> Option<&'static MethodInfo> {
        info(&self.method)
    }

    /// The first cells of a table's row: method, pre-training list, probe.
    pub(super) fn words(&self) -> [String; 3] {
        [self.label.clone(), list_label(self.pretrain_split), probe_label(self.protocol).to_owned()]
    }

    /// `SDCLR on D_i`, `random encoder`: the setting in a legend, its probe aside.
    pub(super) fn legend(&self) -> String {
        label_on(&self.label, self.pretrain_split)
    }
}

fn info(method: &str) -> Option<&'static MethodInfo> {
    method_info(method).ok()
}

/// How tables call an encoder of the suites; its own name where no method has it.
pub(super) fn label_of(encoder: &str) -> &str {
    info(encoder).map_or(encoder, |info| info.label)
}

/// `SDCLR on D_i`, or the label alone of what was trained on nothing.
pub(super) fn label_on(label: &str, pretrain_split: Option<PretrainSplit>) -> String {
    match pretrain_split {
        Some(split) => format!("{label} on {}", name_of(&split)),
        None => label.to_owned(),
    }
}

fn list_label(pretrain_split: Option<PretrainSplit>) -> String {
    pretrain_split.map(|split| name_of(&split)).unwrap_or_else(|| "–".to_owned())
}

pub(super) fn probe_label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Full => "full-shot",
        Protocol::Few => "few-shot",
    }
}

/// What the paper calls the five scores of a table.
pub(super) const SCORES: [&str; 5] = ["All", "Many", "Medium", "Few", "Std"];

/// The five scores a table shows, by their published names.
pub(super) type Named<T> = [(&'static str, T); 5];

pub(super) fn scores_of(outcome: &Outcome) -> Named<f64> {
    let values = outcome.scores.shown();
    std::array::from_fn(|i| (SCORES[i], values[i]))
}

/// Split, pre-training seed and probe seed of a run, the seeds counted from 1.
pub(super) type RunKey = (usize, usize, usize);

pub(super) fn run_key(header: &JobHeader) -> RunKey {
    let probe_seed = if let Part::Probe { seed, .. } = header.job.part { seed } else { 1 };
    (header.split, header.job.encoder.seed, probe_seed)
}

/// One setting over its splits and seeds, in their order.
pub(super) struct Cell<'a> {
    pub setting: Setting,
    pub runs: BTreeMap<RunKey, &'a ProbeRecord>,
    /// The encoder of each run, as [`record::encoders`] tells them apart.
    encoders: BTreeMap<RunKey, String>,
    /// Per run: All minus that of the random encoder's probe; empty for the random encoder.
    gains: Vec<f64>,
}

impl Cell<'_> {
    /// Mean and deviation of every score over the splits.
    pub(super) fn scores(&self) -> Named<MeanStd> {
        let column = |score: usize| {
            let values: Vec<f64> = self.runs.values().map(|run| scores_of(&run.outcome)[score].1).collect();
            mean_std(&values)
        };
        std::array::from_fn(|score| (SCORES[score], column(score)))
    }

    /// How many different encoders were probed: one that is not trained is the same on every split.
    pub(super) fn encoders(&self) -> usize {
        self.encoders.values().collect::<BTreeSet<_>>().len()
    }

    /// Whether an encoder stands under several splits or seeds.
    pub(super) fn repeats_encoders(&self) -> bool {
        let runs: BTreeSet<_> = self.runs.keys().map(|(split, seed, _)| (split, seed)).collect();
        self.encoders() < runs.len()
    }

    /// The first of the splits that share encoders with each split.
    pub(super) fn groups(&self) -> BTreeMap<usize, usize> {
        groups(self.encoders.iter().map(|((split, ..), encoder)| (*split, encoder.as_str())))
    }

    /// How many splits, pre-training seeds of a split and classifiers of an encoder there are, at most.
    pub(super) fn design(&self) -> [usize; 3] {
        let most = |counts: BTreeMap<_, BTreeSet<usize>>| counts.values().map(BTreeSet::len).max().unwrap_or(0);
        let (mut splits, mut seeds, mut probes) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        for &(split, seed, probe_seed) in self.runs.keys() {
            splits.insert(split);
            seeds.entry((split, 0)).or_insert_with(BTreeSet::new).insert(seed);
            probes.entry((split, seed)).or_insert_with(BTreeSet::new).insert(probe_seed);
        }
        [splits.len(), most(seeds), most(probes)]
    }

    /// All over that of the random encoder, paired by split; `None` where no split has both.
    pub(super) fn gain(&self) -> Option<MeanStd> {
        (!self.gains.is_empty()).then(|| mean_std(&self.gains))
    }
}

/// `left` minus `right`, split by split.
pub(super) struct Comparison {
    pub name: String,
    pub left: Setting,
    pub protocol: Protocol,
    /// Per split and seed that both have: the differences of the five scores, in points.
    pub splits: BTreeMap<RunKey, Named<f64>>,
}

impl Comparison {
    pub(super) fn scores(&self) -> [MeanStd; 5] {
        [0, 1, 2, 3, 4].map(|score| {
            let values: Vec<f64> = self.splits.values().map(|scores| scores[score].1).collect();
            mean_std(&values)
        })
    }
}

/// What was found, arranged.
pub(super) struct Summary<'a> {
    pub suite: &'a SuiteRecord,
    pub verdicts: Result<&'a Verdicts, &'a str>,
    pub authors: Option<&'a PublishedRecord>,
    places: &'a BTreeMap<JobId, String>,
    pub formats: &'a [Format],
    pub cells: Vec<Cell<'a>>,
    pub comparisons: Vec<Comparison>,
    pub pretrainings: Vec<&'a PretrainRecord>,
}

impl<'a> Summary<'a> {
    pub(super) fn of(findings: &'a Findings<'a>) -> Self {
        let &Findings { suite, verdicts, authors, ref places, formats } = findings;
        let mut runs: Runs = BTreeMap::new();
        for probe in suite.probes() {
            let header = &probe.job.header;
            let Some(protocol) = header.protocol else { continue };
            runs.entry(Setting::of(header, protocol)).or_default().insert(run_key(header), probe);
        }
        let mut pretrainings: Vec<&PretrainRecord> = suite.pretrainings().collect();
        pretrainings
            .sort_by_key(|record| (Setting::of(&record.job.header, Protocol::Full), run_key(&record.job.header)));
        let comparisons = compare(&runs);
        let gains: Vec<Vec<f64>> = runs.keys().map(|setting| gains(&runs, setting)).collect();
        let known = record::encoders(&suite.results);
        let cell = |((setting, runs), gains): ((Setting, BTreeMap<RunKey, &'a ProbeRecord>), Vec<f64>)| {
            let encoders = runs.iter().map(|(key, run)| (*key, known[&run.job.header.job].clone())).collect();
            Cell { setting, runs, encoders, gains }
        };
        let cells = runs.into_iter().zip(gains).map(cell).collect();
        Self { suite, verdicts, authors, places, formats, cells, comparisons, pretrainings }
    }

    /// Path of the job's record, relative to the report.
    pub(super) fn source(&self, job: &Job) -> String {
        source(self.places, job)
    }

    /// How many splits, pre-training seeds of a split and classifiers of an encoder any setting has, at most.
    pub(super) fn design(&self) -> [usize; 3] {
        let designs = self.cells.iter().map(Cell::design);
        designs.fold([0; 3], |most, other| std::array::from_fn(|i| most[i].max(other[i])))
    }

    /// Whether each split was run once.
    pub(super) fn one_run_a_split(&self) -> bool {
        self.design()[1..].iter().all(|n| *n <= 1)
    }

    /// What one run is called: `splits`, or `runs` where a split has several.
    pub(super) fn units(&self) -> &'static str {
        if self.one_run_a_split() { "splits" } else { "runs" }
    }

    /// What means run over, in words.
    pub(super) fn over(&self) -> &'static str {
        match self.design() {
            [_, 0..=1, 0..=1] => "splits",
            [_, _, 0..=1] => "splits and seeds",
            [_, 0..=1, _] => "splits and classifiers",
            _ => "splits, seeds and classifiers",
        }
    }

    /// The columns that say which run a row is: the split, and the seeds where there is more than one.
    pub(super) fn run_columns(&self) -> Vec<&'static str> {
        let [_, seeds, probes] = self.design();
        let seed = (seeds > 1).then_some("seed");
        std::iter::once("split").chain(seed).chain((probes > 1).then_some("probe seed")).collect()
    }

    /// The cells of a run under [`Summary::run_columns`].
    pub(super) fn run_cells(&self, (split, seed, probe_seed): RunKey) -> Vec<String> {
        let [_, seeds, probes] = self.design();
        let seed = (seeds > 1).then_some(seed);
        let all = std::iter::once(split).chain(seed).chain((probes > 1).then_some(probe_seed));
        all.map(|n| n.to_string()).collect()
    }

    /// The columns that count the runs of a row: splits, and seeds a split and classifiers an encoder where any has several;
    /// encoders where some row has one several times.
    pub(super) fn count_columns(&self) -> Vec<&'static str> {
        let [_, seeds, probes] = self.design();
        let shown = [true, seeds > 1, probes > 1, self.cells.iter().any(Cell::repeats_encoders)];
        let columns = shown.into_iter().zip(["splits", "seeds", "classifiers", "encoders"]);
        columns.filter_map(|(shown, column)| shown.then_some(column)).collect()
    }

    /// The cells of a setting under [`Summary::count_columns`].
    pub(super) fn count_cells(&self, cell: &Cell) -> Vec<String> {
        let [splits, seeds, classifiers] = cell.design();
        let count = |column: &str| match column {
            "splits" => splits,
            "seeds" => seeds,
            "classifiers" => classifiers,
            _ => cell.encoders(),
        };
        self.count_columns().into_iter().map(|column| count(column).to_string()).collect()
    }

    /// `3 splits with 2 seeds`, as far as the runs go.
    pub(super) fn design_words(&self) -> String {
        let [splits, seeds, probes] = self.design();
        let classifiers = if probes > 1 { format!(" and {probes} classifiers an encoder") } else { String::new() };
        format!("{} with {}{classifiers}", counted(splits, "split"), counted(seeds, "seed"))
    }

    /// Every encoder and list, once, in the tables' order, as if of the full-shot probe.
    pub(super) fn settings(&self) -> impl Iterator<Item = Setting> {
        let trained = self.pretrainings.iter().map(|record| Setting::of(&record.job.header, Protocol::Full));
        let probed = self.cells.iter().map(|cell| Setting { protocol: Protocol::Full, ..cell.setting.clone() });
        trained.chain(probed).collect::<BTreeSet<_>>().into_iter()
    }

    /// The probes of one protocol.
    pub(super) fn of_protocol(&self, protocol: Protocol) -> impl Iterator<Item = &Cell<'a>> {
        self.cells.iter().filter(move |cell| cell.setting.protocol == protocol)
    }
}

/// Path of the job's record from the report's folder, in which it lies unless `places` has another for it.
pub(super) fn source(places: &BTreeMap<JobId, String>, job: &Job) -> String {
    let file = format!("{}/result.json", job.header.job);
    match places.get(&job.header.job) {
        Some(folder) => format!("{folder}/{file}"),
        None => file,
    }
}

type Runs<'a> = BTreeMap<Setting, BTreeMap<RunKey, &'a ProbeRecord>>;

fn differences(runs: &Runs, left: &Setting, right: &Setting) -> BTreeMap<RunKey, Named<f64>> {
    let (Some(left), Some(right)) = (runs.get(left), runs.get(right)) else { return BTreeMap::new() };
    let paired = left.iter().filter_map(|(split, run)| Some((*split, run, right.get(split)?)));
    paired
        .map(|(split, left, right)| {
            let mut difference = scores_of(&left.outcome);
            for (score, other) in difference.iter_mut().zip(scores_of(&right.outcome)) {
                score.1 -= other.1;
            }
            (split, difference)
        })
        .collect()
}

/// All over that of the untrained encoder, of which there is at most one a protocol.
fn gains(runs: &Runs, setting: &Setting) -> Vec<f64> {
    if setting.is_untrained() {
        return Vec::new();
    }
    let untrained = runs.keys().find(|other| other.is_untrained() && other.protocol == setting.protocol);
    let differences = untrained.map(|untrained| differences(runs, setting, untrained)).unwrap_or_default();
    differences.into_values().map(|scores| scores[0].1).collect()
}

/// The differences that the paper is about: later methods over the first on the same list, and what the long tail costs
/// the first.
fn compare(runs: &Runs) -> Vec<Comparison> {
    use PretrainSplit::{D_b, D_i};
    let mut comparisons = Vec::new();
    for protocol in [Protocol::Full, Protocol::Few] {
        let trained: Vec<&Setting> = runs.keys().filter(|s| s.protocol == protocol && !s.is_untrained()).collect();
        let Some(first) = trained.first() else { continue };
        let on = |encoder: &str, list| {
            trained.iter().copied().find(|s| s.encoder == encoder && s.pretrain_split == Some(list))
        };
        let mut pairs = Vec::new();
        for list in [D_i, D_b] {
            let others = trained.iter().filter(|s| s.pretrain_split == Some(list) && s.encoder != first.encoder);
            pairs.extend(others.map(|setting| (Some(*setting), on(&first.encoder, list))));
        }
        pairs.push((on(&first.encoder, D_b), on(&first.encoder, D_i)));
        for (left, right) in pairs.into_iter().filter_map(|(left, right)| left.zip(right)) {
            let name = format!("{} − {}", left.legend(), right.legend());
            let splits = differences(runs, left, right);
            comparisons.push(Comparison { name, left: left.clone(), protocol, splits });
        }
    }
    comparisons.retain(|comparison| !comparison.splits.is_empty());
    comparisons
}
