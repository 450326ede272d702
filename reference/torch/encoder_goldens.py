"""Writes a small encoder as another program would leave it, and its features.

    python reference/torch/encoder_goldens.py --out fixtures/golden/encoder

foreign.pt is a ResNet-10 of width 2 with the CIFAR stem under torchvision's names behind `module._orig_mod.`: without
normalisation, without counters, with a classifier. images.npy are uint8 images, features.npy what the network makes of
images / 255 normalised by mean 0.5 and deviation 0.25.
"""

import argparse
import pathlib

import numpy as np
import torch

import formula
import sdclr_torch as st


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = st.ResNet("resnet10", "cifar", width=2, classes=3)
    formula.fill(model)
    model.normalize.mean.fill_(0.5)
    model.normalize.std.fill_(0.25)
    left_out = ("normalize.", "num_batches_tracked")
    state = {name: tensor for name, tensor in model.state_dict().items() if not any(part in name for part in left_out)}
    torch.save({"state_dict": {"module._orig_mod." + name: tensor for name, tensor in state.items()}}, out / "foreign.pt")
    images = formula.pixels("encoder", 2, 3, 16, 16)
    np.save(out / "images.npy", images.numpy())
    np.save(out / "features.npy", model.eval().backbone(images.float() / 255).numpy())


if __name__ == "__main__":
    main()
