//! The command line: arguments in, one call into a room, what it said out.

mod analyse;
mod bench;
mod doctor;
mod export;
mod features;
mod fetch;
mod jobs;
mod log;
mod output;
mod pair;
mod plan;
mod pretrain;
mod probe;
mod replay;
mod report;
mod repro;
mod split;
mod verify;
mod views;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::builder::RangedU64ValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::cores;
use crate::dataset::ImageCache;
use crate::native::group::{Group, GroupError};
use crate::progress;
use crate::ranks::{RanksError, place};
use output::OutputError;

use crate::recipe::{self, Precision, Recipe, name_of};
use crate::stop::{self, Stop};
use crate::suite::context::Scale;
use crate::suite::environment;

/// Reproduce, evaluate and benchmark Self-Damaging Contrastive Learning (SDCLR, ICML 2021).
#[derive(Debug, Parser)]
#[command(name = "sdclr", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: GlobalArgs,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct GlobalArgs {
    /// Threads to compute with [default: as many as processors, affinity and cgroup quota allow, or OMP_NUM_THREADS]
    #[arg(long, global = true, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    threads: Option<usize>,
    /// Progress on standard error: bar, plain (a line now and then), none, or auto (a bar on a terminal, else plain)
    #[arg(long, global = true, value_name = "HOW", default_value = "auto", hide_possible_values = true)]
    progress: progress::Mode,
    /// Lines on standard error: text, or json (an object a line: time, level, message and more)
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    log_format: log::LogFormat,
    /// Say nothing on standard error but warnings and errors
    #[arg(long, global = true)]
    quiet: bool,
}

impl GlobalArgs {
    /// Settles all of it for this process.
    fn apply(&self) {
        // Rank 0 speaks for all of several processes; the others say what went wrong.
        let quiet = self.quiet || matches!(place(), Ok(Some(place)) if place.rank() > 0);
        let progress = match (quiet, self.log_format, self.progress) {
            (true, _, _) => progress::Mode::None,
            // Bars are no JSON.
            (_, log::LogFormat::Json, progress::Mode::Auto | progress::Mode::Bar) => progress::Mode::Plain,
            (_, _, chosen) => chosen,
        };
        progress::configure(progress);
        log::start(self.log_format, quiet);
        cores::set_threads(self.threads);
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Fetch(fetch::FetchArgs),
    Repro(repro::ReproArgs),
    Plan(plan::PlanArgs),
    Verify(verify::VerifyArgs),
    Report(report::ReportArgs),
    Pretrain(pretrain::PretrainArgs),
    Probe(probe::ProbeArgs),
    Features(features::FeaturesArgs),
    Export(export::ExportArgs),
    Views(views::ViewsArgs),
    Split(split::SplitArgs),
    Replay(replay::ReplayArgs),
    Analyse(analyse::AnalyseArgs),
    Bench(bench::BenchArgs),
    /// Tell what is installed and what works: libtorch, CUDA, data
    Doctor(doctor::DoctorArgs),
    /// Print a shell completion script
    ///
    /// Example: sdclr completions bash > ~/.local/share/bash-completion/completions/sdclr
    Completions {
        shell: clap_complete::Shell,
    },
}

/// Where the data lie and how much of it to run.
#[derive(Debug, Clone, Args)]
struct ScaleArgs {
    /// Folder of the data: cifar-10-batches-bin/ or cifar-10-batches-py/ (likewise CIFAR-100), or imagenet/; and split/
    /// [default: what sdclr fetch brought]
    #[arg(long, value_name = "DIR", env = "SDCLR_DATA")]
    data: Option<PathBuf>,
    /// cpu or cuda:N [default: CUDA where it is]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Same bits in every run on one GPU, at some cost in speed (on the CPU that is always so)
    #[arg(long)]
    deterministic: bool,
    /// Use the first N entries of every list: a smoke run, not a result
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    limit_images: Option<u32>,
    /// Stop pre-training and probes after N epochs: a smoke run, not a result
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit_epochs: Option<u32>,
    /// Decode every image file that will be used before anything else, and name those that cannot be
    #[arg(long)]
    check_data: bool,
    /// Keep decoded image files in memory, up to this size (such as 8GiB or 500MiB) of their pixels; the results are the same
    #[arg(long, value_name = "SIZE")]
    cache_images: Option<Size>,
}

/// A number of bytes: `500MiB`, `8GiB`.
#[derive(Debug, Clone, Copy)]
struct Size(u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
        let split = units.iter().find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, 1_u64 << bits)));
        let bytes = split.and_then(|(number, unit)| number.trim_end().parse::<u64>().ok()?.checked_mul(unit));
        bytes.map(Self).ok_or_else(|| format!("'{text}' is not a size; use 500MiB or 8GiB"))
    }
}

