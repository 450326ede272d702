//! The scores, one table a probe, the paper's row under ours.

use crate::paper::Published;
use crate::recipe::Protocol;
use crate::report::document::{Block, Section};
use crate::report::quoted::quoted;
use crate::report::summary::{Cell, SCORES, Summary, probe_label};
use crate::report::table::{Table, plus_minus, signed_plus_minus};
use crate::report::text::{Text, marked};
use crate::report::{ReportError, run};
use crate::text::counted;

pub(super) fn section(summary: &Summary) -> Result<Section, ReportError> {
    let mut blocks = Vec::new();
    let published = Published::embedded()?;
    for protocol in [Protocol::Full, Protocol::Few] {
        let table = table(summary, &published, protocol);
        if !table.is_empty() {
            let caption = format!(
                "{} linear probe: test accuracy in per cent, mean ± population standard deviation over {}",
                capitalised(probe_label(protocol)),
                summary.over()
            );
            blocks.push(Block::Table(caption.into(), table));
        }
    }
    if blocks.is_empty() {
        return Ok(Section::new("Results", vec![Block::Paragraph("No probe has finished.".into())]));
    }
    blocks.push(Block::Paragraph(format!("Computed on {}.", run::machines(summary.suite)).into()));
    blocks.push(Block::List(notes(summary, &published)));
    blocks.extend(super::fold("Where the published numbers come from", origins(summary, &published)));
    Ok(Section::new("Results", blocks))
}

/// The source of each row of the paper.
fn origins(summary: &Summary, published: &Published) -> Vec<Block> {
    if summary.suite.smoke {
        return Vec::new();
    }
    let mut table = Table::new(&["method", "pre-trained on", "probe", "how each number came here"]);
    for cell in &summary.cells {
        if let Some(paper) = quoted(published, &summary.suite.suite, &cell.setting) {
            table.row(cell.setting.words().into_iter().chain([paper.provenance]).collect::<Vec<_>>());
        }
    }
    if table.is_empty() { Vec::new() } else { vec![Block::Table("Sources of the published numbers".into(), table)] }
}

/// Whether the paper has a number for any row of the table; a smoke run is compared with nothing.
fn is_quoted(summary: &Summary, published: &Published) -> bool {
    let has = |cell: &Cell| quoted(published, &summary.suite.suite, &cell.setting).is_some();
    !summary.suite.smoke && summary.cells.iter().any(has)
}

fn table(summary: &Summary, published: &Published, protocol: Protocol) -> Table {
    let with_paper = is_quoted(summary, published);
    let (who, sure): (&[_], &[_]) = if with_paper { (&["who"], &["how sure"]) } else { (&[], &[]) };
    let counts = summary.count_columns();
    let header = [&["method", "pre-trained on"], who, counts.as_slice(), &SCORES, &["gain in All"], sure];
    let mut table = Table::new(&header.concat());
    for cell in summary.of_protocol(protocol) {
        let [method, list, _] = cell.setting.words();
        let mut row = vec![method.clone(), list.clone()];
        row.extend(with_paper.then(|| "this run".to_owned()));
        row.extend(summary.count_cells(cell));
        row.extend(cell.scores().iter().map(|(_, score)| plus_minus(score)));
        row.push(cell.gain().map(|gain| signed_plus_minus(&gain)).unwrap_or_else(|| "–".to_owned()));
        row.extend(with_paper.then(|| "measured".to_owned()));
        table.row(row);
        let paper = with_paper.then(|| quoted(published, &summary.suite.suite, &cell.setting)).flatten();
        if let Some(paper) = paper {
            let mut row = vec![method, list, "the paper".to_owned(), paper.splits];
            row.extend(vec!["–".to_owned(); counts.len() - 1]);
            row.extend(paper.scores);
            row.extend(["–".to_owned(), paper.confidence]);
            table.row_under(row.into_iter().map(Text::from).collect());
        }
    }
    table
}

fn notes(summary: &Summary, published: &Published) -> Vec<Text> {
    let mut notes = vec![
        marked(
            "**All** is the mean over the classes; **Many**, **Medium** and **Few** are means over the classes that are frequent, \
             middling and rare in `D_i` of the same split, also for encoders trained on `D_b`. **Std** is the population standard \
             deviation of the three: lower is better balanced.",
        ),
        marked(
            "**Gain in All** is against the same probe on a random, untrained encoder, paired by split, in points: what pre-training \
             is worth. The probe sees the backbone alone, the dense branch of SDCLR, so the random one serves for both methods.",
        ),
    ];
    if let Some(run) = summary.cells.iter().flat_map(|cell| cell.runs.values()).next() {
        let classes = run.outcome.per_class.len();
        notes.push(format!("Guessing scores {:.2} ({classes} classes).", 100.0 / classes as f64).into());
    }
    for cell in &summary.cells {
        if cell.repeats_encoders() {
            let (results, encoders) = (counted(cell.runs.len(), "result"), counted(cell.encoders(), "encoder"));
            let (name, [_, _, probe]) = (cell.setting.legend(), cell.setting.words());
            notes.push(
                format!("{name}, {probe}: {results} are of {encoders}; results of one encoder are not independent.")
                    .into(),
            );
        }
    }
    if is_quoted(summary, published) {
        notes.push(marked(
            "Not all of **the paper**'s numbers could be checked against its text; the last column says of each how it came here. \
             Nothing was tuned toward them. The comparison is distributional: two means over few splits, on other hardware and with \
             another order of random draws, agree only within their deviations.",
        ));
    }
    notes
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
