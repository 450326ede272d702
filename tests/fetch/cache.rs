//! The cache that processes share: killed, at once, offline, on a full disk, spoilt; and the whole way with real images.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use sdclr::artifact::registry::{Registry, Source};

use crate::server::{Server, head, whole_or_rest};
use crate::skip::skip;
use crate::world::{Said, World, archive, checkpoints, list, md5, noise, plain, sha256, stored_zip_of, zip_of};

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
    let part = world.path("cache/data/split/thing.bin.part");
    for least in [300_000, 800_000] {
        let mut child = world.command(&["thing"]).spawn().unwrap();
        wait_for_growth(&part, least, &mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(world.cached("data/split/thing.bin").is_none());
    }
    let shown = world.good(&["--list"]).out;
    assert!(shown.contains("partial (0 of 1 files)"), "{shown}");
    world.good(&["thing"]);
    assert!(world.cached("data/split/thing.bin").unwrap() == body);
    let starts = server.starts();
    assert_eq!(starts.len(), 3);
    assert!(starts[0] == 0 && starts[1] >= 300_000 && starts[2] >= 800_000, "{starts:?}");
    assert_eq!(server.requests()[2].header("if-range"), Some("\"one\""));
    assert_eq!(world.files(), ["data/split/thing.bin"]);
}

/// What an archive holds is nowhere where commands look for data before all of it is there.
#[test]
fn an_unpacking_that_was_killed_leaves_nothing_to_read() {
    let large = vec![0; 30_000_000];
    let bodies: Vec<(String, &[u8])> = (0..4).map(|count| (format!("run/{count}"), &large[..])).collect();
    let entries: Vec<(&str, &[u8])> = bodies.iter().map(|(name, body)| (name.as_str(), *body)).collect();
    let packed = stored_zip_of(&entries);
    let server = Server::good(packed.clone());
    let known = format!("size = {}\nsha256 = '{}'", packed.len(), sha256(&packed));
    let world = World::new(&[archive("pack", "published", "pack.zip", &format!("{}/p", server.url), &[], &known)]);
    let mut child = world.command(&["pack"]).spawn().unwrap();
    let start = Instant::now();
    let half = world.path("cache/published/.staging/pack/new/run/1");
    while !half.exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "it was not unpacked");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(half.exists(), "it was over before it was killed");
    let readable = |file: &String| file.starts_with("published/") && !file.starts_with("published/.staging/");
    assert!(!world.files().iter().any(readable), "{:?}", world.files());
    world.good(&["pack"]);
    let expected = ["downloads/pack.zip", "manifests/pack.json"].into_iter().map(str::to_owned);
    let expected: Vec<String> = expected.chain((0..4).map(|count| format!("published/pack/run/{count}"))).collect();
    assert_eq!(world.files(), expected);
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
    wait_for_growth(&world.path("cache/data/split/thing.bin.part"), 1, &mut first);
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

/// `data` and `published` may be links to another disk; the folder of one archive may not, and the error says what may.
#[test]
fn a_cache_may_lie_on_two_disks() {
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        skip("disks", "there is no /dev/shm");
        return;
    };
    let (body, packed) = (noise(1_000), zip_of(&[("folder/a.txt", b"a")]));
    let (server, packs) = (Server::good(body.clone()), Server::good(packed.clone()));
    let known = format!("size = {}\nsha256 = '{}'", packed.len(), sha256(&packed));
    let artifacts = [
        archive("pack", "data", "pack.zip", &format!("{}/p", packs.url), &[], &known),
        list("thing", &[&server], &body),
    ];
    let world = World::new(&artifacts);
    let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&path.metadata().unwrap());
    if device(other.path()) == device(world.folder.path()) {
        skip("disks", "/dev/shm and the temporary folder are one disk");
        return;
    }
    let link = |world: &World, what: &str| {
        let link = world.path("cache").join(what);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(other.path(), link).unwrap();
    };
    link(&world, "data");
    world.good(&["pack", "thing"]);
    assert_eq!(std::fs::read(other.path().join("folder/a.txt")).unwrap(), b"a");
    assert!(std::fs::read(other.path().join("split/thing.bin")).unwrap() == body);
    assert_eq!(std::fs::read_dir(other.path().join(".staging")).unwrap().count(), 0);
    world.good(&["pack", "thing", "--verify"]);

    let inner = World::new(&[artifacts[0].replace("place = 'data'", "place = 'published'")]);
    link(&inner, "published/pack");
    let error = inner.error(&["pack"]);
    assert!(error.contains("link all of data or published"), "{error}");
    assert_eq!(std::fs::read(other.path().join("folder/a.txt")).unwrap(), b"a");
}

