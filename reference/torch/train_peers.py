"""Whole SDCLR training, data to update, as `sdclr bench train` races it: one iteration is one epoch, which begins with
the mask of the epoch and goes through the whole batches of `options.images` made-up images.

"published": the published algorithm, eager and in float32, fed by a data loader whose workers augment PIL images.
"compiled":  the best PyTorch we can write: images and augmentation on the device, torch.compile, bf16 autocast where
             our side computes in bf16, channels_last, one joint backward, fused SGD, the mask by k-th value, no
             synchronisation inside an epoch.
"compiled-graphs" (CUDA only): the same, captured in CUDA graphs.
"compiled-autotuned" (CUDA only): the same, its kernels chosen by timing many for each; the first run takes minutes."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

import sdclr_torch as st

PRUNE_RATIO, TEMPERATURE = 0.9, 0.2
# What torch.compile is asked for.
MODES = {"compiled": "default", "compiled-graphs": "reduce-overhead", "compiled-autotuned": "max-autotune"}


def variants(options: argparse.Namespace) -> list[tuple[str, str]]:
    # Without CUDA there are no graphs, and only products of matrices would be tuned, of which there are few.
    compiled = MODES if options.device.startswith("cuda") else ["compiled"]
    best = "bf16" if options.precision == "bf16" else "fp32"
    return [("published", "fp32"), *((name, best) for name in compiled)]


def train_work(options: argparse.Namespace, variant: str) -> Callable[[int], None]:
    if options.images < options.batch:
        raise SystemExit(f"peer.py: an epoch of {options.images} images has no whole batch of {options.batch}")
    model = st.ResNet(options.network, options.stem, options.width, dual_bn=True).to(options.device)
    pixels = torch.randint(0, 256, (options.images, options.size, options.size, 3), dtype=torch.uint8)
    if variant == "published":
        epoch = published_epoch(options, model, pixels.numpy())
    else:
        epoch = compiled_epoch(options, model, pixels.permute(0, 3, 1, 2), MODES[variant])

    def run(count: int) -> None:
        for _ in range(count):
            epoch()

    return run


class Schedule:
    """Steps of warm-up, whose small rates keep the made-up task finite; they cost what all steps cost."""

    def __init__(self, optimizer: torch.optim.SGD) -> None:
        self.optimizer, self.steps = optimizer, 0

    def advance(self) -> None:
        self.steps += 1
        st.set_rate(self.optimizer, 1e-3 * st.cosine_factor(self.steps, 10**6, 10**4, 1e-3))


# ---- As published ---------------------------------------------------------------------------------------------------


class TwoViews(Dataset):
    """uint8 images [n, H, W, 3] on the host; both views of one as float tensors [2, 3, S, S]."""

    def __init__(self, images: np.ndarray, size: int) -> None:
        self.images = images
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(size, scale=(0.1, 1.0), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.ToTensor(),
        ])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.fromarray(self.images[index])
        return torch.stack([self.transform(image), self.transform(image)])


def make_loader(options: argparse.Namespace, dataset: Dataset, **kwargs: bool) -> DataLoader:
    """A worker for every core; they live through all epochs and start on the next only when it begins."""
    return DataLoader(
        dataset, options.batch, num_workers=len(os.sched_getaffinity(0)), persistent_workers=True,
        pin_memory=options.device.startswith("cuda"), **kwargs,
    )


def published_epoch(options: argparse.Namespace, model: st.ResNet, images: np.ndarray) -> Callable[[], None]:
    loader = make_loader(options, TwoViews(images, options.size), shuffle=True, drop_last=True)
    optimizer = st.make_optimizer("sgd", model.parameters(), 0.5, 0.9, 1e-4)
    schedule = Schedule(optimizer)
    convolutions = list(st.prunable(model).values())

    def epoch() -> None:
        # All weights sorted on the host, masks moved back.
        masks = st.magnitude_masks([convolution.weight.detach().cpu() for convolution in convolutions], PRUNE_RATIO)
        for convolution, mask in zip(convolutions, masks):
            convolution.mask = mask.to(options.device)
        for views in loader:
            schedule.advance()
            st.sdclr_step(model, views.to(options.device, non_blocking=True), TEMPERATURE, optimizer)

    return epoch


# ---- The best we can write ------------------------------------------------------------------------------------------


def uniform(count: int, low: float, high: float, like: Tensor) -> Tensor:
    return torch.empty(count, device=like.device).uniform_(low, high)


def chance(count: int, probability: float, like: Tensor) -> Tensor:
    return torch.rand(count, device=like.device) < probability


# RGB to YIQ: turning the colour circle is a rotation of I and Q.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class DeviceViews(nn.Module):
    """uint8 [n, 3, H, W] to float views [n, 3, size, size] in [0, 1]: crop, bicubic resize and flip by one resampling,
    then jitter and grayscale, in floats and in a fixed order. The law of the published augmentation, not its rounding."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        # Buffers, so that nothing comes from the host or is inverted during a step.
        self.register_buffer("to_yiq", torch.tensor(YIQ))
        self.register_buffer("from_yiq", torch.linalg.inv(self.to_yiq))
        self.register_buffer("luma", self.to_yiq[0].view(1, 3, 1, 1).clone())

    def forward(self, images: Tensor) -> Tensor:
        count = len(images)
        area, ratio = uniform(count, 0.1, 1.0, images), uniform(count, math.log(3 / 4), math.log(4 / 3), images).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        left, top = ((1 - side) * uniform(count, -1.0, 1.0, images) for side in (width, height))
        flip = 1 - 2 * chance(count, 0.5, images).float()
        zero = torch.zeros_like(width)
        affine = torch.stack([width * flip, zero, left, zero, height, top], 1).view(count, 2, 3)
        grid = F.affine_grid(affine, [count, 3, self.size, self.size], align_corners=False)
        x = F.grid_sample(images.float() / 255, grid, "bicubic", "reflection", align_corners=False).clamp(0, 1)

        jitter = chance(count, 0.8, images)
        brightness, contrast, saturation = (
            torch.where(jitter, uniform(count, 0.6, 1.4, images), 1.0).view(-1, 1, 1, 1) for _ in range(3)
        )
        x = (x * brightness).clamp(0, 1)
        x = torch.lerp(self.gray(x).mean((2, 3), keepdim=True), x, contrast).clamp(0, 1)
        x = torch.lerp(self.gray(x), x, saturation).clamp(0, 1)
        angle = torch.where(jitter, uniform(count, -0.1, 0.1, images), 0.0) * 2 * math.pi
        one, none, cos, sin = torch.ones_like(angle), torch.zeros_like(angle), angle.cos(), angle.sin()
        turn = torch.stack([one, none, none, none, cos, -sin, none, sin, cos], 1).view(count, 3, 3)
        x = torch.einsum("nij,njhw->nihw", self.from_yiq @ turn @ self.to_yiq, x).clamp(0, 1)
        return torch.where(chance(count, 0.2, images).view(-1, 1, 1, 1), self.gray(x), x)

    def gray(self, x: Tensor) -> Tensor:
        return (x * self.luma).sum(1, keepdim=True)


