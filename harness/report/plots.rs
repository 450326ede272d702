//! plots/*.svg: loss and validation curves, and accuracy per class against how frequent the class is. Thin strokes and pale
//! marks are single splits, thick ones their mean. Each setting keeps its colour (Okabe and Ito's, told apart by the
//! colour-blind) and the shape of its mark in every figure.

use std::collections::BTreeMap;

use plotters::coord::combinators::BindKeyPoints;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use serde::Deserialize;

use super::summary::{Setting, Summary, probe_label};
use super::{Exporter, OutputFile, ReportError, stamp};
use crate::pretrain::Marker;
use crate::recipe::{DatasetName, Protocol};
use crate::record::{EpochRecord, ProbeRecord};
use crate::scores::{Groups, groups_of, mean_std};

pub(super) struct Plots;

impl Exporter for Plots {
    fn export(&self, summary: &Summary) -> Result<Vec<OutputFile>, ReportError> {
        figures(summary).iter().map(|figure| Ok(OutputFile::new(figure.path.clone(), draw(figure)?))).collect()
    }
}

/// One picture: what it shows and how it is introduced.
pub(super) struct Figure {
    pub path: String,
    pub title: String,
    pub caption: String,
    /// The title inside the picture, which carries the smoke stamp.
    heading: String,
    axes: Axes,
    series: Vec<Series>,
}

/// The two kinds of axes.
enum Axes {
    /// Epochs on a linear axis; what stands on the other one.
    Epochs { y: &'static str },
    /// Images of the class on a logarithmic axis, accuracy from 0 to 100; where one group ends and the next begins.
    ClassCount { bounds: [f64; 2] },
}

/// One setting: a curve per split, and their mean.
struct Series {
    label: String,
    style: Style,
    splits: Vec<Vec<(f64, f64)>>,
    mean: Vec<(f64, f64)>,
}

#[derive(Clone, Copy)]
struct Style {
    colour: RGBColor,
    /// Corners of the mark, in pixels around its centre.
    mark: &'static [(i32, i32)],
}

fn corners(marker: Marker) -> &'static [(i32, i32)] {
    match marker {
        Marker::Circle => &[(-2, -5), (2, -5), (5, -2), (5, 2), (2, 5), (-2, 5), (-5, 2), (-5, -2)],
        Marker::Square => &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
        Marker::Triangle => &[(0, -6), (6, 5), (-6, 5)],
        Marker::Diamond => &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    }
}

