//! Whole suites as a user runs them: files of one's own, several processes on one folder, signals, damaged files, verdicts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sdclr::progress::Progress;
use sdclr::recipe::PretrainSplit;
use sdclr::record::PretrainRecord;
use sdclr::stop::Stop;
use sdclr::suite::PlannedEncoder;
use sdclr::suite::context::{Context, Scale};
use serde_json::Value;

fn program() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("sdclr"));
    command.env_remove("SDCLR_DATA").env("OMP_NUM_THREADS", "1");
    command
}

/// Small enough for a test, whole enough for no smoke run.
const SMALL: [&str; 6] =
    ["lr=0.05", "epochs=4", "warmup_epochs=1", "probe.full.epochs=1", "probe.few.epochs=20", "output_dim=8"];

/// With one seed, unless `more` says otherwise or cannot have one.
fn repro(suite: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = program();
    let own = ["--seeds", "--encoders", "--dry-run"].iter().any(|name| more.contains(name));
    let seeds: &[&str] = if own { &[] } else { &["--seeds", "1"] };
    command.args(["repro", suite, "--device", "cpu", "--out"]).arg(out).args(more).args(seeds).arg("--set").args(SMALL);
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every record under `folder`, by its job.
fn records(folder: &Path) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.file_name().and_then(|name| name.to_str()) {
                Some("result.json") => {
                    let record = json(&entry);
                    found.insert(record["job"].as_str().unwrap().to_owned(), record);
                }
                _ if entry.is_dir() => folders.push(entry),
                _ => {}
            }
        }
    }
    found
}

fn states(folder: &Path) -> BTreeMap<String, String> {
    let hash = |record: Value| record["state_sha256"].as_str().unwrap().to_owned();
    records(folder).into_iter().map(|(job, record)| (job, hash(record))).collect()
}

fn wait_for(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(120), "it never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(child: &Child, number: i32) {
    // SAFETY: a signal to a child that was not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, number) }, 0);
}

/// A copy of an embedded file trains the same networks; its name is the file's stem.
#[test]
fn a_file_of_ones_own_runs_as_an_embedded_suite() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/suites/digits-lt.toml");
    let text = std::fs::read_to_string(embedded).unwrap();
    let extra = "[[encoders]]\nname = \"dense\"\nmethod = \"sdclr\"\nlabel = \"SDCLR without pruning\"\n\
                 lists = [\"D_i\"]\noverrides = { dual_bn = true, head_layers = 3, prune_ratio = 0.0 }\n\n[recipe]";
    sdclr::fs::write(&file, text.replacen("[recipe]", extra, 1).as_bytes()).unwrap();
    let [own, known] = ["own", "known"].map(|name| folder.path().join(name));
    let select = ["--splits", "1", "--methods", "random,sdclr,dense"];
    let printed = succeed(repro(file.to_str().unwrap(), &own, &select));
    assert!(printed.contains("SDCLR without pruning"), "{printed}");
    succeed(repro("digits-lt", &known, &["--splits", "1", "--methods", "random,sdclr"]));
    let (own_records, mut own_states) = (records(&own), states(&own));
    assert_eq!(own_records.len(), 8);
    for record in own_records.values() {
        assert_eq!((record["suite"].as_str(), record["format"].as_u64()), (Some("mine"), Some(2)));
        assert!(record["sessions"][0]["environment"]["libtorch"].is_string());
    }
    let dense = &own_records["dense-D_i-split1"];
    assert_eq!((&dense["encoder"], &dense["method"]), (&"dense".into(), &"sdclr".into()));
    assert_eq!(dense["recipe"]["prune_ratio"], 0.0);
    own_states.retain(|job, _| !job.starts_with("dense"));
    assert_eq!(own_states, states(&known));

    // The same recipe by its name.
    let run = folder.path().join("run");
    let name = format!("{}:dense", file.display());
    let mut command = program();
    command.args([
        "pretrain",
        "--recipe",
        &name,
        "--split",
        "1",
        "--pretrain-split",
        "D_i",
        "--device",
        "cpu",
        "--out",
    ]);
    command.arg(&run).arg("--set").args(SMALL);
    succeed(command);
    assert_eq!(json(&run.join("result.json"))["state_sha256"], dense["state_sha256"]);
}

/// When the log of a run was written last.
fn log_of(job: &Path) -> Option<std::time::SystemTime> {
    std::fs::metadata(job.join("run.jsonl")).ok()?.modified().ok()
}

