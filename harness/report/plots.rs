//! The figures of a suite: loss and validation curves, accuracy per class against how frequent the class is, and the scores of
//! every run as dots. Thin strokes and pale marks are single runs, thick ones their mean. Each setting keeps its colour
//! (Okabe and Ito's, told apart by the colour-blind) and the shape of its mark in every figure.

use std::collections::BTreeMap;

use plotters::style::RGBColor;
use serde::Deserialize;

use super::document::Picture;
use super::draw::{self, Axes, Chart, Dots, Series, Style};
use super::summary::{Cell, SCORES, Setting, Summary, probe_label, scores_of};
use super::text::Text;
use super::{ReportError, stamp};
use crate::paper::{Metric, Published};
use crate::pretrain::Marker;
use crate::recipe::{DatasetName, PretrainSplit, Protocol, name_of};
use crate::record::{EpochRecord, ProbeRecord};
use crate::scores::{Groups, groups_of, mean_std};
use crate::verdict::student::of_mean;

fn corners(marker: Marker) -> &'static [(i32, i32)] {
    match marker {
        Marker::Circle => &[(-2, -5), (2, -5), (5, -2), (5, 2), (2, 5), (-2, 5), (-5, 2), (-5, -2)],
        Marker::Square => &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
        Marker::Triangle => &[(0, -6), (6, 5), (-6, 5)],
        Marker::Diamond => &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    }
}

const UNTRAINED: RGBColor = RGBColor(125, 125, 125);
/// Those of Okabe and Ito that stand out on white.
pub(super) const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 158, 115),
    RGBColor(0, 114, 178),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];

/// The colour is the setting's own in all figures of a report, the mark its method's.
fn style(summary: &Summary, setting: &Setting) -> Style {
    let mark = corners(setting.info().map_or(Marker::Diamond, |info| info.marker));
    let own = |other: &Setting| (other.encoder.clone(), other.pretrain_split);
    let trained = summary.settings().filter(|other| !other.is_untrained()).map(|other| own(&other));
    let place = trained.collect::<Vec<_>>().into_iter().position(|other| other == own(setting));
    let colour = match place {
        Some(place) if !setting.is_untrained() => COLOURS[place % COLOURS.len()],
        _ => UNTRAINED,
    };
    Style { colour, mark }
}

/// The chart called `name`, if any of its series has a point.
fn picture(
    summary: &Summary,
    name: &str,
    title: String,
    axes: Axes,
    series: Vec<Series>,
) -> Result<Option<Picture>, ReportError> {
    if series.iter().all(|series| series.mean.is_empty()) {
        return Ok(None);
    }
    let path = format!("plots/{name}.svg");
    let heading = format!("{}: {title}{}", summary.suite.suite, stamp(summary.suite.stamp().as_deref()));
    let svg = draw::chart(&Chart { heading, axes, series }, &path)?;
    Ok(Some(Picture { path, title, svg }))
}

/// What is said below [`loss`].
pub(super) fn loss_caption(summary: &Summary) -> Text {
    format!(
        "Mean loss of each pre-training epoch; thin: single {}, thick: their mean. SDCLR's loss contrasts a dense with a pruned \
         branch and cannot be compared with SimCLR's",
        summary.units()
    )
    .into()
}

/// Pre-training loss by epoch.
pub(super) fn loss(summary: &Summary) -> Result<Option<Picture>, ReportError> {
    // Full or few makes no difference before the probe; the setting only brings the methods into the tables' order.
    let mut jobs: BTreeMap<Setting, Vec<Vec<(f64, f64)>>> = BTreeMap::new();
    for record in &summary.pretrainings {
        let setting = Setting::of(&record.job.header, Protocol::Full);
        jobs.entry(setting).or_default().push(curve(&record.epochs, |epoch| Some(epoch.loss)));
    }
    let series = jobs.into_iter().map(|(setting, runs)| over_runs(summary, &setting, runs)).collect();
    picture(summary, "pretrain_loss", "pre-training loss".into(), Axes::Epochs { y: "NT-Xent loss" }, series)
}