impl From<ScaleArgs> for Scale {
    fn from(args: ScaleArgs) -> Self {
        let ScaleArgs { data, device, deterministic, limit_images, limit_epochs, check_data, cache_images } = args;
        let [limit_images, limit_epochs] = [limit_images, limit_epochs].map(|limit| limit.map(|n| n as usize));
        let (stop, foreign, group, tensorboard) = Default::default();
        let data = data.or_else(crate::artifact::data_folder);
        let cache = cache_images.map(|Size(bytes)| Arc::new(ImageCache::new(bytes)));
        Self {
            data,
            device,
            deterministic,
            eager: false,
            limit_images,
            limit_epochs,
            check_data,
            cache,
            stop,
            foreign,
            group,
            tensorboard,
        }
    }
}

/// How training goes about its work on a GPU.
#[derive(Debug, Clone, Args)]
struct EngineArgs {
    /// Train on a GPU by libtorch's own operations, launched one by one: no CUDA graphs, no batch norm of ours. Slower, for
    /// when those make trouble
    #[arg(long)]
    eager: bool,
}

/// What training shows meanwhile.
#[derive(Debug, Clone, Args)]
struct ShowArgs {
    /// Also write loss, rate, mask and validation accuracy of every epoch for TensorBoard, under DIR/JOB
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
}

/// What changes a recipe.
#[derive(Debug, Clone, Args)]
struct OverrideArgs {
    /// Override a recipe key, e.g. epochs=500 or probe.few.lr=10
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
    set: Vec<String>,
    /// Precision of pre-training, short for --set precision=P [default: the recipe's]
    #[arg(long, value_name = "P")]
    precision: Option<Precision>,
}

impl OverrideArgs {
    fn overrides(self) -> anyhow::Result<Vec<String>> {
        let precision = self.precision.map(|precision| format!("precision={}", name_of(&precision)));
        let other = |set: &&String| set.starts_with("precision=") && precision.as_ref().is_some_and(|own| own != *set);
        if let (Some(set), Some(own)) = (self.set.iter().find(other), &precision) {
            anyhow::bail!("--set {set} and --precision (which sets {own}) are two precisions; give one of them");
        }
        Ok(self.set.into_iter().chain(precision).collect())
    }
}

/// Warns of what overrides do not change although they seem to.
fn warn_of(recipe: &Recipe, overrides: &[String]) {
    if let Some(remark) = recipe::remark(recipe, overrides) {
        tracing::warn!("{remark}");
    }
}

/// Numbers and inclusive ranges, `1-3,5`.
#[derive(Debug, Clone)]
struct Numbers(Vec<i64>);

impl std::str::FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse::<i64>().ok().filter(|n| (0..=10_000_000).contains(n));
        let mut numbers = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => numbers.extend(first..=last),
                _ => return Err(format!("'{part}' is neither a number nor a range like 1-5 (ranges are inclusive)")),
            }
        }
        Ok(Self(numbers))
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    prepare_process();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return tell(&answer),
    };
    cli.global.apply();
    crate::native::prepare();
    let outcome = match crate::native::guarded(|| cli.command.check_ranks().and_then(|()| cli.command.run())) {
        Err(_) if crate::native::is_output_closed() => Err(OutputError::Closed.into()),
        outcome => outcome.unwrap_or_else(|crash| Err(crash.into())),
    };
    outcome.unwrap_or_else(|error| failed(&error))
}

