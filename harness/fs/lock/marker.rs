//! A lock by a file that only one process can create (`O_EXCL`), for file systems without flock. It names its holder
//! (host, process, start time), who touches it every few seconds. Where the holder has died, exactly one process takes
//! its place.
//!
//! Taking a dead holder's place: create `LOCK.held.claim` (again `O_EXCL`), look whether the same dead holder is still
//! named, rename a file of one's own over the marker, remove the claim. A second taker finds the claim, or, after it was
//! removed, another holder. A claim is held for moments; one that was left by a killed taker is cleared away, and a taker
//! that finds its own claim gone gives up.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::super::{Action, FsError, error, exists, move_to, parent, remove};

/// How often a holder says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// After how long without a heartbeat a holder on another machine counts as dead: far longer than network file systems
/// keep attributes in their caches (60 s).
pub(super) const STALE: Duration = Duration::from_secs(120);

/// The process that holds a lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    pub host: String,
    pub pid: u32,
    /// Start of the host's kernel and the namespace of its process numbers: what a number means.
    machine: String,
    /// When the process began, in the kernel's ticks.
    started: u64,
    /// Tells two locks of one process apart.
    serial: u64,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)
    }
}

impl Holder {
    pub(super) fn this_process() -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let pid = std::process::id();
        Self {
            host: read("/proc/sys/kernel/hostname"),
            pid,
            machine: format!("{} {}", read("/proc/sys/kernel/random/boot_id"), namespace.display()),
            started: start_of(pid).unwrap_or_default(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub(super) fn to_line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// The holder that a lock file names; `None` where there is no file, or none that names one.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let mut text = String::new();
        File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Whether the process is known to be gone; that of another machine never is.
    fn is_gone(&self) -> bool {
        self.machine == Self::this_process().machine && start_of(self.pid) != Some(self.started)
    }

    /// Whether the process is known to live.
    fn is_here(&self) -> bool {
        self.machine == Self::this_process().machine && !self.is_gone()
    }
}

/// When a process of this machine began, in ticks since the kernel's start; `None` where there is no such process.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; of what follows the state is the first field.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let dead = fields.first().is_some_and(|state| ["Z", "X"].contains(state));
    if dead { None } else { fields.get(19)?.parse().ok() }
}

/// Where the marker of a lock file lies.
pub(super) fn path_of(lock: &Path) -> PathBuf {
    lock.with_added_extension("held")
}

/// The marker of this process, removed when it is dropped.
#[derive(Debug)]
pub(super) struct Marker {
    path: PathBuf,
    holder: Holder,
    /// Dropped, it ends the heartbeat.
    stop: Option<mpsc::Sender<()>>,
    heartbeat: Option<JoinHandle<()>>,
}

impl Marker {
    /// Takes the lock of the lock file `lock`; `None` where another process holds it.
    pub(super) fn take(lock: &Path) -> Result<Option<Self>, FsError> {
        Self::take_as(Holder::this_process(), lock, STALE)
    }

    fn take_as(holder: Holder, lock: &Path, stale: Duration) -> Result<Option<Self>, FsError> {
        let path = path_of(lock);
        let claim = path.with_added_extension("claim");
        loop {
            if let Some(file) = create(&path, &holder)? {
                return Self::begin(path, holder, file).map(Some);
            }
            match dead_holder(&path, stale)? {
                Some(dead) if create(&claim, &holder)?.is_some() => {
                    let taken = take_place(&path, &claim, &holder, &dead, stale);
                    if Holder::read(&claim).as_ref() == Some(&holder) {
                        remove(&claim)?;
                    }
                    return taken?.map(|file| Self::begin(path, holder, file)).transpose();
                }
                Some(_) if !clear_dead_claim(&claim, &holder, stale)? => return Ok(None),
                None if exists(&path)? => return Ok(None),
                // The claim was cleared away, or the holder has let go: once more.
                _ => {}
            }
        }
    }

