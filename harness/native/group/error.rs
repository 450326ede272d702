//! Why several processes cannot compute together.

use super::super::NativeError;

/// The ranks did not meet, do not agree, or lost one of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error(
        "rank {rank} could not meet the others at {address}: {reason}; check MASTER_ADDR and MASTER_PORT, and that rank 0 runs"
    )]
    Unreachable { rank: usize, address: String, reason: String },
    #[error("rank 0 cannot serve port {port}, which another program uses; set MASTER_PORT to a free one on every rank")]
    PortInUse { port: u16 },
    #[error("two processes have rank {rank} of {size}; give each its own RANK, or each run its own MASTER_PORT")]
    Twice { rank: usize, size: usize },
    #[error(
        "ranks {missing:?} of {size} did not arrive within {seconds} s; start them with the same MASTER_ADDR and MASTER_PORT, or check why they ended"
    )]
    Missing { missing: Vec<usize>, size: usize, seconds: u64 },
    #[error(
        "rank 0 and rank {rank} differ in {what}: {first} and {other}; start every rank with the same command on the same files"
    )]
    Differ { what: String, rank: usize, first: String, other: String },
    #[error("the ranks were asked to stop while they waited for each other; run the same command again")]
    Stopped,
    #[error("rank {rank} failed: {reason}")]
    Failed { rank: usize, reason: String },
    #[error("rank {rank} ended: {reason}")]
    Ended { rank: usize, reason: String },
    #[error(
        "rank {rank} of {size} (process {process} on {host}) was lost, and with it the step under way; run the same command again to continue from the last checkpoint"
    )]
    Lost { rank: usize, size: usize, process: u32, host: String },
    #[error("the ranks lost each other: {0}; run the same command again to continue from the last checkpoint")]
    Apart(String),
    #[error(
        "NCCL cannot connect the GPUs of the ranks: {reason}; or exchange over the host with SDCLR_RANKS_EXCHANGE=gloo"
    )]
    NoNccl { reason: String },
    #[error(transparent)]
    Native(#[from] NativeError),
}

impl GroupError {
    /// Whether all ranks have seen it at the same place, so that they can do something else together.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}
