//! The PyTorch side of a race: `reference/torch/peer.py`, one process a contestant, told over its standard input when to
//! run.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::Device;

use super::{BenchError, BenchOptions, Kind, Measured, PeerProgram, Racer};
use crate::recipe::{Precision, name_of};

/// A name, and the precision of the network, where one computes.
pub(super) type Variant = (String, Option<Precision>);

#[derive(Debug, Deserialize)]
struct Ready {
    variants: Vec<Variant>,
}

/// One running contestant.
#[derive(Debug)]
pub(super) struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    variant: String,
    name: String,
    precision: Option<Precision>,
    /// The peer counts iterations of augmentation, loading and decoding in images.
    count: usize,
    command: String,
}

impl Peer {
    /// The variants that the peer offers for this race, each with its precision.
    pub fn variants(program: &PeerProgram, options: &BenchOptions) -> Result<Vec<Variant>, BenchError> {
        Ok(Self::spawn(program, options, Variant::default())?.1.variants)
    }

    /// A process that runs `variant`.
    pub fn start(program: &PeerProgram, options: &BenchOptions, variant: Variant) -> Result<Self, BenchError> {
        Ok(Self::spawn(program, options, variant)?.0)
    }

    fn spawn(program: &PeerProgram, options: &BenchOptions, variant: Variant) -> Result<(Self, Ready), BenchError> {
        let device = match options.device {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        };
        let mut command = Command::new(&program.python);
        command.arg(&program.script).args([name_of(&options.kind), "--device".into(), device]);
        let recipe = options.recipe()?;
        command.args(["--network".into(), name_of(&recipe.network), "--stem".into(), name_of(&recipe.stem)]);
        command.args(["--width".into(), recipe.width.to_string(), "--size".into(), recipe.augment.size.to_string()]);
        command.args([
            "--batch".into(),
            recipe.batch_size.to_string(),
            "--images".into(),
            options.images().to_string(),
        ]);
        command.args(["--precision".into(), name_of(&recipe.precision)]);
        if let Some(file) = &options.file {
            command.arg("--file").arg(file);
        }
        command.args(["--threads".into(), tch::get_num_threads().to_string()]);
        let text = format!("{} {}", program.python.display(), program.script.display());
        let failed = |reason: String| BenchError::Peer { command: text.clone(), reason };
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|error| failed(error.to_string()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("it has no standard input and output".to_owned()));
        };
        let (output, (variant, precision)) = (BufReader::new(output), variant);
        let name = if options.kind == Kind::Decode { variant.clone() } else { format!("PyTorch {variant}") };
        let count =
            if matches!(options.kind, Kind::Augment | Kind::Load | Kind::Decode) { options.images() } else { 1 };
        let mut peer = Self { child, input, output, variant, name, precision, count, command: text };
        let ready = peer.answer()?;
        Ok((peer, ready))
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T, BenchError> {
        let mut line = String::new();
        let length = self.output.read_line(&mut line).map_err(|error| self.failed(&error.to_string()))?;
        if length == 0 {
            return Err(self.failed("it ended before it answered (what it said stands above)"));
        }
        serde_json::from_str(&line).map_err(|error| self.failed(&format!("it answered '{}': {error}", line.trim())))
    }

    fn failed(&self, reason: &str) -> BenchError {
        BenchError::Peer { command: self.command.clone(), reason: reason.to_owned() }
    }
}

impl Racer for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn precision(&self) -> Option<Precision> {
        self.precision
    }

    fn run(&mut self, iterations: usize) -> Result<Measured, BenchError> {
        let order = format!("run {} {}\n", self.variant, iterations * self.count);
        self.input.write_all(order.as_bytes()).map_err(|error| self.failed(&error.to_string()))?;
        self.answer()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The process is idle, waiting for input: killing it loses nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
