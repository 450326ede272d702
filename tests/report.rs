//! `sdclr report`: reports made again from records alone, finished or not, from one folder or several, and two sets of records
//! side by side.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/digits-lt-cpu")
}

fn sdclr(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("sdclr")).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

fn succeed(arguments: &[&str]) -> String {
    let (code, said) = sdclr(arguments);
    assert_eq!(code, Some(0), "{said}");
    said
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Copies the records of the jobs under `part`, such as `simclr-D_i-split1`, changed by `change`.
fn copy(to: &Path, part: &str, change: impl Fn(&mut Value)) {
    for job in ["", "full", "few"] {
        let from = committed().join(part).join(job).join("result.json");
        if from.exists() {
            let mut record: Value = serde_json::from_str(&read(from)).unwrap();
            change(&mut record);
            let record = serde_json::to_string_pretty(&record).unwrap();
            sdclr::fs::write(&to.join(part).join(job).join("result.json"), record.as_bytes()).unwrap();
        }
    }
}

fn copy_suite(to: &Path) {
    sdclr::fs::write(&to.join("suite.json"), read(committed().join("suite.json")).as_bytes()).unwrap();
}

/// All encoders of `split`.
fn copy_split(to: &Path, split: usize, change: impl Fn(&mut Value)) {
    copy_seed(to, split, "", &change);
    copy_seed(to, split, "-seed2", &change);
}

fn copy_seed(to: &Path, split: usize, seed: &str, change: impl Fn(&mut Value)) {
    for encoder in ["random", "simclr-D_i", "simclr-D_b", "sdclr-D_i"] {
        copy(to, &format!("{encoder}-split{split}{seed}"), &change);
    }
}

/// The numbers of the verdicts in a report are those of `sdclr verify` on the same records.
#[test]
fn a_report_leads_with_the_verdicts_of_verify() {
    let folder = tempfile::tempdir().unwrap();
    let records = committed();
    let said = succeed(&["report", text(&records), "--out", text(folder.path())]);
    assert!(said.contains("report.md"), "{said}");
    let markdown = read(folder.path().join("report.md"));
    let verdicts = folder.path().join("verdicts.md");
    sdclr(&["verify", text(&records), "--markdown", text(&verdicts)]);
    let verdicts = read(verdicts);
    let rows = |markdown: &str| -> Vec<String> {
        markdown.lines().filter(|line| line.contains("`digits-lt/")).map(str::to_owned).collect()
    };
    let (expected, found) = (rows(&verdicts), rows(&markdown));
    assert!(expected.len() > 4, "{verdicts}");
    for row in &expected {
        assert!(found.contains(row), "the report lacks: {row}");
    }
    let lead = |markdown: &str| markdown.split("\n\n").nth(1).unwrap().to_owned();
    assert_eq!(lead(&markdown), lead(&verdicts), "one answer");
    // Made again, it is the same to the byte; links lead from where it was written to the records.
    let again = tempfile::tempdir().unwrap();
    succeed(&["report", text(&records), "--out", text(again.path())]);
    assert_eq!(markdown.matches("](../").count(), read(again.path().join("report.md")).matches("](../").count());
    let link = markdown.split("[result.json](").nth(1).unwrap().split(')').next().unwrap();
    assert!(folder.path().join(link).is_file(), "{link}");
}

/// Claims are about the recipe and the data of the embedded suite, whatever a suite of one's own is called.
#[test]
fn claims_are_judged_by_their_own_recipe_and_data_alone() {
    let folder = tempfile::tempdir().unwrap();
    let verify = |name: &str, change: &dyn Fn(&mut Value)| {
        let records = folder.path().join(name);
        copy_suite(&records);
        (1..=5).for_each(|split| copy_split(&records, split, change));
        let (code, said) = sdclr(&["verify", text(&records)]);
        succeed(&["report", text(&records)]);
        (code, said, read(records.join("report.md")))
    };
    let (code, expected, _) = verify("same", &|_| {});
    assert!(code == Some(4) && !expected.contains("not applicable"), "{expected}");
    let (code, said, _) = verify("machine", &|record| {
        record["recipe"]["precision"] = "bf16".into();
        record["recipe"]["threads"] = 4.into();
    });
    assert_eq!((code, said), (Some(4), expected), "another machine's precision and threads");
    for (key, value, words) in [
        ("epochs", Value::from(1), "epochs 1 instead of 80"),
        ("dataset", Value::from("arrays"), "dataset \"arrays\" instead of \"digits\""),
    ] {
        let (code, said, report) = verify(key, &|record| record["recipe"][key] = value.clone());
        assert!(code == Some(4) && said.contains("5 claims: 5 not applicable"), "{said}");
        assert!(said.contains(&format!(" have others: {words}.")), "{said}");
        assert!(report.contains("**No claim applies**. The claim is about the recipe and the data"), "{report}");
    }
    // A probe's keys are those of its own claims.
    let (_, said, _) = verify("probe", &|record| record["recipe"]["probe"]["full"]["epochs"] = 1.into());
    assert!(said.contains("2 not applicable") && said.contains("probe.full.epochs 1 instead of 30"), "{said}");
}

#[test]
fn a_half_finished_folder_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    copy_suite(out);
    copy(out, "simclr-D_i-split1", |_| {});
    std::fs::remove_dir_all(out.join("simclr-D_i-split1/few")).unwrap();
    // One job that was stopped, one that failed.
    let log = read(committed().join("simclr-D_i-split1/few/run.jsonl"));
    let two_epochs: String = log.lines().take(3).map(|line| format!("{line}\n")).collect();
    sdclr::fs::write(&out.join("simclr-D_i-split1/few/run.jsonl"), two_epochs.as_bytes()).unwrap();
    let failure = "{\"event\":\"failure\",\"error\":\"the loss is <NaN> in epoch 1\"}\n";
    sdclr::fs::write(&out.join("sdclr-D_i-split1/run.jsonl"), failure.as_bytes()).unwrap();
    let said = succeed(&["report", text(out)]);
    assert!(said.contains(text(&out.join("report.md"))), "{said}");
    let markdown = read(out.join("report.md"));
    assert!(markdown.contains("2 of 110 jobs finished, on split 1"), "{markdown}");
    for line in [
        "- `simclr-D_i-split1/few`: stopped after 2 epochs",
        "- `sdclr-D_i-split1`: the loss is &lt;NaN> in epoch 1",
        "- `random-split3/few`: not begun",
    ] {
        assert!(markdown.contains(line), "the report lacks: {line}");
    }
    assert!(read(out.join("report.html")).contains("the loss is &lt;NaN&gt; in epoch 1"));
    // A folder with nothing in it is named.
    let empty = tempfile::tempdir().unwrap();
    let (code, said) = sdclr(&["report", text(empty.path())]);
    assert!(code == Some(1) && said.contains("holds no record"), "{said}");
}

