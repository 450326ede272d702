"""Writes the folders that `sdclr replay` reads: settings, a published-style training checkpoint, views, and what
PyTorch made of them in float64. goldens.py calls it; networks, views and settings are made by formula."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import formula
import sdclr_torch as st

SETTINGS: dict[str, dict[str, Any]] = {
    "simclr": dict(method="simclr", network="resnet10", output_dim=32, temperature=0.5, prune_ratio=0.0, lr=5e-4,
                   momentum=0.9, weight_decay=0.3, epochs=2, warmup_epochs=1, steps_per_epoch=3),
    "sdclr": dict(method="sdclr", network="resnet10", output_dim=32, temperature=0.5, prune_ratio=0.9, lr=5e-4,
                  momentum=0.9, weight_decay=0.3, epochs=2, warmup_epochs=1, steps_per_epoch=3),
}
# Not a key of replay.toml: a reader finds it in the shape of conv1.weight.
WIDTHS = {"simclr": 4, "sdclr": 6}
BATCH, SIDE = 8, 16


def to_toml(settings: dict[str, Any]) -> str:
    # JSON's strings and numbers are TOML's.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())


def training_checkpoint(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As the published code saves it: prefix `module.`, an optimiser whose rate is a numpy.float64."""
    state = OrderedDict(
        ("module." + name, tensor.float() if tensor.is_floating_point() else tensor)
        for name, tensor in model.state_dict().items()
    )
    # torch.load's own reader refuses the attribute; a tolerant one skips it.
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    optim = optimizer.state_dict()
    for group in optim["param_groups"]:
        group["lr"] = np.float64(group["lr"])
    return {"epoch": 0, "state_dict": state, "optim": optim}


def summary(tensor: Tensor) -> dict[str, float]:
    values = tensor.detach().double()
    return {"l2": values.norm().item(), "sum": values.sum().item(), "numel": values.numel()}


def replay(model: torch.nn.Module, views: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """Trains on `views` [steps_per_epoch, batch, 2, 3, H, W] in [0, 1], the same order every epoch."""
    s = settings
    optimizer = st.make_optimizer("sgd", model.parameters(), s["lr"], s["momentum"], s["weight_decay"])
    step_of = st.simclr_step if s["method"] == "simclr" else st.sdclr_step
    total, warmup = (epochs * s["steps_per_epoch"] for epochs in (s["epochs"], s["warmup_epochs"]))
    losses: list[float] = []
    density: list[float] = []
    rate = s["lr"]
    for _ in range(s["epochs"]):
        if s["method"] == "sdclr":
            density.append(st.prune(model, s["prune_ratio"]))
        for batch in views:
            rate = s["lr"] * st.cosine_factor(len(losses) + 1, total, warmup, s["lr"])
            st.set_rate(optimizer, rate)
            losses.append(step_of(model, batch, s["temperature"], optimizer))
    model.eval()
    with torch.no_grad():
        head = model(views[0, :, 0])
    return {
        "losses": losses,
        "density": density,
        "final_lr": rate,
        "state": {"module." + name: summary(tensor) for name, tensor in model.state_dict().items()},
        "eval_features_l2": head.norm().item(),
        "eval_features_head": head[:2, :8].tolist(),
    }


def write_replay(out: Path) -> None:
    for method, settings in SETTINGS.items():
        folder = out / method
        folder.mkdir(parents=True, exist_ok=True)
        dual_bn = method == "sdclr"
        model = st.ResNet("resnet10", width=WIDTHS[method], dual_bn=dual_bn, output_dim=settings["output_dim"])
        formula.fill(model)
        # What the file holds in float32 is what the run in float64 starts from.
        model.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
        optimizer = st.make_optimizer("sgd", model.parameters(), settings["lr"])
        torch.save(training_checkpoint(model, optimizer), folder / "init.pt")
        views = formula.pixels(f"replay.{method}", settings["steps_per_epoch"], BATCH, 2, 3, SIDE, SIDE)
        np.save(folder / "views.npy", views.numpy())
        (folder / "replay.toml").write_text(to_toml(settings))
        expected = replay(model, views.double() / 255, settings)
        (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
