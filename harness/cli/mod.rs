//! The command line: arguments in, one call into a room, what it said out.

mod analyse;
mod bench;
mod doctor;
mod export;
mod features;
mod fetch;
mod pretrain;
mod probe;
mod replay;
mod repro;
mod views;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::recipe::{Precision, name_of};
use crate::suite::context::Scale;

/// Reproduce, evaluate and benchmark Self-Damaging Contrastive Learning (SDCLR, ICML 2021).
#[derive(Debug, Parser)]
#[command(name = "sdclr", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Fetch(fetch::FetchArgs),
    Repro(repro::ReproArgs),
    Pretrain(pretrain::PretrainArgs),
    Probe(probe::ProbeArgs),
    Features(features::FeaturesArgs),
    Export(export::ExportArgs),
    Views(views::ViewsArgs),
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
}

impl From<ScaleArgs> for Scale {
    fn from(args: ScaleArgs) -> Self {
        let ScaleArgs { data, device, deterministic, limit_images, limit_epochs } = args;
        let [limit_images, limit_epochs] = [limit_images, limit_epochs].map(|limit| limit.map(|n| n as usize));
        let data = data.or_else(crate::artifact::data_folder);
        Self { data, device, deterministic, eager: false, limit_images, limit_epochs }
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
    let cli = Cli::parse();
    crate::native::prepare();
    let outcome = match crate::native::guarded(|| cli.command.run()) {
        // As if the signal that tells of it, which Rust ignores, had ended the program.
        Err(_) if crate::native::is_output_closed() => return ExitCode::from(141),
        outcome => outcome.unwrap_or_else(|crash| Err(crash.into())),
    };
    outcome.unwrap_or_else(|error| {
        // Our messages carry their causes.
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Fetch(args) => args.run(),
            Command::Repro(args) => args.run(),
            Command::Pretrain(args) => args.run(),
            Command::Probe(args) => args.run(),
            Command::Features(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Views(args) => args.run(),
            Command::Replay(args) => args.run(),
            Command::Analyse(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Doctor(args) => args.run(),
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "sdclr", &mut std::io::stdout());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}