@torch.no_grad()
def set_masks(convolutions: list[st.Convolution]) -> None:
    """The magnitude masks by k-th value where the weights lie. Masks keep their place in memory: what was compiled or
    captured reads them there."""
    magnitudes = torch.cat([convolution.weight.abs().flatten() for convolution in convolutions])
    k = min(st.prune_count(PRUNE_RATIO, len(magnitudes)), len(magnitudes) - 1)
    # On CUDA kthvalue is the work of a single block.
    threshold = magnitudes.sort().values[k] if magnitudes.is_cuda else magnitudes.kthvalue(k + 1).values
    for convolution in convolutions:
        mask = (convolution.weight.abs() >= threshold).to(convolution.weight.dtype)
        convolution.mask = mask if convolution.mask is None else convolution.mask.copy_(mask)


def compiled_epoch(
    options: argparse.Namespace, model: st.ResNet, images: Tensor, mode: str
) -> Callable[[], None]:
    model.to(memory_format=torch.channels_last)
    images = images.contiguous().to(options.device)
    convolutions = list(st.prunable(model).values())
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9, weight_decay=1e-4, fused=True)
    schedule = Schedule(optimizer)
    device_type = torch.device(options.device).type
    device_views = DeviceViews(options.size).to(options.device)

    def loss_of(batch: Tensor) -> Tensor:
        with torch.no_grad():
            views = device_views(torch.cat([batch, batch])).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device_type, torch.bfloat16, enabled=options.precision == "bf16"):
            dense, pruned = (model(view, branch) for branch, view in enumerate(views.chunk(2)))
        return st.nt_xent(dense.float(), pruned.float(), TEMPERATURE)

    compiled = torch.compile(loss_of, dynamic=False, mode=mode)

    def epoch() -> None:
        set_masks(convolutions)
        total = torch.zeros((), device=options.device)
        order = torch.randperm(options.images, device=options.device)
        for start in range(0, options.images - options.batch + 1, options.batch):
            schedule.advance()
            optimizer.zero_grad()
            torch.compiler.cudagraph_mark_step_begin()
            loss = compiled(images[order[start : start + options.batch]])
            loss.backward()
            optimizer.step()
            total += loss.detach()
        if not math.isfinite(total.item()):
            raise SystemExit("peer.py: the loss of the compiled peer is not finite")

    return epoch
