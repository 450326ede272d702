//! A lock by a file that only one process can create (`O_EXCL`). It names its holder (host, process, start time), who
//! touches it every few seconds. Where the holder has died, exactly one process takes its place.
//!
//! Who is dead: with flock in hand, every holder of the same kernel; without it, a process of this machine that is not
//! there; any other one after [`STALE`] without a heartbeat, by the clock of the file server.
//!
//! Taking a dead holder's place: create `LOCK.held.claim` (again `O_EXCL`), look whether the same dead holder is still
//! named, rename the claim over the marker. A second taker finds the claim, or, after it was renamed, another holder. A
//! claim is held for moments; the next taker removes one that was left by a killed taker. Whoever the marker names in the end
//! holds the lock.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::{Action, FsError, error, exists, move_to, remove};

/// How often a holder says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// After how long without a heartbeat a holder on another machine counts as dead: far longer than network file systems
/// keep attributes in their caches (60 s).
pub(super) const STALE: Duration = Duration::from_secs(120);

/// The process that holds a lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Holder {
    host: String,
    pid: u32,
    /// Start of the host's kernel, and the namespace of its process numbers: what a number means.
    kernel: String,
    namespace: PathBuf,
    /// When the process began, in the kernel's ticks.
    started: u64,
    /// Tells two locks of one process apart.
    serial: u64,
    /// The mounted file system on which it also has flock, by the kernel's number of it; none where there is no flock.
    #[serde(default)]
    flock: Option<u64>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)
    }
}

static THIS_PROCESS: LazyLock<Holder> = LazyLock::new(|| {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let pid = std::process::id();
    Holder {
        host: read("/proc/sys/kernel/hostname"),
        pid,
        kernel: read("/proc/sys/kernel/random/boot_id"),
        namespace: std::fs::read_link("/proc/self/ns/pid").unwrap_or_default(),
        started: start_of(pid).unwrap_or_default(),
        serial: 0,
        flock: None,
    }
});

impl Holder {
    fn this_process() -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Self { serial: SERIAL.fetch_add(1, Ordering::Relaxed), ..THIS_PROCESS.clone() }
    }

    /// The holder that a marker names; `None` if the file is missing or names no holder.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let mut text = String::new();
        File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Whether it is of the kernel that this process runs on; not known where kernels have no name.
    fn shares_kernel(&self) -> bool {
        !self.kernel.is_empty() && self.kernel == THIS_PROCESS.kernel
    }

    /// Whether the process is there; `None` where it cannot be seen from here.
    fn lives(&self) -> Option<bool> {
        let seen = self.shares_kernel() && self.namespace == THIS_PROCESS.namespace;
        seen.then(|| start_of(self.pid) == Some(self.started))
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
    fn begin(path: PathBuf, holder: Holder, file: File) -> Result<Self, FsError> {
        let (stop, stopped) = mpsc::channel::<()>();
        let beat = move || {
            while stopped.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                // A failure passes: others wait far longer than one heartbeat.
                let _ = touch(&file);
            }
        };
        let heartbeat = std::thread::Builder::new().name("heartbeat".to_owned()).spawn(beat);
        let heartbeat = Some(heartbeat.map_err(error(Action::Lock, &path))?);
        Ok(Self { path, holder, stop: Some(stop), heartbeat })
    }

    /// Whether nobody has taken this process for dead.
    pub(super) fn is_held(&self) -> bool {
        Holder::read(&self.path).as_ref() == Some(&self.holder)
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.heartbeat.take().map(JoinHandle::join);
        if self.is_held() {
            // What stays is free for others as soon as this process has ended.
            let _ = remove(&self.path);
        }
    }
}

