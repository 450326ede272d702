//! How much memory a contestant's process took.

use std::process::Command;

use tch::Device;

/// The largest resident size of this process so far, in bytes.
pub(super) fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kib.unwrap_or(0) * 1024
}

/// What process `pid` holds on its CUDA device, in bytes, as the driver counts it, context included. libtorch keeps what
/// it once took, so after the work this is its peak. `None` on the CPU, and where the driver does not tell (some
/// containers hide processes).
pub(super) fn device_bytes(device: Device, pid: u32) -> Option<u64> {
    if !device.is_cuda() {
        return None;
    }
    let query = ["--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"];
    let output = Command::new("nvidia-smi").args(query).output().ok()?;
    used_by(&String::from_utf8_lossy(&output.stdout), pid)
}

/// The bytes of `pid` in lines of `PID, MEBIBYTES`, a line a device.
fn used_by(listing: &str, pid: u32) -> Option<u64> {
    let mebibytes = listing.lines().filter_map(|line| {
        let (found, used) = line.split_once(',')?;
        (found.trim().parse() == Ok(pid)).then(|| used.trim().parse::<u64>().ok())?
    });
    mebibytes.reduce(|sum, used| sum + used).map(|sum| sum << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_lines_are_summed() {
        let listing = "7, 100\n12, 30\n 7, 1\n8, [N/A]\n";
        assert_eq!(used_by(listing, 7), Some(101 << 20));
        assert_eq!(used_by(listing, 8), None);
        assert_eq!(used_by("", 7), None);
    }

    #[test]
    fn this_process_is_resident() {
        assert!(peak_rss() > 1 << 20);
        assert_eq!(device_bytes(Device::Cpu, std::process::id()), None);
    }
}
