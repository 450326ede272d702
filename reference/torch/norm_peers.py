"""Every batch norm of a ResNet-18's backbone and what follows it, forward and backward in bfloat16 and channels_last, as
`sdclr bench norm` races it: one iteration is all 20 of a batch.

"eager":    PyTorch's operations, in place where torchvision's ResNet has them so.
"compiled": the same under torch.compile, each with its shape alone.

On CUDA both are captured once and replayed, so that kernels are raced, not the launching of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 64


def variants(options: argparse.Namespace) -> list[tuple[str, str]]:
    return [("eager", "bf16"), ("compiled", "bf16")]


def follows() -> list[tuple[int, str]]:
    """Stage and what follows, of every batch norm; the stem has the first stage's shape."""
    block = ["relu", "add", "relu", "add"]
    stages = [["relu", *block], *[["nothing", *block]] * 3]
    return [(stage, what) for stage, norms in enumerate(stages) for what in norms]


def normed(x: Tensor, residual: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, what: str) -> Tensor:
    y = F.batch_norm(x, mean, var, weight, bias, training=True, momentum=0.1, eps=1e-5)
    if what == "add":
        y += residual
    return y if what == "nothing" else F.relu(y, inplace=True)


def norm_work(options: argparse.Namespace, variant: str) -> Callable[[int], None]:
    # 11 shapes and sequels, each compiled for itself.
    torch._dynamo.config.recompile_limit = 64
    function = torch.compile(normed, dynamic=False) if variant == "compiled" else normed
    cuda = options.device.startswith("cuda")

    def activations(stage: int) -> list[Tensor]:
        shape = (options.batch, WIDTH << stage, options.size >> stage, options.size >> stage)
        return [
            torch.randn(shape, device=options.device).to(torch.bfloat16, memory_format=torch.channels_last)
            for _ in range(3)
        ]

    stages = [activations(stage) for stage in range(4)]
    layers = []
    for stage, what in follows():
        x, residual, grad = stages[stage]
        vectors = (torch.full((x.shape[1],), value, device=options.device) for value in (0.0, 1.0, 1.0, 0.0))
        mean, var, weight, bias = vectors
        inputs = [x, weight, bias, residual] if what == "add" else [x, weight, bias]
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        layers.append((inputs, residual, mean, var, grad, what))

    def one() -> None:
        for inputs, residual, mean, var, grad, what in layers:
            x, weight, bias, *added = inputs
            y = function(x, *added or [residual], mean, var, weight, bias, what)
            torch.autograd.grad(y, inputs, grad)

    def run(count: int) -> None:
        for _ in range(count):
            iteration()

    iteration = one
    if cuda:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                one()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one()
        iteration = graph.replay
    return run
