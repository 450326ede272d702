//! report.md: what a reviewer opens. What was run, what came out, how far to trust it, and where every number lies.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::summary::{Comparison, RunKey, Summary, label_on, probe_label, run_key, scores_of};
use super::table::{Table, duration, escape, plus_minus, signed, signed_plus_minus};
use super::{CAPTION, Exporter, OutputFile, ReportError, main_table, plots, published, run, stamp};
use crate::recipe::DatasetName;
use crate::record::{JobHeader, SMOKE_STAMP, SuiteRecord};

pub(super) const FILE: &str = "report.md";

pub(super) struct Markdown;

impl Exporter for Markdown {
    fn export(&self, summary: &Summary) -> Result<Vec<OutputFile>, ReportError> {
        let sections = [
            title(summary),
            results(summary),
            differences(summary),
            per_split(summary),
            against_the_paper(summary)?,
            figures(summary),
            trust(summary),
            what_was_run(summary),
            recipes(summary),
            not_measured(summary),
            sources(summary),
        ];
        let sections: Vec<&str> = sections.iter().map(|section| section.trim_end()).filter(|s| !s.is_empty()).collect();
        Ok(vec![OutputFile::new(FILE, sections.join("\n\n") + "\n")])
    }
}

/// A table under its caption, which carries the smoke stamp.
fn captioned(summary: &Summary, caption: &str, table: &Table) -> String {
    format!("*{caption}{}.*\n\n{}", bold_stamp(summary), table.to_markdown())
}

fn bold_stamp(summary: &Summary) -> String {
    if summary.suite.smoke { format!(" (**{SMOKE_STAMP}**)") } else { String::new() }
}

fn title(summary: &Summary) -> String {
    let suite = summary.suite;
    let mut text = format!("# {}{}\n\n", suite.suite, stamp(suite));
    if suite.smoke {
        text += &format!(
            "> **{}{}.** The images or the epochs were limited: this shows that everything runs, and nothing else.\n\n",
            SMOKE_STAMP[..1].to_uppercase(),
            &SMOKE_STAMP[1..]
        );
    }
    let methods: Vec<String> = run::recipes(suite).into_iter().map(|(label, _)| label).collect();
    text += &format!(
        "{} pre-trained without labels and judged by a linear probe: {} of {} jobs finished, on {} ({} in this session).\n",
        if methods.is_empty() { "No method".to_owned() } else { methods.join(" and ") },
        suite.results.len(),
        suite.results.len() + suite.failures.len(),
        splits_phrase(summary),
        duration(suite.seconds),
    );
    if !suite.failures.is_empty() {
        text += "\n## Failures\n\nThese jobs did not finish; what depends on them is missing below.\n\n";
        for failure in &suite.failures {
            text += &format!("- `{}`: {}\n", failure.job, escape(&failure.error));
        }
    }
    text
}

fn splits_phrase(summary: &Summary) -> String {
    let splits: Vec<String> = run::splits(summary.suite).iter().map(ToString::to_string).collect();
    match splits.len() {
        0 => "no split".to_owned(),
        1 => format!("split {}", splits[0]),
        _ => format!("splits {}", splits.join(", ")),
    }
}

