"""Writes small PyTorch checkpoints as training runs leave them, each beside what torch.load makes of it.

    python reference/torch/checkpoint_goldens.py --out fixtures/golden/checkpoint

NAME.pt is what is read, NAME.json everything that torch.load gives for it. Of checkpoints of weights, NAME.safetensors
holds the tensors that must come out (contiguous, on the CPU), and expected.json the epoch and the names in their order.
refused_SORT.pt holds a tensor `w` of a sort that is not read. A second run writes the same bytes.
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


def all_dtypes():
    """Every type of elements that libtorch and tch both know, the bits of small whole numbers and a pattern."""
    names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex32 complex64 complex128"
    eighths = "float8_e5m2 float8_e4m3fn float8_e5m2fnuz float8_e4m3fnuz"
    pattern = torch.arange(96, dtype=torch.uint8) * 5 % 251
    state = {}
    for name in f"{names} {eighths}".split():
        dtype = getattr(torch, name)
        bits = pattern % 2 if dtype == torch.bool else pattern
        state[name] = bits.clone().view(dtype)
        state[f"{name}.part"] = bits.clone().view(dtype).view(2, -1)[:, 1:3].t()
    return {"state_dict": state}


def adam():
    """Adam with all its state, two schedules beside it, parameters that are Parameters and some with attributes."""
    torch.manual_seed(4)
    model = Tiny()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    marked = nn.Parameter(torch.tensor([1.0, 2.0]))
    marked.note = "kept by Python alone"
    plain = torch.tensor([3.0, 4.0])
    plain.note = "kept by Python alone"
    return {
        "epoch": numpy.int64(7),
        "state_dict": model.state_dict(keep_vars=True),
        "optim": optimizer.state_dict(),
        "schedules": [cosine.state_dict(), plateau.state_dict()],
        "marked": marked,
        "plain": plain,
    }


def values():
    """Every sort of Python value that is read, shared ones among them."""
    numbers = [0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**63), 2**64 - 1, 2**100, -(2**100)]
    codes = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", ">f8", ">i4"]
    shared, tensor = [1, "a"], torch.arange(6, dtype=torch.float32).view(2, 3)
    default = collections.defaultdict(list)
    default["x"].append(1)
    return {
        "none": None,
        "bools": (True, False),
        "ints": numbers,
        "floats": [0.0, -0.0, 1.5, 1e300, 5e-324, float("inf"), float("-inf"), float("nan")],
        "complex": 1.5 - 2j,
        "texts": ["", "plain", numpy.str_(""), numpy.str_("ünïcode ☃ \U0001f4a5"), "ünïcode ☃ \U0001f4a5", "line\nbreak", "long " * 60],
        "bytes": [b"", b"plain", bytes(range(256)), bytearray(b"array"), b"long " * 60],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((((),),),)],
        "sets": [set(), {3}, frozenset({4}), frozenset()],
        "dicts": [{}, {1: "int", "1": "text", None: 0, 2.5: 1, (1, "t"): 2, b"b": 3, -1: {"deep": [{}]}}],
        "subclasses": [collections.OrderedDict(b=1, a=2), collections.Counter("abca"), default],
        "numpy": [numpy.array(3, code)[()] for code in codes] + [numpy.bool_(False), numpy.float32(0.1)],
        "torch": [torch.Size([2, 3]), torch.Size([]), torch.device("cpu"), torch.device("cuda:1"), torch.bfloat16],
        "shared": [shared, shared, {"again": shared}],
        "tensors": [tensor, tensor, tensor[1], tensor.t(), nn.Parameter(tensor), torch.zeros(0), torch.tensor(2)],
    }


def arrays():
    """NumPy's arrays: both memory orders, neither, both byte orders, no elements, no dimensions."""
    array = numpy.arange(24, dtype=numpy.uint8).reshape(2, 3, 4)
    return {
        b"data": array,
        "fortran": numpy.asfortranarray(array),
        "transposed": array.T,
        "strided": array[:, ::2],
        "big_endian": numpy.arange(6, dtype=">i8"),
        "float": numpy.linspace(0, 1, 5),
        "bool": numpy.array([True, False]),
        "scalar": numpy.array(7),
        "empty": numpy.zeros((0, 3), numpy.float32),
    }


