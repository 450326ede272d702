"""Writes ResNets as other programs leave them, and the features that PyTorch finds with them; tests/foreign.rs runs it.

    python reference/torch/foreign_encoders.py --out DIR

DIR/NAME.pt or .safetensors holds a torchvision ResNet-18 (ImageNet stem) under the names of one program; images.npy are
uint8 images, features.npy what the network makes of images / 255 normalised as on ImageNet, all files alike.
"""

import argparse
import pathlib

import numpy as np
import safetensors.torch
import torch
import torchvision

import formula


def torchvision_resnet():
    """A network whose every tensor is something particular."""
    model = torchvision.models.resnet18(num_classes=10)
    formula.fill(model)
    return model.eval()


def files(model):
    """(file name, contents)"""
    state = model.state_dict()
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}

    def under(prefix, tensors=state):
        return {prefix + name: tensor for name, tensor in tensors.items()}

    parallel = torch.nn.ModuleDict({"module": model})
    compiled = torch.compile(model)
    yield "plain.pt", state
    yield "headless.safetensors", headless
    yield "no_counters.pt", {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    yield "parallel.pt", {"epoch": 3, "state_dict": parallel.state_dict()}
    yield "twice_parallel.pt", {"state_dict": torch.nn.ModuleDict({"module": parallel}).state_dict()}
    yield "compiled.pt", compiled.state_dict()
    yield "parallel_compiled.pt", torch.nn.ModuleDict({"module": compiled}).state_dict()
    projector = {"projector.0.weight": torch.ones(4, 512), "projector.0.bias": torch.ones(4)}
    momentum = under("momentum_backbone.", {name: torch.zeros_like(tensor) for name, tensor in headless.items()})
    solo = {**under("backbone.", headless), **momentum, **projector, "classifier.weight": torch.ones(10, 512)}
    yield "solo_learn.pt", {"epoch": 3, "global_step": 9, "state_dict": solo}
    query = {name.replace("fc.", "fc.2."): tensor for name, tensor in state.items()}
    query |= {"fc.0.weight": torch.ones(512, 512), "fc.0.bias": torch.ones(512)}
    key = {name: torch.zeros_like(tensor) for name, tensor in query.items()}
    queue = {"module.queue": torch.zeros(10, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    moco = {**under("module.encoder_q.", query), **under("module.encoder_k.", key), **queue}
    yield "moco.pt", {"epoch": 200, "arch": "resnet18", "state_dict": moco}
    prototypes = {"module.prototypes.weight": torch.ones(3, 16), "module.projection_head.0.weight": torch.ones(16, 512)}
    yield "swav.pt", {**under("module.", headless), **prototypes}
    yield "other.pt", {"state_dict": under("net.trunk.", headless)}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    model = torchvision_resnet()
    for name, contents in files(model):
        if name.endswith(".pt"):
            torch.save(contents, out / name)
        else:
            safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in contents.items()}, out / name)
    images = formula.pixels("foreign", 2, 3, 64, 64)
    np.save(out / "images.npy", images.numpy())
    normalize = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    model.fc = torch.nn.Identity()
    np.save(out / "features.npy", model(normalize(images.float() / 255)).numpy())


if __name__ == "__main__":
    main()
