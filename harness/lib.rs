//! Reproducibility and benchmark suite for Self-Damaging Contrastive Learning.
pub mod fs;
pub mod native;
pub mod network;
pub mod recipe;
pub mod record;
