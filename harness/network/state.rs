//! A state dict: what a checkpoint holds and what a network gives and takes.

use std::collections::HashMap;

use tch::{Device, Kind, TchError, Tensor};

/// Named tensors in the order they were inserted, which for a file is the file's order.
///
/// Tensors that come out of a file are contiguous and on the CPU.
#[derive(Debug, Default)]
pub struct StateDict {
    entries: Vec<(String, Tensor)>,
    positions: HashMap<String, usize>,
}

impl StateDict {
    pub fn new() -> Self {
        Self::default()
    }

    /// The tensor called exactly `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.positions.get(name).map(|&position| &self.entries[position].1)
    }

    /// Adds a tensor at the end; one of the same name is replaced where it stands and given back.
    pub fn insert(&mut self, name: String, tensor: Tensor) -> Option<Tensor> {
        if let Some(&position) = self.positions.get(&name) {
            return Some(std::mem::replace(&mut self.entries[position].1, tensor));
        }
        self.positions.insert(name.clone(), self.entries.len());
        self.entries.push((name, tensor));
        None
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    /// The same tensors on the CPU; those that lie there already are not copied.
    pub fn on_cpu(self) -> Self {
        self.into_iter().map(|(name, tensor)| (name, tensor.to_device(Device::Cpu))).collect()
    }

    /// A weighted sum over the bits of all values, which tells two states apart unless differences cancel. It is computed where the tensors lie.
    ///
    /// # Errors
    /// As libtorch's operations.
    pub fn bits(&self) -> Result<i64, TchError> {
        let sum = |tensor: &Tensor| {
            let words = match tensor.kind() {
                Kind::Float => tensor.f_view_dtype(Kind::Int)?,
                Kind::Double => tensor.f_view_dtype(Kind::Int64)?,
                _ => tensor.f_to_kind(Kind::Int64)?,
            };
            words.f_sum(Kind::Int64)
        };
        let sums = self.entries.iter().map(|(_, tensor)| sum(tensor)).collect::<Result<Vec<_>, _>>()?;
        if sums.is_empty() {
            return Ok(0);
        }
        // One answer for all: what lies on the host, such as batch norm's counters, goes to the device first.
        let device = sums.iter().map(Tensor::device).find(|device| *device != Device::Cpu).unwrap_or(Device::Cpu);
        let sums = sums.iter().map(|sum| sum.f_to_device(device)).collect::<Result<Vec<_>, _>>()?;
        let sums = Vec::<i64>::try_from(Tensor::f_stack(&sums, 0)?.f_to_device(Device::Cpu)?)?;
        Ok((1..).zip(sums).fold(0, |all, (place, sum): (i64, i64)| all.wrapping_add(sum.wrapping_mul(2 * place + 1))))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl FromIterator<(String, Tensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(entries: I) -> Self {
        let mut state = Self::new();
        for (name, tensor) in entries {
            state.insert(name, tensor);
        }
        state
    }
}

impl IntoIterator for StateDict {
    type Item = (String, Tensor);
    type IntoIter = std::vec::IntoIter<(String, Tensor)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}