/// Says that the file was modified now, by the file server's clock.
fn touch(file: &File) -> std::io::Result<()> {
    // SAFETY: the descriptor is that of an open file; no times mean now.
    match unsafe { libc::futimens(file.as_raw_fd(), std::ptr::null()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Creates the file `path` with the holder in it; `None` where there is one.
fn create(path: &Path, holder: &Holder) -> Result<Option<File>, FsError> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
        Err(source) => return Err(error(Action::Lock, path)(source)),
    };
    match write(&mut file, holder) {
        Ok(()) => Ok(Some(file)),
        Err(source) => {
            // It names nobody and would block others; the error itself must come through.
            let _ = remove(path);
            Err(error(Action::Lock, path)(source))
        }
    }
}

fn write(file: &mut File, holder: &Holder) -> std::io::Result<()> {
    file.write_all((serde_json::to_string(holder)? + "\n").as_bytes())
}

/// A process that wants the marker of a lock file.
pub(super) struct Taker<'a> {
    holder: Holder,
    path: PathBuf,
    claim: PathBuf,
    /// The lock file, which tells the time of the file server.
    lock: &'a File,
}

impl<'a> Taker<'a> {
    /// One of this process, for the lock file at `path`, which is open for writing, and of which it may have flock.
    pub(super) fn new(path: &Path, lock: &'a File, flocked: bool) -> Self {
        let path = path_of(path);
        let claim = path.with_added_extension("claim");
        let mount = lock.metadata().ok().filter(|_| flocked).map(|found| found.dev());
        Self { holder: Holder { flock: mount, ..Holder::this_process() }, path, claim, lock }
    }

    /// Takes the lock; `None` where another process holds it.
    pub(super) fn take(self) -> Result<Option<Marker>, FsError> {
        loop {
            if let Some(file) = create(&self.path, &self.holder)? {
                return Marker::begin(self.path, self.holder, file).map(Some);
            }
            match self.dead_holder(&self.path)? {
                Some(dead) if let Some(file) = create(&self.claim, &self.holder)? => {
                    let taken = self.take_place(&dead);
                    if self.has_claim() {
                        remove(&self.claim)?;
                    }
                    return match taken? {
                        true => Marker::begin(self.path, self.holder, file).map(Some),
                        false => Ok(None),
                    };
                }
                Some(_) if !self.clear_dead_claim()? => return Ok(None),
                None if exists(&self.path)? => return Ok(None),
                // The claim was cleared away, or the holder has let go: once more.
                _ => {}
            }
        }
    }

    /// The holder that a marker names, once it is dead; the inner `None` where it names nobody, cut off by a full disk or a
    /// killed process.
    fn dead_holder(&self, path: &Path) -> Result<Option<Option<Holder>>, FsError> {
        let holder = Holder::read(path);
        let dead = match &holder {
            // It had the flock that this process has now. Another mount of the same files, as containers have, has its own.
            Some(holder) if self.shares_flock(holder) => true,
            holder => match holder.as_ref().and_then(Holder::lives) {
                Some(lives) => !lives,
                None => self.age(path)?.is_some_and(|age| age > STALE),
            },
        };
        Ok(dead.then_some(holder))
    }

    /// Whether only one of `holder` and this process can have flock at a time, and this one has it.
    fn shares_flock(&self, holder: &Holder) -> bool {
        holder.shares_kernel() && self.holder.flock.is_some() && holder.flock == self.holder.flock
    }

