//! What others published, on this disk and proven to be what it should be.

pub mod hash;
pub mod unpack;
