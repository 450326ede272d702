//! The record seen as a table: results of one setting on several splits together, and differences between settings,
//! paired by split.

use std::collections::{BTreeMap, BTreeSet};

use crate::pretrain::{MethodInfo, method_info};
use crate::recipe::{Part, PretrainSplit, Protocol, name_of};
use crate::record::{JobHeader, Outcome, PretrainRecord, ProbeRecord, SuiteRecord};
use crate::scores::{MeanStd, mean_std};

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
        let order = info(&method).map_or(usize::MAX, |info| info.order);
        Self { protocol, order, encoder, method, label, pretrain_split }
    }

    /// That of a published run of `method`, which our encoder of that name repeats.
    pub(super) fn published(method: &str, pretrain_split: PretrainSplit, protocol: Protocol) -> Self {
        let (label, order) = info(method).map_or((method, usize::MAX), |info| (info.label, info.order));
        let (label, method) = (label.to_owned(), method.to_owned());
        Self { protocol, order, encoder: method.clone(), method, label, pretrain_split: Some(pretrain_split) }
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

/// The five scores a table shows, by their published names.
pub(super) type Named<T> = [(&'static str, T); 5];

pub(super) fn scores_of(outcome: &Outcome) -> Named<f64> {
    let names = ["All", "Many", "Medium", "Few", "Std"];
    let values = outcome.scores.shown();
    std::array::from_fn(|i| (names[i], values[i]))
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
        let mut index = 0;
        ["All", "Many", "Medium", "Few", "Std"].map(|name| {
            index += 1;
            (name, column(index - 1))
        })
    }

    /// All over that of the random encoder, paired by split; `None` where no split has both.
    pub(super) fn gain(&self) -> Option<MeanStd> {
        (!self.gains.is_empty()).then(|| mean_std(&self.gains))
    }
}

/// `left` minus `right`, split by split.
pub(super) struct Comparison {
    pub name: String,
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

/// The record, arranged.
pub(super) struct Summary<'a> {
    pub suite: &'a SuiteRecord,
    pub cells: Vec<Cell<'a>>,
    pub comparisons: Vec<Comparison>,
    pub pretrainings: Vec<&'a PretrainRecord>,
}

impl<'a> Summary<'a> {
    pub(super) fn of(suite: &'a SuiteRecord) -> Self {
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
        let cells = runs.into_iter().zip(gains).map(|((setting, runs), gains)| Cell { setting, runs, gains }).collect();
        Self { suite, cells, comparisons, pretrainings }
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
            comparisons.push(Comparison { name, protocol, splits: differences(runs, left, right) });
        }
    }
    comparisons.retain(|comparison| !comparison.splits.is_empty());
    comparisons
}
