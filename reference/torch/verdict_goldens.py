"""Intervals and p-values by SciPy, for `verdict`: writes fixtures/golden/verdict/statistics.json.

    python reference/torch/verdict_goldens.py --out fixtures/golden/verdict

quantiles    upper points of Student's t
means        t.interval and ttest_1samp of a few values
paired       ttest_rel (one-sided), and the exact sign-flip test by permutation_test
labels       the exact label permutation within splits: permutation_test for one split, all labellings listed for several
welch        tier D: ttest_ind of our five values and of five values with the published mean and deviation, for every number
             of published.csv that has a deviation
tiers        A (ttest_rel), B and C (formulas of VERDICTS.md in NumPy, t.interval)
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
LAMBDA = 1.5


def draws(generator: np.random.Generator, mean: float, deviation: float, *shape: int) -> np.ndarray:
    """As accuracies are: two digits behind the point."""
    return np.round(generator.normal(mean, deviation, shape), 2)


def quantiles() -> list[dict[str, float]]:
    return [
        {"tail": tail, "freedom": freedom, "t": float(stats.t.isf(tail, freedom))}
        for tail in (0.05, 0.025, 0.005, 0.0005)
        for freedom in (1, 2, 3, 4, 4.7, 7.93, 8, 15, 30, 75, 240.5, 1000)
    ]


def ends(interval: Any) -> list[float]:
    low, high = interval
    return [float(low), float(high)]


def means(generator: np.random.Generator) -> list[dict[str, Any]]:
    cases = []
    for n in (2, 3, 5, 12):
        values = draws(generator, 0.4, 1.5, n)
        test = stats.ttest_1samp(values, 0.0)
        scale = stats.sem(values)
        cases.append(
            {
                "values": values.tolist(),
                "interval90": ends(stats.t.interval(0.90, n - 1, loc=values.mean(), scale=scale)),
                "interval95": ends(stats.t.interval(0.95, n - 1, loc=values.mean(), scale=scale)),
                "p_value": float(test.pvalue),
            }
        )
    return cases


def difference_of_means(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(x, axis=axis) - np.mean(y, axis=axis)


def paired(generator: np.random.Generator) -> list[dict[str, Any]]:
    cases = []
    for n in (5, 6, 8):
        left, right = draws(generator, 71.0, 2.0, n), draws(generator, 70.0, 2.0, n)
        flips = stats.permutation_test(
            (left, right), difference_of_means, permutation_type="samples", alternative="greater", n_resamples=np.inf
        )
        test = stats.ttest_rel(left, right, alternative="greater")
        both = stats.ttest_rel(left, right)
        cases.append(
            {
                "left": left.tolist(),
                "right": right.tolist(),
                "p_value": float(test.pvalue),
                "sign_flip": float(flips.pvalue),
                "interval90": ends(both.confidence_interval(0.90)),
            }
        )
    return cases


def listed(left: np.ndarray, right: np.ndarray) -> float:
    """The share of all labellings within splits whose sum of left values is at least as high."""
    both = np.concatenate([left, right], axis=1)
    per_split = [[sum(chosen) for chosen in itertools.combinations(row, left.shape[1])] for row in both.tolist()]
    sums = [sum(choice) for choice in itertools.product(*per_split)]
    return float(np.mean([value >= left.sum() - 1e-9 for value in sums]))


def labels(generator: np.random.Generator) -> list[dict[str, Any]]:
    cases = []
    for splits, seeds in ((1, 4), (1, 5), (2, 3), (3, 2), (4, 2), (5, 2), (3, 3)):
        of_split = generator.normal(0, 3, (splits, 1))
        left = np.round(of_split + draws(generator, 71.0, 1.0, splits, seeds), 2)
        right = np.round(of_split + draws(generator, 70.0, 1.0, splits, seeds), 2)
        if splits == 1:
            test = stats.permutation_test(
                (left[0], right[0]), difference_of_means, alternative="greater", n_resamples=np.inf
            )
            p_value = float(test.pvalue)
        else:
            p_value = listed(left, right)
        cases.append({"left": left.tolist(), "right": right.tolist(), "p_value": p_value})
    return cases


def with_moments(mean: float, deviation: float) -> np.ndarray:
    """Five values with this mean and population deviation."""
    shape = np.array([-1.0, -0.5, 0.25, 0.5, 0.75])
    shape = (shape - shape.mean()) / shape.std()
    return mean + deviation * shape


def welch(generator: np.random.Generator) -> list[dict[str, Any]]:
    cases = []
    with (ROOT / "reference/published.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["deviation"]]
    for row in rows:
        mean, deviation = float(row["mean"]), float(row["deviation"])
        values = draws(generator, mean + 0.5, deviation, 5)
        test = stats.ttest_ind(values, with_moments(mean, deviation), equal_var=False)
        cases.append(
            {
                **{key: row[key] for key in ("suite", "protocol", "method", "pretrain_split", "metric")},
                "values": values.tolist(),
                "difference": float(values.mean() - mean),
                "interval90": ends(test.confidence_interval(0.90)),
                "interval95": ends(test.confidence_interval(0.95)),
                "p_value": float(test.pvalue),
            }
        )
    return cases


def tier(name: str, runs: np.ndarray, difference: float, error: float, freedom: float, **more: Any) -> dict[str, Any]:
    """`runs`: setting, split, seed; the first setting is judged."""
    return {
        "tier": name,
        "runs": runs.tolist(),
        **more,
        "difference": float(difference),
        "interval90": ends(stats.t.interval(0.90, freedom, loc=difference, scale=error)),
        "interval95": ends(stats.t.interval(0.95, freedom, loc=difference, scale=error)),
        "p_value": float(2 * stats.t.sf(abs(difference) / error, freedom)),
    }


def tiers(generator: np.random.Generator) -> list[dict[str, Any]]:
    published, cases = 70.0, []
    for settings, seeds in ((1, 1), (3, 1), (1, 2), (3, 2), (3, 4)):
        of_split = generator.normal(0, 3.3, (1, 5, 1))
        runs = np.round(of_split + draws(generator, 70.4, 1.0, settings, 5, seeds), 2)
        authors = np.round(of_split[0, :, 0] + draws(generator, 70.0, 1.0, 5), 2)
        test = stats.ttest_rel(runs[0].mean(axis=1), authors)
        difference = runs[0].mean() - authors.mean()
        error = difference / test.statistic
        cases.append(tier("A", runs, difference, error, 4, published=published, authors=authors.tolist()))
        if seeds > 1:
            variance = float(np.mean(runs.var(axis=2, ddof=1)))
            error = np.sqrt(variance * (LAMBDA**2 / 5 + 1 / (5 * seeds)))
            freedom = 5 * settings * (seeds - 1)
            cases.append(tier("B", runs, runs[0].mean() - published, error, freedom, published=published))
        elif settings > 1:
            table = runs[:, :, 0]
            residual = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            freedom = 4 * (settings - 1)
            variance = float((residual**2).sum() / freedom)
            error = np.sqrt(variance * (LAMBDA**2 + 1) / 5)
            cases.append(tier("C", runs, runs[0].mean() - published, error, freedom, published=published))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    generator = np.random.default_rng(12)
    goldens = {
        "quantiles": quantiles(),
        "means": means(generator),
        "paired": paired(generator),
        "labels": labels(generator),
        "welch": welch(generator),
        "tiers": tiers(generator),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "statistics.json").write_text(json.dumps(goldens, indent=1) + "\n")


if __name__ == "__main__":
    main()