    fn begin(path: PathBuf, holder: Holder, file: File) -> Result<Self, FsError> {
        let (stop, stopped) = mpsc::channel::<()>();
        let beat = move || {
            while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                // SAFETY: the descriptor is that of an open file; no times means now, by the file server's clock. A failure
                // passes: others wait far longer than one heartbeat.
                unsafe { libc::futimens(file.as_raw_fd(), std::ptr::null()) };
            }
        };
        let heartbeat = std::thread::Builder::new().name("heartbeat".to_owned()).spawn(beat);
        let heartbeat = Some(heartbeat.map_err(error(Action::Lock, &path))?);
        Ok(Self { path, holder, stop: Some(stop), heartbeat })
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.heartbeat.take().map(JoinHandle::join);
        if Holder::read(&self.path).as_ref() == Some(&self.holder) {
            // What stays is free for others as soon as this process has ended.
            let _ = remove(&self.path);
        }
    }
}

/// Creates the file `path` with the holder in it; `None` where there is one.
fn create(path: &Path, holder: &Holder) -> Result<Option<File>, FsError> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
        Err(source) => return Err(error(Action::Lock, path)(source)),
    };
    match file.write_all(holder.to_line().as_bytes()) {
        Ok(()) => Ok(Some(file)),
        Err(source) => {
            // It names nobody and would block others; the error itself must come through.
            let _ = remove(path);
            Err(error(Action::Lock, path)(source))
        }
    }
}

/// The holder that a marker names, once it is dead; the inner `None` where it names nobody, cut off by a full disk or a
/// killed process.
fn dead_holder(path: &Path, stale: Duration) -> Result<Option<Option<Holder>>, FsError> {
    let holder = Holder::read(path);
    let dead = match &holder {
        Some(holder) if holder.is_gone() => true,
        Some(holder) if holder.is_here() => false,
        _ => age(path)?.is_some_and(|age| age > stale),
    };
    Ok(dead.then_some(holder))
}

/// How long a file was not touched, by the clock of the file server: that of a file touched now. `None`: it is gone.
fn age(path: &Path) -> Result<Option<Duration>, FsError> {
    // To open a file makes network file systems ask the server for its times.
    let modified = match File::open(path).and_then(|file| file.metadata()?.modified()) {
        Ok(modified) => modified,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(Action::Lock, path)(source)),
    };
    let now = || -> std::io::Result<SystemTime> { temporary_beside(path)?.as_file().metadata()?.modified() };
    Ok(Some(now().map_err(error(Action::Lock, path))?.duration_since(modified).unwrap_or_default()))
}

fn temporary_beside(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    tempfile::Builder::new().prefix(".sdclr-lock-").permissions(readable).tempfile_in(parent(path))
}

/// Puts `holder` in the place of the `dead` one, under the claim; `None` where another was faster.
fn take_place(
    path: &Path,
    claim: &Path,
    holder: &Holder,
    dead: &Option<Holder>,
    stale: Duration,
) -> Result<Option<File>, FsError> {
    if dead_holder(path, stale)?.as_ref() != Some(dead) {
        return Ok(None);
    }
    let mut file = temporary_beside(path).map_err(error(Action::Lock, path))?;
    file.write_all(holder.to_line().as_bytes()).map_err(error(Action::Lock, path))?;
    // The claim may have been taken for dead, where this process slept that long.
    if Holder::read(claim).as_ref() != Some(holder) {
        return Ok(None);
    }
    let file = file.persist(path).map_err(|failure| error(Action::Lock, path)(failure.error))?;
    Ok((Holder::read(path).as_ref() == Some(holder)).then_some(file))
}

