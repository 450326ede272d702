"""Checks with PyTorch what `sdclr export` wrote; tests/export.rs runs it.

    python reference/torch/export_check.py CHECKS.json

CHECKS.json is a list. Each check names a file of uint8 `images`, and the `features` that `sdclr features` made of them.
One with `code` holds the lines that `sdclr export` printed: they make torchvision's network and load the file, every
name of it. The others name a `file` under the published names and the network that it belongs to. Fails where PyTorch
refuses a file or names differ; prints the largest difference of each check's features as a JSON line.
"""

import collections
import json
import sys

import numpy as np
import safetensors.torch
import torch
import torchvision

import sdclr_torch as st


def torchvision_features(code, images):
    names = {"torch": torch, "torchvision": torchvision, "safetensors": safetensors}
    exec(code, names)
    model = names["model"].eval()
    # A classifier hides the feature.
    model.fc = torch.nn.Identity()
    return model(names["normalize"](images))


def published_features(check, images):
    if check["file"].endswith(".safetensors"):
        state = safetensors.torch.load_file(check["file"])
    else:
        checkpoint = torch.load(check["file"], weights_only=True)
        assert list(checkpoint) == ["epoch", "state_dict"], list(checkpoint)
        assert checkpoint["epoch"] == check["epoch"], checkpoint["epoch"]
        state = checkpoint["state_dict"]
        assert type(state) is collections.OrderedDict and all(t.is_contiguous() for t in state.values())
    model = st.ResNet(check["network"], check["stem"], dual_bn=check["dual_bn"], classes=check["classes"])
    # As DistributedDataParallel names its parts.
    holder = torch.nn.ModuleDict({"module": model}) if check["prefix"] else model
    holder.load_state_dict(state)
    return model.eval().backbone(images)


@torch.no_grad()
def main():
    for check in json.load(open(sys.argv[1])):
        images = torch.from_numpy(np.load(check["images"])).float() / 255
        found = torchvision_features(check["code"], images) if "code" in check else published_features(check, images)
        expected = torch.from_numpy(np.load(check["features"]))
        assert found.shape == expected.shape, (found.shape, expected.shape)
        largest = float(expected.abs().max())
        print(json.dumps({"relative_difference": float((found - expected).abs().max()) / largest, "largest": largest}))


if __name__ == "__main__":
    main()
