//! A suite within a time budget: what fits, judged from measured speeds, and when to stop. Jobs run in the plan's order.
//! Pre-training stops at an epoch's end with a checkpoint; a probe, which cannot be taken up half-way, is begun only
//! where it fits. Every sitting gets something done, be it longer than its budget: one epoch, or one probe.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use tch::{Device, Kind};

use super::context::Context;
use super::{PlannedEncoder, SuiteError};
use crate::network::{Network, NetworkSpec};
use crate::pretrain::Trainer;
use crate::pretrain::loader::Loader;
use crate::pretrain::run::CHECKPOINT;
use crate::recipe::{EncoderId, JobId, Protocol, Recipe};
use crate::record::{self, Event};
use crate::report::table::{Table, duration};
use crate::split::ListName;

/// Forward passes that a training image costs (two views, each forward and backward), beside the one of a probe's.
const TRAINING_PASSES: f64 = 6.0;

/// What happens to a job in this sitting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Finished in an earlier sitting.
    Done,
    Run,
    /// Runs until the time is up, and goes on in the next sitting.
    Part,
    Left,
}

/// A job and what it is thought to take.
#[derive(Debug, Clone, PartialEq)]
pub struct JobCost {
    pub job: JobId,
    pub finished: bool,
    /// Whether it can stop half-way and go on later: pre-training.
    pub divisible: bool,
    /// What is left of it.
    pub seconds: f64,
}

/// What a sitting will do.
#[derive(Debug, Clone)]
pub struct BudgetPlan {
    pub budget: Duration,
    pub jobs: Vec<(JobCost, Fate)>,
    /// Method, images per second, and where that is known from.
    pub speeds: Vec<(String, f64, &'static str)>,
}

/// The fate of each job of `costs`, in order, where each of `workers` has `seconds` to spend. The worker that is free first
/// takes the first job whose pre-training is finished by then.
pub fn fit(costs: &[JobCost], seconds: f64, workers: usize) -> Vec<Fate> {
    let mut clock = Clock::default();
    let mut free = vec![0.0_f64; workers.max(1)];
    // By encoder: when its pre-training is finished; never where it is still waiting, stopped or left.
    let pretraining = costs.iter().filter(|cost| cost.divisible);
    let mut ready: BTreeMap<EncoderId, f64> =
        pretraining.map(|cost| (cost.job.encoder.clone(), f64::INFINITY)).collect();
    let mut waiting: Vec<usize> = (0..costs.len()).collect();
    let mut fates = vec![Fate::Left; costs.len()];
    while !waiting.is_empty() {
        let worker = (0..free.len()).min_by(|a, b| free[*a].total_cmp(&free[*b])).unwrap_or(0);
        let begins = |place: usize| {
            let cost = &costs[place];
            let needs = (!cost.divisible && !cost.finished).then(|| ready.get(&cost.job.encoder)).flatten();
            needs.map_or(free[worker], |ready| ready.max(free[worker]))
        };
        let next = (0..waiting.len()).min_by(|a, b| begins(waiting[*a]).total_cmp(&begins(waiting[*b]))).unwrap_or(0);
        let start = begins(waiting[next]);
        let place = waiting.remove(next);
        let cost = &costs[place];
        fates[place] = clock.fate(cost, seconds - start);
        let end = match fates[place] {
            Fate::Done => start,
            Fate::Run => start + cost.seconds,
            Fate::Part | Fate::Left => f64::INFINITY,
        };
        if cost.divisible {
            ready.insert(cost.job.encoder.clone(), end);
        }
        if fates[place] != Fate::Done {
            free[worker] = end;
        }
    }
    fates
}

impl fmt::Display for BudgetPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let speeds: Vec<String> = self
            .speeds
            .iter()
            .map(|(method, speed, source)| format!("{method} {speed:.0} images/s ({source})"))
            .collect();
        let speeds = if speeds.is_empty() { "unknown".to_owned() } else { speeds.join(", ") };
        writeln!(f, "budget {}; speed of training: {speeds}", duration(self.budget.as_secs_f64()))?;
        let mut table = Table::new(&["in this sitting", "job", "takes about"]);
        for (cost, fate) in &self.jobs {
            let fate = match fate {
                Fate::Done => "done before",
                Fate::Run => "runs",
                Fate::Part => "runs in part",
                Fate::Left => "left",
            };
            let seconds = if cost.finished { "–".to_owned() } else { duration(cost.seconds) };
            table.row(vec![fate.to_owned(), cost.job.to_string(), seconds]);
        }
        f.write_str(&table.to_text())
    }
}

