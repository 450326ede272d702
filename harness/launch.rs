//! Processes of this command on several devices of this machine. In: the devices, and how many runs there are to do. Out: one
//! process a device, waited for. Runs are independent, so each gets a device first; devices that are left over join a run.

use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::cores::Cores;
use crate::native::group::slice_of;
use crate::stop::Stop;

/// The option whose devices the processes are given, one each.
const OPTION: &str = "--devices";
/// The processes share what it allows.
const THREADS: &str = "--threads";
/// For the processes that the first one speaks for.
const QUIET: &str = "--quiet";
/// Pause between two looks at the processes.
const LOOK: Duration = Duration::from_millis(100);

/// The processes could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("no free port for the processes of one run: {0}; give a single --device, which needs none")]
    Port(std::io::Error),
    #[error("the process on {device} could not be started: {error}; see sdclr doctor")]
    Start { device: String, error: std::io::Error },
    #[error("the process on {device} cannot be waited for: {error}; run the same command again to continue")]
    Wait { device: String, error: std::io::Error },
}

/// Devices as they are typed: `cuda:0-7`, `cuda:0,cuda:2`, `cpu,cpu`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(pub Vec<String>);

impl std::str::FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut devices = Vec::new();
        for part in text.split(',') {
            let range = part.strip_prefix("cuda:").map(|range| range.split_once('-').unwrap_or((range, range)));
            let number = |text: &str| text.parse::<u16>().ok();
            match range.map(|(first, last)| (number(first), number(last))) {
                None if part == "cpu" => devices.push(part.to_owned()),
                Some((Some(first), Some(last))) if first <= last => {
                    devices.extend((first..=last).map(|n| format!("cuda:{n}")));
                }
                _ => return Err(format!("'{part}' is not cpu, cuda:N or a range like cuda:0-7")),
            }
        }
        let twice = devices.iter().enumerate().find(|(at, device)| *device != "cpu" && devices[..*at].contains(device));
        match twice {
            Some((_, device)) => Err(format!("{device} is named twice")),
            None => Ok(Self(devices)),
        }
    }
}

/// One of the processes.
struct Process {
    device: String,
    child: Child,
}

/// Runs this command line once on each of `devices` and waits for all of them. They divide `runs` runs, which they write into
/// the same folder. The first one speaks for all: it has this process's output, and its exit code is the one that counts.
///
/// # Errors
/// A process cannot be started or waited for.
pub fn launch(devices: &Devices, runs: usize, stop: &Stop) -> Result<ExitStatus, LaunchError> {
    let mut processes = Started(Vec::new());
    let teams = teams(devices, runs);
    let ports = free_ports(teams.len())?;
    for (team, port) in teams.into_iter().zip(ports) {
        let port = Some(port).filter(|_| team.len() > 1);
        for (rank, device) in team.iter().enumerate() {
            let mut command = command_on(device, devices.0.len(), processes.0.is_empty());
            if let Some(port) = port {
                let variables = [("RANK", rank), ("WORLD_SIZE", team.len()), ("LOCAL_RANK", rank)];
                command.envs(variables.map(|(name, value)| (name, value.to_string())));
                command.env("MASTER_ADDR", Ipv4Addr::LOCALHOST.to_string()).env("MASTER_PORT", port.to_string());
            }
            let failed = |error| LaunchError::Start { device: device.clone(), error };
            processes.0.push(Process { device: device.clone(), child: command.spawn().map_err(failed)? });
        }
    }
    processes.wait(stop)
}

/// The devices of each run that is trained at the same time.
fn teams(devices: &Devices, runs: usize) -> Vec<Vec<String>> {
    let count = devices.0.len();
    // What is left when every run is finished, probes, needs no second device.
    let teams = if runs == 0 { count } else { runs.min(count) };
    (0..teams).map(|team| devices.0[slice_of(count, team, teams)].to_vec()).collect()
}

/// Ports that nobody uses now, no two the same.
fn free_ports(count: usize) -> Result<Vec<u16>, LaunchError> {
    let listen = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners: Vec<TcpListener> = (0..count).map(listen).collect::<Result<_, _>>().map_err(LaunchError::Port)?;
    let port = |listener: &TcpListener| Ok(listener.local_addr()?.port());
    listeners.iter().map(port).collect::<Result<_, _>>().map_err(LaunchError::Port)
}

