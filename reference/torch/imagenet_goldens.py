"""Writes fixtures/golden/imagenet: what Pillow, torchvision and PyTorch make of image files.

    python reference/torch/imagenet_goldens.py --out fixtures/golden/imagenet

OUT receives
  images.bin    made-up image files, end to end
  decoding.json one entry a file: its place in images.bin, and the sha256 of what Pillow decodes, R G B by rows (null
                where Pillow refuses it)
  run.json      a whole linear probe on such files: settings, lists, and what came of each epoch and of the test
  run.safetensors  the classifier that was tested
  sampler.json  the images of each batch that two processes of the published pre-training take together
  views.json    whole pre-training views at 224 px of files of odd, tall and wide sizes, greyscale and CMYK: their places in
                images.bin, the parameters, and the sha256 of the view, C x H x W
  draws.json    the crops and flips that the probe was given, as our addressed generators draw them; copied from the
                committed file (tests/parity_imagenet.rs holds the two together)

The same versions write the same bytes: Pillow 12.2 or older, torchvision 0.26.0, PyTorch 2.11.0."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchvision.transforms import InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms import functional as F

import augment_goldens
import formula
import sdclr_torch as st
from goldens import write_json, write_tensors

DRAWS = Path(__file__).parents[2] / "fixtures/golden/imagenet/draws.json"

PROBE = {
    "network": "resnet50", "width": 4, "classes": 8, "class_counts": [200, 150, 120, 101, 100, 60, 20, 19], "train": 40,
    "validation": 24, "test": 24, "batch": 16, "lr": 2e-4, "momentum": 0.9, "weight_decay": 0.0, "epochs": 6,
    # Epochs after which the published schedule steps; ours names the epochs that begin with the lower rate.
    "steps_after": [2, 4], "validate_every": 2, "resize": 40, "size": 32, "scale": [0.08, 1.0],
    "ratio": [0.75, 4 / 3], "flip_probability": 0.5, "seed": 1,
}


class Pack:
    """Files end to end."""

    def __init__(self) -> None:
        self.bytes = b""

    def add(self, file: bytes) -> dict[str, int]:
        place = {"offset": len(self.bytes), "length": len(file)}
        self.bytes += file
        return place


def picture(name: str, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Slow waves with a little noise: compresses well, and still fills every coefficient."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    phase = formula.bits(name, 4) % np.uint64(97)
    waves = (y * (3 + int(phase[0]) % 5) + x * (2 + int(phase[1]) % 7) + 60 * c + int(phase[2])) % 200
    noise = formula.pixels(name, height, width, channels).numpy() // 6
    return (waves + noise).astype(np.uint8)


def saved(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def patched(file: bytes, marker: bytes, offset: int, old: int, new: int) -> bytes:
    """One byte of the segment that `marker` begins replaced."""
    at = file.index(marker) + offset
    assert file[at] == old, (file[at], old)
    return file[:at] + bytes([new]) + file[at + 1 :]


def decoding_files() -> list[tuple[str, bytes]]:
    rgb = Image.fromarray(picture("decoding", 61, 83))
    square = Image.fromarray(picture("square", 64, 64))
    cmyk = Image.fromarray(picture("cmyk", 40, 56, 4), "CMYK")
    files = [
        (f"{subsampling}, quality {quality}, progressive {progressive}",
         saved(rgb, subsampling=subsampling, quality=quality, progressive=progressive))
        for subsampling in ("4:4:4", "4:2:2", "4:2:0")
        for quality in (30, 92)
        for progressive in (False, True)
    ]
    # The same number of blocks in another arrangement: other subsamplings, which Pillow does not write.
    frame = b"\xff\xc0"
    files += [
        ("4:4:0", patched(saved(square, subsampling="4:2:2"), frame, 11, 0x21, 0x12)),
        ("4:1:1", patched(saved(square, subsampling="4:2:0"), frame, 11, 0x22, 0x41)),
        ("RGB kept", saved(rgb, keep_rgb=True)),
        ("restart markers", saved(rgb, restart_marker_blocks=2)),
        ("grey", saved(rgb.convert("L"))),
        ("grey, progressive", saved(rgb.convert("L"), progressive=True)),
        ("CMYK", saved(cmyk)),
        ("YCCK", patched(saved(cmyk), b"Adobe", 11, 0, 2)),
        ("one pixel", saved(rgb.crop((0, 0, 1, 1)))),
        ("one row", saved(rgb.crop((0, 0, 83, 1)))),
        ("PNG", saved(rgb, "PNG")),
        ("PNG, grey", saved(rgb.convert("L"), "PNG")),
        ("PNG, alpha", saved(Image.fromarray(picture("alpha", 20, 30, 4), "RGBA"), "PNG")),
        ("PNG, palette", saved(rgb.quantize(16), "PNG")),
    ]
    whole = saved(rgb)
    scan = whole.index(b"\xff\xda")
    files += [
        ("without the end marker", whole[:-2]),
        ("half an end marker", whole[:-1]),
        ("without the last quarter", whole[: len(whole) * 3 // 4]),
        ("header alone", whole[: scan + 14]),
        ("cut in the header", whole[: scan // 2]),
        ("more after the end", whole + b"more"),
        ("other bytes in the scan", whole[: scan + 200] + bytes(16) + whole[scan + 216 :]),
        ("a stray end in the scan", whole[: scan + 200] + b"\xff\xd9" + whole[scan + 202 :]),
        ("no table", whole.replace(b"\xff\xc4", b"\xff\xe5")),
        ("progressive, cut", saved(rgb, progressive=True)[:-300]),
        ("PNG, cut", saved(rgb, "PNG")[:-200]),
        ("text", b"<html>not found</html>"),
        ("empty", b""),
    ]
    return files


def decoded(file: bytes) -> Image.Image | None:
    try:
        return Image.open(io.BytesIO(file)).convert("RGB")
    except (OSError, SyntaxError):
        return None


def write_decoding(out: Path, pack: Pack) -> None:
    cases = []
    for name, file in decoding_files():
        image = decoded(file)
        found = image and hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
        size = image and [image.height, image.width]
        cases.append({"name": name, **pack.add(file), "size": size, "sha256": found})
    write_json(out / "decoding.json", cases)


def probe_files(part: str, pack: Pack) -> tuple[list[dict[str, int]], list[int], list[Image.Image]]:
    """Places of files, labels and images: noise over the class's colour and pattern, in sizes of all shapes."""
    count, classes = PROBE[part], PROBE["classes"]
    labels = [int(b % np.uint64(classes)) for b in formula.bits(f"imagenet.{part}.labels", count)]
    # Every class is tested.
    labels[:classes] = range(classes)
    places, images = [], []
    for i, label in enumerate(labels):
        height, width = (34 + int(b % np.uint64(20)) for b in formula.bits(f"imagenet.{part}.{i}.size", 2))
        pattern = picture(f"imagenet.class.{label}", height, width).astype(int)
        colour = formula.pixels(f"imagenet.colour.{label}", 3).numpy().astype(int)
        noise = formula.pixels(f"imagenet.{part}.{i}", height, width, 3).numpy().astype(int)
        mixed = Image.fromarray(((5 * colour + pattern + 2 * noise) // 8).astype(np.uint8))
        file = saved(mixed.convert("L") if i % 7 == 3 else mixed, quality=40, progressive=i % 5 == 2)
        places.append(pack.add(file))
        images.append(Image.open(io.BytesIO(file)).convert("RGB"))
    return places, labels, images


def tested_views(images: list[Image.Image]) -> Tensor:
    resize = Resize(PROBE["resize"])
    views = [st.centre_crop(resize(image), PROBE["size"]) for image in images]
    return torch.stack([F.to_tensor(view) for view in views]).to(torch.get_default_dtype())


def training_views(images: list[Image.Image], drawn: list[list[Any]]) -> Tensor:
    views = []
    for image, (top, left, height, width, flip) in zip(images, drawn, strict=True):
        size = [PROBE["size"]] * 2
        view = F.resized_crop(image, top, left, height, width, size, InterpolationMode.BILINEAR)
        views.append(F.to_tensor(F.hflip(view) if flip else view))
    return torch.stack(views).to(torch.get_default_dtype())


def digest(views: Tensor) -> str:
    """sha256 of the views as 8-bit pixels."""
    return hashlib.sha256((views * 255).round().to(torch.uint8).numpy().tobytes()).hexdigest()


def accuracy(logits: Tensor, labels: list[int], most: int) -> float:
    likely = logits.topk(most, dim=1).indices
    return 100.0 * (likely == torch.tensor(labels)[:, None]).sum().item() / len(labels)


def run_probe(files: dict[str, Any], draws: list[Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The whole probe: train, select by top-5 on the validation files, test once. In torch's default dtype."""
    s = PROBE
    images, labels = ({part: files[part][i] for part in files} for i in (2, 1))
    model = st.ResNet(s["network"], stem="imagenet", width=s["width"], classes=s["classes"])
    formula.fill(model)
    model.eval()
    optimizer = torch.optim.SGD(model.fc.parameters(), s["lr"], momentum=s["momentum"], weight_decay=s["weight_decay"])
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, s["steps_after"], 0.1)
    sampler = DistributedSampler(range(s["train"]), num_replicas=1, rank=0, shuffle=True, seed=0)
    held_out = {part: tested_views(images[part]) for part in ("validation", "test")}
    epochs, by_top5, by_top1, states = [], [], [], {}
    for epoch in range(1, s["epochs"] + 1):
        sampler.set_epoch(epoch)
        order = list(sampler)
        views = training_views(images["train"], draws[epoch - 1])
        rate = optimizer.param_groups[0]["lr"]
        batches = st.train_probe_epoch(
            model.backbone, model.fc, optimizer, views, torch.tensor(labels["train"]), order, s["batch"]
        )
        schedule.step()
        sizes = [len(order[start : start + s["batch"]]) for start in range(0, len(order), s["batch"])]
        loss = sum(loss * size for loss, size in zip(batches, sizes)) / len(order)
        top5 = None
        if epoch % s["validate_every"] == 0:
            with torch.no_grad():
                logits = model(held_out["validation"])
            top5 = accuracy(logits, labels["validation"], 5)
            by_top5.append((epoch, top5))
            by_top1.append((epoch, accuracy(logits, labels["validation"], 1)))
            states[epoch] = {name: value.detach().clone() for name, value in model.fc.named_parameters()}
        epochs.append({"loss": loss, "lr": rate, "order": order, "views": digest(views), "validation_accuracy": top5})
    best_epoch, best_accuracy = st.select_best(by_top5)
    assert st.select_best(by_top1)[0] != best_epoch, f"top-1 would choose alike: {by_top1}, {by_top5}"
    model.fc.load_state_dict(states[best_epoch])
    with torch.no_grad():
        predicted = model(held_out["test"]).argmax(1)
    per_class = st.per_class_accuracy(predicted, torch.tensor(labels["test"]), s["classes"])
    groups = {"many": range(4), "medium": range(4, 7), "few": range(7, 8)}  # over 100, 20 to 100, under 20
    parts = {part: {"files": files[part][0], "labels": labels[part]} for part in files}
    return {
        "settings": s, **parts, "held_out_views": {part: digest(views) for part, views in held_out.items()},
        "epochs": epochs, "best_epoch": best_epoch, "best_validation_accuracy": best_accuracy, "per_class": per_class,
        **st.metrics(per_class, {name: list(members) for name, members in groups.items()}),
    }, states[best_epoch]


def write_probe(out: Path, pack: Pack) -> None:
    files = {part: probe_files(part, pack) for part in ("train", "validation", "test")}
    draws = json.loads(DRAWS.read_text())
    found, tensors = run_probe(files, draws)
    # Accuracies must not hang on rounding: float32, in which we train probes, gives the same.
    torch.set_default_dtype(torch.float32)
    single, _ = run_probe(files, draws)
    torch.set_default_dtype(torch.float64)
    for key in ("per_class", "best_epoch", "best_validation_accuracy"):
        assert single[key] == found[key], f"{key} depends on rounding"
    write_json(out / "run.json", found)
    write_tensors(out / "run.safetensors", tensors)
    (out / "draws.json").write_bytes(DRAWS.read_bytes())


def sampled_batches(images: int, world: int, batch: int, epoch: int) -> list[list[int]]:
    """The images of each global batch, sorted: of every process its own part, as DistributedSampler gives it."""
    ranks = []
    for rank in range(world):
        sampler = DistributedSampler(range(images), num_replicas=world, rank=rank, shuffle=True, seed=0)
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
    own = batch // world
    return [
        sorted(image for rank in ranks for image in rank[start : start + own]) for start in range(0, len(ranks[0]), own)
    ]


def write_sampler(out: Path) -> None:
    cases = []
    # ImageNet-100-LT as published and by one process; a number that does not divide the images; fewer images than processes.
    for images, world, batch in ((12205, 2, 256), (12205, 1, 256), (101, 3, 12), (3, 8, 8)):
        for epoch in (1, 2, 500):
            batches = sampled_batches(images, world, batch, epoch)
            text = json.dumps(batches, separators=(",", ":"))
            sizes = [len(batch) for batch in batches]
            cases.append({
                "images": images, "world": world, "batch": batch, "epoch": epoch, "entries": sum(sizes),
                "last": sizes[-1], "sha256": hashlib.sha256(text.encode()).hexdigest(),
            })
    write_json(out / "sampler.json", cases)


def view_files() -> list[tuple[str, bytes]]:
    def rgb(name: str, height: int, width: int) -> Image.Image:
        return Image.fromarray(picture(name, height, width))

    return [
        ("odd", saved(rgb("views.odd", 199, 301))),
        ("odd, progressive", saved(rgb("views.progressive", 333, 223), quality=50, progressive=True)),
        ("greyscale", saved(rgb("views.grey", 133, 97).convert("L"))),
        ("CMYK", saved(Image.fromarray(picture("views.cmyk", 161, 240, 4), "CMYK"), quality=50)),
        ("tall", saved(rgb("views.tall", 601, 41), quality=50)),
        ("wide", saved(rgb("views.wide", 31, 513), quality=50)),
        ("as large as a view", saved(rgb("views.square", 224, 224), quality=50)),
        ("tiny", saved(rgb("views.tiny", 3, 5))),
        ("PNG", saved(rgb("views.png", 40, 57), "PNG")),
    ]


def write_views(out: Path, pack: Pack) -> None:
    """Three views of each file: all operations and the blur, without it, and as drawn."""
    crop_of, lcg = RandomResizedCrop.get_params, augment_goldens.Lcg(31)
    torch.manual_seed(31)
    cases = []
    for name, file in view_files():
        place, image = pack.add(file), decoded(file)
        for number in range(3):
            operation = augment_goldens.random_view(lcg, image.height, image.width, 224, blur=True)
            params = operation["params"]
            params["crop"] = dict(zip(augment_goldens.CROP, crop_of(image, [0.08, 1.0], [0.75, 4 / 3])))
            if number < 2:
                params["jitter"] = augment_goldens.random_jitter(lcg, augment_goldens.ORDERS[lcg.below(24)])
                params["blur"] = lcg.uniform(0.1, 2.0) if number == 0 else None
            view = augment_goldens.to_bytes(augment_goldens.apply_view(image, params, 224))
            cases.append({"name": name, **place, "params": params, "sha256": hashlib.sha256(view).hexdigest()})
    write_json(out / "views.json", cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    pack = Pack()
    write_decoding(out, pack)
    write_probe(out, pack)
    write_sampler(out)
    write_views(out, pack)
    (out / "images.bin").write_bytes(pack.bytes)


if __name__ == "__main__":
    main()