/// When to stop, and whether anything was begun yet. Without a deadline everything runs.
#[derive(Debug, Default)]
pub(super) struct Clock {
    pub deadline: Option<Instant>,
    costs: Vec<JobCost>,
    started: bool,
    pub stopped: bool,
}

impl Clock {
    pub fn new(deadline: Instant, costs: Vec<JobCost>) -> Self {
        Self { deadline: Some(deadline), costs, started: false, stopped: false }
    }

    /// The fate of the next job, with `left` seconds to spend.
    fn fate(&mut self, cost: &JobCost, left: f64) -> Fate {
        if cost.finished {
            return Fate::Done;
        }
        let fate = match (left > 0.0 && cost.seconds <= left, cost.divisible) {
            _ if self.stopped => Fate::Left,
            (true, _) => Fate::Run,
            (false, true) if left > 0.0 || !self.started => Fate::Part,
            (false, false) if !self.started => Fate::Run,
            (false, _) => Fate::Left,
        };
        (self.started, self.stopped) = (true, fate == Fate::Left);
        fate
    }

    /// Whether `job` may begin now: by the time that really is left.
    pub fn may_start(&mut self, job: &JobId) -> bool {
        let cost = self.costs.iter().find(|cost| cost.job == *job).cloned();
        let Some((deadline, cost)) = self.deadline.zip(cost) else {
            return true;
        };
        let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64();
        self.fate(&cost, left) != Fate::Left
    }
}

/// What the records of earlier sittings say of speed on this device.
#[derive(Debug, Default)]
struct Known {
    /// What pre-training computes, and images per second.
    training: Vec<(serde_json::Value, f64)>,
    /// Seconds of a probe's epoch.
    probing: Vec<(Protocol, f64)>,
}

/// The part of a recipe that the speed of pre-training hangs on.
fn speed_key(mut recipe: serde_json::Value) -> serde_json::Value {
    if let Some(keys) = recipe.as_object_mut() {
        ["probe", "epochs", "seed"].iter().for_each(|key| drop(keys.remove(*key)));
    }
    recipe
}

fn events(path: &Path) -> Vec<Event> {
    // What cannot be read is not known; the job itself will say why.
    record::read_events(path).unwrap_or_default().into_iter().map(|(event, _)| event).collect()
}

impl Known {
    /// Of every device where none is named.
    fn read(plan: &[PlannedEncoder], folder: &Path, device: Option<&str>) -> Self {
        let mut known = Self::default();
        for encoder in plan {
            for job in encoder.jobs() {
                known.learn(&events(&folder.join(job.to_string()).join("run.jsonl")), device);
            }
        }
        known
    }

    /// From the last sitting of one job, if it was on `device`.
    fn learn(&mut self, events: &[Event], device: Option<&str>) {
        let start = events.iter().rposition(|event| matches!(event, Event::Start { .. }));
        let Some((Event::Start { header, session }, rest)) = start.and_then(|start| events[start..].split_first())
        else {
            return;
        };
        let epochs: Vec<_> =
            rest.iter().filter_map(|event| if let Event::Epoch(e) = event { Some(e) } else { None }).collect();
        if device.is_some_and(|device| session.environment.device != device) || epochs.is_empty() {
            return;
        }
        let seconds = epochs.iter().map(|epoch| epoch.seconds).sum::<f64>() / epochs.len() as f64;
        match header.protocol {
            Some(protocol) => self.probing.push((protocol, seconds)),
            None => {
                let mut speeds: Vec<f64> = epochs.iter().map(|epoch| epoch.images_per_second).collect();
                speeds.sort_by(f64::total_cmp);
                self.training.push((speed_key(header.recipe.clone()), speeds[speeds.len() / 2]));
            }
        }
    }

    /// Images per second of training by `recipe`.
    fn speed(&self, recipe: &Recipe) -> Option<f64> {
        let key = recipe.to_json().map(speed_key).unwrap_or_default();
        self.training.iter().find(|(found, _)| *found == key).map(|(_, speed)| *speed)
    }
}

/// What is left of each job of `plan`, in seconds, as far as the records in `folder` tell, of whatever device; nothing is
/// measured.
pub(super) fn recorded(context: &Context, plan: &[PlannedEncoder], folder: &Path) -> Vec<(JobId, Option<f64>)> {
    let known = Known::read(plan, folder, None);
    let of_encoder = |encoder: &PlannedEncoder| {
        let speed = known.speed(&encoder.recipe);
        let cost = |job: JobId| {
            let seconds = seconds_of(context, encoder, &job, folder, speed, &known);
            (job, seconds)
        };
        encoder.jobs().map(cost).collect::<Vec<_>>()
    };
    plan.iter().flat_map(of_encoder).collect()
}