/// As the first thing, while the process has one thread: an empty variable counts as unset, and a limit on the size of
/// files is an error of the write that goes beyond it.
fn prepare_process() {
    let empty =
        std::env::vars_os().filter(|(name, value)| name.as_encoded_bytes().starts_with(b"SDCLR_") && value.is_empty());
    for (name, _) in empty.collect::<Vec<_>>() {
        // SAFETY: no other thread is there that could read the environment.
        unsafe { std::env::remove_var(name) };
    }
    // SAFETY: by default the signal ends the process without a word; no handler runs.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Prints help or the version, or what is wrong with the arguments.
fn tell(answer: &clap::Error) -> ExitCode {
    match answer.print().map_err(OutputError::from) {
        Err(error) if !answer.use_stderr() => {
            log::start(log::LogFormat::Text, false);
            failed(&error.into())
        }
        _ => ExitCode::from(answer.exit_code() as u8),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    if let Some(OutputError::Closed) = error.downcast_ref() {
        // As if the signal that tells of it, which Rust ignores, had ended the program.
        return ExitCode::from(141);
    }
    // Our messages carry their causes.
    tracing::error!("{}", crate::text::message(&error.to_string()));
    ExitCode::FAILURE
}

/// The file of a recipe that is none of the embedded ones: `FILE.toml`, or `FILE.toml:METHOD`.
fn recipe_file(name: &str) -> Option<&Path> {
    let (file, _) = name.rsplit_once(':').unwrap_or((name, ""));
    [name, file].into_iter().find(|file| file.ends_with(".toml")).map(Path::new)
}

/// Runs `command` as one of the processes that compute together, with the device of this one, and tells the others where it
/// fails. Where `stop` asks before they have met, the command can be run again.
fn as_rank(
    stop: &Stop,
    device: Option<String>,
    command: impl FnOnce(Group, Option<String>) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let Some(place) = place()? else { return command(Group::default(), device) };
    let group = match place.join(stop) {
        Err(RanksError::Group(stopped @ GroupError::Stopped)) => {
            tracing::info!("{stopped}");
            return Ok(ExitCode::from(stop::EXIT_CODE));
        }
        met => met?,
    };
    let outcome = crate::native::guarded(|| {
        let device = place.device(device);
        group.connect(environment::device(device.as_deref())?)?;
        command(group.clone(), device)
    });
    match outcome.unwrap_or_else(|crash| Err(crash.into())) {
        Ok(code) if group.has_left() => Ok(code),
        // Nobody leaves while another still needs it.
        Ok(code) => Ok(group.all_well(None).map(|()| code)?),
        Err(error) => {
            group.fail(&error.to_string());
            Err(error)
        }
    }
}

impl Command {
    /// Refuses several processes for what does not train: they would all do the same.
    fn check_ranks(&self) -> anyhow::Result<()> {
        match (place()?, self) {
            (None, _) | (_, Self::Replay(_) | Self::Pretrain(_) | Self::Repro(_)) => Ok(()),
            (Some(place), _) => Ok(place.refuse()?),
        }
    }

    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Fetch(args) => args.run(),
            Command::Repro(args) => args.run(),
            Command::Plan(args) => args.run(),
            Command::Verify(args) => args.run(),
            Command::Report(args) => args.run(),
            Command::Pretrain(args) => args.run(),
            Command::Probe(args) => args.run(),
            Command::Features(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Views(args) => args.run(),
            Command::Split(args) => args.run(),
            Command::Replay(args) => args.run(),
            Command::Analyse(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Doctor(args) => args.run(),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "sdclr", &mut script);
                output::out!("{}", String::from_utf8_lossy(&script))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Says which weights of an encoder are not finite.
fn warn_not_finite(state: &crate::network::StateDict) {
    let names = state.not_finite();
    if let Some(first) = names.first() {
        let (count, first) = (names.len(), crate::text::printable(first));
        tracing::warn!("{count} tensors of the checkpoint hold NaN or infinity, the first is '{first}'");
    }
}
