//! Charts drawn as SVG. In: points, colours, words. Out: one SVG text a chart, the same for the same points. The background
//! is white and the ink black; the exporter of HTML takes both from the page.

use plotters::coord::combinators::BindKeyPoints;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::ReportError;

/// A chart with two axes.
pub(super) struct Chart {
    /// The title inside the picture.
    pub heading: String,
    pub axes: Axes,
    pub series: Vec<Series>,
}

/// The two kinds of axes.
pub(super) enum Axes {
    /// Epochs on a linear axis; what stands on the other one.
    Epochs { y: &'static str },
    /// Images of the class on a logarithmic axis, accuracy from 0 to 100; where one group ends and the next begins.
    ClassCount { bounds: [f64; 2] },
}

/// One setting: points of each run, and their mean.
pub(super) struct Series {
    pub label: String,
    pub style: Style,
    pub runs: Vec<Vec<(f64, f64)>>,
    pub mean: Vec<(f64, f64)>,
    /// `(x, low, high)` around the mean.
    pub band: Vec<(f64, f64, f64)>,
}

#[derive(Clone, Copy)]
pub(super) struct Style {
    pub colour: RGBColor,
    /// Corners of the mark, in pixels around its centre.
    pub mark: &'static [(i32, i32)],
}

const SIZE: (u32, u32) = (760, 430);
const LEGEND_WIDTH: u32 = 160;
/// Marks on a curve, so that shapes tell curves apart where colours do not.
const MARKS: usize = 10;

type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// The chart as SVG; `file` is its name for the error.
pub(super) fn chart(chart: &Chart, file: &str) -> Result<String, ReportError> {
    let points = || chart.series.iter().flat_map(|series| series.runs.iter().flatten().chain(&series.mean));
    let (low, high) = points().fold((f64::MAX, f64::MIN), |(low, high), &(_, y)| (low.min(y), high.max(y)));
    let (first, last) = points().fold((f64::MAX, f64::MIN), |(first, last), &(x, _)| (first.min(x), last.max(x)));
    let mut svg = String::new();
    match chart.axes {
        Axes::Epochs { .. } => {
            let margin = ((high - low) * 0.05).max(0.5 * f64::from(low == high)).max(1e-6);
            paint(&mut svg, chart, 0.0..last.max(2.0), (low - margin).max(0.0)..high + margin)
        }
        Axes::ClassCount { .. } => {
            let axis = (first * 0.8..last * 1.25).log_scale().with_key_points(ticks(first, last));
            paint(&mut svg, chart, axis, 0.0..100.0)
        }
    }
    .map_err(|error| failed(file, &error))?;
    Ok(svg)
}

fn failed(file: &str, error: &DrawError) -> ReportError {
    ReportError::Plot { file: file.to_owned(), reason: error.to_string() }
}

/// 1, 2, 5, 10, 20, 50, ... between `first` and `last`.
fn ticks(first: f64, last: f64) -> Vec<f64> {
    let decades = (0..10).map(|power| 10_f64.powi(power));
    decades
        .flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * decade))
        .filter(|x| (first..=last).contains(x))
        .collect()
}

fn paint<X>(svg: &mut String, chart: &Chart, x: X, y: std::ops::Range<f64>) -> Result<(), DrawError>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0 - LEGEND_WIDTH);
    legend(&right, &chart.series)?;
    let (x_title, y_title) = match chart.axes {
        Axes::Epochs { y } => ("epoch", y),
        Axes::ClassCount { .. } => ("images of the class in D_i (logarithmic)", "test accuracy (%)"),
    };
    let top = y.end;
    let mut area = ChartBuilder::on(&left)
        .caption(&chart.heading, ("sans-serif", 17))
        .margin(10)
        .x_label_area_size(46)
        .y_label_area_size(56)
        .build_cartesian_2d(x, y)?;
    area.configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_labels(10)
        .y_labels(8)
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
        .x_desc(x_title)
        .y_desc(y_title)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .draw()?;
    for series in &chart.series {
        let Style { colour, mark } = series.style;
        let marks = |points: &[(f64, f64)], paint: ShapeStyle| -> Vec<_> {
            points.iter().map(|&at| EmptyElement::at(at) + Polygon::new(mark, paint)).collect()
        };
        let low = series.band.iter().map(|&(x, low, _)| (x, low));
        let edge: Vec<(f64, f64)> = low.chain(series.band.iter().rev().map(|&(x, _, high)| (x, high))).collect();
        area.draw_series((edge.len() > 2).then(|| Polygon::new(edge, colour.mix(0.15).filled())))?;
        for points in &series.runs {
            match chart.axes {
                Axes::Epochs { .. } => {
                    area.draw_series(LineSeries::new(points.iter().copied(), colour.mix(0.35).stroke_width(1)))?;
                }
                Axes::ClassCount { .. } => {
                    area.draw_series(marks(points, colour.mix(0.25).filled()))?;
                }
            }
        }
        area.draw_series(LineSeries::new(series.mean.iter().copied(), colour.stroke_width(2)))?;
        let step = match chart.axes {
            Axes::Epochs { .. } => series.mean.len().div_ceil(MARKS).max(1),
            Axes::ClassCount { .. } => 1,
        };
        let marked: Vec<(f64, f64)> = series.mean.iter().rev().step_by(step).copied().collect();
        area.draw_series(marks(&marked, colour.filled()))?;
    }
    if let Axes::ClassCount { bounds } = chart.axes {
        let line = |x: f64| PathElement::new(vec![(x, 0.0), (x, top)], BLACK.mix(0.5));
        area.draw_series(bounds.map(line))?;
        let [low, high] = bounds;
        let word = |text: &'static str, x: f64, dx: i32| {
            EmptyElement::at((x, 0.0)) + Text::new(text, (dx, -18), ("sans-serif", 13))
        };
        area.draw_series([word("Few", low, -32), word("Medium", low, 6), word("Many", high, 6)])?;
    }
    root.present()
}

