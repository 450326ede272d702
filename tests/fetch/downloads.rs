//! One file from servers that misbehave.

use std::io::Write;
use std::time::{Duration, Instant};

use sdclr::artifact::hash::{Algorithm, Hasher};

use crate::server::{Server, broken_off, head, reply, whole_or_rest};
use crate::world::{World, list, md5, noise, sha256};

/// One failing download of `body` from a server that answers as told.
fn refusal(body: &[u8], server: &Server) -> (World, String) {
    let world = World::new(&[list("thing", &[server], body)]);
    let error = world.error(&["thing"]);
    assert!(world.cached("data/split/thing.bin").is_none(), "what was refused is in place");
    (world, error)
}

#[test]
fn a_good_server_is_asked_once() {
    let body = noise(300_000);
    let server = Server::good(body.clone());
    let world = World::new(&[list("thing", &[&server], &body)]);
    let first = world.good(&["thing"]);
    let second = world.good(&["thing"]);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);
    assert_eq!(world.files(), ["data/split/thing.bin"]);
    assert_eq!(server.requests().len(), 1);
    insta::assert_snapshot!("fetch_plain_output", format!("{}{}{}{}", first.err, first.out, second.err, second.out));
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let body = noise(300_000);
    let whole = body.clone();
    let server = Server::start(move |number, request, stream| match number {
        0 => broken_off(stream, &whole, 100_000),
        _ => whole_or_rest(request, &whole, stream),
    });
    let world = World::new(&[list("thing", &[&server], &body)]);
    world.good(&["thing"]);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);
    assert_eq!(server.starts(), [0, 100_000]);
    let again = &server.requests()[1];
    assert_eq!(again.header("if-range"), Some("\"one\""), "a file that changed meanwhile would be mixed");
}

#[test]
fn a_server_that_ignores_range_starts_over() {
    let body = noise(300_000);
    let whole = body.clone();
    let server = Server::start(move |number, _, stream| match number {
        0 => broken_off(stream, &whole, 100_000),
        _ => reply(stream, "200 OK", "", &whole),
    });
    let world = World::new(&[list("thing", &[&server], &body)]);
    world.good(&["thing"]);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);
    assert_eq!(server.starts(), [0, 100_000]);
}

#[test]
fn a_wrong_content_range_starts_over() {
    for range in ["bytes 99999-299999/300001", "bytes 100000-299999/400000", "bytes 0-199999/300000", "nonsense", ""] {
        let body = noise(300_000);
        let whole = body.clone();
        let server = Server::start(move |number, request, stream| match (number, request.start()) {
            (0, _) => broken_off(stream, &whole, 100_000),
            (_, Some(start)) => {
                let header = if range.is_empty() { String::new() } else { format!("Content-Range: {range}\r\n") };
                reply(stream, "206 Partial Content", &header, &whole[start..]);
            }
            (_, None) => reply(stream, "200 OK", "", &whole),
        });
        let world = World::new(&[list("thing", &[&server], &body)]);
        world.good(&["thing"]);
        assert!(world.cached("data/split/thing.bin").unwrap() == body, "{range}");
        assert_eq!(server.starts(), [0, 100_000, 0], "{range}");
    }
}

#[test]
fn what_an_earlier_process_left_is_useless_if_it_is_wrong() {
    let body = noise(300_000);
    let server = Server::good(body.clone());
    let world = World::new(&[list("thing", &[&server], &body)]);
    // Longer than the file; as long, with other bytes; shorter, with other bytes.
    for left in [300_001, 300_000, 5_000] {
        let part = world.path("cache/data/split/thing.bin.part");
        sdclr::fs::write(&part, &vec![7; left]).unwrap();
        world.good(&["thing"]);
        assert!(world.cached("data/split/thing.bin").unwrap() == body, "{left}");
        assert_eq!(world.files(), ["data/split/thing.bin"]);
        sdclr::fs::remove(&world.path("cache/data/split/thing.bin")).unwrap();
    }
    assert_eq!(server.starts(), [0, 0, 5_000, 0]);
}

