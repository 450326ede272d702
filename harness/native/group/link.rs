//! What a rank knows of the others. In: the store that all of them share. Out: who is there and lives, what each said, who is
//! lost; and the connections, with a watch over them.

use std::ffi::{CStr, CString, c_char};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::{NativeError, check, sdclr_free};
use super::error::GroupError;

unsafe extern "C" {
    fn sdclr_group_new(host: *const c_char, port: u16, serve: bool, milliseconds: i64, out: *mut i64) -> *mut c_char;
    fn sdclr_group_free(id: i64) -> *mut c_char;
    fn sdclr_group_join(id: i64, prefix: *const c_char, rank: i32, size: i32, milliseconds: i64) -> *mut c_char;
    fn sdclr_group_count(id: i64, key: *const c_char, out: *mut i64) -> *mut c_char;
    fn sdclr_group_tell(id: i64, key: *const c_char, text: *const c_char) -> *mut c_char;
    fn sdclr_group_hear(id: i64, key: *const c_char, out: *mut *mut c_char) -> *mut c_char;
    fn sdclr_group_connect(id: i64, told: *const NcclId, rank: i32, size: i32, device: i32) -> *mut c_char;
    fn sdclr_group_failure(id: i64, out: *mut *mut c_char) -> *mut c_char;
    fn sdclr_group_abort(id: i64) -> *mut c_char;
}

/// What makes the GPUs of the ranks find each other: 128 bytes.
pub(super) type NcclId = [i64; 16];

/// Tells whether this process was asked to stop.
pub type Asked<'a> = &'a dyn Fn() -> bool;

/// By what tensors on GPUs are exchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Exchange {
    /// NCCL where it can, else Gloo.
    #[default]
    Any,
    /// Over the host.
    Gloo,
    /// Between the GPUs, also of one process alone.
    Nccl,
}

/// Where and as which of several processes this one joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meeting {
    pub host: String,
    pub port: u16,
    pub rank: usize,
    pub size: usize,
    /// The launcher serves the store, also for rank 0.
    pub served: bool,
    /// Tells this start from others that use the same store.
    pub name: String,
    /// How long ranks wait for each other, at the meeting and in a step.
    pub timeout: Duration,
    pub exchange: Exchange,
}

/// One of the ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    size: usize,
    process: u32,
    host: String,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: i64,
    pub(super) rank: usize,
    pub(super) size: usize,
    /// The store is a part of this process.
    pub(super) serves: bool,
    /// The store is a part of the launcher.
    pub(super) agent: bool,
    pub(super) name: String,
    pub(super) timeout: Duration,
    pub(super) exchange: Exchange,
    pub(super) peers: Vec<Peer>,
    /// NCCL connects the GPUs.
    pub(super) connected: AtomicBool,
    /// It does no longer.
    pub(super) aborted: AtomicBool,
    /// Why, as [`Watch`] saw it.
    pub(super) reason: Mutex<Option<GroupError>>,
    /// Rows of each rank's slice of the batch under way.
    pub(super) slices: Mutex<Vec<i64>>,
    /// Messages of rank 0 told or heard so far.
    pub(super) told: Mutex<usize>,
    /// This rank's part has ended.
    pub(super) left: AtomicBool,
    /// Says that this rank lives, until it is dropped.
    pub(super) beating: Option<Sender<()>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // SAFETY: no pointers. Whoever still asks for the number gets an error.
        if let Err(error) = check(unsafe { sdclr_group_free(self.id) }) {
            tracing::debug!("a group of processes did not end well: {error}");
        }
    }
}

/// Pause between two looks at the store.
pub(super) const LOOK: Duration = Duration::from_millis(20);
/// Pause between two signs of life.
const BEAT: Duration = Duration::from_millis(200);
/// How long a rank of another machine may not count while GPUs exchange, without any other sign that it is lost.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a rank that lost another looks for the reason: processes end and tell within it, and those that live beat.
const REASON: Duration = Duration::from_secs(2);
/// How long a rank that ends keeps the store for those who look.
pub(super) const KEPT: Duration = Duration::from_secs(1);

