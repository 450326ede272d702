"""Compares freshly made fixtures with the committed ones: python reference/torch/compare.py FRESH COMMITTED.

Every file that FRESH holds must be in COMMITTED with the same bytes. Where bytes depend on the machine (its BLAS rounds
sums in another order), numbers of JSON files may differ by 1e-9 relative, tensors of safetensors files by 1e-9 of
the tensor's largest value (bf16.safetensors: a quarter); 1e-12 absolutely in both. Integers, names, shapes and text must
agree. Of zip archives the entries are compared."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

RELATIVE, ABSOLUTE = 1e-9, 1e-12
# In bfloat16 another order of summation moves a value by whole steps of 2^-8, and the next layer by more: AVX2 and AVX-512
# differ by 0.1 of the largest gradient.
BF16 = 0.25


def json_difference(fresh: Any, committed: Any, where: str = "") -> str | None:
    """The first difference in words, or None."""
    if isinstance(fresh, float) and isinstance(committed, float):
        near = math.isclose(fresh, committed, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    elif isinstance(fresh, dict) and isinstance(committed, dict):
        if list(fresh) != list(committed):
            return f"{where or 'top level'}: keys {list(fresh)[:8]}, committed {list(committed)[:8]}"
        return next((d for key in fresh if (d := json_difference(fresh[key], committed[key], f"{where}.{key}"))), None)
    elif isinstance(fresh, list) and isinstance(committed, list):
        if len(fresh) != len(committed):
            return f"{where}: {len(fresh)} entries, committed {len(committed)}"
        pairs = enumerate(zip(fresh, committed))
        return next((d for i, (a, b) in pairs if (d := json_difference(a, b, f"{where}[{i}]"))), None)
    else:
        near = type(fresh) is type(committed) and fresh == committed
    return None if near else f"{where}: {fresh!r}, committed {committed!r}"


def tensor_difference(
    fresh: dict[str, np.ndarray], committed: dict[str, np.ndarray], relative: float
) -> str | None:
    if sorted(fresh) != sorted(committed):
        return f"names {sorted(set(fresh) ^ set(committed))[:8]} are in only one of the two"
    for name, values in fresh.items():
        old = committed[name]
        if values.shape != old.shape or values.dtype != old.dtype:
            return f"{name}: {values.dtype} {values.shape}, committed {old.dtype} {old.shape}"
        if values.dtype.kind != "f":
            if not np.array_equal(values, old):
                return f"{name}: values differ"
            continue
        apart = float(np.abs(values - old).max(initial=0.0))
        if not apart <= relative * float(np.abs(old).max(initial=0.0)) + ABSOLUTE:
            return f"{name}: values differ by up to {apart:.3e}"
    return None


def archive_difference(fresh: Path, committed: Path) -> str | None:
    """Compressors differ: what counts is what an archive unpacks to."""
    with zipfile.ZipFile(fresh) as new, zipfile.ZipFile(committed) as old:
        names = sorted(new.namelist())
        if names != sorted(old.namelist()):
            return f"entries {sorted(set(names) ^ set(old.namelist()))[:8]} are in only one of the two"
        changed = [name for name in names if new.read(name) != old.read(name)]
    return f"{changed[0]} and {len(changed) - 1} other entries differ" if changed else None


def difference(fresh: Path, committed: Path) -> str | None:
    if not committed.exists():
        return "is not committed"
    if fresh.read_bytes() == committed.read_bytes():
        return None
    match fresh.suffix:
        case ".json":
            return json_difference(json.loads(fresh.read_text()), json.loads(committed.read_text()))
        case ".safetensors":
            relative = BF16 if fresh.stem == "bf16" else RELATIVE
            return tensor_difference(load_file(fresh), load_file(committed), relative)
        case ".zip":
            return archive_difference(fresh, committed)
    return "bytes differ"


def main() -> None:
    fresh, committed = map(Path, sys.argv[1:3])
    files = sorted(path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file())
    found = {file: text for file in files if (text := difference(fresh / file, committed / file))}
    # In a folder that the programs write, a file that they no longer write is stale.
    folders = {file.parent for file in files}
    present = (path for folder in folders for path in (committed / folder).glob("*") if path.is_file())
    stale = {path.relative_to(committed) for path in present if path.name != "README.md"} - set(files)
    found |= {file: "is no longer made" for file in stale}
    for file, text in sorted(found.items()):
        print(f"{committed / file}: {text}")
    if found:
        sys.exit(f"{len(found)} of {len(files)} files differ; if that is meant, run ci/oracle --write and commit")
    print(f"no difference ({len(files)} files)")


if __name__ == "__main__":
    main()
