//! Batch norm and what follows it alone, forward and backward in bf16, by the kernels of [`crate::native::norm`]. In: a
//! batch and the images' side. Out: an iteration, which is all 20 of a ResNet-18's backbone (its shapes are those of
//! `reference/torch/norm_peers.py`), recorded as one CUDA graph so that kernels are raced, not the launching of them.

use tch::{Device, Kind, Tensor};

use super::BenchError;
use crate::native::graph::{Graph, Purpose, SideStream};
use crate::native::norm::{self, After, BatchNorm};
use crate::native::{self, NativeError};
use crate::pretrain::PretrainError;

/// Channels of the first stage.
const WIDTH: i64 = 64;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Follows {
    Nothing,
    Relu,
    AddRelu,
}

/// What lies between the layers of a stage, `[N, C, H, W]`.
struct Activations {
    x: Tensor,
    residual: Tensor,
    grad: Tensor,
}

struct Layer {
    stage: usize,
    follows: Follows,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

/// Stage and what follows, of every batch norm; the stem has the first stage's shape.
fn sequence() -> impl Iterator<Item = (usize, Follows)> {
    use Follows::{AddRelu, Nothing, Relu};
    (0..4).flat_map(|stage| {
        let first = if stage == 0 { Relu } else { Nothing };
        [first, Relu, AddRelu, Relu, AddRelu].map(|follows| (stage, follows))
    })
}

fn activations(shape: [i64; 4], device: Device) -> Result<Tensor, BenchError> {
    let [n, c, h, w] = shape;
    let values = Tensor::f_randn([n, h, w, c], (Kind::Float, device))?.f_to_kind(Kind::BFloat16)?;
    Ok(values.f_permute([0, 3, 1, 2])?.set_requires_grad(true))
}

impl Layer {
    fn new(stage: usize, follows: Follows, device: Device) -> Result<Self, BenchError> {
        let full = |value: f64| Tensor::f_full([WIDTH << stage], value, (Kind::Float, device));
        let [weight, bias] = [full(1.0)?, full(0.0)?].map(|tensor| tensor.set_requires_grad(true));
        Ok(Self { stage, follows, weight, bias, running_mean: full(0.0)?, running_var: full(1.0)? })
    }

    fn run(&self, stages: &[Activations]) -> Result<(), NativeError> {
        let Self { weight, bias, running_mean, running_var, .. } = self;
        let Activations { x, residual, grad } = &stages[self.stage];
        let norm = BatchNorm { weight, bias, running_mean, running_var, epsilon: 1e-5, momentum: 0.1 };
        let (after, added) = match self.follows {
            Follows::Nothing => (After::Nothing, None),
            Follows::Relu => (After::Relu, None),
            Follows::AddRelu => (After::AddRelu(residual), Some(residual)),
        };
        let inputs: Vec<&Tensor> = [x, weight, bias].into_iter().chain(added).collect();
        native::gradients(&norm::batch_norm(x, &norm, after), grad, &inputs).map(drop)
    }
}

/// An iteration on batches of `batch` images of `size` pixels.
///
/// # Errors
/// `device` is no GPU, or the kernels cannot be compiled for it.
pub(super) fn body(
    batch: usize,
    size: i64,
    device: Device,
) -> Result<impl FnMut() -> Result<(), BenchError> + 'static, BenchError> {
    let side = SideStream::new(Purpose::Steps, device).map_err(PretrainError::from)?.ok_or(BenchError::NoGpu)?;
    norm::load(device).map_err(PretrainError::from)?;
    let stage = |stage: usize| {
        let made = || activations([batch as i64, WIDTH << stage, size >> stage, size >> stage], device);
        Ok(Activations { x: made()?, residual: made()?, grad: made()?.detach() })
    };
    let stages = (0..4).map(stage).collect::<Result<Vec<_>, BenchError>>()?;
    let layers =
        sequence().map(|(stage, follows)| Layer::new(stage, follows, device)).collect::<Result<Vec<_>, _>>()?;
    let once = move || layers.iter().try_for_each(|layer| layer.run(&stages));
    // As usual first, on the stream where it is recorded.
    side.run(&once).flatten().map_err(PretrainError::from)?;
    let (graph, recorded) = Graph::record(&side, None, &once).map_err(PretrainError::Recording)?;
    recorded.map_err(PretrainError::from)?;
    // What was recorded reads and writes the tensors that `once` holds.
    Ok(move || {
        let _held = &once;
        graph.launch().map_err(|error| PretrainError::from(error).into())
    })
}
