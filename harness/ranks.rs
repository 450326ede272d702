//! Which of several processes this one is. In: the environment as torchrun, Kubeflow or srun set it. Out: a meeting, and the
//! group of those who came. Without such an environment the process is alone.

use std::time::Duration;

use crate::native::group::{Exchange, Group, GroupError, Meeting};
use crate::native::{self, CudaState};
use crate::stop::Stop;

/// The environment does not say which process this is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RanksError {
    #[error(
        "{set} is set but {missing} is not; set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or none of them (torchrun sets all)"
    )]
    Half { set: &'static str, missing: &'static str },
    #[error("{name}={found} is not {expected}; correct it, or start with torchrun --no-python")]
    Value { name: &'static str, found: String, expected: String },
    #[error(
        "only pretrain, repro and replay run in several processes, and this is one of {size}; start it without torchrun or srun"
    )]
    OneProcess { size: usize },
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// How long ranks wait for each other, in seconds, where SDCLR_RANKS_TIMEOUT does not say otherwise.
const TIMEOUT: u64 = 300;

/// This process's place among several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    meeting: Meeting,
    /// Its number on its machine.
    local_rank: usize,
}

/// The place that the process's environment gives it; `None`: it is alone.
///
/// # Errors
/// The environment is set in part, or a number in it is not one.
pub fn place() -> Result<Option<Place>, RanksError> {
    place_of(&|name| std::env::var(name).ok().filter(|text| !text.is_empty()))
}

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

fn place_of(variable: Variables) -> Result<Option<Place>, RanksError> {
    // In a batch script or a shell of salloc srun's variables are there, but no step of several tasks runs: they have no step, or
    // one of Slurm's own numbers.
    let step = variable("SLURM_STEP_ID").and_then(|step| step.parse::<u64>().ok());
    let in_script = variable("SLURM_JOB_ID").is_some() && step.is_none_or(|step| step >= 0xFFFF_FFF0);
    let names = match (variable("RANK"), variable("WORLD_SIZE"), variable("SLURM_PROCID")) {
        (None, None, Some(_)) if !in_script => ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
        (None, None, _) => return Ok(None),
        _ => ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
    };
    let [rank, size, local] = names;
    let need = |name: &'static str, set| variable(name).ok_or(RanksError::Half { set, missing: name });
    let number = |name, text: String, limit: usize| {
        text.parse().ok().filter(|n| *n < limit).ok_or_else(|| RanksError::Value {
            name,
            found: text,
            expected: format!("a number below {limit}"),
        })
    };
    let size_found = match number(size, need(size, rank)?, 65_536)? {
        0 => {
            let (found, expected) = ("0".to_owned(), "the number of processes".to_owned());
            return Err(RanksError::Value { name: size, found, expected });
        }
        size => size,
    };
    let rank_found = number(rank, need(rank, size)?, size_found)?;
    let exchange = match variable("SDCLR_RANKS_EXCHANGE").as_deref() {
        None => Exchange::Any,
        Some("gloo") => Exchange::Gloo,
        Some("nccl") => Exchange::Nccl,
        Some(other) => {
            let (found, expected) = (other.to_owned(), "gloo or nccl".to_owned());
            return Err(RanksError::Value { name: "SDCLR_RANKS_EXCHANGE", found, expected });
        }
    };
    // NCCL that is asked for connects one process to itself: how a single GPU tries it.
    if size_found == 1 && exchange != Exchange::Nccl {
        return Ok(None);
    }
    let local_rank = variable(local).map_or(Ok(0), |text| number(local, text, 65_536))?;
    let host = need("MASTER_ADDR", rank)?;
    let port = number("MASTER_PORT", need("MASTER_PORT", rank)?, 65_536)? as u16;
    let seconds = match variable("SDCLR_RANKS_TIMEOUT") {
        Some(text) => number("SDCLR_RANKS_TIMEOUT", text, 86_400)? as u64,
        None => TIMEOUT,
    };
    // A step of Slurm is one start; a launcher within may be started by a step on each machine.
    let start = match rank {
        "SLURM_PROCID" => ["SLURM_JOB_ID", "SLURM_STEP_ID"],
        _ => ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"],
    };
    let start = start.map(|name| variable(name).unwrap_or_default());
    let meeting = Meeting {
        host,
        port,
        rank: rank_found,
        size: size_found,
        served: variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text == "True"),
        name: format!("sdclr/{}", start.join("/")),
        timeout: Duration::from_secs(seconds),
        exchange,
    };
    Ok(Some(Place { meeting, local_rank }))
}

