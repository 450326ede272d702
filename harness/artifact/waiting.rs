//! Waiting for another process of the user. In: how to take a lock. Out: the lock, once it is free.

use std::time::Duration;

use super::Voice;
use crate::fs::{FolderLock, FsError};

/// A lock, once no other process holds it.
pub fn wait_for(voice: &Voice, take: impl Fn() -> Result<Option<FolderLock>, FsError>) -> Result<FolderLock, FsError> {
    let mut told = false;
    loop {
        if let Some(lock) = take()? {
            return Ok(lock);
        }
        if !told {
            voice.say("another process is at work on it; waiting until that is done");
            told = true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