/// What the jobs of `plan` will take, and what of them fits before `deadline`. Speeds come from the records in `folder`.
/// Where the first recipe that is not finished has none, some steps are measured, and later ones go by its speed until
/// they have records: what it costs to know a speed is paid by the sitting that works at it.
pub(super) fn plan(
    context: &Context,
    encoders: &[PlannedEncoder],
    folder: &Path,
    budget: Duration,
    deadline: Instant,
    workers: usize,
) -> BudgetPlan {
    let known = Known::read(encoders, folder, Some(&context.environment.device));
    let mut speeds: Vec<(String, f64, &'static str)> = Vec::new();
    let mut first = None;
    let mut costs = Vec::new();
    for encoder in encoders {
        let recorded = known.speed(&encoder.recipe);
        let unfinished = costs_of(context, encoder, folder, None, &known).iter().any(|cost| !cost.finished);
        let window = (budget / 20).min(Duration::from_secs(5));
        let speed = match (recorded, first) {
            (Some(speed), _) => Some((speed, "from earlier records")),
            (None, Some(speed)) => Some((speed, "as the first, until it has a record")),
            // What keeps its steps from being measured is for the job itself to say.
            (None, None) if unfinished => {
                super::guarded(|| calibrate(context, encoder, window)).ok().map(|speed| (speed, "measured now"))
            }
            (None, None) => None,
        };
        if let Some((speed, source)) = speed {
            if unfinished {
                first = first.or(Some(speed));
            }
            if !speeds.iter().any(|(method, ..)| *method == encoder.id.encoder) {
                speeds.push((encoder.id.encoder.clone(), speed, source));
            }
        }
        // A job whose speed nobody knows is let to begin: it fails at once, or runs until the time is up.
        costs.extend(costs_of(context, encoder, folder, speed.map(|(speed, _)| speed), &known));
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let fates = fit(&costs, left.as_secs_f64(), workers);
    BudgetPlan { budget, jobs: costs.into_iter().zip(fates).collect(), speeds }
}

/// The pre-training of `encoder`, where it has one, and its probes.
fn costs_of(
    context: &Context,
    encoder: &PlannedEncoder,
    folder: &Path,
    speed: Option<f64>,
    known: &Known,
) -> Vec<JobCost> {
    let cost = |job: JobId| JobCost {
        finished: folder.join(job.to_string()).join("result.json").exists(),
        divisible: job.protocol().is_none(),
        seconds: seconds_of(context, encoder, &job, folder, speed, known).unwrap_or(0.0),
        job,
    };
    encoder.jobs().map(cost).collect()
}

/// What is left of `job`, in seconds, at `speed` images of training a second; `None` where nothing is known of it.
fn seconds_of(
    context: &Context,
    encoder: &PlannedEncoder,
    job: &JobId,
    folder: &Path,
    speed: Option<f64>,
    known: &Known,
) -> Option<f64> {
    let PlannedEncoder { id, recipe, .. } = encoder;
    // A list that is not there fails its own job, at once.
    let length = |name| context.list(name).map_or(0, |list| list.len()) as f64;
    let of_images = |images: f64| speed.map(|speed| images / (TRAINING_PASSES * speed));
    let Some(protocol) = job.protocol() else {
        let path = folder.join(job.to_string());
        let mut epochs = context.epochs(recipe.epochs);
        if path.join(CHECKPOINT).exists() {
            let done = events(&path.join("run.jsonl"));
            epochs = epochs.saturating_sub(done.iter().filter(|event| matches!(event, Event::Epoch(_))).count());
        }
        return Some(epochs as f64 * length(ListName::Pretrain(id.list?, id.split)) / speed?);
    };
    let epochs = context.epochs(recipe.probe(protocol).epochs) as f64;
    let list = match protocol {
        Protocol::Full => ListName::Train,
        Protocol::Few => ListName::FewShot(id.split),
    };
    let recorded = known.probing.iter().find(|(found, _)| *found == protocol).map(|(_, seconds)| *seconds);
    let evaluated = length(ListName::Validation) + length(ListName::Test);
    let epoch = recorded.or_else(|| of_images(length(list)))?;
    Some(epochs * epoch + of_images(evaluated).unwrap_or(0.0))
}

/// Images per second of `encoder`'s training, from whole batches taken for about `window` as training takes them, on a
/// network that is then dropped.
fn calibrate(context: &Context, encoder: &PlannedEncoder, window: Duration) -> Result<f64, SuiteError> {
    let PlannedEncoder { id, recipe, .. } = encoder;
    let list = match id.list {
        Some(list) => context.list(ListName::Pretrain(list, id.split))?,
        None => context.list(ListName::Train)?,
    };
    let network = Network::new(NetworkSpec::of_recipe(recipe), recipe.seed, Kind::Float, context.device)?;
    let mut trainer = Trainer::new(recipe, network, 1000, context.eager())?;
    // Without the rest behind the whole batches.
    let size = recipe.batch_size.min(list.len());
    let whole = list.len() / size * size;
    let mut loader = Loader::new(&list.limited(Some(whole)), recipe, context.device, 1..)?;
    // On a GPU a wait for every step would cost what training does not pay.
    let (slow, together) = (trainer.slow_steps(), if context.device == Device::Cpu { 1 } else { 10 });
    let mut steps = |count| trainer.epoch(1, loader.by_ref().take(count));
    steps(slow)?;
    let (start, mut images) = (Instant::now(), 0);
    while images == 0 || start.elapsed() < window {
        images += steps(together)?.images;
    }
    Ok(images as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(encoder: &str) -> JobId {
        format!("{encoder}-split1").parse().unwrap()
    }

    fn cost(finished: bool, divisible: bool, seconds: f64) -> JobCost {
        JobCost { job: id("x"), finished, divisible, seconds }
    }

    #[test]
    fn jobs_run_in_order_until_the_first_that_does_not_fit() {
        use Fate::{Done, Left, Part, Run};
        let jobs = [
            cost(true, true, 0.0),
            cost(false, false, 10.0),
            cost(false, true, 100.0),
            cost(false, false, 10.0),
            cost(false, true, 1.0),
            cost(true, false, 0.0),
        ];
        let fit = |jobs: &[JobCost], seconds| super::fit(jobs, seconds, 1);
        assert_eq!(fit(&jobs, 1000.0), [Done, Run, Run, Run, Run, Done]);
        assert_eq!(fit(&jobs, 115.0), [Done, Run, Run, Left, Left, Done]);
        assert_eq!(fit(&jobs, 50.0), [Done, Run, Part, Left, Left, Done]);
        assert_eq!(fit(&jobs, 10.0), [Done, Run, Left, Left, Left, Done]);
        // Something always runs.
        assert_eq!(fit(&jobs, 0.0), [Done, Run, Left, Left, Left, Done]);
        assert_eq!(fit(&jobs[2..], 0.0), [Part, Left, Left, Done]);
        assert_eq!(fit(&[], 5.0), []);
    }

    #[test]
    fn workers_divide_the_jobs_and_a_probe_waits_for_its_encoder() {
        use Fate::{Left, Part, Run};
        let job = |name: &str, divisible, seconds| JobCost { job: id(name), ..cost(false, divisible, seconds) };
        let of = |encoder: &str| {
            let probe = format!("{encoder}-D_i-split1/few").parse().unwrap();
            [job(&format!("{encoder}-D_i"), true, 10.0), JobCost { job: probe, ..cost(false, false, 4.0) }]
        };
        let jobs = [of("a"), of("b"), of("c")].concat();
        // One after the other they take 42 seconds; two at once 24: a and b, their probes, c, its probe.
        assert_eq!(fit(&jobs, 42.0, 1), [Run; 6]);
        assert_eq!(fit(&jobs, 28.0, 2), [Run; 6]);
        assert_eq!(fit(&jobs, 27.0, 2), [Run, Run, Run, Run, Run, Left]);
        assert_eq!(fit(&jobs, 14.0, 3), [Run; 6]);
        assert_eq!(fit(&jobs, 20.0, 2), [Run, Run, Run, Run, Part, Left]);
        assert_eq!(fit(&jobs, 20.0, 1), [Run, Run, Part, Left, Left, Left]);
    }

    #[test]
    fn the_clock_lets_one_job_run_and_then_stops_for_good() {
        let costs = vec![
            JobCost { job: id("a"), ..cost(false, true, 5.0) },
            JobCost { job: id("b"), ..cost(true, true, 0.0) },
            JobCost { job: id("c"), ..cost(false, true, 5.0) },
        ];
        let mut clock = Clock::new(Instant::now(), costs);
        assert!(
            clock.may_start(&id("a"))
                && clock.may_start(&id("b"))
                && !clock.may_start(&id("c"))
                && !clock.may_start(&id("a"))
        );
        assert!(clock.stopped && clock.may_start(&id("b")));
        assert!(Clock::default().may_start(&id("a")));
    }
}
