//! What a plan promises before anything runs. In: the plan. Out: per claim about its suite the power with these splits and
//! seeds, and the disk that the runs take.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use tch::{Device, Kind};

use super::context::Scale;
use super::{PlannedEncoder, SuiteError, queue};
use crate::artifact::human;
use crate::fs;
use crate::network::{Network, NetworkSpec, StateDict};
use crate::paper::{Claims, Published, Row};
use crate::recipe::OptimizerName;
use crate::report::table::Table;
use crate::text::counted;
use crate::verdict::{ClaimPower, Design, powers};

/// Bytes of a job's records, run.jsonl and result.json together, and of each of its epochs: fitted to runs on the digits.
const RECORD: u64 = 9_000;
const RECORD_OF_EPOCH: u64 = 275;
/// The report repeats the records (report.json, curves.csv) in so many hundredths of their bytes, and has pages and plots:
/// fitted to reports of 3 and of 110 jobs on the digits.
const REPORT: u64 = 130;
const PAGE: u64 = 190_000;

/// Bytes that a plan writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    pub encoders: u64,
    pub records: u64,
    pub report: u64,
    /// What the checkpoints of runs under way take at most; nothing is left of it.
    pub checkpoints: u64,
}

/// Each claim with its power; `None` where the plan lacks one of its rows.
pub type Powers = Vec<(String, Option<ClaimPower>)>;

/// What is known of a plan before it runs.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// Every claim about the suite.
    pub claims: Powers,
    pub design: Design,
    pub smoke: bool,
    pub disk: DiskUse,
    /// Free bytes where the runs go.
    pub free: u64,
}

/// The forecast of `plan`, which runs to the folder `out` with `jobs` at once.
///
/// # Errors
/// A network cannot be made, or the file system does not say how much is free.
pub fn forecast(
    plan: &[PlannedEncoder],
    scale: &Scale,
    out: &Path,
    jobs: Option<usize>,
) -> Result<Forecast, SuiteError> {
    let (claims, design) = claims(plan)?;
    let jobs = jobs.unwrap_or_else(|| queue::at_once(plan, Device::Cpu));
    let disk = disk(plan, scale.limit_epochs.unwrap_or(usize::MAX), jobs)?;
    Ok(Forecast { claims, design, smoke: scale.is_smoke(), disk, free: fs::free_space_for(out)? })
}

/// The claims about the rows of `plan` with their power, and the design that it rests on.
fn claims(plan: &[PlannedEncoder]) -> Result<(Powers, Design), SuiteError> {
    let suite = plan.first().map(|encoder| encoder.suite.as_str()).unwrap_or_default();
    let mut rows = BTreeSet::new();
    for encoder in plan {
        let row = |protocol| Row {
            suite: encoder.suite.clone(),
            protocol,
            method: encoder.id.encoder.clone(),
            pretrain_split: encoder.id.list,
        };
        rows.extend(encoder.probes.iter().map(|(protocol, _)| row(*protocol)));
    }
    let distinct = |number: fn(&PlannedEncoder) -> usize| plan.iter().map(number).collect::<BTreeSet<_>>().len();
    // Over what is not trained no training noise is pooled.
    let trained = plan.iter().filter(|encoder| encoder.id.list.is_some());
    let settings: BTreeSet<_> = trained.map(|encoder| (&encoder.id.encoder, encoder.id.list)).collect();
    let (splits, seeds) = (distinct(|encoder| encoder.id.split), distinct(|encoder| encoder.id.seed));
    let design = Design { splits, seeds, settings: settings.len().max(1), authors: false };
    let all = Claims::embedded()?.of_suites(&[suite]);
    let mut run = all.clone();
    run.values.retain(|claim| rows.contains(&claim.row));
    run.orderings.retain(|claim| rows.contains(&claim.left) && rows.contains(&claim.right));
    let mut found: BTreeMap<String, ClaimPower> =
        powers(&run, &Published::embedded()?, design)?.into_iter().map(|power| (power.id.clone(), power)).collect();
    let values = all.values.iter().map(|claim| &claim.id);
    let ids = values.chain(all.orderings.iter().map(|claim| &claim.id));
    Ok((ids.map(|id| (id.clone(), found.remove(id))).collect(), design))
}

/// What `plan` writes where at most `limit` epochs of each job run.
fn disk(plan: &[PlannedEncoder], limit: usize, jobs: usize) -> Result<DiskUse, SuiteError> {
    let mut use_ = DiskUse { encoders: 0, records: 0, report: PAGE, checkpoints: 0 };
    let mut sizes: Vec<(NetworkSpec, [u64; 2])> = Vec::new();
    for encoder in plan {
        let recipe = &encoder.recipe;
        let probes = encoder.probes.iter().map(|(protocol, _)| recipe.probe(*protocol).epochs);
        let trained = encoder.pretrained_on().is_some();
        for epochs in probes.chain(trained.then_some(recipe.epochs)) {
            use_.records += RECORD + RECORD_OF_EPOCH * epochs.min(limit) as u64;
        }
        if !trained {
            continue;
        }
        let spec = NetworkSpec::of_recipe(recipe);
        let [state, parameters] = match sizes.iter().find(|(known, _)| *known == spec) {
            Some((_, sizes)) => *sizes,
            None => {
                let network = Network::new(spec, recipe.seed, Kind::Float, Device::Cpu)?;
                let found = [bytes(&network.state()), bytes(&network.parameters())];
                sizes.push((spec, found));
                found
            }
        };
        let moments = if recipe.optimizer == OptimizerName::Adam { 2 } else { 1 };
        use_.encoders += state;
        // A new checkpoint is written beside the old one.
        use_.checkpoints = use_.checkpoints.max(2 * jobs as u64 * (state + moments * parameters));
    }
    use_.report += REPORT * use_.records / 100;
    Ok(use_)
}

fn bytes(tensors: &StateDict) -> u64 {
    tensors.iter().map(|(_, tensor)| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64).sum()
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { claims, design, smoke, disk, free } = self;
        let runs = format!("{} with {}", counted(design.splits, "split"), counted(design.seeds, "seed"));
        match (claims.is_empty(), smoke) {
            (true, _) => writeln!(f, "# power: reference/claims.toml has no claim about this suite")?,
            (_, true) => writeln!(f, "# power: a smoke run yields no verdict")?,
            _ => {
                writeln!(f, "# power: how often a claim that is true would be found so, {runs}")?;
                let mut table = Table::new(&["claim", "assumes", "power"]);
                for (id, power) in claims {
                    let (assumes, power) = match power {
                        Some(ClaimPower { power, assumes, .. }) => {
                            (assumes.as_str(), power.map_or("–".to_owned(), |power| format!("{power:.2}")))
                        }
                        None => ("not run", "–".to_owned()),
                    };
                    table.row(vec![id.clone(), assumes.to_owned(), power]);
                }
                f.write_str(&table.to_text())?;
            }
        }
        let DiskUse { encoders, records, report, checkpoints } = disk;
        writeln!(
            f,
            "\n# disk: about {} of encoders, {} of records and {} of report; at most {} more of checkpoints while it runs; {} free",
            human(*encoders),
            human(*records),
            human(*report),
            human(*checkpoints),
            human(*free)
        )
    }
}
