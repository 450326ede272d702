//! `sdclr fetch` against a server that misbehaves: what is in the cache afterwards is right or not there, and every
//! failure is one clear error.

mod server;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use sdclr::artifact::hash::{Algorithm, Hasher};
use sdclr::artifact::registry::{Archive, Artifact, Brought, Lists, Place, Registry, RemoteFile, Source};
use server::{Server, broken_off, head, reply, whole_or_rest};
use tempfile::TempDir;

/// Short patience, so that the tests are quick.
const TRANSFER: &str = "
[transfer]
attempts = 3
connect_seconds = 2.0
stall_seconds = 0.6
slow_window_seconds = 0.4
slow_bytes_per_second = 1000
backoff_seconds = 0.02
backoff_most_seconds = 0.1
retry_after_most_seconds = 1.2
redirects = 5
";

fn sha256(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(Algorithm::Sha256, 0);
    hasher.update(bytes);
    hasher.finish()
}

/// Bytes that no compression and no repetition makes easy, the same each time.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// An artefact of one list, `split/NAME.bin`, at every one of `servers`.
fn list(name: &str, servers: &[&Server], body: &[u8]) -> String {
    let base: Vec<String> = servers.iter().map(|server| format!("{}/", server.url)).collect();
    let (size, hash) = (body.len(), sha256(body));
    format!(
        "[[artifact]]\nname = '{name}'\nabout = 'a list'\nplace = 'data'\nlicence = 'none'\nnote = ''\n\
         [artifact.source.lists]\nbase = {base:?}\n\
         [[artifact.source.lists.files]]\npath = 'split/{name}.bin'\nsize = {size}\nsha256 = '{hash}'\n"
    )
}

/// An artefact of one archive; `more` are further keys of its file.
fn archive(name: &str, place: &str, path: &str, url: &str, marks: &[&str], more: &str) -> String {
    format!(
        "[[artifact]]\nname = '{name}'\nabout = 'an archive'\nplace = '{place}'\ngroups = ['all']\nlicence = 'none'\nnote = ''\n\
         [artifact.source.archive]\nmarks = {marks:?}\n[artifact.source.archive.file]\npath = '{path}'\nurls = ['{url}']\n{more}\n"
    )
}

/// A cache and a registry of one test.
struct World {
    folder: TempDir,
}

impl World {
    fn new(artifacts: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("{TRANSFER}\n{}", artifacts.join("\n"));
        sdclr::fs::write(&folder.path().join("registry.toml"), text.as_bytes()).unwrap();
        Self { folder }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = plain(&["fetch"]);
        command.args(arguments);
        command.arg("--cache").arg(self.path("cache")).arg("--registry").arg(self.path("registry.toml"));
        command
    }

    fn fetch(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments).output().unwrap(), self.folder.path())
    }

    /// Fetches and must succeed.
    fn good(&self, arguments: &[&str]) -> Said {
        let said = self.fetch(arguments);
        assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
        said
    }

    /// Fetches and must fail with one error, which it gives.
    fn error(&self, arguments: &[&str]) -> String {
        let said = self.fetch(arguments);
        assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
        let errors: Vec<&str> = said.err.lines().filter(|line| line.starts_with("error:")).collect();
        assert_eq!(errors.len(), 1, "{}", said.err);
        errors[0].to_owned()
    }

    fn cached(&self, relative: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path("cache").join(relative)).ok()
    }

    /// Every file of the cache but locks, as relative paths.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path) }
            }
        }
        let (mut found, root) = (Vec::new(), self.path("cache"));
        walk(&root, &mut found);
        let mut names: Vec<String> =
            found.iter().map(|path| path.strip_prefix(&root).unwrap().display().to_string()).collect();
        names.retain(|name| !name.starts_with("locks/"));
        names.sort();
        names
    }
}

/// The program with nothing of this user's surroundings.
fn plain(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"));
    for name in ["SDCLR_DATA", "SDCLR_CACHE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.env("COLUMNS", "110").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a command said, without what differs from run to run.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output, folder: &Path) -> Self {
        let clean = |bytes: &[u8]| clean(&String::from_utf8_lossy(bytes), folder);
        Self { code: output.status.code(), out: clean(&output.stdout), err: clean(&output.stderr) }
    }
}

