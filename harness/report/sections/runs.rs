//! Every run: as dots, and as a table with the record behind each number.

use crate::paper::Published;
use crate::recipe::Protocol;
use crate::report::document::{Block, Figure, Section};
use crate::report::summary::{SCORES, Summary, scores_of};
use crate::report::table::Table;
use crate::report::text::Text;
use crate::report::{ReportError, plots};

pub(super) fn section(summary: &Summary) -> Result<Section, ReportError> {
    if summary.cells.is_empty() {
        return super::nothing();
    }
    let published = Published::embedded()?;
    let mut pictures = Vec::new();
    for protocol in [Protocol::Full, Protocol::Few] {
        pictures.extend(plots::dots(summary, &published, protocol)?);
    }
    let caption = "Each dot is one run, in per cent; the bar is their mean, a hollow diamond the published mean. Lower Std is better \
                   balanced";
    let table = Block::Table(
        "Test accuracy in per cent, run by run; the epoch is the one that validation chose".into(),
        table(summary),
    );
    let fold = super::fold("Every run in numbers", vec![table]);
    let figure = Block::Figure(Figure { caption: caption.into(), pictures });
    Ok(Section::new("Split by split", std::iter::once(figure).chain(fold).collect()))
}

fn table(summary: &Summary) -> Table {
    let header =
        [["method", "pre-trained on", "probe"].as_slice(), &summary.run_columns(), &SCORES, &["best epoch", "from"]];
    let mut table = Table::new(&header.concat());
    for cell in &summary.cells {
        for (key, run) in &cell.runs {
            let mut row: Vec<Text> = cell.setting.words().map(Text::from).into();
            row.extend(summary.run_cells(*key).into_iter().map(Text::from));
            row.extend(scores_of(&run.outcome).iter().map(|(_, score)| format!("{score:.2}").into()));
            row.push(run.best_epoch.to_string().into());
            row.push(Text::link("result.json", &summary.source(&run.job)));
            table.row(row);
        }
    }
    table
}