/// This command line on `device`, one of `count`.
fn command_on(device: &str, count: usize, first: bool) -> Command {
    // The program itself, also where a newer one lies at its path by now.
    let mut command = Command::new("/proc/self/exe");
    let typed: Vec<OsString> = std::env::args_os().skip(1).collect();
    let quiet = typed.iter().any(|word| word == QUIET);
    command.arg0("sdclr").args(arguments(typed, device)).stdin(Stdio::null());
    command.env("OMP_NUM_THREADS", (Cores::available().used() / count).max(1).to_string());
    if !first {
        command.args((!quiet).then_some(QUIET)).stdout(Stdio::null());
    }
    // SAFETY: the child only asks for a signal, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // The processes must not outlive this one, however it ends.
            match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    command
}

/// The typed arguments with `--device` instead of the option that names several.
fn arguments(typed: Vec<OsString>, device: &str) -> Vec<OsString> {
    let mut arguments = Vec::new();
    let mut typed = typed.into_iter();
    while let Some(word) = typed.next() {
        let text = word.to_string_lossy();
        let (option, value) = text.split_once('=').map_or((&*text, None), |(option, value)| (option, Some(value)));
        if option != OPTION && option != THREADS {
            arguments.push(word);
            continue;
        }
        if value.is_none() {
            typed.next();
        }
        if option == OPTION {
            arguments.extend(["--device", device].map(OsString::from));
        }
    }
    arguments
}

/// The processes that were started, the first one first. They are ended with this value.
struct Started(Vec<Process>);

impl Started {
    /// Waits for all of them, and passes on a request to stop. Gives how the first one ended.
    fn wait(&mut self, stop: &Stop) -> Result<ExitStatus, LaunchError> {
        let mut ended: Vec<Option<ExitStatus>> = vec![None; self.0.len()];
        let mut told = false;
        loop {
            for (Process { device, child }, ended) in self.0.iter_mut().zip(&mut ended) {
                let failed = |error| LaunchError::Wait { device: device.clone(), error };
                *ended = child.try_wait().map_err(failed)?;
            }
            if let Some(ended) = ended.iter().copied().collect::<Option<Vec<_>>>() {
                self.warn(&ended);
                return Ok(ended[0]);
            }
            if !told && stop.requested().is_some() {
                told = true;
                self.terminate();
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Names the processes that ended otherwise than the first one.
    fn warn(&self, ended: &[ExitStatus]) {
        for (Process { device, .. }, other) in self.0.iter().zip(ended) {
            if *other != ended[0] {
                tracing::warn!("the process on {device} ended with {other}");
            }
        }
    }

    fn terminate(&mut self) {
        for Process { child, .. } in &mut self.0 {
            if let Ok(None) = child.try_wait() {
                // SAFETY: a signal to a child that has not been waited for, so that its number is its own.
                unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
            }
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.terminate();
        for Process { child, .. } in &mut self.0 {
            // It ends by itself after the signal; how, nobody asks any more.
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(text: &str) -> Vec<String> {
        text.parse::<Devices>().unwrap().0
    }

    #[test]
    fn devices_are_names_and_ranges() {
        assert_eq!(devices("cuda:0-2"), ["cuda:0", "cuda:1", "cuda:2"]);
        assert_eq!(devices("cuda:3,cuda:0-1"), ["cuda:3", "cuda:0", "cuda:1"]);
        assert_eq!(devices("cpu,cpu"), ["cpu", "cpu"]);
        for text in ["", "cuda", "cuda:", "cuda:2-1", "cuda:0-1,cuda:1", "cuda:x", "gpu:0"] {
            assert!(text.parse::<Devices>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_run_gets_a_device_before_one_gets_two() {
        let sizes = |count: usize, runs| -> Vec<usize> {
            let devices = Devices((0..count).map(|n| format!("cuda:{n}")).collect());
            let teams = teams(&devices, runs);
            assert_eq!(teams.concat(), devices.0);
            teams.iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(8, 40), [1; 8]);
        assert_eq!(sizes(8, 3), [3, 3, 2]);
        assert_eq!(sizes(8, 1), [8]);
        assert_eq!(sizes(2, 0), [1, 1]);
    }

    #[test]
    fn each_process_is_given_one_device() {
        let given = |typed: &[&str]| -> Vec<String> {
            let typed = typed.iter().map(OsString::from).collect();
            arguments(typed, "cuda:1").iter().map(|word| word.to_string_lossy().into_owned()).collect()
        };
        let expected = ["repro", "digits-lt", "--device", "cuda:1", "--out", "x"];
        assert_eq!(given(&["repro", "digits-lt", "--devices", "cuda:0-1", "--out", "x"]), expected);
        assert_eq!(given(&["repro", "digits-lt", "--devices=cuda:0-1", "--out", "x"]), expected);
    }
}
