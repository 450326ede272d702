//! Numbers that operations need where the images lie. In: values of any type, as they come up. Out: one tensor, so that a
//! whole batch's numbers travel at once, and slots that find them again in it.

use tch::{Device, Kind, Tensor};

use crate::native::{self, NativeError};

/// Words of 8 bytes that a slot's start is a multiple of: a cache line, and what vector loads like best.
const ALIGNMENT: usize = 8;

/// Collects numbers on the host. Every type is kept bit by bit in words of 8 bytes.
#[derive(Debug, Default)]
pub struct Packer {
    words: Vec<f64>,
}

/// Where numbers lie in the packed tensor.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    start: usize,
    words: usize,
    count: usize,
    kind: Kind,
}

impl Packer {
    /// A packer with room for so many float64 before it has to grow.
    pub fn with_capacity(doubles: usize) -> Self {
        Self { words: Vec::with_capacity(doubles) }
    }

    fn reserve(&mut self, kind: Kind, count: usize) -> (Slot, &mut [f64]) {
        let start = self.words.len().next_multiple_of(ALIGNMENT);
        let words = (count * kind.elt_size_in_bytes()).div_ceil(8);
        self.words.resize(start + words, 0.0);
        (Slot { start, words, count, kind }, &mut self.words[start..])
    }

    /// Room for `count` float64 zeros, to be filled in place.
    pub fn zeros(&mut self, count: usize) -> (Slot, &mut [f64]) {
        self.reserve(Kind::Double, count)
    }

    pub fn doubles(&mut self, values: &[f64]) -> Slot {
        let (slot, words) = self.reserve(Kind::Double, values.len());
        words.copy_from_slice(values);
        slot
    }

    pub fn integers(&mut self, values: &[i64]) -> Slot {
        let (slot, words) = self.reserve(Kind::Int64, values.len());
        for (word, value) in words.iter_mut().zip(values) {
            *word = f64::from_ne_bytes(value.to_ne_bytes());
        }
        slot
    }

    pub fn floats(&mut self, values: &[f32]) -> Slot {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        self.raw(Kind::Float, values.len(), &bytes)
    }

    pub fn bytes(&mut self, values: &[u8]) -> Slot {
        self.raw(Kind::Uint8, values.len(), values)
    }

    fn raw(&mut self, kind: Kind, count: usize, bytes: &[u8]) -> Slot {
        let (slot, words) = self.reserve(kind, count);
        for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = f64::from_ne_bytes(whole);
        }
        slot
    }

    /// Everything packed, on the host, ready to be sent to `device`.
    pub fn staged(self, device: Device) -> Result<Tensor, NativeError> {
        native::staged(Tensor::from_slice(&self.words), device)
    }

    /// Everything packed, on `device`.
    pub fn on(self, device: Device) -> Result<Tensor, NativeError> {
        native::send(&Tensor::from_slice(&self.words), device)
    }
}

impl Slot {
    /// The numbers, `[count]`, out of the packed tensor; they share its memory.
    pub fn of(self, numbers: &Tensor) -> Tensor {
        let words = numbers.narrow(0, self.start as i64, self.words as i64);
        match self.kind {
            Kind::Double => words,
            kind => words.view_dtype(kind).narrow(0, 0, self.count as i64),
        }
    }
}