/// Ports, folders and chance taken out.
fn clean(text: &str, folder: &Path) -> String {
    let text = text.replace(&folder.display().to_string(), "[DIR]");
    let mut clean = String::new();
    for line in text.lines() {
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("127.0.0.1:") {
            clean += before;
            clean += "[SERVER]";
            rest = after.trim_start_matches(|letter: char| letter.is_ascii_digit());
        }
        match rest.split_once("next try in ") {
            Some((before, _)) => clean += &format!("{before}next try in [TIME]"),
            None => clean += rest,
        }
        clean.push('\n');
    }
    clean
}

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
        let part = world.path("cache/downloads/split--thing.bin.part");
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
        "too long",
        Server::start(|_, _, stream| {
            head(stream, "200 OK", "");
            let _ = stream.write_all(&noise(5_000));
        }),
    );
    let other = noise(3_000)[1_000..].to_vec();
    let kept = once("wrong hash", Server::good(other.clone()));
    let aside = format!("downloads/split--thing.bin.wrong-hash-{}", &sha256(&other)[..8]);
    assert_eq!(kept.files(), [aside.clone()]);
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
    for (header, least, most) in [("Retry-After: 1\r\n", 1.0, 2.5), ("Retry-After: 9999\r\n", 1.2, 2.7)] {
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
        assert!((least..most).contains(&seconds), "{header}: {seconds} s");
    }
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
fn one_failure_does_not_stop_the_others() {
    let body = noise(1_000);
    let (good, gone) = (Server::good(body.clone()), Server::fixed("404 Not Found", "", ""));
    let names = ["a", "b", "c", "d"];
    let artifacts: Vec<String> =
        names.iter().map(|name| list(name, &[if *name == "b" { &gone } else { &good }], &body)).collect();
    for jobs in ["1", "4"] {
        let world = World::new(&artifacts);
        let error = world.error(&[names.as_slice(), &["--jobs", jobs]].concat());
        assert!(error.starts_with("error: b: no mirror gave split/b.bin"), "{error}");
        assert_eq!(world.files(), ["data/split/a.bin", "data/split/c.bin", "data/split/d.bin"]);
    }
}

/// Sends `body` in pieces with a pause after each.
fn trickle(stream: &mut std::net::TcpStream, body: &[u8], piece: usize, pause: Duration) {
    for piece in body.chunks(piece) {
        if stream.write_all(piece).is_err() {
            return;
        }
        std::thread::sleep(pause);
    }
}

