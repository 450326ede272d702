//! Names of jobs, which are also their folders inside a suite's: `sdclr-D_i-split1`, `sdclr-D_i-split1-seed2/few`.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{PretrainSplit, Protocol, name_of};

/// One encoder of one run: `ENCODER-LIST-splitN`, without a list where it is not trained, with `-seedK` from the second
/// pre-training seed on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EncoderId {
    pub encoder: String,
    pub list: Option<PretrainSplit>,
    pub split: usize,
    /// Which of the suite's pre-training seeds, counted from 1.
    pub seed: usize,
}

/// One job: the pre-training of an encoder, or what is done with the encoder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    pub encoder: EncoderId,
    pub part: Part,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Pretrain,
    /// The probe of a protocol; `seed` counts the probe's seeds from 1.
    Probe {
        protocol: Protocol,
        seed: usize,
    },
    /// What is done with a published file.
    Published {
        protocol: Protocol,
        kind: PublishedKind,
    },
}

/// Where numbers about a published run come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PublishedKind {
    /// The authors' log.
    Log,
    /// The authors' fine-tuned model, evaluated by this program.
    Model,
    /// The authors' pre-trained encoder, probed by this program.
    Probe,
}

/// A text that is no job's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the name of a job; a name like sdclr-D_i-split1 or sdclr-D_i-split1/few is needed")]
pub struct JobIdError(String);

impl EncoderId {
    /// The pre-training of this encoder.
    pub fn pretrain(&self) -> JobId {
        JobId { encoder: self.clone(), part: Part::Pretrain }
    }

    /// Its probe under `protocol`, by the first probe seed.
    pub fn probe(&self, protocol: Protocol) -> JobId {
        JobId { encoder: self.clone(), part: Part::Probe { protocol, seed: 1 } }
    }
}

impl JobId {
    /// The protocol of a probe or evaluation.
    pub fn protocol(&self) -> Option<Protocol> {
        match self.part {
            Part::Pretrain => None,
            Part::Probe { protocol, .. } | Part::Published { protocol, .. } => Some(protocol),
        }
    }

    /// The last part of the folder, below the encoder's; empty for pre-training.
    pub fn subfolder(&self) -> String {
        match self.part {
            Part::Pretrain => String::new(),
            Part::Probe { protocol, seed: 1 } => name_of(&protocol),
            Part::Probe { protocol, seed } => format!("{}-seed{seed}", name_of(&protocol)),
            Part::Published { protocol, kind } => format!("{}-{}", name_of(&protocol), name_of(&kind)),
        }
    }
}

impl fmt::Display for EncoderId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.encoder)?;
        if let Some(list) = &self.list {
            write!(f, "-{}", name_of(list))?;
        }
        write!(f, "-split{}", self.split)?;
        if self.seed > 1 { write!(f, "-seed{}", self.seed) } else { Ok(()) }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.encoder)?;
        if self.part == Part::Pretrain { Ok(()) } else { write!(f, "/{}", self.subfolder()) }
    }
}

/// `text` without its ending `-WORDn`, and that n.
fn numbered<'a>(text: &'a str, word: &str) -> Option<(&'a str, usize)> {
    let (before, after) = text.rsplit_once('-')?;
    let digits = after.strip_prefix(word)?;
    let number = digits.parse().ok().filter(|number: &usize| *number > 0 && number.to_string() == digits)?;
    Some((before, number))
}

impl FromStr for EncoderId {
    type Err = JobIdError;

    fn from_str(text: &str) -> Result<Self, JobIdError> {
        let parse = || {
            let (rest, seed) = numbered(text, "seed").filter(|(_, seed)| *seed > 1).unwrap_or((text, 1));
            let (rest, split) = numbered(rest, "split")?;
            let list = rest.rsplit_once('-');
            let list = list.and_then(|(encoder, list)| Some((encoder, PretrainSplit::from_str(list, false).ok()?)));
            let (encoder, list) = list.map_or((rest, None), |(encoder, list)| (encoder, Some(list)));
            (!encoder.is_empty() && !encoder.contains('/')).then(|| Self {
                encoder: encoder.to_owned(),
                list,
                split,
                seed,
            })
        };
        parse().ok_or_else(|| JobIdError(text.to_owned()))
    }
}

impl FromStr for JobId {
    type Err = JobIdError;

    fn from_str(text: &str) -> Result<Self, JobIdError> {
        let Some((encoder, part)) = text.split_once('/') else {
            return Ok(Self { encoder: text.parse()?, part: Part::Pretrain });
        };
        let encoder = encoder.parse().map_err(|_| JobIdError(text.to_owned()))?;
        let part = match part.split_once('-') {
            None => Protocol::from_str(part, false).ok().map(|protocol| Part::Probe { protocol, seed: 1 }),
            Some((protocol, rest)) => {
                Protocol::from_str(protocol, false).ok().and_then(|protocol| match numbered(part, "seed") {
                    Some((before, seed)) => {
                        (before == name_of(&protocol) && seed > 1).then_some(Part::Probe { protocol, seed })
                    }
                    None => PublishedKind::from_str(rest, false).ok().map(|kind| Part::Published { protocol, kind }),
                })
            }
        };
        part.map(|part| Self { encoder, part }).ok_or_else(|| JobIdError(text.to_owned()))
    }
}

impl Serialize for JobId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_as_they_were_written() {
        for name in [
            "sdclr-D_i-split1",
            "random-split3/full",
            "simclr-ts-D_b-split12-seed2",
            "simclr-ts-D_b-split12-seed2/few-seed3",
            "sdclr-D_i-split1/full-model",
            "x.y_z-split2-D_i-split1",
        ] {
            assert_eq!(name.parse::<JobId>().unwrap().to_string(), name);
        }
        let id: JobId = "simclr-ts-D_b-split12-seed2/few-seed3".parse().unwrap();
        let encoder = EncoderId { encoder: "simclr-ts".into(), list: Some(PretrainSplit::D_b), split: 12, seed: 2 };
        assert_eq!(id, JobId { encoder, part: Part::Probe { protocol: Protocol::Few, seed: 3 } });
        for wrong in [
            "",
            "sdclr",
            "sdclr-split0",
            "sdclr-split01",
            "-split1",
            "a-split1/",
            "a-split1/most",
            "a/b-split1",
            "a-split1/few-seed1",
            "a-split1/few-seed02",
            "a-split1-seed1/few/full",
        ] {
            assert!(wrong.parse::<JobId>().is_err(), "{wrong}");
        }
    }
}