/// Removes the claim of a taker that died as it took a place; whether it had.
fn clear_dead_claim(claim: &Path, holder: &Holder, stale: Duration) -> Result<bool, FsError> {
    if dead_holder(claim, stale)?.is_none() {
        return Ok(false);
    }
    // Should it be that of a living taker by now, that one finds it gone and gives up.
    let aside = claim.with_added_extension(format!("{}-{}", holder.pid, holder.serial));
    match move_to(claim, &aside) {
        Err(failure) if failure.is_absent() => Ok(true),
        outcome => outcome.and_then(|()| remove(&aside)).map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder_of(host: &str, serial: u64) -> Holder {
        Holder { host: host.to_owned(), pid: 7, machine: format!("kernel of {host}"), started: 1, serial }
    }

    /// A lock file in an empty folder, and its marker's path.
    fn lock() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join(".lock");
        let path = path_of(&lock);
        (folder, lock, path)
    }

    /// Leaves the file as a holder of `host` did that was killed `seconds` ago.
    fn leave(path: &Path, holder: &Holder, seconds: u64) {
        super::super::super::write(path, holder.to_line().as_bytes()).unwrap();
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = super::super::super::list_folder(folder).unwrap();
        entries.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn one_of_two_hosts_holds_it_until_it_lets_go() {
        let (folder, lock, path) = lock();
        let [here, there] = ["here", "there"].map(|host| holder_of(host, 0));
        let held = Marker::take_as(here.clone(), &lock, STALE).unwrap().unwrap();
        assert_eq!(Holder::read(&path).unwrap(), here);
        assert_eq!(Holder::read(&path).unwrap().to_string(), "process 7 on here");
        assert!(Marker::take_as(there.clone(), &lock, STALE).unwrap().is_none());
        drop(held);
        assert_eq!(names(folder.path()), [""; 0]);
        drop(Marker::take_as(there, &lock, STALE).unwrap().unwrap());
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn another_host_is_dead_once_its_heartbeat_is_old() {
        let (folder, lock, path) = lock();
        for (seconds, dead) in [(100, false), (130, true)] {
            leave(&path, &holder_of("there", 0), seconds);
            let taken = Marker::take_as(holder_of("here", 1), &lock, STALE).unwrap();
            assert_eq!(taken.is_some(), dead, "{seconds}");
        }
        assert_eq!(names(folder.path()), [""; 0]);
        // A marker that was cut off as it was written.
        for (seconds, dead) in [(100, false), (130, true)] {
            leave(&path, &holder_of("there", 0), seconds);
            let file = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
            assert_eq!(Marker::take_as(holder_of("here", 1), &lock, STALE).unwrap().is_some(), dead, "{seconds}");
        }
    }

    #[test]
    fn on_this_machine_the_process_itself_tells() {
        let (_folder, lock, path) = lock();
        let ours = Holder::this_process();
        leave(&path, &ours, 1_000_000);
        assert!(Marker::take(&lock).unwrap().is_none(), "a suspended process is not dead");
        // Its number belongs to a later process now.
        leave(&path, &Holder { started: ours.started - 1, ..ours.clone() }, 0);
        assert!(Marker::take(&lock).unwrap().is_some());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let of_child = Holder { pid: child.id(), started: start_of(child.id()).unwrap(), ..ours };
        leave(&path, &of_child, 0);
        assert!(Marker::take(&lock).unwrap().is_none());
        child.kill().unwrap();
        // Not waited for: a zombie is dead too.
        while start_of(child.id()).is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(Marker::take(&lock).unwrap().is_some());
        child.wait().unwrap();
    }

    #[test]
    fn one_of_many_takers_gets_a_dead_place() {
        for round in 0..100 {
            let (folder, lock, path) = lock();
            leave(&path, &holder_of("there", 0), 1000);
            if round % 2 == 1 {
                // A taker was killed as well.
                leave(&path.with_added_extension("claim"), &holder_of("third", 0), 1000);
            }
            let barrier = std::sync::Barrier::new(8);
            let winners: Vec<Marker> = std::thread::scope(|scope| {
                let takers: Vec<_> = (0..8)
                    .map(|taker| {
                        let (lock, barrier) = (&lock, &barrier);
                        scope.spawn(move || {
                            barrier.wait();
                            let holder = holder_of("here", taker);
                            (0..20).find_map(|_| Marker::take_as(holder.clone(), lock, STALE).unwrap())
                        })
                    })
                    .collect();
                takers.into_iter().filter_map(|taker| taker.join().unwrap()).collect()
            });
            assert_eq!(winners.len(), 1, "round {round}");
            assert_eq!(Holder::read(&path).as_ref(), Some(&winners[0].holder));
            drop(winners);
            assert_eq!(names(folder.path()), [""; 0]);
        }
    }

    #[test]
    fn a_holder_says_that_it_lives() {
        let (_folder, lock, path) = lock();
        let held = Marker::take_as(holder_of("there", 0), &lock, STALE).unwrap().unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
        std::thread::sleep(HEARTBEAT + Duration::from_secs(1));
        assert!(Marker::take_as(holder_of("here", 1), &lock, STALE).unwrap().is_none());
        drop(held);
    }
}
