//! Standard output, for what a command was asked for. Where it cannot be written, that is the command's error.

use std::fmt::Arguments;
use std::io::Write;

use crate::progress;

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputError {
    /// As behind `| head`, which has read enough.
    #[error("nobody reads the output")]
    Closed,
    #[error("cannot write the output: {reason}; {remedy}")]
    Write { reason: String, remedy: &'static str },
}

impl From<std::io::Error> for OutputError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind::{BrokenPipe, QuotaExceeded, StorageFull};
        let remedy = match error.kind() {
            BrokenPipe => return Self::Closed,
            StorageFull | QuotaExceeded => "free some space, or write it elsewhere, and run the same command again",
            _ => "check where standard output leads, and run the same command again",
        };
        let text = error.to_string();
        let reason = text.split(" (os error").next().unwrap_or(&text).to_owned();
        Self::Write { reason, remedy }
    }
}

/// Writes text to standard output, as it is, at once.
pub(super) fn print(text: Arguments) -> Result<(), OutputError> {
    // Which may be the terminal of the bars.
    Ok(progress::suspend(|| {
        let mut output = std::io::stdout().lock();
        output.write_fmt(text)?;
        output.flush()
    })?)
}

/// `println!` that returns an error where the output cannot be written.
macro_rules! outln {
    ($($text:tt)*) => { $crate::cli::output::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// `print!` that returns an error where the output cannot be written.
macro_rules! out {
    ($($text:tt)*) => { $crate::cli::output::print(format_args!($($text)*)) };
}

pub(super) use {out, outln};