impl Link {
    /// Meets the other ranks, and connects their processes.
    pub(super) fn join(meeting: &Meeting, stop: Asked) -> Result<Self, GroupError> {
        let Meeting { port, rank, size, name, timeout, exchange, .. } = meeting;
        let (rank, size) = (*rank, *size);
        let mut serve = rank == 0 && !meeting.served;
        let id = match open(meeting, serve, stop) {
            // Another rank 0 may serve it, who has to be told.
            Err(GroupError::Unreachable { reason, .. }) if serve && reason.contains("EADDRINUSE") => {
                serve = false;
                let short = Meeting { timeout: Duration::from_secs(3), ..meeting.clone() };
                open(&short, false, stop).map_err(|error| match error {
                    GroupError::Stopped => error,
                    _ => GroupError::PortInUse { port: *port },
                })?
            }
            other => other?,
        };
        let mut link = Link {
            id,
            rank,
            size,
            serves: serve,
            agent: meeting.served,
            name: name.clone(),
            timeout: *timeout,
            exchange: *exchange,
            peers: Vec::new(),
            connected: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            reason: Mutex::default(),
            slices: Mutex::default(),
            told: Mutex::default(),
            left: AtomicBool::new(false),
            beating: None,
        };
        link.peers = meet(&link, meeting, stop).inspect_err(|_| {
            // With this rank the store ends, in which the others read why.
            if serve {
                std::thread::sleep(REASON);
            }
        })?;
        let prefix = link.key("gloo");
        // SAFETY: a NUL-terminated string that outlives the call.
        let joined = check(unsafe {
            sdclr_group_join(id, prefix.as_ptr(), rank as i32, size as i32, timeout.as_millis() as i64)
        });
        match joined {
            Ok(()) => link.beat(),
            Err(error) => {
                link.tell(&format!("failed/{rank}"), &error.to_string())?;
                let error = link.cause().unwrap_or_else(|| GroupError::Apart(error.to_string()));
                if serve {
                    std::thread::sleep(KEPT);
                }
                return Err(error);
            }
        }
        Ok(link)
    }

    fn key(&self, key: &str) -> CString {
        // The names are ours; a launcher's id with a NUL in it cannot come from an environment.
        CString::new(format!("{}/{key}", self.name)).unwrap_or_default()
    }

