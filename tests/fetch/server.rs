//! A web server that does to a client whatever a test tells it to, byte by byte.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a client asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The first byte that is asked for.
    pub fn start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// Listens on a port of its own until the test program ends.
pub struct Server {
    /// Without a slash at its end.
    pub url: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` is given each request, its number (from 0) and the connection, which is closed afterwards.
    pub fn start(answer: impl Fn(usize, &Request, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (answer, shared) = (Arc::new(answer), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream.unwrap(), &*answer, &log));
            }
        });
        Self { url, log }
    }

    /// Serves `body` at every path as a good server does, Range and all.
    pub fn good(body: Vec<u8>) -> Self {
        Self::start(move |_, request, stream| whole_or_rest(request, &body, stream))
    }

    /// Answers everything with this status line (its number and phrase), further headers, and this body.
    pub fn fixed(status: &'static str, headers: &'static str, body: &'static str) -> Self {
        Self::start(move |_, _, stream| reply(stream, status, headers, body.as_bytes()))
    }

    /// A port at which nobody listens.
    pub fn closed() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { url: format!("http://{}", listener.local_addr().unwrap()), log: Arc::default() }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// First bytes asked for, one a request; 0 where all of the file was.
    pub fn starts(&self) -> Vec<usize> {
        self.requests().iter().map(|request| request.start().unwrap_or(0)).collect()
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &(impl Fn(usize, &Request, &mut TcpStream) + ?Sized),
    log: &Mutex<Vec<Request>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    let request = Request { path, headers };
    let number = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.len() - 1
    };
    answer(number, &request, &mut stream);
}

/// The head of an answer; `headers` are lines that each end with `\r\n`. A client that is gone is no concern.
pub fn head(stream: &mut TcpStream, status: &str, headers: &str) {
    let _ = stream.write_all(format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n\r\n").as_bytes());
}

/// A whole answer of known length.
pub fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    head(stream, status, &format!("{headers}Content-Length: {}\r\n", body.len()));
    let _ = stream.write_all(body);
}

/// What a good server answers.
pub fn whole_or_rest(request: &Request, body: &[u8], stream: &mut TcpStream) {
    const ETAG: &str = "\"one\"";
    let unchanged = request.header("if-range").is_none_or(|known| known == ETAG);
    match request.start().filter(|_| unchanged) {
        None => reply(stream, "200 OK", &format!("ETag: {ETAG}\r\n"), body),
        Some(start) if start >= body.len() => reply(stream, "416 Range Not Satisfiable", "", b""),
        Some(start) => {
            let range = format!("Content-Range: bytes {start}-{}/{}\r\n", body.len() - 1, body.len());
            reply(stream, "206 Partial Content", &range, &body[start..]);
        }
    }
}

/// Promises all of `body` and sends its first `count` bytes.
pub fn broken_off(stream: &mut TcpStream, body: &[u8], count: usize) {
    head(stream, "200 OK", &format!("ETag: \"one\"\r\nContent-Length: {}\r\n", body.len()));
    let _ = stream.write_all(&body[..count]);
}