#[test]
fn folders_that_belong_together_make_one_report() {
    let folder = tempfile::tempdir().unwrap();
    let [one, rest, out, single] = ["one", "rest", "out", "single"].map(|name| folder.path().join(name));
    copy_split(&one, 1, |_| {});
    (2..=5).for_each(|split| copy_split(&rest, split, |_| {}));
    let (code, said) = sdclr(&["report", text(&one), text(&rest)]);
    assert!(code == Some(1) && said.contains("--out"), "{said}");
    succeed(&["report", text(&one), text(&rest), "--out", text(&out)]);
    succeed(&["report", text(&committed()), "--out", text(&single)]);
    let tables = |folder: &Path| {
        let markdown = read(folder.join("report.md"));
        markdown.split("\n## ").find(|section| section.starts_with("Results")).unwrap().to_owned()
    };
    assert_eq!(tables(&out), tables(&single));
    let markdown = read(out.join("report.md"));
    for link in ["](../one/sdclr-D_i-split1/few/result.json)", "](../rest/sdclr-D_i-split2/few/result.json)"] {
        assert!(markdown.contains(link), "the report lacks {link}");
    }
    // One job twice, and records of other data, are refused; nothing is written then.
    let refused = folder.path().join("refused");
    copy_split(&one, 2, |_| {});
    let (code, said) = sdclr(&["report", text(&one), text(&rest), "--out", text(&refused)]);
    assert!(code == Some(1) && said.contains("both hold"), "{said}");
    let other = folder.path().join("other");
    copy_split(&other, 3, |record| record["data_sha256"] = "0000".into());
    let (code, said) = sdclr(&["report", text(&one), text(&other), "--out", text(&refused)]);
    assert!(code == Some(1) && said.contains("do not belong together"), "{said}");
    assert!(!refused.exists());
}

