"""A miniature of everything the authors published, saved by PyTorch itself: goldens for `sdclr repro --from-published`.

    python reference/torch/published_goldens.py --out fixtures/golden/published [--data DATA]

cifar10.zip, cifar100.zip, imagenet100.zip, imagenet.zip
            the published folders (REFERENCE.md "Recipes published"), each with the files that the published programs
            leave. The networks have their published names and one channel where the published have 64. Pre-training
            checkpoints: prefix `module.`, two batch norms for SDCLR, momentum, a numpy.float64 rate. Probes: their
            backbone is that of the pre-training; ImageNet's have the prefix, a schedule with its Counter, a 0-d tensor.
            Every tensor was saved on cuda:0.
cifar.json  accuracies per class of the fine-tuned models on the first and on all test images of CIFAR, by PyTorch. Made
            with --data, a folder with CIFAR; taken over as committed without it.

CIFAR's logs report what the models do on all test images, but for one probe, whose log was made up, as all of ImageNet's.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import published_style as style
from sdclr_torch import ResNet, per_class_accuracy, to_probe_names

COMMITTED = Path(__file__).resolve().parents[2] / "fixtures/golden/published/cifar.json"
# Dataset, method, pre-training list, split.
RUNS = [
    ("cifar10", "simclr", "D_b", 1),
    ("cifar10", "simclr", "D_i", 1),
    ("cifar10", "sdclr", "D_i", 1),
    ("cifar10", "simclr", "D_i", 2),
    ("cifar10", "sdclr", "D_i", 2),
    ("cifar100", "sdclr", "D_i", 1),
    ("imagenet100", "simclr", "D_b", 1),
    ("imagenet100", "simclr", "D_i", 1),
    ("imagenet100", "sdclr", "D_i", 1),
    ("imagenet100", "sdclr", "D_b", 1),
    ("imagenet", "simclr", "D_b", 1),
    ("imagenet", "simclr", "D_i", 1),
]
NETWORKS = {"cifar10": ("resnet18", "cifar"), "imagenet": ("resnet50", "imagenet")}
FIRST = 500
# The one probe of CIFAR whose log says something else than its model does.
OTHER_LOG = ("cifar10", "simclr", "D_i", 2, "few")


def network_of(dataset: str) -> tuple[str, str]:
    return NETWORKS["cifar10" if dataset.startswith("cifar") else "imagenet"]


def smooth_images(generator: torch.Generator, side: int) -> Tensor:
    """Something like photographs: float64 [32, 3, side, side] in [0, 1]."""
    return F.interpolate(torch.rand(32, 3, 4, 4, generator=generator).double(), size=side, mode="bilinear")


def draw(model: nn.Module, generator: torch.Generator) -> None:
    """Weights from one generator, whatever PyTorch's own initialisation draws. Rounded: what a machine's arithmetic
    makes of the last bits does not show in the file."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.75 * name.endswith("weight"))
            else:
                fan = tensor.shape[1:].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / fan) ** 0.5)
            tensor.copy_(torch.round(tensor * 64) / 64)


def settle(model: ResNet, generator: torch.Generator, side: int, branches: int) -> None:
    """Running statistics as after training, so that features differ from image to image. Summed in float64: what threads
    and processors make of the last bits of a float32 moved some of them across the border of their rounding."""
    norms = [layer for layer in model.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for layer in norms:
        layer.momentum = 0.5
    model.double().train()
    with torch.no_grad():
        for step in range(8):
            model(smooth_images(generator, side), step % branches)
        for layer in norms:
            for tensor in (layer.running_mean, layer.running_var):
                tensor.copy_(torch.round(tensor * 256) / 256 + (tensor is layer.running_var) / 256)
    model.float().eval()


def noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Of few levels, so that files stay small when packed."""
    return torch.round(torch.randn(like.shape, generator=generator) * 2) / 1024


def momentum_sgd(parameters: list[nn.Parameter], lr: float, generator: torch.Generator) -> torch.optim.SGD:
    """An optimiser in the middle of a run."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
    for tensor in parameters:
        optimizer.state[tensor]["momentum_buffer"] = noise(tensor, generator)
    return optimizer


def saved(contents: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    return buffer.getvalue()


def wrapped(model: nn.Module) -> nn.ModuleDict:
    """Under the prefix of DistributedDataParallel."""
    return nn.ModuleDict({"module": model})


def pretraining(dataset: str, method: str, generator: torch.Generator) -> tuple[dict[str, Tensor], bytes]:
    """The dense backbone under the names of a probe, and the file."""
    network, stem = network_of(dataset)
    dual = method == "sdclr"
    model = ResNet(network, stem, width=1, dual_bn=dual)
    draw(model, generator)
    settle(model, generator, 32 if stem == "cifar" else 64, 2 if dual else 1)
    optimizer = momentum_sgd(list(model.parameters()), 0.5, generator)
    optimizer.param_groups[0]["lr"] = np.float64(1e-6)
    epoch = 2000 if stem == "cifar" else 500
    state = wrapped(model).state_dict()
    return to_probe_names(state), saved({"epoch": epoch, "state_dict": state, "optim": optimizer.state_dict()})


def classifier(model: ResNet, generator: torch.Generator, side: int) -> None:
    """A classifier that uses all its classes; made in float64, as the statistics are."""
    model.double()
    with torch.no_grad():
        features = torch.cat([model.backbone(smooth_images(generator, side)) for _ in range(4)])
        mean, deviation = features.mean(0), features.std(0) + 0.1
        weight = torch.randn(model.fc.weight.shape, generator=generator) / deviation
        model.fc.weight.copy_(torch.round(weight * 4) / 4)
        model.fc.bias.copy_(torch.round(-(model.fc.weight @ mean) * 4) / 4)
    model.float()


def probes(dataset: str, backbone: dict[str, Tensor], generator: torch.Generator) -> tuple[ResNet, dict[str, bytes]]:
    """The best model and the files of one probe: of the best and of the last epoch."""
    network, stem = network_of(dataset)
    model = ResNet(network, stem, width=1, classes=style.CLASSES[dataset]).eval()
    files = {}
    # The last is made first, so that the best is what is left in the model.
    for name, epoch in (("model.pt", 30), ("best_model.pt", 17)):
        model.load_state_dict(backbone | {"fc.weight": model.fc.weight, "fc.bias": model.fc.bias})
        classifier(model, generator, 32 if stem == "cifar" else 64)
        parameters = list(model.parameters())
        optimizer = torch.optim.SGD(parameters, lr=30.0, momentum=0.9, weight_decay=0)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20])
        for tensor in (model.fc.weight, model.fc.bias):
            optimizer.state[tensor]["momentum_buffer"] = noise(tensor, generator)
        contents = {"epoch": epoch, "state_dict": model.state_dict(), "optim": optimizer.state_dict()}
        if stem == "cifar":
            contents["best_prec1"] = 41.5
        else:
            contents["state_dict"] = wrapped(model).state_dict()
            contents |= {"scheduler": schedule.state_dict(), "best_prec1": torch.tensor(41.5)}
        files[name] = saved(contents)
    return model, files