impl Place {
    pub fn rank(&self) -> usize {
        self.meeting.rank
    }

    /// # Errors
    /// Always: the command computes in one process, of which several would write the same files.
    pub fn refuse(&self) -> Result<(), RanksError> {
        Err(RanksError::OneProcess { size: self.meeting.size })
    }

    /// The device of this rank where the command line says `given`: of several GPUs that of its number on the machine.
    pub fn device(&self, given: Option<String>) -> Option<String> {
        let devices = if let CudaState::Loaded { devices } = native::load_cuda() { *devices } else { 0 };
        match (given.as_deref(), devices) {
            // Slurm may show each task its own alone (--gpus-per-task).
            (None | Some("cuda"), 1) => Some("cuda:0".to_owned()),
            (None | Some("cuda"), 2..) => Some(format!("cuda:{}", self.local_rank)),
            _ => given,
        }
    }

    /// Meets the others, unless `stop` asks to give that up.
    ///
    /// # Errors
    /// As [`Group::join`].
    pub fn join(&self, stop: &Stop) -> Result<Group, RanksError> {
        Ok(Group::join(&self.meeting, &|| stop.requested().is_some())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Result<Option<Place>, RanksError> {
        place_of(&|name| set.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned()))
    }

    const MASTER: [(&str, &str); 2] = [("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")];

    #[test]
    fn torchrun_srun_and_nobody() {
        assert_eq!(of(&[]), Ok(None));
        let torchrun =
            [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("TORCHELASTIC_USE_AGENT_STORE", "True")];
        let place = of(&[&torchrun[..], &MASTER].concat()).unwrap().unwrap();
        assert_eq!((place.rank(), place.local_rank, place.meeting.served), (1, 1, true));
        let srun = [("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "1")];
        let place = of(&[&srun[..], &MASTER].concat()).unwrap().unwrap();
        assert_eq!((place.rank(), place.meeting.size, place.meeting.served), (3, 4, false));
        // A batch script itself.
        assert_eq!(of(&[&srun[..], &[("SLURM_JOB_ID", "7")]].concat()), Ok(None));
        // A shell of salloc.
        assert_eq!(of(&[&srun[..], &[("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "4294967290")]].concat()), Ok(None));
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "1")]), Ok(None));
    }

    #[test]
    fn nccl_that_is_asked_for_takes_one_process_too() {
        let one = |exchange| {
            of(&[&[("RANK", "0"), ("WORLD_SIZE", "1"), ("SDCLR_RANKS_EXCHANGE", exchange)], &MASTER[..]].concat())
        };
        assert_eq!(one("nccl").unwrap().unwrap().meeting.exchange, Exchange::Nccl);
        assert_eq!(one("gloo"), Ok(None));
        assert!(matches!(one("mpi"), Err(RanksError::Value { .. })));
    }

    #[test]
    fn half_an_environment_is_an_error() {
        let half = |set, missing| Err(RanksError::Half { set, missing });
        assert_eq!(of(&[("RANK", "0")]), half("RANK", "WORLD_SIZE"));
        assert_eq!(of(&[("WORLD_SIZE", "2")]), half("WORLD_SIZE", "RANK"));
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "2")]), half("RANK", "MASTER_ADDR"));
        for (rank, size, wrong) in [
            ("2", "2", "RANK"),
            ("-1", "2", "RANK"),
            ("x", "2", "RANK"),
            ("0", "0", "WORLD_SIZE"),
            ("0", "y", "WORLD_SIZE"),
        ] {
            let found = of(&[&[("RANK", rank), ("WORLD_SIZE", size)], &MASTER[..]].concat());
            assert!(
                matches!(&found, Err(RanksError::Value { name, .. }) if *name == wrong),
                "{rank} of {size}: {found:?}"
            );
        }
    }
}
