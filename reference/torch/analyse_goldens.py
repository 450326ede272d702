"""Logs in the published style and what NumPy makes of them: goldens for `sdclr analyse`.

    python reference/torch/analyse_goldens.py --out fixtures/golden/analyse

logs.zip       the run folders under their published parents, each with its log.txt
expected.json  one entry per question: which logs, how they are read, and the summary
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

import published_style as style

COUNTS = Path(__file__).resolve().parents[2] / "fixtures/class_counts.csv"
LISTS = {
    "cifar10": "cifar10_imbSub_with_subsets/split{}_D_i.npy",
    "cifar100": "cifar100_imbSub_with_subsets/cifar100_split{}_D_i.npy",
    "imagenet100": "imagenet-100/imageNet_100_LT_train.txt",
}
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet100": 5_000}
SPLITS = {"cifar10": 5, "cifar100": 5, "imagenet100": 1}
# Dataset, method, pre-training list, probe, and the splits whose model was tested again: soon after ("again") or after
# another training ("anew").
QUESTIONS = [
    ("cifar10", "sdclr", "D_i", "full", {}),
    ("cifar10", "simclr", "D_b", "few", {2: "again", 4: "anew"}),
    ("cifar100", "sdclr", "D_i", "full", {5: "again"}),
    ("imagenet100", "simclr", "D_i", "full", {}),
    ("imagenet100", "sdclr", "D_i", "few", {1: "again"}),
]


def class_counts() -> dict[str, np.ndarray]:
    with COUNTS.open() as file:
        return {row["list"]: np.array(row["counts"].split(), dtype=np.int64) for row in csv.DictReader(file)}


def accuracies(rng: np.random.Generator, dataset: str) -> np.ndarray:
    """Whole numbers of a class's test images that are right, as fractions; with an all-right and an all-wrong class."""
    classes = style.CLASSES[dataset]
    images = TEST_IMAGES[dataset] // classes
    right = rng.integers(images // 3, images, classes)
    right[rng.permutation(classes)[:2]] = [images, 0]
    return right / images


def as_logged(dataset: str, per_class: np.ndarray) -> np.ndarray:
    """Per cent, after the rounding of the log's line."""
    words = style.class_line(dataset, per_class).split()[4:]
    return np.array(words, dtype=np.float64) * (1 if dataset.startswith("cifar") else 100)


def make_log(rng: np.random.Generator, dataset: str, tested: str | None) -> tuple[str, list[np.ndarray], list[np.ndarray]]:
    """A log, the result that counts, and the results that the published script reads."""
    results = [accuracies(rng, dataset) for _ in range(2 if tested else 1)]
    blocks = [style.result_block(dataset, result, TEST_IMAGES[dataset], 87.5) for result in results]
    course = style.training(dataset, [accuracies(rng, dataset) for _ in range(4)])
    lines = course + blocks[0]
    if tested == "anew":
        lines += course
    if tested:
        lines += [f"Namespace(dataset='{dataset}', test_only=True)", *blocks[1]]
    logged = [as_logged(dataset, result) for result in results]
    # The script takes all blocks among CIFAR's last 20 lines, but of ImageNet only what lies in the last 5.
    read = logged if tested == "again" and dataset.startswith("cifar") else logged[-1:]
    return "\n".join(lines) + "\n", logged[-1:], read


def scores(dataset: str, blocks: list[np.ndarray], counts: np.ndarray) -> dict[str, float]:
    """The numbers of one log: All over everything that was read, the groups from its first part."""
    values = np.concatenate(blocks)
    if dataset.startswith("cifar"):
        order, third = np.argsort(counts), len(counts) // 3
        groups = {"many": order[2 * third :], "medium": order[third : 2 * third], "few": order[:third]}
    else:
        groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
        groups = {name: np.nonzero(members)[0] for name, members in groups.items()}
    means = {name: np.mean(values[members]) for name, members in groups.items()}
    deviation = np.std(np.array(list(means.values())) / 100)
    return {"all": np.mean(values), "class_std": np.std(values / 100), "group_std": deviation, **means}


def summary(per_split: list[dict[str, float]]) -> dict[str, dict[str, float | list[float]]]:
    columns = {key: np.array([row[key] for row in per_split]) for key in per_split[0]}
    return {
        key: {"mean": float(np.mean(values)), "std": float(np.std(values)), "per_split": values.tolist()}
        for key, values in columns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    facts = class_counts()
    rng = np.random.default_rng(7)
    files: dict[str, bytes] = {}
    expected = []
    for dataset, method, chosen, protocol, tested in QUESTIONS:
        last, as_script = [], []
        for split in range(1, SPLITS[dataset] + 1):
            text, counting, read = make_log(rng, dataset, tested.get(split))
            folder = style.probe_name(dataset, method, chosen, protocol, split)
            files[f"{style.PARENTS[dataset][1]}/{folder}/log.txt"] = text.encode()
            counts = facts[LISTS[dataset].format(split)]
            last.append(scores(dataset, counting, counts))
            as_script.append(scores(dataset, read, counts))
        question = {"dataset": dataset, "method": method, "pretrain_split": chosen, "protocol": protocol}
        expected.append({**question, "strict_original": False, "warnings": len(tested), "summary": summary(last)})
        expected.append({**question, "strict_original": True, "summary": summary(as_script)})
    style.write_zip(out / "logs.zip", files)
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
