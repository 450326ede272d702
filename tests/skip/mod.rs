//! Tests that lack something say so: each skip is a line of the file that `SDCLR_SKIPPED` names, which `ci/test` counts.

use std::io::Write;

/// The running test, `BINARY::TEST`.
pub fn test_name() -> String {
    let binary = std::env::current_exe().unwrap();
    let binary = binary.file_stem().unwrap().to_string_lossy();
    let binary = binary.rsplit_once('-').map_or(&*binary, |(name, _)| name);
    let thread = std::thread::current();
    format!("{binary}::{}", thread.name().unwrap_or("?"))
}

/// Writes down that the running test, or a part of it, is skipped since there is no `need` here: `data`, `oracle`, `mounts`,
/// `gpu`... With `SDCLR_REQUIRE_ALL=1` only a GPU may be lacking.
pub fn skip(need: &str, reason: &str) {
    let test = test_name();
    let required = need != "gpu" && std::env::var("SDCLR_REQUIRE_ALL").is_ok_and(|value| value == "1");
    assert!(!required, "{test} lacks {need} ({reason}), and SDCLR_REQUIRE_ALL=1 lets no test be skipped");
    eprintln!("skipped: {reason}");
    if let Some(path) = std::env::var_os("SDCLR_SKIPPED") {
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        // One write, so that lines of several tests do not mix.
        file.write_all(format!("{need}\t{}\t{test}\n", reason.replace(['\t', '\n'], " ")).as_bytes()).unwrap();
    }
}
