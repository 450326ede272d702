"""The other side of `sdclr bench`: the published algorithms, and the best PyTorch we can write, timed on request.

    python reference/torch/peer.py train|step|augment|load|decode|mask|probe|norm|checkpoint [options]

Prints one JSON line {"ready", "torch", "threads", "variants"} (each variant's name and the precision of its network,
null where none computes), then answers each line `run VARIANT COUNT` on its input with {"seconds", "peak_rss_bytes",
"peak_device_bytes"} (null without CUDA), until the input ends. What a variant needs is made at its first run, outside the time. A name that ends in -bf16 is the
same under autocast, offered where our side computes in bf16. One iteration is: train - one epoch, data to updates;
step - one optimiser step; augment - one image, both views; load - the same of an image file; decode - one image file; mask - the masks of one epoch; probe - one training epoch;
norm - every
batch norm of a backbone, once; checkpoint - one file, read whole. The peak is the process's (its workers aside): for a variant's own, run it alone."""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import random
import resource
import sys
import time
from collections.abc import Callable

import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

import norm_peers
import sdclr_torch as st
import train_peers

BF16 = "-bf16"

# What runs `count` iterations.
Work = Callable[[int], None]


def make_network(options: argparse.Namespace, **kwargs: object) -> st.ResNet:
    return st.ResNet(options.network, options.stem, options.width, **kwargs).to(options.device)


def step_work(options: argparse.Namespace, variant: str) -> Work:
    """An SDCLR step at the published settings; views lie on the device already."""
    model = make_network(options, dual_bn=True)
    views = torch.rand(options.batch, 2, 3, options.size, options.size, device=options.device)
    if variant.endswith(BF16):
        variant, full = variant.removesuffix(BF16), model.forward

        def forward(batch: Tensor, branch: int) -> Tensor:
            with torch.autocast(views.device.type, torch.bfloat16):
                features = full(batch, branch)
            # The loss is float32, as ours.
            return features.float()

        model.forward = forward
    if variant == "joint-channels-last":
        model.to(memory_format=torch.channels_last)
    st.prune(model, 0.9)
    optimizer = st.make_optimizer("sgd", model.parameters(), 0.5, 0.9, 1e-4)

    def joint_step() -> None:
        optimizer.zero_grad()
        loss = st.sdclr_joint_loss(model, views, 0.2)
        loss.backward()
        optimizer.step()

    def joint_step_channels_last() -> None:
        optimizer.zero_grad()
        halves = (views[:, branch].contiguous(memory_format=torch.channels_last) for branch in (st.DENSE, st.PRUNED))
        dense, pruned = (model(half, branch) for branch, half in enumerate(halves))
        loss = st.nt_xent(dense, pruned, 0.2)
        loss.backward()
        optimizer.step()

    one = {
        "published": lambda: st.sdclr_step(model, views, 0.2, optimizer),
        "joint": joint_step,
        "joint-channels-last": joint_step_channels_last,
    }[variant]

    def run(count: int) -> None:
        for step in range(count):
            # A rate this small keeps the made-up task finite; it costs what any rate costs.
            st.set_rate(optimizer, 1e-3 * st.cosine_factor(step + 1, 1000, 10, 1e-3))
            one()

    return run


def step_variants(options: argparse.Namespace) -> list[tuple[str, str]]:
    names = ["published", "joint", "joint-channels-last"]
    if options.precision != "bf16":
        return [(name, "fp32") for name in names]
    return [("published", "fp32"), *((name + BF16, "bf16") for name in names)]


def augment_work(options: argparse.Namespace, variant: str) -> Work:
    """The published CIFAR augmentation on PIL images, by a data loader with a worker for every core."""
    images = torch.randint(0, 256, (options.images, options.size, options.size, 3), dtype=torch.uint8).numpy()
    loader = train_peers.make_loader(options, train_peers.TwoViews(images, options.size))

    def run(count: int) -> None:
        while count > 0:
            count -= sum(len(views) for views in loader)

    return run


def listed(options: argparse.Namespace) -> list[pathlib.Path]:
    """As many image files of a list of lines PATH LABEL as the race asks for: the first, or all of them in turn."""
    lines = itertools.islice(itertools.cycle(options.file.read_text().splitlines()), options.images)
    return [options.file.parent / line.rsplit(" ", 1)[0] for line in lines]


