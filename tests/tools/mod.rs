//! Programs of others that `ci/tools` installs.

use std::path::{Path, PathBuf};

use crate::skip::skip;

/// The program called `name`, or the counted skip of the running test.
pub fn tool(name: &str) -> Option<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/bin");
    let path = std::env::var_os("SDCLR_TOOLS").map_or(ours, PathBuf::from).join(name);
    if !path.exists() {
        skip("tools", &format!("{} is missing (ci/tools installs it)", path.display()));
        return None;
    }
    Some(path)
}