fn wait_for_growth(part: &Path, bytes: u64, child: &mut Child) {
    let start = Instant::now();
    while part.metadata().map_or(0, |metadata| metadata.len()) < bytes {
        assert!(start.elapsed() < Duration::from_secs(20), "the download did not come so far");
        assert!(child.try_wait().unwrap().is_none(), "it was over before it was killed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_download_is_resumed() {
    let body = noise(2_000_000);
    let whole = body.clone();
    let server = Server::start(move |number, request, stream| match number {
        0 | 1 => {
            let start = request.start().unwrap_or(0);
            let range = format!("Content-Range: bytes {start}-{}/{}\r\n", whole.len() - 1, whole.len());
            let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
            head(stream, status, &format!("{range}ETag: \"one\"\r\nContent-Length: {}\r\n", whole.len() - start));
            trickle(stream, &whole[start..], 20_000, Duration::from_millis(20));
        }
        _ => whole_or_rest(request, &whole, stream),
    });
    let world = World::new(&[list("thing", &[&server], &body)]);
    let part = world.path("cache/downloads/split--thing.bin.part");
    for least in [300_000, 800_000] {
        let mut child = world.command(&["thing"]).spawn().unwrap();
        wait_for_growth(&part, least, &mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(world.cached("data/split/thing.bin").is_none());
    }
    let shown = world.good(&["--list"]).out;
    assert!(shown.contains("partial (4"), "{shown}");
    world.good(&["thing"]);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);
    let starts = server.starts();
    assert_eq!(starts.len(), 3);
    assert!(starts[0] == 0 && starts[1] >= 300_000 && starts[2] >= 800_000, "{starts:?}");
    assert_eq!(server.requests()[2].header("if-range"), Some("\"one\""));
    assert_eq!(world.files(), ["data/split/thing.bin"]);
}

#[test]
fn two_processes_download_once() {
    let body = noise(400_000);
    let whole = body.clone();
    let server = Server::start(move |_, _, stream| {
        head(stream, "200 OK", &format!("Content-Length: {}\r\n", whole.len()));
        trickle(stream, &whole, 20_000, Duration::from_millis(40));
    });
    let world = World::new(&[list("thing", &[&server], &body)]);
    let mut first = world.command(&["thing"]).spawn().unwrap();
    wait_for_growth(&world.path("cache/downloads/split--thing.bin.part"), 1, &mut first);
    let second = world.good(&["thing"]);
    assert!(first.wait().unwrap().success());
    assert!(
        second.err.contains("thing: another process is at work on it; waiting until that is done"),
        "{}",
        second.err
    );
    assert_eq!(server.requests().len(), 1);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);
}

#[test]
fn offline_opens_no_connection() {
    let body = noise(1_000);
    let server = Server::good(body.clone());
    let packed = zip_of(&[("folder/a.txt", b"a")]);
    let packed_server = Server::good(packed.clone());
    let known = format!("size = {}\nsha256 = '{}'", packed.len(), sha256(&packed));
    let artifacts = [
        list("thing", &[&server], &body),
        archive("pack", "data", "pack.zip", &format!("{}/pack.zip", packed_server.url), &[], &known),
    ];
    let world = World::new(&artifacts);
    let error = world.error(&["thing", "--offline"]);
    insta::assert_snapshot!("fetch_offline", error);
    assert_eq!(server.requests().len(), 0);
    world.good(&["thing", "pack"]);
    world.good(&["thing", "pack", "--offline"]);
    assert_eq!((server.requests().len(), packed_server.requests().len()), (1, 1));
    // The archive is there, what it holds was lost: that needs no connection.
    std::fs::remove_dir_all(world.path("cache/data/folder")).unwrap();
    world.good(&["pack", "--offline"]);
    assert_eq!(world.cached("data/folder/a.txt").unwrap(), b"a");
    assert_eq!(packed_server.requests().len(), 1);
}

/// A zip file of these entries.
fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, body) in entries {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(body).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Two archives without a published hash, as the authors' are.
fn checkpoints(url: &str) -> [String; 2] {
    [("pretrain", "/model_2000.pt"), ("tune", "/best_model.pt")].map(|(kind, mark)| {
        let (name, path) = (format!("checkpoints-{kind}"), format!("checkpoints-{kind}.zip"));
        archive(&name, "published", &path, &format!("{url}/{kind}?id=1"), &[mark], "at_most = 100000")
    })
}

#[test]
fn without_a_hash_the_first_download_is_pinned() {
    let packed = zip_of(&[("checkpoints/run/model_2000.pt", b"weights")]);
    let server = Server::good(packed.clone());
    let world = World::new(&checkpoints(&server.url));
    let refused = world.error(&["checkpoints-pretrain"]);
    assert_eq!(server.requests().len(), 0, "it was downloaded for nothing");
    let pinned = world.good(&["checkpoints-pretrain", "--pin"]);
    assert_eq!(world.cached("published/checkpoints/run/model_2000.pt").unwrap(), b"weights");
    let pins = String::from_utf8(world.cached("pins.toml").unwrap()).unwrap();
    let listed = world.good(&["--list"]).out;
    assert!(listed.contains("present, pinned"), "{listed}");

    // Somebody else with these pins gets the same bytes without --pin, or an error.
    let other = World::new(&checkpoints(&server.url));
    let shared = world.path("cache/pins.toml");
    let with_pins = ["checkpoints-pretrain", "--pins", shared.to_str().unwrap()];
    other.good(&with_pins);
    let changed = Server::good(zip_of(&[("checkpoints/run/model_2000.pt", b"strange")]));
    let victim = World::new(&checkpoints(&changed.url));
    let mismatch = victim.error(&with_pins).replace(&world.folder.path().display().to_string(), "[OTHER]");
    assert!(victim.cached("published/checkpoints/run/model_2000.pt").is_none());
    // --pin does not overrule a pin.
    victim.error(&[with_pins.as_slice(), &["--pin"]].concat());
    insta::assert_snapshot!("fetch_pins", format!("{refused}\n{}{}\n{pins}\n{mismatch}", pinned.err, pinned.out));
}

#[test]
fn a_file_that_was_brought_is_told_from_its_siblings() {
    let server = Server::fixed("404 Not Found", "", "");
    let world = World::new(&checkpoints(&server.url));
    let save = |name: &str, bytes: &[u8]| {
        sdclr::fs::write(&world.path(name), bytes).unwrap();
        world.path(name).to_str().unwrap().to_owned()
    };
    let pretrain = save("from a browser.zip", &zip_of(&[("checkpoints/run/model_2000.pt", b"weights")]));
    let tune = save(
        "b.zip",
        &zip_of(&[("checkpoints_tune/run/best_model.pt", b"probe"), ("checkpoints_tune/run/log.txt", b"")]),
    );
    let changed = save("c.zip", &zip_of(&[("checkpoints/run/model_2000.pt", b"strange")]));
    let both = save("d.zip", &zip_of(&[("a/model_2000.pt", b""), ("a/best_model.pt", b"")]));
    let neither = save("e.zip", &zip_of(&[("a/readme", b"")]));
    let page = save("f.zip", b"<html>");
    let brought = |path: &str| world.fetch(&["all", "--from", path, "--pin"]);
    let mut said = String::new();
    for path in [&pretrain, &tune, &pretrain, &changed, &both, &neither, &page] {
        let result = brought(path);
        said += &format!("{}{}{:?}\n", result.err, result.out, result.code);
    }
    // Named alone, a file is what its name says; but a file that is no archive is never pinned.
    let single = world.error(&["checkpoints-tune", "--from", &pretrain, "--pin"]);
    let fresh = World::new(&checkpoints(&server.url));
    sdclr::fs::write(&fresh.path("f.zip"), b"<html>").unwrap();
    let no_archive = fresh.error(&["checkpoints-tune", "--from", fresh.path("f.zip").to_str().unwrap(), "--pin"]);
    let folder = fresh.error(&["checkpoints-tune", "--from", fresh.folder.path().to_str().unwrap(), "--pin"]);
    assert!(fresh.cached("pins.toml").is_none());
    insta::assert_snapshot!("fetch_from", format!("{said}{single}\n{no_archive}\n{folder}"));
    assert_eq!(server.requests().len(), 0);
    assert_eq!(world.cached("published/checkpoints/run/model_2000.pt").unwrap(), b"weights");
    assert_eq!(world.cached("published/checkpoints_tune/run/best_model.pt").unwrap(), b"probe");
}

#[test]
fn lists_are_brought_as_a_folder() {
    let body = noise(1_000);
    let server = Server::fixed("404 Not Found", "", "");
    let world = World::new(&[list("thing", &[&server], &body)]);
    let clone = world.path("clone");
    sdclr::fs::write(&clone.join("split/thing.bin"), &body).unwrap();
    world.good(&["thing", "--from", clone.to_str().unwrap()]);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);
    sdclr::fs::write(&clone.join("split/thing.bin"), b"other").unwrap();
    let wrong = world.error(&["thing", "--from", clone.to_str().unwrap()]);
    assert!(wrong.contains("is not split/thing.bin: its length is 5 bytes, expected 1000 bytes"), "{wrong}");
    assert!(world.cached("data/split/thing.bin").unwrap() == body, "a good file was replaced by a wrong one");
}

