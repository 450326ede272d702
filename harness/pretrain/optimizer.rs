//! SGD, LARS and Adam with state that can be saved (REFERENCE.md "Optimiser and schedule").

use tch::{Device, Kind, Tensor};

use super::PretrainError;
use crate::native;
use crate::network::StateDict;
use crate::recipe::OptimizerName;

/// The update rule and what it remembers of each parameter.
#[derive(Debug)]
pub struct Optimizer {
    rule: OptimizerName,
    momentum: f64,
    weight_decay: f64,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    /// Momentum (SGD, LARS) or first moment (Adam).
    first: Vec<Tensor>,
    /// Second moment (Adam).
    second: Vec<Tensor>,
    /// Steps taken (Adam's bias correction).
    steps: i64,
    lr: f64,
    /// The same, for the fused SGD.
    rate: Tensor,
}

const LARS_ETA: f64 = 0.001;
const LARS_SMALLEST_NORM: f64 = 1e-15;
const ADAM_BETAS: [f64; 2] = [0.9, 0.999];
const ADAM_EPSILON: f64 = 1e-8;

impl Optimizer {
    /// An optimiser of `parameters`, whose storage it updates. Weight decay reaches every parameter; Adam has none.
    pub fn new(rule: OptimizerName, momentum: f64, weight_decay: f64, parameters: &StateDict) -> Self {
        let names = parameters.names().map(str::to_owned).collect();
        let parameters: Vec<Tensor> = parameters.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        // A first momentum of zero gives the published first step, in which the buffer is the gradient.
        let zeros = || parameters.iter().map(|parameter| parameter.zeros_like().set_requires_grad(false)).collect();
        let second = if rule == OptimizerName::Adam { zeros() } else { Vec::new() };
        // CUDA's fused SGD reads a rate of its own memory, but only in float32.
        let rate = match parameters.first().map(|parameter| (parameter.device(), parameter.kind())) {
            Some((device, Kind::Float)) if device.is_cuda() => Tensor::zeros([], (Kind::Float, device)),
            _ => Tensor::zeros([], (Kind::Double, Device::Cpu)),
        };
        Self { rule, momentum, weight_decay, names, first: zeros(), second, parameters, steps: 0, lr: 0.0, rate }
    }

    /// The tensors to differentiate with respect to, in the order in which [`Optimizer::step`] takes gradients.
    pub fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// One update at rate `lr`.
    pub fn step(&mut self, gradients: &[Tensor], lr: f64) -> Result<(), PretrainError> {
        self.begin_step(lr)?;
        self.update(gradients)
    }

    /// Counts a step and sets its rate.
    pub fn begin_step(&mut self, lr: f64) -> Result<(), PretrainError> {
        (self.steps, self.lr) = (self.steps + 1, lr);
        drop(self.rate.f_fill_(lr)?);
        Ok(())
    }

    /// The update of the step that has begun.
    pub fn update(&mut self, gradients: &[Tensor]) -> Result<(), PretrainError> {
        match self.rule {
            OptimizerName::Sgd => {
                let Self { parameters, first, weight_decay, momentum, rate, .. } = self;
                native::fused_sgd(parameters, gradients, first, *weight_decay, *momentum, rate)?;
            }
            OptimizerName::Lars => tch::no_grad(|| self.lars(gradients)),
            OptimizerName::Adam => tch::no_grad(|| self.adam(gradients)),
        }
        Ok(())
    }

    /// Whether an update reads all that changes from step to step on the device, not on the host.
    pub fn is_recordable(&self) -> bool {
        self.rule == OptimizerName::Sgd && self.rate.device().is_cuda()
    }

    fn lars(&mut self, gradients: &[Tensor]) {
        for ((parameter, gradient), buffer) in self.parameters.iter_mut().zip(gradients).zip(&mut self.first) {
            let [size, slope] = [&*parameter, gradient].map(Tensor::norm);
            let adapted = &size * LARS_ETA / (&slope + &size * self.weight_decay);
            let tiny = size.lt(LARS_SMALLEST_NORM).logical_or(&slope.lt(LARS_SMALLEST_NORM));
            let rate = adapted.masked_fill(&tiny, 1.0) * self.lr;
            *buffer *= self.momentum;
            *buffer += rate * (gradient + &*parameter * self.weight_decay);
            *parameter -= &*buffer;
        }
    }

    fn adam(&mut self, gradients: &[Tensor]) {
        let corrections = ADAM_BETAS.map(|beta| 1.0 - beta.powi(self.steps as i32));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((parameter, gradient), (first, second)) in self.parameters.iter_mut().zip(gradients).zip(moments) {
            *first *= ADAM_BETAS[0];
            *first += gradient * (1.0 - ADAM_BETAS[0]);
            *second *= ADAM_BETAS[1];
            *second += gradient * gradient * (1.0 - ADAM_BETAS[1]);
            let scale = second.sqrt() / corrections[1].sqrt() + ADAM_EPSILON;
            *parameter -= &*first / scale * (self.lr / corrections[0]);
        }
    }

    /// A copy of what the optimiser remembers: `momentum/<name>`, Adam's `second/<name>`, and `steps`.
    pub fn state(&self) -> StateDict {
        let named = |slot: &'static str, tensors: &[Tensor]| {
            let entry = |(name, tensor): (&String, &Tensor)| (format!("{slot}/{name}"), tensor.copy());
            self.names.iter().zip(tensors).map(entry).collect::<Vec<_>>()
        };
        let steps = ("steps".to_owned(), Tensor::from(self.steps));
        named("momentum", &self.first).into_iter().chain(named("second", &self.second)).chain([steps]).collect()
    }

    /// Takes up where [`Optimizer::state`] left off.
    ///
    /// # Errors
    /// A tensor is missing or of another shape: the checkpoint is of another optimiser.
    pub fn load(&mut self, state: &StateDict) -> Result<(), PretrainError> {
        for (slot, tensors) in [("momentum", &mut self.first), ("second", &mut self.second)] {
            for (name, tensor) in self.names.iter().zip(tensors) {
                let name = format!("{slot}/{name}");
                match state.get(&name) {
                    Some(saved) if saved.size() == tensor.size() => tch::no_grad(|| tensor.copy_(saved)),
                    _ => return Err(PretrainError::OptimizerState { name }),
                }
            }
        }
        match state.get("steps").filter(|steps| steps.numel() == 1 && steps.kind() == Kind::Int64) {
            Some(steps) => self.steps = steps.int64_value(&[]),
            None => return Err(PretrainError::OptimizerState { name: "steps".to_owned() }),
        }
        Ok(())
    }
}
