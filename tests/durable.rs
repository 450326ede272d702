//! What a power cut may leave. The system calls of whole commands are observed: every file is synced before it takes its
//! name, its folder after that, and nothing is removed before what replaces it is safe.

mod golden;

use std::path::Path;
use std::process::Command;

use golden::skip::skip;

/// A system call that succeeded, or the start of one that takes something away.
#[derive(Debug, PartialEq)]
enum Event {
    Synced(String),
    /// A rename begins, from and to.
    Renaming(String, String),
    Renamed(String),
    /// A removal begins.
    Removing(String),
}

/// The strings of a call's arguments.
fn quoted(call: &str) -> Vec<String> {
    call.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The events of a line of strace, `unfinished` calls and their ends apart.
fn events(line: &str, begun: &mut std::collections::HashMap<String, String>) -> Vec<Event> {
    let (thread, call) = line.split_once(' ').unwrap();
    let call = call.trim();
    let (starts, ends) = (!call.starts_with("<..."), !call.ends_with("<unfinished ...>"));
    let whole = match starts {
        true => call.to_owned(),
        false => format!("{} {call}", begun.remove(thread).unwrap_or_default()),
    };
    if starts && !ends {
        begun.insert(thread.to_owned(), whole.clone());
    }
    let done = ends && whole.ends_with("= 0");
    let mut events = Vec::new();
    if whole.starts_with("fsync(") || whole.starts_with("fdatasync(") {
        let path = whole.split_once('<').and_then(|(_, rest)| rest.split_once('>')).unwrap().0;
        events.extend(done.then(|| Event::Synced(path.to_owned())));
    } else if whole.starts_with("rename") {
        let [from, to] = quoted(&whole).try_into().unwrap();
        events.extend(starts.then(|| Event::Renaming(from, to.clone())));
        events.extend(done.then_some(Event::Renamed(to)));
    } else if whole.starts_with("unlink") {
        events.extend(starts.then(|| Event::Removing(quoted(&whole).remove(0))));
    }
    events
}

/// What `sdclr` with `arguments` does to files; nothing where it cannot be observed.
fn observed(folder: &Path, arguments: &[&str]) -> Option<Vec<Event>> {
    let log = folder.join("strace.txt");
    let calls = "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat";
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-s", "4096", "-e", calls, "-o"]).arg(&log).arg(golden::program()).args(arguments);
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            skip("strace", &format!("strace does not run here: {error}"));
            return None;
        }
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("PTRACE_TRACEME") || said.contains("ptrace(") {
        skip("strace", "strace may not observe a process here");
        return None;
    }
    assert!(output.status.success(), "{said}");
    let mut begun = Default::default();
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().filter(|line| !line.contains("+++") && !line.contains("---"));
    Some(lines.flat_map(|line| events(line, &mut begun)).collect())
}

/// Every file is synced before it is renamed into `run`, and its folder after that. Gives the targets with the place of the
/// sync that made each safe.
fn safe_files(events: &[Event], run: &Path) -> Vec<(String, usize)> {
    let mut safe = Vec::new();
    for (start, event) in events.iter().enumerate() {
        let Event::Renaming(from, to) = event else { continue };
        if !Path::new(to).starts_with(run) {
            continue;
        }
        assert!(events[..start].contains(&Event::Synced(from.clone())), "{to} takes its name before it is synced");
        let renamed = events[start..].iter().position(|event| *event == Event::Renamed(to.clone()));
        let renamed = start + renamed.unwrap_or_else(|| panic!("{to} is not renamed"));
        let folder = Path::new(to).parent().unwrap().display().to_string();
        let synced = events[renamed..].iter().position(|event| *event == Event::Synced(folder.clone()));
        safe.push((to.clone(), renamed + synced.unwrap_or_else(|| panic!("the folder of {to} is not synced"))));
    }
    safe
}

#[test]
fn a_run_is_safe_before_its_checkpoint_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let run = root.join("run");
    let out = run.display().to_string();
    let small = ["network=resnet10", "width=4", "epochs=2", "warmup_epochs=1"];
    let fixed =
        ["pretrain", "--recipe", "digits-lt/sdclr", "--split", "1", "--pretrain-split", "D_i", "--device", "cpu"];
    let Some(events) = observed(&root, &[&fixed[..], &["--out", &out, "--set"], &small].concat()) else { return };
    let safe = safe_files(&events, &run);
    let path = |name: &str| run.join(name).display().to_string();
    let removed = events.iter().position(|event| *event == Event::Removing(path("checkpoint.safetensors")));
    let removed = removed.expect("the checkpoint is removed in the end");
    for name in ["checkpoint.safetensors", "encoder.safetensors", "result.json"] {
        let at = safe.iter().find(|(to, _)| *to == path(name)).unwrap_or_else(|| panic!("{name} is not written")).1;
        assert!(at < removed, "{name} is safe only after the checkpoint is removed");
    }
}
