"""Ten steps by DistributedDataParallel with two processes of Gloo on the CPU, in float64: fixtures/golden/ranks/.

As the published code: each rank's loss over the gathered features, of which its own keep their gradient, times the number
of ranks, and gradients averaged. PyTorch's SyncBatchNorm refuses CPU tensors, so batch norm over ranks is our own, and is
checked against one process on the whole batch first."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as over_ranks
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import formula
import sdclr_torch as st

RANKS = 2
CASES = {"simclr-single": ("simclr", False), "sdclr-dual": ("sdclr", True), "sdclr-single": ("sdclr", False)}
BATCHES = (16, 16, 16, 16, 10)
# At smaller rates float32 weights, as they are stored, leave too few digits of an update to compare; at 2e-2 training is chaotic.
LR, MOMENTUM, DECAY, TEMPERATURE, PRUNE_RATIO = 2e-3, 0.9, 0.3, 0.5, 0.7
ONE_PROCESS = _BatchNorm.forward


def norm_over_ranks(self: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm by the statistics of all ranks' slices, differentiated through the sums."""
    dims = [0, 2, 3] if x.dim() == 4 else [0]
    shape = (1, -1, 1, 1) if x.dim() == 4 else (1, -1)
    count = torch.tensor(float(x.numel() // x.shape[1]))
    dist.all_reduce(count)
    mean = over_ranks.all_reduce(x.sum(dims)) / count
    centred = x - mean.view(shape)
    var = over_ranks.all_reduce(centred.square().sum(dims)) / count
    with torch.no_grad():
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * count / (count - 1), self.momentum)
    y = centred * torch.rsqrt(var + self.eps).view(shape)
    return y * self.weight.view(shape) + self.bias.view(shape)


def gathered(features: Tensor) -> Tensor:
    """The published gather: all ranks' features, the own ones with their gradient."""
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.detach())
    parts[dist.get_rank()] = features
    return torch.cat(parts)


def loss_of(first: Tensor, second: Tensor) -> Tensor:
    return st.nt_xent(gathered(first), gathered(second), TEMPERATURE) * dist.get_world_size()


def backward(method: str, model: nn.Module, views: Tensor) -> float:
    world = dist.get_world_size()
    if method == "simclr":
        features = model(views.flatten(0, 1))
        loss = loss_of(features[0::2], features[1::2])
        loss.backward()
        return loss.item() / world
    with torch.no_grad():
        pruned = model(views[:, 1], st.PRUNED)
    dense = model(views[:, 0], st.DENSE)
    loss = loss_of(dense, pruned)
    loss.backward()
    loss_of(dense.detach(), model(views[:, 1], st.PRUNED)).backward()
    return loss.item() / world


def network(dual_bn: bool) -> nn.Module:
    model = st.ResNet("resnet10", width=8, dual_bn=dual_bn, output_dim=16)
    formula.fill(model)
    return model


def views_of(step: int) -> Tensor:
    images = BATCHES[(step - 1) % len(BATCHES)]
    return formula.pixels(f"views.{step}", images, 2, 3, 16, 16).double() / 255


def own(views: Tensor) -> Tensor:
    return views.chunk(dist.get_world_size())[dist.get_rank()]


def float_state(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone() for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not name.startswith("normalize.")
    }


def check_norm() -> None:
    """Two ranks' batch norm gives the features, input gradients and statistics of one process on the whole batch."""
    for shape in ((9, 4, 3, 3), (7, 4)):
        whole, outward = formula.uniform("norm.x", *shape), formula.uniform("norm.dy", *shape)
        found = []
        for forward in (ONE_PROCESS, norm_over_ranks):
            norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1])
            formula.fill(norm)
            split = [own(whole), own(outward)] if forward is norm_over_ranks else [whole, outward]
            x = split[0].clone().requires_grad_()
            y = forward(norm, x)
            y.backward(split[1])
            found.append((y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var))
        for index, (one, two) in enumerate(zip(*found)):
            if index in (2, 3):
                dist.all_reduce(two)
            apart = (two - (own(one) if index < 2 else one)).norm() / one.norm()
            assert apart < 1e-13, f"batch norm over ranks differs from one process by {apart:.1e}"


def run_case(method: str, dual_bn: bool) -> tuple[dict[str, Any], Tensor]:
    model = network(dual_bn)
    start = float_state(model)
    wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=dual_bn)
    optimizer = st.make_optimizer("sgd", model.parameters(), LR, MOMENTUM, DECAY)
    losses, density = [], []
    total = 2 * len(BATCHES)
    for step in range(1, total + 1):
        if method == "sdclr" and (step - 1) % len(BATCHES) == 0:
            density.append(st.prune(model, PRUNE_RATIO))
        st.set_rate(optimizer, LR * st.cosine_factor(step, total, len(BATCHES), LR))
        optimizer.zero_grad()
        losses.append(backward(method, wrapped, own(views_of(step))))
        optimizer.step()
    state = float_state(model)
    return {"losses": losses, "density": density}, formula.digests({name: state[name] - start[name] for name in state})


def work(rank: int, store: str, out: Path) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    check_norm()
    _BatchNorm.forward = norm_over_ranks
    cases, tensors = {}, {}
    for name, (method, dual_bn) in CASES.items():
        cases[name], tensors[name] = run_case(method, dual_bn)
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / "steps.json").write_text(json.dumps(cases, indent=1) + "\n")
        save_file(tensors, out / "steps.safetensors")
    dist.destroy_process_group()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, required=True, help="folder of the goldens")
    out = arguments.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (str(Path(folder, "store")), out), nprocs=RANKS)


if __name__ == "__main__":
    main()