/// Stopped in the middle of an epoch, a run ends with exit code 75; the same command ends it as if it had never stopped.
#[test]
fn a_signal_stops_within_a_step_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let select = ["--splits", "1", "--methods", "sdclr-D_i", "--jobs", "1"];
    succeed(repro("digits-lt", &whole, &select));
    let job = parts.join("sdclr-D_i-split1");
    let mut stopped = 0;
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // A signal that this test was started to ignore lets the run end.
        if job.join("result.json").exists() {
            break;
        }
        let before = log_of(&job);
        let mut command = repro("digits-lt", &parts, &select);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(|| log_of(&job).is_some_and(|now| Some(now) != before) || job.join("result.json").exists());
        std::thread::sleep(Duration::from_millis(150));
        signal(&child, number);
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            Some(75) => stopped += 1,
            code => assert_eq!(code, Some(0), "signal {number}: {:?} {}", output.status, said(&output)),
        }
        if output.status.code() == Some(75) && !job.join("result.json").exists() {
            assert!(said(&output).contains("run the same command again to continue"), "{}", said(&output));
            assert!(job.join("checkpoint.safetensors").exists());
        }
    }
    assert!(stopped > 0, "every run was over before its signal came");
    succeed(repro("digits-lt", &parts, &select));
    assert_eq!(states(&whole), states(&parts));
    let [a, b] = [&whole, &parts].map(|out| records(out)["sdclr-D_i-split1"].clone());
    let losses =
        |record: &Value| record["epochs"].as_array().unwrap().iter().map(|e| e["loss"].clone()).collect::<Vec<_>>();
    assert_eq!(losses(&a), losses(&b));
    assert!(b["sessions"].as_array().unwrap().len() > 1);
}

/// Eight processes on one folder, four of them killed in the middle of different jobs: all ends as by one process.
#[test]
fn processes_divide_the_jobs_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let [alone, shared] = ["alone", "shared"].map(|name| folder.path().join(name));
    let select = ["--splits", "1-2", "--methods", "random,simclr-D_i,sdclr-D_i", "--jobs", "1"];
    succeed(repro("digits-lt", &alone, &select));
    let start = || {
        let mut command = repro("digits-lt", &shared, &select);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut children: Vec<Child> = (0..4).map(|_| start()).collect();
    // Moments that differ from run to run would make a failure hard to repeat; these fall into different jobs.
    for (round, pause) in [700, 400, 900, 300].into_iter().enumerate() {
        std::thread::sleep(Duration::from_millis(pause));
        let mut killed = std::mem::replace(&mut children[round], start());
        killed.kill().unwrap();
        killed.wait().unwrap();
    }
    for mut child in children {
        assert!(child.wait().unwrap().success(), "a process that was not killed failed");
    }
    assert_eq!(states(&alone), states(&shared));
    let table = |out: &Path| std::fs::read_to_string(out.join("report.csv")).unwrap();
    assert_eq!(table(&alone), table(&shared));
}

/// A flipped bit in an encoder is told with both hashes, and the good records of its probes stay.
#[test]
fn a_damaged_encoder_fails_its_own_jobs_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let select = ["--splits", "1", "--methods", "simclr"];
    succeed(repro("digits-lt", &out, &select));
    let before = records(&out);
    let encoder = out.join("simclr-D_i-split1/encoder.safetensors");
    let mut bytes = std::fs::read(&encoder).unwrap();
    let place = bytes.len() - 100;
    bytes[place] ^= 0x40;
    sdclr::fs::write(&encoder, &bytes).unwrap();
    let output = repro("digits-lt", &out, &select).output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let recorded: String = before["simclr-D_i-split1"]["state_sha256"].as_str().unwrap().chars().take(12).collect();
    assert!(
        text.contains("encoder.safetensors") && text.contains(&recorded) && text.contains("to train it anew"),
        "{text}"
    );
    assert!(!text.contains("failed: simclr-D_b"), "{text}");
    assert_eq!(records(&out), before);
}

/// Other settings are refused before anything is written.
#[test]
fn a_folder_of_other_settings_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let select = ["--splits", "1", "--methods", "simclr-D_i"];
    succeed(repro("digits-lt", &out, &select));
    let snapshot = || {
        let mut files: Vec<(PathBuf, Vec<u8>)> =
            ["report.md", "report.csv", "suite.json", "simclr-D_i-split1/run.jsonl"]
                .map(|name| (out.join(name), std::fs::read(out.join(name)).unwrap()))
                .to_vec();
        files.sort();
        files
    };
    let before = snapshot();
    for (other, key) in
        [("temperature=0.4", "temperature"), ("probe.few.lr=3", "probe.few.lr"), ("probe.few.seed=9", "probe.few.seed")]
    {
        let mut command = repro("digits-lt", &out, &select);
        let output = command.arg(other).output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("with other settings") && text.contains(key), "{text}");
        assert!(snapshot() == before, "something was written");
    }
}

