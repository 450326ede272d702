//! What the machine around a command does to it: inputs named as outputs, file systems without locks, folders that may not
//! be read, disks that are full, limits, empty variables; and what a log gets to see.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;

fn sdclr(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"));
    command.args(arguments).env_remove("SDCLR_DATA").env("SDCLR_CACHE", "/nonexistent").env("OMP_NUM_THREADS", "1");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a command that must fail says, without the path of `folder`.
fn error(folder: &Path, command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    said.replace(&folder.display().to_string(), "DIR")
}

fn write(path: &Path, bytes: &[u8]) {
    sdclr::fs::write(path, bytes).unwrap();
}

const PRETRAIN: &[&str] = &[
    "pretrain",
    "--recipe",
    "digits-lt/sdclr",
    "--split",
    "1",
    "--pretrain-split",
    "D_i",
    "--device",
    "cpu",
    "--limit-images",
    "64",
    "--limit-epochs",
    "1",
    "--out",
];

fn pretrain(out: &Path, more: &[&str]) -> Command {
    sdclr(&[PRETRAIN, &[out.to_str().unwrap()], more].concat())
}

#[test]
fn an_output_never_replaces_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["a.pt", "i.npy", "r.toml", "logs/run/log.txt", "replay/init.pt", "views/params.jsonl", "data/c/b.bin"]
    {
        write(&at(name), b"mine");
    }
    write(&at("registry.toml"), include_bytes!("../fixtures/registry.toml"));
    std::os::unix::fs::symlink(at("a.pt"), at("link.pt")).unwrap();
    let refused = |arguments: &str, kept: &str, expected: &str| {
        let before = std::fs::read(at(kept)).unwrap();
        let mut command = sdclr(&arguments.split(' ').collect::<Vec<_>>());
        let said = error(folder.path(), command.current_dir(folder.path()));
        assert_eq!(said, format!("error: {expected}\n"), "{arguments}");
        assert_eq!(std::fs::read(at(kept)).unwrap(), before, "{arguments}");
    };
    let itself =
        |option: &str, what: &str, path: &str| format!("{option} names {what} itself, {path}; name another file");
    let features = "features a.pt --network resnet10 --layer backbone --images i.npy --out";
    refused(&format!("{features} i.npy"), "i.npy", &itself("--out", "the images", "i.npy"));
    refused(&format!("{features} ./a.pt"), "a.pt", &itself("--out", "the checkpoint", "./a.pt"));
    refused(&format!("{features} link.pt"), "a.pt", &itself("--out", "the checkpoint", "link.pt"));
    let probe = "probe a.pt --split 1 --protocol few --data data --recipe r.toml:sdclr --json";
    refused(&format!("{probe} a.pt"), "a.pt", &itself("--json", "the checkpoint", "a.pt"));
    refused(&format!("{probe} r.toml"), "r.toml", &itself("--json", "the recipe", "r.toml"));
    let among = "--json names data/c/b.bin, a file among the data in data; name a file elsewhere";
    refused(&format!("{probe} data/c/b.bin"), "data/c/b.bin", among);
    let analyse = "analyse logs --dataset cifar10 --method sdclr --pretrain-split D_i --protocol full --json";
    let among = "--json names logs/run/log.txt, a file among the logs in logs; name a file elsewhere";
    refused(&format!("{analyse} logs/run/log.txt"), "logs/run/log.txt", among);
    refused(
        "export a.pt --format torch-pt --names torchvision --out a.pt",
        "a.pt",
        &itself("--out", "the checkpoint", "a.pt"),
    );
    refused("bench checkpoint --file a.pt --json a.pt", "a.pt", &itself("--json", "the checkpoint", "a.pt"));
    refused("bench checkpoint --file a.pt --markdown a.pt", "a.pt", &itself("--markdown", "the checkpoint", "a.pt"));
    for option in ["--out", "--save"] {
        let path = "replay/init.pt";
        refused(&format!("replay replay {option} {path}"), path, &itself(option, "init.pt", path));
    }
    refused(
        "fetch cifar10 --registry registry.toml --pin --pins registry.toml",
        "registry.toml",
        &itself("--pins", "the registry", "registry.toml"),
    );
    std::fs::hard_link(at("views/params.jsonl"), at("v.toml")).unwrap();
    refused(
        "views --recipe v.toml:sdclr --split 1 --indices 1 --epoch 1 --out views",
        "v.toml",
        "--out would replace the recipe, views/params.jsonl; name another folder",
    );
}

/// A library that takes the place of functions of libc.
fn library(folder: &Path, source: &str) -> PathBuf {
    let (file, library) = (folder.join("preload.c"), folder.join("preload.so"));
    write(&file, source.as_bytes());
    let output = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &file]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    library
}