#[test]
fn refusals_that_last_are_asked_once() {
    let body = noise(2_000);
    let mut errors = String::new();
    let mut once = |name: &str, server: Server| {
        let (world, error) = refusal(&body, &server);
        assert_eq!(server.requests().len(), 1, "{name} was asked again");
        errors += &format!("{name}\n  {error}\n");
        world
    };
    once("403", Server::fixed("403 Forbidden", "", "no"));
    once("404", Server::fixed("404 Not Found", "", "no"));
    once("wrong length", Server::fixed("200 OK", "", "short"));
    once(
        "web page",
        Server::fixed("200 OK", "Content-Type: text/html\r\n", "<html><title>Log in to the\nhotel</title></html>"),
    );
    let page = "<!DOCTYPE html><title>Busy</title>";
    once(
        "web page in disguise",
        Server::start(move |_, _, stream| {
            head(stream, "200 OK", "Content-Type: application/octet-stream\r\n");
            let _ = stream.write_all(page.as_bytes());
        }),
    );
    once(
        "web page in pieces",
        Server::start(move |_, _, stream| {
            head(stream, "200 OK", "Content-Type: application/octet-stream\r\n");
            for piece in page.as_bytes().chunks(1) {
                let _ = stream.write_all(piece);
                std::thread::sleep(Duration::from_millis(5));
            }
        }),
    );
    once(
        "too long",
        Server::start(|_, _, stream| {
            head(stream, "200 OK", "");
            let _ = stream.write_all(&noise(5_000));
        }),
    );
    let other = noise(3_000)[1_000..].to_vec();
    let kept = once("wrong hash", Server::good(other.clone()));
    let aside = format!("data/split/thing.bin.wrong-hash-{}", &sha256(&other)[..8]);
    assert_eq!(kept.files(), std::slice::from_ref(&aside));
    assert!(kept.cached(&aside).unwrap() == other);
    insta::assert_snapshot!("fetch_lasting_refusals", errors);

    let circle = Server::start(|_, request, stream| {
        reply(stream, "302 Found", &format!("Location: {}x\r\n", request.path), b"")
    });
    let (_, error) = refusal(&body, &circle);
    assert!(error.contains("it redirects in circles, too often, or away from https"), "{error}");
    assert_eq!(circle.requests().len(), 6);
}

#[test]
fn refusals_that_may_pass_are_asked_again() {
    let body = noise(200_000);
    let mut errors = String::new();
    let mut thrice = |name: &str, server: Server| {
        let (_, error) = refusal(&body, &server);
        assert_eq!(server.requests().len(), 3, "{name}");
        errors += &format!("{name}\n  {error}\n");
    };
    thrice("503", Server::fixed("503 Service Unavailable", "", "no"));
    let whole = body.clone();
    thrice("truncation", Server::start(move |_, _, stream| broken_off(stream, &whole, 1_000)));
    let whole = body.clone();
    thrice(
        "stall",
        Server::start(move |_, _, stream| {
            broken_off(stream, &whole, 1_000);
            std::thread::sleep(Duration::from_secs(2));
        }),
    );
    thrice("silence", Server::start(|_, _, _| std::thread::sleep(Duration::from_secs(2))));
    let insta_settings = {
        let mut settings = insta::Settings::clone_current();
        settings.add_filter(r"too slow: \d+ bytes in [\d.]+ s", "too slow: [N] bytes in [TIME]");
        settings.add_filter(r"\b\d\d B are kept", "[N] are kept");
        settings
    };
    let whole = body.clone();
    thrice(
        "slow loris",
        Server::start(move |_, _, stream| {
            head(stream, "200 OK", &format!("Content-Length: {}\r\n", whole.len()));
            for byte in &whole {
                if stream.write_all(&[*byte]).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }),
    );
    insta_settings.bind(|| insta::assert_snapshot!("fetch_passing_refusals", errors));

    let closed = Server::closed();
    let (_, error) = refusal(&body, &closed);
    assert!(error.contains("no connection: Connection refused"), "{error}");
}

#[test]
fn retry_after_is_honoured_up_to_its_bound() {
    for (header, least) in [("Retry-After: 1\r\n", 1.0), ("Retry-After: 9999\r\n", 1.2)] {
        let body = noise(1_000);
        let whole = body.clone();
        let server = Server::start(move |number, request, stream| match number {
            0 => reply(stream, "429 Too Many Requests", header, b""),
            _ => whole_or_rest(request, &whole, stream),
        });
        let world = World::new(&[list("thing", &[&server], &body)]);
        let start = Instant::now();
        world.good(&["thing"]);
        let seconds = start.elapsed().as_secs_f64();
        // Far above what a busy machine adds, far below 9,999.
        assert!((least..120.0).contains(&seconds), "{header}: {seconds} s");
    }
}

/// A mirror that asks to be left alone is not waited for while another one gives the file.
#[test]
fn retry_after_of_one_mirror_does_not_stop_another() {
    let body = noise(3_000_000);
    let whole = body.clone();
    let busy = Server::fixed("429 Too Many Requests", "Retry-After: 9999\r\n", "");
    // A pause at first, then it gives more than a megabyte at each try.
    let good = Server::start(move |number, request, stream| match number {
        0 => reply(stream, "503 Service Unavailable", "", b""),
        1 => broken_off(stream, &whole, 1_500_000),
        _ => whole_or_rest(request, &whole, stream),
    });
    let world = World::new(&[list("thing", &[&busy, &good], &body)]);
    let registry = sdclr::fs::read(&world.path("registry.toml")).unwrap();
    let registry =
        String::from_utf8(registry).unwrap().replace("after_most_seconds = 1.2", "after_most_seconds = 600.0");
    sdclr::fs::write(&world.path("registry.toml"), registry.as_bytes()).unwrap();
    let start = Instant::now();
    world.good(&["thing"]);
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 600.0, "{seconds} s");
    assert_eq!((busy.requests().len(), good.starts()), (1, vec![0, 0, 1_500_000]));
}

