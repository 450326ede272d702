"""SDCLR and SimCLR in plain PyTorch, as REFERENCE.md describes the published code: the oracle that goldens.py runs
and the peer that peer.py races. Written for reading, not for speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

DENSE, PRUNED = 0, 1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Blocks per stage, and whether they are bottlenecks.
DEPTHS: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet10": ((1, 1, 1, 1), False),
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}


# ---- Networks -------------------------------------------------------------------------------------------------------


class Convolution(nn.Conv2d):
    """A convolution without bias whose weight the pruned branch multiplies by a mask. The mask is not in the state."""

    mask: Tensor | None = None

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, side, stride, padding=side // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, branch: int = DENSE) -> Tensor:
        weight = self.weight if branch == DENSE or self.mask is None else self.weight * self.mask
        return F.conv2d(x, weight, None, self.stride, self.padding)


class DualBatchNorm(nn.Module):
    """One batch norm per branch."""

    def __init__(self, norm: type[nn.Module], channels: int) -> None:
        super().__init__()
        self.bn_list = nn.ModuleList(norm(channels) for _ in range(2))

    def forward(self, x: Tensor, branch: int) -> Tensor:
        return self.bn_list[branch](x)


class SingleBatchNorm2d(nn.BatchNorm2d):
    """One batch norm, whichever the branch."""

    def forward(self, x: Tensor, branch: int = DENSE) -> Tensor:
        return super().forward(x)


class SingleBatchNorm1d(nn.BatchNorm1d):
    def forward(self, x: Tensor, branch: int = DENSE) -> Tensor:
        return super().forward(x)


def norm2d(channels: int, dual_bn: bool) -> nn.Module:
    return DualBatchNorm(nn.BatchNorm2d, channels) if dual_bn else SingleBatchNorm2d(channels)


def norm1d(channels: int, dual_bn: bool) -> nn.Module:
    return DualBatchNorm(nn.BatchNorm1d, channels) if dual_bn else SingleBatchNorm1d(channels)


class Normalize(nn.Module):
    """(x - mean) / std per channel of an input in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean[:, None, None]) / self.std[:, None, None]


class Downsample(nn.Module):
    """The shortcut of a block that changes shape; its two layers are called `conv`, `bn` or `0`, `1`."""

    def __init__(self, inputs: int, outputs: int, stride: int, dual_bn: bool) -> None:
        super().__init__()
        self.layers = ("conv", "bn") if dual_bn else ("0", "1")
        self.add_module(self.layers[0], Convolution(inputs, outputs, 1, stride))
        self.add_module(self.layers[1], norm2d(outputs, dual_bn))

    def forward(self, x: Tensor, branch: int) -> Tensor:
        conv, bn = (self.get_submodule(name) for name in self.layers)
        return bn(conv(x, branch), branch)


class Block(nn.Module):
    """BasicBlock (3x3, 3x3) or Bottleneck (1x1, 3x3 with the stride, 1x1)."""

    def __init__(self, inputs: int, planes: int, stride: int, bottleneck: bool, dual_bn: bool) -> None:
        super().__init__()
        outputs = planes * (4 if bottleneck else 1)
        basic = [(inputs, planes, 3, stride), (planes, planes, 3, 1)]
        layers = [(inputs, planes, 1, 1), (planes, planes, 3, stride), (planes, outputs, 1, 1)] if bottleneck else basic
        self.depth = len(layers)
        for i, (channels_in, channels_out, side, step) in enumerate(layers, 1):
            self.add_module(f"conv{i}", Convolution(channels_in, channels_out, side, step))
            self.add_module(f"bn{i}", norm2d(channels_out, dual_bn))
        changes = stride != 1 or inputs != outputs
        self.downsample = Downsample(inputs, outputs, stride, dual_bn) if changes else None

    def forward(self, x: Tensor, branch: int) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y, branch), branch)
            if i < self.depth:
                y = F.relu(y, inplace=True)
        y += x if self.downsample is None else self.downsample(x, branch)
        return F.relu(y, inplace=True)