fn verify(arguments: &[&str]) -> (Option<i32>, String) {
    let output = program().arg("verify").args(arguments).output().unwrap();
    (output.status.code(), said(&output))
}

/// On the committed records: numbers far below ours are beaten, numbers far above are missed. A smoke run says nothing.
#[test]
fn claims_are_judged_by_records() {
    let folder = tempfile::tempdir().unwrap();
    let smoke = folder.path().join("smoke");
    let limits = ["--limit-epochs", "1", "--limit-images", "64", "--methods", "simclr-D_i"];
    succeed(repro("digits-lt", &smoke, &limits));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let records = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/digits-lt-cpu"));
    let numbers = |mean: f64| {
        let path = folder.path().join(format!("numbers{mean}.csv"));
        let header = "suite,protocol,method,pretrain_split,metric,mean,deviation,source,confidence";
        let row = format!("{header}\ndigits-lt,few,simclr,D_i,all,{mean},1.0,a test,primary\n");
        sdclr::fs::write(&path, row.as_bytes()).unwrap();
        text(&path)
    };
    let json_path = folder.path().join("verdicts.json");
    for (mean, code, outcome) in [(1.0, 0, "better"), (99.0, 3, "worse")] {
        let (found, said) = verify(&[&records, "--published", &numbers(mean), "--json", &text(&json_path)]);
        assert_eq!(found, Some(code), "{said}");
        let verdicts = json(&json_path);
        assert_eq!(verdicts["claims"].as_array().unwrap().len(), 1);
        let claim = &verdicts["claims"][0];
        assert_eq!((&claim["outcome"], &claim["kind"]), (&outcome.into(), &"value".into()));
        assert_eq!(claim["ours"]["n"], claim["ours"]["values"].as_array().unwrap().len());
        assert!(claim["interval90"][0].is_f64() && claim["why"].as_str().is_some_and(|why| !why.is_empty()));
        let (found, said) = verify(&[&text(&smoke), "--published", &numbers(mean)]);
        assert_eq!(found, Some(4), "{said}");
    }
    // The paper's claims about this suite; and records that do not belong together.
    let (code, said) = verify(&[&records]);
    assert!(code == Some(4) && said.contains("claims: "), "{said}");
    let (code, said) = verify(&[&records, &text(&smoke)]);
    assert!(code == Some(1) && said.contains("do not belong together"), "{said}");
    // Another recipe under one name, and a claim about a row that no suite has.
    let other = text(&folder.path().join("other"));
    succeed(repro("digits-lt", Path::new(&other), &[limits.as_slice(), &["--set", "temperature=0.5"]].concat()));
    let (code, said) = verify(&[&text(&smoke), &other]);
    assert!(code == Some(1) && said.contains("do not belong together") && said.contains("temperature"), "{said}");
    let claims = folder.path().join("claims.toml");
    let own = "[[value]]\nid = \"one\"\nsuite = \"digits-lt\"\nprotocol = \"few\"\nmethod = \"sinclr\"\npretrain_split = \"D_i\"\n\
               metric = \"all\"\nmargin = 1.0\nbetter_allowed = true\nprimary = true\nsource = \"a test\"\nconfidence = \"primary\"\n";
    sdclr::fs::write(&claims, own.as_bytes()).unwrap();
    let table = folder.path().join("sinclr.csv");
    let row = "suite,protocol,method,pretrain_split,metric,mean,deviation,source,confidence\n\
               digits-lt,few,sinclr,D_i,all,70,1.0,a test,primary\n";
    sdclr::fs::write(&table, row.as_bytes()).unwrap();
    let (code, said) = verify(&[&records, "--claims", &text(&claims), "--published", &text(&table)]);
    assert!(code == Some(1) && said.contains("sinclr D_i, which is no row of the suite"), "{said}");
    let (code, said) = verify(&[&text(&folder.path().join("nowhere"))]);
    assert!(code == Some(1) && said.contains("nowhere"), "{said}");
}

