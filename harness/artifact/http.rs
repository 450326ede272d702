//! One request to one server. In: a url, and where to go on. Out: an answer whose body may be read, or the reason why
//! this server does not give the file.

use std::error::Error;
use std::io::{ErrorKind, Read};
use std::time::{Duration, SystemTime};

use reqwest::blocking::{Client, Response};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, IF_RANGE, RANGE,
    RETRY_AFTER,
};
use reqwest::{StatusCode, Url, redirect};

use super::ArtifactError;
use super::drive::{self, Obstacle, Page};
use super::page::{TELLING_BYTES, title};
use super::registry::Transfer;
use crate::text::printable;

/// Most of a web page that is read to see what it says.
const PAGE_BYTES: u64 = 256 << 10;

/// Why a server did not give a file.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("no connection: {0}")]
    Connect(String),
    #[error("nothing came for {0} s")]
    Stalled(f64),
    #[error("too slow: {found} bytes in {seconds} s, at least {floor} bytes a second are expected")]
    Slow { found: u64, seconds: f64, floor: u64 },
    #[error("it broke off after {found} bytes{}", .expected.map(|bytes| format!(" of {bytes}")).unwrap_or_default())]
    Broken { found: u64, expected: Option<u64> },
    #[error("the answer is {status}")]
    Status { status: StatusCode, retry_after: Option<Duration> },
    #[error("it offers {found} bytes, expected {expected}")]
    Length { found: u64, expected: u64 },
    #[error("more than {allowed} bytes came, which is all that the file may have")]
    TooLong { allowed: u64 },
    #[error("it sends the file in the content coding '{0}', which was not asked for; a proxy on the way may do so")]
    Coding(String),
    #[error("asked for bytes from {asked} on, it answered with '{found}'")]
    Range { asked: u64, found: String },
    #[error("after resuming, {0}")]
    Stale(String),
    #[error("it redirects in circles, too often, or away from https")]
    Redirects,
    #[error("a web page came instead of the file{0}")]
    Page(String),
    #[error(transparent)]
    Drive(#[from] Obstacle),
    #[error("{wrong}; what came is kept as {kept} and is not used")]
    WrongHash { wrong: super::check::Mismatch, kept: String },
}

impl Refusal {
    /// Whether asking the same server again may help.
    pub fn passes(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Stalled(_) | Self::Slow { .. } | Self::Broken { .. } => true,
            Self::Status { status, .. } => matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error(),
            _ => self.starts_over(),
        }
    }

    /// Whether the part kept from an earlier try was the problem: it is deleted by now, and the server is asked again at once.
    pub fn starts_over(&self) -> bool {
        matches!(self, Self::Range { .. } | Self::Stale(_))
    }

    /// When the server wants to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// A client with the time-outs of `transfer`. Proxies are those of the usual variables (`HTTPS_PROXY`, `NO_PROXY`, ...).