/// Line, mark and name of every series, beside the chart so that they never cover it.
fn legend(area: &DrawingArea<SVGBackend, plotters::coord::Shift>, series: &[Series]) -> Result<(), DrawError> {
    for (row, series) in series.iter().enumerate() {
        let y = 56 + 26 * row as i32;
        let Style { colour, mark } = series.style;
        area.draw(&PathElement::new(vec![(4, y), (32, y)], colour.stroke_width(2)))?;
        area.draw(&(EmptyElement::at((18, y)) + Polygon::new(mark, colour.filled())))?;
        area.draw(&Text::new(series.label.clone(), (40, y - 7), ("sans-serif", 14)))?;
    }
    Ok(())
}

/// A row of dots: what one setting scored in each run.
pub(super) struct Dots {
    pub label: String,
    pub style: Style,
    /// Of each column the values of the runs, and the published mean.
    pub columns: Vec<(Vec<f64>, Option<f64>)>,
}

const DOTS_LABELS: u32 = 140;
const DOTS_ROW: u32 = 32;

/// A panel for each of `columns`, in which every setting has a row: a dot for each run, a bar at their mean, a hollow
/// diamond at the published mean. Every value is drawn where it is; nothing is symmetric about a mean.
pub(super) fn dots(heading: &str, columns: &[&str], rows: &[Dots], file: &str) -> Result<String, ReportError> {
    let mut svg = String::new();
    paint_dots(&mut svg, heading, columns, rows).map_err(|error| failed(file, &error))?;
    Ok(svg)
}

fn paint_dots(svg: &mut String, heading: &str, columns: &[&str], rows: &[Dots]) -> Result<(), DrawError> {
    let height = 88 + DOTS_ROW * rows.len() as u32;
    let root = SVGBackend::with_string(svg, (SIZE.0, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(heading, ("sans-serif", 17))?;
    let (labels, panels) = root.split_horizontally(DOTS_LABELS);
    let panels = panels.split_evenly((1, columns.len()));
    let bottom = rows.len() as f64;
    for (column, (panel, title)) in panels.iter().zip(columns).enumerate() {
        let values = || rows.iter().flat_map(|row| row.columns[column].0.iter().chain(&row.columns[column].1));
        let (low, high) = values().fold((f64::MAX, f64::MIN), |(low, high), &v| (low.min(v), high.max(v)));
        let margin = ((high - low) * 0.08).max(0.5);
        let mut area = ChartBuilder::on(panel)
            .margin_left(6)
            .margin_right(12)
            .caption(title, ("sans-serif", 16))
            .x_label_area_size(26)
            .build_cartesian_2d((low - margin).max(0.0)..high + margin, bottom..0.0)?;
        area.configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_labels(3)
            .x_label_formatter(&|x| ((x * 100.0).round() / 100.0).to_string())
            .label_style(("sans-serif", 14))
            .draw()?;
        for (place, row) in rows.iter().enumerate() {
            let y = place as f64 + 0.5;
            let colour = row.style.colour;
            let (values, published) = &row.columns[column];
            area.draw_series(values.iter().map(|&v| Circle::new((v, y), 3, colour.mix(0.55).filled())))?;
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let bar = PathElement::new(vec![(mean, y - 0.34), (mean, y + 0.34)], colour.stroke_width(2));
            area.draw_series([bar])?;
            let corners = [(0, -6), (6, 0), (0, 6), (-6, 0), (0, -6)];
            area.draw_series(published.iter().map(|&v| EmptyElement::at((v, y)) + PathElement::new(corners, BLACK)))?;
        }
        // The labels stand in the first panel's rows.
        if column == 0 {
            let (_, y) = area.plotting_area().get_pixel_range();
            let top = labels.get_base_pixel().1;
            for (place, row) in rows.iter().enumerate() {
                let step = f64::from(y.end - y.start) / bottom;
                let at = f64::from(y.start - top) + step * (place as f64 + 0.5);
                labels.draw(&Text::new(row.label.clone(), (6, at as i32 - 8), ("sans-serif", 16)))?;
            }
        }
    }
    root.present()
}

/// A difference with its interval against a margin: a band for the margin, a line at 0, a bar for the interval, a dot for the
/// difference. From `-reach` to `reach`; an interval beyond ends at the edge.
pub(super) fn interval(
    difference: f64,
    [low, high]: [f64; 2],
    margin: Option<f64>,
    reach: f64,
    colour: RGBColor,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    paint_interval(&mut svg, difference, [low, high], margin, reach, colour).map_err(|e| failed("an interval", &e))?;
    Ok(svg)
}

fn paint_interval(
    svg: &mut String,
    difference: f64,
    ends: [f64; 2],
    margin: Option<f64>,
    reach: f64,
    colour: RGBColor,
) -> Result<(), DrawError> {
    let root = SVGBackend::with_string(svg, (180, 22)).into_drawing_area();
    let x = |value: f64| 90 + (value / reach * 88.0).clamp(-89.0, 89.0).round() as i32;
    if let Some(margin) = margin {
        root.draw(&Rectangle::new([(x(-margin), 2), (x(margin), 20)], BLACK.mix(0.12).filled()))?;
    }
    root.draw(&PathElement::new(vec![(90, 0), (90, 22)], BLACK.mix(0.5)))?;
    root.draw(&PathElement::new(vec![(x(ends[0]), 11), (x(ends[1]), 11)], colour.stroke_width(3)))?;
    root.draw(&Circle::new((x(difference), 11), 4, colour.filled()))?;
    root.present()
}
