//! How far a command has come: bars on standard error where that is a terminal (each on one line from 60 columns on),
//! plain lines elsewhere (each job as it begins and ends, and at most one line a minute within a job), which are logged.

use std::fmt::{Display, Write};
use std::io::IsTerminal;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{
    HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Mode {
    /// Bars on a terminal, plain lines elsewhere
    #[default]
    Auto,
    /// Bars on a terminal of any kind
    Bar,
    /// A line now and then
    Plain,
    None,
}

/// How long a job says nothing after a plain line.
const PAUSE: Duration = Duration::from_secs(60);

/// What all parts of a command share: they write to one standard error.
#[derive(Debug, Clone)]
struct Shared {
    bars: MultiProgress,
    plain: bool,
}

fn shared(mode: Mode) -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let terminal = std::io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let shows_bars = match mode {
            Mode::Auto => terminal && !dumb,
            Mode::Bar => terminal,
            Mode::Plain | Mode::None => false,
        };
        let target = if shows_bars { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Shared { bars: MultiProgress::with_draw_target(target), plain: !shows_bars && mode != Mode::None }
    })
}

/// Settles how this process shows progress, before the first [`Progress`].
pub fn configure(mode: Mode) {
    shared(mode);
}

/// Does what writes to the terminal, while no bar is drawn there.
pub fn suspend<T>(write: impl FnOnce() -> T) -> T {
    shared(Mode::Auto).bars.suspend(write)
}

/// The progress of one command.
#[derive(Debug, Clone)]
pub struct Progress {
    shared: &'static Shared,
}

impl Default for Progress {
    fn default() -> Self {
        Self { shared: shared(Mode::Auto) }
    }
}

impl Progress {
    /// A bar of `total` units of `what`, `done` of them already behind it, with the time left. It is gone when it is dropped.
    pub fn bar(&self, label: &str, what: &str, total: usize, done: usize) -> Bar {
        let bar = ProgressBar::new(total as u64).with_position(done as u64);
        let bar = self.add(bar, label, &counted(what), &AtomicU64::new(done as u64).into());
        self.plain(bar, label, done as u64)
    }

    /// A bar of `total` bytes, where that is known, with rate and time left; `done` of them are already behind it.
    pub fn bytes(&self, label: &str, total: Option<u64>, done: u64) -> Bar {
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new).with_position(done);
        let template = match total {
            None => "{bytes}, {bytes_per_sec}",
            Some(_) if console::Term::stderr().size().1 < 80 => "{wide_bar} {bytes}/{total_bytes}{left}",
            Some(_) => "{wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}{left}",
        };
        let bar = self.add(bar, label, template, &AtomicU64::new(done).into());
        self.plain(bar, label, done)
    }

    /// The jobs of a suite.
    pub fn jobs(&self, suite: &str, count: usize) -> Jobs {
        let quick = Arc::default();
        let bar = self.add(ProgressBar::new(count as u64), suite, &counted("jobs"), &quick);
        Jobs { bar, quick, plain: self.shared.plain, count, begun: AtomicUsize::new(0) }
    }

    /// Does a job that is alone in its command; plain progress has a line on its begin and on its good end.
    pub fn job<T, E: Display>(&self, name: &str, job: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if self.shared.plain { told(name, None, job) } else { job() }
    }

    /// Of the bar's position `done` tells nothing of how long the rest takes.
    fn add(&self, bar: ProgressBar, label: &str, template: &str, done: &Arc<AtomicU64>) -> ProgressBar {
        let done = done.clone();
        // First of all: a bar that is not one of these draws itself at every change.
        let bar = self.shared.bars.add(bar);
        // The template is ours and holds no unknown key; were it refused, the plain bar would do.
        let style = ProgressStyle::with_template(&format!("{{prefix:17}} {template}"));
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.with_key("left", move |state: &ProgressState, text: &mut dyn Write| {
            if let Some(left) = left(state, done.load(Ordering::Relaxed)) {
                // It goes into a string, which takes everything.
                let _ = write!(text, ", {:#} left", HumanDuration(left));
            }
        }));
        bar.set_prefix(label.to_owned());
        if !self.shared.bars.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        bar
    }

    fn plain(&self, bar: ProgressBar, label: &str, done: u64) -> Bar {
        let plain =
            self.shared.plain.then(|| Plain { label: label.to_owned(), done, said: Mutex::new(Instant::now()) });
        Bar { bar, plain }
    }

    /// A line of the log, above the bars.
    pub fn say(&self, text: &str) {
        tracing::info!("{text}");
    }

    /// A line above the bars; dropped where there are none.
    pub fn line(&self, text: &str) {
        // A terminal that went away is no reason to stop a run.
        let _ = self.shared.bars.println(text);
    }
}

fn counted(what: &str) -> String {
    format!("{{wide_bar}} {{pos}}/{{len}} {what}{{left}}  {{msg}}")
}

/// What the rest takes at the mean speed so far, once there is one: what was `done` before the bar began tells nothing, and
/// of jobs that take minutes or hours the latest tell little.
fn left(state: &ProgressState, done: u64) -> Option<Duration> {
    time_left(state.elapsed(), state.pos(), state.len()?, done)
}