/// By epoch, how much of the mask the one before kept.
pub(super) fn overlap(summary: &Summary) -> Result<Option<Picture>, ReportError> {
    let mut jobs: BTreeMap<Setting, Vec<Vec<(f64, f64)>>> = BTreeMap::new();
    for record in summary.pretrainings.iter().filter(|record| record.epochs.iter().any(|epoch| epoch.overlap.is_some()))
    {
        let setting = Setting::of(&record.job.header, Protocol::Full);
        jobs.entry(setting).or_default().push(curve(&record.epochs, |epoch| epoch.overlap));
    }
    let series = jobs.into_iter().map(|(setting, runs)| over_runs(summary, &setting, runs)).collect();
    let axes = Axes::Epochs { y: "share kept by the mask before" };
    picture(summary, "mask_overlap", "overlap of each epoch's mask with the one before".into(), axes, series)
}

/// What is said below [`validation`].
pub(super) fn validation_caption(summary: &Summary) -> Text {
    format!(
        "Top-1 (ImageNet: top-5) on the validation list, by which the tested epoch is chosen; thin: single {}, thick: their \
         mean",
        summary.units()
    )
    .into()
}

/// Validation accuracy of a probe by epoch.
pub(super) fn validation(summary: &Summary, protocol: Protocol) -> Result<Option<Picture>, ReportError> {
    let series = summary.of_protocol(protocol).map(|cell| {
        let curves = cell.runs.values().map(|run| curve(&run.epochs, |epoch| epoch.validation_accuracy)).collect();
        over_runs(summary, &cell.setting, curves)
    });
    let name = format!("validation_{}", name_of(&protocol));
    let title = format!("{} probe, validation accuracy", probe_label(protocol));
    picture(summary, &name, title, Axes::Epochs { y: "validation accuracy (%)" }, series.collect())
}

/// Accuracy of each class against its frequency, for every setting.
pub(super) fn per_class(summary: &Summary, protocol: Protocol) -> Result<Option<Picture>, ReportError> {
    let title = format!("{} probe, test accuracy per class", probe_label(protocol));
    classes(summary, protocol, &format!("per_class_{}", name_of(&protocol)), title, |_| true, false)
}

/// The same with intervals, for what was pre-trained on the long-tailed list alone: the figure that answers the question.
pub(super) fn long_tailed(summary: &Summary, protocol: Protocol) -> Result<Option<Picture>, ReportError> {
    let title = format!("{} probe, pre-trained on {}", probe_label(protocol), name_of(&PretrainSplit::D_i));
    let name = format!("classes_{}", name_of(&protocol));
    let long_tailed = |setting: &Setting| setting.pretrain_split == Some(PretrainSplit::D_i);
    classes(summary, protocol, &name, title, long_tailed, true)
}

fn classes(
    summary: &Summary,
    protocol: Protocol,
    name: &str,
    title: String,
    shown: impl Fn(&Setting) -> bool,
    intervals: bool,
) -> Result<Option<Picture>, ReportError> {
    let cells: Vec<&Cell> = summary.of_protocol(protocol).filter(|cell| shown(&cell.setting)).collect();
    let first = cells.iter().find_map(|cell| cell.runs.values().next());
    let Some(bounds) = first.and_then(|run| group_bounds(run)) else { return Ok(None) };
    let mut series = Vec::new();
    for cell in cells {
        let counts = by_count(cell);
        series.push(Series {
            label: cell.setting.legend(),
            style: style(summary, &cell.setting),
            runs: cell.runs.values().map(|run| class_points(run)).collect(),
            mean: counts.iter().map(|(count, splits)| (*count as f64, mean_of(splits))).collect(),
            band: if intervals { band(&counts)? } else { Vec::new() },
        });
    }
    picture(summary, name, title, Axes::ClassCount { bounds }, series)
}

/// `(images of the class, accuracy)` of one probe. A class without images stands at 1: the axis is logarithmic.
fn class_points(run: &ProbeRecord) -> Vec<(f64, f64)> {
    let counts = run.outcome.class_counts.iter().map(|&count| count.max(1) as f64);
    counts.zip(run.outcome.per_class.iter().copied()).collect()
}

/// By class count, ascending: per split (of those that share encoders, the first) the accuracies of the classes of that count in
/// all runs.
type Counts = BTreeMap<u64, BTreeMap<usize, Vec<f64>>>;

fn by_count(cell: &Cell) -> Counts {
    let (mut counts, groups) = (Counts::new(), cell.groups());
    for ((split, ..), run) in &cell.runs {
        for (count, accuracy) in class_points(run) {
            counts.entry(count as u64).or_default().entry(groups[split]).or_default().push(accuracy);
        }
    }
    counts
}

