"""Writes small PyTorch checkpoints as training runs leave them, each beside its tensors as safetensors.

    python reference/torch/checkpoint_goldens.py --out fixtures/golden/checkpoint

NAME.pt is what is read, NAME.safetensors what must come out (tensors contiguous, on the CPU), expected.json the epoch
and the names in their order. A second run writes the same bytes.
"""

import argparse
import collections
import io
import json
import pathlib
import pickle
import struct
import warnings
import zipfile

import numpy
import safetensors.torch
import torch
from torch import nn


class DualNorm(nn.Module):
    """Two batch norms under the names that SDCLR's checkpoints use."""

    def __init__(self, channels):
        super().__init__()
        self.bn_list = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(2)])

    def forward(self, x):
        return self.bn_list[0](x) + self.bn_list[1](x)


class Tiny(nn.Module):
    """A few layers of every sort that a checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = DualNorm(4)
        self.fc = nn.ModuleDict({"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 3, bias=False)})
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))

    def forward(self, x):
        x = self.bn1(self.conv1(x - self.mean.view(1, 3, 1, 1))).relu().mean((2, 3))
        return self.fc["fc2"](self.fc["fc1"](x).relu())


def trained(steps=2):
    """A model under the prefix of DistributedDataParallel, and its optimiser after a few steps."""
    torch.manual_seed(3)
    model = nn.ModuleDict({"module": Tiny()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        model["module"](torch.rand(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    # A warm-up computed with NumPy leaves its own type of number behind.
    optimizer.param_groups[0]["lr"] = numpy.float64(0.25)
    return model, optimizer


def views():
    """Strided tensors and tensors that share a storage."""
    base = torch.arange(48, dtype=torch.float32)
    conv = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    return collections.OrderedDict(
        base=base,
        slice=base[5:11],
        steps=base[1::7],
        transposed=base.view(6, 8).t(),
        permuted=base.view(2, 3, 8).permute(2, 0, 1),
        expanded=base[3:5].unsqueeze(1).expand(2, 4),
        windows=base.as_strided((4, 3), (2, 1), 7),
        channels_last=conv.contiguous(memory_format=torch.channels_last),
        scalar=base[17],
        empty_tail=base[48:],
    )


def dtypes():
    """Every element type that is read, with extremes, signed zero, infinity and NaN; also 0-d and empty tensors."""
    state = collections.OrderedDict()
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        info = torch.finfo(dtype)
        values = [0.0, -0.0, 1.0, -1.5, info.max, info.min, info.tiny, float("inf"), float("-inf"), float("nan")]
        state[str(dtype)[6:]] = torch.tensor(values, dtype=dtype)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        info = torch.iinfo(dtype)
        state[str(dtype)[6:]] = torch.tensor([0, 1, info.max, info.min], dtype=dtype)
    state["bool"] = torch.tensor([True, False, False, True, True])
    state["scalar"] = torch.tensor(7, dtype=torch.int64)
    state["empty"] = torch.zeros(0, 3)
    state["ones"] = torch.ones(1, 1, 1, 1)
    state["ünïcode ☃.weight"] = torch.tensor([2.0])
    return state


def checkpoints():
    """(name, contents, key of the tensors, arguments of torch.save)"""
    model, optimizer = trained()
    state = model.state_dict()
    pretrain = {"epoch": 3, "state_dict": state, "optim": optimizer.state_dict()}
    yield "pretrain", pretrain, "state_dict", {}
    yield "pretrain_protocol4", pretrain, "state_dict", {"pickle_protocol": 4}
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 20])
    probe = {
        "epoch": 30,
        "state_dict": model["module"].state_dict(),
        "best_prec1": torch.tensor(61.5),
        "optim": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
    }
    yield "probe", probe, "state_dict", {}
    mask = {name.removesuffix(".weight"): tensor.abs() >= 0.1 for name, tensor in state.items() if "conv" in name}
    yield "mask_3", {"epoch": 3, "pruneMask": mask}, "pruneMask", {}
    yield "views", {"epoch": 0, "state_dict": views()}, "state_dict", {}
    yield "dtypes", dtypes(), None, {}
    yield "bare", state, None, {}


def with_old_numpy(archive):
    """The same archive with the module name that NumPy 1 writes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core" in data
                data = data.replace(b"numpy._core", b"numpy.core")
            target.writestr(zipfile.ZipInfo(entry.filename), data)
    return out.getvalue()


def legacy(contents):
    """The stream of pickles that torch.save wrote before 1.6; it names storages by address, here they are numbered."""
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, torch.storage.TypedStorage):
                return None
            key = storages.setdefault(value.data_ptr(), (f"{len(storages):03}", value))[0]
            return "storage", getattr(torch, value.pickle_storage_type()), key, "cuda:0", value.size(), None

    out = io.BytesIO()
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    for head in (torch.serialization.MAGIC_NUMBER, 1001, system):
        pickle.dump(head, out, protocol=2)
    Pickler(out, protocol=2).dump(contents)
    pickle.dump([key for key, _ in storages.values()], out, protocol=2)
    for _, storage in storages.values():
        out.write(struct.pack("<q", storage.size()) + bytes(storage.untyped()))
    # PyTorch itself must take it for one of its own.
    torch.load(io.BytesIO(out.getvalue()), map_location="cpu", weights_only=False)
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    # Runs were saved from a GPU: every storage says so.
    torch.serialization.location_tag = lambda storage: "cuda:0"
    expected = {}

    def golden(name, archive, contents, key):
        state = contents if key is None else contents[key]
        (out / f"{name}.pt").write_bytes(archive)
        copy = {"memory_format": torch.contiguous_format}
        tensors = {tensor: value.detach().clone(**copy) for tensor, value in state.items()}
        safetensors.torch.save_file(tensors, out / f"{name}.safetensors")
        epoch = contents["epoch"] if key else None
        expected[name] = {"epoch": epoch, "names": list(state)}

    for name, contents, key, arguments in checkpoints():
        buffer = io.BytesIO()
        torch.save(contents, buffer, **arguments)
        golden(name, buffer.getvalue(), contents, key)
        if name == "pretrain":
            golden("pretrain_legacy", legacy(contents), contents, key)
            golden("pretrain_numpy1", with_old_numpy(buffer.getvalue()), contents, key)
    (out / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