class FileViews(Dataset):
    """Image files; both views of one as published for ImageNet, [2, 3, S, S]."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.paths = listed(options)
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(options.size, interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blurred], p=0.5),
            transforms.ToTensor(),
        ])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        return torch.stack([self.transform(image), self.transform(image)])


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def load_work(options: argparse.Namespace, variant: str) -> Work:
    """The published ImageNet augmentation on files that PIL decodes, by a data loader with a worker for every core."""
    loader = train_peers.make_loader(options, FileViews(options), shuffle=True)

    def run(count: int) -> None:
        while count > 0:
            count -= sum(len(views) for views in loader)

    return run


def decode_work(options: argparse.Namespace, variant: str) -> Work:
    """Files as the published data sets open them, one after the other."""
    paths = itertools.cycle(listed(options))

    def run(count: int) -> None:
        for path in itertools.islice(paths, count):
            Image.open(path).convert("RGB")

    return run


def mask_work(options: argparse.Namespace, variant: str) -> Work:
    """All weights sorted on the host, masks moved back: the published way."""
    model = make_network(options, dual_bn=True)
    convolutions = list(st.prunable(model).values())

    def run(count: int) -> None:
        for _ in range(count):
            masks = st.magnitude_masks([convolution.weight.detach().cpu() for convolution in convolutions], 0.9)
            for convolution, mask in zip(convolutions, masks):
                convolution.mask = mask.to(options.device)

    return run


class Labelled(Dataset):
    """Made-up images under the random crop with padding and flip of the probe, and labels 0 to 9 in turn."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.images = torch.randint(0, 256, (options.images, options.size, options.size, 3), dtype=torch.uint8).numpy()
        self.transform = transforms.Compose([
            transforms.RandomCrop(options.size, padding=options.size // 8),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), index % 10


def probe_work(options: argparse.Namespace, variant: str) -> Work:
    """An epoch of the linear probe: crops and flips on PIL by a data loader with a worker for every core, frozen
    encoder, SGD on the classifier."""
    model = make_network(options, classes=10).eval()
    loader = train_peers.make_loader(options, Labelled(options), shuffle=True)
    optimizer = torch.optim.SGD(model.fc.parameters(), 30.0, momentum=0.9)

    def run(count: int) -> None:
        for _ in range(count):
            for batch, labels in loader:
                batch, labels = (tensor.to(options.device, non_blocking=True) for tensor in (batch, labels))
                with torch.no_grad():
                    features = model.backbone(batch)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model.fc(features), labels)
                loss.backward()
                optimizer.step()
                loss.item()

    return run


def checkpoint_work(options: argparse.Namespace, variant: str) -> Work:
    """A training checkpoint as the published code loads it, onto the CPU."""

    def run(count: int) -> None:
        for _ in range(count):
            torch.load(options.file, map_location="cpu", weights_only=False)

    return run


def write_checkpoint(options: argparse.Namespace) -> None:
    """What pre-training saves: the network under the prefix of DistributedDataParallel, and SGD with its momentum."""
    model = nn.ModuleDict({"module": make_network(options, dual_bn=True)})
    optimizer = st.make_optimizer("sgd", model.parameters(), 0.5, 0.9, 1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    torch.save({"epoch": 1, "state_dict": model.state_dict(), "optim": optimizer.state_dict()}, options.file)


Variants = Callable[[argparse.Namespace], list[tuple[str, str | None]]]

# Who runs it, and its variants with the precision of each.
KINDS: dict[str, tuple[Callable[[argparse.Namespace, str], Work], Variants]] = {
    "train": (train_peers.train_work, train_peers.variants),
    "step": (step_work, step_variants),
    "augment": (augment_work, lambda options: [("torchvision", None)]),
    "load": (load_work, lambda options: [("torchvision", None)]),
    "decode": (decode_work, lambda options: [("Pillow", None)]),
    "mask": (mask_work, lambda options: [("published", None)]),
    "probe": (probe_work, lambda options: [("published", "fp32")]),
    "norm": (norm_peers.norm_work, norm_peers.variants),
    "checkpoint": (checkpoint_work, lambda options: [("torch.load", None)]),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--network", choices=st.DEPTHS, default="resnet18")
    parser.add_argument("--stem", choices=["cifar", "imagenet"], default="cifar")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--size", type=int, default=32, help="side of an image in pixels")
    parser.add_argument("--images", type=int, default=512, help="images of the epoch (train, augment, load, decode, probe)")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32", help="of our side")
    parser.add_argument("--file", type=pathlib.Path, help="the checkpoint to read, written where there is none; or the list of files to load")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    return parser.parse_args()


def say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    options = parse()
    make, variants_on = KINDS[options.kind]
    variants = variants_on(options)
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.kind == "checkpoint" and not options.file.exists():
        write_checkpoint(options)
    # As on the paper's GPUs: true float32, also beside ours in tf32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    cuda = options.device.startswith("cuda")
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    works: dict[str, Work] = {}
    say({"ready": True, "torch": torch.__version__, "threads": torch.get_num_threads(), "variants": variants})
    for line in sys.stdin:
        match line.split():
            case ["run", variant, count] if variant in dict(variants) and count.isdigit():
                if cuda:
                    # What the clock waits for and whose memory is asked.
                    torch.cuda.set_device(torch.device(options.device).index or 0)
                if variant not in works:
                    works[variant] = make(options, variant)
                synchronize()
                start = time.perf_counter()
                works[variant](int(count))
                synchronize()
                seconds = time.perf_counter() - start
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB.
                held = torch.cuda.max_memory_reserved() if cuda else None
                say({"seconds": seconds, "peak_rss_bytes": peak, "peak_device_bytes": held})
            case _:
                names = [*dict(variants)]
                sys.exit(f"peer.py: expected 'run VARIANT COUNT' with a variant of {names}, got {line.strip()!r}")


if __name__ == "__main__":
    main()
