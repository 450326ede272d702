"""Folder names and logs as the authors published them (REFERENCE.md "Recipes published" and "Metrics"), for programs that
make miniatures of their files. Facts about names and line formats; the numbers come from the caller."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PARENTS = {
    "cifar10": ("checkpoints", "checkpoints_tune"),
    "cifar100": ("checkpoints_cifar100", "checkpoints_cifar100_tune"),
    "imagenet100": ("checkpoints_imagenet", "checkpoints_imagenet_tune"),
    "imagenet": ("checkpoints_imagenet", "checkpoints_imagenet_tune"),
}
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet100": 100, "imagenet": 1000}


def pretrain_name(dataset: str, method: str, chosen: str, split: int) -> str:
    pruned = method == "sdclr"
    match dataset:
        case "cifar10":
            name = f"res18_scheduling_sgd_temp0.2_wd1e-4_lr0.5_b512_twolayerProj_epoch2000_split{split}_{chosen}_newNT_s10"
            return name + "_pruneP0.9DualBN" * pruned
        case "cifar100":
            head = "res18_cifar100_scheduling_sgd_temp0.2_wd1e-4_lr0.5_b512_o128_twolayerProj_epoch2000"
            return f"{head}_cifar100_split{split}_{chosen}_newNT_s10" + "_pruneP0.9DualBN" * pruned
        case "imagenet100":
            kind = {"D_i": "LT", "D_b": "BL"}[chosen]
            temperature = "0.3" if pruned else "0.2"
            name = f"imageNet_100_{kind}_train_res50_scheduling_sgd_lr0.5_temp{temperature}_epoch500_batch256"
            return name + "_pruneP0.3DualBN" * pruned
        case "imagenet":
            kind = {"D_i": "LT", "D_b": "BL"}[chosen]
            return f"imageNet_{kind}_exp_train_res50_scheduling_sgd_lr0.5_temp0.2_epoch500_batch256"
    raise ValueError(dataset)


def probe_name(dataset: str, method: str, chosen: str, protocol: str, split: int) -> str:
    tails = {
        ("cifar10", "full"): "f2layer4_d10d20_wd0_lr30_freezeBN",
        ("cifar100", "full"): "f2layer4_d10d20_wd0_lr30_freezeBN",
        ("cifar10", "few"): f"split{split}_S_b_f2layer4_d40d60_wd0_lr30_freezeBN",
        ("cifar100", "few"): f"cifar100_split{split}_S_b_f2layer4_d40d60_wd0_lr30_freezeBN",
        ("imagenet100", "full"): "lr30_wd0_epoch30_b512_d10d20_s1",
        ("imagenet", "full"): "lr30_wd0_epoch30_b512_d10d20",
        ("imagenet100", "few"): "imageNet_100_sub_balance_train_0.01_lr30_fix2layer4_wd0_epoch30_b512_d10d20",
        ("imagenet", "few"): "imageNet_sub_balance_train_0.01_lr30_fix2layer4_wd0_epoch30_b512_d10d20",
    }
    return f"{pretrain_name(dataset, method, chosen, split)}__{tails[dataset, protocol]}"


def class_line(dataset: str, per_class: Sequence[float], prefix: str = "") -> str:
    """Accuracies in [0, 1]; CIFAR's logs have per cent to two places, ImageNet's fractions to four digits."""
    if dataset.startswith("cifar"):
        return f"{prefix}Each class acc is " + "".join(f"{100 * value:.2f} " for value in per_class)
    return "acc per class is " + "".join(f"{float(value):.4} " for value in per_class)


def result_block(dataset: str, per_class: Sequence[float], images: int, top5: float = 0.0) -> list[str]:
    """The lines that the test at a probe's end leaves; `images` test images, as many of each class."""
    right = round(sum(per_class) / len(per_class) * images)
    if dataset.startswith("cifar"):
        return [
            f"Test: Average loss: 1.2345, Accuracy: {right}/{images} ({100 * right / images:.0f}%)",
            class_line(dataset, per_class),
            f"On the best_model, test tacc is {right / images * 100}",
        ]
    return [
        class_line(dataset, per_class),
        f"test: Average loss: 1.2345, Accuracy: top1 ({100 * right / images:.2f}%) top5 ({top5:.2f}%)",
        f"On the best_model, test top5 tacc is {top5}",
    ]


def validation_block(dataset: str, epoch: int, per_class: Sequence[float]) -> list[str]:
    if dataset.startswith("cifar"):
        return [
            "Training: Average loss: 1.1000, Accuracy: 27000/45000 (60%)",
            f"Epoch: {epoch} Test: Average loss: 1.2000, Accuracy: 2900/5000 (58%)",
            class_line(dataset, per_class, f"Epoch: {epoch} "),
        ]
    rule = "=" * 64
    return [rule, class_line(dataset, per_class), "vali: Average loss: 1.2000, Accuracy: top1 (40.00%) top5 (70.00%)", rule]


def training(dataset: str, validations: Sequence[Sequence[float]]) -> list[str]:
    """From the arguments to the last epoch, one validation each."""
    lines = [f"Namespace(dataset='{dataset}', lr=30.0, weight_decay=0.0)", "read checkpoint model.pt"]
    for epoch, per_class in enumerate(validations, 1):
        lines.append(f"current lr is {30.0 * 0.1 ** (epoch > 1)}")
        lines.append(f"Train Epoch: {epoch} [0/45000 (0%)]\tLoss: 2.302585\tData time: 0.100\tTotal time: 0.200")
        lines += validation_block(dataset, epoch, per_class)
    return lines


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """The same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name], compresslevel=9)
    path.write_bytes(buffer.getvalue())
