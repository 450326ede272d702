//! Downloads one file from its mirrors. In: what is known of the file. Out: the verified file, renamed into place; or why no
//! mirror delivered it. A partial download is kept beside it and continued.

use std::hash::{BuildHasher, Hasher};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, Response};
use reqwest::header::{ETAG, LAST_MODIFIED};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};

use super::check::{self, Digester, Digests};
use super::http::{self, Refusal};
use super::page;
use super::registry::{RemoteFile, Transfer};
use super::{Voice, human};
use crate::fs::{self, FsError, Growing};
use crate::text::{printable, shown};

/// A round of tries that gained less than this counts as lost: some servers and proxies break every connection after 64 KiB.
const PROGRESS: u64 = 16 << 10;
/// Bytes read from a connection at once.
const PIECE: usize = 256 << 10;

/// A file could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error(transparent)]
    File(#[from] FsError),
    #[error(
        "{file} needs {} more in {}, which has {} free; free some space, or choose another folder with --cache DIR",
        human(*need), shown(folder), human(*free)
    )]
    NoSpace { file: String, need: u64, free: u64, folder: PathBuf },
    #[error("no mirror gave {file}: {reasons}{kept}")]
    Refused { file: String, reasons: String, kept: String },
}

/// Why one try failed: of the server, or of this machine.
#[derive(Debug)]
enum Setback {
    Server(Refusal),
    Here(DownloadError),
}

impl From<Refusal> for Setback {
    fn from(refusal: Refusal) -> Self {
        Self::Server(refusal)
    }
}

impl From<FsError> for Setback {
    fn from(error: FsError) -> Self {
        Self::Here(error.into())
    }
}

/// Where the beginning of an unfinished download came from.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    url: String,
    /// A strong ETag or a Last-Modified: the server's own word for this content.
    validator: Option<String>,
}

/// One file to download.
#[derive(Debug)]
pub struct Download<'a> {
    pub client: &'a Client,
    pub transfer: &'a Transfer,
    pub voice: &'a Voice<'a>,
    pub file: &'a RemoteFile,
    /// Where it grows.
    pub part: &'a Path,
    /// Where it goes.
    pub target: &'a Path,
    /// Bytes that its unpacking will need; where nobody knows, as many as it has itself.
    pub room: Option<u64>,
}

struct Mirror {
    url: Url,
    not_before: Instant,
    refusal: Option<Refusal>,
}

