//! What the program logs, as lines on standard error: of text (`warning: ...`, and without a word in front of it what is
//! no warning), or of JSON objects with time, level, message and the event's fields. The field `label` is the word in front of a text line.

use std::fmt;
use std::io::Write;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::clock::utc;
use crate::progress;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    Text,
    /// An object a line: time, level, message, fields
    Json,
}

/// Events of this process go to standard error from here on; where it is `quiet`, only warnings and errors.
pub(super) fn start(format: LogFormat, quiet: bool) {
    let level = if quiet { Level::WARN } else { Level::INFO };
    let log = tracing_subscriber::fmt().event_format(Lines(format)).with_max_level(level);
    log.with_writer(|| AboveBars).init();
}

/// Standard error, which may be a terminal with bars.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        // A standard error that went away is no reason to stop a run.
        let _ = progress::suspend(|| std::io::stderr().write_all(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Lines(LogFormat);

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for Lines {
    fn format_event(&self, _: &FmtContext<S, N>, mut writer: Writer, event: &Event) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        writeln!(writer, "{}", line(self.0, level, fields.0, SystemTime::now()))
    }
}

/// The fields of an event, the message among them.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"));
    }
}

fn line(format: LogFormat, level: Level, mut fields: Map<String, Value>, now: SystemTime) -> String {
    let message = fields.remove("message");
    let message = message.as_ref().and_then(Value::as_str).unwrap_or_default();
    let label = fields.get("label").and_then(Value::as_str);
    match (format, level) {
        (LogFormat::Text, Level::ERROR) => format!("{}: {message}", label.unwrap_or("error")),
        (LogFormat::Text, Level::WARN) => format!("{}: {message}", label.unwrap_or("warning")),
        (LogFormat::Text, _) => message.to_owned(),
        (LogFormat::Json, _) => {
            let mut object = Map::new();
            object.insert("time".to_owned(), utc(now).into());
            object.insert("level".to_owned(), level.as_str().to_lowercase().into());
            object.insert("message".to_owned(), message.into());
            object.append(&mut fields);
            Value::Object(object).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn lines_of_either_format() {
        let fields = || {
            let value = serde_json::json!({ "message": "a: \u{1b}[1mepoch\n1", "epoch": 1, "loss": 0.5 });
            value.as_object().cloned().unwrap()
        };
        let line = |format, level| super::line(format, level, fields(), UNIX_EPOCH);
        assert_eq!(line(LogFormat::Text, Level::INFO), "a: \u{1b}[1mepoch\n1");
        assert_eq!(line(LogFormat::Text, Level::WARN), "warning: a: \u{1b}[1mepoch\n1");
        assert_eq!(line(LogFormat::Text, Level::ERROR), "error: a: \u{1b}[1mepoch\n1");
        let json: Value = serde_json::from_str(&line(LogFormat::Json, Level::WARN)).unwrap();
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00.000Z", "level": "warn", "message": "a: \u{1b}[1mepoch\n1", "epoch": 1, "loss": 0.5
        });
        assert_eq!(json, expected);
        assert_eq!(line(LogFormat::Json, Level::WARN).lines().count(), 1);
    }
}
