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
    /// The rate of the step under way: one number. That of SGD lies on a GPU where the parameters do, so that a recorded
    /// update reads the current one.
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
            Some((device, Kind::Float)) if device.is_cuda() && rule == OptimizerName::Sgd => {
                Tensor::zeros([], (Kind::Float, device))
            }
            _ => Tensor::zeros([], (Kind::Double, Device::Cpu)),
        };
        Self { rule, momentum, weight_decay, names, first: zeros(), second, parameters, steps: 0, rate }
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
        self.steps += 1;
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
            OptimizerName::Lars => tch::no_grad(|| self.lars(gradients))?,
            OptimizerName::Adam => tch::no_grad(|| self.adam(gradients))?,
        }
        Ok(())
    }

    /// Whether an update reads all that changes from step to step on the device, not on the host.
    pub fn is_recordable(&self) -> bool {
        self.rule == OptimizerName::Sgd && self.rate.device().is_cuda()
    }

    fn lars(&mut self, gradients: &[Tensor]) -> Result<(), tch::TchError> {
        let lr = self.rate.f_double_value(&[])?;
        for ((parameter, gradient), buffer) in self.parameters.iter_mut().zip(gradients).zip(&mut self.first) {
            let (size, slope) = (parameter.f_norm()?, gradient.f_norm()?);
            let scale = slope.f_add(&size.f_mul_scalar(self.weight_decay)?)?;
            let adapted = size.f_mul_scalar(LARS_ETA)?.f_div(&scale)?;
            let tiny = size.f_lt(LARS_SMALLEST_NORM)?.f_logical_or(&slope.f_lt(LARS_SMALLEST_NORM)?)?;
            let rate = adapted.f_masked_fill(&tiny, 1.0)?.f_mul_scalar(lr)?;
            let decayed = gradient.f_add(&parameter.f_mul_scalar(self.weight_decay)?)?;
            drop(buffer.f_mul_scalar_(self.momentum)?.f_add_(&rate.f_mul(&decayed)?)?);
            drop(parameter.f_sub_(buffer)?);
        }
        Ok(())
    }

    fn adam(&mut self, gradients: &[Tensor]) -> Result<(), tch::TchError> {
        let lr = self.rate.f_double_value(&[])?;
        let corrections = ADAM_BETAS.map(|beta| 1.0 - beta.powi(self.steps as i32));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((parameter, gradient), (first, second)) in self.parameters.iter_mut().zip(gradients).zip(moments) {
            let square = gradient.f_mul(gradient)?.f_mul_scalar(1.0 - ADAM_BETAS[1])?;
            drop(first.f_mul_scalar_(ADAM_BETAS[0])?.f_add_(&gradient.f_mul_scalar(1.0 - ADAM_BETAS[0])?)?);
            drop(second.f_mul_scalar_(ADAM_BETAS[1])?.f_add_(&square)?);
            let scale = second.f_sqrt()?.f_div_scalar(corrections[1].sqrt())?.f_add_scalar(ADAM_EPSILON)?;
            drop(parameter.f_sub_(&first.f_div(&scale)?.f_mul_scalar(lr / corrections[0])?)?);
        }
        Ok(())
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
