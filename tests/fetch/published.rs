//! What nobody published a hash of, what Google Drive says, and what the user brings.

use sdclr::artifact::Voice;
use sdclr::artifact::pins::{Pin, Pins};
use sdclr::progress::Progress;

use crate::server::{Server, reply, whole_or_rest};
use crate::world::{World, checkpoints, list, md5, noise, stored_zip_of, zip_of};

#[test]
fn without_a_hash_the_first_download_is_pinned() {
    let packed = zip_of(&[("checkpoints/run/model_2000.pt", b"weights")]);
    let server = Server::good(packed.clone());
    let world = World::new(&checkpoints(&server.url));
    let refused = world.error(&["checkpoints-pretrain"]);
    assert_eq!(server.requests().len(), 0, "it was downloaded for nothing");
    let pinned = world.good(&["checkpoints-pretrain", "--pin"]);
    assert_eq!(world.cached("published/checkpoints-pretrain/checkpoints/run/model_2000.pt").unwrap(), b"weights");
    let pins = String::from_utf8(world.cached("pins.toml").unwrap()).unwrap();
    let listed = world.good(&["--list"]).out;
    assert!(listed.contains("present, pinned"), "{listed}");

    // Somebody else with these pins gets the same bytes without --pin, or an error.
    let other = World::new(&checkpoints(&server.url));
    let shared = world.path("cache/pins.toml");
    let with_pins = ["checkpoints-pretrain", "--pins", shared.to_str().unwrap()];
    let capitals = pins.replace(&pins[pins.find("sha256 = ").unwrap() + 10..][..64], &{
        let at = pins.find("sha256 = ").unwrap() + 10;
        pins[at..at + 64].to_uppercase()
    });
    let shouted = world.path("capitals.toml");
    sdclr::fs::write(&shouted, capitals.as_bytes()).unwrap();
    other.good(&["checkpoints-pretrain", "--pins", shouted.to_str().unwrap()]);
    other.good(&with_pins);
    sdclr::fs::write(&shouted, b"[checkpoints-pretrain]\nsize = 1\nsha256 = 'abc'\n").unwrap();
    let short = other.fetch(&["checkpoints-pretrain", "--pins", shouted.to_str().unwrap()]).err;
    assert!(short.contains("the sha256 of checkpoints-pretrain is 'abc', not 64 hexadecimal digits"), "{short}");
    let changed = Server::good(zip_of(&[("checkpoints/run/model_2000.pt", b"strange")]));
    let victim = World::new(&checkpoints(&changed.url));
    let mismatch = victim.error(&with_pins).replace(&world.folder.path().display().to_string(), "[OTHER]");
    assert!(victim.cached("published/checkpoints-pretrain/checkpoints/run/model_2000.pt").is_none());
    // --pin does not overrule a pin.
    victim.error(&[with_pins.as_slice(), &["--pin"]].concat());
    insta::assert_snapshot!("fetch_pins", format!("{refused}\n{}{}\n{pins}\n{mismatch}", pinned.err, pinned.out));
}

#[test]
fn a_pin_that_was_not_written_is_asked_for_again() {
    let packed = zip_of(&[("checkpoints/run/model_2000.pt", b"weights")]);
    let server = Server::good(packed.clone());
    let world = World::new(&checkpoints(&server.url));
    let name = "checkpoints-pretrain";
    // Pins cannot be written to a folder that is a file.
    let blocked = world.path("registry.toml/pins.toml");
    world.error(&[name, "--pin", "--pins", blocked.to_str().unwrap()]);
    let unpinned = world.error(&[name]);
    assert!(unpinned.contains("run again with --pin"), "{unpinned}");
    world.good(&[name, "--pin"]);
    world.good(&[name]);
    assert!(world.cached("pins.toml").is_some());
    // What is pinned elsewhere is not pinned here, until --pin writes down what there is.
    let shared = world.path("shared.toml");
    let with_pins = [name, "--pins", shared.to_str().unwrap()];
    let missing = world.error(&with_pins);
    assert!(missing.starts_with("error: there are no pins"), "{missing}");
    sdclr::fs::write(&shared, b"").unwrap();
    world.error(&with_pins);
    let before = server.requests().len();
    world.good(&[with_pins.as_slice(), &["--pin"]].concat());
    assert_eq!(server.requests().len(), before);
    let pins = |path| std::fs::read_to_string(path).unwrap();
    assert_eq!(pins(shared.clone()), pins(world.path("cache/pins.toml")));
}