def refused():
    """(sort, a tensor of a sort that is not read)"""
    for name in "uint16 uint32 uint64 float8_e8m0fnu float4_e2m1fn_x2 bits8".split():
        yield name, torch.zeros(8, dtype=torch.uint8).view(getattr(torch, name))
    for dtype in (torch.qint8, torch.quint8, torch.qint32):
        yield str(dtype)[6:], torch.quantize_per_tensor(torch.ones(2, 2), 0.5, 1, dtype)
    scales, zeros = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    yield "per_channel", torch.quantize_per_channel(torch.ones(2, 2), scales, zeros, 0, torch.qint8)
    yield "sparse", torch.eye(2).to_sparse()
    yield "sparse_csr", torch.eye(2).to_sparse_csr()
    yield "nested", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    yield "meta", torch.ones(2, device="meta")
    yield "conjugate", torch.ones(2, dtype=torch.complex64).conj()
    yield "negative", torch.ones(2, dtype=torch.complex64).conj().imag


def not_read():
    """(sort, contents beside the tensors) of what PyTorch saves and loads, and we do not read"""
    # 1.5 from all of its bytes: those behind the 80 bits of the number are otherwise whatever memory held.
    padded = struct.pack("<QHHI", 0xC000000000000000, 0x3FFF, 0, 0)
    yield "long_double", numpy.frombuffer(padded, numpy.longdouble)[0]
    yield "integer", 2**200
    yield "complex_key", {1 + 2j: 0}
    yield "storage", torch.ones(2).storage()
    yield "layout", torch.strided
    yield "scheme", torch.per_tensor_affine


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


def objects():
    """(name, contents, arguments of torch.save) of files that are read as they are, not for their weights"""
    yield "all_dtypes", all_dtypes(), {}
    yield "adam", adam(), {}
    for protocol in range(2, 6):
        yield f"values_protocol{protocol}", values(), {"pickle_protocol": protocol}
    for protocol in range(2, 6):
        yield f"arrays_protocol{protocol}", arrays(), {"pickle_protocol": protocol}
    yield "root_tensor", torch.arange(3), {}
    yield "root_list", [torch.arange(3), None], {}


def rewritten(archive, change):
    """The same archive, each entry as `change(name, bytes)` gives it; `None` leaves it out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            data = change(entry.filename.removeprefix("archive/"), source.read(entry))
            if data is not None:
                target.writestr(zipfile.ZipInfo(entry.filename), data)
    return out.getvalue()


def big_endian(archive, dtypes):
    """As a machine of the other byte order writes it; `dtypes` are those of the storages in their order."""

    def change(name, data):
        if name == "byteorder":
            return b"big"
        if name.startswith("data/"):
            dtype = dtypes[int(name.removeprefix("data/"))]
            word = dtype.itemsize // (2 if dtype.is_complex else 1)
            return b"".join(data[i : i + word][::-1] for i in range(0, len(data), word))
        return data

    return rewritten(archive, change)


class StoragePickler(pickle.Pickler):
    """Writes what torch.save's pickler writes; storages get the keys that `key_of` gives."""

    def __init__(self, out, key_of, *more, protocol=2):
        super().__init__(out, protocol=protocol)
        self.key_of, self.more, self.storages = key_of, more, {}

    def persistent_id(self, value):
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        key = self.storages.setdefault(value.data_ptr(), (self.key_of(len(self.storages)), value))[0]
        return "storage", getattr(torch, value.pickle_storage_type()), key, "cuda:0", value.size(), *self.more


def layout_1_7(contents):
    """The archive that PyTorch 1.7 wrote with NumPy 1: storages named by address, three sorts of entries."""
    pickled, out = io.BytesIO(), io.BytesIO()
    pickler = StoragePickler(pickled, lambda index: str(94_000_000_000_000 + 64 * index))
    pickler.dump(contents)
    assert b"numpy._core" in pickled.getvalue()
    with zipfile.ZipFile(out, "w") as target:
        entries = [("data.pkl", pickled.getvalue().replace(b"numpy._core", b"numpy.core"))]
        entries += [(f"data/{key}", bytes(storage.untyped())) for key, storage in pickler.storages.values()]
        for name, data in [*entries, ("version", b"3\n")]:
            target.writestr(zipfile.ZipInfo(f"model_3/{name}"), data)
    return out.getvalue()


def legacy(contents, protocol=2):
    """The stream of pickles that torch.save wrote before 1.6; it names storages by address, here they are numbered."""
    out = io.BytesIO()
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    for head in (torch.serialization.MAGIC_NUMBER, 1001, system):
        pickle.dump(head, out, protocol=protocol)
    pickler = StoragePickler(out, lambda index: f"{index:03}", None, protocol=protocol)
    pickler.dump(contents)
    pickle.dump([key for key, _ in pickler.storages.values()], out, protocol=protocol)
    for _, storage in pickler.storages.values():
        out.write(struct.pack("<q", storage.size()) + bytes(storage.untyped()))
    return out.getvalue()


