"""Golden outputs of every augmentation operation, computed by torchvision on 8-bit PIL images.

    python augment_goldens.py --out DIR [--data DATA]

DIR receives
  cases.json   one entry per case: the image (a formula, see `pixels`), the operation, its parameters, and the sha256
               of the output's bytes in C x H x W order; `offset` where the output itself is kept
  outputs.npy  the kept outputs (small images), uint8, end to end
  cifar10.json, imagenet.json
               with --data only: the same for real files, digests alone

The same versions write the same bytes: torchvision 0.26.0 and Pillow up to 12.2 (13 changes the order of the passes).
"""

import argparse
import hashlib
import json
import pathlib

import numpy as np
import PIL
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F
from torchvision.transforms import InterpolationMode as Mode

from sdclr_torch import centre_crop

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
ADJUST = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}
CROP = ("top", "left", "height", "width")
ORDERS = [
    (a, b, c, d)
    for a in OPERATIONS
    for b in OPERATIONS
    for c in OPERATIONS
    for d in OPERATIONS
    if len({a, b, c, d}) == 4
]
# Outputs up to this many bytes are kept, so that a failing test can say which pixels differ.
KEPT_BYTES = 800


class Lcg:
    """Knuth's MMIX generator: the Rust test has the same six lines."""

    def __init__(self, seed):
        self.state = seed

    def byte(self):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return self.state >> 56

    def unit(self):
        return sum(self.byte() << (8 * i) for i in range(6)) / 2**48

    def uniform(self, low, high):
        return low + (high - low) * self.unit()

    def below(self, count):
        return int(self.unit() * count)