#[test]
fn two_sets_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, out] = ["a", "b", "out"].map(|name| folder.path().join(name));
    for split in [1, 2, 3] {
        copy_seed(&a, split, "", |_| {});
        copy_seed(&b, split, "", |record| {
            record["sessions"][0]["environment"]["device"] = "another CPU".into();
            record["recipe"]["lr"] = 0.25.into();
            if record["kind"] == "probe" {
                record["recipe"]["probe"]["few"]["lr"] = 3.0.into();
            }
            if record["encoder"] == "sdclr" && record["kind"] == "probe" {
                // Points that training noise does not reach, a little other in each split.
                let shift = 5.0 + 0.01 * record["split"].as_f64().unwrap();
                record["all"] = (record["all"].as_f64().unwrap() - shift).into();
            }
        });
    }
    succeed(&["report", "--compare", text(&a), text(&b), "--out", text(&out), "--format", "md,html,json,csv,latex"]);
    let found: Value = serde_json::from_str(&read(out.join("compare.json"))).unwrap();
    let scores = found["scores"].as_array().unwrap();
    let score = |method: &str, metric: &str| {
        let of = |score: &&Value| score["method"] == method && score["metric"] == metric && score["protocol"] == "few";
        scores.iter().find(of).unwrap().clone()
    };
    let moved = score("sdclr", "all");
    assert_eq!(moved["result"], "different", "{moved}");
    assert!((moved["difference"].as_f64().unwrap() - 5.02).abs() < 1e-9, "{moved}");
    // Student's t with 2 degrees of freedom: 5.02 ± 2.92 * 0.01 / sqrt(3).
    let half = 2.919_985_580 * 0.01 / 3f64.sqrt();
    let [low, high] = [0, 1].map(|end| moved["interval90"][end].as_f64().unwrap());
    assert!((low - (5.02 - half)).abs() < 1e-8 && (high - (5.02 + half)).abs() < 1e-8, "{moved}");
    let same = score("simclr", "all");
    assert_eq!((&same["result"], same["difference"].as_f64()), (&"no difference shows".into(), Some(0.0)), "{same}");
    let markdown = read(out.join("compare.md"));
    for part in [
        // Of the random encoder each set has one, whatever the splits: its ten scores are not compared.
        "**2 of 34 scores differ**",
        "| SDCLR | lr | 0.5 | 0.25 |",
        "| SDCLR | probe.few.lr | 30.0 | 3.0 |",
        "another CPU",
        "**different**",
    ] {
        assert!(markdown.replace("| sdclr |", "| SDCLR |").contains(part), "the comparison lacks {part}:\n{markdown}");
    }
    assert_eq!(read(out.join("compare.csv")).lines().count(), scores.len() + 1);
    assert!(read(out.join("compare.html")).contains("<svg"));
    assert!(read(out.join("compare.tex")).contains("\\toprule"));
}

