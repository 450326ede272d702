//! Addressed draws for simulated studies: the same numbers for the same address, on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of random numbers at an address.
pub struct Draws(ChaCha8Rng);

impl Draws {
    pub fn at(address: [u64; 4]) -> Self {
        let mut seed = [0; 32];
        for (bytes, word) in seed.chunks_exact_mut(8).zip(address) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(seed))
    }

    /// Uniform in `(0, 1)`: the middle of one of 2^53 equal steps.
    fn unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) as f64 + 0.5) * (-53f64).exp2()
    }

    /// Uniform among the whole numbers below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.unit() * bound as f64) as usize
    }

    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Chi-squared with `freedom` degrees of freedom, at least 1: twice a gamma variable of shape `freedom / 2`
    /// (Marsaglia and Tsang 2000; below shape 1 from the next shape by a power of a uniform variable).
    pub fn chi_squared(&mut self, freedom: f64) -> f64 {
        let shape = freedom / 2.0;
        if shape < 1.0 {
            return self.chi_squared(freedom + 2.0) * self.unit().powf(shape.recip());
        }
        let d = shape - 1.0 / 3.0;
        let c = (9.0 * d).sqrt().recip();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                return 2.0 * d * v;
            }
        }
    }
}