/// A second seed has folders of its own, and the first keeps its name.
#[test]
fn seeds_have_folders_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let select = ["--splits", "1", "--methods", "simclr-D_i", "--seeds", "2", "--probe-seeds", "2"];
    succeed(repro("digits-lt", &out, &select));
    let found = records(&out);
    let jobs: Vec<&str> = found.keys().map(String::as_str).collect();
    let probes =
        |encoder: &str| ["", "/few", "/few-seed2", "/full", "/full-seed2"].map(|part| format!("{encoder}{part}"));
    let mut expected = [probes("simclr-D_i-split1"), probes("simclr-D_i-split1-seed2")].concat();
    expected.sort();
    assert_eq!(jobs, expected);
    let seeds = ["simclr-D_i-split1", "simclr-D_i-split1-seed2"].map(|job| found[job]["recipe"]["seed"].clone());
    assert_eq!(seeds, [10, 11]);
    assert_eq!(states(&out).values().collect::<std::collections::BTreeSet<_>>().len(), jobs.len());
    let csv = std::fs::read_to_string(out.join("report.csv")).unwrap();
    assert!(csv.lines().next().unwrap().ends_with("best_validation_accuracy") && csv.lines().count() == 9, "{csv}");
}

/// A suite's own number of seeds is taken where the command says nothing; the recipe and its hash do not know it.
#[test]
fn a_suite_has_its_own_number_of_seeds() {
    let folder = tempfile::tempdir().unwrap();
    let text = include_str!("../fixtures/suites/digits-lt.toml");
    assert!(text.contains("\nseeds = 2\n"));
    let jobs = |name: &str, text: &str, more: &[&str]| {
        let file = folder.path().join(name).with_extension("toml");
        sdclr::fs::write(&file, text.as_bytes()).unwrap();
        let select = [&["--splits", "1", "--methods", "random", "--dry-run"], more].concat();
        let said = succeed(repro(file.to_str().unwrap(), folder.path(), &select));
        said.lines().filter(|line| line.starts_with("probe ")).count()
    };
    assert_eq!([jobs("two", text, &[]), jobs("two", text, &["--seeds", "1"])], [4, 2]);
    assert_eq!(jobs("one", &text.replace("\nseeds = 2\n", "\n"), &[]), 2);
    let recipe = |text: &str| {
        let suite = sdclr::recipe::Suite::parse("a", text).unwrap();
        suite.recipe(suite.encoder("sdclr").unwrap(), &[]).unwrap().to_json().unwrap()
    };
    assert_eq!(recipe(text), recipe(&text.replace("\nseeds = 2\n", "\nseeds = 7\n")));
}

/// Bytes of the files under `folder`.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().unwrap().len() }).sum()
}

/// What the dry run says of disk use holds within 30 % for the report and 10 % for encoders and records.
#[test]
fn disk_use_is_forecast() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let set =
        [&SMALL[..2], &["probe.few.epochs=100"]].concat().iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let suite = sdclr::recipe::Suite::open("digits-lt").unwrap();
    let selection = sdclr::suite::Selection {
        methods: vec!["sdclr".to_owned()],
        splits: vec![1],
        overrides: set.clone(),
        ..Default::default()
    };
    let plan = sdclr::suite::plan(&suite, &selection).unwrap();
    let disk = sdclr::suite::forecast(&plan, &Scale::default(), &out, Some(1)).unwrap().disk;
    let mut command = program();
    command.args([
        "repro",
        "digits-lt",
        "--device",
        "cpu",
        "--splits",
        "1",
        "--methods",
        "sdclr",
        "--seeds",
        "1",
        "--out",
    ]);
    command.arg(&out).arg("--set").args(&set);
    succeed(command);
    let job = out.join("sdclr-D_i-split1");
    let encoder = std::fs::metadata(job.join("encoder.safetensors")).unwrap().len();
    let near = |forecast: u64, found: u64, share: f64| {
        let ratio = forecast as f64 / found as f64;
        assert!((1.0 - share..1.0 + share).contains(&ratio), "forecast {forecast}, found {found}");
    };
    near(disk.encoders, encoder, 0.1);
    near(disk.records, size(&job) - encoder, 0.1);
    near(disk.encoders + disk.records + disk.report, size(&out), 0.3);
    // Weights and momentum, twice.
    near(disk.checkpoints, 4 * encoder, 0.1);
}

/// Finite weights beyond all bounds are no encoder: one epoch at an absurd rate is a failure, not a result.
#[test]
fn weights_of_no_use_are_never_called_trained() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program();
    let recipe =
        ["pretrain", "--recipe", "digits-lt/simclr", "--split", "1", "--pretrain-split", "D_i", "--device", "cpu"];
    command.args(recipe).arg("--out").arg(folder.path());
    let output = command.args(["--set", "lr=1e9", "schedule=constant", "epochs=1", "batch_size=400"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("training diverged; lower lr"), "{}", said(&output));
    assert!(!folder.path().join("encoder.safetensors").exists() && !folder.path().join("result.json").exists());
}

