//! Steps recorded as CUDA graphs. In: a batch and how its step is computed. Out: the loss. A step is hundreds of small
//! operations, which the host queues one by one more slowly than a large GPU computes them; a graph is queued at once.
//!
//! A graph has the addresses of all that it reads and writes, so everything that lives from step to step keeps its place:
//! parameters, momentum, running statistics, the mask, the rate, the temperature. Numbers of the host are not seen again: what
//! changes from step to step or from epoch to epoch is a tensor, filled in place, or what batch norm counts, added here.

use std::collections::HashMap;

use tch::{Device, Tensor};

use super::PretrainError;
use crate::native::NativeError;
use crate::native::graph::{Graph, Purpose, SideStream, give_back};
use crate::network::Network;

/// Steps of a shape that are computed as usual first. In them cuDNN tries its algorithms, which it cannot while recording.
pub(super) const USUAL: usize = 2;

/// A recorded step for every shape of batch that comes up: the whole batches', and that of the epoch's rest.
#[derive(Debug)]
pub struct Recorder {
    /// Where steps are computed as usual and recorded: on one stream, or graphs could not share memory.
    side: SideStream,
    usual: HashMap<Vec<i64>, usize>,
    recorded: HashMap<Vec<i64>, Recorded>,
}

#[derive(Debug)]
struct Recorded {
    graph: Graph,
    views: Tensor,
    loss: Tensor,
    /// Batches that a step adds to each counter of batch norm.
    counted: Vec<i64>,
}

impl Recorder {
    /// A recorder of steps on `device`; `None` on the CPU, where operations are large beside what starting them takes.
    pub fn new(device: Device) -> Result<Option<Self>, NativeError> {
        let side = SideStream::new(Purpose::Steps, device)?;
        Ok(side.map(|side| Self { side, usual: HashMap::new(), recorded: HashMap::new() }))
    }

    /// What `compute`, a step of `network`, gives for `views`, recorded once their shape has been seen often enough.
    pub fn step(
        &mut self,
        network: &Network,
        views: &Tensor,
        compute: impl FnOnce(&Tensor) -> Result<Tensor, PretrainError>,
    ) -> Result<Tensor, PretrainError> {
        let shape = views.size();
        if let Some(recorded) = self.recorded.get(&shape) {
            return recorded.launch(network, views);
        }
        let usual = self.usual.entry(shape.clone()).or_default();
        if *usual < USUAL {
            *usual += 1;
            // What graphs hold, nobody else can have: a step as usual would need as much again beside them.
            self.forget()?;
            let loss = self.side.run(|| compute(views))?;
            self.side.join()?;
            return loss;
        }
        let recorded = self.record(network, views, compute)?;
        self.recorded.entry(shape).or_insert(recorded).launch(network, views)
    }

    /// Drops all graphs, and leaves their memory to others.
    fn forget(&mut self) -> Result<(), NativeError> {
        self.recorded.clear();
        give_back()
    }

    fn record(
        &self,
        network: &Network,
        views: &Tensor,
        compute: impl FnOnce(&Tensor) -> Result<Tensor, PretrainError>,
    ) -> Result<Recorded, PretrainError> {
        let (views, counters) = (views.copy(), network.counters());
        let before: Vec<i64> = counters.iter().map(|counter| counter.get()).collect();
        let sharing = self.recorded.values().next().map(|recorded| &recorded.graph);
        let recording = Graph::record(&self.side, sharing, || compute(&views));
        // Nothing has been computed yet.
        let counted = counters.iter().zip(before).map(|(counter, before)| counter.replace(before) - before).collect();
        let (graph, loss) = recording.map_err(PretrainError::Recording)?;
        Ok(Recorded { graph, views, loss: loss?, counted })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // What fails on a device fails again for whoever asks more of it.
        let _ = self.forget();
    }
}

impl Recorded {
    fn launch(&self, network: &Network, views: &Tensor) -> Result<Tensor, PretrainError> {
        self.views.shallow_clone().copy_(views);
        self.graph.launch()?;
        for (counter, counted) in network.counters().into_iter().zip(&self.counted) {
            counter.set(counter.get() + counted);
        }
        Ok(self.loss.copy())
    }
}