    /// Counts on in the store from now on, by which the others know that this rank lives, be it slow.
    fn beat(&mut self) {
        let (id, key) = (self.id, self.key(&format!("beat/{}", self.rank)));
        let (sender, stopped) = mpsc::channel();
        std::thread::spawn(move || {
            let mut count = 0;
            // SAFETY: a NUL-terminated string and a number, which outlive the call.
            while check(unsafe { sdclr_group_count(id, key.as_ptr(), &raw mut count) }).is_ok()
                && stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout)
            {}
        });
        self.beating = Some(sender);
    }

    /// The last count of every rank.
    ///
    /// # Errors
    /// The store has ended.
    fn beats(&self) -> Result<Vec<Option<String>>, NativeError> {
        (0..self.size).map(|rank| self.hear(&format!("beat/{rank}"))).collect()
    }

    /// The key of the next message of rank 0.
    pub(super) fn next_message(&self) -> String {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told += 1;
        format!("told/{told}")
    }

    pub(super) fn tell(&self, key: &str, text: &str) -> Result<(), NativeError> {
        let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
        // SAFETY: NUL-terminated strings that outlive the call.
        check(unsafe { sdclr_group_tell(self.id, self.key(key).as_ptr(), text.as_ptr()) })
    }

    pub(super) fn hear(&self, key: &str) -> Result<Option<String>, NativeError> {
        let mut text = null_mut();
        // SAFETY: a NUL-terminated string and a place for a pointer, which outlive the call.
        check(unsafe { sdclr_group_hear(self.id, self.key(key).as_ptr(), &raw mut text) })?;
        // SAFETY: the shim's text, taken once.
        Ok(unsafe { taken(text) })
    }

    /// Ends what is queued between the GPUs: it may wait for a rank that is lost, and the host for it.
    pub(super) fn abort(&self) {
        if !self.connected.load(Ordering::SeqCst) || self.aborted.swap(true, Ordering::SeqCst) {
            return;
        }
        // SAFETY: no pointers.
        if let Err(error) = check(unsafe { sdclr_group_abort(self.id) }) {
            tracing::debug!("the exchange between the GPUs did not end well: {error}");
        }
    }

    /// Connects `gpu` to those of the others, by the id that rank 0 made. NCCL waits for them without end, so a thread does, and
    /// stays behind where one is lost.
    pub(super) fn connect(&self, gpu: usize, told: NcclId) -> Result<(), GroupError> {
        let (id, rank, size) = (self.id, self.rank as i32, self.size as i32);
        let (sender, connected) = mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: an id as long as NCCL's, which outlives the call.
            let done = check(unsafe { sdclr_group_connect(id, &raw const told, rank, size, gpu as i32) });
            // Nobody hears it who has given up.
            let _ = sender.send(done);
        });
        let start = Instant::now();
        loop {
            match connected.recv_timeout(LOOK) {
                Ok(done) => {
                    done.map_err(|error| GroupError::NoNccl { reason: error.to_string() })?;
                    self.connected.store(true, Ordering::SeqCst);
                    return Ok(());
                }
                Err(_) if start.elapsed() > self.timeout => {
                    let reason = format!("no connection within {} s", self.timeout.as_secs());
                    return Err(GroupError::NoNccl { reason });
                }
                Err(_) => {
                    if let Some(error) = self.failed()?.or_else(|| self.gone()) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// What went wrong between the GPUs, by what NCCL says of its connections.
    fn failure_of_nccl(&self) -> Option<GroupError> {
        let mut text = null_mut();
        // SAFETY: a place for a pointer, which outlives the call.
        let said = check(unsafe { sdclr_group_failure(self.id, &raw mut text) });
        // SAFETY: the shim's text, taken once.
        let said = said.map(|()| unsafe { taken(text) }).unwrap_or_else(|error| Some(error.to_string()));
        said.map(GroupError::Apart)
    }

    /// Whether `rank` is a process of this machine, and whether that runs; `None`: nobody here knows.
    fn runs(&self, rank: usize) -> Option<bool> {
        let peer = &self.peers[rank];
        (peer.host == self.peers[self.rank].host).then(|| is_alive(peer.process))
    }

    /// A rank of this machine whose process is gone.
    pub(super) fn gone(&self) -> Option<GroupError> {
        (0..self.size).find(|rank| self.runs(*rank) == Some(false)).map(|rank| self.lost(rank))
    }

    fn lost(&self, rank: usize) -> GroupError {
        let Peer { process, host, .. } = &self.peers[rank];
        let host = host.split(' ').next().unwrap_or_default().to_owned();
        GroupError::Lost { rank, size: self.size, process: *process, host }
    }

    /// The other rank that said why it ended or is lost; `None`: within [`REASON`] there was no sign of one.
    pub(super) fn cause(&self) -> Option<GroupError> {
        let (start, before) = (Instant::now(), self.beats());
        while start.elapsed() < REASON {
            if let Some(error) = self.sign() {
                return Some(error);
            }
            std::thread::sleep(LOOK);
        }
        let silent = before.and_then(|before| Ok(self.silent(&before, &self.beats()?))).ok().flatten();
        silent.or_else(|| self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// What is known at once: another rank said why it ended, or is gone from this machine, or its store is.
    fn sign(&self) -> Option<GroupError> {
        match self.failed() {
            Ok(Some(error)) => Some(error),
            // The store ends with rank 0, which serves it.
            Err(_) if !self.agent && self.runs(0).is_none() => Some(self.lost(0)),
            _ => self.gone(),
        }
    }

    /// A rank of another machine that did not count on between two looks.
    fn silent(&self, before: &[Option<String>], now: &[Option<String>]) -> Option<GroupError> {
        let stands = |rank: &usize| before[*rank].is_some() && before[*rank] == now[*rank];
        (0..self.size).filter(stands).find(|rank| self.runs(*rank).is_none()).map(|rank| self.lost(rank))
    }

    /// What another rank said before it ended.
    ///
    /// # Errors
    /// The store has ended.
    pub(super) fn failed(&self) -> Result<Option<GroupError>, NativeError> {
        for rank in (0..self.size).filter(|rank| *rank != self.rank) {
            if let Some(reason) = self.hear(&format!("failed/{rank}"))? {
                let (rank, reason) = first_cause(rank, &reason);
                return Ok(Some(GroupError::Ended { rank, reason: reason.to_owned() }));
            }
        }
        Ok(None)
    }
}

/// A text of the shim's as our own; null is none.
///
/// # Safety
/// It is null or NUL-terminated, and nobody else's to free.
unsafe fn taken(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: as above.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        sdclr_free(text);
        Some(owned)
    }
}

/// Looks after the other ranks while this one may wait for their GPUs, which nobody would tell it of: the host is free again
/// once NCCL is aborted, and [`Group::check`](super::Group::check) says why.
#[derive(Debug)]
pub struct Watch {
    link: Arc<Link>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn new(link: Arc<Link>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let watched = link.clone();
        let thread = std::thread::spawn(move || {
            let (mut looked, mut before) = (Instant::now(), watched.beats());
            while stopped.recv_timeout(LOOK * 5) == Err(RecvTimeoutError::Timeout) {
                let mut lost = watched.sign().or_else(|| watched.failure_of_nccl());
                if looked.elapsed() > SILENCE {
                    let now = watched.beats();
                    if let (Ok(before), Ok(now)) = (&before, &now) {
                        lost = lost.or_else(|| watched.silent(before, now));
                    }
                    (looked, before) = (Instant::now(), now);
                }
                if lost.is_some() {
                    *watched.reason.lock().unwrap_or_else(PoisonError::into_inner) = lost;
                    return watched.abort();
                }
            }
        });
        Self { link, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        // An abort is not waited for.
        if let Some(thread) = self.thread.take().filter(|_| !self.link.aborted.load(Ordering::SeqCst)) {
            // It does not panic, and a destructor could tell nobody.
            let _ = thread.join();
        }
    }
}

/// Whether a process of this machine runs: it is there, and not only as what its parent has not yet looked at.
fn is_alive(process: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // The name, in brackets, may hold anything.
    !text.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

fn host_name() -> String {
    let told = |file: &str| std::fs::read_to_string(format!("/proc/sys/kernel/{file}")).unwrap_or_default();
    // Machines may have one name, and containers of one machine see their own processes alone.
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {} {}", told("hostname").trim(), told("random/boot_id").trim(), space.display())
}

/// The number of a group that has not met yet, with its store. c10d waits without end for a server that takes the
/// connection and never answers, as a program that is no store may: a thread waits for it, and stays behind.
fn open(meeting: &Meeting, serve: bool, stop: Asked) -> Result<i64, GroupError> {
    let (host, port, timeout) = (meeting.host.clone(), meeting.port, meeting.timeout);
    let rank = meeting.rank;
    let unreachable = |reason: String| {
        let address = format!("{}:{port}", meeting.host);
        GroupError::Unreachable { rank, address, reason }
    };
    let host = CString::new(host).map_err(|error| unreachable(error.to_string()))?;
    let (sender, opened) = mpsc::channel();
    std::thread::spawn(move || {
        let mut id = 0;
        // SAFETY: a NUL-terminated string and a number, which outlive the call.
        let done =
            check(unsafe { sdclr_group_new(host.as_ptr(), port, serve, timeout.as_millis() as i64, &raw mut id) });
        // Nobody hears it who has given up.
        let _ = sender.send(done.map(|()| id));
    });
    let start = Instant::now();
    loop {
        match opened.recv_timeout(LOOK) {
            Ok(done) => return done.map_err(|error| unreachable(error.0)),
            Err(RecvTimeoutError::Timeout) if stop() => return Err(GroupError::Stopped),
            Err(RecvTimeoutError::Timeout) if start.elapsed() < timeout + LOOK => {}
            Err(_) => return Err(unreachable(format!("no answer within {} s", timeout.as_secs()))),
        }
    }
}

/// Waits until every rank has said who it is.
fn meet(link: &Link, meeting: &Meeting, stop: Asked) -> Result<Vec<Peer>, GroupError> {
    let Link { id, rank, size, .. } = *link;
    let mut count = 0;
    // SAFETY: a NUL-terminated string and a number, which outlive the call.
    check(unsafe { sdclr_group_count(id, link.key(&format!("rank/{rank}")).as_ptr(), &raw mut count) })?;
    if count > 1 {
        link.tell("twice", &rank.to_string())?;
        return Err(GroupError::Twice { rank, size });
    }
    // It would end with the other start, whose store it is.
    if rank == 0 && !link.serves && !link.agent {
        link.tell("elsewhere", "")?;
    }
    link.tell(&format!("hello/{rank}"), &format!("{size}\n{}\n{}", std::process::id(), host_name()))?;
    let start = Instant::now();
    let mut peers: Vec<Option<Peer>> = vec![None; size];
    loop {
        if let Some(rank) = link.hear("twice")?.and_then(|rank| rank.parse().ok()) {
            return Err(GroupError::Twice { rank, size });
        }
        if link.hear("elsewhere")?.is_some() {
            return Err(GroupError::PortInUse { port: meeting.port });
        }
        for (rank, peer) in peers.iter_mut().enumerate().filter(|(_, peer)| peer.is_none()) {
            *peer = link.hear(&format!("hello/{rank}"))?.and_then(|text| peer_of(&text));
        }
        if let Some((rank, other)) = peers
            .iter()
            .enumerate()
            .find_map(|(rank, peer)| Some((rank, peer.as_ref()?)).filter(|(_, peer)| peer.size != size))
        {
            let [first, other] = if rank == 0 { [other.size, size] } else { [size, other.size] }.map(|n| n.to_string());
            return Err(GroupError::Differ { what: "WORLD_SIZE".to_owned(), rank: rank.max(link.rank), first, other });
        }
        let missing: Vec<usize> = (0..size).filter(|rank| peers[*rank].is_none()).collect();
        if missing.is_empty() {
            return Ok(peers.into_iter().flatten().collect());
        }
        if stop() {
            link.tell("stop", "")?;
        }
        if link.hear("stop")?.is_some() {
            return Err(GroupError::Stopped);
        }
        if start.elapsed() > meeting.timeout {
            return Err(GroupError::Missing { missing, size, seconds: meeting.timeout.as_secs() });
        }
        std::thread::sleep(LOOK);
    }
}

fn peer_of(text: &str) -> Option<Peer> {
    let mut lines = text.splitn(3, '\n');
    let size = lines.next()?.parse().ok()?;
    let process = lines.next()?.parse().ok()?;
    Some(Peer { size, process, host: lines.next()?.to_owned() })
}

/// What began it where `rank` gave `reason`, which may be that another one ended.
fn first_cause(rank: usize, reason: &str) -> (usize, &str) {
    // As [`GroupError::Ended`] says it.
    let ended = || reason.strip_prefix("rank ")?.split_once(" ended: ");
    match ended().and_then(|(rank, reason)| Some((rank.parse().ok()?, reason))) {
        Some((rank, reason)) => first_cause(rank, reason),
        None => (rank, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_chain_of_ends_is_told() {
        let lost = "rank 2 of 4 (process 7 on there) was lost";
        assert_eq!(first_cause(0, &format!("rank 1 ended: rank 3 ended: {lost}")), (3, lost));
        assert_eq!(first_cause(0, "rank x ended: y"), (0, "rank x ended: y"));
    }
}