fn mean_of(splits: &BTreeMap<usize, Vec<f64>>) -> f64 {
    mean_std(&splits.values().flatten().copied().collect::<Vec<_>>()).mean
}

/// The 90 % interval over splits (their means over classes and seeds), within 0 to 100, where two splits have the count.
fn band(counts: &Counts) -> Result<Vec<(f64, f64, f64)>, ReportError> {
    let mut band = Vec::new();
    for (count, splits) in counts {
        let means: Vec<f64> = splits.values().map(|values| mean_std(values).mean).collect();
        if means.len() > 1 {
            let [low, high] = of_mean(&means).interval(0.9)?;
            band.push((*count as f64, low.max(0.0), high.min(100.0)));
        }
    }
    Ok(band)
}

/// The class counts between Few and Medium, and between Medium and Many: half-way on a logarithmic axis.
fn group_bounds(run: &ProbeRecord) -> Option<[f64; 2]> {
    let class_counts = &run.outcome.class_counts;
    let dataset = DatasetName::deserialize(&run.job.header.recipe["dataset"]).ok()?;
    let Groups { many, medium, few } = groups_of(dataset, class_counts);
    let between = |below: &[usize], above: &[usize]| {
        let count = |class: &usize| class_counts[*class].max(1) as f64;
        Some((count(below.first()?) * count(above.last()?)).sqrt())
    };
    Some([between(&few, &medium)?, between(&medium, &many)?])
}

/// Every run of a probe as a dot, with the published means.
pub(super) fn dots(
    summary: &Summary,
    published: &Published,
    protocol: Protocol,
) -> Result<Option<Picture>, ReportError> {
    let rows: Vec<Dots> = summary.of_protocol(protocol).map(|cell| dots_of(summary, published, cell)).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let path = format!("plots/runs_{}.svg", name_of(&protocol));
    let title = format!("{} probe, every run", probe_label(protocol));
    let heading = format!("{}: {title}{}", summary.suite.suite, stamp(summary.suite.stamp().as_deref()));
    let svg = draw::dots(&heading, &SCORES, &rows, &path)?;
    Ok(Some(Picture { path, title, svg }))
}

fn dots_of(summary: &Summary, published: &Published, cell: &Cell) -> Dots {
    let row = cell.setting.row(&summary.suite.suite);
    let theirs = |metric| published.number(&row, metric).filter(|_| !summary.suite.smoke).map(|number| number.mean);
    let column = |(score, metric): (usize, Metric)| {
        (cell.runs.values().map(|run| scores_of(&run.outcome)[score].1).collect(), theirs(metric))
    };
    let columns = Metric::ALL.into_iter().enumerate().map(column).collect();
    Dots { label: cell.setting.legend(), style: style(summary, &cell.setting), columns }
}

/// Points that a curve keeps at most: more cannot be told apart at the size of the figure.
const POINTS: usize = 300;

/// `(epoch, value)` where there is one, thinned to [`POINTS`]; the last point always stays.
fn curve(epochs: &[EpochRecord], value: impl Fn(&EpochRecord) -> Option<f64>) -> Vec<(f64, f64)> {
    let points = epochs.iter().filter_map(|epoch| Some((epoch.epoch as f64, value(epoch)?)));
    let points: Vec<(f64, f64)> = points.filter(|(_, y)| y.is_finite()).collect();
    let step = points.len().div_ceil(POINTS).max(1);
    let last = points.len().saturating_sub(1);
    points.into_iter().enumerate().filter(|(i, _)| (last - i).is_multiple_of(step)).map(|(_, point)| point).collect()
}

/// The curves of one setting, and their mean at the epochs that all of them have.
fn over_runs(summary: &Summary, setting: &Setting, runs: Vec<Vec<(f64, f64)>>) -> Series {
    let mut values: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (epoch, value) in runs.iter().flatten() {
        values.entry(*epoch as u64).or_default().push(*value);
    }
    let shared = values.into_iter().filter(|(_, values)| values.len() == runs.len());
    Series {
        label: setting.legend(),
        style: style(summary, setting),
        mean: shared.map(|(epoch, values)| (epoch as f64, mean_std(&values).mean)).collect(),
        runs,
        band: Vec::new(),
    }
}