def pixels(kind, height, width, seed):
    """A generated image, uint8 [height, width, 3]."""
    c, y, x = np.meshgrid(np.arange(3), np.arange(height), np.arange(width), indexing="ij")
    if kind == "noise":
        lcg = Lcg(seed)
        values = np.array([lcg.byte() for _ in range(3 * height * width)]).reshape(3, height, width)
    elif kind == "ramp":
        values = x * (2 + seed) + y * (3 + c) + 40 * c
    elif kind == "edges":
        values = ((x // (3 + c) + y // 5 + seed) % 2) * 255
    elif kind == "constant":
        values = 0 * x + seed * (1 + c)
    elif kind == "halves":  # mean of L exactly seed + 0.5
        values = seed + (x + y) % 2 + 0 * c
    return (values % 256).astype(np.uint8).transpose(1, 2, 0)


def to_bytes(image):
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).tobytes()


def apply_view(image, view, size):
    crop = view["crop"]
    image = F.resized_crop(image, crop["top"], crop["left"], crop["height"], crop["width"], [size, size], Mode.BICUBIC)
    if view["flip"]:
        image = F.hflip(image)
    if view["jitter"]:
        for name in view["jitter"]["order"]:
            image = ADJUST[name](image, view["jitter"][name])
    if view["grayscale"]:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    if view["blur"] is not None:
        image = image.filter(ImageFilter.GaussianBlur(radius=view["blur"]))
    return image


def apply(image, operation):
    name = operation["name"]
    if name == "adjust":
        return ADJUST[operation["operation"]](image, operation["factor"])
    if name == "view":
        return apply_view(image, operation["params"], operation["size"])
    if name == "resized_crop":
        crop, size = operation["params"]["crop"], operation["size"]
        image = F.resized_crop(image, *(crop[key] for key in CROP), [size, size], Mode.BILINEAR)
        return F.hflip(image) if operation["params"]["flip"] else image
    if name == "pad_crop_flip":
        padded = F.pad(image, operation["padding"], fill=0)
        image = F.crop(padded, operation["top"], operation["left"], image.height, image.width)
        return F.hflip(image) if operation["flip"] else image
    if name == "resize_centre_crop":
        return centre_crop(F.resize(image, operation["short"], Mode.BILINEAR), operation["size"])
    raise ValueError(name)


def adjust(operation, factor):
    return {"name": "adjust", "operation": operation, "factor": factor}


def view(crop, size, flip=False, jitter=None, grayscale=False, blur=None):
    crop = dict(zip(CROP, crop))
    params = {"crop": crop, "flip": flip, "jitter": jitter, "grayscale": grayscale, "blur": blur}
    return {"name": "view", "size": size, "params": params}


def random_jitter(lcg, order):
    factors = {name: lcg.uniform(0.6, 1.4) for name in OPERATIONS[:3]}
    return {"order": list(order), **factors, "hue": lcg.uniform(-0.1, 0.1)}


def random_view(lcg, height, width, size, order=None, blur=False):
    crop_height, crop_width = 1 + lcg.below(height), 1 + lcg.below(width)
    crop = (lcg.below(height - crop_height + 1), lcg.below(width - crop_width + 1), crop_height, crop_width)
    jitter = random_jitter(lcg, order or ORDERS[lcg.below(24)]) if order or lcg.unit() < 0.8 else None
    sigma = lcg.uniform(0.1, 2.0) if blur and lcg.unit() < 0.5 else None
    return view(crop, size, lcg.unit() < 0.5, jitter, lcg.unit() < 0.2, sigma)


def random_resized_crop(lcg, image_height, image_width, size):
    height, width = 1 + lcg.below(image_height), 1 + lcg.below(image_width)
    crop = (lcg.below(image_height - height + 1), lcg.below(image_width - width + 1), height, width)
    return {"name": "resized_crop", "size": size, "params": {"crop": dict(zip(CROP, crop)), "flip": lcg.unit() < 0.5}}


def random_shift(lcg, padding):
    top, left = lcg.below(2 * padding + 1), lcg.below(2 * padding + 1)
    return {"name": "pad_crop_flip", "padding": padding, "top": top, "left": left, "flip": lcg.unit() < 0.5}


def resize_cases():
    for kind, seed in (("noise", 1), ("ramp", 3), ("edges", 0), ("constant", 85)):
        for crop in ((0, 0, 32, 32), (0, 0, 10, 10), (5, 7, 27, 21), (31, 31, 1, 1), (3, 0, 1, 32), (0, 9, 32, 2)):
            for size, flip in ((32, False), (16, True), (7, False)):
                yield (kind, 32, 32, seed), view(crop, size, flip)
    for height, width, crop, size in (
        (1, 1, (0, 0, 1, 1), 5),
        (33, 47, (0, 0, 33, 47), 32),
        (33, 47, (2, 3, 30, 19), 1),
        (224, 224, (0, 0, 224, 224), 224),
        (224, 224, (11, 3, 97, 201), 224),
        (197, 223, (0, 0, 197, 223), 224),
        (375, 500, (20, 31, 331, 402), 224),
        (500, 375, (0, 0, 500, 375), 224),
        (500, 333, (100, 100, 60, 47), 224),
        (500, 20, (0, 0, 500, 20), 32),
    ):
        for kind, seed in (("noise", 2), ("edges", 1)):
            yield (kind, height, width, seed), view(crop, size)


def colour_cases():
    factors = (0.0, 0.25, 0.6, 0.6180339887498949, 0.9999999999999999, 1.0, 1.0000001, 1.1234567891234567, 1.4, 2.0, 7.5)
    turns = (-0.5, -0.1, -0.0784313725, -0.0039, 0.0, 0.00392156862745098, 0.01, 0.0333333, 0.1, 0.2509, 0.5)
    images = (("noise", 17, 19, 3), ("ramp", 17, 19, 5), ("edges", 9, 16, 0), ("constant", 4, 4, 60), ("constant", 4, 4, 0))
    for image in images:
        for operation in OPERATIONS:
            for factor in turns if operation == "hue" else factors:
                yield image, adjust(operation, factor)
    for seed in (0, 99, 254):
        yield ("halves", 8, 8, seed), adjust("contrast", 0.7)
        yield ("halves", 7, 7, seed), adjust("contrast", 1.3)
    lcg = Lcg(4)
    for operation in OPERATIONS:
        for _ in range(6):
            factor = lcg.uniform(-0.1, 0.1) if operation == "hue" else lcg.uniform(0.6, 1.4)
            yield ("noise", 223, 224, 5), adjust(operation, factor)
    for operation, factor in (
        ("hue", 0.0),
        ("hue", 0.1),
        ("hue", -0.07),
        ("hue", 0.5),
        ("saturation", 0.0),
        ("saturation", 0.6),
        ("saturation", 1.3999),
        ("brightness", 1.2345),
    ):
        yield ("colours", 4096, 4096, 0), adjust(operation, factor)


def filter_cases():
    sigmas = (0.0, 0.1, 0.3, 0.5, 0.77, 1.0, 1.2, 1.41, 1.5, 1.9, 2.0, 3.3, 8.0)
    for image in (("noise", 16, 16, 6), ("edges", 20, 20, 1), ("noise", 1, 1, 7), ("noise", 3, 3, 8)):
        for sigma in sigmas:
            yield image, view((0, 0, *image[1:3]), image[1], blur=sigma)
        yield image, view((0, 0, *image[1:3]), image[1], grayscale=True)
    for sigma in sigmas:
        yield ("noise", 224, 224, 9), view((0, 0, 224, 224), 224, blur=sigma)
    yield ("noise", 224, 224, 9), view((0, 0, 224, 224), 224, grayscale=True, blur=2.0)


def composed_cases():
    lcg = Lcg(10)
    for kind, seed in (("noise", 11), ("ramp", 1), ("edges", 0)):
        for order in ORDERS:
            yield (kind, 32, 32, seed), random_view(lcg, 32, 32, 20, order)
            yield (kind, 32, 32, seed), random_view(lcg, 32, 32, 32, order)
    for order in ORDERS:
        yield ("noise", 224, 224, 12), random_view(lcg, 224, 224, 224, order, blur=True)
    for height, width in ((375, 500), (500, 375), (281, 500), (97, 131)):
        for _ in range(4):
            yield ("noise", height, width, 13), random_view(lcg, height, width, 224, blur=True)


def probe_cases():
    lcg = Lcg(14)
    for top, left, flip in ((0, 0, False), (8, 8, True), (4, 4, False), (4, 4, True), (0, 8, True), (8, 0, False)):
        shift = {"name": "pad_crop_flip", "padding": 4, "top": top, "left": left, "flip": flip}
        yield ("noise", 32, 32, 15), shift
    for padding, image in ((0, ("ramp", 5, 9, 1)), (1, ("noise", 7, 7, 16)), (4, ("noise", 32, 32, 17))):
        for _ in range(4):
            yield image, random_shift(lcg, padding)
    for height, width in ((375, 500), (500, 375), (256, 256), (256, 341), (342, 256), (225, 300), (333, 500), (64, 91), (91, 64)):
        yield ("noise", height, width, 18), {"name": "resize_centre_crop", "short": 256, "size": 224}
    for height, width in ((20, 21), (20, 23), (25, 20), (27, 20), (20, 20), (40, 57)):
        yield ("noise", height, width, 19), {"name": "resize_centre_crop", "short": 20, "size": 16}
        yield ("edges", height, width, 0), {"name": "resize_centre_crop", "short": 9, "size": 8}


def resized_crop_cases():
    lcg = Lcg(22)
    for kind, height, width, size in (
        ("noise", 375, 500, 224), ("noise", 500, 333, 224), ("edges", 97, 131, 224), ("ramp", 64, 64, 224),
        ("noise", 33, 47, 20), ("edges", 20, 20, 20), ("noise", 1, 30, 8), ("noise", 1, 1, 5), ("noise", 40, 1, 1),
    ):
        for _ in range(6):
            yield (kind, height, width, 23), random_resized_crop(lcg, height, width, size)


def all_colours():
    values = np.arange(2**24, dtype=np.uint32)
    return np.stack([values >> 16, values >> 8 & 255, values & 255], -1).astype(np.uint8).reshape(4096, 4096, 3)


def generated_cases():
    images = {}
    cases, kept = [], b""
    for generate in (resize_cases, colour_cases, filter_cases, composed_cases, probe_cases, resized_crop_cases):
        for (kind, height, width, seed), operation in generate():
            key = (kind, height, width, seed)
            if key not in images:
                images[key] = Image.fromarray(all_colours() if kind == "colours" else pixels(*key))
            output = to_bytes(apply(images[key], operation))
            image = {"kind": kind, "height": height, "width": width, "seed": seed}
            offset = len(kept) if len(output) <= KEPT_BYTES else None
            if offset is not None:
                kept += output
            cases.append({"image": image, **operation, "sha256": hashlib.sha256(output).hexdigest(), "offset": offset})
    return cases, np.frombuffer(kept, np.uint8)


def real_cases(data):
    """Digests for the first 200 CIFAR-10 training images and for ImageNet files found under `data`."""
    lcg = Lcg(20)
    records = np.fromfile(data / "cifar-10-batches-bin" / "data_batch_1.bin", np.uint8).reshape(-1, 3073)
    cifar = []
    for index in range(200):
        image = Image.fromarray(records[index, 1:].reshape(3, 32, 32).transpose(1, 2, 0))
        for operation in (random_view(lcg, 32, 32, 32), *([random_shift(lcg, 4)] if index % 5 == 0 else [])):
            digest = hashlib.sha256(to_bytes(apply(image, operation))).hexdigest()
            cifar.append({"index": index, **operation, "sha256": digest})
    imagenet = []
    root = data / "imagenet-sample"
    files = [path for folder in sorted(root.iterdir()) if folder.is_dir() for path in sorted(folder.rglob("*.JPEG"))[::30]]
    # Greyscale files too, which are rare; the probe's crops come from a stream of their own.
    files += [path for path in sorted(root.rglob("*.JPEG")) if path not in files and Image.open(path).mode != "RGB"]
    crops = Lcg(24)
    for path in files:
        image = Image.open(path).convert("RGB")
        decoded = hashlib.sha256(to_bytes(image)).hexdigest()
        operations = [random_view(lcg, image.height, image.width, 224, blur=True)]
        if min(image.size) >= 64:
            operations.append({"name": "resize_centre_crop", "short": 256, "size": 224})
        operations.append(random_resized_crop(crops, image.height, image.width, 224))
        for operation in operations:
            digest = hashlib.sha256(to_bytes(apply(image, operation))).hexdigest()
            imagenet.append({"file": str(path.relative_to(data)), "decoded": decoded, **operation, "sha256": digest})
    return {"cifar10": cifar, "imagenet": imagenet}


def write_json(path, entries):
    """One entry a line: small, and readable in a diff."""
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    path.write_text(f"[\n{lines}\n]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path)
    arguments = parser.parse_args()
    if int(PIL.__version__.split(".")[0]) > 12:
        raise SystemExit(f"Pillow {PIL.__version__} resizes in another order: use 12.2 or older")
    arguments.out.mkdir(parents=True, exist_ok=True)
    cases, kept = generated_cases()
    write_json(arguments.out / "cases.json", cases)
    np.save(arguments.out / "outputs.npy", kept)
    if arguments.data:
        for name, entries in real_cases(arguments.data).items():
            write_json(arguments.out / f"{name}.json", entries)


if __name__ == "__main__":
    main()