class ProjectionHead(nn.Module):
    """C->C->output, or C->C->C->output under dual BN; batch norm behind every layer, ReLU between."""

    def __init__(self, width: int, output: int, dual_bn: bool) -> None:
        super().__init__()
        outputs = [width, width, output] if dual_bn else [width, output]
        self.depth = len(outputs)
        for i, channels in enumerate(outputs, 1):
            self.add_module(f"fc{i}", nn.Linear(width, channels, bias=i == 1))
            self.add_module(f"bn{i}", norm1d(channels, dual_bn))

    def forward(self, x: Tensor, branch: int) -> Tensor:
        for i in range(1, self.depth + 1):
            x = F.relu(x, inplace=True) if i > 1 else x
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"fc{i}")(x), branch)
        return x


class Classifier(nn.Linear):
    """The probe's only trained layer: weight N(0, 0.01), bias 0."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, branch: int = DENSE) -> Tensor:
        return super().forward(x)


class ResNet(nn.Module):
    """`stem` is "cifar" or "imagenet"; `width` channels in the first stage (64 published). A projection head to
    `output_dim` columns, or a classifier where `classes` is given."""

    def __init__(
        self, network: str, stem: str = "cifar", width: int = 64, dual_bn: bool = False, output_dim: int = 128,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        blocks, bottleneck = DEPTHS[network]
        imagenet = stem == "imagenet"
        self.normalize = Normalize()
        self.conv1 = Convolution(3, width, 7, 2) if imagenet else Convolution(3, width, 3)
        self.bn1 = norm2d(width, dual_bn)
        self.pool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        channels = width
        for stage, count in enumerate(blocks):
            layers = nn.ModuleList()
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(Block(channels, width << stage, stride, bottleneck, dual_bn))
                channels = (width << stage) * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", layers)
        self.fc = Classifier(channels, classes) if classes else ProjectionHead(channels, output_dim, dual_bn)

    def backbone(self, x: Tensor, branch: int = DENSE) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] to pooled features [N, C]."""
        x = self.pool(F.relu(self.bn1(self.conv1(self.normalize(x), branch), branch), inplace=True))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x, branch)
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor, branch: int = DENSE) -> Tensor:
        return self.fc(self.backbone(x, branch), branch)


def to_probe_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The dense backbone of a pre-training checkpoint under the names of a single-BN network without prefix."""
    kept = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.")
        if name.startswith("fc.") or ".bn_list.1." in name:
            continue
        name = name.replace(".bn_list.0.", ".").replace("downsample.conv.", "downsample.0.")
        kept[name.replace("downsample.bn.", "downsample.1.")] = tensor
    return kept


# ---- Pruning --------------------------------------------------------------------------------------------------------


def prunable(model: nn.Module) -> dict[str, Convolution]:
    """Every convolution of the backbone, by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Convolution)}


def prune_count(share: float, total: int) -> int:
    """ceil in float64, as the published code counts."""
    return math.ceil(share * total)


def magnitude_threshold(weights: Sequence[Tensor], prune_ratio: float) -> Tensor:
    """sorted(|w|)[min(k, M - 1)] over all weights together."""
    ordered = torch.cat([weight.detach().abs().flatten() for weight in weights]).sort().values
    return ordered[min(prune_count(prune_ratio, len(ordered)), len(ordered) - 1)]


def magnitude_masks(weights: Sequence[Tensor], prune_ratio: float) -> list[Tensor]:
    """float32 masks; ties with the threshold are kept."""
    threshold = magnitude_threshold(weights, prune_ratio)
    return [(weight.detach().abs() >= threshold).float() for weight in weights]


def random_drop_probability(prune_ratio: float, random_ratio: float, total: int) -> float:
    """With which probability each weight, pruned already or not, is dropped at random."""
    left = total - prune_count(prune_ratio - random_ratio, total)
    return prune_count(random_ratio, total) / left if random_ratio > 0 and left > 0 else 0.0