#[test]
fn mirrors_are_asked_in_turn() {
    let body = noise(300_000);
    let whole = body.clone();
    let breaks = Server::start(move |_, _, stream| broken_off(stream, &whole, 50_000));
    let other = Server::good(noise(300_001)[1..].to_vec());
    let gone = Server::fixed("404 Not Found", "", "");
    let good = Server::good(body.clone());
    let world = World::new(&[list("thing", &[&gone, &breaks, &good], &body), list("more", &[&other, &good], &body)]);
    world.good(&["thing", "more"]);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);
    assert!(world.cached("data/split/more.bin").unwrap() == body);
    assert_eq!((gone.starts(), breaks.starts()), (vec![0], vec![0]));
    // What the second mirror gave counts, since the hash tells; what the wrong one gave does not.
    let mut starts = good.starts();
    starts.sort_unstable();
    assert_eq!(starts, [0, 50_000]);
    let resumed = good.requests().into_iter().find(|request| request.start().is_some()).unwrap();
    assert_eq!(resumed.header("if-range"), None, "one server's ETag says nothing to another");
}

#[test]
fn a_proxy_is_asked_where_one_is_named() {
    let body = noise(1_000);
    let proxy = Server::good(body.clone());
    let nowhere = Server::closed();
    let text = list("thing", &[&nowhere], &body).replace(&nowhere.url, "http://files.invalid");
    let world = World::new(&[text]);
    let output = world.command(&["thing"]).env("HTTP_PROXY", &proxy.url).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(proxy.requests()[0].path, "http://files.invalid/split/thing.bin");
}

#[test]
fn a_proxy_that_refuses_is_named() {
    let body = noise(1_000);
    let (good, proxy) = (Server::good(body.clone()), Server::closed());
    let world = World::new(&[list("thing", &[&good], &body)]);
    let secret = proxy.url.replace("http://", "http://me:secret@");
    let output = world.command(&["thing"]).env("http_proxy", &secret).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let named =
        format!("Connection refused (os error 111); http_proxy names the proxy {}", &proxy.url["http://".len()..]);
    assert!(said.contains(&named) && !said.contains("secret"), "{said}");
    assert_eq!(good.requests().len(), 0);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_file_that_is_compressed_on_the_way_is_decoded() {
    let body = [noise(100_000), vec![7; 200_000]].concat();
    let packed = gzip(&body);
    let whole = packed.clone();
    // First broken off; a range of what is compressed is of no use.
    let server = Server::start(move |number, request, stream| match (number, request.start()) {
        (0, _) => {
            head(stream, "200 OK", &format!("Content-Encoding: gzip\r\nContent-Length: {}\r\n", whole.len()));
            let _ = stream.write_all(&whole[..50_000]);
        }
        (_, Some(start)) => {
            let range = format!("Content-Range: bytes {start}-{}/{0}\r\n", whole.len() - 1);
            reply(stream, "206 Partial Content", &format!("Content-Encoding: gzip\r\n{range}"), &whole[start.min(9)..]);
        }
        _ => reply(stream, "200 OK", "Content-Encoding: x-gzip\r\nContent-Type: text/html\r\n", &whole),
    });
    let world = World::new(&[list("thing", &[&server], &body)]);
    world.good(&["thing"]);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);

    // A bomb is cut off, other codings are named, and an archive that is called coded comes as it is.
    let bomb = gzip(&vec![0; 50_000_000]);
    let server = Server::start(move |_, _, stream| reply(stream, "200 OK", "Content-Encoding: gzip\r\n", &bomb));
    let (_, error) = refusal(&body, &server);
    assert!(error.contains("more than 300000 bytes came"), "{error}");
    let (_, error) = refusal(&body, &Server::fixed("200 OK", "Content-Encoding: br\r\n", "x"));
    assert!(error.contains("in the content coding 'br', which was not asked for"), "{error}");
    let whole = packed.clone();
    let server = Server::start(move |_, _, stream| reply(stream, "200 OK", "Content-Encoding: x-gzip\r\n", &whole));
    let world = World::new(&[list("thing", &[&server], &packed)]);
    world.good(&["thing"]);
    assert!(world.cached("data/split/thing.bin").unwrap() == packed);
}

