//! What `sdclr analyse` shows: the numbers of the original summary, over the splits and split by split.

use super::summary::{Setting, probe_label};
use super::table::Table;
use crate::authors::{Analysis, Summary};
use crate::recipe::name_of;

/// Mean and population standard deviation over the splits, then a row for each; accuracies in per cent, the two
/// deviations as fractions.
pub fn analysis_table(analysis: &Analysis) -> String {
    let question = &analysis.question;
    let mut text = format!(
        "{}, {}, {}: {} of {} logs summed up\n",
        name_of(&question.dataset),
        Setting::published(&name_of(&question.method), question.pretrain_split, question.protocol).legend(),
        probe_label(question.protocol),
        analysis.splits.len(),
        analysis.expected
    );
    if analysis.splits.is_empty() {
        return text;
    }
    let columns = columns(analysis.summary());
    let mut over = Table::new(&["", "mean", "std"]);
    for (name, places, column) in &columns {
        over.row(vec![(*name).to_owned(), format!("{:.places$}", column.mean), format!("{:.places$}", column.std)]);
    }
    let header: Vec<&str> = std::iter::once("split").chain(columns.iter().map(|(name, ..)| *name)).collect();
    let mut single = Table::new(&header);
    for (row, (split, _)) in analysis.splits.iter().enumerate() {
        let values = columns.iter().map(|(_, places, column)| format!("{:.places$}", column.per_split[row]));
        single.row(std::iter::once(split.to_string()).chain(values).collect());
    }
    text += &format!(
        "accuracies in per cent, deviations as fractions; mean and population standard deviation over splits\n\n{}\n{}",
        over.to_text(),
        single.to_text()
    );
    text
}

/// The columns in the published script's order, each with the decimal places that it prints.
fn columns(summary: Summary) -> [(&'static str, usize, crate::authors::Column); 6] {
    let Summary { all, class_std, group_std, many, medium, few } = summary;
    [
        ("All", 2, all),
        ("class deviation", 4, class_std),
        ("group deviation", 4, group_std),
        ("Many", 2, many),
        ("Medium", 2, medium),
        ("Few", 2, few),
    ]
}