/// A page in the manner of Google Drive's.
fn drive_page(title: &str, body: &str) -> String {
    format!("<!DOCTYPE html><html><head><title>Google Drive - {title}</title></head><body>{body}</body></html>")
}

#[test]
fn drive_asks_to_confirm_and_gets_its_answer() {
    let packed = zip_of(&[("checkpoints/run/model_2000.pt", b"weights")]);
    let whole = packed.clone();
    let server = Server::start(move |_, request, stream| {
        if request.path.contains("uuid=a%26b-1") && request.path.contains("confirm=t") {
            return whole_or_rest(request, &whole, stream);
        }
        let form = "<p>Google Drive can't scan this file for viruses.</p>\
            <form id=\"download-form\" action=\"/download\" method=\"get\"><input type=\"submit\" value=\"Download anyway\"/>\
            <input type=\"hidden\" name=\"id\" value=\"1\"><input type='hidden' name='export' value='download'>\
            <input type=\"hidden\" name=\"confirm\" value=\"t\"><input type=\"hidden\" name=\"uuid\" value=\"a&amp;b-1\"></form>";
        let page = drive_page("Virus scan warning", form);
        reply(stream, "200 OK", "Content-Type: text/html; charset=utf-8\r\n", page.as_bytes());
    });
    let world = World::new(&checkpoints(&server.url));
    world.good(&["checkpoints-pretrain", "--pin"]);
    assert!(world.cached("downloads/checkpoints-pretrain.zip").unwrap() == packed);
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/pretrain?id=1", "/download?id=1&export=download&confirm=t&uuid=a%26b-1"]);
}