const UNTRAINED: RGBColor = RGBColor(110, 110, 110);
/// Those of Okabe and Ito that stand out on white.
const COLOURS: [RGBColor; 6] = [
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

/// Every figure that the record has data for.
pub(super) fn figures(summary: &Summary) -> Vec<Figure> {
    let mut figures = vec![loss(summary)];
    for protocol in [Protocol::Full, Protocol::Few] {
        figures.push(validation(summary, protocol));
        figures.extend(per_class(summary, protocol));
    }
    figures.retain(|figure| figure.series.iter().any(|series| !series.mean.is_empty()));
    for figure in &mut figures {
        figure.heading = format!("{}: {}{}", summary.suite.suite, figure.title, stamp(summary.suite));
    }
    figures
}

fn figure(name: &str, title: String, caption: &str, axes: Axes, series: Vec<Series>) -> Figure {
    Figure {
        path: format!("plots/{name}.svg"),
        title,
        caption: caption.to_owned(),
        heading: String::new(),
        axes,
        series,
    }
}

fn loss(summary: &Summary) -> Figure {
    // Full or few makes no difference before the probe; the setting only brings the methods into the tables' order.
    let mut jobs: BTreeMap<Setting, Vec<Vec<(f64, f64)>>> = BTreeMap::new();
    for record in &summary.pretrainings {
        let setting = Setting::of(&record.job.header, Protocol::Full);
        jobs.entry(setting).or_default().push(curve(&record.epochs, |epoch| Some(epoch.loss)));
    }
    let series = jobs.into_iter().map(|(setting, splits)| Series::over_splits(summary, &setting, splits)).collect();
    let caption = "Mean loss of each pre-training epoch; thin: single splits, thick: their mean. \
                   SDCLR's loss contrasts a dense with a pruned branch and cannot be compared with SimCLR's";
    figure("pretrain_loss", "pre-training loss".into(), caption, Axes::Epochs { y: "NT-Xent loss" }, series)
}

fn validation(summary: &Summary, protocol: Protocol) -> Figure {
    let series = summary.of_protocol(protocol).map(|cell| {
        let curves = cell.runs.values().map(|run| curve(&run.epochs, |epoch| epoch.validation_accuracy)).collect();
        Series::over_splits(summary, &cell.setting, curves)
    });
    let name = format!("validation_{}", crate::recipe::name_of(&protocol));
    let title = format!("{} probe, validation accuracy", probe_label(protocol));
    let caption = "Top-1 (ImageNet: top-5) on the validation list, by which the tested epoch is chosen; thin: single splits, thick: their mean";
    figure(&name, title, caption, Axes::Epochs { y: "validation accuracy (%)" }, series.collect())
}

fn per_class(summary: &Summary, protocol: Protocol) -> Option<Figure> {
    let first = summary.of_protocol(protocol).find_map(|cell| cell.runs.values().next())?;
    let bounds = group_bounds(first)?;
    let series = summary.of_protocol(protocol).map(|cell| Series {
        label: cell.setting.legend(),
        style: style(summary, &cell.setting),
        splits: cell.runs.values().map(|run| class_points(run)).collect(),
        mean: by_count(cell.runs.values().copied()),
    });
    let name = format!("per_class_{}", crate::recipe::name_of(&protocol));
    let title = format!("{} probe, test accuracy per class", probe_label(protocol));
    let caption = "Test accuracy of each class against its images in D_i of the same split, also for encoders trained on D_b; \
                   pale: one class of one split, joined: mean over classes and splits of equal count";
    Some(figure(&name, title, caption, Axes::ClassCount { bounds }, series.collect()))
}

/// `(images of the class, accuracy)` of one probe. A class without images stands at 1: the axis is logarithmic.
fn class_points(run: &ProbeRecord) -> Vec<(f64, f64)> {
    let counts = run.outcome.class_counts.iter().map(|&count| count.max(1) as f64);
    counts.zip(run.outcome.per_class.iter().copied()).collect()
}

/// Mean accuracy over all classes and splits of equal count, by ascending count.
fn by_count<'a>(runs: impl Iterator<Item = &'a ProbeRecord>) -> Vec<(f64, f64)> {
    let mut accuracies: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for (count, accuracy) in runs.flat_map(class_points) {
        accuracies.entry(count as u64).or_default().push(accuracy);
    }
    accuracies.into_iter().map(|(count, values)| (count as f64, mean_std(&values).mean)).collect()
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

/// Points that a curve keeps at most: more cannot be told apart at the size of the figure.
const POINTS: usize = 400;

/// `(epoch, value)` where there is one, thinned to [`POINTS`]; the last point always stays.
fn curve(epochs: &[EpochRecord], value: impl Fn(&EpochRecord) -> Option<f64>) -> Vec<(f64, f64)> {
    let points = epochs.iter().filter_map(|epoch| Some((epoch.epoch as f64, value(epoch)?)));
    let points: Vec<(f64, f64)> = points.filter(|(_, y)| y.is_finite()).collect();
    let step = points.len().div_ceil(POINTS).max(1);
    let last = points.len().saturating_sub(1);
    points.into_iter().enumerate().filter(|(i, _)| (last - i).is_multiple_of(step)).map(|(_, point)| point).collect()
}

impl Series {
    /// The curves of one setting, and their mean at the epochs that all of them have.
    fn over_splits(summary: &Summary, setting: &Setting, splits: Vec<Vec<(f64, f64)>>) -> Self {
        let mut values: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for (epoch, value) in splits.iter().flatten() {
            values.entry(*epoch as u64).or_default().push(*value);
        }
        let shared = values.into_iter().filter(|(_, values)| values.len() == splits.len());
        Self {
            label: setting.legend(),
            style: style(summary, setting),
            mean: shared.map(|(epoch, values)| (epoch as f64, mean_std(&values).mean)).collect(),
            splits,
        }
    }
}

const SIZE: (u32, u32) = (900, 500);
const LEGEND_WIDTH: u32 = 170;
/// Marks on a curve, so that shapes tell curves apart where colours do not.
const MARKS: usize = 10;

type DrawError = DrawingAreaErrorKind<std::io::Error>;

fn draw(figure: &Figure) -> Result<String, ReportError> {
    let points = || figure.series.iter().flat_map(|series| series.splits.iter().flatten());
    let (low, high) = points().fold((f64::MAX, f64::MIN), |(low, high), &(_, y)| (low.min(y), high.max(y)));
    let (first, last) = points().fold((f64::MAX, f64::MIN), |(first, last), &(x, _)| (first.min(x), last.max(x)));
    let mut svg = String::new();
    match figure.axes {
        Axes::Epochs { .. } => {
            let margin = ((high - low) * 0.05).max(0.5 * f64::from(low == high)).max(1e-6);
            paint(&mut svg, figure, 0.0..last.max(2.0), (low - margin).max(0.0)..high + margin)
        }
        Axes::ClassCount { .. } => {
            let axis = (first * 0.8..last * 1.25).log_scale().with_key_points(ticks(first, last));
            paint(&mut svg, figure, axis, 0.0..100.0)
        }
    }
    .map_err(|error| ReportError::Plot { file: figure.path.clone(), reason: error.to_string() })?;
    Ok(svg)
}

/// 1, 2, 5, 10, 20, 50, ... between `first` and `last`.
fn ticks(first: f64, last: f64) -> Vec<f64> {
    let decades = (0..10).map(|power| 10_f64.powi(power));
    decades
        .flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * decade))
        .filter(|x| (first..=last).contains(x))
        .collect()
}