class Tree:
    """What torch.load gives, as JSON: numbers by their bits, tensors by layout and bytes, storages numbered."""

    def __init__(self):
        self.storages = {}

    def of(self, value):
        match value:
            case None | bool() | str():
                return value
            case numpy.generic():
                return self.of(value.item())
            case numpy.ndarray():
                # Pickles before protocol 5 lose the byte order when NumPy reads them.
                value = value.astype(value.dtype.newbyteorder("<"))
                fortran = value.flags.f_contiguous and not value.flags.c_contiguous
                order = {"fortran_order": fortran, "bytes": value.tobytes("F" if fortran else "C").hex()}
                return {"array": {"dtype": value.dtype.str, "shape": list(value.shape), **order}}
            case int():
                return {"int": str(value)}
            case float():
                return {"float": struct.pack(">d", value).hex()}
            case complex():
                return {"complex": struct.pack(">dd", value.real, value.imag).hex()}
            case bytes() | bytearray():
                return {"bytes": value.hex()}
            case torch.Tensor():
                return {"tensor": self.tensor(value)}
            case torch.dtype():
                return {"dtype": str(value).removeprefix("torch.")}
            case torch.device():
                return {"device": str(value)}
            case dict():
                return {"dict": [[self.of(key), self.of(item)] for key, item in value.items()]}
            case tuple():
                return {"tuple": [self.of(item) for item in value]}
            case list():
                return {"list": [self.of(item) for item in value]}
            case set() | frozenset():
                return {"set": [self.of(item) for item in value]}
        raise TypeError(f"no form for {type(value)}")

    def tensor(self, tensor):
        storage = tensor.untyped_storage()
        number = self.storages.setdefault(storage.data_ptr(), len(self.storages)) if storage.nbytes() else None
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        return {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "stride": list(tensor.stride()),
            "offset": tensor.storage_offset(),
            "storage": number,
            "bytes": flat.numpy().tobytes().hex(),
        }


def saved(contents, **arguments):
    buffer = io.BytesIO()
    torch.save(contents, buffer, **arguments)
    return buffer.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for message in ("TypedStorage is deprecated", "ComplexHalf support", "Sparse .* beta", "The PyTorch API of nested"):
        warnings.filterwarnings("ignore", message=message)
    # Runs were saved from a GPU: every storage says so.
    torch.serialization.location_tag = lambda storage: "cuda:0"
    expected = {}

    def write(name, archive):
        """The file, and what PyTorch itself makes of it."""
        (out / f"{name}.pt").write_bytes(archive)
        loaded = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=False)
        (out / f"{name}.json").write_text(json.dumps(Tree().of(loaded), ensure_ascii=False) + "\n")

    def golden(name, archive, contents, key):
        write(name, archive)
        state = contents if key is None else contents[key]
        copy = {"memory_format": torch.contiguous_format}
        tensors = {tensor: value.detach().clone(**copy) for tensor, value in state.items()}
        safetensors.torch.save_file(tensors, out / f"{name}.safetensors")
        epoch = contents["epoch"] if key else None
        expected[name] = {"epoch": epoch, "names": list(state)}

    for name, contents, key, arguments in checkpoints():
        golden(name, saved(contents, **arguments), contents, key)
        if name == "pretrain":
            golden("pretrain_legacy", legacy(contents), contents, key)
            for protocol in (3, 4):
                golden(f"pretrain_legacy_protocol{protocol}", legacy(contents, protocol), contents, key)
            golden("pretrain_1_7", layout_1_7(contents), contents, key)
        if name == "views":
            golden("views_legacy", legacy(contents), contents, key)
        if name == "dtypes":
            storages = [tensor.dtype for tensor in contents.values()]
            golden("dtypes_big_endian", big_endian(saved(contents), storages), contents, key)
            torch.serialization.set_crc32_options(False)
            golden("dtypes_no_checksums", saved(contents), contents, key)
            torch.serialization.set_crc32_options(True)
    for name, contents, arguments in objects():
        write(name, saved(contents, **arguments))
    for sort, tensor in refused():
        (out / f"refused_{sort}.pt").write_bytes(saved({"epoch": 1, "state_dict": {"w": tensor}}))
    for sort, value in not_read():
        (out / f"not_read_{sort}.pt").write_bytes(saved({"epoch": 1, "state_dict": {"w": torch.ones(2)}, "x": value}))
    (out / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