#[test]
fn what_drive_says_instead_of_the_file_is_named() {
    let form = |action: &str| {
        format!(
            "<form id=\"download-form\" action=\"{action}\"><input type=\"hidden\" name=\"confirm\" value=\"t\"></form>"
        )
    };
    let pages = [
        ("quota", drive_page("Quota exceeded", "Too many users have viewed or downloaded this file recently.")),
        ("login", drive_page("Sign in", "<a href='https://accounts.google.com/ServiceLogin'>to continue</a>")),
        ("access", drive_page("Access denied", "You need access. Ask for it, or switch accounts.")),
        ("virus", drive_page("Infected file", "This file is infected with a virus. Only its owner may have it.")),
        ("no form", drive_page("Virus scan warning", "It is too large to be scanned.")),
        ("foreign form", drive_page("Virus scan warning", &form("http://example.org/download"))),
        ("confirms for ever", drive_page("Virus scan warning", &form("/again"))),
        ("gone", drive_page("Not found", "Error 404: the file does not exist.")),
    ];
    let mut said = String::new();
    for (name, page) in pages {
        let server =
            Server::start(move |_, _, stream| reply(stream, "200 OK", "Content-Type: text/html\r\n", page.as_bytes()));
        let world = World::new(&checkpoints(&server.url));
        said += &format!("{name}\n  {}\n", world.error(&["checkpoints-pretrain", "--pin"]));
        assert!(world.cached("pins.toml").is_none() && world.cached("downloads/checkpoints-pretrain.zip").is_none());
        assert_eq!(server.requests().len(), if name == "confirms for ever" { 2 } else { 1 }, "{name}");
    }
    insta::assert_snapshot!("fetch_drive_obstacles", said);
}

/// Runs `command` in a mount of 256 KiB at `mount`; `None` where nobody may mount.
fn on_a_small_disk(mount: &Path, command: &Command) -> Option<Output> {
    let inside = |body: &str| format!("mount -t tmpfs -o size=256k tmpfs '{}' && {body}", mount.display());
    let unshared = |body: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &inside(body), "sh"]);
        command
    };
    if !unshared("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this machine lets nobody mount a small file system");
        return None;
    }
    let mut inner = unshared("exec \"$@\"");
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inner.env(name, value),
            None => inner.env_remove(name),
        };
    }
    Some(inner.arg(command.get_program()).args(command.get_args()).output().unwrap())
}

#[test]
fn a_disk_that_is_or_gets_full_is_named() {
    let body = noise(400_000);
    // One file of known size; one of which the server tells no length either.
    let unsized_body = body.clone();
    let server = Server::start(move |_, request, stream| match request.path.contains("known") {
        true => whole_or_rest(request, &unsized_body, stream),
        false => {
            head(stream, "200 OK", "");
            let _ = stream.write_all(&unsized_body);
        }
    });
    let unknown = list("unknown", &[&server], &body).replace(&format!("size = {}", body.len()), "at_most = 1000000");
    let world = World::new(&[list("known", &[&server], &body), unknown.replace("unknown", "untold")]);
    std::fs::create_dir(world.path("cache")).unwrap();
    let mut said = String::new();
    for name in ["known", "untold"] {
        let Some(output) = on_a_small_disk(&world.path("cache"), &world.command(&[name])) else { return };
        let output = Said::of(output, world.folder.path());
        assert_eq!(output.code, Some(1), "{}", output.err);
        said += output.err.lines().find(|line| line.starts_with("error:")).unwrap();
        said.push('\n');
    }
    assert_eq!(server.requests().len(), 2, "a full disk is no reason to ask again");
    insta::assert_snapshot!("fetch_full_disk", said);
}