/// Encoders from elsewhere are probed as the suite's own and stand beside them: here a copy of SimCLR's, which scores the same.
#[test]
fn encoders_from_elsewhere_stand_beside_the_suites_own() {
    let folder = tempfile::tempdir().unwrap();
    let [out, elsewhere] = ["out", "elsewhere"].map(|name| folder.path().join(name));
    succeed(repro("digits-lt", &out, &["--splits", "1", "--methods", "simclr-D_i"]));
    let bytes = std::fs::read(out.join("simclr-D_i-split1/encoder.safetensors")).unwrap();
    for split in [1, 2] {
        sdclr::fs::write(&elsewhere.join(format!("mine-D_i-split{split}.safetensors")), &bytes).unwrap();
    }
    let from = elsewhere.to_str().unwrap();
    let printed = succeed(repro("digits-lt", &out, &["--splits", "1-3", "--encoders", from, "--name", "mine"]));
    for part in ["missing: mine-D_b-split1", "missing: mine-D_i-split3", "SimCLR", "mine"] {
        assert!(printed.contains(part), "{part} is not in\n{printed}");
    }
    let found = records(&out);
    for part in ["full", "few"] {
        let [mine, own] = ["mine", "simclr"].map(|name| found[&format!("{name}-D_i-split1/{part}")].clone());
        assert_eq!(mine["per_class"], own["per_class"]);
        assert!(mine["checkpoint"].as_str().unwrap().ends_with("mine-D_i-split1.safetensors"));
        assert_eq!((&mine["encoder"], &mine["method"]), (&"mine".into(), &"mine".into()));
    }
    let report = std::fs::read_to_string(out.join("report.md")).unwrap();
    let command = format!("--encoders {from} --name mine --splits 1-3");
    assert!(report.contains("mine on D_i − SimCLR on D_i") && report.contains(&command), "{report}");
    // One file under two splits is one encoder.
    assert!(report.contains("mine on D_i, few-shot: 2 results are of 1 encoder;"), "{report}");

    // As JSON, read back from the records alone; and names that cannot be.
    let output = repro("digits-lt", &out, &["--splits", "1", "--encoders", from, "--name", "mine", "--json"]).output();
    let shown: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    assert_eq!((&shown["format"], shown["settings"].as_array().unwrap().len()), (&1.into(), 4));
    for (name, said_of) in [("simclr", "choose another --name"), ("none", "holds no checkpoint called none-D_b-split1")]
    {
        let output = repro("digits-lt", &out, &["--encoders", from, "--name", name]).output().unwrap();
        assert!(output.status.code() == Some(1) && said(&output).contains(said_of), "{}", said(&output));
    }
}

/// Stopped after any step, twice, in any epoch, a run ends with the weights and losses of one that was never stopped.
#[test]
fn every_step_is_a_place_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let set = ["width=2", "epochs=2", "warmup_epochs=1", "batch_size=128", "output_dim=4", "random_prune_ratio=0.2"];
    let set = set.map(str::to_owned);
    let encoder = PlannedEncoder::of_recipe("digits-lt/sdclr", &set, Some(PretrainSplit::D_i), 1).unwrap();
    let run = |name: &str, stop: Stop| {
        let scale = Scale { device: Some("cpu".into()), stop, ..Scale::default() };
        let context = Context::open(&encoder.recipe, scale).unwrap();
        context
            .pretrain(&encoder, PretrainSplit::D_i, &folder.path().join(name), &Progress::default())
            .map_err(Box::new)
    };
    let whole = run("whole", Stop::default()).unwrap();
    let steps = 2 * context_steps(&whole);
    let mut stopped = 0;
    for questions in 0..steps + 2 {
        let name = questions.to_string();
        for again in [questions, 1] {
            stopped += usize::from(run(&name, Stop::after(again)).is_err());
        }
        let parts = run(&name, Stop::default()).unwrap();
        assert_eq!(parts.job.state_sha256, whole.job.state_sha256, "stopped after {questions} questions");
        let losses = |record: &PretrainRecord| record.epochs.iter().map(|epoch| epoch.loss).collect::<Vec<_>>();
        assert_eq!(losses(&parts), losses(&whole), "stopped after {questions} questions");
    }
    assert!(stopped > steps, "{stopped} stops");
}

/// Steps of an epoch, by the images of the list and the batches of 128.
fn context_steps(record: &PretrainRecord) -> usize {
    let images = record.epochs[0].images_per_second * record.epochs[0].seconds;
    (images.round() as usize).div_ceil(128)
}