/// Serves `body` once `two` requests have come, so that two processes are at work at once.
fn both_at_once(body: Vec<u8>, two: std::sync::Arc<std::sync::Barrier>) -> Server {
    Server::start(move |_, request, stream| {
        two.wait();
        whole_or_rest(request, &body, stream);
    })
}

#[test]
fn caches_that_share_pins_do_not_overrule_each_other() {
    let barrier = std::sync::Arc::new(std::sync::Barrier::new(2));
    let servers = [&b"weights"[..], b"strange"]
        .map(|body| both_at_once(zip_of(&[("run/model_2000.pt", body)]), std::sync::Arc::clone(&barrier)));
    let worlds = servers.each_ref().map(|server| World::new(&checkpoints(&server.url)));
    let shared = worlds[0].path("shared.toml");
    let arguments = ["checkpoints-pretrain", "--pin", "--pins", shared.to_str().unwrap()];
    let children = worlds.each_ref().map(|world| world.command(&arguments).spawn().unwrap());
    let outputs = children.map(|child| child.wait_with_output().unwrap());
    let failed: Vec<_> = outputs.iter().filter(|output| !output.status.success()).collect();
    let [failed] = failed[..] else { panic!("{} of two failed", failed.len()) };
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.contains("checkpoints-pretrain was pinned meanwhile, with the sha256"), "{said}");
}