#[test]
fn verify_finds_and_moves_what_is_wrong_and_fetch_mends_it() {
    let body = noise(1_000);
    let packed = zip_of(&[("folder/a.txt", b"a"), ("folder/b.txt", b"b")]);
    let (server, packs) = (Server::good(body.clone()), Server::good(packed.clone()));
    let known = format!("size = {}\nsha256 = '{}'\nmd5 = '{}'", packed.len(), sha256(&packed), md5(&packed));
    let world = World::new(&[
        list("thing", &[&server], &body),
        archive("pack", "data", "pack.zip", &format!("{}/pack.zip", packs.url), &[], &known),
        list("never", &[&server], &body),
    ]);
    let nothing = world.good(&["--verify"]).out;
    world.good(&["thing", "pack"]);
    let fine = world.good(&["--verify"]).out;
    let absent = world.fetch(&["--verify", "never"]);
    assert_eq!(absent.code, Some(1));
    let spoil = |name: &str, bytes: &[u8]| sdclr::fs::write(&world.path("cache").join(name), bytes).unwrap();
    spoil("data/split/thing.bin", &noise(1_001)[1..]);
    spoil("data/folder/b.txt", b"c");
    spoil("downloads/pack.zip", &noise(packed.len()));
    let wrong = world.fetch(&["--verify"]);
    assert_eq!(wrong.code, Some(1), "{}", wrong.err);
    assert!(world.cached("data/split/thing.bin").is_none() && world.cached("data/folder/b.txt").is_none());
    insta::assert_snapshot!("fetch_verify", format!("{nothing}{fine}{}{}", absent.out, wrong.out));
    world.good(&["thing", "pack"]);
    world.good(&["--verify"]);
    assert_eq!(world.cached("data/folder/b.txt").unwrap(), b"b");
    assert_eq!((server.requests().len(), packs.requests().len()), (2, 2));
}

fn md5(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(Algorithm::Md5, 0);
    hasher.update(bytes);
    hasher.finish()
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

/// Archives whose content is not what is known of it.
#[test]
fn known_files_inside_are_checked() {
    let packed = zip_of(&[("folder/a.txt", b"a")]);
    let server = Server::good(packed.clone());
    let known = format!("size = {}\nsha256 = '{}'", packed.len(), sha256(&packed));
    let with = |inside: &str| {
        let text = archive("pack", "data", "pack.zip", &format!("{}/pack.zip", server.url), &[], &known);
        World::new(&[format!("{text}[artifact.source.archive.md5_inside]\n{inside}\n")])
    };
    with(&format!("'folder/a.txt' = '{}'", md5(b"a"))).good(&["pack"]);
    let wrong = with(&format!("'folder/a.txt' = '{}'", md5(b"b")));
    let lacking = with(&format!("'folder/b.txt' = '{}'", md5(b"b")));
    let errors = [wrong.error(&["pack"]), lacking.error(&["pack"])];
    assert!(wrong.cached("data/folder/a.txt").is_none());
    insta::assert_snapshot!("fetch_inside", errors.join("\n"));
}

#[test]
fn imagenet_is_brought_and_checked() {
    let lists = "train/n1/a.JPEG 0\ntrain/n1/b.JPEG 0\nval/n1/c.JPEG 0\n";
    let server = Server::good(lists.as_bytes().to_vec());
    let tars = ["train.tar", "val.tar"].map(|name| {
        format!("[[artifact.source.brought.files]]\npath = '{name}'\nsize = 3\nmd5 = '{}'\n", md5(name[..3].as_bytes()))
    });
    let imagenet = format!(
        "[[artifact]]\nname = 'imagenet'\nabout = ''\nplace = 'data'\nlicence = 'terms of example.org'\nnote = ''\n\
         [artifact.source.brought]\nlists = ['thing']\n{}{}",
        tars[0], tars[1]
    );
    let world = World::new(&[list("thing", &[&server], lists.as_bytes()), imagenet]);
    let mut said = world.error(&["imagenet"]);
    let folder = world.path("images");
    let mut bring = |files: &[(&str, &str)]| {
        for (name, text) in files {
            sdclr::fs::write(&folder.join(name), text.as_bytes()).unwrap();
        }
        let outcome = world.fetch(&["imagenet", "--from", folder.to_str().unwrap()]);
        said += &format!("\n{}{}", outcome.err, outcome.out);
    };
    bring(&[("readme", "")]);
    bring(&[("train/n1/a.JPEG", "")]);
    world.good(&["thing"]);
    bring(&[]);
    bring(&[("train/n1/b.JPEG", ""), ("val/n1/c.JPEG", "")]);
    bring(&[("train.tar", "tra"), ("val.tar", "va")]);
    bring(&[("val.tar", "vol")]);
    bring(&[("val.tar", "val")]);
    let single = world.good(&["imagenet", "--from", folder.join("val.tar").to_str().unwrap()]);
    let other = world.error(&["imagenet", "--from", folder.join("readme").to_str().unwrap()]);
    insta::assert_snapshot!("fetch_imagenet", format!("{said}\n{}{}{other}", single.err, single.out));
}

#[test]
fn what_there_is_to_fetch() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = plain(&["fetch"]).args(arguments).env("SDCLR_CACHE", folder.path()).output().unwrap();
        Said::of(output, folder.path())
    };
    insta::assert_snapshot!("fetch_list", run(&["--list"]).out);
    let suite = run(&["--suite", "cifar10-lt", "--list"]).out;
    let names: Vec<&str> =
        suite.lines().skip(1).map_while(|line| line.split(' ').next().filter(|name| !name.is_empty())).collect();
    assert_eq!(names, ["cifar10", "cifar10-splits"]);
    let errors = [
        run(&[]),
        run(&["cifra10"]),
        run(&["--suite", "digits-lt"]),
        run(&["cifar10-checkpoints"]),
        run(&["imagenet"]),
        run(&["cifar10", "--offline"]),
    ];
    let errors: Vec<String> = errors.iter().map(|said| said.err.clone()).collect();
    insta::assert_snapshot!("fetch_errors", errors.join("\n"));
}

