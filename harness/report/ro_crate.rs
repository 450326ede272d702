//! ro-crate-metadata.json: which program made which record from what, for programs that collect provenance. A Process Run
//! Crate 0.5 (<https://w3id.org/ro/wfrun/process/0.5>) in RO-Crate 1.1: the report's folder is the dataset, and each finished job an
//! action with its program, its inputs by sha256, and its outputs. `tests/ro_crate.rs` has PyPI's roc-validator look at it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Format, OutputFile, ReportError, run, stamp};
use crate::record::{Environment, Job, JobRecord, SuiteRecord, mechanism};

const FILE: &str = "ro-crate-metadata.json";
const PROFILE: &str = "https://w3id.org/ro/wfrun/process/0.5";
const CRATE: &str = "https://w3id.org/ro/crate/1.1";
const COMPLETED: &str = "http://schema.org/CompletedActionStatus";

/// The report's files that every suite has.
const REPORT: [(Format, &str, &str); 4] = [
    (Format::Md, "report.md", "text/markdown"),
    (Format::Json, "report.json", "application/json"),
    (Format::Csv, "report.csv", "text/csv"),
    (Format::Csv, "curves.csv", "text/csv"),
];

/// Of the report on `suite`, written as `formats` in its own folder; `None` where no record says when it was made: a crate has
/// to be dated.
pub(super) fn file(suite: &SuiteRecord, formats: &[Format]) -> Result<Option<OutputFile>, ReportError> {
    let Some(date) = suite.results.iter().filter_map(|record| record.job().ended.as_deref()).max() else {
        return Ok(None);
    };
    Ok(Some(OutputFile::new(FILE, serde_json::to_string_pretty(&metadata(suite, formats, date))? + "\n")))
}

fn metadata(suite: &SuiteRecord, formats: &[Format], date: &str) -> Value {
    let mut graph = Graph::default();
    let actions: Vec<Value> = suite.results.iter().map(|record| graph.action(suite, record)).collect();
    for (_, path, kind) in REPORT.iter().filter(|(format, ..)| formats.contains(format)) {
        graph.file(path, &format!("Report of {}", suite.suite), kind);
    }
    let name = format!("{} by sdclr{}", suite.suite, stamp(suite.stamp().as_deref()));
    let root = json!({
        "@id": "./",
        "@type": "Dataset",
        "name": name,
        "description": format!(
            "Records and report of a reproduction of Self-Damaging Contrastive Learning, made by: {}",
            run::command(&suite.invocation, &[])
        ),
        "datePublished": date,
        "license": "The records are facts about runs; the program's licence is MIT or Apache-2.0.",
        "conformsTo": { "@id": PROFILE },
        "hasPart": graph.files.iter().map(|path| json!({ "@id": path })).collect::<Vec<_>>(),
        "mentions": actions,
    });
    let descriptor = json!({
        "@id": FILE,
        "@type": "CreativeWork",
        "conformsTo": { "@id": CRATE },
        "about": { "@id": "./" },
    });
    let profile = json!({ "@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5" });
    let entities: Vec<Value> = [descriptor, root, profile].into_iter().chain(graph.entities.into_values()).collect();
    // What the context of RO-Crate 1.1 has no word for.
    let words = json!({ "sha256": "https://w3id.org/ro/terms/workflow-run#sha256" });
    json!({ "@context": [format!("{CRATE}/context"), words], "@graph": entities })
}

/// Entities by their `@id`, each once.
#[derive(Default)]
struct Graph {
    entities: BTreeMap<String, Value>,
    /// The paths of those that are files of the folder.
    files: Vec<String>,
}

impl Graph {
    /// Adds an entity, and gives the reference to it.
    fn add(&mut self, id: String, mut entity: Value) -> Value {
        entity["@id"] = json!(id);
        self.entities.insert(id.clone(), entity);
        json!({ "@id": id })
    }

    fn file(&mut self, path: &str, name: &str, format: &str) -> Value {
        self.files.push(path.to_owned());
        self.add(path.to_owned(), json!({ "@type": "File", "name": name, "encodingFormat": format }))
    }

    /// An input that is not a file of the folder, identified by its hash.
    fn hashed(&mut self, name: &str, sha256: &str) -> Value {
        let entity = json!({ "@type": "CreativeWork", "name": name, "sha256": sha256 });
        self.add(format!("#{sha256}"), entity)
    }

    fn program(&mut self, environment: &Environment) -> Value {
        let Environment { sdclr, libtorch, git_commit, .. } = environment;
        let commit = git_commit.as_deref().unwrap_or("unknown");
        let name = format!("sdclr {sdclr} with libtorch {libtorch}");
        let entity = json!({ "@type": "SoftwareApplication", "name": name, "softwareVersion": format!("{sdclr}, commit {commit}") });
        self.add(format!("#sdclr-{sdclr}-{commit}-libtorch-{libtorch}"), entity)
    }

    /// Adds what a job read, ran and wrote.
    fn action(&mut self, suite: &SuiteRecord, record: &JobRecord) -> Value {
        let job = record.job();
        let Job { header, sessions, seconds, state_sha256, ended } = job;
        let mut inputs = vec![self.hashed("images and labels, decoded", &header.data_sha256)];
        for (name, sha256) in &header.splits_sha256 {
            inputs.push(self.hashed(&format!("list {name}"), sha256));
        }
        inputs.push(self.hashed(&format!("settings and inputs of {}", header.job), &header.recipe_hash));
        let of_encoder = header.job.encoder.pretrain();
        let trained = |other: &&JobRecord| other.header().job == of_encoder && of_encoder != header.job;
        if let Some(encoder) = suite.results.iter().find(trained) {
            inputs.push(self.hashed(&format!("encoder of {of_encoder}"), &encoder.job().state_sha256));
        }
        let mut outputs = vec![self.file(
            &format!("{}/result.json", header.job),
            &format!("Record of {}", header.job),
            "application/json",
        )];
        let what = match record {
            JobRecord::Pretrain(_) => "encoder",
            JobRecord::Probe(_) | JobRecord::Evaluation(_) => "classifier with encoder",
        };
        outputs.push(self.hashed(&format!("{what} of {}", header.job), state_sha256));
        if suite.mechanisms.iter().any(|mechanism| mechanism.job == header.job) {
            let path = format!("{}/{}", header.job, mechanism::FILE);
            outputs.push(self.file(&path, &format!("What pruning does to {}", header.job), "application/json"));
        }
        let mut programs: Vec<Value> = sessions.iter().map(|session| self.program(&session.environment)).collect();
        programs.dedup();
        let instrument = if programs.len() == 1 { programs.remove(0) } else { json!(programs) };
        let devices: Vec<&str> = sessions.iter().map(|session| session.environment.device.as_str()).collect();
        let action = json!({
            "@type": "CreateAction",
            "name": header.job,
            "description": format!("{} in {seconds:.0} s on {}", record.kind(), devices.join(", then ")),
            "instrument": instrument,
            "object": inputs,
            "result": outputs,
            // The profile's pattern takes an offset and no Z.
            "endTime": ended.as_ref().map(|time| time.replace('Z', "+00:00")),
            "actionStatus": COMPLETED,
        });
        self.add(format!("#{}", header.job), action)
    }
}