/// Two caches that share a file of pins keep both their pins, however close together they write them.
#[test]
fn caches_that_share_pins_lose_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pins.toml");
    let progress = Progress::default();
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let (path, voice) = (&path, Voice { progress: &progress, name });
            scope.spawn(move || {
                for count in 0..10 {
                    let pin = Pin { size: 1, sha256: "0".repeat(64) };
                    Pins::add(path, &format!("{name}{count}"), pin, &voice).unwrap();
                }
            });
        }
    });
    let pins = Pins::load(&path).unwrap();
    for name in ["a", "b", "c", "d"] {
        assert!((0..10).all(|count| pins.has(&format!("{name}{count}"))));
    }
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
    // Its names are not read: more entries than would be unpacked.
    let many: Vec<String> = (0..20_001).map(|i| format!("{i}/model_2000.pt")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let many = save("g.zip", &stored_zip_of(&many));
    let brought = |path: &str| world.fetch(&["all", "--from", path, "--pin"]);
    let mut said = String::new();
    for path in [&pretrain, &tune, &pretrain, &changed, &both, &neither, &page, &many] {
        let result = brought(path);
        said += &format!("{}{}{:?}\n", result.err, result.out, result.code);
    }
    // Named alone, a file is what its name says; but a file that is no archive is never pinned.
    let single = world.error(&["checkpoints-tune", "--from", &pretrain, "--pin"]);
    let fresh = World::new(&checkpoints(&server.url));
    // Nor is what holds none of the files by which the archive is told from its siblings.
    for other in [&tune, &neither] {
        let sibling = fresh.error(&["checkpoints-pretrain", "--from", other, "--pin"]);
        assert!(sibling.contains("an archive without any /model_2000.pt; expected the archive"), "{sibling}");
    }
    sdclr::fs::write(&fresh.path("f.zip"), b"<html>").unwrap();
    let no_archive = fresh.error(&["checkpoints-tune", "--from", fresh.path("f.zip").to_str().unwrap(), "--pin"]);
    let folder = fresh.error(&["checkpoints-tune", "--from", fresh.folder.path().to_str().unwrap(), "--pin"]);
    assert!(fresh.cached("pins.toml").is_none());
    assert_eq!(fresh.files(), [""; 0]);
    insta::assert_snapshot!("fetch_from", format!("{said}{single}\n{no_archive}\n{folder}"));
    assert_eq!(server.requests().len(), 0);
    assert_eq!(world.cached("published/checkpoints-pretrain/checkpoints/run/model_2000.pt").unwrap(), b"weights");
    assert_eq!(world.cached("published/checkpoints-tune/checkpoints_tune/run/best_model.pt").unwrap(), b"probe");
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
/// A folder one level off, one that lacks lists, and files that are no archives are named as the user named them.
#[test]
fn what_is_not_what_was_meant_is_named() {
    let bodies = [noise(100), noise(200)];
    let server = Server::closed();
    let second = list("other", &[&server], &bodies[1]);
    let files = second.split_once("[[artifact.source.lists.files]]").unwrap().1;
    let lists = format!("{}[[artifact.source.lists.files]]{files}", list("thing", &[&server], &bodies[0]));
    let world = World::new(&[lists, checkpoints(&server.url)[1].clone()]);
    let put = |name: &str, bytes: &[u8]| sdclr::fs::write(&world.path(name), bytes).unwrap();
    let error = |name: &str, from: &str| world.error(&[name, "--from", world.path(from).to_str().unwrap(), "--pin"]);
    put("in/split/thing.bin", &bodies[0]);
    put("page.zip", b"<!DOCTYPE html><html><title>Quota exceeded</title></html>");
    put("empty/x", b"");
    let named = |error: &str, expected: &str| assert!(error.contains(expected), "{error}");
    named(
        &error("thing", "in"),
        "[DIR]/in lacks split/other.bin; name the folder that holds split/ with all of its lists",
    );
    named(
        &error("thing", "empty"),
        "[DIR]/empty lacks split/thing.bin (and 1 more); name the folder that holds split/",
    );
    named(
        &error("thing", "in/split"),
        "[DIR]/in/split lacks split/thing.bin (and 1 more); name the folder that holds split/, which is one level above",
    );
    named(
        &error("thing", "nowhere"),
        "--from names [DIR]/nowhere, which does not exist; expected a folder that holds split/",
    );
    named(
        &error("checkpoints-tune", "page.zip"),
        "[DIR]/page.zip is not an archive: it begins with the text '<!DOCTYPE html>",
    );
    assert!(world.cached("data/split/thing.bin").is_none(), "some lists were copied");
}

/// ImageNet as its archives unpack and as Kaggle has it.
#[test]
fn imagenet_one_step_off_is_read_or_told_how_to_mend() {
    let lists = ["train/n1/a.JPEG 0\ntrain/n2/b.JPEG 1\n", "val/n1/c.JPEG 0\nval/n2/d.JPEG 1\ntrain/n1/a.JPEG 0\n"];
    let servers = lists.map(|text| Server::good(text.as_bytes().to_vec()));
    let imagenet = format!(
        "[[artifact]]\nname = 'imagenet'\nabout = ''\nplace = 'data'\nlicence = 'terms'\nnote = ''\n\
         [artifact.source.brought]\nlists = ['one', 'two']\n\
         [[artifact.source.brought.files]]\npath = 'train.tar'\nsize = 3\nmd5 = '{}'\n",
        crate::world::md5(b"tar")
    );
    let [one, two] = [("one", 0), ("two", 1)].map(|(name, at)| list(name, &[&servers[at]], lists[at].as_bytes()));
    let world = World::new(&[one, two, imagenet]);
    world.good(&["one", "two"]);
    let put = |name: &str| sdclr::fs::write(&world.path(name), b"jpeg").unwrap();
    let error = |from: &str| world.error(&["imagenet", "--from", world.path(from).to_str().unwrap()]);
    let flat = ["c.JPEG", "d.JPEG"];
    ["train/n1/a.JPEG", "train/n2.tar"].iter().for_each(|name| put(&format!("flat/{name}")));
    flat.iter().for_each(|name| put(&format!("flat/val/{name}")));
    let said = error("flat");
    assert!(
        said.contains("3 of 4 listed images are missing in [DIR]/flat (first: train/n2/b.JPEG, of split/one.bin)"),
        "{said}"
    );
    assert!(
        said.contains("2 of them lie in val/ itself") && said.contains("train/ holds archives of classes"),
        "{said}"
    );
    // What it says to do does it.
    let (_, command) = said.split_once("sort them with ").unwrap();
    let command = command.split_once("); ").unwrap().0.replace("[DIR]", world.folder.path().to_str().unwrap());
    assert!(std::process::Command::new("sh").args(["-c", &format!("{command})")]).status().unwrap().success());
    put("flat/train/n2/b.JPEG");
    world.good(&["imagenet", "--from", world.path("flat").to_str().unwrap()]);
    assert!(error("nowhere").contains("[DIR]/nowhere, which does not exist"));
    std::fs::create_dir_all(world.path("kaggle/ILSVRC/Data")).unwrap();
    sdclr::fs::rename(&world.path("flat"), &world.path("kaggle/ILSVRC/Data/CLS-LOC")).unwrap();
    for from in ["kaggle", "kaggle/ILSVRC", "kaggle/ILSVRC/Data/CLS-LOC/train"] {
        let said = world.good(&["imagenet", "--from", world.path(from).to_str().unwrap()]);
        assert!(said.out.contains("kaggle/ILSVRC/Data/CLS-LOC has all 4 images of 2 lists"), "{}", said.out);
    }
}

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
    // An error of the server is one, whatever its page links to; a number in a page is no status.
    let link = "<a href='https://accounts.google.com/ServiceLogin'>Sign in</a>";
    let others = [
        ("busy", "503 Service Unavailable", drive_page("Error", link), 3),
        ("too many", "429 Too Many Requests", drive_page("Sorry", "Your address is 192.0.2.404"), 3),
        ("moved away", "404 Not Found", drive_page("Error", link), 1),
        ("address", "200 OK", drive_page("Hello", "Your address is 2001:db8::404"), 1),
    ];
    for (name, status, page, asked) in others {
        let server =
            Server::start(move |_, _, stream| reply(stream, status, "Content-Type: text/html\r\n", page.as_bytes()));
        let world = World::new(&checkpoints(&server.url));
        said += &format!("{name}\n  {}\n", world.error(&["checkpoints-pretrain", "--pin"]));
        assert_eq!(server.requests().len(), asked, "{name}");
    }
    insta::assert_snapshot!("fetch_drive_obstacles", said);
}

#[test]
fn imagenet_is_brought_and_checked() {
    let lists = "train/n1/a.JPEG 0\ntrain/n1/b.JPEG 0\nval/n1/c.JPEG 0\n";
    let server = Server::good(lists.as_bytes().to_vec());
    let tars = ["train.tar", "val.tar"].map(|name| {
        format!(
            "[[artifact.source.brought.files]]\npath = '{name}'\nsize = 3\nmd5 = '{}'\n",
            md5(&name.as_bytes()[..3])
        )
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
    let found = world.path("cache/data/imagenet/train/n1/a.JPEG").exists();
    assert!(found, "images that were checked are not linked");
    let verified = world.good(&["--verify"]).out;
    bring(&[("train.tar", "tra"), ("val.tar", "va")]);
    bring(&[("val.tar", "vol")]);
    bring(&[("val.tar", "val")]);
    let single = world.good(&["imagenet", "--from", folder.join("val.tar").to_str().unwrap()]);
    let other = world.error(&["imagenet", "--from", folder.join("readme").to_str().unwrap()]);
    insta::assert_snapshot!("fetch_imagenet", format!("{said}\n{verified}{}{}{other}", single.err, single.out));
}
