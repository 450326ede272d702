//! Reproducibility and benchmark suite for Self-Damaging Contrastive Learning (SDCLR, ICML 2021).
//!
//! The rooms in the order in which data walks through them; a room knows only those above it.

pub mod ahead;
mod clock;
pub mod cores;
pub mod fs;
pub mod launch;
pub mod native;
pub mod npy;
mod pickle;
pub mod progress;
pub mod random;
pub mod ranks;
pub mod stop;
mod text;
mod zip_directory;

pub mod recipe;
pub mod scores;

pub mod record;

pub mod paper;

pub mod artifact;

pub mod dataset;
pub mod split;

pub mod augment;
pub mod network;

pub mod checkpoint;

pub mod pretrain;

pub mod authors;

pub mod probe;

pub mod verdict;

pub mod report;
pub mod suite;

pub mod bench;
pub mod cli;
