//! The names of published state dicts: their prefix, and what the probe makes of a pre-training checkpoint
//! (REFERENCE.md "Networks" and "Evaluation").

use super::StateDict;

/// What DistributedDataParallel puts before every name.
pub const DDP_PREFIX: &str = "module.";

impl StateDict {
    /// The prefix that every name carries: `module.` or nothing.
    pub fn ddp_prefix(&self) -> &'static str {
        if !self.is_empty() && self.names().all(|name| name.starts_with(DDP_PREFIX)) { DDP_PREFIX } else { "" }
    }

    /// The same tensors without `prefix`.
    pub fn without_prefix(&self, prefix: &str) -> Self {
        self.iter()
            .map(|(name, tensor)| (name.strip_prefix(prefix).unwrap_or(name).to_owned(), tensor.shallow_clone()))
            .collect()
    }

    /// The same tensors with `prefix` before each name.
    pub fn with_prefix(&self, prefix: &str) -> Self {
        self.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.shallow_clone())).collect()
    }

    /// The dense branch of the backbone under single-BN names: no head, no pruned batch norm.
    pub fn dense_backbone(&self) -> Self {
        self.iter()
            .filter(|(name, _)| !name.starts_with("fc.") && !name.contains(".bn_list.1."))
            .map(|(name, tensor)| {
                let name = name
                    .replace(".bn_list.0.", ".")
                    .replace("downsample.conv.", "downsample.0.")
                    .replace("downsample.bn.", "downsample.1.");
                (name, tensor.shallow_clone())
            })
            .collect()
    }
}
