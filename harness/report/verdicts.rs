//! Verdicts as tables. In: claims judged. Out: a table for the terminal or in Markdown, and each verdict's reason below it.

use super::table::{Table, signed};
use crate::verdict::{Outcome, Verdict, Verdicts};

/// One row a claim.
fn table(verdicts: &Verdicts) -> Table {
    let header = ["claim", "ours", "n", "published", "difference", "90 % interval", "margin", "tier", "verdict"];
    let mut table = Table::new(&header);
    let number = |value: f64| format!("{value:.2}");
    let absent = || "–".to_owned();
    for verdict in &verdicts.claims {
        let interval = verdict.interval90.map(|[low, high]| format!("{} to {}", signed(low), signed(high)));
        table.row(vec![
            verdict.id.clone(),
            verdict.ours.as_ref().map_or_else(absent, |ours| number(ours.mean)),
            verdict.ours.as_ref().map_or_else(absent, |ours| ours.n.to_string()),
            verdict.theirs.as_ref().map_or_else(absent, |theirs| number(theirs.mean)),
            verdict.difference.map_or_else(absent, signed),
            interval.unwrap_or_else(absent),
            verdict.margin.map_or_else(absent, |margin| format!("± {margin}")),
            verdict.tier.map_or_else(absent, |tier| format!("{tier:?}")),
            verdict.outcome_words(),
        ]);
    }
    table
}

/// `3 reproduced, 1 inconclusive`, in the order of what matters most.
fn counts(verdicts: &Verdicts) -> String {
    use Outcome::{Better, Inconclusive, NotRun, NotTestable, Reproduced, Worse};
    let count = |outcome| verdicts.claims.iter().filter(|verdict| verdict.outcome == outcome).count();
    let words: Vec<String> = [Worse, Better, Reproduced, Inconclusive, NotTestable, NotRun]
        .into_iter()
        .filter_map(|outcome| Some(count(outcome)).filter(|n| *n > 0).map(|n| format!("{n} {outcome}")))
        .collect();
    format!(
        "{} claims: {}",
        verdicts.claims.len(),
        if words.is_empty() { "none judged".to_owned() } else { words.join(", ") }
    )
}

fn was_run(verdict: &&Verdict) -> bool {
    verdict.outcome != Outcome::NotRun
}

/// What the terminal shows.
pub fn verdicts_table(verdicts: &Verdicts) -> String {
    let mut text = format!("{}\n", table(verdicts).to_text());
    for verdict in verdicts.claims.iter().filter(was_run) {
        text += &format!("{}: {}. {}\n", verdict.id, verdict.outcome_words(), verdict.why);
    }
    text + &format!("\n{}\n", counts(verdicts))
}

/// The same as Markdown, with the hash of the claims.
pub fn verdicts_markdown(verdicts: &Verdicts) -> String {
    let mut text = format!("{}.\n\n{}\n", counts(verdicts), table(verdicts).to_markdown());
    for verdict in verdicts.claims.iter().filter(was_run) {
        text += &format!("- `{}`: **{}**. {}\n", verdict.id, verdict.outcome_words(), verdict.why);
    }
    text + &format!("\nClaims: sha256 `{}`.\n", verdicts.claims_sha256)
}