fn paint<X>(svg: &mut String, figure: &Figure, x: X, y: std::ops::Range<f64>) -> Result<(), String>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let describe = |error: DrawError| error.to_string();
    root.fill(&WHITE).map_err(describe)?;
    let (left, right) = root.split_horizontally(SIZE.0 - LEGEND_WIDTH);
    legend(&right, &figure.series).map_err(describe)?;
    let (x_title, y_title) = match figure.axes {
        Axes::Epochs { y } => ("epoch", y),
        Axes::ClassCount { .. } => ("images of the class in D_i (logarithmic)", "test accuracy (%)"),
    };
    let top = y.end;
    let mut chart = ChartBuilder::on(&left)
        .caption(&figure.heading, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(58)
        .build_cartesian_2d(x, y)
        .map_err(describe)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_labels(11)
        .y_labels(8)
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
        .x_desc(x_title)
        .y_desc(y_title)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .draw()
        .map_err(describe)?;
    for series in &figure.series {
        let Style { colour, mark } = series.style;
        let marks = |points: &[(f64, f64)], paint: ShapeStyle| -> Vec<_> {
            points.iter().map(|&at| EmptyElement::at(at) + Polygon::new(mark, paint)).collect()
        };
        for points in &series.splits {
            match figure.axes {
                Axes::Epochs { .. } => {
                    let line = LineSeries::new(points.iter().copied(), colour.mix(0.35).stroke_width(1));
                    chart.draw_series(line).map_err(describe)?;
                }
                Axes::ClassCount { .. } => {
                    chart.draw_series(marks(points, colour.mix(0.25).filled())).map_err(describe)?;
                }
            }
        }
        chart.draw_series(LineSeries::new(series.mean.iter().copied(), colour.stroke_width(2))).map_err(describe)?;
        let step = match figure.axes {
            Axes::Epochs { .. } => series.mean.len().div_ceil(MARKS).max(1),
            Axes::ClassCount { .. } => 1,
        };
        let marked: Vec<(f64, f64)> = series.mean.iter().rev().step_by(step).copied().collect();
        chart.draw_series(marks(&marked, colour.filled())).map_err(describe)?;
    }
    if let Axes::ClassCount { bounds } = figure.axes {
        let line = |x: f64| PathElement::new(vec![(x, 0.0), (x, top)], BLACK.mix(0.5));
        chart.draw_series(bounds.map(line)).map_err(describe)?;
        let [low, high] = bounds;
        let word = |text: &'static str, x: f64, dx: i32| {
            EmptyElement::at((x, top)) + Text::new(text, (dx, 4), ("sans-serif", 13))
        };
        let words = [word("Few", low, -32), word("Medium", low, 6), word("Many", high, 6)];
        chart.draw_series(words).map_err(describe)?;
    }
    root.present().map_err(describe)
}

/// Line, mark and name of every series, beside the chart so that they never cover it.
fn legend(area: &DrawingArea<SVGBackend, plotters::coord::Shift>, series: &[Series]) -> Result<(), DrawError> {
    for (row, series) in series.iter().enumerate() {
        let y = 60 + 26 * row as i32;
        let Style { colour, mark } = series.style;
        area.draw(&PathElement::new(vec![(4, y), (36, y)], colour.stroke_width(2)))?;
        area.draw(&(EmptyElement::at((20, y)) + Polygon::new(mark, colour.filled())))?;
        area.draw(&Text::new(series.label.clone(), (44, y - 7), ("sans-serif", 14)))?;
    }
    Ok(())
}