#[test]
fn a_run_is_judged_by_recorded_runs() {
    let folder = tempfile::tempdir().unwrap();
    let [run, moved, lossy, partial, other] =
        ["run", "moved", "lossy", "partial", "other"].map(|name| folder.path().join(name));
    for split in 1..=5 {
        copy_seed(&run, split, "", |_| {});
        copy_seed(&moved, split, "-seed2", |record| {
            if record["encoder"] == "sdclr" && record["kind"] == "probe" {
                record["all"] = (record["all"].as_f64().unwrap() - 60.0).into();
            }
        });
        copy_seed(&lossy, split, "-seed2", |record| {
            if record["encoder"] == "sdclr" && record["kind"] == "pretrain" {
                for epoch in record["epochs"].as_array_mut().unwrap() {
                    epoch["loss"] = (epoch["loss"].as_f64().unwrap() + 1.0).into();
                }
            }
        });
        copy(&partial, &format!("sdclr-D_i-split{split}"), |_| {});
        copy_seed(&other, split, "", |record| record["recipe"]["lr"] = 0.25.into());
    }
    copy(&partial, "simclr-D_i-split1", |_| {});
    copy(&partial, "simclr-D_i-split1-seed2", |_| {});
    copy(&partial, "simclr-D_i-split2", |_| {});
    let reference = committed();
    let verify =
        |run: &Path, more: &[&str]| sdclr(&[&["verify", text(run), "--against", text(&reference)], more].concat());
    let [json, markdown] = ["verdict.json", "verdict.md"].map(|name| folder.path().join(name));
    let (code, said) = verify(&run, &["--json", text(&json), "--markdown", text(&markdown)]);
    // Per probe five scores; the loss of three encoders and the masks of one.
    assert!(said.contains("0 of 44 figures differ at a false-alarm rate of 0.01"), "{said}");
    assert_eq!(code, Some(0), "{said}");
    let found: Value = serde_json::from_str(&read(json)).unwrap();
    assert_eq!(found["scores"].as_array().unwrap().len(), 44);
    assert!(
        read(markdown).contains("Of 15 encoders trained by the same recipe, seed and split in both, 15 have the same")
    );

    let different = |said: &str| -> Vec<String> {
        let lines = said.lines().filter(|line| line.ends_with("  different"));
        lines
            .map(|line| {
                line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).take(3).collect::<Vec<_>>().join("|")
            })
            .collect()
    };
    let (code, said) = verify(&moved, &[]);
    assert_eq!(code, Some(3), "{said}");
    assert_eq!(different(&said), ["SDCLR on D_i|full-shot|All", "SDCLR on D_i|few-shot|All"]);
    let (code, said) = verify(&lossy, &[]);
    assert_eq!((code, different(&said)), (Some(3), vec!["SDCLR on D_i|pre-training|loss".to_owned()]), "{said}");
    let (code, said) = verify(&partial, &[]);
    assert_eq!(code, Some(4), "{said}");
    for line in [
        "digits-lt simclr D_b few Std is not compared: it was not run\n",
        "digits-lt simclr D_i loss is not compared on splits [3, 4, 5]: it was not run there\n",
        "digits-lt simclr D_i full All is compared by 1 of its seeds alone: a split has no more\n",
    ] {
        assert!(said.contains(line), "no {line} in {said}");
    }
    let (code, said) = verify(&other, &[]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("the recipes or the data are not those of the recorded runs"), "{said}");

    let (code, said) = verify(&lossy, &["--power", "1"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1000 of 1000 draws of 1 seed a split differ"), "{said}");
    let (code, said) = verify(&run, &["--power", "2"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("seeds a split: 1 are there, and 2 are to be drawn"), "{said}");
    for wrong in ["0", "1"] {
        let (code, said) = verify(&run, &["--rate", wrong]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("a number between 0 and 1 is needed"), "{said}");
    }
}

/// What was evaluated of the authors' files is read back, and is not replaced.
#[test]
fn a_record_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path();
    let published = "{\"suite\":\"cifar10-lt\",\"smoke\":false,\"outcomes\":[],\"missing\":[\"a/log.txt\"],\"failures\":[],\
                     \"warnings\":[],\"seconds\":1.5}";
    sdclr::fs::write(&out.join("report.json"), published.as_bytes()).unwrap();
    succeed(&["report", text(out)]);
    assert_eq!(read(out.join("report.json")), published);
    assert!(read(out.join("report.md")).contains("- `a/log.txt`"));
    let (code, said) = sdclr(&["report", text(out), "--format", "md", "--out", "/proc/nowhere"]);
    assert!(code == Some(1) && said.contains("/proc/nowhere"), "{said}");
    // A link under the name of an output leads to a record.
    let linked = tempfile::tempdir().unwrap();
    copy(linked.path(), "simclr-D_i-split1", |_| {});
    let record = linked.path().join("simclr-D_i-split1/few/result.json");
    std::os::unix::fs::symlink(&record, linked.path().join("report.csv")).unwrap();
    let before = read(record.clone());
    let (code, said) = sdclr(&["report", text(linked.path())]);
    assert!(code == Some(1) && said.contains("report.csv"), "{said}");
    assert_eq!(read(record), before);
}

/// Every table of the LaTeX has as many cells in each line as it has columns, and what begins ends.
#[test]
fn latex_is_well_formed() {
    let folder = tempfile::tempdir().unwrap();
    succeed(&["report", text(&committed()), "--format", "latex", "--out", text(folder.path())]);
    let latex = read(folder.path().join("report.tex"));
    let mut open: Vec<&str> = Vec::new();
    let (mut columns, mut tables) = (0, 0);
    for line in latex.lines() {
        for (mark, rest) in line
            .match_indices("\\begin{")
            .map(|(at, _)| (true, &line[at + 7..]))
            .chain(line.match_indices("\\end{").map(|(at, _)| (false, &line[at + 5..])))
        {
            let name = rest.split('}').next().unwrap();
            match mark {
                true => open.push(name),
                false => assert_eq!(open.pop(), Some(name), "{line}"),
            }
        }
        if let Some(rest) = line.strip_prefix("\\begin{longtable}{@{}") {
            columns = rest.split('@').next().unwrap().len();
            tables += 1;
        } else if open.last() == Some(&"longtable") && line.contains(" & ") {
            assert_eq!(line.matches(" & ").count() + 1, columns, "{line}");
        }
        let bare = line.replace("\\{", "").replace("\\}", "");
        assert!(!open.contains(&"longtable") || bare.matches('{').count() == bare.matches('}').count(), "{line}");
    }
    assert!(open.is_empty() && tables > 5, "{open:?}, {tables} tables");
    assert!(latex.is_ascii(), "{:?}", latex.chars().find(|character| !character.is_ascii()));
    for rule in ["\\toprule", "\\midrule", "\\bottomrule"] {
        assert_eq!(latex.matches(rule).count(), tables, "{rule}");
    }
}

/// All of the committed folder, in `to`.
fn copy_all(to: &Path) {
    let copied = Command::new("cp").args(["-r", text(&committed()), text(to)]).status().unwrap();
    assert!(copied.success());
}

/// The committed report is what its records give today, and says which runs are missing.
#[test]
fn the_committed_report_is_that_of_its_records() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("digits-lt-cpu");
    copy_all(&out);
    succeed(&["report", text(&out)]);
    for file in ["report.md", "report.html", "report.csv", "per_class.csv", "ro-crate-metadata.json"] {
        assert!(read(out.join(file)) == read(committed().join(file)), "{file} is another; run sdclr report");
    }
    let missing = "SimCLR on D_i, full-shot: no result on split 2, seed 2.";
    assert!(!read(out.join("report.md")).contains(missing));
    std::fs::remove_dir_all(out.join("simclr-D_i-split2-seed2/full")).unwrap();
    succeed(&["report", text(&out)]);
    assert!(read(out.join("report.md")).contains(missing));
    // Without suite.json the commands ask for what the records have.
    std::fs::remove_file(out.join("suite.json")).unwrap();
    succeed(&["report", text(&out)]);
    assert!(read(out.join("report.md")).contains("ci/repro digits-lt --splits 1-5 --seeds 2"));
}

