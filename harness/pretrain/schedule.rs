//! The learning rate of each step (REFERENCE.md "Optimiser and schedule").

use std::f64::consts::PI;

use crate::recipe::ScheduleName;

/// Rate as a function of the iteration.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub name: ScheduleName,
    /// Peak rate.
    pub lr: f64,
    /// Iterations of warm-up.
    pub warmup: u64,
    /// Iterations of the whole run.
    pub total: u64,
}

impl Schedule {
    /// The rate of iteration `i`, counted from 1 over the whole run: the schedule steps before the optimiser does.
    pub fn rate(&self, i: u64) -> f64 {
        let Self { name, lr, warmup, total } = *self;
        let factor = match name {
            ScheduleName::Constant => 1.0,
            ScheduleName::Cosine if i < warmup => i as f64 / warmup as f64,
            // The published code divides by zero here.
            ScheduleName::Cosine if warmup >= total => 1.0,
            ScheduleName::Cosine => {
                let floor = 1e-6 / lr;
                let progress = (i - warmup) as f64 / (total - warmup) as f64;
                floor + (1.0 - floor) * 0.5 * (1.0 + (PI * progress).cos())
            }
        };
        lr * factor
    }
}