fn results(summary: &Summary) -> String {
    let mut text = "## Results\n\n".to_owned();
    if summary.cells.is_empty() {
        return text + "No probe has finished.\n";
    }
    text += &captioned(summary, &capitalised(CAPTION), &main_table(summary));
    text += &format!("\nComputed on {}.\n", run::machines(summary.suite));
    text += "
- **All** is the mean over the classes; **Many**, **Medium** and **Few** are means over the classes that are frequent, middling \
and rare in `D_i` of the same split, also for encoders trained on `D_b`. **Std** is the population standard deviation of the \
three: lower is better balanced.
- **Gain in All** is against the same probe on a random, untrained encoder, paired by split, in points: what pre-training is worth. \
The probe sees the backbone alone, the dense branch of SDCLR, so the random one serves for both methods.
";
    if let Some(classes) =
        summary.cells.iter().flat_map(|cell| cell.runs.values()).map(|run| run.outcome.per_class.len()).next()
    {
        text += &format!("- Guessing scores {:.2} ({classes} classes).\n", 100.0 / classes as f64);
    }
    text
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn differences(summary: &Summary) -> String {
    if summary.comparisons.is_empty() {
        return String::new();
    }
    let mut means = Table::new(&["difference", "probe", "n", "All", "Many", "Medium", "Few", "Std"]);
    let mut single = Table::new(&["difference", "probe", "split", "All", "Many", "Medium", "Few", "Std"]);
    for comparison in &summary.comparisons {
        let words = || vec![comparison.name.clone(), probe_label(comparison.protocol).to_owned()];
        let mut row = words();
        row.push(comparison.splits.len().to_string());
        row.extend(comparison.scores().iter().map(signed_plus_minus));
        means.row(row);
        for (key, scores) in &comparison.splits {
            let mut row = words();
            row.push(run_words(*key));
            row.extend(scores.iter().map(|(_, score)| signed(*score)));
            single.row(row);
        }
    }
    let mut text = "## Differences, paired by split\n\n".to_owned();
    let caption = "Differences in points, mean ± population standard deviation over n splits; for Std, negative is better balanced";
    text += &captioned(summary, caption, &means);
    text.push('\n');
    for comparison in &summary.comparisons {
        text += &agreement(comparison);
    }
    text += "\nSo few splits carry no claim of significance, and none is made. The splits share images, and one seed was run on \
each: the deviation mixes the choice of images with the luck of training. Every difference stands here:\n\n";
    text + &captioned(summary, "Differences in points, split by split", &single)
}

/// The split, and the seeds where they are not the first.
fn run_words((split, seed, probe_seed): RunKey) -> String {
    let seed = if seed > 1 { format!(", seed {seed}") } else { String::new() };
    let probe_seed = if probe_seed > 1 { format!(", probe seed {probe_seed}") } else { String::new() };
    format!("{split}{seed}{probe_seed}")
}

/// In how many splits the difference has the sign of the mean.
fn agreement(comparison: &Comparison) -> String {
    let above = |score: usize| comparison.splits.values().filter(|scores| scores[score].1 > 0.0).count();
    let below = comparison.splits.values().filter(|scores| scores[4].1 < 0.0).count();
    let n = comparison.splits.len();
    format!(
        "- {}, {}: All is higher in {} of {n} splits, Few in {}, and Std lower in {below}.\n",
        comparison.name,
        probe_label(comparison.protocol),
        above(0),
        above(3)
    )
}

fn per_split(summary: &Summary) -> String {
    if summary.cells.is_empty() {
        return String::new();
    }
    let header =
        ["method", "pre-trained on", "probe", "split", "All", "Many", "Medium", "Few", "Std", "best epoch", "from"];
    let mut table = Table::new(&header);
    for cell in &summary.cells {
        for (key, run) in &cell.runs {
            let mut row = cell.setting.words().to_vec();
            row.push(run_words(*key));
            row.extend(scores_of(&run.outcome).iter().map(|(_, score)| format!("{score:.2}")));
            row.push(run.best_epoch.to_string());
            row.push(format!("[result.json]({})", run::source(&run.job)));
            table.row(row);
        }
    }
    let caption = "Test accuracy in per cent, split by split; the epoch is the one that validation chose";
    format!("## Split by split\n\n{}", captioned(summary, caption, &table))
}

fn against_the_paper(summary: &Summary) -> Result<String, ReportError> {
    if summary.suite.smoke {
        return Ok(String::new());
    }
    let header =
        ["method", "pre-trained on", "probe", "who", "splits", "All", "Many", "Medium", "Few", "Std", "how sure"];
    let mut table = Table::new(&header);
    for cell in &summary.cells {
        let Some(published) = published::published(&summary.suite.suite, &cell.setting)? else { continue };
        let row = |who: &str, splits: usize| {
            let mut row = cell.setting.words().to_vec();
            row.extend([who.to_owned(), splits.to_string()]);
            row
        };
        let mut ours = row("this run", cell.runs.len());
        ours.extend(cell.scores().iter().map(|(_, score)| plus_minus(score)));
        ours.push("measured".to_owned());
        table.row(ours);
        let mut theirs = row("the paper", published::SPLITS);
        theirs.extend(published.scores);
        theirs.push(published.provenance);
        table.row(theirs);
    }
    if table.is_empty() {
        return Ok(String::new());
    }
    let caption = "Test accuracy in per cent, mean ± standard deviation over splits";
    let text = captioned(summary, caption, &table);
    Ok(format!(
        "## Against the published numbers\n\n{text}\nNot all of the paper's numbers could be checked against its text; the last column says of each how it came here. \
Nothing was tuned toward them. The comparison is distributional: two means over few splits, on other hardware and with another order of random draws, agree only within their deviations.\n"
    ))
}

fn figures(summary: &Summary) -> String {
    let figures: Vec<String> = plots::figures(summary)
        .iter()
        .map(|figure| format!("![{}]({})\n\n*{}{}.*", figure.title, figure.path, figure.caption, bold_stamp(summary)))
        .collect();
    if figures.is_empty() {
        return String::new();
    }
    format!(
        "## Curves\n\n{}\n\nThe data behind the figures: [curves.csv](curves.csv), [per_class.csv](per_class.csv).\n",
        figures.join("\n\n")
    )
}

fn trust(_: &Summary) -> String {
    "## How far to trust this

Three claims are kept apart:

- **Bitwise.** On one machine, with the same build and number of threads, on the CPU, the same command gives the same weights to the bit, \
also when it was interrupted and resumed. `state_sha256` in each result.json is what to compare. `cargo test --release --test resume` checks it.
- **Step tolerance.** Given the same weights and inputs, loss, gradients, mask and updates agree with PyTorch within stated \
tolerances. `cargo test --release` holds every part against golden files made by PyTorch (`tests/parity_*.rs`).
- **Distributional.** The accuracies above are samples: over splits, one seed each. Only their distribution can be compared \
with other people's.

The numbers of this report belong to the third kind.
"
    .to_owned()
}

fn what_was_run(summary: &Summary) -> String {
    let suite = summary.suite;
    let mut text = format!(
        "## What was run\n\n- Suite: `{}`, {}.\n- Command, from the root of a checkout: `{}`\n",
        suite.suite,
        splits_phrase(summary),
        run::command(&suite.invocation, if needs_data(suite) { &["--data DIR"] } else { &[] })
    );
    for environment in run::environments(suite) {
        text += &format!(
            "- Machine: {}, {}; libtorch {}, sdclr {}, commit {}.\n",
            environment.device,
            match environment.threads {
                1 => "1 thread".to_owned(),
                threads => format!("{threads} threads"),
            },
            environment.libtorch,
            environment.sdclr,
            environment
                .git_commit
                .as_deref()
                .map(|commit| format!("`{commit}`"))
                .unwrap_or_else(|| "unknown".to_owned())
        );
    }
    let total: f64 = suite.results.iter().map(|record| record.job().seconds).sum();
    text += &format!(
        "- Time: {} in this session; {} of training and evaluation over all jobs and sessions.\n\n",
        duration(suite.seconds),
        duration(total)
    );
    let mut hashes = Table::new(&["input", "sha256"]);
    run::inputs(suite).into_iter().for_each(|(name, hash)| hashes.row(vec![name.to_owned(), format!("`{hash}`")]));
    text + &captioned(summary, "What the jobs read: decoded images, and the bytes of each list", &hashes)
}

/// Whether any job read images that are not part of this program.
fn needs_data(suite: &SuiteRecord) -> bool {
    let dataset = |recipe: &serde_json::Value| DatasetName::deserialize(&recipe["dataset"]).ok();
    suite.results.iter().any(|record| dataset(&record.header().recipe).is_none_or(|dataset| !dataset.is_embedded()))
}

fn recipes(summary: &Summary) -> String {
    let recipes = run::recipes(summary.suite);
    if recipes.is_empty() {
        return String::new();
    }
    let keys: BTreeSet<&String> = recipes.iter().flat_map(|(_, recipe)| recipe.keys()).collect();
    let mut header = vec!["key"];
    header.extend(recipes.iter().map(|(label, _)| label.as_str()));
    let (mut differing, mut shared) = (Table::new(&header), Table::new(&["key", "value"]));
    for key in keys {
        let value = |recipe: &run::FlatRecipe| recipe.get(key).cloned().unwrap_or_else(|| "–".to_owned());
        let values: Vec<String> = recipes.iter().map(|(_, recipe)| value(recipe)).collect();
        match values.iter().all(|value| *value == values[0]) {
            true => shared.row(vec![key.clone(), values[0].clone()]),
            false => differing.row(std::iter::once(key.clone()).chain(values).collect()),
        }
    }
    let mut text = "## Recipes\n\n".to_owned();
    if !differing.is_empty() {
        text += &captioned(summary, "Where the methods differ", &differing);
        text.push('\n');
    }
    let dual_bn = |(_, recipe): &(String, run::FlatRecipe)| recipe.get("dual_bn").is_some_and(|value| value == "true");
    if recipes.iter().any(dual_bn) && !recipes.iter().all(dual_bn) {
        text += CONFOUNDS;
    }
    let folded = captioned(summary, "What the recipes share", &shared);
    text + &format!("<details><summary>All other keys</summary>\n\n{folded}\n</details>\n")
}

/// REFERENCE.md "Networks" and "Steps".
const CONFOUNDS: &str = "\
**Confounds.** As in the published runs, SDCLR differs from SimCLR in more than pruning; a difference between them cannot be put \
down to the pruned branch alone:

- *Head*: three linear layers with two sets of batch norm, where SimCLR has two layers and one set.
- *Batch norm*: SDCLR normalises each view with the statistics of its own N images, in its own branch; SimCLR normalises \
both views together, over 2N images.
- *Running statistics* of the pruned branch move twice a step, as in the published code. The probe reads the dense branch only.

";

fn not_measured(summary: &Summary) -> String {
    let seeds = summary.suite.invocation.seeds;
    let one = "Variation over seeds: one seed a split.".to_owned();
    let mut points: Vec<String> = (seeds == 1).then_some(one).into_iter().collect();
    points.extend([
                "The pruned branch: probes read the dense one.".to_owned(),
        "Other hardware and other numbers of threads: results there differ in the last bits, and after many steps in accuracy.".to_owned(),
    ]);
    let splits = run::splits(summary.suite);
    for cell in &summary.cells {
        let missing: Vec<String> = splits
            .iter()
            .filter(|split| !cell.runs.keys().any(|(found, ..)| found == *split))
            .map(ToString::to_string)
            .collect();
        if !missing.is_empty() {
            let [_, _, probe] = cell.setting.words();
            points.push(format!("{}, {probe}: no result on split {}.", cell.setting.legend(), missing.join(", ")));
        }
    }
    let probed = |header: &JobHeader| {
        let (split, seed, _) = run_key(header);
        summary.cells.iter().any(|cell| {
            cell.setting.encoder == header.encoder
                && cell.setting.pretrain_split == header.pretrain_split
                && cell.runs.keys().any(|key| (key.0, key.1) == (split, seed))
        })
    };
    for header in summary.pretrainings.iter().map(|record| &record.job.header).filter(|header| !probed(header)) {
        let name = label_on(&header.label, header.pretrain_split);
        points.push(format!("{name}, split {}: pre-trained, but not probed.", run_words(run_key(header))));
    }
    if summary.suite.smoke {
        points.insert(0, format!("Anything at full scale: {SMOKE_STAMP}."));
    }
    let points: Vec<String> = points.iter().map(|point| format!("- {point}\n")).collect();
    format!("## What was not measured\n\n{}", points.concat())
}

fn sources(summary: &Summary) -> String {
    let mut table = Table::new(&["job", "seconds", "state_sha256", "record"]);
    let probes = summary.cells.iter().flat_map(|cell| cell.runs.values().map(|run| &run.job));
    for job in summary.pretrainings.iter().map(|record| &record.job).chain(probes) {
        let hash: String = job.state_sha256.chars().take(16).collect();
        let link = format!("[result.json]({})", run::source(job));
        table.row(vec![format!("`{}`", job.header.job), format!("{:.1}", job.seconds), format!("`{hash}…`"), link]);
    }
    let mut text = "## Where the numbers come from\n\nEvery number of this report is computed from the jobs' records (and each record's \
`run.jsonl` has its epochs as they went by); [report.json](report.json) and [report.csv](report.csv) hold them unrounded.\n\n"
        .to_owned();
    if !table.is_empty() {
        text += &captioned(summary, "The records", &table);
    }
    text
}
