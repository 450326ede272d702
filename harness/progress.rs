//! Progress bars on standard error; silent where that is not a terminal.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The bars of one command.
#[derive(Debug, Default)]
pub struct Progress {
    bars: MultiProgress,
}

impl Progress {
    /// A bar of `total` units of `what`, `done` of them already behind it, with the time left.
    pub fn bar(&self, label: &str, what: &str, total: usize, done: usize) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new(total as u64).with_position(done as u64));
        bar.reset_eta();
        let template = format!("{{prefix:30}} {{bar:24}} {{pos}}/{{len}} {what}, {{eta}} left  {{msg}}");
        // The template is ours and holds no unknown key; were it refused, the plain bar would do.
        bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        bar
    }

    /// A bar of `total` bytes (0: not known yet) with rate and time left; `done` of them are already behind it.
    pub fn bytes(&self, label: &str, total: u64, done: u64) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new(total).with_position(done));
        bar.reset_eta();
        let template = "{prefix:30} {bar:24} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
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
}