/// A report refers to no file that is not written with it.
#[test]
fn a_report_refers_to_the_formats_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("digits-lt-cpu");
    copy_all(&out);
    for formats in ["html", "html,csv", "html,json", "html,json,csv", "html,md,json"] {
        succeed(&["report", text(&out), "--format", formats]);
        let page = read(out.join("report.html"));
        let metadata = formats.contains("json").then(|| read(out.join("ro-crate-metadata.json")));
        for (format, file) in
            [("json", "report.json"), ("csv", "report.csv"), ("csv", "curves.csv"), ("md", "report.md")]
        {
            let written = formats.split(',').any(|asked| asked == format);
            if ["report.json", "report.csv"].contains(&file) {
                assert_eq!(page.contains(&format!("href=\"{file}\"")), written, "{formats} {file}");
            }
            let entry = format!("\"@id\": \"{file}\"");
            assert!(metadata.as_ref().is_none_or(|text| text.contains(&entry) == written), "{formats} {file}");
        }
    }
}

#[test]
fn a_report_replaces_no_record_of_evidence_or_mechanism() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("digits-lt-cpu");
    copy_all(&out);
    let evidence = out.join("evidence");
    let record = "replay--report-and-final-state-are-written.json";
    let record = read(committed().join("../evidence-cpu").join(record));
    sdclr::fs::write(&evidence.join("report.json"), record.as_bytes()).unwrap();
    let (code, said) = sdclr(&["report", text(&out), "--out", text(&evidence)]);
    assert!(code == Some(1) && said.contains("a record"), "{said}");
    assert_eq!(read(evidence.join("report.json")), record);
    // One that is damaged is told of, and left out.
    let mechanism = out.join("sdclr-D_i-split1/mechanism.json");
    sdclr::fs::write(&mechanism, b"junk").unwrap();
    let said = succeed(&["report", text(&out)]);
    assert!(said.contains("sdclr-D_i-split1/mechanism.json is not a record"), "{said}");
    assert_eq!(read(mechanism), "junk");
}
