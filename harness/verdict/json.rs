//! Verdicts as JSON: `sdclr verify --json`. What is absent is null.

use serde::{Serialize, Serializer};

use super::{Kind, Ours, TheirSide, Tier, Verdict, Verdicts};
use crate::paper::Metric;
use crate::recipe::{PretrainSplit, Protocol};
use crate::record;

/// Raised when a key changes its meaning.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    format: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stamp: Option<String>,
    claims_sha256: &'a str,
    claims: &'a [Verdict],
}

#[derive(Serialize)]
struct Claim<'a> {
    id: &'a str,
    kind: Kind,
    suite: &'a str,
    protocol: Protocol,
    method: &'a str,
    pretrain_split: Option<PretrainSplit>,
    metric: Metric,
    ours: &'a Option<Ours>,
    theirs: &'a Option<TheirSide>,
    difference: Option<f64>,
    interval90: Option<[f64; 2]>,
    interval95: Option<[f64; 2]>,
    margin: Option<f64>,
    tier: Option<Tier>,
    outcome: String,
    p_value: Option<f64>,
    why: &'a str,
}

impl Serialize for Verdicts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let stamp = record::stamp(false, self.unofficial);
        Document { format: FORMAT, stamp, claims_sha256: &self.claims_sha256, claims: &self.claims }
            .serialize(serializer)
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let claim = Claim {
            id: &self.id,
            kind: self.kind,
            suite: &self.row.suite,
            protocol: self.row.protocol,
            method: &self.row.method,
            pretrain_split: self.row.pretrain_split,
            metric: self.metric,
            ours: &self.ours,
            theirs: &self.theirs,
            difference: self.difference,
            interval90: self.interval90,
            interval95: self.interval95,
            margin: self.margin,
            tier: self.tier,
            outcome: self.outcome_words(),
            p_value: self.p_value,
            why: &self.why,
        };
        claim.serialize(serializer)
    }
}
