//! Two sets of records, read to be compared.

use std::path::PathBuf;

use anyhow::Context;

use crate::report::Comparison;
use crate::suite::{self, ReadBack};
use crate::verdict::{self, Sample};

/// Two sets of records, each in one or more folders.
pub(super) struct Pair {
    names: [String; 2],
    pub sides: [ReadBack; 2],
    pub samples: [Sample; 2],
}

impl Pair {
    pub(super) fn read(left: &[PathBuf], right: &[PathBuf]) -> anyhow::Result<Self> {
        let name = |folders: &[PathBuf]| folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
        Ok(Self {
            names: [left, right].map(name),
            sides: [suite::read_back(left)?, suite::read_back(right)?],
            samples: [suite::evidence(left)?.sample()?, suite::evidence(right)?.sample()?],
        })
    }

    /// Every quantity of the two, at a false-alarm rate for all together.
    pub(super) fn compare(&self, rate: f64) -> anyhow::Result<Vec<verdict::Comparison>> {
        Ok(verdict::compare(&self.samples[0], &self.samples[1], rate)?)
    }

    pub(super) fn comparison<'a>(
        &'a self,
        scores: &'a [verdict::Comparison],
        rate: f64,
    ) -> anyhow::Result<Comparison<'a>> {
        let record = |side: usize| {
            let missing = || format!("{} holds nothing that was trained or probed here", self.names[side]);
            self.sides[side].suite.as_ref().with_context(missing)
        };
        Ok(Comparison { names: &self.names, sides: [record(0)?, record(1)?], scores, rate })
    }
}