pub fn client(transfer: &Transfer) -> Result<Client, ArtifactError> {
    // Fails where a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let most = transfer.redirects;
    let policy = redirect::Policy::custom(move |attempt| {
        let from_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
        if attempt.previous().len() > most || (from_https && attempt.url().scheme() != "https") {
            return attempt.error("redirects");
        }
        attempt.follow()
    });
    Client::builder()
        .user_agent(concat!("sdclr/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Transfer::seconds(transfer.connect_seconds))
        // Of this client it holds for the head of the answer, then for each read of the body.
        .timeout(Transfer::seconds(transfer.stall_seconds))
        .redirect(policy)
        .build()
        .map_err(|error| ArtifactError::Client { reason: cause(&error) })
}

/// An answer whose body is not the page that its headers may say it is.
pub struct Answer {
    pub response: Response,
    /// What of the body was read already.
    pub begun: Vec<u8>,
}

/// Asks for `url` from byte `offset` on; with a `validator` only if the file is still the same. Follows Google Drive's
/// confirmation once.
pub fn ask(
    client: &Client,
    transfer: &Transfer,
    url: &Url,
    offset: u64,
    validator: Option<&str>,
) -> Result<Answer, Refusal> {
    let mut target = url.clone();
    for confirmed in [false, true] {
        let mut request = client.get(target.clone()).header(ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
            if let Some(validator) = validator {
                request = request.header(IF_RANGE, validator);
            }
        }
        let mut response = request.send().map_err(|error| of_request(&error, &target, transfer))?;
        let mut begun = Vec::new();
        let mut is_page = header(&response, CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html"));
        if is_page && response.status().is_success() {
            // Servers call what they do not know a page, too.
            let _ = response.by_ref().take(TELLING_BYTES as u64).read_to_end(&mut begun);
            is_page = begun.is_empty() || begun.trim_ascii_start().starts_with(b"<");
        }
        if !is_page {
            return match response.status() {
                // 203: a proxy changed the headers. What it changed of the content, the hash tells.
                StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION | StatusCode::PARTIAL_CONTENT => {
                    Ok(Answer { response, begun })
                }
                StatusCode::RANGE_NOT_SATISFIABLE => Err(Refusal::Range { asked: offset, found: "416".to_owned() }),
                status => Err(Refusal::Status { status, retry_after: retry_after(&response) }),
            };
        }
        target = match read_page(response, &begun)? {
            Some(_) if confirmed => return Err(Obstacle::Loop.into()),
            Some(next) => next,
            None => return Err(Obstacle::Loop.into()),
        };
    }
    Err(Obstacle::Loop.into())
}

/// What a page that came instead of the file says: the request that Drive's form asks for, or the refusal. `begun` is
/// what of the body was read already.
pub fn read_page(response: Response, begun: &[u8]) -> Result<Option<Url>, Refusal> {
    let (status, from, retry_after) = (response.status(), response.url().clone(), retry_after(&response));
    let mut page = begun.to_vec();
    // An incomplete page may still say enough.
    let _ = response.take(PAGE_BYTES).read_to_end(&mut page);
    let page = String::from_utf8_lossy(&page);
    match drive::recognise(&page, status, &from) {
        Some(Page::Confirm(next)) => Ok(Some(next)),
        Some(Page::Obstacle(obstacle)) => Err(obstacle.into()),
        None if !status.is_success() => Err(Refusal::Status { status, retry_after }),
        None => Err(Refusal::Page(title(&page).map(|title| format!(": '{title}'")).unwrap_or_default())),
    }
}

/// The length of the whole body, of which a part may have been read already.
pub fn length(response: &Response) -> Option<u64> {
    header(response, CONTENT_LENGTH)?.trim().parse().ok()
}

/// The coding in which the body comes, if it does in any.
pub fn coding(response: &Response) -> Option<&str> {
    header(response, CONTENT_ENCODING).map(str::trim).filter(|coding| !matches!(*coding, "" | "identity"))
}

/// A header as text.
pub fn header(response: &Response, name: HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

/// Start, end (inclusive) and, where it is told, total of `Content-Range: bytes START-END/TOTAL`.
pub fn content_range(response: &Response) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = header(response, CONTENT_RANGE)?.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, end.parse().ok()?, total))
}

fn retry_after(response: &Response) -> Option<Duration> {
    let text = header(response, RETRY_AFTER)?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

/// Why a request brought no answer.
fn of_request(error: &reqwest::Error, url: &Url, transfer: &Transfer) -> Refusal {
    if error.is_redirect() {
        Refusal::Redirects
    } else if error.is_timeout() && !error.is_connect() {
        Refusal::Stalled(transfer.stall_seconds)
    } else {
        let proxy = proxy(url).map(|proxy| format!("; {proxy}")).unwrap_or_default();
        Refusal::Connect(cause(error) + &proxy)
    }
}

/// The environment's proxy for `url`, in words, without its password.
fn proxy(url: &Url) -> Option<String> {
    let own = format!("{}_proxy", url.scheme());
    [own.clone(), own.to_uppercase(), "all_proxy".to_owned(), "ALL_PROXY".to_owned()].into_iter().find_map(|name| {
        let value = std::env::var(&name).ok().filter(|value| !value.is_empty())?;
        let shown = value.rsplit_once('@').map_or(value.as_str(), |(_, host)| host);
        Some(format!("{name} names the proxy {}", printable(shown)))
    })
}

/// Why a body ended early.
pub fn of_body(error: &std::io::Error, found: u64, expected: Option<u64>, transfer: &Transfer) -> Refusal {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<reqwest::Error>());
    match error.kind() == ErrorKind::TimedOut || inner.is_some_and(reqwest::Error::is_timeout) {
        true => Refusal::Stalled(transfer.stall_seconds),
        false => Refusal::Broken { found, expected },
    }
}

/// The innermost cause, which is the informative one.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    printable(&innermost.to_string())
}