    /// How long a file was not touched, by the clock of the file server. `None`: it is gone.
    fn age(&self, path: &Path) -> Result<Option<Duration>, FsError> {
        // To open a file makes network file systems ask the server for its times.
        let modified = match File::open(path).and_then(|file| file.metadata()?.modified()) {
            Ok(modified) => modified,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error(Action::Read, path)(source)),
        };
        let now = touch(self.lock).and_then(|()| self.lock.metadata()?.modified());
        Ok(Some(now.map_err(error(Action::Lock, path))?.duration_since(modified).unwrap_or_default()))
    }

    /// Puts this process in the place of the `dead` one: the claim becomes the marker. Whether the marker names this process.
    fn take_place(&self, dead: &Option<Holder>) -> Result<bool, FsError> {
        // The claim may have been taken for dead, where this process slept that long.
        if self.dead_holder(&self.path)?.as_ref() == Some(dead) && self.has_claim() {
            match move_to(&self.claim, &self.path) {
                Err(failure) if failure.is_absent() => {}
                moved => moved?,
            }
        }
        Ok(Holder::read(&self.path).as_ref() == Some(&self.holder))
    }

    fn has_claim(&self) -> bool {
        Holder::read(&self.claim).as_ref() == Some(&self.holder)
    }

    /// Removes the claim of a taker that died as it took a place; whether it had. Should it be that of a living taker by now,
    /// that one finds it gone and gives up.
    fn clear_dead_claim(&self) -> Result<bool, FsError> {
        let dead = self.dead_holder(&self.claim)?.is_some();
        if dead {
            remove(&self.claim)?;
        }
        Ok(dead)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;
    use std::os::unix::ffi::OsStrExt;
    use std::time::SystemTime;

    use super::*;

    fn holder_of(host: &str, serial: u64) -> Holder {
        let kernel = format!("kernel of {host}");
        Holder { host: host.to_owned(), pid: 7, kernel, namespace: PathBuf::new(), started: 1, serial, flock: None }
    }

    /// An empty file at `path`, open for writing.
    fn emptied(path: &Path) -> File {
        OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap()
    }

    /// What a process gets that has, or has not, flock of the lock file.
    fn take_as(holder: Holder, lock: &Path, flocked: bool) -> Option<Marker> {
        let file = emptied(lock);
        let taker = Taker::new(lock, &file, flocked);
        Taker { holder: Holder { flock: taker.holder.flock, ..holder }, ..taker }.take().unwrap()
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
        let mut file = emptied(path);
        write(&mut file, holder).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = super::super::super::list_folder(folder).unwrap();
        let names = entries.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
        names.filter(|name| name != ".lock").collect()
    }

    #[test]
    fn one_of_two_hosts_holds_it_until_it_lets_go() {
        let (folder, lock, path) = lock();
        let [here, there] = ["here", "there"].map(|host| holder_of(host, 0));
        let held = take_as(here.clone(), &lock, false).unwrap();
        assert_eq!(Holder::read(&path).unwrap(), here);
        assert_eq!(Holder::read(&path).unwrap().to_string(), "process 7 on here");
        assert!(take_as(there.clone(), &lock, false).is_none());
        drop(held);
        assert_eq!(names(folder.path()), [""; 0]);
        drop(take_as(there, &lock, false).unwrap());
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn another_host_is_dead_once_its_heartbeat_is_old() {
        let (folder, lock, path) = lock();
        // Flock may tell of this kernel alone. The empty name of a kernel tells nothing.
        let there = holder_of("there", 0);
        let nameless = Holder { kernel: String::new(), ..there.clone() };
        for (flocked, holder) in [(false, &there), (true, &there), (true, &nameless)] {
            for (seconds, dead) in [(100, false), (130, true)] {
                leave(&path, holder, seconds);
                let taken = take_as(holder_of("here", 1), &lock, flocked);
                assert_eq!(taken.is_some(), dead, "{seconds} {flocked} {holder:?}");
            }
            assert_eq!(names(folder.path()), [""; 0]);
        }
        // A marker that was cut off as it was written.
        for (seconds, dead) in [(100, false), (130, true)] {
            leave(&path, &there, seconds);
            let file = emptied(&path);
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
            assert_eq!(take_as(holder_of("here", 1), &lock, false).is_some(), dead, "{seconds}");
        }
    }

    /// Clocks of hosts may differ; the file server has one.
    #[test]
    fn age_is_told_by_the_file_server() {
        let (_folder, lock, path) = lock();
        leave(&path, &holder_of("there", 0), 0);
        let file = emptied(&lock);
        file.set_modified(SystemTime::now() + Duration::from_secs(1000)).unwrap();
        let age = Taker::new(&lock, &file, true).age(&path).unwrap().unwrap();
        assert!(age < Duration::from_secs(60), "{age:?}");
    }

    /// Who of this kernel is named was killed: it would still have flock. That goes for containers, too, but not for other
    /// mounts of the same files, nor for a holder that had none.
    #[test]
    fn of_one_kernel_flock_decides() {
        let (folder, lock, path) = lock();
        let mount = emptied(&lock).metadata().unwrap().dev();
        let ours = Holder { flock: Some(mount), ..Holder::this_process() };
        for flock in [None, Some(mount + 1)] {
            leave(&path, &Holder { flock, ..ours.clone() }, 0);
            assert!(take_as(Holder::this_process(), &lock, true).is_none(), "{flock:?}");
        }
        let contained = Holder { namespace: "pid:[1]".into(), ..ours.clone() };
        for named in [ours, contained] {
            leave(&path, &named, 0);
            assert!(take_as(Holder::this_process(), &lock, false).is_none(), "{named:?}");
            // A taker that was killed, as well.
            leave(&path.with_added_extension("claim"), &named, 0);
            assert!(take_as(Holder::this_process(), &lock, true).is_some(), "{named:?}");
            assert_eq!(names(folder.path()), [""; 0]);
        }
    }

    /// A holder that wakes up after another host took its place finds out, and leaves the place alone.
    #[test]
    fn who_was_taken_for_dead_finds_out() {
        let (folder, lock, path) = lock();
        let slept = take_as(Holder::this_process(), &lock, true).unwrap();
        assert!(slept.is_held());
        leave(&path, &slept.holder, 1000);
        let taken = take_as(holder_of("there", 0), &lock, false);
        assert!(taken.is_none(), "the process is seen to live");
        leave(&path, &holder_of("there", 0), 1000);
        let taken = take_as(holder_of("third", 0), &lock, true).unwrap();
        assert!(!slept.is_held() && taken.is_held());
        drop(slept);
        assert!(taken.is_held());
        drop(taken);
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn on_this_machine_the_process_itself_tells() {
        let (_folder, lock, path) = lock();
        let ours = Holder::this_process();
        leave(&path, &ours, 1_000_000);
        assert!(take_as(Holder::this_process(), &lock, false).is_none(), "a suspended process is not dead");
        // Its number belongs to a later process now.
        leave(&path, &Holder { started: ours.started - 1, ..ours.clone() }, 0);
        assert!(take_as(Holder::this_process(), &lock, false).is_some());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let of_child = Holder { pid: child.id(), started: start_of(child.id()).unwrap(), ..ours };
        leave(&path, &of_child, 0);
        assert!(take_as(Holder::this_process(), &lock, false).is_none());
        child.kill().unwrap();
        // Not waited for: a zombie is dead too.
        while start_of(child.id()).is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(take_as(Holder::this_process(), &lock, false).is_some());
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
                            // Each on a host of its own, by its flock.
                            (0..20).find_map(|_| take_as(holder.clone(), lock, round % 3 == 0))
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

    /// Whatever a killed taker leaves has a name that the next one takes over or removes.
    #[test]
    fn a_taker_creates_its_claim_alone() {
        let (folder, lock, path) = lock();
        leave(&path, &holder_of("there", 0), 1000);
        let name = std::ffi::CString::new(folder.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: a NUL-terminated name that outlives the calls, and a new descriptor that nobody else closes.
        let mut created = unsafe {
            let watch = libc::inotify_init1(libc::IN_NONBLOCK);
            assert!(watch >= 0 && libc::inotify_add_watch(watch, name.as_ptr(), libc::IN_CREATE) >= 0);
            File::from_raw_fd(watch)
        };
        // The lock file is made first.
        assert!(take_as(Holder::this_process(), &lock, true).is_some());
        let mut events = [0; 4096];
        let length = created.read(&mut events).unwrap();
        let names = String::from_utf8_lossy(&events[..length]);
        let names: Vec<&str> = names.split('\0').filter(|name| name.starts_with('.')).collect();
        assert_eq!(names, [".lock", ".lock.held.claim"]);
    }

    #[test]
    fn a_holder_says_that_it_lives() {
        let (_folder, lock, path) = lock();
        let held = take_as(holder_of("there", 0), &lock, false).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
        let is_old = || file.metadata().unwrap().modified().unwrap().elapsed().is_ok_and(|age| age > STALE);
        for _ in 0..60 {
            if !is_old() {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        assert!(take_as(holder_of("here", 1), &lock, false).is_none());
        drop(held);
    }
}