fn time_left(elapsed: Duration, position: u64, length: u64, done: u64) -> Option<Duration> {
    let (gone, rest) = (position.checked_sub(done)?, length.saturating_sub(position));
    (gone > 0).then(|| elapsed.mul_f64(rest as f64 / gone as f64))
}

/// The bar of one job, or the lines that stand for it.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    plain: Option<Plain>,
}

#[derive(Debug)]
struct Plain {
    label: String,
    done: u64,
    /// When it last said something.
    said: Mutex<Instant>,
}

impl Plain {
    /// Whether it is time for a line; then the next one is due a pause later.
    fn is_due(&self, now: Instant) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let due = now.duration_since(*said) >= PAUSE;
        if due {
            *said = now;
        }
        due
    }
}

/// What is known at an epoch's end.
#[derive(Debug, Clone, Copy)]
pub struct Epoch {
    pub epoch: usize,
    pub epochs: usize,
    pub loss: f64,
    pub images_per_second: f64,
}

impl Bar {
    /// An epoch has ended, whose steps the bar has counted.
    pub fn epoch(&self, epoch: Epoch) {
        let Epoch { epoch, epochs, loss, images_per_second } = epoch;
        self.bar.set_message(format!("loss {loss:.3}"));
        let Some(plain) = self.plain.as_ref().filter(|plain| plain.is_due(Instant::now())) else { return };
        let left = self.left(plain);
        let job = plain.label.as_str();
        tracing::info!(
            job,
            epoch,
            epochs,
            loss,
            images_per_second,
            seconds_left = left.map(|left| left.as_secs()),
            "{job}: epoch {epoch} of {epochs}, loss {loss:.3}, {images_per_second:.0} images/s{}",
            in_words(left)
        );
    }

    /// So many bytes have come.
    pub fn set_position(&self, position: u64) {
        self.bar.set_position(position);
        let Some(plain) = self.plain.as_ref().filter(|plain| plain.is_due(Instant::now())) else { return };
        let left = self.left(plain);
        let (job, total) = (plain.label.as_str(), self.bar.length());
        tracing::info!(
            job,
            bytes = position,
            total_bytes = total,
            seconds_left = left.map(|left| left.as_secs()),
            "{job}: {}{}{}",
            HumanBytes(position),
            total.map(|total| format!(" of {}", HumanBytes(total))).unwrap_or_default(),
            in_words(left)
        );
    }

    fn left(&self, plain: &Plain) -> Option<Duration> {
        time_left(self.bar.elapsed(), self.bar.position(), self.bar.length()?, plain.done)
    }
}

/// What goes on behind other words of a line.
fn in_words(left: Option<Duration>) -> String {
    left.map(|left| format!(", {} left", HumanDuration(left))).unwrap_or_default()
}

impl Deref for Bar {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.bar
    }
}

/// The bar of a suite's jobs.
#[derive(Debug)]
pub struct Jobs {
    bar: ProgressBar,
    quick: Arc<AtomicU64>,
    plain: bool,
    count: usize,
    begun: AtomicUsize,
}

impl Jobs {
    /// Does a job and counts it. One that is over at once, since its result was read back or it could not begin, does not
    /// tell how long the others take. Plain progress has a line on its begin and on its end.
    pub fn run<T, E: Display>(&self, name: &str, job: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let start = Instant::now();
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let outcome = if self.plain { told(name, Some((number, self.count)), job) } else { job() };
        if start.elapsed() < Duration::from_secs(1) {
            self.quick.fetch_add(1, Ordering::Relaxed);
        }
        self.bar.inc(1);
        outcome
    }
}

/// Does a job between two lines of the log.
fn told<T, E: Display>(job: &str, number: Option<(usize, usize)>, run: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    match number {
        Some((number, jobs)) => tracing::info!(job, number, jobs, "{job}: begun (job {number} of {jobs})"),
        None => tracing::info!(job, "{job}: begun"),
    }
    let outcome = run();
    let (time, seconds) = (HumanDuration(start.elapsed()), start.elapsed().as_secs_f64());
    match (&outcome, number) {
        (Ok(_), _) => tracing::info!(job, seconds, "{job}: finished in {time}"),
        // The command itself tells of it next.
        (Err(_), None) => {}
        (Err(error), Some(_)) => tracing::info!(job, seconds, "{job}: not finished after {time}: {error}"),
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_says_something_once_a_minute() {
        let start = Instant::now();
        let plain = Plain { label: "job".to_owned(), done: 0, said: Mutex::new(start) };
        let after = |seconds| plain.is_due(start + Duration::from_secs(seconds));
        assert_eq!(
            [10, 59, 60, 61, 119, 300, 359, 360].map(after),
            [false, false, true, false, false, true, false, true]
        );
    }

    #[test]
    fn the_rest_takes_as_long_as_what_was_done_here() {
        let seconds = Duration::from_secs;
        assert_eq!(time_left(seconds(30), 10, 40, 0), Some(seconds(90)));
        assert_eq!(time_left(seconds(30), 10, 40, 5), Some(seconds(180)));
        assert_eq!(time_left(seconds(30), 5, 40, 5), None);
        assert_eq!(time_left(seconds(30), 40, 40, 0), Some(seconds(0)));
        assert_eq!(in_words(Some(seconds(150))), ", 3 minutes left");
        assert_eq!(in_words(None), "");
    }
}
