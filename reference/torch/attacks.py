"""Writes the hostile and the broken files that tests/attacks.rs feeds to the checkpoint reader, and their README.

    python reference/torch/attacks.py --out fixtures/attacks

Needs nothing but Python. The files are harmless to read as bytes; do not give them to torch.load or pickle.load. What
an attack would run is `touch` of a marker file, which the tests look for.
"""

import argparse
import io
import json
import pathlib
import struct
import zipfile
import zlib

MARKER = "/tmp/sdclr-attack-marker"
COMMAND = f"touch {MARKER}"

# --- A pickle assembler: every function gives the bytes that leave one object on the stack. ---


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short_text(value):
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def number(value):
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def items(*parts):
    return b"(" + b"".join(parts) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def dictionary(**entries):
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def pickle(body, protocol=2):
    return b"\x80" + bytes([protocol]) + body + b"."


def storage(key="0", count=4, kind="FloatStorage"):
    return items(text("storage"), name("torch", kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(held=None, offset=0, shape=(4,), stride=(1,)):
    shape, stride = (items(*map(number, extents)) for extents in (shape, stride))
    hooks = name("collections", "OrderedDict") + b")R"
    arguments = items(storage() if held is None else held, number(offset), shape, stride, b"\x89", hooks)
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def state(**tensors):
    return pickle(dictionary(epoch=number(1), state_dict=dictionary(**tensors)))


def beside(payload):
    """A good tensor and, beside it, what is to be refused."""
    return pickle(dictionary(state_dict=dictionary(w=tensor()), extra=payload))


# --- Containers ---

FOUR = struct.pack("<4f", 1, 2, 3, 4)


def archive(data, storages=None, more=(), method=zipfile.ZIP_STORED, order=b"little"):
    out = io.BytesIO()
    storages = {"0": FOUR} if storages is None else storages
    entries = [("archive/data.pkl", data), ("archive/byteorder", order), ("archive/version", b"3\n")]
    entries += [(f"archive/data/{key}", value) for key, value in storages.items()] + list(more)
    with zipfile.ZipFile(out, "w", method, compresslevel=9) as target:
        for entry, value in entries:
            info = zipfile.ZipInfo(entry)
            info.compress_type = method
            target.writestr(info, value, compresslevel=9)
    return out.getvalue()


def renamed(data, old, new):
    """Another name for an entry, put in behind the back of zipfile, which warns of what it finds odd."""
    assert len(old) == len(new) and data.count(old) == 2
    return data.replace(old, new)


def safetensors(header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(shape, start, end, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


# --- The files: name -> (what it is, bytes) ---


def pickles():
    command = items(text(COMMAND))
    yield "global_reduce", "os.system through GLOBAL and REDUCE", archive(beside(name("os", "system") + command + b"R"))
    yield (
        "stack_global",
        "posix.system through STACK_GLOBAL (protocol 4)",
        archive(beside(short_text("posix") + b"\x94" + short_text("system") + b"\x94\x93" + command + b"R")),
    )
    stored = short_text("system") + b"\x94" + short_text("posix") + b"\x94" + b"00"
    fetched = stored + b"h\x01h\x00\x93" + command + b"R"
    yield (
        "stack_global_memo",
        "STACK_GLOBAL with both names fetched from the memo, in the other order",
        archive(pickle(fetched, 4)),
    )
    computed = name("collections", "OrderedDict") + b")R0" + items(text("posix")) + text("system") + b"\x93"
    yield "stack_global_computed", "STACK_GLOBAL whose module is no plain string", archive(beside(computed))
    yield "inst", "os.system through INST", archive(beside(b"(" + text(COMMAND) + b"ios\nsystem\n"))
    yield (
        "build",
        "BUILD of a class of the attacker's, whose __setstate__ would run",
        archive(beside(name("__main__", "Exploit") + b")\x81" + dictionary(x=number(1)) + b"b")),
    )
    process = name("subprocess", "Popen") + command + b"}\x92"
    yield "newobj_ex", "NEWOBJ_EX of subprocess.Popen", archive(beside(process))
    yield (
        "getattr",
        "builtins.getattr, the way around lists of allowed modules",
        archive(beside(name("builtins", "getattr") + items(name("torch", "device"), text("x")) + b"R")),
    )
    yield (
        "load_from_bytes",
        "torch.storage._load_from_bytes, a pickle within the pickle",
        archive(beside(name("torch.storage", "_load_from_bytes") + items(text("x")) + b"R")),
    )
    dotted = name("torch", "serialization.os.system")
    yield "dotted_name", "an attribute path behind an allowed module", archive(beside(dotted))
    yield "extension", "EXT1, an entry of the process's extension registry", archive(beside(b"\x82\x01"))
    yield "out_of_band", "NEXT_BUFFER, a buffer that no file holds", archive(beside(b"\x97"))
    yield "unknown_opcode", "a byte that is no opcode", archive(beside(b"\xff"))
    yield "deep_nesting", "100,000 lists within each other", archive(
        beside(b"]" * 100_000 + b"a" * 99_999), method=zipfile.ZIP_DEFLATED
    )
    bomb = b"]q\x00" + b"".join(b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1]) for i in range(20))
    yield "memo_bomb", "twenty lists, each holding the one before ten times", archive(beside(bomb))
    yield "persistent_id_text", "a persistent id that is a string", archive(beside(text("storage") + b"Q"))
    short = items(text("storage"), text("0")) + b"Q"
    yield "persistent_id_short", "a persistent id of two fields", archive(beside(short))
    yield "pickle_truncated", "a pickle without its end", archive(state(w=tensor())[:-20])
    yield "long_string", "a string that claims 4 GB", archive(beside(b"X\xff\xff\xff\xffhello"))
    yield "stack_underflow", "REDUCE on an empty stack", archive(pickle(b"R"))


def tensors():
    def one(**arguments):
        return archive(state(w=tensor(**arguments)))

    yield "absurd_size", "a tensor of 2^40 elements, and a storage that says so too", one(
        held=storage(count=2**40), shape=(2**40,)
    )
    yield "expanded", "four floats expanded to 8 GB by a stride of 0", one(shape=(2**31,), stride=(0,))
    yield "shape_overflow", "extents whose product overflows", one(shape=(2**62, 2**62), stride=(0, 0))
    yield "empty_overflow", "an empty tensor with an extent of 2^62", one(shape=(0, 2**62), stride=(1, 1))
    yield "stride_overflow", "strides whose sum overflows", one(shape=(2, 2), stride=(2**62, 2**63 - 1))
    yield "negative_stride", "a stride of -1", one(stride=(-1,))
    yield "negative_offset", "an offset of -1", one(offset=-1)
    yield "negative_shape", "an extent of -4", one(shape=(-4,))
    yield "negative_count", "a storage of -4 elements", one(held=storage(count=-4))
    yield "offset_beyond", "an offset behind the storage's end", one(offset=1000)
    yield "rank", "a tensor of 1,000 dimensions", one(shape=(1,) * 1000, stride=(1,) * 1000)
    yield "rank_mismatch", "two extents, one stride", one(shape=(2, 2), stride=(1,))
    yield "storage_missing", "a tensor whose storage is not in the archive", one(held=storage(key="7"))
    yield "storage_short", "a storage that is shorter than the pickle says", archive(state(w=tensor()), {"0": FOUR[:8]})
    yield "storage_path", "a storage key that climbs out of the archive", one(held=storage(key="../../../etc/passwd"))
    inner = dictionary(**{"a.b": tensor(), "a": dictionary(b=tensor())})
    joined = archive(pickle(dictionary(state_dict=inner)))
    yield "joined_names", "'a.b' and 'b' within 'a', one name for two tensors", joined
    yield "no_tensors", "a dictionary with an epoch alone", archive(pickle(dictionary(epoch=number(1))))
    yield "root_tensor", "a tensor without a dictionary around it", archive(pickle(tensor()))
    other = dictionary(model=dictionary(w=tensor()))
    yield "other_key", "weights under a key that nobody asked for", archive(pickle(other))


def zips():
    good = state(w=tensor())
    zeros = bytes(16 << 20)
    yield "zip_bomb", "a storage of 16 MB in a file of 17 kB", archive(good, {"0": zeros}, method=zipfile.ZIP_DEFLATED)
    flood = pickle(dictionary(state_dict=dictionary(w=tensor())) + b"N0" * (8 << 20))
    yield "pickle_bomb", "a pickle of 16 MB in a file of 17 kB", archive(flood, method=zipfile.ZIP_DEFLATED)
    double = archive(good, more=[("archive/data/1", FOUR)])
    yield "duplicate_entries", "two entries of the same name", renamed(double, b"archive/data/1", b"archive/data/0")
    yield "two_pickles", "two entries data.pkl", archive(good, more=[("other/data.pkl", good)])
    yield "path_traversal", "an entry ../../evil", archive(good, more=[("../../evil", b"x")])
    yield "absolute_path", "an entry /etc/evil", archive(good, more=[("/etc/evil", b"x")])
    yield "no_pickle", "a zip archive that is no checkpoint", renamed(archive(good), b"data.pkl", b"data.txt")
    yield "big_endian", "a file of a big-endian machine", archive(good, order=b"big")
    whole = archive(good)
    yield "checksum", "a storage whose bytes do not fit its checksum", whole.replace(FOUR, FOUR[::-1])
    crc = struct.pack("<I", zlib.crc32(FOUR))
    lies = whole.replace(crc + struct.pack("<II", 16, 16), crc + struct.pack("<II", 2**31, 2**31))
    yield "entry_size", "a stored entry that claims 2 GB", lies
    yield "truncated", "the first half of a good archive", whole[: len(whole) // 2]


def others():
    w = entry([4], 0, 16)
    yield "empty.pt", "an empty file", b""
    page = b"<!DOCTYPE html>\n<html><body>404</body></html>\n"
    yield "page.pt", "the web page that came instead of the download", page
    yield "noise.pt", "bytes without a meaning", bytes(range(128, 256))
    yield "bare_pickle.pt", "a pickle without a container", pickle(name("os", "system") + items(text(COMMAND)) + b"R")
    magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." + pickle(b"M\xe9\x03")
    system = pickle(b"}" + text("little_endian") + b"\x88s")
    legacy = magic + system + pickle(name("os", "system") + items(text(COMMAND)) + b"R")
    yield "legacy.pt", "os.system in the format before PyTorch 1.6", legacy + pickle(b"]")
    both = legacy.ljust(257, b"\0") + b"ustar\0"
    yield "legacy_tar.pt", "the same file, made to look like a TAR archive too", both
    short = magic + system + pickle(dictionary(w=tensor(held=storage(count=2**20), shape=(2**20,))))
    short += pickle(b"](" + text("0") + b"e") + FOUR
    yield "legacy_short.pt", "the format before PyTorch 1.6, a storage of 4 MB that is not there", short
    yield "header_length.safetensors", "a header length of 2^63", safetensors({"w": w}, FOUR, length=2**63)
    yield "header_beyond.safetensors", "a header that is longer than the file", safetensors({"w": w}, FOUR, length=4096)
    yield "overlap.safetensors", "two tensors in the same bytes", safetensors({"v": w, "w": w}, FOUR)
    yield "out_of_range.safetensors", "offsets behind the file's end", safetensors({"w": entry([40], 0, 160)}, FOUR)
    yield "hole.safetensors", "bytes that belong to no tensor", safetensors({"w": entry([2], 8, 16)}, FOUR)
    yield "negative.safetensors", "a negative offset", safetensors({"w": entry([4], -16, 0)}, FOUR)
    yield "reversed.safetensors", "an end before its start", safetensors({"w": entry([4], 16, 0)}, FOUR)
    yield "shape_lies.safetensors", "a shape that does not fit its bytes", safetensors({"w": entry([5], 0, 16)}, FOUR)
    overflow = {"w": entry([2**40, 2**40], 0, 16)}
    yield "overflow.safetensors", "a shape whose product overflows", safetensors(overflow, FOUR)
    huge = {"w": entry([0, 2**62], 0, 0)}
    yield "empty_huge.safetensors", "an empty tensor with an extent of 2^62", safetensors(huge)
    yield "rank.safetensors", "a tensor of 1,000 dimensions", safetensors({"w": entry([1] * 1000, 0, 4)}, FOUR[:4])
    yield "dtype.safetensors", "an element type that is not read", safetensors({"w": entry([2], 0, 16, "U64")}, FOUR)
    yield "trailing.safetensors", "bytes behind the last tensor", safetensors({"w": w}, FOUR + b"more")
    yield "not_json.safetensors", "a header that is not JSON", safetensors(b'{"w": [[[', FOUR)
    yield "deep_json.safetensors", "a header of 20,000 nested lists", safetensors(b'{"w":' + b"[" * 20_000, FOUR)
    yield "no_tensors.safetensors", "a header without tensors", safetensors({"__metadata__": {"a": "b"}})
    version = {"__metadata__": {"sdclr.training": json.dumps({"format": 999})}, "state/w": w}
    yield "training_version.safetensors", "one of our training files, of a version to come", safetensors(version, FOUR)
    broken = {"__metadata__": {"sdclr.training": "{}"}, "state/w": w}
    yield "training_json.safetensors", "one of our training files, its JSON damaged", safetensors(broken, FOUR)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Hostile and broken checkpoints\n",
        "Written by `python reference/torch/attacks.py --out fixtures/attacks`; each has a test in `tests/attacks.rs`.",
        f"Never give them to `torch.load` or `pickle.load`: some would run `{COMMAND}`.\n",
        "| file | what it is |",
        "|---|---|",
    ]
    for group in (pickles, tensors, zips, others):
        for file, what, data in group():
            file = file if "." in file else f"{file}.pt"
            (out / file).write_bytes(data)
            lines.append(f"| `{file}` | {what} |")
    (out / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
