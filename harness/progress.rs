//! Progress bars on standard error, each on one line of a terminal from 60 columns on; silent where there is none.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressState, ProgressStyle};

/// The bars of one command.
#[derive(Debug, Default)]
pub struct Progress {
    bars: MultiProgress,
}

impl Progress {
    /// A bar of `total` units of `what`, `done` of them already behind it, with the time left. It is gone when it is dropped.
    pub fn bar(&self, label: &str, what: &str, total: usize, done: usize) -> ProgressBar {
        let bar = ProgressBar::new(total as u64).with_position(done as u64);
        self.add(bar, label, &counted(what), &AtomicU64::new(done as u64).into())
    }

    /// A bar of `total` bytes, where that is known, with rate and time left; `done` of them are already behind it.
    pub fn bytes(&self, label: &str, total: Option<u64>, done: u64) -> ProgressBar {
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new).with_position(done);
        let template = match total {
            None => "{bytes}, {bytes_per_sec}",
            Some(_) if console::Term::stderr().size().1 < 80 => "{wide_bar} {bytes}/{total_bytes}{left}",
            Some(_) => "{wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}{left}",
        };
        self.add(bar, label, template, &AtomicU64::new(done).into())
    }

    /// The jobs of a suite.
    pub fn jobs(&self, suite: &str, count: usize) -> Jobs {
        let quick = Arc::default();
        Jobs { bar: self.add(ProgressBar::new(count as u64), suite, &counted("jobs"), &quick), quick }
    }

    /// Of the bar's position `done` tells nothing of how long the rest takes.
    fn add(&self, bar: ProgressBar, label: &str, template: &str, done: &Arc<AtomicU64>) -> ProgressBar {
        let done = done.clone();
        // First of all: a bar that is not one of these draws itself at every change.
        let bar = self.bars.add(bar);
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
        bar.enable_steady_tick(Duration::from_millis(500));
        bar
    }

    /// A line above the bars, or plainly on standard error where there is no terminal.
    pub fn say(&self, text: &str) {
        if self.bars.is_hidden() {
            eprintln!("{text}");
        } else {
            self.line(text);
        }
    }

    /// A line above the bars; dropped where there is no terminal.
    pub fn line(&self, text: &str) {
        // A terminal that went away is no reason to stop a run.
        let _ = self.bars.println(text);
    }

    /// A line on standard output, which may be the terminal of the bars.
    pub fn print(&self, text: &str) {
        self.bars.suspend(|| println!("{text}"));
    }
}

fn counted(what: &str) -> String {
    format!("{{wide_bar}} {{pos}}/{{len}} {what}{{left}}  {{msg}}")
}

/// What the rest takes at the mean speed so far, once there is one: what was `done` before the bar began tells nothing, and
/// of jobs that take minutes or hours the latest tell little.
fn left(state: &ProgressState, done: u64) -> Option<Duration> {
    let (gone, rest) = (state.pos().checked_sub(done)?, state.len()?.saturating_sub(state.pos()));
    (gone > 0).then(|| state.elapsed().mul_f64(rest as f64 / gone as f64))
}

/// The bar of a suite's jobs.
#[derive(Debug)]
pub struct Jobs {
    bar: ProgressBar,
    quick: Arc<AtomicU64>,
}

impl Jobs {
    /// Does a job and counts it. One that is over at once, since its result was read back or it could not begin, does not
    /// tell how long the others take.
    pub fn run<T>(&self, job: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let outcome = job();
        if start.elapsed() < Duration::from_secs(1) {
            self.quick.fetch_add(1, Ordering::Relaxed);
        }
        self.bar.inc(1);
        outcome
    }
}