def prune(model: nn.Module, prune_ratio: float, random_ratio: float = 0.0) -> float:
    """Sets every convolution's mask from the dense weights, as at an epoch's start. Gives the share kept."""
    convolutions = list(prunable(model).values())
    weights = [convolution.weight for convolution in convolutions]
    total = sum(weight.numel() for weight in weights)
    drop = random_drop_probability(prune_ratio, random_ratio, total)
    kept = 0.0
    for convolution, mask in zip(convolutions, magnitude_masks(weights, prune_ratio - random_ratio)):
        if drop > 0:
            mask = mask * (torch.rand(mask.shape, device=mask.device) >= drop)
        convolution.mask = mask.to(convolution.weight.dtype)
        kept += mask.sum(dtype=torch.float64).item()
    return kept / total


# ---- Loss and steps -------------------------------------------------------------------------------------------------


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent of N features per view, [N, d] each, as published: exponentials as they are, no maximum subtracted."""
    count = len(first)
    features = F.normalize(torch.cat([first, second]), dim=1)
    similarity = torch.exp(features @ features.T / temperature)
    positive = torch.cat([similarity.diagonal(count), similarity.diagonal(-count)])
    negatives = similarity.sum(1) - similarity.diagonal() - positive
    return -torch.log(positive / (positive + negatives)).mean()


def simclr_loss(model: nn.Module, views: Tensor, temperature: float) -> Tensor:
    """`views` [N, 2, 3, H, W]: all 2N as one batch, the two views of an image side by side."""
    features = model(views.flatten(0, 1))
    return nt_xent(features[0::2], features[1::2], temperature)


def simclr_step(model: nn.Module, views: Tensor, temperature: float, optimizer: Optimizer) -> float:
    optimizer.zero_grad()
    loss = simclr_loss(model, views, temperature)
    loss.backward()
    optimizer.step()
    return loss.item()


def sdclr_backward(model: nn.Module, views: Tensor, temperature: float) -> float:
    """The published way: three forwards, two backwards. Gives the loss of the dense pass."""
    dense_view, pruned_view = views[:, 0], views[:, 1]
    with torch.no_grad():
        pruned = model(pruned_view, PRUNED)
    dense = model(dense_view, DENSE)
    loss = nt_xent(dense, pruned, temperature)
    loss.backward()
    nt_xent(dense.detach(), model(pruned_view, PRUNED), temperature).backward()
    return loss.item()


def sdclr_joint_loss(model: nn.Module, views: Tensor, temperature: float) -> Tensor:
    """The same gradients by one loss over both branches (running statistics of the pruned branch move once here)."""
    return nt_xent(model(views[:, 0], DENSE), model(views[:, 1], PRUNED), temperature)


def sdclr_step(model: nn.Module, views: Tensor, temperature: float, optimizer: Optimizer) -> float:
    optimizer.zero_grad()
    loss = sdclr_backward(model, views, temperature)
    optimizer.step()
    return loss


# ---- Optimisers, schedule, order ------------------------------------------------------------------------------------


class Lars(torch.optim.Optimizer):
    """LARS over all tensors alike (REFERENCE.md "Optimiser and schedule")."""

    def __init__(
        self, params: Iterator[Tensor], lr: float, momentum: float = 0.9, weight_decay: float = 1e-6, eta: float = 1e-3
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta))

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            decay = group["weight_decay"]
            for weight in group["params"]:
                weight_norm, grad_norm = weight.norm().item(), weight.grad.norm().item()
                rate = 1.0
                if weight_norm >= 1e-15 and grad_norm >= 1e-15:
                    rate = group["eta"] * weight_norm / (grad_norm + decay * weight_norm)
                buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                buffer.mul_(group["momentum"]).add_(weight.grad + decay * weight, alpha=rate * group["lr"])
                weight.sub_(buffer)


Optimizer = torch.optim.SGD | torch.optim.Adam | Lars


def make_optimizer(
    kind: str, params: Iterator[Tensor], lr: float, momentum: float = 0.9, weight_decay: float = 1e-4
) -> Optimizer:
    match kind:
        case "sgd":
            return torch.optim.SGD(params, lr, momentum=momentum, weight_decay=weight_decay)
        case "adam":
            return torch.optim.Adam(params, lr)
        case "lars":
            return Lars(params, lr, momentum, weight_decay)
    raise ValueError(f"unknown optimiser {kind}; known are sgd, adam, lars")


def cosine_factor(step: int, total: int, warmup: int, lr: float) -> float:
    """Factor on `lr` at step `step`, counted from 1 over the whole run."""
    if step < warmup:
        return step / warmup
    if warmup >= total:
        return 1.0
    floor = 1e-6 / lr
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def sampler_order(images: int, epoch: int, ranks: int = 1, rank: int = 0) -> list[int]:
    """PyTorch's own DistributedSampler. Epochs count from 1."""
    sampler = torch.utils.data.DistributedSampler(range(images), num_replicas=ranks, rank=rank, shuffle=True, seed=0)
    sampler.set_epoch(epoch)
    return list(sampler)


