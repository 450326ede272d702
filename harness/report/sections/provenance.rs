//! Where the numbers come from: commands, machines, time, hashes of what was read, records.

use crate::report::document::{Block, Section};
use crate::report::summary::Summary;
use crate::report::table::{Table, duration};
use crate::report::text::{Text, marked};
use crate::report::{Format, ReportError, run};

pub(super) fn what_was_run(summary: &Summary) -> Result<Section, ReportError> {
    let suite = summary.suite;
    let more = run::data_option(suite);
    let mut points = vec![
        Text::from("Suite: ").and(Text::code(suite.suite.as_str())).and(format!(", {}.", run::splits_words(suite))),
        Text::from("Command, from the root of a checkout: ").and(Text::code(run::command(&suite.invocation, more))),
    ];
    let environments = run::environments(run::jobs(suite));
    points.extend(environments.into_iter().map(|found| Text::from("Machine: ").and(run::environment_words(found))));
    let total: f64 = run::jobs(suite).map(|job| job.seconds).sum();
    points.push(format!("Time: {} of training and evaluation over all jobs and sessions.", duration(total)).into());
    let mut hashes = Table::new(&["input", "sha256"]);
    run::inputs(suite).into_iter().for_each(|(name, hash)| hashes.row(vec![Text::from(name), Text::code(hash)]));
    let mut blocks = vec![Block::List(points)];
    if !hashes.is_empty() {
        let table = Block::Table("What the jobs read: decoded images, and the bytes of each list".into(), hashes);
        blocks.extend(super::fold("Hashes of what was read", vec![table]));
    }
    Ok(Section::new("What was run", blocks))
}

pub(super) fn sources(summary: &Summary) -> Result<Section, ReportError> {
    let suite = summary.suite;
    let more = run::data_option(suite);
    let mut commands = Table::new(&["row", "command"]);
    for setting in summary.settings() {
        let command = run::command(&run::only(&suite.invocation, &setting), more);
        commands.row(vec![Text::from(setting.legend()), Text::code(command)]);
    }
    let mut table = Table::new(&["job", "seconds", "state_sha256", "record"]);
    let probes = summary.cells.iter().flat_map(|cell| cell.runs.values().map(|run| &run.job));
    for job in summary.pretrainings.iter().map(|record| &record.job).chain(probes) {
        let hash: String = job.state_sha256.chars().take(16).collect();
        table.row(vec![
            Text::code(job.header.job.to_string()),
            format!("{:.1}", job.seconds).into(),
            Text::code(format!("{hash}…")),
            Text::link("result.json", &summary.source(job)),
        ]);
    }
    let numbers = marked(
        "Every number of this report is computed from the jobs' records (and each record's `run.jsonl` has its epochs as they went \
         by)",
    );
    let unrounded = match [Format::Json, Format::Csv].map(|format| summary.formats.contains(&format)) {
        [true, true] => "; [report.json](report.json) and [report.csv](report.csv) hold them unrounded.",
        [true, false] => "; [report.json](report.json) holds them unrounded.",
        [false, true] => "; [report.csv](report.csv) holds them unrounded.",
        [false, false] => ".",
    };
    let mut blocks = vec![Block::Paragraph(numbers.and(marked(unrounded)))];
    if !commands.is_empty() {
        blocks.push(Block::Table("The command that repeats each row, from the root of a checkout".into(), commands));
    }
    if !table.is_empty() {
        blocks.extend(super::fold("The records", vec![Block::Table("The records".into(), table)]));
    }
    Ok(Section::new("Where the numbers come from", blocks))
}