def test_images(data: Path, dataset: str) -> tuple[Tensor, Tensor]:
    """uint8 [10000, 3, 32, 32] and labels, of the binary version."""
    if dataset == "cifar10":
        rows, labels = np.fromfile(data / "cifar-10-batches-bin/test_batch.bin", np.uint8).reshape(-1, 3073), 0
    else:
        rows, labels = np.fromfile(data / "cifar-100-binary/test.bin", np.uint8).reshape(-1, 3074), 1
    pixels = rows[:, labels + 1 :].reshape(-1, 3, 32, 32)
    return torch.from_numpy(pixels.copy()), torch.from_numpy(rows[:, labels].astype(np.int64))


def evaluate(model: ResNet, images: Tensor, labels: Tensor, classes: int) -> dict[str, list[float]]:
    """Per cent of each class, of the first images and of all; a class without an image has 0."""
    with torch.no_grad():
        predicted = torch.cat([model(chunk / 255.0).argmax(1) for chunk in images.split(500)])
    first = per_class_accuracy(predicted[:FIRST], labels[:FIRST], classes)
    first = [0.0 if accuracy != accuracy else accuracy for accuracy in first]
    return {"first": first, "all": per_class_accuracy(predicted, labels, classes)}


def made_up(rng: np.random.Generator, classes: int) -> list[float]:
    return (rng.integers(10, 51, classes) / 50).tolist()


def tree(data: Path | None) -> Iterator[tuple[str, str, bytes]]:
    """Archive, name and bytes of every file; the accuracies as `cifar.json`."""
    known = {} if data else json.loads(COMMITTED.read_text())
    sets = {dataset: test_images(data, dataset) for dataset in ("cifar10", "cifar100")} if data else {}
    found = {}
    for number, (dataset, method, chosen, split) in enumerate(RUNS):
        generator = torch.Generator().manual_seed(number)
        rng = np.random.default_rng(number)
        classes = style.CLASSES[dataset]
        pretrained, tuned = style.PARENTS[dataset]
        backbone, file = pretraining(dataset, method, generator)
        name = style.pretrain_name(dataset, method, chosen, split)
        last = "model_2000.pt" if dataset.startswith("cifar") else "model_500.pt"
        yield dataset, f"{pretrained}/{name}/{last}", file
        for protocol in ("full", "few"):
            name = style.probe_name(dataset, method, chosen, protocol, split)
            model, files = probes(dataset, backbone, generator)
            for entry, file in files.items():
                yield dataset, f"{tuned}/{name}/{entry}", file
            per_class = made_up(rng, classes)
            if dataset.startswith("cifar"):
                found[name] = evaluate(model, *sets[dataset], classes) if data else known[name]
                if (dataset, method, chosen, split, protocol) != OTHER_LOG:
                    per_class = [accuracy / 100 for accuracy in found[name]["all"]]
            images = 10_000 if dataset.startswith("cifar") else 50 * classes
            lines = style.training(dataset, [made_up(rng, classes) for _ in range(2)])
            lines += style.result_block(dataset, per_class, images, 87.5)
            yield dataset, f"{tuned}/{name}/log.txt", ("\n".join(lines) + "\n").encode()
    yield "", "cifar.json", (json.dumps(found) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with cifar-10-batches-bin/ and cifar-100-binary/")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # Runs were saved from a GPU: every storage says so.
    torch.serialization.location_tag = lambda storage: "cuda:0"
    archives: dict[str, dict[str, bytes]] = {}
    for archive, name, file in tree(arguments.data):
        if archive:
            archives.setdefault(archive, {})[name] = file
        else:
            (arguments.out / name).write_bytes(file)
    for archive, files in archives.items():
        style.write_zip(arguments.out / f"{archive}.zip", files)


if __name__ == "__main__":
    main()
