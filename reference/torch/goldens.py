"""Writes fixtures/golden/{network,pretrain,mask,probe,replay}: what our PyTorch code gives on formula inputs.

    python reference/torch/goldens.py --out fixtures/golden

float64 throughout unless a name says otherwise; the same bytes on every run on one machine."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import formula
import sdclr_torch as st
from formula import digests, pixels, uniform
from replay_fixtures import write_replay


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, path)


def float_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics: what steps change."""
    state = model.state_dict()
    return {
        name: tensor.detach().clone()
        for name, tensor in state.items()
        if tensor.is_floating_point() and not name.startswith("normalize.")
    }


# ---- network: forward and all gradients, every depth, both BN modes --------------------------------------------------

PRUNE_RATIO = 0.5


def network_case(network: str, stem: str, dual_bn: bool, side: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    model = st.ResNet(network, stem, width=4, dual_bn=dual_bn, output_dim=8)
    formula.fill(model)
    images = pixels("images", 8, 3, side, side).double() / 255
    branches = {"dense": st.DENSE, "pruned": st.PRUNED} if dual_bn else {"dense": st.DENSE}
    if dual_bn:
        st.prune(model, PRUNE_RATIO)
    tensors = {}
    with torch.no_grad():
        model.eval()
        tensors["backbone_eval"] = digests({"features": model.backbone(images)})
        for name, branch in branches.items():
            tensors[f"eval_{name}"] = model(images, branch)
    model.train()
    loss = torch.zeros(())
    for name, branch in branches.items():
        output = model(images, branch)
        tensors[f"train_{name}"] = output.detach()
        loss = loss + (output * uniform(f"loss.{name}", *output.shape)).sum()
    loss.backward()
    parameters = dict(model.named_parameters())
    buffers = {name: tensor for name, tensor in float_state(model).items() if ".running_" in name}
    tensors["gradients"] = digests({name: tensor.grad for name, tensor in parameters.items()})
    tensors["buffers"] = digests(buffers)
    description = {
        "network": network,
        "stem": stem,
        "dual_bn": dual_bn,
        "side": side,
        "loss": loss.item(),
        "state_sha256": formula.names_sha256(model.state_dict()),
    }
    return description, tensors


def write_network(out: Path) -> None:
    cases, tensors = {}, {}
    shapes = [(network, "cifar", 16) for network in st.DEPTHS]
    shapes += [("resnet18", "imagenet", 64), ("resnet50", "imagenet", 64)]
    for network, stem, side in shapes:
        for dual_bn in (False, True):
            name = f"{network}-{stem}-{'dual' if dual_bn else 'single'}"
            cases[name], found = network_case(network, stem, dual_bn, side)
            tensors |= {f"{name}/{key}": tensor for key, tensor in found.items()}
    settings = {"width": 4, "output_dim": 8, "images": 8, "prune_ratio": PRUNE_RATIO}
    write_json(out / "network/cases.json", settings | {"cases": cases})
    write_tensors(out / "network/outputs.safetensors", tensors)
    names = {}
    for dual_bn in (False, True):
        state = st.ResNet("resnet10", width=4, dual_bn=dual_bn, output_dim=8).state_dict()
        names[f"resnet10-{'dual' if dual_bn else 'single'}"] = {name: list(t.shape) for name, t in state.items()}
    write_json(out / "network/names.json", names)


# ---- mask: thresholds, ties, edges of ceil ---------------------------------------------------------------------------

# In the order of their names.
MASK_SHAPES = {"conv1": (8, 3, 3, 3), "layer1.0.conv1": (8, 8, 3, 3), "layer2.0.downsample.conv": (16, 8, 1, 1)}
# Convolution weights of ResNet-10 and ResNet-18 (CIFAR stem) and ResNet-50 (ImageNet stem) at width 64.
TOTALS = {"resnet10": 4_892_352, "resnet18": 11_159_232, "resnet50": 23_454_912}


def write_mask(out: Path) -> None:
    # 33 levels for 920 weights: ties everywhere, also at the maximum.
    shapes = MASK_SHAPES
    weights = {name: (uniform("mask." + name, *shape) * 16).round() / 16 for name, shape in shapes.items()}
    total = sum(weight.numel() for weight in weights.values())
    cases, tensors = [], {}
    for ratio in (0.0, 0.3, 0.5, 0.9, 0.9 - 0.2, 0.9999, 1.0):
        masks = st.magnitude_masks(list(weights.values()), ratio)
        kept = int(sum(mask.sum().item() for mask in masks))
        threshold = st.magnitude_threshold(list(weights.values()), ratio).item()
        cases.append({"prune_ratio": ratio, "k": st.prune_count(ratio, total), "threshold": threshold, "kept": kept})
        tensors |= {f"{len(cases) - 1}/{name}": mask.to(torch.uint8) for name, mask in zip(weights, masks)}
    counts = [
        {"prune_ratio": p, "random_ratio": r, "total": total, "k": st.prune_count(p - r, total),
         "drop_probability": st.random_drop_probability(p, r, total)}
        for total in (10, 90, 1000, *TOTALS.values())
        for p, r in ((0.9, 0.0), (0.9, 0.2), (0.9, 0.9), (0.3, 0.1), (1.0, 0.0), (1.0, 0.2))
    ]
    for network, expected in TOTALS.items():
        model = st.ResNet(network, "imagenet" if network == "resnet50" else "cifar")
        assert sum(module.weight.numel() for module in st.prunable(model).values()) == expected
    found = {"levels": 16, "shapes": shapes, "cases": cases, "counts": counts, "totals": TOTALS}
    write_json(out / "mask/cases.json", found)
    write_tensors(out / "mask/masks.safetensors", tensors)


# ---- pretrain: loss, optimisers, schedule, order, steps --------------------------------------------------------------


def write_loss(out: Path) -> None:
    cases = []
    for count, columns, temperature, scale in (
        (1, 4, 0.5, 1.0), (2, 3, 0.5, 1.0), (8, 16, 0.2, 1.0), (13, 8, 0.1, 30.0), (64, 128, 0.3, 0.01),
    ):
        views = [(uniform(f"features.{view}", count, columns) * scale).requires_grad_() for view in (0, 1)]
        loss = st.nt_xent(*views, temperature)
        loss.backward()
        cases.append({
            "count": count, "columns": columns, "temperature": temperature, "scale": scale, "loss": loss.item(),
            "gradients": [formula.digest("gradient", view.grad) for view in views],
        })
    write_json(out / "pretrain/loss.json", cases)


# Tensors are joined in the order of their names.
OPTIMIZER_SHAPES = {"bias": (5,), "conv": (4, 3, 3, 3), "linear": (5, 4), "still": (2, 2), "zero": (3,)}


def optimizer_run(kind: str, weight_decay: float, lr: float, factor: Callable[[int], float]) -> Tensor:
    """All weights in one row, after steps 1, 2, 10 and 50. Gradients are 0.3 w + uniform, but none for `still`, and
    `zero` starts at zero: LARS's special cases."""
    weights = {name: uniform("optimizer." + name, *shape) for name, shape in OPTIMIZER_SHAPES.items()}
    weights["zero"].zero_()
    optimizer = st.make_optimizer(kind, list(weights.values()), lr, 0.9, weight_decay)
    seen = []
    for step in range(1, 51):
        st.set_rate(optimizer, lr * factor(step))
        for name, weight in weights.items():
            gradient = 0.3 * weight + uniform(f"gradient.{name}.{step}", *weight.shape)
            weight.grad = torch.zeros_like(weight) if name == "still" else gradient
        optimizer.step()
        if step in (1, 2, 10, 50):
            seen.append(torch.cat([weight.flatten() for weight in weights.values()]))
    return torch.stack(seen)


def write_optimizers(out: Path) -> None:
    total, warmup = 50, 10
    runs = {
        "sgd": ("sgd", 0.3, 0.05), "sgd-without-decay": ("sgd", 0.0, 0.5),
        "lars": ("lars", 1e-6, 0.5), "lars-with-decay": ("lars", 0.1, 2.0), "adam": ("adam", 0.0, 0.01),
    }
    schedules: dict[str, Callable[[float], Callable[[int], float]]] = {
        "constant": lambda lr: lambda step: 1.0,
        "cosine": lambda lr: lambda step: st.cosine_factor(step, total, warmup, lr),
    }
    described, tensors = [], {}
    for name, (kind, decay, lr) in runs.items():
        for schedule, factor in schedules.items():
            label = f"{name}-{schedule}"
            described.append({"name": label, "optimizer": kind, "weight_decay": decay, "lr": lr, "schedule": schedule})
            tensors[label] = optimizer_run(kind, decay, lr, factor(lr))
    settings = {"momentum": 0.9, "steps": total, "warmup": warmup, "shapes": OPTIMIZER_SHAPES, "runs": described}
    write_json(out / "pretrain/optimizers.json", settings)
    write_tensors(out / "pretrain/optimizers.safetensors", tensors)


def write_schedule(out: Path) -> None:
    write_json(out / "pretrain/schedule.json", [
        {"lr": lr, "total": total, "warmup": warmup,
         "factors": [st.cosine_factor(step, total, warmup, lr) for step in range(1, total + 1)]}
        for lr, total, warmup in ((0.5, 50, 10), (5e-4, 30, 0), (0.5, 20, 20), (0.5, 10, 20), (0.1, 1, 0), (0.1, 1, 1))
    ])


def write_order(out: Path) -> None:
    cases = []
    for images, epoch, ranks in (
        (11165, 1, 1), (11165, 2, 1), (11165, 2000, 1), (9754, 1, 1),
        (11165, 1, 2), (11160, 3, 7), (3, 1, 8), (1, 1, 1),
    ):
        for rank in range(ranks):
            order = np.array(st.sampler_order(images, epoch, ranks, rank), dtype="<i8")
            cases.append({
                "images": images, "epoch": epoch, "ranks": ranks, "rank": rank, "length": len(order),
                "first": order[:16].tolist(), "last": order[-16:].tolist(),
                "sha256": hashlib.sha256(order.tobytes()).hexdigest(),
            })
    write_json(out / "pretrain/order.json", cases)


STEPS = {
    "network": "resnet10", "width": 8, "output_dim": 16, "batch": 16, "side": 16, "temperature": 0.5, "lr": 5e-4,
    "momentum": 0.9, "weight_decay": 0.3, "steps": 10, "warmup": 5, "steps_per_epoch": 5, "prune_ratio": 0.7,
}


def run_steps(method: str, dual_bn: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Ten steps over two epochs, a new mask at each epoch's start; updates after the first and the last step."""
    s = STEPS
    model = st.ResNet(s["network"], width=s["width"], dual_bn=dual_bn, output_dim=s["output_dim"])
    formula.fill(model)
    start = float_state(model)
    optimizer = st.make_optimizer("sgd", model.parameters(), s["lr"], s["momentum"], s["weight_decay"])
    step_of = st.simclr_step if method == "simclr" else st.sdclr_step
    losses, density, updates = [], [], {}
    for step in range(1, s["steps"] + 1):
        if method == "sdclr" and (step - 1) % s["steps_per_epoch"] == 0:
            density.append(st.prune(model, s["prune_ratio"]))
        st.set_rate(optimizer, s["lr"] * st.cosine_factor(step, s["steps"], s["warmup"], s["lr"]))
        views = pixels(f"views.{step}", s["batch"], 2, 3, s["side"], s["side"]).double() / 255
        losses.append(step_of(model, views, s["temperature"], optimizer))
        if step in (1, s["steps"]):
            state = float_state(model)
            updates[f"update{step}"] = digests({name: state[name] - start[name] for name in state})
    tracked = {name: n.item() for name, n in model.state_dict().items() if name.endswith("num_batches_tracked")}
    return {"method": method, "dual_bn": dual_bn, "losses": losses, "density": density, "tracked": tracked}, updates


def check_joint_step() -> None:
    """The published three forwards and two backwards give the gradients of one joint loss, to float64's rounding."""
    s = STEPS
    views = pixels("views.1", s["batch"], 2, 3, s["side"], s["side"]).double() / 255
    for dual_bn in (True, False):
        gradients = []
        for joint in (False, True):
            model = st.ResNet(s["network"], width=s["width"], dual_bn=dual_bn, output_dim=s["output_dim"])
            formula.fill(model)
            st.prune(model, s["prune_ratio"])
            if joint:
                st.sdclr_joint_loss(model, views, s["temperature"]).backward()
            else:
                st.sdclr_backward(model, views, s["temperature"])
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
        apart = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
        assert apart < 1e-12, f"published and joint gradients differ by {apart:.1e} (dual BN: {dual_bn})"


def write_steps(out: Path) -> None:
    check_joint_step()
    cases, tensors = {}, {}
    for method, dual_bn in (("simclr", False), ("sdclr", True), ("sdclr", False)):
        name = f"{method}-{'dual' if dual_bn else 'single'}"
        cases[name], updates = run_steps(method, dual_bn)
        tensors |= {f"{name}/{key}": tensor for key, tensor in updates.items()}
    write_json(out / "pretrain/steps.json", {"settings": STEPS, "cases": cases})
    write_tensors(out / "pretrain/steps.safetensors", tensors)


# ---- probe: one epoch, selection, metrics, names ---------------------------------------------------------------------

PROBE = {
    "network": "resnet10", "width": 4, "side": 16, "classes": 5, "class_counts": [50, 20, 10, 4, 2], "images": 60,
    "train": 40, "test": 40, "padding": 2, "batch": 16, "lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "epochs": 6,
    "milestones": [3, 5], "validate_every": 2, "flip_probability": 0.5, "seed": 1,
}
# Orders and shifts as our addressed generators draw them; tests/parity_probe.rs holds the two together.
DRAWS = Path(__file__).parents[2] / "fixtures/golden/probe/draws.json"


def probe_images(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Noise over a pattern of the class: uint8 images [count, 3, side, side] and labels."""
    side, classes = PROBE["side"], PROBE["classes"]
    labels = torch.tensor([int(b % np.uint64(classes)) for b in formula.bits(f"{name}.labels", count)])
    noise = pixels(name, count, 3, side, side).int()
    patterns = pixels("probe.patterns", classes, 3, side, side).int()
    return ((3 * noise + 5 * patterns[labels]) // 8).to(torch.uint8), labels


def run_probe(draws: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The whole probe on made-up images: train, select by validation, test once. In torch's default dtype."""
    s = PROBE
    images, labels = probe_images("probe.images", s["images"])
    test_images, test_labels = probe_images("probe.test", s["test"])
    ranking = np.argsort(formula.bits("probe.lists", s["images"]), kind="stable").tolist()
    train, validation = ranking[: s["train"]], ranking[s["train"] :]
    model = st.ResNet(s["network"], width=s["width"], classes=s["classes"])
    formula.fill(model)
    model.eval()
    scaled = [batch.to(torch.get_default_dtype()) / 255 for batch in (images, test_images)]
    optimizer = torch.optim.SGD(model.fc.parameters(), s["lr"], momentum=s["momentum"], weight_decay=s["weight_decay"])
    epochs, validations, states = [], [], {}
    tensors = {}
    for epoch, drawn in enumerate(draws, 1):
        rate = st.probe_rate(s["lr"], s["milestones"], epoch)
        st.set_rate(optimizer, rate)
        chosen = zip(train, drawn["shifts"])
        views = torch.stack([st.shifted_crop(scaled[0][i], t, l, f, s["padding"]) for i, (t, l, f) in chosen])
        batches = st.train_probe_epoch(
            model.backbone, model.fc, optimizer, views, labels[train], drawn["order"], s["batch"]
        )
        sizes = [min(s["batch"], s["train"] - start) for start in range(0, s["train"], s["batch"])]
        loss = sum(loss * size for loss, size in zip(batches, sizes)) / s["train"]
        accuracy = None
        if epoch % s["validate_every"] == 0 or epoch == s["epochs"]:
            with torch.no_grad():
                right = model(scaled[0][validation]).argmax(1) == labels[validation]
            accuracy = 100.0 * right.sum().item() / len(validation)
            validations.append((epoch, accuracy))
            states[epoch] = {name: value.detach().clone() for name, value in model.fc.named_parameters()}
        epochs.append({"loss": loss, "lr": rate, "validation_accuracy": accuracy})
        tensors[f"views/{epoch}"] = (views[:4] * 255).round().to(torch.uint8)
    best_epoch, best_accuracy = st.select_best(validations)
    model.fc.load_state_dict(states[best_epoch])
    with torch.no_grad():
        predicted = model(scaled[1]).argmax(1)
    per_class = st.per_class_accuracy(predicted, test_labels, s["classes"])
    tensors |= states[best_epoch]
    return {
        "settings": s, "train": train, "validation": validation, "labels": labels.tolist(),
        "test_labels": test_labels.tolist(), "epochs": epochs, "best_epoch": best_epoch,
        "best_validation_accuracy": best_accuracy, "per_class": per_class,
        **st.metrics(per_class, st.groups_by_rank(s["class_counts"])),
    }, tensors


def write_probe(out: Path) -> None:
    draws = json.loads(DRAWS.read_text())
    found, tensors = run_probe(draws)
    # Accuracies must not hang on rounding: float32, in which we train probes, gives the same.
    torch.set_default_dtype(torch.float32)
    single, _ = run_probe(draws)
    torch.set_default_dtype(torch.float64)
    for key in ("per_class", "best_epoch", "best_validation_accuracy"):
        assert single[key] == found[key], f"{key} depends on rounding"
    write_json(out / "probe/run.json", found)
    write_tensors(out / "probe/run.safetensors", tensors)
    (out / "probe/draws.json").write_bytes(DRAWS.read_bytes())


# Class counts of D_i, split 1, as published.
CIFAR10_COUNTS = [348, 969, 125, 208, 1617, 75, 4500, 581, 2697, 45]
CIFAR100_COUNTS = [
    4, 5, 9, 234, 25, 257, 106, 450, 140, 340, 55, 5, 282, 24, 429, 194, 15, 22, 6, 50, 223, 269, 48, 58, 134, 16, 111,
    185, 15, 8, 43, 19, 36, 34, 66, 80, 40, 7, 33, 41, 73, 28, 169, 88, 177, 21, 11, 101, 7, 391, 213, 116, 310, 8, 9,
    128, 204, 410, 84, 19, 324, 14, 31, 5, 245, 13, 9, 11, 13, 147, 4, 30, 356, 18, 6, 12, 5, 63, 4, 46, 10, 96, 373,
    122, 17, 26, 27, 161, 92, 60, 154, 10, 52, 6, 7, 38, 70, 20, 76, 296,
]


def write_metrics(out: Path) -> None:
    cases = []
    for name, counts in (("cifar10", CIFAR10_COUNTS), ("cifar100", CIFAR100_COUNTS)):
        groups = st.groups_by_rank(counts)
        per_class = ((uniform(f"accuracy.{name}", len(counts)) + 1) * 500).round().div(10).tolist()
        case = {"name": name, "counts": counts, "per_class": per_class}
        case["groups"] = {group: sorted(members) for group, members in groups.items()}
        cases.append(case | st.metrics(per_class, groups))
    write_json(out / "probe/metrics.json", cases)


def write_probe_names(out: Path) -> None:
    """Training checkpoint to probe network: {new name: old name}, sha256 over the sorted lines "new old\\n", and the
    dense features, which must not change."""
    mappings = {}
    for network in ("resnet10", "resnet50"):
        for dual_bn in (True, False):
            model = st.ResNet(network, width=4, dual_bn=dual_bn, output_dim=8)
            old = {"module." + name: name for name in model.state_dict()}
            mapping = {new: "module." + name for new, name in st.to_probe_names(old).items()}  # type: ignore[arg-type]
            formula.fill(model)
            model.eval()
            probe = st.ResNet(network, width=4, classes=3).eval()
            renamed = st.to_probe_names(model.state_dict())
            missing, unexpected = probe.load_state_dict(renamed, strict=False)
            assert missing == ["fc.weight", "fc.bias"] and not unexpected
            with torch.no_grad():
                images = pixels("images", 8, 3, 16, 16).double() / 255
                assert torch.equal(model.backbone(images), probe.backbone(images))
                features = formula.digest("features", probe.backbone(images))
            lines = "".join(f"{new} {old}\n" for new, old in sorted(mapping.items()))
            entry = {"features": features, "sha256": hashlib.sha256(lines.encode()).hexdigest()}
            # The deep network's names follow the same rules: its digest is enough.
            names = {"names": mapping} if network == "resnet10" else {}
            mappings[f"{network}-{'dual' if dual_bn else 'single'}"] = entry | names
    write_json(out / "probe/names.json", mappings)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, required=True, help="folder that gets network/, pretrain/, ...")
    out = arguments.parse_args().out
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    write_network(out)
    write_mask(out)
    for part in (write_loss, write_optimizers, write_schedule, write_order, write_steps):
        part(out)
    for part in (write_probe, write_metrics, write_probe_names):
        part(out)
    write_replay(out / "replay")


if __name__ == "__main__":
    main()
