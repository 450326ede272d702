//! Reproducibility and benchmark suite for Self-Damaging Contrastive Learning.
pub mod native;
