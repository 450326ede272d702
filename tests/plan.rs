//! A suite's jobs by other engines: each by a command of its own, by Slurm, by Snakemake; and the document for Kubernetes.

mod skip;
mod tools;

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sdclr::record::{self, JobRecord};
use sdclr::suite::schedule::{JobList, JobState, ListedJob};
use skip::skip;
use tools::tool;

/// Small enough for a test, whole enough for no smoke run.
const SMALL: [&str; 7] =
    ["--set", "lr=0.05", "epochs=4", "warmup_epochs=1", "probe.full.epochs=1", "probe.few.epochs=20", "output_dim=8"];
const SELECT: [&str; 6] = ["--methods", "simclr-D_i,random", "--splits", "1", "--seeds", "1"];

fn sdclr(command: &str, out: &Path, more: &[&str]) -> Command {
    let mut sdclr = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"));
    sdclr.env_remove("SDCLR_DATA").env("OMP_NUM_THREADS", "1").env("SDCLR_CACHE", "/nonexistent");
    sdclr.args([command, "digits-lt", "--out"]).arg(out).args(SELECT).args(SMALL).args(more);
    sdclr
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn document(out: &Path, format: &str, more: &[&str]) -> String {
    let output = sdclr("plan", out, &[&["--format", format], more].concat()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn list(out: &Path, more: &[&str]) -> BTreeMap<String, ListedJob> {
    let list: JobList = serde_json::from_str(&document(out, "json", more)).unwrap();
    assert_eq!((list.format, list.suite.as_str()), (1, "digits-lt"));
    list.jobs.into_iter().map(|job| (job.id.to_string(), job)).collect()
}

fn records(out: &Path) -> BTreeMap<String, JobRecord> {
    let (records, damaged) = record::read_results(out).unwrap();
    assert!(damaged.is_empty(), "{damaged:?}");
    records.into_iter().map(|record| (record.header().job.to_string(), record)).collect()
}

fn states(out: &Path) -> BTreeMap<String, String> {
    records(out).into_iter().map(|(job, record)| (job, record.job().state_sha256.clone())).collect()
}

/// The weights of the whole suite by one command.
fn alone(folder: &Path) -> BTreeMap<String, String> {
    let out = folder.join("alone");
    let output = sdclr("repro", &out, &[]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    states(&out)
}

fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what} never came");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The program of an installation does not find libtorch on its own; it gets the launcher's path as its first argument.
#[test]
fn the_command_of_a_job_is_the_launchers() {
    let folder = tempfile::tempdir().unwrap();
    let this = assert_cmd::cargo::cargo_bin!("sdclr");
    for (first, expected) in [("/opt/bin/sdclr", Path::new("/opt/bin/sdclr")), ("sdclr", this)] {
        let output = sdclr("plan", folder.path(), &[]).arg0(first).output().unwrap();
        let list: JobList = serde_json::from_slice(&output.stdout).unwrap();
        assert!(list.jobs.iter().all(|job| Path::new(&job.argv[0]) == expected), "{}", said(&output));
    }
}

/// The jobs' own commands, run one by one in any order, give what a single command gives.
#[test]
fn each_job_has_a_command_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("by one");
    let before = list(&out, &[]);
    assert_eq!(before.len(), 5);
    assert!(!out.exists(), "a plan writes nothing");
    let (training, probe) = (&before["simclr-D_i-split1"], &before["simclr-D_i-split1/few"]);
    assert_eq!(probe.after, std::slice::from_ref(&training.id));
    assert!(training.after.is_empty() && before["random-split1/few"].after.is_empty());
    // The encoder's weights are a part of its probes' hash.
    assert!(training.hash.is_some() && probe.hash.is_none() && before["random-split1/full"].hash.is_some());
    assert!(before.values().all(|job| job.state == JobState::Missing && job.cost_seconds.is_none()));

    let run = |job: &ListedJob| {
        assert!(Path::new(&job.argv[0]).is_absolute());
        let output = Command::new(&job.argv[0]).args(&job.argv[1..]).current_dir("/").output().unwrap();
        (output.status.code(), said(&output))
    };
    let (code, said) = run(probe);
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("probes wait for simclr-D_i-split1;") && records(&out).is_empty(), "{said}");
    for id in ["simclr-D_i-split1", "random-split1/few", "simclr-D_i-split1/few"] {
        let (code, said) = run(&before[id]);
        assert_eq!(code, Some(0), "{id}: {said}");
    }
    let between = list(&out, &[]);
    let full = &between["simclr-D_i-split1/full"];
    assert!(full.hash.is_some() && full.cost_seconds.is_some_and(|seconds| seconds > 0.0), "{full:?}");
    assert_eq!(full.state, JobState::Missing);
    for id in ["random-split1/full", "simclr-D_i-split1/full"] {
        assert_eq!(run(&between[id]).0, Some(0), "{id}");
    }

    let (after, records) = (list(&out, &[]), records(&out));
    for (id, job) in &after {
        assert_eq!((job.state, job.cost_seconds), (JobState::Done, Some(0.0)), "{id}");
        assert_eq!(job.hash.as_ref(), Some(&records[id].header().recipe_hash), "{id}");
        let known = [before[id].hash.as_ref(), between[id].hash.as_ref()];
        assert!(known.into_iter().flatten().all(|hash| Some(hash) == job.hash.as_ref()), "{id}");
    }
    assert_eq!(states(&out), alone(folder.path()));
    let table = |out: &str| std::fs::read_to_string(folder.path().join(out).join("report.csv")).unwrap();
    assert_eq!(table("by one"), table("alone"));
    let nothing = sdclr("plan", &out, &["--format", "slurm"]).output().unwrap();
    assert_eq!(nothing.status.code(), Some(1));
}

#[test]
fn a_job_that_is_not_in_the_plan_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (name, code, why) in [("sdclr-D_i-split1", 1, "has no job"), ("few", 2, "is not the name of a job")] {
        let output = sdclr("repro", folder.path(), &["--job", name]).output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        assert!(said(&output).contains(why), "{}", said(&output));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// What is printed as failures are jobs that were asked for; a probe whose encoder is not trained yet has not failed.
#[test]
fn jobs_that_were_not_asked_for_are_no_failures() {
    let folder = tempfile::tempdir().unwrap();
    for (job, code, failures) in [("random-split1/few", 0, 0), ("simclr-D_i-split1/few", 75, 1)] {
        let output = sdclr("repro", folder.path(), &["--json", "--job", job]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = shown["failures"].as_array().unwrap();
        assert_eq!(found.len(), failures, "{shown}");
        assert!(found.iter().all(|failure| failure["job"] == job), "{shown}");
        assert!(!said(&output).contains("failed"), "{}", said(&output));
    }
}

/// A pre-training that has a checkpoint is listed as that, with what is left of it.
#[test]
fn a_job_under_way_is_resumable() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let long = ["--set", "epochs=1000"];
    let output = sdclr("repro", &out, &[&long[..], &["--budget", "1s"]].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", said(&output));
    let listed = list(&out, &long);
    let [training, random] = ["simclr-D_i-split1", "random-split1/few"].map(|id| &listed[id]);
    assert_eq!([training.state, random.state], [JobState::Resumable, JobState::Missing]);
    let recorded = record::read_events(&out.join("simclr-D_i-split1/run.jsonl")).unwrap();
    let epochs: Vec<f64> = recorded
        .iter()
        .filter_map(|(event, _)| if let record::Event::Epoch(epoch) = event { Some(epoch.seconds) } else { None })
        .collect();
    let left = (1000 - epochs.len()) as f64 * epochs.iter().sum::<f64>() / epochs.len() as f64;
    // By the median speed, not the mean.
    let cost = training.cost_seconds.unwrap();
    assert!((0.3..3.0).contains(&(cost / left)), "{cost} {left}");
}

/// What Kubernetes' own schemas say, strictly: no field that they do not know.
#[test]
fn kubernetes_accepts_the_job() {
    let Some(validate) = tool("kubernetes-validate") else { return };
    let folder = tempfile::tempdir().unwrap();
    let text = document(&folder.path().join("it's here"), "kubernetes", &["--data", "/some data"]);
    let accepted = |text: &str| {
        let path = folder.path().join("job.yaml");
        sdclr::fs::write(&path, text.as_bytes()).unwrap();
        Command::new(&validate).arg("--strict").arg(&path).output().unwrap()
    };
    let output = accepted(&text);
    assert!(output.status.success(), "{}\n{text}", said(&output));
    assert!(!accepted(&text.replace("podFailurePolicy", "podFailurePolice")).status.success());
    assert!(text.contains("completions: 2\n") && text.contains("--data=/some data"), "{text}");
}

#[test]
fn snakemake_does_the_jobs() {
    let Some(snakemake) = tool("snakemake") else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("it's {an} \"out\"");
    let file = folder.path().join("Snakefile");
    sdclr::fs::write(&file, document(&out, "snakemake", &[]).as_bytes()).unwrap();
    let mut command = Command::new(snakemake);
    command.arg("--snakefile").arg(&file).args(["--cores", "2"]).current_dir(folder.path());
    let output = command.env("XDG_CACHE_HOME", folder.path()).env("HOME", folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(states(&out), alone(folder.path()));
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn has_slurm() -> bool {
    ["slurmctld", "slurmd", "slurm-client"].iter().zip(["slurmctld", "slurmd", "sbatch"]).all(|(package, name)| {
        // Without a configuration they fail even to tell their version.
        let there = Command::new(name).arg("-V").output().is_ok();
        if !there {
            skip("slurm", &format!("there is no {name} here; Debian: apt-get install {package}"));
        }
        there
    })
}

/// Slurm on this machine, as two nodes.
struct Slurm {
    folder: PathBuf,
    daemons: Vec<Child>,
}

impl Slurm {
    fn start(folder: &Path) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
        let (at, node) = (folder.display(), format!("NodeHostname={host} NodeAddr=127.0.0.1 CPUs=1"));
        let configuration = format!(
            "ClusterName=sdclr\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={}\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/none\nCredType=cred/none\nProctrackType=proctrack/pgid\nTaskPlugin=task/none\nMpiDefault=none\n\
             JobAcctGatherType=jobacct_gather/none\nSelectType=select/linear\nReturnToService=2\n\
             SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0\n\
             StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool.%n\n\
             SlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.%n.pid\n\
             SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd.%n.log\n\
             NodeName=n1 {node} Port={}\nNodeName=n2 {node} Port={}\n\
             PartitionName=p Nodes=n1,n2 Default=YES State=UP\n",
            free_port(),
            free_port(),
            free_port()
        );
        for name in ["state", "spool.n1", "spool.n2"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        sdclr::fs::write(&folder.join("slurm.conf"), configuration.as_bytes()).unwrap();
        let mut slurm = Self { folder: folder.to_owned(), daemons: Vec::new() };
        for daemon in
            [&["slurmctld", "-D", "-c", "-i"][..], &["slurmd", "-D", "-N", "n1"], &["slurmd", "-D", "-N", "n2"]]
        {
            let mut daemon = slurm.command(daemon);
            slurm.daemons.push(daemon.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        }
        wait_for("an idle node", || slurm.ask(&["sinfo", "-h", "-t", "idle", "-o", "%D"]).trim() == "2");
        slurm
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("SLURM_CONF", self.folder.join("slurm.conf"));
        command
    }

    fn ask(&self, words: &[&str]) -> String {
        said(&self.command(words).output().unwrap())
    }

    /// Tasks that run or wait, and how: `0 PENDING BeginTime 17`, the last the number of the task's own job.
    fn queue(&self) -> Vec<String> {
        self.ask(&["squeue", "-h", "-r", "-o", "%K %T %r %A"]).lines().map(str::to_owned).collect()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[test]
fn slurm_is_told_of_no_folder_that_its_lines_cannot_hold() {
    let folder = tempfile::tempdir().unwrap();
    let script = document(&folder.path().join("10% it's"), "slurm", &[]);
    assert!(script.contains("10%% it's/slurm-%a.log\"\n"), "{script}");
    let output = sdclr("plan", &folder.path().join("a\"b"), &["--format", "slurm"]).output().unwrap();
    assert!(output.status.code() == Some(1) && said(&output).contains("#SBATCH"), "{}", said(&output));
}

/// One task is killed in mid-training, saves and is queued again by its own script; another is requeued from outside.
#[test]
fn slurm_does_the_jobs_and_queues_again_what_was_stopped() {
    if !has_slurm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let long = ["--set", "epochs=150", "--methods", "sdclr-D_i"];
    let script = document(&out, "slurm", &long);
    let file = folder.path().join("job.sbatch");
    sdclr::fs::write(&file, script.as_bytes()).unwrap();
    // As the script's header asks.
    std::fs::create_dir(&out).unwrap();
    let slurm = Slurm::start(&folder.path().join("slurm"));
    let submitted = slurm.ask(&["sbatch", file.to_str().unwrap()]);
    assert!(submitted.contains("Submitted batch job"), "{submitted}");

    let checkpoint = |encoder: &str| out.join(encoder).join("checkpoint.safetensors");
    let encoders = ["simclr-D_i-split1", "sdclr-D_i-split1"];
    wait_for("a checkpoint of both pre-trainings", || encoders.iter().all(|encoder| checkpoint(encoder).exists()));
    // As Slurm does two minutes before the time is up: to the script alone.
    slurm.ask(&["scancel", "--batch", "--signal=TERM", "1_0"]);
    slurm.ask(&["scontrol", "requeue", "1_2"]);
    wait_for("two requeued tasks", || slurm.queue().iter().filter(|task| task.contains("BeginTime")).count() == 2);
    // Slurm holds them two minutes.
    for task in slurm.queue() {
        let job = task.rsplit(' ').next().unwrap().to_owned();
        slurm.ask(&["scontrol", "update", &format!("JobId={job}"), "StartTime=now"]);
    }
    wait_for("the end of all tasks", || slurm.queue().is_empty());
    let log = |task: usize| std::fs::read_to_string(out.join(format!("slurm-{task}.log"))).unwrap();
    let records = records(&out);
    assert_eq!(records.len(), 8, "{}\n{}\n{}", log(0), log(1), log(2));
    for (task, encoder) in [0, 2].into_iter().zip(encoders) {
        let log = log(task);
        assert!(log.contains("stopped by SIGTERM") && records[encoder].job().sessions.len() == 2, "{encoder}: {log}");
    }
}

/// A task on each of two nodes: they train together, and a signal to the step saves what they have.
#[test]
fn srun_starts_the_ranks_of_one_run() {
    if !has_slurm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let slurm = Slurm::start(&folder.path().join("slurm"));
    let out = folder.path().join("out");
    let start = || {
        let mut srun = slurm.command(&["srun", "--nodes", "2", "--ntasks", "2", "--job-name", "ranks"]);
        srun.arg(assert_cmd::cargo::cargo_bin!("sdclr")).args(["pretrain", "--recipe", "digits-lt/sdclr", "--out"]);
        srun.arg(&out).args(["--split", "1", "--pretrain-split", "D_i", "--set", "epochs=60", "lr=0.01"]);
        srun.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", free_port().to_string()).env("OMP_NUM_THREADS", "1");
        srun.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let stopped = start();
    wait_for("a checkpoint", || out.join("checkpoint.safetensors").exists());
    slurm.ask(&["scancel", "--signal=TERM", "--name", "ranks"]);
    let output = stopped.wait_with_output().unwrap();
    assert!(output.status.code() == Some(75) && said(&output).contains("stopped by SIGTERM"), "{}", said(&output));
    let output = start().wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("result.json")).unwrap()).unwrap();
    let ranks: Vec<_> = record["sessions"].as_array().unwrap().iter().map(|session| &session["ranks"]).collect();
    assert_eq!(ranks, [2, 2]);
    assert_eq!(record["epochs"].as_array().unwrap().len(), 60);
}