/// Runs `command` in a mount of 256 KiB at `mount`; `None` where nobody may mount.
fn on_a_small_disk(mount: &Path, command: &Command) -> Option<Output> {
    mounted(&format!("mount -t tmpfs -o size=256k tmpfs '{}'", mount.display()), command)
}

/// Runs `command` where `mount`, a line of shell, was run first; `None` where nobody may mount.
fn mounted(mount: &str, command: &Command) -> Option<Output> {
    let inside = |body: &str| format!("{mount} && {body}");
    let unshared = |body: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &inside(body), "sh"]);
        command
    };
    if !unshared("true").output().is_ok_and(|output| output.status.success()) {
        skip("mounts", "this machine lets nobody mount a small file system");
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

/// A disk that gets full while an archive is unpacked says nothing against the archive: what came is used by the next run.
#[test]
fn an_archive_that_finds_no_room_is_kept() {
    let body = noise(120_000);
    let packed = zip_of(&[("run/model_2000.pt", &body[..])]);
    let whole = packed.clone();
    // Without a length, so that nobody can tell beforehand that the room is too small.
    let server = Server::start(move |_, _, stream| {
        head(stream, "200 OK", "");
        let _ = stream.write_all(&whole);
    });
    let world = World::new(&[checkpoints(&server.url)[0].replace("at_most = 100000", "at_most = 1000000")]);
    let (staging, downloads) = (world.path("cache/published/.staging"), world.path("cache/downloads"));
    for folder in [&staging, &downloads] {
        std::fs::create_dir_all(folder).unwrap();
    }
    // The unpacking alone is on a small disk.
    let mount = format!("mount -t tmpfs -o size=64k tmpfs '{}'", staging.display());
    let Some(output) = mounted(&mount, &world.command(&["checkpoints-pretrain", "--pin"])) else { return };
    let output = Said::of(output, world.folder.path());
    assert!(output.err.contains("free some space"), "{}", output.err);
    assert_eq!(world.files(), ["downloads/checkpoints-pretrain.zip"]);
    world.good(&["checkpoints-pretrain", "--pin"]);
    assert_eq!(server.requests().len(), 1);
    assert!(world.cached("published/checkpoints-pretrain/run/model_2000.pt").unwrap() == body);
}

/// Where nobody knows how much room the unpacking takes, it takes at least as much as the archive.
#[test]
fn room_for_unpacking_is_looked_for_first() {
    let server = Server::good(stored_zip_of(&[("run/model_2000.pt", &noise(150_000))]));
    let world = World::new(&[checkpoints(&server.url)[0].replace("at_most = 100000", "at_most = 1000000")]);
    std::fs::create_dir(world.path("cache")).unwrap();
    let command = world.command(&["checkpoints-pretrain", "--pin"]);
    let Some(output) = on_a_small_disk(&world.path("cache"), &command) else { return };
    let output = Said::of(output, world.folder.path());
    assert!(output.err.contains("checkpoints-pretrain.zip needs 293."), "{}", output.err);
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
    // What was moved out of the way is as wrong at the second look.
    let again = world.fetch(&["--verify"]);
    assert_eq!(again.code, Some(1), "{}", again.out);
    assert!(again.out.contains("data/folder/b.txt is missing"), "{}", again.out);
    world.good(&["thing", "pack"]);
    world.good(&["--verify"]);
    assert_eq!(world.cached("data/folder/b.txt").unwrap(), b"b");
    assert_eq!((server.requests().len(), packs.requests().len()), (2, 2));
}

#[test]
fn verify_calls_only_what_is_whole_fine() {
    let packed = zip_of(&[("folder/a.txt", b"a")]);
    let server = Server::good(packed.clone());
    let known = format!("size = {}\nsha256 = '{}'", packed.len(), sha256(&packed));
    let pack = archive("pack", "data", "pack.zip", &format!("{}/pack.zip", server.url), &[], &known);
    let world = World::new(&[pack]);
    let put = |name: &str, bytes: &[u8]| sdclr::fs::write(&world.path("cache").join(name), bytes).unwrap();
    let not_whole = |state: &str| {
        let said = world.fetch(&["--verify"]);
        assert_eq!(said.code, Some(1), "{}", said.out);
        assert!(said.out.contains(&format!("pack: not whole: {state}")), "{}", said.out);
    };
    // A download that was killed; an archive that was not unpacked; a record of nothing.
    put("downloads/pack.zip.part", &packed[..packed.len().div_ceil(2)]);
    not_whole("50 %");
    put("downloads/pack.zip", &packed);
    not_whole("not unpacked");
    put(
        "manifests/pack.json",
        format!("{{\"sha256\": \"{}\", \"size\": 1, \"files\": []}}", sha256(&packed)).as_bytes(),
    );
    not_whole("not unpacked");
    world.good(&["pack"]);
    world.good(&["--verify"]);
    assert_eq!((world.cached("data/folder/a.txt").unwrap(), server.requests().len()), (b"a".to_vec(), 0));
}

/// A cache that may only be read is verified too; one artefact that cannot be does not stop the others.
#[test]
fn verify_only_reads_where_it_may_not_write() {
    let body = noise(1_000);
    let server = Server::good(body.clone());
    let world = World::new(&[list("a", &[&server], &body), list("b", &[&server], &body), list("c", &[&server], &body)]);
    world.good(&["a", "b", "c"]);
    let spoilt = noise(1_001)[1..].to_vec();
    sdclr::fs::write(&world.path("cache/data/split/a.bin"), &spoilt).unwrap();
    let cache = world.path("cache");
    let mount = format!("mount --bind '{0}' '{0}' && mount -o remount,ro,bind '{0}'", cache.display());
    if let Some(output) = mounted(&mount, &world.command(&["--verify"])) {
        let said = Said::of(output, world.folder.path());
        assert_eq!(said.code, Some(1), "{}", said.err);
        assert!(said.out.contains("a.bin is wrong: its sha256 is"), "{}{}", said.out, said.err);
        assert!(said.out.contains("left there, since the cache may only be read"), "{}", said.out);
        assert!(said.out.contains("b: fine, 1 file") && said.out.contains("c: fine, 1 file"), "{}", said.out);
        assert!(world.cached("data/split/a.bin").unwrap() == spoilt);
    }
    // A folder where the lock should be.
    sdclr::fs::remove(&cache.join("locks/b/.lock")).unwrap();
    std::fs::create_dir(cache.join("locks/b/.lock")).unwrap();
    let said = world.fetch(&["--verify"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.starts_with("error: b: cannot open the lock") && said.out.contains("c: fine"), "{}", said.err);
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

/// The real images, packed as the official archive is, are fetched, unpacked, and found by a command that names no folder.
#[test]
fn real_cifar10_is_fetched_and_found() {
    let Some(data) = std::env::var_os("SDCLR_DATA").map(PathBuf::from) else {
        skip("data", "SDCLR_DATA is not set");
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
