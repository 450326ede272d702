//! The record seen as a table: results of one setting on several splits together, and differences between settings,
//! paired by split.

use std::collections::BTreeMap;

use crate::recipe::{PretrainSplit, Protocol, name_of};
use crate::record::{JobResult, ProbeOutcome, SuiteRecord};
use crate::scores::{MeanStd, mean_std};

/// The name that records give to the probe of an untrained encoder.
pub(super) const RANDOM: &str = "random";

/// What was run, the split aside. Ordered as tables list it: by probe, then method, the random encoder first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Setting {
    pub protocol: Protocol,
    rank: usize,
    pub method: String,
    pub pretrain_split: Option<PretrainSplit>,
}

impl Setting {
    pub(super) fn new(method: &str, pretrain_split: Option<PretrainSplit>, protocol: Protocol) -> Self {
        let rank = [RANDOM, "simclr", "sdclr"].iter().position(|known| *known == method).unwrap_or(usize::MAX);
        Self { protocol, rank, method: method.to_owned(), pretrain_split }
    }

    /// The first cells of a table's row: method, pre-training list, probe.
    pub(super) fn words(&self) -> [String; 3] {
        [method_label(&self.method), list_label(self.pretrain_split), probe_label(self.protocol).to_owned()]
    }

    /// `SDCLR on D_i`, `random encoder`: the setting in a legend, its probe aside.
    pub(super) fn legend(&self) -> String {
        method_on(&self.method, self.pretrain_split)
    }
}

/// `SDCLR on D_i`, or `random encoder`, which was trained on nothing.
pub(super) fn method_on(method: &str, pretrain_split: Option<PretrainSplit>) -> String {
    match pretrain_split {
        Some(split) => format!("{} on {}", method_label(method), name_of(&split)),
        None => method_label(method),
    }
}

pub(super) fn method_label(method: &str) -> String {
    match method {
        RANDOM => "random encoder".to_owned(),
        "simclr" => "SimCLR".to_owned(),
        "sdclr" => "SDCLR".to_owned(),
        other => other.to_owned(),
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
pub(super) type Scores<T> = [(&'static str, T); 5];

pub(super) fn scores_of(probe: &ProbeOutcome) -> Scores<f64> {
    [("All", probe.all), ("Many", probe.many), ("Medium", probe.medium), ("Few", probe.few), ("Std", probe.std)]
}

/// One finished probe.
pub(super) struct ProbeRun<'a> {
    pub job: &'a JobResult,
    pub outcome: &'a ProbeOutcome,
}

/// One setting over its splits, in their order.
pub(super) struct Cell<'a> {
    pub setting: Setting,
    pub runs: BTreeMap<usize, ProbeRun<'a>>,
    /// Per split: All minus that of the random encoder's probe; empty for the random encoder.
    gains: Vec<f64>,
}

impl Cell<'_> {
    /// Mean and deviation of every score over the splits.
    pub(super) fn scores(&self) -> Scores<MeanStd> {
        let column = |score: usize| {
            let values: Vec<f64> = self.runs.values().map(|run| scores_of(run.outcome)[score].1).collect();
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
    /// Per split that both have: the differences of the five scores, in points.
    pub splits: BTreeMap<usize, Scores<f64>>,
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
    pub pretrainings: Vec<&'a JobResult>,
}

impl<'a> Summary<'a> {
    pub(super) fn of(suite: &'a SuiteRecord) -> Self {
        let mut runs: BTreeMap<Setting, BTreeMap<usize, ProbeRun<'a>>> = BTreeMap::new();
        let mut pretrainings = Vec::new();
        for job in &suite.results {
            let header = &job.header;
            match (header.protocol, &job.probe) {
                (Some(protocol), Some(outcome)) => {
                    let setting = Setting::new(&header.method, header.pretrain_split, protocol);
                    runs.entry(setting).or_default().insert(header.split, ProbeRun { job, outcome });
                }
                _ => pretrainings.push(job),
            }
        }
        pretrainings.sort_by_key(|job| {
            (Setting::new(&job.header.method, job.header.pretrain_split, Protocol::Full), job.header.split)
        });
        let comparisons = compare(&runs);
        let gains: Vec<Vec<f64>> = runs.keys().map(|setting| gains(&runs, setting)).collect();
        let cells = runs.into_iter().zip(gains).map(|((setting, runs), gains)| Cell { setting, runs, gains }).collect();
        Self { suite, cells, comparisons, pretrainings }
    }

    /// The probes of one protocol.
    pub(super) fn of_protocol(&self, protocol: Protocol) -> impl Iterator<Item = &Cell<'a>> {
        self.cells.iter().filter(move |cell| cell.setting.protocol == protocol)
    }
}

type Runs<'a> = BTreeMap<Setting, BTreeMap<usize, ProbeRun<'a>>>;

fn differences(runs: &Runs, left: &Setting, right: &Setting) -> BTreeMap<usize, Scores<f64>> {
    let (Some(left), Some(right)) = (runs.get(left), runs.get(right)) else { return BTreeMap::new() };
    let paired = left.iter().filter_map(|(split, run)| Some((*split, run, right.get(split)?)));
    paired
        .map(|(split, left, right)| {
            let mut difference = scores_of(left.outcome);
            for (score, other) in difference.iter_mut().zip(scores_of(right.outcome)) {
                score.1 -= other.1;
            }
            (split, difference)
        })
        .collect()
}

fn gains(runs: &Runs, setting: &Setting) -> Vec<f64> {
    if setting.method == RANDOM {
        return Vec::new();
    }
    let random = Setting::new(RANDOM, None, setting.protocol);
    differences(runs, setting, &random).into_values().map(|scores| scores[0].1).collect()
}

/// The differences that the paper is about: SDCLR over SimCLR on the same list, and what the long tail costs SimCLR.
fn compare(runs: &Runs) -> Vec<Comparison> {
    use PretrainSplit::{D_b, D_i};
    let pairs = [("sdclr", D_i, "simclr", D_i), ("sdclr", D_b, "simclr", D_b), ("simclr", D_b, "simclr", D_i)];
    let mut comparisons = Vec::new();
    for protocol in [Protocol::Full, Protocol::Few] {
        for (left, left_list, right, right_list) in pairs {
            let setting = |method, list| Setting::new(method, Some(list), protocol);
            let splits = differences(runs, &setting(left, left_list), &setting(right, right_list));
            let name = format!("{} − {}", method_on(left, Some(left_list)), method_on(right, Some(right_list)));
            comparisons.push(Comparison { name, protocol, splits });
        }
    }
    comparisons.retain(|comparison| !comparison.splits.is_empty());
    comparisons
}
