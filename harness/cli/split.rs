//! `sdclr split make`: long-tailed, balanced and few-shot lists of one's own data.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::output::outln;
use crate::split::make::{self, Decay, Source, Wanted};

/// Make split lists of your own data
#[derive(Debug, Args)]
pub(super) struct SplitArgs {
    #[command(subcommand)]
    command: SplitCommand,
}

#[derive(Debug, Subcommand)]
enum SplitCommand {
    Make(MakeArgs),
}

/// Make long-tailed (D_i), balanced (D_b) and few-shot (S_b) lists of your own data
///
/// In the format of the published lists, with those of training, validation and test images: lines PATH LABEL for image
/// files, .npy files of positions for arrays. D_b is as large as D_i (rounded down to whole images a class); S_b takes of
/// every class as many images as the rarest class of D_i has, and lies inside both. The same seed gives the same files.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sdclr split make --data DIR --classes-decay exp --ratio 100 --per-class 4500 --seeds 5 --out DIR/split
  sdclr split make --data train.npz --classes-decay pareto --ratio 50 --per-class 500 --seeds 3 --out split")]
struct MakeArgs {
    /// A folder with train/CLASS/*.jpg and test/ (or val/), an .npz file with images and labels, or a folder with images.npy
    /// and labels.npy
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// How the number of images falls from the most frequent class to the rarest
    #[arg(long, value_name = "DECAY")]
    classes_decay: Decay,
    /// Images of the most frequent class of D_i over those of the rarest
    #[arg(long, value_name = "R")]
    ratio: f64,
    /// Images of the most frequent class of D_i
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    per_class: u32,
    /// Images of each class that are kept for validation [default: a tenth of the smallest class]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    validation: Option<u32>,
    /// Number of splits, each drawn anew
    #[arg(long, value_name = "K", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    seeds: u32,
    /// Seed of the first draw
    #[arg(long, value_name = "S", default_value = "1")]
    seed: u64,
    /// New folder for the lists
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl SplitArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let SplitCommand::Make(args) = self.command;
        args.run()
    }
}

impl MakeArgs {
    fn run(self) -> anyhow::Result<ExitCode> {
        let wanted = Wanted {
            decay: self.classes_decay,
            ratio: self.ratio,
            per_class: self.per_class as usize,
            validation: self.validation.map(|count| count as usize),
            splits: self.seeds as usize,
            seed: self.seed,
        };
        let lists = make::make(&Source::open(&self.data)?, &wanted)?;
        make::write(&lists, &self.out)?;
        for list in &lists {
            let (most, least) = (list.class_counts.iter().max(), list.class_counts.iter().min());
            let [most, least] = [most, least].map(|count| count.copied().unwrap_or(0));
            let images: usize = list.class_counts.iter().sum();
            outln!("{}  {images} images, {most} to {least} a class, sha256 {}", list.name, list.sha256())?;
        }
        outln!("lists: {}", self.out.display())?;
        Ok(ExitCode::SUCCESS)
    }
}