# ---- Probe and metrics ----------------------------------------------------------------------------------------------


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre as torchvision 0.8, that of PyTorch 1.7, crops it: half a pixel is rounded up. CenterCrop of today's
    torchvision rounds half to even, another pixel wherever (side - size) / 2 is even and a half."""
    left, top = ((side - size + 1) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


def shifted_crop(image: Tensor, top: int, left: int, flip: bool, padding: int) -> Tensor:
    """An image [3, H, W] with a black border of `padding`, cut back to H x W at (top, left), mirrored where `flip`."""
    height, width = image.shape[1:]
    crop = F.pad(image, [padding] * 4)[:, top : top + height, left : left + width]
    return crop.flip(2) if flip else crop


def probe_rate(lr: float, milestones: Sequence[int], epoch: int) -> float:
    """CIFAR: the schedule steps at the start of an epoch, so a milestone epoch has the lower rate already."""
    return lr * 0.1 ** sum(epoch >= milestone for milestone in milestones)


def train_probe_epoch(
    encoder: Callable[[Tensor], Tensor], classifier: nn.Linear, optimizer: torch.optim.SGD, images: Tensor,
    labels: Tensor, order: Sequence[int], batch: int,
) -> list[float]:
    """One epoch over `images` [n, 3, H, W] in [0, 1], augmented already. Gives the loss of each batch."""
    losses = []
    for start in range(0, len(order), batch):
        chosen = torch.tensor(order[start : start + batch])
        with torch.no_grad():
            features = encoder(images[chosen])
        optimizer.zero_grad()
        loss = F.cross_entropy(classifier(features), labels[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def per_class_accuracy(predicted: Tensor, labels: Tensor, classes: int) -> list[float]:
    """Per cent, in class order."""
    hit = predicted == labels
    return [100.0 * hit[labels == c].double().mean().item() for c in range(classes)]


def groups_by_rank(counts: Sequence[int]) -> dict[str, list[int]]:
    """CIFAR: sorted by count, the lowest third is Few, the next Medium, the rest Many."""
    ascending = sorted(range(len(counts)), key=lambda c: counts[c])
    third = len(counts) // 3
    return {"few": ascending[:third], "medium": ascending[third : 2 * third], "many": ascending[2 * third :]}


def population_std(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def metrics(per_class: Sequence[float], groups: dict[str, list[int]]) -> dict[str, float]:
    """All, Many, Medium, Few, Std over the groups, and the deviation over classes. Per cent."""
    means = {name: math.fsum(per_class[c] for c in members) / len(members) for name, members in groups.items()}
    return {
        "all": math.fsum(per_class) / len(per_class),
        **{name: means[name] for name in ("many", "medium", "few")},
        "std": population_std([means["many"], means["medium"], means["few"]]),
        "class_std": population_std(per_class),
    }


def select_best(validations: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """(epoch, accuracy) pairs in order to the best; strictly better only, the check before epoch 1 never counts."""
    best: tuple[int, float] | None = None
    for epoch, accuracy in validations:
        if epoch >= 1 and (best is None or accuracy > best[1]):
            best = (epoch, accuracy)
    assert best is not None, "no epoch was validated"
    return best