#[test]
fn registries_that_contradict_themselves_are_refused() {
    let good = Server::good(Vec::new());
    let thing = list("thing", &[&good], b"x");
    let known = format!("sha256 = '{}'", sha256(b"x"));
    let broken = [
        thing.replace("name = 'thing'", "name = 'a thing'"),
        format!("{thing}{thing}"),
        thing.replace("split/thing.bin", "../thing.bin"),
        thing.replace("split/thing.bin", "/etc/thing.bin"),
        thing.replace(&known, "sha256 = 'abc'"),
        thing.replace(&known, ""),
        thing.replace("size = 1", ""),
        thing.replace("http://", "ftp://"),
        thing.replace("licence", "license"),
        archive("pack", "data", "a/b.zip", "http://localhost/", &[], "size = 1"),
        format!("{}{}", archive("all", "data", "b.zip", "http://localhost/", &[], "size = 1"), ""),
    ];
    let errors: Vec<String> =
        broken.iter().map(|text| World::new(std::slice::from_ref(text)).error(&["thing"])).collect();
    let world = World::new(&[thing]);
    sdclr::fs::write(&world.path("cache/pins.toml"), b"thing = 3").unwrap();
    let pins = world.error(&["thing"]);
    insta::assert_snapshot!("fetch_registry_errors", format!("{}\n{pins}", errors.join("\n")));
}

/// The real images, packed as the official archive is, are fetched, unpacked, and found by a command that names no folder.
#[test]
fn real_cifar10_is_fetched_and_found() {
    let Some(data) = std::env::var_os("SDCLR_DATA").map(PathBuf::from) else {
        eprintln!("skipped: SDCLR_DATA names no folder with CIFAR");
        return;
    };
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(encoder);
    let mut inside = String::new();
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        let name = format!("cifar-10-batches-bin/{name}.bin");
        let body = std::fs::read(data.join(&name)).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, &name, body.as_slice()).unwrap();
        let official = Registry::load(None).unwrap();
        let Source::Archive(cifar) = &official.artifacts[0].source else { panic!("CIFAR-10 is no archive") };
        inside += &format!("'{name}' = '{}'\n", cifar.md5_inside[&name]);
    }
    let packed = tar.into_inner().unwrap().finish().unwrap();
    let server = Server::good(packed.clone());
    let splits = Server::start({
        let data = data.clone();
        move |_, request, stream| whole_or_rest(request, &std::fs::read(data.join(&request.path[1..])).unwrap(), stream)
    });
    let known = format!("size = {}\nsha256 = '{}'\nmd5 = '{}'", packed.len(), sha256(&packed), md5(&packed));
    let cifar = archive(
        "cifar10",
        "data",
        "cifar-10-binary.tar.gz",
        &format!("{}/~kriz/cifar-10-binary.tar.gz", server.url),
        &[],
        &known,
    );
    // The published lists with their published hashes, from here.
    let mut official = Registry::load(None).unwrap();
    official.artifacts.retain(|artifact| artifact.name == "cifar10-splits");
    let Source::Lists(lists) = &mut official.artifacts[0].source else { panic!("the splits are no lists") };
    lists.base = vec![format!("{}/", splits.url)];
    let lists = toml::to_string(&official).unwrap();
    let lists = &lists[lists.find("[[artifact]]").unwrap()..];
    let world = World::new(&[format!("{cifar}[artifact.source.archive.md5_inside]\n{inside}\n{lists}")]);
    world.good(&["cifar10", "cifar10-splits"]);
    world.good(&["--verify", "cifar10", "cifar10-splits"]);
    assert_eq!(splits.requests().len(), 17);
    for name in ["data_batch_3", "test_batch"] {
        let name = format!("cifar-10-batches-bin/{name}.bin");
        assert!(world.cached(&format!("data/{name}")).unwrap() == std::fs::read(data.join(&name)).unwrap());
    }
    let mut found = plain(&["pretrain", "--recipe", "cifar10-lt/sdclr", "--split", "1", "--pretrain-split", "D_i"]);
    found.args([
        "--limit-images",
        "16",
        "--limit-epochs",
        "1",
        "--device",
        "cpu",
        "--set",
        "network=resnet10",
        "width=4",
    ]);
    found.arg("--out").arg(world.path("run")).env("SDCLR_CACHE", world.path("cache"));
    let output = found.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("differ from the official"), "{said}");
    let record = std::fs::read_to_string(world.path("run/result.json")).unwrap();
    assert!(record.contains("32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"));
}

