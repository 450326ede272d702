//! What there is to fetch, and what a registry may say.

use proptest::prelude::*;
use sdclr::artifact::registry::{Archive, Artifact, Brought, Lists, Place, Registry, RemoteFile, Source};

use crate::server::Server;
use crate::world::{Said, TRANSFER, World, archive, list, plain, sha256};

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
        // One at a time: errors of several come as they happen.
        run(&["cifar10-checkpoints", "--jobs=1"]),
        run(&["imagenet"]),
        run(&["cifar10", "--offline"]),
    ];
    let errors: Vec<String> = errors.iter().map(|said| said.err.clone()).collect();
    insta::assert_snapshot!("fetch_errors", errors.join("\n"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let body = b"x";
    let good = Server::good(body.to_vec());
    let world = World::new(&[list("thing", &[&good], body)]);
    for arguments in [["--list", "thing"], ["--jobs=1", "thing"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = world.command(&arguments).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("error"), "{said}");
        assert_eq!(output.status.code(), Some(141));
    }
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
        archive("all", "data", "b.zip", "http://localhost/", &[], "size = 1"),
    ];
    let errors = broken.iter().map(|text| {
        let text = format!("{TRANSFER}{text}");
        let error = Registry::parse("REGISTRY", &text).unwrap_err().to_string();
        // A port is in one of them.
        error.replace(&good.url, "http://[SERVER]").replace(&good.url.replace("http", "ftp"), "ftp://[SERVER]")
    });
    let errors: Vec<String> = errors.collect();
    let zero = TRANSFER.replace("stall_seconds = 0.6", "stall_seconds = 0.0");
    let zero = Registry::parse("REGISTRY", &format!("{zero}{thing}")).unwrap_err().to_string();
    let world = World::new(&[thing]);
    sdclr::fs::write(&world.path("cache/pins.toml"), b"thing = 3").unwrap();
    let pins = world.error(&["thing"]);
    insta::assert_snapshot!("fetch_registry_errors", format!("{}\n{zero}\n{pins}", errors.join("\n")));
}

/// What somebody else's registry may say and cost.
#[test]
fn foreign_registries_are_bounded() {
    let good = Server::good(Vec::new());
    let thing = list("thing", &[&good], b"x");
    let hostile = "\\u001b[2J\\u001b]0;pwn\\u0007\\u202e";
    let errors = [
        thing.replace("'thing'", &format!("'{}'", "a".repeat(100_000))),
        thing.replace("'thing'", &format!("\"{hostile}\"")),
        thing.replace("'split/thing.bin'", &format!("\"split/{hostile}\"")),
        thing.replace("'split/thing.bin'", &format!("'{}'", "a".repeat(100_000))),
        format!("a = {}", "[".repeat(100_000)),
    ];
    for text in errors {
        let error = Registry::parse("REGISTRY", &format!("{TRANSFER}{text}")).unwrap_err().to_string();
        assert!(error.len() < 1000 && !error.contains(|c: char| c.is_control() || c == '\u{202e}'), "{error:?}");
    }
    let world = World::new(&[thing.replace("'a list'", &format!("\"{hostile}{}\"", "b".repeat(100_000)))]);
    let said = world.good(&["--list"]);
    let plain = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
    assert!(said.out.chars().all(plain) && said.out.len() < 2000, "{:?}", said.out);
    let fifo = world.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in ["/dev/zero", fifo.to_str().unwrap()] {
        let output = plain_list(path);
        assert!(output.contains("it is a folder or a device, not a file"), "{output}");
    }
}

fn plain_list(registry: &str) -> String {
    let output = plain(&["fetch", "--list", "--cache", "/nonexistent", "--registry", registry]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_list_is_json_too() {
    let good = Server::good(b"x".to_vec());
    let pack = archive("pack", "data", "b.zip", "http://localhost/", &[], "at_most = 1");
    let world = World::new(&[list("thing", &[&good], b"x"), pack]);
    world.good(&["thing"]);
    let found: serde_json::Value = serde_json::from_str(&world.good(&["--list", "--json"]).out).unwrap();
    let entry = |name: &str, about: &str, groups: &[&str], bytes: Option<u64>, state: &str| {
        serde_json::json!({
            "name": name, "about": about, "licence": "none", "groups": groups, "suites": [], "bytes": bytes,
            "state": state, "detail": null, "pinned": false, "brought": false,
        })
    };
    let entries =
        [entry("thing", "a list", &[], Some(1), "present"), entry("pack", "an archive", &["all"], None, "missing")];
    assert_eq!(found, serde_json::json!({ "format": 1, "cache": "[DIR]/cache", "artifacts": entries }));
    assert_eq!(world.fetch(&["--json", "thing"]).code, Some(2));
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
