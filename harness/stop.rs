//! A request to stop: from the user, a scheduler, or a test. In: SIGINT, SIGTERM, SIGHUP or SIGUSR1. Out: the answer to
//! "is there one?", for loops that ask after each step, so that they end with a checkpoint. A later second signal ends the
//! process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::emulate_default_handler;

use crate::native::group::Group;

/// The exit code of a command that was stopped and can be continued: `EX_TEMPFAIL` of sysexits.
pub const EXIT_CODE: u8 = 75;

/// Signals that follow the first one within so many milliseconds are the same request: schedulers signal a job's script and its
/// processes at once, and the script passes it on.
const SAME_REQUEST: u64 = 500;

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Interrupt,
    Terminate,
    HangUp,
    User1,
    /// A test, by [`Stop::after`].
    Test,
}

impl Request {
    const SIGNALS: [(i32, Self); 4] =
        [(SIGINT, Self::Interrupt), (SIGTERM, Self::Terminate), (SIGHUP, Self::HangUp), (SIGUSR1, Self::User1)];
}

impl Request {
    const ALL: [Self; 5] = [Self::Interrupt, Self::Terminate, Self::HangUp, Self::User1, Self::Test];

    /// A number for other processes; 0 stands for no request.
    pub fn number(request: Option<Self>) -> i64 {
        request.and_then(|request| Self::ALL.iter().position(|known| *known == request)).map_or(0, |at| at as i64 + 1)
    }

    /// The request of a [`Request::number`].
    pub fn of_number(number: i64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number - 1).ok()?).copied()
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::HangUp => "SIGHUP",
            Self::User1 => "SIGUSR1",
            Self::Test => "a test",
        })
    }
}

/// Where requests come from. Clones share one source; the default one never asks.
#[derive(Debug, Clone, Default)]
pub struct Stop(Source);

#[derive(Debug, Clone, Default)]
enum Source {
    #[default]
    Nobody,
    /// The number of the first signal that came, or 0.
    Signals(Arc<AtomicUsize>),
    /// How many questions are still answered with no.
    Test(Arc<AtomicUsize>),
    /// Another one, and the ranks that wait for this process.
    Ranks(Arc<Source>, Group),
}

impl Stop {
    /// Turns the signals into requests, for the rest of the process: only in commands that ask often. A signal that the
    /// process was started to ignore (by nohup, or as a script's job in the background) stays ignored. SIGHUP may come
    /// several times, since a terminal that closes sends it through the shell as well; one of the others that comes later than
    /// half a second after the first has its default action.
    ///
    /// # Errors
    /// The kernel refuses a handler.
    pub fn on_signals() -> std::io::Result<Self> {
        let (first, since) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        for (signal, _) in Request::SIGNALS {
            if is_ignored(signal)? {
                continue;
            }
            let (first, since) = (first.clone(), since.clone());
            let take = move || {
                let now = milliseconds();
                match since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => first.store(signal as usize, Ordering::Relaxed),
                    Err(begun) if signal != SIGHUP && now.saturating_sub(begun) > SAME_REQUEST => {
                        // It refuses only signals that have no default action.
                        let _ = emulate_default_handler(signal);
                    }
                    Err(_) => {}
                }
            };
            // SAFETY: `take` uses atomics, clock_gettime and the emulation of a default action, all safe in a signal handler.
            unsafe { signal_hook::low_level::register(signal, take)? };
        }
        Ok(Self(Source::Signals(first)))
    }

    /// Asks from the question after `questions` others on.
    pub fn after(questions: usize) -> Self {
        Self(Source::Test(Arc::new(AtomicUsize::new(questions))))
    }

    /// On rank 0 of `group` a request to any rank that waits for this one counts too.
    pub fn with_waiting(self, group: &Group) -> Self {
        match group.rank() {
            0 if !group.is_single() => Self(Source::Ranks(Arc::new(self.0), group.clone())),
            _ => self,
        }
    }

    /// The request, if there is one.
    pub fn requested(&self) -> Option<Request> {
        self.0.requested()
    }
}

