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
    bomb = b"]q\x00" + b"".join(b"0](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1]) for i in range(20))
    yield "memo_bomb", "twenty lists, each holding the one before ten times", archive(beside(bomb))
    yield "persistent_id_text", "a persistent id that is a string", archive(beside(text("storage") + b"Q"))
    short = items(text("storage"), text("0")) + b"Q"
    yield "persistent_id_short", "a persistent id of two fields", archive(beside(short))
    yield "pickle_truncated", "a pickle without its end", archive(state(w=tensor())[:-20])
    yield "long_string", "a string that claims 4 GB", archive(beside(b"X\xff\xff\xff\xffhello"))
    yield "stack_underflow", "REDUCE on an empty stack", archive(pickle(b"R"))


def objects():
    """What a stack machine with a memo could be made to do."""
    memo = b"q\x00"

    def alone(payload, **arguments):
        return archive(pickle(payload), {}, **arguments)

    yield "cycle_list", "a list that holds itself", archive(beside(b"]" + memo + b"h\x00a"))
    yield "cycle_dict", "a dictionary that holds itself", archive(beside(b"}" + memo + text("x") + b"h\x00s"))
    cycle = b"]" + memo + b"h\x00\x85" + b"a"
    yield "cycle_tuple", "a list that holds a tuple that holds the list", archive(beside(cycle))
    pair = text("x") + number(1)
    yield "items_of_list", "SETITEMS of a list", archive(beside(b"](" + pair + b"u"))
    yield "items_of_tensor", "SETITEM of a tensor", archive(beside(tensor() + pair + b"s"))
    yield "items_odd", "SETITEMS of a key without a value", archive(beside(b"}(" + pair + text("y") + b"u"))
    yield "append_to_dict", "APPENDS to a dictionary", archive(beside(b"}(" + pair + b"e"))
    yield "append_to_tuple", "APPEND to a tuple", archive(beside(b")" + number(1) + b"a"))
    yield "add_to_list", "ADDITEMS to a list", archive(beside(b"](" + pair + b"\x90"))
    yield "build_list", "BUILD of a list", archive(beside(b"]}b"))
    yield "build_dict", "BUILD of a plain dictionary", archive(beside(b"}" + dictionary(x=number(1)) + b"b"))
    yield "build_tensor", "BUILD of a tensor", archive(beside(tensor() + dictionary(x=number(1)) + b"b"))
    ordered = name("collections", "OrderedDict") + b")R"
    yield "build_text", "BUILD of an OrderedDict with a state that is text", archive(beside(ordered + text("x") + b"b"))
    yield "newobj", "NEWOBJ of an allowed class", archive(beside(name("collections", "OrderedDict") + b")\x81"))
    yield "text_opcode", "INT, an opcode of protocol 0", archive(beside(b"I1\n"))
    yield "call_data", "REDUCE of a list", archive(beside(b"])R"))
    yield "call_list", "REDUCE with a list of arguments", archive(beside(name("torch", "Size") + b"]R"))
    yield "call_storage", "REDUCE of a class of storages", archive(beside(name("torch", "FloatStorage") + b")R"))
    swapped = items(text("0"), number(0), items(number(4)), items(number(1)))
    yield "call_text", "a tensor of text", archive(beside(name("torch._utils", "_rebuild_tensor") + swapped + b"R"))
    twice = name("torch._tensor", "_rebuild_from_type_v2")
    nested = twice + items(twice, name("torch", "Tensor"), items(), b"N") + b"R"
    yield "call_itself", "_rebuild_from_type_v2 of itself", archive(beside(nested))
    yield "class_as_value", "a class where a value should be", archive(beside(name("torch", "FloatStorage")))
    yield "storage_as_value", "a storage where a value should be", archive(beside(storage()))
    yield "mark_missing", "POP_MARK without a mark", archive(beside(b"1"))
    yield "memo_missing", "BINGET of what was not stored", archive(beside(b"h\x63"))
    yield "memo_texts", "a text of 0.5 MB in 1,000 places", alone(
        text("a" * 500_000) + memo + b"0](" + b"h\x00" * 1000 + b"e", method=zipfile.ZIP_DEFLATED
    )
    yield "memo_tensors", "a tensor in 25,000 places", archive(
        pickle(tensor() + memo + b"0](" + b"h\x00" * 25_000 + b"e"), method=zipfile.ZIP_DEFLATED
    )
    yield "huge_tuple", "a tuple of 900,000 objects", alone(b"(" + b"N" * 900_000 + b"t", method=zipfile.ZIP_DEFLATED)
    call = b"h\x01h\x00\x85R0"
    sets = name("builtins", "set") + b"q\x010](" + b"N" * 100_000 + b"e" + memo + call * 1000
    yield "call_copies", "1,000 sets of one list of 100,000 objects", alone(sets, method=zipfile.ZIP_DEFLATED)
    encode = name("_codecs", "encode") + b"q\x010" + items(text("a" * 100_000), text("latin1")) + memo
    yield "call_encodes", "1,000 times the bytes of one text of 0.1 MB", alone(
        encode + b"h\x01h\x00R0" * 1000, method=zipfile.ZIP_DEFLATED
    )
    double = b"}(" + text("w") + tensor() + text("w") + number(1) + b"u"
    yield "key_twice", "two values under one name", archive(pickle(dictionary(state_dict=double)))
    yield "key_true", "two values under 1 and True, which are one key", archive(beside(b"}(K\x01N\x88Nu"))
    yield "key_list", "a list as a key", archive(beside(b"}]Ns"))
    yield "key_number", "a tensor whose name is a number", archive(pickle(dictionary(state_dict=b"}K\x01" + tensor() + b"s")))
    yield "wide_integer", "an integer of 255 bytes", archive(beside(b"\x8a\xff" + bytes(255)))
    yield "not_utf8", "text that is not UTF-8", archive(beside(b"X\x02\0\0\0\xff\xff"))
    yield "protocol", "protocol 9", archive(pickle(tensor(), 9))
    dtype = name("numpy", "dtype") + items(text("O8"), b"\x89", b"\x88") + b"R"
    scalar = name("numpy.core.multiarray", "scalar") + items(dtype, b"C\x08" + bytes(8)) + b"R"
    yield "numpy_object", "a NumPy scalar that is a pointer", archive(beside(scalar))
    short = scalar.replace(text("O8"), text("f8")).replace(b"C\x08" + bytes(8), b"C\x04" + bytes(4))
    yield "numpy_short", "a NumPy float64 of four bytes", archive(beside(short))
    module = items(text("module"), name("torch", "Tensor"), text("0"), text("cpu"), number(4)) + b"Q"
    yield "persistent_id_module", "a persistent id that brings source code", archive(beside(module))
    other = tensor(held=storage(count=2), shape=(2,))
    yield "storage_twice", "one storage of two sizes", archive(state(v=tensor(), w=other))


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
    yield "byte_order", "a file of a machine of neither byte order", archive(good, order=b"middle")
    yield "storage_long", "a storage that is longer than the pickle says", archive(good, {"0": FOUR + b"more"})
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
    one = system + pickle(dictionary(w=tensor()))
    count = struct.pack("<q", 4)
    keys = pickle(b"](" + text("0") + b"e")
    version = magic.replace(b"M\xe9\x03", b"M\xea\x03") + one + keys + count + FOUR
    yield "legacy_version.pt", "the format before PyTorch 1.6 in a version that never was", version
    lies = magic + one + keys + struct.pack("<q", 2**61) + FOUR
    yield "legacy_count.pt", "the same, a storage that claims 2^61 elements behind the pickle", lies
    yield "legacy_missing.pt", "the same, a storage that is not in the list", magic + one + pickle(b"]")
    strange = pickle(b"](" + text("0") + text("1") + b"e")
    yield "legacy_unknown.pt", "the same, a storage that no tensor names", magic + one + strange + (count + FOUR) * 2
    again = pickle(b"](" + text("0") + text("0") + b"e")
    yield "legacy_twice.pt", "the same, a storage listed twice", magic + one + again + (count + FOUR) * 2
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
    for group in (pickles, objects, tensors, zips, others):
        for file, what, data in group():
            file = file if "." in file else f"{file}.pt"
            (out / file).write_bytes(data)
            lines.append(f"| `{file}` | {what} |")
    (out / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