fn remote_file() -> impl Strategy<Value = RemoteFile> {
    let hash = |digits: usize| prop::option::of(prop::string::string_regex(&format!("[0-9a-f]{{{digits}}}")).unwrap());
    let urls = prop::collection::vec("https?://[a-z]{1,9}\\.org/[a-zA-Z0-9 '\"&=?%~-]{0,20}", 0..3);
    ("[a-zA-Z0-9_' .-]{0,12}[a-z]", urls, any::<u32>(), hash(64), hash(32), hash(40)).prop_map(
        |(path, urls, size, sha256, md5, git_blob)| {
            let size = Some(u64::from(size));
            let git_blob = git_blob.or_else(|| Some("0".repeat(40)));
            RemoteFile { path, urls, size, at_most: None, sha256, md5, git_blob }
        },
    )
}

fn source() -> impl Strategy<Value = Source> {
    let names = || prop::collection::vec("[a-z0-9/_.]{1,9}", 0..3);
    let inside = prop::collection::btree_map("[a-z/.\"' ]{1,9}", "[0-9a-f]{32}", 0..3);
    prop_oneof![
        (remote_file(), names(), prop::option::of(any::<u32>()), inside).prop_map(
            |(file, marks, unpacked, md5_inside)| {
                Source::Archive(Archive { file, marks, unpacked: unpacked.map(u64::from), md5_inside })
            }
        ),
        prop::collection::vec(remote_file(), 1..4)
            .prop_map(|files| Source::Lists(Lists { base: vec!["https://example.org/".to_owned()], files })),
        (prop::collection::vec(remote_file(), 1..3), names())
            .prop_map(|(files, lists)| Source::Brought(Brought { lists, files })),
    ]
}

proptest! {
    /// Whatever an entry of the registry says, written and read again it says the same.
    #[test]
    fn registry_entries_round_trip(
        name in "[a-z0-9-]{1,20}",
        texts in prop::array::uniform3("[ -~äß\n]{0,30}"),
        published in any::<bool>(),
        source in source(),
    ) {
        let [about, licence, note] = texts;
        let place = if published { Place::Published } else { Place::Data };
        let mut registry = Registry::load(None).unwrap();
        let suites = vec!["cifar10-lt".to_owned()];
        registry.artifacts = vec![Artifact { name, about, groups: vec![], suites, place, licence, note, source }];
        let text = toml::to_string(&registry).unwrap();
        prop_assert_eq!(Registry::parse("a property", &text).unwrap(), registry);
    }
}

#[test]
fn the_embedded_registry_round_trips() {
    let registry = Registry::load(None).unwrap();
    assert_eq!(Registry::parse("again", &toml::to_string(&registry).unwrap()).unwrap(), registry);
    let lists: usize = registry
        .artifacts
        .iter()
        .filter(|artifact| matches!(artifact.source, Source::Lists(_)))
        .map(|artifact| artifact.files().len())
        .sum();
    assert_eq!((registry.artifacts.len(), lists), (15, 48));
}