impl Source {
    fn requested(&self) -> Option<Request> {
        match self {
            Self::Nobody => None,
            Self::Signals(first) => {
                let found = first.load(Ordering::Relaxed);
                Request::SIGNALS.iter().find(|(signal, _)| *signal as usize == found).map(|(_, request)| *request)
            }
            Self::Test(left) => {
                let count = |left: usize| left.checked_sub(1);
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_err().then_some(Request::Test)
            }
            Self::Ranks(own, group) => own.requested().or_else(|| Request::of_number(group.request_of_waiting())),
        }
    }
}

/// Of a clock that never goes back; above 0.
fn milliseconds() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the time there. It does not fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000 + 1
}

fn is_ignored(signal: i32) -> std::io::Result<bool> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the present one, all of it where it succeeds.
    unsafe {
        if libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(action.assume_init().sa_sigaction == libc::SIG_IGN)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// This test program again, as a process that asks until it is stopped: [`asks_until_stopped`].
    fn process(wrapper: &[&str]) -> (Child, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let test = std::env::current_exe().unwrap();
        let words = wrapper.iter().map(std::ffi::OsStr::new).chain([test.as_os_str()]).collect::<Vec<_>>();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["--exact", "stop::tests::asks_until_stopped", "--nocapture"]);
        command.env("SDCLR_TEST_STOP", folder.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        (command.spawn().unwrap(), folder)
    }

    fn wait_until(what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn send(child: &Child, signal: i32) {
        // SAFETY: a signal to a child that was not waited for yet.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    }

    /// Not a test where it is started by the others: the process that they stop.
    #[test]
    fn asks_until_stopped() {
        let Some(folder) = std::env::var_os("SDCLR_TEST_STOP").map(std::path::PathBuf::from) else { return };
        let stop = Stop::on_signals().unwrap();
        crate::fs::write(&folder.join("ready"), b"").unwrap();
        wait_until(|| stop.requested().is_some());
        crate::fs::write(&folder.join("stopping"), stop.requested().unwrap().to_string().as_bytes()).unwrap();
        wait_until(|| folder.join("go").exists());
        std::process::exit(EXIT_CODE.into());
    }

    #[test]
    fn a_signal_is_a_request_and_a_later_one_the_end() {
        for (signal, request) in Request::SIGNALS {
            // Also where this test was started to ignore them, as a job in the background of a script.
            let (mut child, folder) = process(&["env", "--default-signal"]);
            wait_until(|| folder.path().join("ready").exists());
            send(&child, signal);
            wait_until(|| folder.path().join("stopping").exists());
            let said = std::fs::read_to_string(folder.path().join("stopping")).unwrap();
            assert_eq!(said, request.to_string());
            // A script that was signalled too passes it on, and a terminal that closes sends it twice.
            send(&child, signal);
            std::thread::sleep(Duration::from_millis(SAME_REQUEST + 100));
            send(&child, SIGHUP);
            std::thread::sleep(Duration::from_millis(50));
            assert!(child.try_wait().unwrap().is_none());
            if signal == SIGHUP {
                crate::fs::write(&folder.path().join("go"), b"").unwrap();
                assert_eq!(child.wait().unwrap().code(), Some(75));
            } else {
                send(&child, signal);
                assert_eq!(child.wait().unwrap().signal(), Some(signal));
            }
        }
    }

    #[test]
    fn what_was_ignored_stays_ignored() {
        let (mut child, folder) = process(&["nohup"]);
        wait_until(|| folder.path().join("ready").exists());
        send(&child, SIGHUP);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!folder.path().join("stopping").exists());
        send(&child, SIGTERM);
        wait_until(|| folder.path().join("stopping").exists());
        assert_eq!(std::fs::read(folder.path().join("stopping")).unwrap(), b"SIGTERM");
        crate::fs::write(&folder.path().join("go"), b"").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(75));
    }

    #[test]
    fn a_test_asks_after_some_questions() {
        let stop = Stop::after(2);
        let clone = stop.clone();
        assert_eq!([stop.requested(), clone.requested()], [None, None]);
        assert_eq!([stop.requested(), clone.requested()], [Some(Request::Test); 2]);
        assert_eq!(Stop::default().requested(), None);
    }
}