#[test]
fn a_file_that_is_called_a_page_is_told_by_its_bytes() {
    let body = [b"\x93NUMPY".to_vec(), noise(5_000)].concat();
    for (status, headers) in
        [("200 OK", "Content-Type: text/html; charset=utf-8\r\n"), ("203 Non-Authoritative Information", "")]
    {
        let whole = body.clone();
        let server = Server::start(move |_, _, stream| reply(stream, status, headers, &whole));
        let world = World::new(&[list("thing", &[&server], &body)]);
        world.good(&["thing"]);
        assert!(world.cached("data/split/thing.bin").unwrap() == body, "{status}");
    }
}

#[test]
fn a_rest_that_is_too_long_is_asked_for_again_as_a_whole() {
    let body = noise(300_000);
    let whole = body.clone();
    let server = Server::start(move |number, request, stream| match (number, request.start()) {
        (0, _) => broken_off(stream, &whole, 100_000),
        (_, Some(start)) => {
            let range = format!("Content-Range: bytes {start}-{}/{}\r\n", whole.len() - 1, whole.len());
            head(stream, "206 Partial Content", &range);
            let _ = stream.write_all(&[&whole[start..], b"more"].concat());
        }
        (_, None) => reply(stream, "200 OK", "", &whole),
    });
    let world = World::new(&[list("thing", &[&server], &body)]);
    world.good(&["thing"]);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);
    assert_eq!(server.starts(), [0, 100_000, 0]);
}

/// As some proxies do: every connection ends after 64 KiB.
#[test]
fn little_at_a_time_is_progress() {
    let body = noise(640 << 10);
    let whole = body.clone();
    let server = Server::start(move |_, request, stream| {
        let start = request.start().unwrap_or(0);
        let range = format!("Content-Range: bytes {start}-{}/{}\r\n", whole.len() - 1, whole.len());
        let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
        head(stream, status, &format!("{range}ETag: \"one\"\r\nContent-Length: {}\r\n", whole.len() - start));
        let _ = stream.write_all(&whole[start..whole.len().min(start + (64 << 10))]);
    });
    let world = World::new(&[list("thing", &[&server], &body)]);
    world.good(&["thing"]);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);
    assert_eq!(server.requests().len(), 10);
}

#[test]
fn every_known_hash_is_checked() {
    let body = noise(1_000);
    let server = Server::good(body.clone());
    let mut git = Hasher::new(Algorithm::GitBlob, body.len() as u64);
    git.update(&body);
    let right = format!("md5 = '{}'\ngit_blob = '{}'", md5(&body), git.finish());
    let sha = format!("sha256 = '{}'", sha256(&body));
    let with = |hashes: &str| World::new(&[list("thing", &[&server], &body).replace(&sha, hashes)]);
    with(&format!("{sha}\n{right}")).good(&["thing"]);
    with(&right).good(&["thing"]);
    for (key, name) in [("md5", "md5"), ("git_blob", "git blob id")] {
        let at = right.find(key).unwrap() + key.len() + 4;
        let digit = if right.as_bytes()[at] == b'0' { "1" } else { "0" };
        let error = with(&format!("{}{digit}{}", &right[..at], &right[at + 1..])).error(&["thing"]);
        assert!(error.contains(&format!("its {name} is ")), "{error}");
    }
}
