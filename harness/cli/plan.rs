//! `sdclr plan`: a suite's jobs for other engines.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory};

use super::jobs::{Asked, JobsArgs};
use super::output::out;
use super::{Cli, GlobalArgs};
use crate::recipe::Suite;
use crate::stop::Stop;
use crate::suite::schedule::{self, Engine, JobState, Place};

/// List a suite's jobs, or write them down for Slurm, Kubernetes or Snakemake
///
/// Takes the options of repro that change the jobs, and trains nothing. docs/clusters.md explains the documents; their commands
/// exit with 0 when a job is done and with 75 when it has to be run again; any other code is final.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr plan cifar10-lt --methods sdclr-D_i --splits 1-5
  sdclr plan cifar10-lt --device cuda:0 --out /shared/c10 --format slurm > c10.sbatch
  sdclr plan digits-lt --format snakemake > Snakefile")]
pub(super) struct PlanArgs {
    #[command(flatten)]
    jobs_of: JobsArgs,
    #[arg(long, value_name = "ENGINE", default_value = "json")]
    format: Engine,
}

impl PlanArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (data, file) = (self.jobs_of.data().cloned(), PathBuf::from(&self.jobs_of.suite));
        let Asked { suite, scale, plan, out, .. } = self.jobs_of.asked(Stop::default())?;
        let folder = std::path::absolute(out)?;
        let command = command(&folder)?;
        let list = schedule::list(&suite, &plan, scale, &folder, &command)?;
        if self.format != Engine::Json && list.jobs.iter().all(|job| job.state == JobState::Done) {
            anyhow::bail!("every job is done in {}; there is nothing to run", folder.display());
        }
        let file = file.is_file().then_some(file);
        let own = suite.own_data.iter().flat_map(|own| [&own.train, &own.test, &own.lists]).cloned();
        let inputs = folders(data.into_iter().chain(file).chain(own))?;
        out!("{}", list.write(self.format, &Place { folder, inputs })?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The folders that `paths` are or lie in, absolute, without those that lie in another.
fn folders(paths: impl Iterator<Item = PathBuf>) -> std::io::Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for path in paths {
        let mut path = std::path::absolute(path)?;
        if path.is_file() {
            path.pop();
        }
        if !folders.iter().any(|other| path.starts_with(other)) {
            folders.retain(|other| !other.starts_with(&path));
            folders.push(path);
        }
    }
    Ok(folders)
}

/// The command that runs the whole suite in `folder` as this one was asked to: `repro` with the options that were typed here, or
/// taken from the environment, and with absolute paths.
fn command(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut words = vec![program()?.into_os_string(), "repro".into()];
    let matches = Cli::command().try_get_matches()?;
    let matches = matches.subcommand_matches("plan").context("this is not sdclr plan")?;
    let options = GlobalArgs::augment_args(JobsArgs::augment_args(clap::Command::new("repro")));
    for argument in options.get_arguments().filter(|argument| *argument.get_id() != "out") {
        words.extend(typed(argument, matches)?);
    }
    words.extend(["--out".into(), folder.as_os_str().to_owned()]);
    let text = |word: OsString| word.into_string().map_err(|word| anyhow::anyhow!("{word:?} is not UTF-8; rename it"));
    words.into_iter().map(text).collect()
}

/// What starts this program: the launcher of an installation, which finds libtorch and gives its own path as the first argument, or
/// this file.
fn program() -> anyhow::Result<PathBuf> {
    let first = std::env::args_os().next().map(PathBuf::from).filter(|first| first.is_absolute());
    first.map_or_else(std::env::current_exe, Ok).context("cannot tell where this program lies")
}

/// The words that give `argument` the values that it has in `matches`; none where it has its default.
fn typed(argument: &Arg, matches: &ArgMatches) -> anyhow::Result<Vec<OsString>> {
    let id = argument.get_id().as_str();
    let given = [Some(ValueSource::CommandLine), Some(ValueSource::EnvVariable)];
    if !given.contains(&matches.value_source(id)) {
        return Ok(Vec::new());
    }
    let option = argument.get_long().map(|long| format!("--{long}"));
    if !argument.get_action().takes_values() {
        return Ok(option.map(OsString::from).into_iter().collect());
    }
    let is_path = argument.get_value_parser().type_id() == TypeId::of::<PathBuf>();
    let mut words = Vec::new();
    for value in matches.get_raw(id).into_iter().flatten() {
        let suite_file = id == "suite" && value.to_str().and_then(Suite::file).is_some();
        let value = if is_path || suite_file { std::path::absolute(value)?.into() } else { value.to_owned() };
        let mut word = option.as_ref().map(|option| OsString::from(format!("{option}="))).unwrap_or_default();
        word.push(value);
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_within_another_is_not_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        crate::fs::create_folder(&at("images/train")).unwrap();
        crate::fs::write(&at("images/own.toml"), b"").unwrap();
        let paths = ["images/train", "images/own.toml", "lists", "images/test", "lists"].map(at);
        assert_eq!(folders(paths.into_iter()).unwrap(), ["images", "lists"].map(at));
    }
}