/// Makes flock fail with `FLOCK_ERRNO`, as file systems without it do.
const NO_FLOCK: &str = "
    #include <errno.h>
    #include <stdlib.h>
    int flock(int file, int how) { (void)file; (void)how; errno = atoi(getenv(\"FLOCK_ERRNO\")); return -1; }
";

/// A host that is called `HOST`, with a kernel of its own, for one process: flock tells nothing of other hosts.
const HOST: &str = "
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <fcntl.h>
    #include <stdarg.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <unistd.h>
    int flock(int file, int how) { (void)file; (void)how; return 0; }
    int open64(const char *path, int flags, ...) {
        if (!strcmp(path, \"/proc/sys/kernel/random/boot_id\") || !strcmp(path, \"/proc/sys/kernel/hostname\")) {
            const char *host = getenv(\"HOST\");
            int file = memfd_create(host, MFD_CLOEXEC);
            if (write(file, host, strlen(host)) < 0) abort();
            lseek(file, 0, SEEK_SET);
            return file;
        }
        va_list list;
        va_start(list, flags);
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
        va_end(list);
        return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, \"open64\"))(path, flags, mode);
    }
";

fn wait_until(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn without_flock_a_file_is_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path(), NO_FLOCK);
    let run = |name: &str, errno: i32, more: &[&str]| {
        let mut command = pretrain(&folder.path().join(name), more);
        command.env("LD_PRELOAD", &library).env("FLOCK_ERRNO", errno.to_string());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    for errno in [libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOLCK, libc::EINVAL] {
        let output = run(&format!("run{errno}"), errno, &[]).output().unwrap();
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.matches("warning: the file system of").count(), 1, "{said}");
        assert!(!folder.path().join(format!("run{errno}/.lock.held")).exists());
    }
    // An error of the disk is not a lack of locks.
    let said = error(folder.path(), &mut run("run5", libc::EIO, &[]));
    assert!(said.contains("cannot lock DIR/run5/.lock: Input/output error"), "{said}");

    let held = folder.path().join("shared/.lock.held");
    let start = || {
        let mut command = sdclr(&[]);
        command.args([
            "pretrain",
            "--recipe",
            "digits-lt/sdclr",
            "--split",
            "1",
            "--pretrain-split",
            "D_i",
            "--device",
            "cpu",
        ]);
        command.args(["--limit-images", "64", "--set", "epochs=100000", "--out"]).arg(folder.path().join("shared"));
        command.env("LD_PRELOAD", &library).env("FLOCK_ERRNO", "38").stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    for _ in 0..3 {
        let mut holder = start().spawn().unwrap();
        let holds =
            || std::fs::read_to_string(&held).is_ok_and(|text| text.contains(&format!("\"pid\":{}", holder.id())));
        wait_until(holds);
        let said = error(folder.path(), &mut start());
        assert!(said.contains("DIR/shared"), "{said}");
        // Nothing of the holder's gets to run; the next one takes its place at once.
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(held.exists());
    }
}

/// Hosts whose flock does not tell of each other, one of which is suspended so long that it is taken for dead.
#[test]
fn a_job_is_taken_over_from_a_host_without_a_heartbeat() {
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path(), HOST);
    let runs = folder.path().join("runs");
    let job = runs.join("sdclr-D_i-split1");
    let start = |host: &str| {
        let mut command = sdclr(&["repro", "digits-lt", "--splits", "1", "--seeds", "1", "--methods", "sdclr-D_i"]);
        command.args(["--device", "cpu", "--jobs", "1", "--set", "epochs=20", "warmup_epochs=3"]);
        command.args(["probe.full.epochs=3", "probe.few.epochs=3", "--out"]).arg(&runs);
        command.env("LD_PRELOAD", &library).env("HOST", host).stdout(Stdio::null());
        let log = std::fs::File::options().create(true).append(true).open(folder.path().join(host)).unwrap();
        command.stderr(log).spawn().unwrap()
    };
    let said = |host: &str| std::fs::read_to_string(folder.path().join(host)).unwrap();
    let signal = |process: &Child, number: i32| {
        // SAFETY: a signal to a child that was not waited for yet.
        assert_eq!(unsafe { libc::kill(process.id() as i32, number) }, 0);
    };
    let first = start("node1");
    wait_until(|| job.join("checkpoint.safetensors").exists());
    signal(&first, libc::SIGSTOP);
    let log = || std::fs::read_to_string(job.join("run.jsonl")).unwrap();
    let left = log();
    let second = start("node2");
    let in_use = format!("sdclr-D_i-split1 is in use by process {} on node1", first.id());
    wait_until(|| said("node2").contains(&in_use));
    // It asks every two seconds.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(log(), left, "a job that another host holds was begun");

    let marker = std::fs::File::options().write(true).open(job.join(".lock.held")).unwrap();
    marker.set_modified(SystemTime::now() - Duration::from_secs(130)).unwrap();
    wait_until(|| log() != left);
    assert!(log().lines().nth(left.lines().count()).unwrap().contains("\"from_epoch\":"), "{}", log());
    signal(&first, libc::SIGCONT);
    for (mut process, host) in [(first, "node1"), (second, "node2")] {
        assert!(process.wait().unwrap().success(), "{}", said(host));
    }
    assert!(said("node1").contains("sdclr-D_i-split1 is in use by process"), "{}", said("node1"));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(job.join("result.json")).unwrap()).unwrap();
    let epochs = |events: &str| events.matches("\"event\":\"epoch\"").count();
    assert_eq!((record["sessions"].as_array().unwrap().len(), epochs(&log())), (2, 20), "{}", log());
    assert!(!job.join(".lock.held").exists() && !job.join("checkpoint.safetensors").exists());
}

#[test]
fn empty_variables_count_as_unset() {
    for arguments in [&["repro", "digits-lt", "--dry-run"][..], &["fetch", "--list"], &["doctor"]] {
        let mut command = sdclr(arguments);
        command.env("SDCLR_DATA", "").env("SDCLR_CACHE", "").env("SDCLR_ORACLE_PYTHON", "").env("HOME", "/nonexistent");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn what_may_not_be_read_is_not_absent() {
    let folder = tempfile::tempdir().unwrap();
    let permit = |name: &str, mode: u32| {
        std::fs::set_permissions(folder.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    permit("", 0o755);
    let program = folder.path().join("sdclr");
    std::fs::copy(assert_cmd::cargo::cargo_bin!("sdclr"), &program).unwrap();
    for file in ["data/cifar-10-batches-bin/data_batch_1.bin", "empty/nothing", "locked/imagenet/train/x"] {
        write(&folder.path().join(file), b"");
    }
    let view = |recipe: &str, data: &str| {
        let mut command = Command::new(&program);
        command.args(["views", "--recipe", recipe, "--split", "1", "--indices", "0", "--epoch", "1", "--out", "v"]);
        command.args(["--data", data]).current_dir(folder.path()).env("HOME", "/nonexistent");
        // SAFETY: only asks.
        if unsafe { libc::geteuid() } == 0 {
            command.uid(65534).gid(65534);
        }
        let said = error(folder.path(), &mut command);
        said.strip_prefix("error: ").unwrap().replace(" (os error 13)", "").trim_end().to_owned()
    };
    permit("data/cifar-10-batches-bin/data_batch_1.bin", 0);
    let denied = "Permission denied; ask its owner to let you read it";
    let cifar = |data: &str| view("cifar10-lt/sdclr", data);
    assert_eq!(cifar("data"), format!("cannot read data/cifar-10-batches-bin/data_batch_1.bin: {denied}"));
    permit("data/cifar-10-batches-bin", 0);
    assert_eq!(cifar("data"), format!("cannot look into data/cifar-10-batches-bin: {denied}"));
    permit("data", 0);
    assert_eq!(cifar("data"), format!("cannot look into data: {denied}"));
    assert_eq!(cifar("data/below"), format!("cannot look at data/below: {denied}"));
    assert_eq!(cifar("nosuch"), "there is no folder nosuch; name that of the data with --data DIR (or SDCLR_DATA)");
    assert!(cifar("empty").starts_with("no cifar10 in empty: expected"), "{}", cifar("empty"));
    permit("locked/imagenet/train", 0);
    assert_eq!(view("imagenet100-lt/simclr", "locked"), format!("cannot look into locked/imagenet/train: {denied}"));
    for name in ["data", "data/cifar-10-batches-bin", "locked/imagenet/train"] {
        permit(name, 0o755);
    }
}

fn into_full(command: &mut Command) -> Output {
    command.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap()).output().unwrap()
}

const UNWRITABLE: &str = "error: cannot write the output: No space left on device; free some space, or write it elsewhere, \
                          and run the same command again\n";

#[test]
fn an_output_that_cannot_be_written_is_named_as_that() {
    let commands =
        ["fetch --list", "completions bash", "repro digits-lt --dry-run", "--help", "export --help", "--version"];
    for arguments in commands {
        let output = into_full(&mut sdclr(&arguments.split(' ').collect::<Vec<_>>()));
        assert_eq!(text(&output.stderr), UNWRITABLE, "{arguments}");
        assert_eq!(output.status.code(), Some(1), "{arguments}");
    }
}

#[test]
fn other_outputs_are_written_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let logs = std::fs::File::open("fixtures/golden/analyse/logs.zip").unwrap();
    zip::ZipArchive::new(logs).unwrap().extract(folder.path()).unwrap();
    let arguments =
        "analyse checkpoints_tune --dataset cifar10 --method sdclr --pretrain-split D_i --protocol full --json s.json";
    let mut command = sdclr(&arguments.split(' ').collect::<Vec<_>>());
    let output = into_full(command.current_dir(folder.path()));
    assert_eq!((text(&output.stderr).as_str(), output.status.code()), (UNWRITABLE, Some(1)));
    let written = std::fs::read(folder.path().join("s.json")).unwrap();
    assert!(serde_json::from_slice::<serde_json::Value>(&written).unwrap()["all"].is_object());
}

#[test]
fn limits_of_the_system_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let inner = pretrain(&out, &[]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 100; exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
    let said = error(folder.path(), limited.env("SDCLR_CACHE", "/nonexistent"));
    let said = said.lines().last().unwrap();
    assert!(said.starts_with("error: cannot write DIR/run/") && said.contains("File too large"), "{said}");
    let names = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.map(|name| name.to_string_lossy().into_owned()).all(|name| !name.ends_with(".part")));

    let said = error(folder.path(), sdclr(&["bench", "hash", "--no-peer"]).env("TMPDIR", "/nonexistent/tmp"));
    assert_eq!(
        said,
        "error: cannot create a temporary folder in /nonexistent/tmp: No such file or directory (os error 2); set TMPDIR \
         to a folder that is there, or unset it\n"
    );
}

/// What a log of the run gets, without the times.
fn log_of(folder: &TempDir, name: &str, more: &[&str]) -> String {
    let output = pretrain(&folder.path().join(name), more).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains(['\r', '\u{1b}']), "{said:?}");
    said
}

#[test]
fn a_log_has_a_line_on_each_job() {
    let folder = tempfile::tempdir().unwrap();
    let plain = log_of(&folder, "plain", &[]);
    let lines: Vec<&str> = plain.lines().collect();
    assert_eq!(lines.len(), 2, "{plain}");
    assert_eq!(lines[0], "sdclr-D_i-split1: begun");
    assert!(lines[1].starts_with("sdclr-D_i-split1: finished in ") && lines[1].contains(" second"), "{plain}");

    let json = log_of(&folder, "json", &["--log-format", "json"]);
    let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert_eq!((&line["level"], &line["job"]), (&"info".into(), &"sdclr-D_i-split1".into()));
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }
    assert!(lines[1]["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(log_of(&folder, "quiet", &["--quiet"]), "");
    assert_eq!(log_of(&folder, "none", &["--progress", "none"]), "");

    let output = sdclr(&["--log-format", "json", "repro", "nowhere-lt"]).output().unwrap();
    let line: serde_json::Value = serde_json::from_str(text(&output.stderr).trim_end()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["message"].as_str().unwrap().contains("nowhere-lt"), "{line}");
}

#[test]
fn a_suite_counts_its_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = sdclr(&["repro", "digits-lt", "--limit-images", "32", "--limit-epochs", "1", "--splits", "1"]);
    let output = command
        .args(["--methods", "simclr-D_i", "--seeds", "1", "--out"])
        .arg(folder.path().join("runs"))
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let jobs = ["simclr-D_i-split1", "simclr-D_i-split1/full", "simclr-D_i-split1/few"];
    let mut lines = said.lines();
    for (job, number) in jobs.iter().zip(1..) {
        assert_eq!(lines.next().unwrap(), format!("{job}: begun (job {number} of 3)"));
        assert!(lines.next().unwrap().starts_with(&format!("{job}: finished in ")), "{said}");
    }
    assert_eq!(lines.next(), None, "{said}");
}

#[test]
fn threads_are_those_that_were_asked_for() {
    let threads = |arguments: &[&str], variable: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = pretrain(&folder.path().join("run"), arguments);
        command.env_remove("OMP_NUM_THREADS").envs(variable.map(|count| ("OMP_NUM_THREADS", count)));
        assert!(command.output().unwrap().status.success());
        let result = std::fs::read(folder.path().join("run/result.json")).unwrap();
        let result: serde_json::Value = serde_json::from_slice(&result).unwrap();
        result["sessions"][0]["environment"]["threads"].as_u64().unwrap()
    };
    let free = ["--set", "threads=0"];
    assert_eq!(threads(&[&["--threads", "3"], &free[..]].concat(), None), 3);
    assert_eq!(threads(&[&["--threads", "3"], &free[..]].concat(), Some("2")), 3);
    assert_eq!(threads(&free, Some("2")), 2);
    // Where the recipe fixes them, since they change its numbers, nothing else counts.
    assert_eq!(threads(&["--threads", "3"], Some("2")), 1);
}
