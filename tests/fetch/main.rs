//! `sdclr fetch` against a server that misbehaves: what is in the cache afterwards is right or not there, and every
//! failure is one clear error.

mod cache;
mod downloads;
mod published;
mod registry;
mod server;
#[path = "../skip/mod.rs"]
mod skip;
mod world;
