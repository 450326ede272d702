"""Numbers that Python and Rust make alike, so that fixtures need not hold them: a hash of a name and an index.

For name s and element i: x = splitmix64(fnv1a64(s) + (i + 1) * 0x9E3779B97F4A7C15), all modulo 2^64;
`uniform` is (x >> 11) * 2^-52 - 1, in [-1, 1), exact in float64; `pixels` is x >> 56.
And the digests that stand for tensors too large to store."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn


def bits(name: str, count: int) -> np.ndarray:
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(name: str, *shape: int) -> Tensor:
    """float64 in [-1, 1)."""
    values = (bits(name, math.prod(shape)) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    return torch.from_numpy(values.reshape(shape))


def pixels(name: str, *shape: int) -> Tensor:
    """uint8."""
    return torch.from_numpy((bits(name, math.prod(shape)) >> np.uint64(56)).astype(np.uint8).reshape(shape))


def state_value(name: str, shape: tuple[int, ...]) -> Tensor:
    """What the goldens' networks hold under `name` (no prefix): scaled as an initialised network would be."""
    u = uniform(name, *shape)
    if len(shape) == 4:
        return u * math.sqrt(6.0 / (shape[0] * shape[2] * shape[3]))
    if len(shape) == 2:
        return u / math.sqrt(shape[1])
    if name.endswith("running_var"):
        return 1.0 + 0.5 * u
    if name.endswith(".weight"):
        return 1.0 + 0.2 * u
    return 0.1 * u


def fill(model: nn.Module) -> None:
    """Every float tensor of the state but the two of `normalize`; counters to zero."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.zero_()
            elif not name.startswith("normalize."):
                tensor.copy_(state_value(name, tuple(tensor.shape)))


def digest(name: str, tensor: Tensor) -> list[float]:
    """Euclidean norm, dot product with uniform("digest." + name), first value."""
    values = tensor.detach().double().flatten()
    return [
        values.norm().item(),
        values.dot(uniform("digest." + name, len(values))).item(),
        values[0].item(),
    ]


def digests(tensors: dict[str, Tensor]) -> Tensor:
    """[tensors, 3], rows in the byte order of the names."""
    return torch.tensor([digest(name, tensors[name]) for name in sorted(tensors)], dtype=torch.float64)


def names_sha256(tensors: dict[str, Tensor]) -> str:
    """Over the lines "name [shape]\\n", sorted by name."""
    lines = (f"{name} {list(tensors[name].shape)}\n" for name in sorted(tensors))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
