//! The scalars of epochs as TensorBoard reads them. In: a job's epochs. Out: `DIR/JOB/events.out.tfevents.sdclr`, of which every
//! epoch is one event. The format is TensorFlow's: records of length, masked CRC-32C, an `Event` message, its masked CRC-32C
//! (tensorflow/core/lib/io/record_writer.h, core/util/event.proto, core/framework/summary.proto).

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::{EpochRecord, JobHeader, RecordError};
use crate::fs::{self, Journal};

/// TensorBoard finds files by the middle part of their name.
const FILE: &str = "events.out.tfevents.sdclr";

/// `tensorflow.Event`, as far as we write it.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    /// Of the first event alone.
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `tensorflow.Summary.Value`.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// The growing event file of one job.
#[derive(Debug)]
pub struct EventFile {
    journal: Journal,
}

/// Where the events of a job lie in `folder`.
fn path(folder: &Path, header: &JobHeader) -> PathBuf {
    folder.join(header.job.to_string()).join(FILE)
}

impl EventFile {
    /// Makes the file of a job anew with the epochs that are done, so that an epoch that a killed session began twice is there
    /// once. Their times are computed back from now by the seconds that they took.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(folder: &Path, header: &JobHeader, done: &[EpochRecord]) -> Result<Self, RecordError> {
        let mut time = now() - done.iter().map(|epoch| epoch.seconds).sum::<f64>();
        let version = Event { wall_time: time, file_version: Some("brain.Event:2".to_owned()), ..Event::default() };
        let mut bytes = framed(&version);
        for epoch in done {
            time += epoch.seconds;
            bytes.extend(framed(&event(epoch, time)));
        }
        let path = path(folder, header);
        fs::write(&path, &bytes)?;
        Ok(Self { journal: Journal::open(&path)? })
    }

    /// Likewise the file of a finished job, where there is none.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn of_finished(folder: &Path, header: &JobHeader, epochs: &[EpochRecord]) -> Result<(), RecordError> {
        if !fs::exists(&path(folder, header))? {
            Self::open(folder, header, epochs)?;
        }
        Ok(())
    }

    /// Appends an epoch.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn epoch(&mut self, epoch: &EpochRecord) -> Result<(), RecordError> {
        Ok(self.journal.bytes(&framed(&event(epoch, now())))?)
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn event(epoch: &EpochRecord, wall_time: f64) -> Event {
    let scalars = [
        ("loss", Some(epoch.loss)),
        ("lr", Some(epoch.lr)),
        ("density", epoch.density),
        ("overlap", epoch.overlap),
        ("validation_accuracy", epoch.validation_accuracy),
        ("images_per_second", Some(epoch.images_per_second)),
    ];
    let value =
        |(tag, value): (&str, Option<f64>)| Some(Value { tag: tag.to_owned(), simple_value: Some(value? as f32) });
    let summary = Summary { value: scalars.into_iter().filter_map(value).collect() };
    Event { wall_time, step: epoch.epoch as i64, file_version: None, summary: Some(summary) }
}

/// A message as the file holds it.
fn framed(event: &Event) -> Vec<u8> {
    let message = event.encode_to_vec();
    let length = (message.len() as u64).to_le_bytes();
    let [of_length, of_message] = [masked(&length), masked(&message)].map(u32::to_le_bytes);
    [length.as_slice(), &of_length, &message, &of_message].concat()
}

/// CRC-32C, so changed that a checksum of data which hold checksums is still good.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
