//! Addressed draws. In: a seed and the address of what is drawn (epoch, image, view, layer). Out: numbers that depend on
//! nothing else: not on the batch, the device, the thread, or what was drawn before.

use sha2::{Digest, Sha256};

pub use crate::native::generator::{normal, randperm, uniform};

/// The seed of a generator that is used for one thing only: randomness here is addressed, not consumed, so nothing that
/// is drawn depends on what was drawn before.
pub fn addressed_seed(seed: u64, address: &str) -> u64 {
    let digest = Sha256::digest(format!("{seed}/{address}"));
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}