impl Download<'_> {
    /// Asks the mirrors in turn, round after round, until one gives the file or nothing is gained any more.
    ///
    /// # Errors
    /// Every mirror refused; or the disk is full or fails.
    pub fn run(&self) -> Result<Digests, DownloadError> {
        let now = Instant::now();
        let mut mirrors: Vec<Mirror> = self.urls().map(|url| Mirror { url, not_before: now, refusal: None }).collect();
        let mut lost_rounds = 0;
        let mut most = self.kept();
        loop {
            // Servers that sent Retry-After come last, and are not waited for while another mirror delivers.
            let mut turns: Vec<usize> = (0..mirrors.len()).collect();
            let now = Instant::now();
            turns.sort_by_key(|&index| mirrors[index].not_before.saturating_duration_since(now));
            for index in turns {
                let mirror = &mut mirrors[index];
                if mirror.refusal.as_ref().is_some_and(|refusal| !refusal.passes()) {
                    continue;
                }
                let wait = mirror.not_before.saturating_duration_since(Instant::now());
                if !wait.is_zero() && self.kept() >= most + PROGRESS {
                    continue;
                }
                std::thread::sleep(wait);
                match self.ask(&mirror.url) {
                    Ok(digests) => return Ok(digests),
                    Err(Setback::Here(error)) => return Err(error),
                    Err(Setback::Server(refusal)) => {
                        self.voice.say(&format!("{}: {refusal}", mirror.url));
                        let cap = Transfer::seconds(self.transfer.retry_after_most_seconds);
                        mirror.not_before = Instant::now() + refusal.retry_after().unwrap_or_default().min(cap);
                        mirror.refusal = Some(refusal);
                    }
                }
            }
            let gained = self.kept() >= most + PROGRESS;
            most = most.max(self.kept());
            lost_rounds = if gained { 0 } else { lost_rounds + 1 };
            let hope = mirrors.iter().filter(|mirror| mirror.refusal.as_ref().is_none_or(Refusal::passes));
            let Some(earliest) = hope.map(|mirror| mirror.not_before).min() else {
                return Err(self.refused(&mirrors));
            };
            if lost_rounds >= self.transfer.attempts {
                return Err(self.refused(&mirrors));
            }
            let wait = self.backoff(lost_rounds).max(earliest.saturating_duration_since(Instant::now()));
            self.voice.say(&format!("next try in {:.1} s", wait.as_secs_f64()));
            std::thread::sleep(wait);
        }
    }

    fn urls(&self) -> impl Iterator<Item = Url> {
        // The registry holds no url that does not parse.
        self.file.urls.iter().filter_map(|url| Url::parse(url).ok())
    }

    fn kept(&self) -> u64 {
        fs::length(self.part).unwrap_or(0)
    }

    fn refused(&self, mirrors: &[Mirror]) -> DownloadError {
        let reason = |mirror: &Mirror| Some(format!("{}: {}", mirror.url, mirror.refusal.as_ref()?));
        let reasons = mirrors.iter().filter_map(reason).collect::<Vec<_>>().join("; ");
        let kept = match self.kept() {
            0 => String::new(),
            bytes => format!("; {} are kept, and the same command goes on from there", human(bytes)),
        };
        DownloadError::Refused { file: self.file.path.clone(), reasons, kept }
    }

    /// Doubles with every lost round; half of it is left to chance, so that many clients do not come back at once.
    fn backoff(&self, lost_rounds: u32) -> Duration {
        let doubled = self.transfer.backoff_seconds * 2_f64.powi(lost_rounds.saturating_sub(1).min(30) as i32);
        let chance = std::hash::RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        Transfer::seconds(doubled.min(self.transfer.backoff_most_seconds) * (0.5 + 0.5 * chance))
    }

    /// One try at one mirror; two where what was kept of an earlier try turns out to be useless.
    fn ask(&self, url: &Url) -> Result<Digests, Setback> {
        match self.ask_from(url, self.offset(url)?) {
            Err(Setback::Server(refusal)) if refusal.starts_over() => {
                self.voice.say(&format!("{url}: {refusal}; starting over"));
                self.discard()?;
                self.ask_from(url, 0)
            }
            outcome => outcome,
        }
    }

    /// How much of an unfinished download to keep. If a hash is known, bytes from another mirror are usable too; otherwise
    /// they must be from this url, with an ETag or Last-Modified to compare.
    fn offset(&self, url: &Url) -> Result<u64, Setback> {
        let kept = self.kept();
        let own = self.validator(url).is_some();
        if kept > 0 && (kept > self.file.limit() || !(self.file.has_hash() || own)) {
            self.discard()?;
            return Ok(0);
        }
        Ok(kept)
    }

    fn origin_path(&self) -> PathBuf {
        self.part.with_added_extension("json")
    }

    fn validator(&self, url: &Url) -> Option<String> {
        let origin: Origin = serde_json::from_slice(&fs::read(&self.origin_path()).ok()?).ok()?;
        origin.validator.filter(|_| origin.url == url.as_str())
    }

    fn discard(&self) -> Result<(), FsError> {
        fs::remove(self.part)?;
        fs::remove(&self.origin_path())
    }

    fn ask_from(&self, url: &Url, offset: u64) -> Result<Digests, Setback> {
        if offset > 0 && Some(offset) == self.file.size {
            // Killed between the last byte and the rename.
            return self.accept(check::digest(self.part, self.file)?, true);
        }
        let http::Answer { mut response, begun } =
            http::ask(self.client, self.transfer, url, offset, self.validator(url).as_deref())?;
        let decode = self.is_gzipped(&response)?;
        let (start, total) = self.placed(&response, offset, decode)?;
        self.check_space(start, total.unwrap_or(0))?;
        let mut digester = Digester::new(self.file);
        if start > 0 {
            self.voice.say(&format!("going on at {} of {url}", human(start)));
            fs::read_pieces(self.part, |piece| digester.update(piece))?;
        } else {
            self.discard()?;
            self.note_origin(url, &response)?;
        }
        let mut growing = Growing::open(self.part, start)?;
        let bar = self.voice.progress.bytes(self.voice.name, total, start);
        let coded = begun.as_slice().chain(&mut response);
        let mut body: Box<dyn Read> =
            if decode { Box::new(flate2::read::MultiGzDecoder::new(coded)) } else { Box::new(coded) };
        let outcome = self.receive(&mut body, &mut growing, &mut digester, (start, total), |at| bar.set_position(at));
        drop(body);
        bar.finish_and_clear();
        match outcome {
            Ok(()) => {}
            // A web page sent in place of the file.
            Err(Ending::Page(begun)) => {
                self.discard()?;
                http::read_page(response, &begun)?;
                return Err(Refusal::Page(String::new()).into());
            }
            Err(Ending::Setback(setback)) => return Err(setback),
        }
        growing.sync()?;
        self.accept(digester.finish(), start > 0)
    }

    /// Whether the server compressed the file on the way, in spite of what it was asked. Some call the coding of an archive
    /// that which it is itself compressed by: it comes as it is.
    fn is_gzipped(&self, response: &Response) -> Result<bool, Refusal> {
        let itself = [".gz", ".tgz"].iter().any(|ending| self.file.path.ends_with(ending));
        let as_it_is = http::length(response).is_some_and(|length| Some(length) == self.file.size);
        match http::coding(response) {
            None => Ok(false),
            Some("gzip" | "x-gzip") => Ok(!itself && !as_it_is),
            Some(other) => Err(Refusal::Coding(printable(other))),
        }
    }

    /// Where in the file the body of `response` lies, and how long the file is. The lengths and ranges of a body to `decode`
    /// are those of the compressed one.
    fn placed(&self, response: &Response, offset: u64, decode: bool) -> Result<(u64, Option<u64>), Refusal> {
        let (start, total) = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = http::content_range(response);
            match range {
                Some((start, end, total))
                    if !decode && offset > 0 && start == offset && total.is_none_or(|n| n == end + 1) =>
                {
                    (start, Some(end + 1))
                }
                _ => {
                    let found = http::header(response, reqwest::header::CONTENT_RANGE).unwrap_or("no Content-Range");
                    return Err(Refusal::Range { asked: offset, found: printable(found) });
                }
            }
        } else {
            (0, http::length(response).filter(|_| !decode))
        };
        match (total, self.file.size) {
            (Some(found), Some(expected)) if found != expected && start > 0 => {
                Err(Refusal::Range { asked: offset, found: format!("a file of {found} bytes") })
            }
            (Some(found), Some(expected)) if found != expected => Err(Refusal::Length { found, expected }),
            (Some(found), None) if found > self.file.limit() => Err(Refusal::TooLong { allowed: self.file.limit() }),
            (total, size) => Ok((start, total.or(size))),
        }
    }

    fn check_space(&self, start: u64, total: u64) -> Result<(), Setback> {
        let folder = self.part.parent().unwrap_or(Path::new("."));
        fs::create_folder(folder)?;
        let need = total.saturating_sub(start).saturating_add(self.room.unwrap_or(total));
        let free = fs::free_space(folder)?;
        if need > free {
            let (file, folder) = (self.file.path.clone(), folder.to_path_buf());
            return Err(Setback::Here(DownloadError::NoSpace { file, need, free, folder }));
        }
        Ok(())
    }

    fn note_origin(&self, url: &Url, response: &Response) -> Result<(), FsError> {
        let etag = http::header(response, ETAG).filter(|etag| !etag.starts_with("W/"));
        let validator = etag.or_else(|| http::header(response, LAST_MODIFIED)).map(str::to_owned);
        let origin = Origin { url: url.to_string(), validator };
        fs::write_with(&self.origin_path(), |file| Ok(serde_json::to_writer(file, &origin)?))
    }

    /// Reads the body to its end.
    fn receive(
        &self,
        body: &mut dyn Read,
        growing: &mut Growing,
        digester: &mut Digester,
        (start, total): (u64, Option<u64>),
        mut progress: impl FnMut(u64),
    ) -> Result<(), Ending> {
        let allowed = total.unwrap_or(self.file.limit());
        let mut buffer = vec![0; PIECE];
        let mut at = start;
        // A single piece of a web page may not look like one.
        let mut begin = Vec::new();
        let mut pace = Pace { since: Instant::now(), bytes: 0 };
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(http::of_body(&error, at, total, self.transfer).into()),
            };
            let piece = &buffer[..count];
            if start == 0 && begin.len() < page::TELLING_BYTES {
                begin.extend_from_slice(piece);
                if page::looks_like_page(&begin) {
                    return Err(Ending::Page(begin));
                }
            }
            at += count as u64;
            if at > allowed {
                self.discard()?;
                let too_long = Refusal::TooLong { allowed };
                // A server that cannot count the rest may still give the whole.
                return Err(if start > 0 { Refusal::Stale(too_long.to_string()) } else { too_long }.into());
            }
            growing.append(piece)?;
            digester.update(piece);
            progress(at);
            pace.check(count as u64, self.transfer)?;
        }
        match total {
            Some(expected) if at < expected => Err(Refusal::Broken { found: at, expected: total }.into()),
            _ => Ok(()),
        }
    }

    /// Puts the whole file in place if it is the right one, and out of the way if not.
    fn accept(&self, found: Digests, resumed: bool) -> Result<Digests, Setback> {
        if let Some(wrong) = check::mismatch(self.part, &found, self.file)? {
            if resumed {
                return Err(Refusal::Stale(wrong.to_string()).into());
            }
            let kept = check::set_aside(self.part, &found)?.display().to_string();
            fs::remove(&self.origin_path())?;
            return Err(Refusal::WrongHash { wrong, kept }.into());
        }
        fs::rename(self.part, self.target)?;
        fs::remove(&self.origin_path())?;
        Ok(found)
    }
}

/// How the reading of a body ended before its end.
enum Ending {
    /// It is a web page that begins so.
    Page(Vec<u8>),
    Setback(Setback),
}

impl<T: Into<Setback>> From<T> for Ending {
    fn from(setback: T) -> Self {
        Self::Setback(setback.into())
    }
}

/// Watches the rate of a download.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn check(&mut self, count: u64, transfer: &Transfer) -> Result<(), Refusal> {
        self.bytes += count;
        let seconds = self.since.elapsed().as_secs_f64();
        if seconds < transfer.slow_window_seconds {
            return Ok(());
        }
        let (found, floor) = (self.bytes, transfer.slow_bytes_per_second);
        if (found as f64) < floor as f64 * seconds {
            return Err(Refusal::Slow { found, seconds: (10.0 * seconds).round() / 10.0, floor });
        }
        *self = Self { since: Instant::now(), bytes: 0 };
        Ok(())
    }
}
