"""Writes fixtures/golden/precision: loss, gradients and statistics of one step in float64, and in PyTorch's own bfloat16
autocast on the CPU, whose loss is float32 as ours is.

    python reference/torch/precision_goldens.py --out fixtures/golden/precision

bf16.safetensors depends on the CPU, whose bfloat16 instructions sum in their own order; compare.py knows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import formula
import sdclr_torch as st

SETTINGS = {"network": "resnet10", "output_dim": 16, "batch": 32, "side": 16, "temperature": 0.2, "prune_ratio": 0.7}
CASES = {"simclr": {"dual_bn": False, "width": 4}, "sdclr": {"dual_bn": True, "width": 8}}


def run(name: str, dual_bn: bool, width: int, bf16: bool) -> dict[str, Tensor]:
    """`loss`, `gradient` (all parameters joined in the order of their names) and `statistics` (likewise, of the dense
    branch), each in float32."""
    s = SETTINGS
    torch.set_default_dtype(torch.float32 if bf16 else torch.float64)
    model = st.ResNet(s["network"], width=width, dual_bn=dual_bn, output_dim=s["output_dim"])
    formula.fill(model)
    if dual_bn:
        st.prune(model, s["prune_ratio"])
    views = formula.pixels(f"{name}.views", s["batch"], 2, 3, s["side"], s["side"])
    views = views.to(torch.get_default_dtype()) / 255
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        if dual_bn:
            features = [model(views[:, 0], st.DENSE), model(views[:, 1], st.PRUNED)]
        else:
            both = model(views.flatten(0, 1))
            features = [both[0::2], both[1::2]]
    loss = st.nt_xent(*(view.to(torch.get_default_dtype()) for view in features), s["temperature"])
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    statistics = {name: t for name, t in model.named_buffers() if ".running_" in name and ".bn_list.1." not in name}
    joined = {"gradient": gradients, "statistics": statistics}
    found = {key: torch.cat([tensors[name].flatten() for name in sorted(tensors)]) for key, tensors in joined.items()}
    return {key: tensor.detach().float() for key, tensor in (found | {"loss": loss}).items()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, required=True, help="folder that gets the files")
    out = arguments.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for file, bf16 in (("fp32", False), ("bf16", True)):
        tensors = {}
        for name, case in CASES.items():
            tensors |= {f"{name}/{key}": tensor for key, tensor in run(name, bf16=bf16, **case).items()}
        save_file(tensors, out / f"{file}.safetensors")
    described: dict[str, Any] = SETTINGS | {"cases": CASES}
    (out / "cases.json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
