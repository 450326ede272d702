"""Writes the hostile and the broken archives that tests/archives.rs feeds to the unpacker, and their README.

    python reference/archives/attacks.py --out fixtures/attacks/archives

Needs nothing but Python. The files are harmless to read as bytes; do not unpack them with other programs.
"""

import argparse
import pathlib
import struct
import zlib

HELLO = b"hello\n"
BLOCK = 512
END = bytes(2 * BLOCK)

# --- tar and gzip ---


def header(name, size=0, kind=b"0", link="", magic=b"ustar\x0000"):
    """One block; `name` and `size` may be text or the field's raw bytes."""
    name = name.encode() if isinstance(name, str) else name
    size = size if isinstance(size, bytes) else b"%011o\0" % size
    fields = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0"
    rest = kind + link.encode().ljust(100, b"\0") + magic
    block = (fields + b" " * 8 + rest).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data):
    return data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


def entry(name, data=HELLO, kind=b"0", **fields):
    return header(name, len(data), kind, **fields) + padded(data)


def long_name(name):
    name = name if isinstance(name, bytes) else name.encode()
    return entry("././@LongLink", name + b"\0", b"L", magic=b"ustar  \0")


def pax(kind=b"x", **records):
    lines = b""
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + 2
        lines += str(length if length < 100 else length + 1).encode() + body
    return entry("pax", lines, kind)


def gzipped(data, pack=False, crc=None, length=None):
    """One gzip member; stored blocks unless `pack`, so that the bytes do not depend on a version of zlib."""
    if pack:
        body = zlib.compress(data, 9, -15)
    else:
        starts = range(0, max(len(data), 1), 0xFFFF)
        parts = [data[start : start + 0xFFFF] for start in starts]
        last = len(parts) - 1
        body = b"".join(struct.pack("<BHH", i == last, len(p), 0xFFFF ^ len(p)) + p for i, p in enumerate(parts))
    crc = zlib.crc32(data) if crc is None else crc
    length = len(data) if length is None else length
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + struct.pack("<II", crc, length)


def tar_names():
    good = entry("good", HELLO)
    for file, what, name in [
        ("absolute", "a file /tmp/sdclr-evil", "/tmp/sdclr-evil"),
        ("parent", "a file ../evil", "../evil"),
        ("parent_inside", "a file a/../../evil", "a/../../evil"),
        ("parent_last", "a file a/..", "a/.."),
        ("dot", "a file ./a", "./a"),
        ("empty_part", "a file a//b", "a//b"),
        ("empty_name", "a file without a name", ""),
        ("slash", "a file with a slash at its end", "a/"),
        ("backslash", "a file a\\b", "a\\..\\..\\evil"),
        ("control", "a name with a line break", "a\nb"),
        ("escape", "a name that would colour the terminal", "a\x1b[31mb"),
        ("not_utf8", "a name in Latin-1", b"caf\xe9"),
        ("long_part", "a name of 300 bytes", None),
        ("deep", "20 folders within each other", "d/" * 20 + "f"),
    ]:
        held = long_name("n" * 300) + entry("n") if name is None else entry(name)
        yield file, what, good + held + END
    yield "nul", "a long name with a zero byte", long_name(b"a\0b") + entry("a") + END
    yield "long_name", "a long name of 2,000 bytes", long_name("n/" * 1000 + "n") + entry("n") + END
    huge = header("././@LongLink", b"%011o\0" % 2**32, b"L", magic=b"ustar  \0")
    yield "long_name_size", "a long name of 4 GB", huge + END
    yield "two_long_names", "two long names for one entry", long_name("a") + long_name("b") + entry("c") + END
    yield "long_name_alone", "a long name for no entry", good + long_name("a") + END
    yield "duplicate", "two files of the same name", entry("a") + entry("a", b"other") + END
    yield "duplicate_case", "files a/File and a/file", entry("a/File") + entry("a/file") + END
    yield "duplicate_folder_case", "files A/x and a/y", entry("A/x") + entry("a/y") + END
    yield "duplicate_slash", "a file a and a folder a/", entry("a") + entry("a/", b"", b"5") + END
    yield "file_as_folder", "a file a and a file a/b", entry("a") + entry("a/b") + END
    yield "folder_as_file", "a file a/b and a file a", entry("a/b") + entry("a") + END


def tar_kinds():
    good = entry("good", HELLO)
    for file, what, kind in [
        ("symbolic_link", "a symbolic link to /etc/passwd", b"2"),
        ("hard_link", "a hard link to /etc/passwd", b"1"),
        ("character_device", "a character device", b"3"),
        ("block_device", "a block device", b"4"),
        ("fifo", "a FIFO", b"6"),
        ("contiguous", "a contiguous file", b"7"),
        ("unknown", "an entry of the type Z", b"Z"),
    ]:
        yield file, what, good + entry("a", b"", kind, link="/etc/passwd") + END
    through = entry("a", b"", b"2", link="/tmp") + entry("a/sdclr-evil")
    yield "link_then_file", "a symbolic link to /tmp, and a file behind it", through + END
    target = entry("././@LongLink", b"/etc/" + b"x" * 200 + b"\0", b"K", magic=b"ustar  \0")
    yield "long_link", "a link with a long target", target + entry("a", b"", b"2") + END
    yield "sparse", "a sparse file of GNU tar", entry("a", HELLO, b"S", magic=b"ustar  \0") + END
    yield "folder_with_content", "a folder with content", entry("a/", HELLO, b"5") + END
    yield "pax_sparse", "a sparse file by PAX records", pax(GNU__sparse__major=1) + entry("a") + END
    yield "pax_path", "a PAX record that moves a file", pax(path="../evil") + entry("a") + END
    yield "pax_size", "a PAX record that resizes a file", pax(size=4096) + entry("a") + END
    yield "pax_global", "a PAX record that moves all files", pax(b"g", path="../evil") + entry("a") + END
    yield "pax_malformed", "a PAX record whose length is wrong", entry("pax", b"99 a=b\n", b"x") + entry("a") + END
    yield "pax_huge", "PAX records of 1 GB", header("pax", 2**30, b"x") + END


def tar_sizes():
    good = entry("good", HELLO)
    yield "size_beyond", "a file that is longer than the archive", header("a", 1_000_000) + padded(HELLO) + END
    yield "size_huge", "a file of 2^62 bytes", header("a", b"\x80\0\0\0" + struct.pack(">Q", 2**62)) + END
    yield "size_text", "a size that is no number", header("a", b"much\0\0\0\0\0\0\0\0") + END
    broken = bytearray(good)
    broken[0] ^= 1
    yield "header_checksum", "a header whose checksum is wrong", bytes(broken) + END
    yield "no_end", "no blocks of zeros at the end", good
    yield "half_block", "a header that is cut off", good + header("a")[:100]
    yield "data_behind_zeros", "a second archive behind the end of the first", good + END + entry("b") + END
    yield "only_folder", "a folder and no file", entry("a/", b"", b"5") + END


def tars():
    for group in (tar_names, tar_kinds, tar_sizes):
        for file, what, data in group():
            yield f"{file}.tar.gz", what, gzipped(data)
    good = entry("good", HELLO) + END
    zeros = entry("zeros", bytes(4 << 20)) + END
    yield "bomb.tar.gz", "a file of 4 MB in an archive of 4 kB", gzipped(zeros, pack=True)
    yield "zeros_behind.tar.gz", "4 MB of zeros behind the last entry", gzipped(good + bytes(4 << 20), pack=True)
    yield "gzip_checksum.tar.gz", "a gzip checksum that is wrong", gzipped(good, crc=1)
    yield "gzip_length.tar.gz", "a gzip length that is wrong", gzipped(good, length=1)
    whole = gzipped(good)
    yield "gzip_cut.tar.gz", "the first half of a good archive", whole[: len(whole) // 2]
    yield "gzip_no_trailer.tar.gz", "a good archive without its last 8 bytes", whole[:-8]
    yield "second_member.tar.gz", "a second gzip member", whole + gzipped(b"more")
    yield "trailing.tar.gz", "text behind the gzip stream", whole + b"more"
    yield "trailing_zeros.tar.gz", "zeros behind the gzip stream", whole + bytes(512)
    yield "block_type.tar.gz", "a deflate block of the reserved type", whole[:10] + b"\x07" + whole[11:]
    yield "not_tar.tar.gz", "a compressed text", gzipped(b"text " * 200)
    yield "nothing.tar.gz", "a compressed file of no bytes", gzipped(b"")
    yield "plain.tar.gz", "a tar archive that is not compressed", good
    yield "empty.tar.gz", "an empty file", b""
    yield "page.tar.gz", "the web page that came instead of the download", b"<!DOCTYPE html>\n<html>quota</html>\n"
    xz = b"\xfd7zXZ\0\0\x04"
    yield "xz.tar.gz", "an archive of another compression", xz + bytes(32)


# --- zip ---


class Zipped:
    """An entry; each field may lie, in the directory or in the header before the content."""

    def __init__(self, name, data=HELLO, pack=False, mode=0o100644, extra=b"", flags=0x800, local=None, **fields):
        self.name = name.encode() if isinstance(name, str) else name
        self.mode, self.extra, self.local = mode, extra, local or {}
        self.content = zlib.compress(data, 9, -15) if pack else data
        self.fields = dict(
            name=self.name, flags=flags, method=8 if pack else 0, crc=zlib.crc32(data), packed=len(self.content),
            size=len(data),
        ) | fields

    def common(self, **lies):
        f = self.fields | lies
        name, extra = f["name"], self.extra
        sizes = struct.pack("<IIIHH", f["crc"], f["packed"], f["size"], len(name), len(extra))
        return struct.pack("<HHHHH", 20, f["flags"], f["method"], 0, 0x5821) + sizes, name + extra

    def before(self):
        fixed, names = self.common(**self.local)
        return b"PK\3\4" + fixed + names + self.content

    def listed(self, start):
        fixed, names = self.common()
        return b"PK\1\2" + struct.pack("<H", 0x0314) + fixed + struct.pack("<HHHII", 0, 0, 0, self.mode << 16, start) + names


def zipped(*entries, listed=None, starts=None, count=None, tail=b"", comment=b"", before=b"", behind=b""):
    body, found = before, []
    for item in entries:
        found.append(len(body))
        body += item.before()
    starts = found if starts is None else starts
    chosen = entries if listed is None else listed
    directory = b"".join(item.listed(start) for item, start in zip(chosen, starts))
    count = len(chosen) if count is None else count
    place = struct.pack("<HHIIH", min(count, 0xFFFF), min(count, 0xFFFF), len(directory), len(body), len(comment))
    return body + directory + tail + b"PK\5\6" + bytes(4) + place + comment + behind


def zip_names():
    good = Zipped("good")
    for file, what, name in [
        ("absolute", "a file /tmp/sdclr-evil", "/tmp/sdclr-evil"),
        ("parent", "a file ../evil", "../evil"),
        ("dot", "a file a/./b", "a/./b"),
        ("empty_part", "a file a//b", "a//b"),
        ("empty_name", "a file without a name", ""),
        ("backslash", "a file ..\\evil", "..\\evil"),
        ("control", "a name with a line break", "a\nb"),
        ("nul", "a name with a zero byte", "a\0b"),
        ("not_utf8", "a name in Latin-1", b"caf\xe9"),
        ("long_part", "a name of 300 bytes", "n" * 300),
        ("long_name", "a name of 2,000 bytes", "n/" * 1000 + "n"),
        ("deep", "20 folders within each other", "d/" * 20 + "f"),
    ]:
        yield file, what, zipped(good, Zipped(name))
    other = b"\x01" + struct.pack("<I", zlib.crc32(b"a")) + b"other"
    yield "second_name", "a second name in an extra field", zipped(
        good, Zipped("a", extra=struct.pack("<HH", 0x7075, len(other)) + other)
    )
    yield "duplicate", "two files of the same name", zipped(Zipped("a"), Zipped("a", b"other"))
    yield "duplicate_case", "files File and file", zipped(Zipped("File"), Zipped("file"))
    yield "duplicate_slash", "a file a and a folder a/", zipped(Zipped("a"), Zipped("a/", b"", mode=0o40755))
    yield "file_as_folder", "a file a and a file a/b", zipped(Zipped("a"), Zipped("a/b"))


def zip_kinds():
    good = Zipped("good")
    for file, what, mode in [
        ("symbolic_link", "a symbolic link to /etc/passwd", 0o120777),
        ("fifo", "a FIFO", 0o010644),
        ("device", "a character device", 0o020644),
        ("folder_mode", "a folder by its mode, a file by its name", 0o040755),
    ]:
        yield file, what, zipped(good, Zipped("a", b"/etc/passwd", mode=mode))
    yield "folder_as_file", "a file by its mode, a folder by its name", zipped(good, Zipped("a/", b""))
    yield "folder_with_content", "a folder with content", zipped(good, Zipped("a/", mode=0o40755))
    yield "encrypted", "an encrypted file", zipped(good, Zipped("a", flags=0x801))
    yield "method", "a file compressed by bzip2", zipped(good, Zipped("a", method=12))


def zip_headers():
    good = Zipped("good")
    for file, what, lie in [
        ("local_name", "a file that its own header calls ../evil", dict(name=b"../evil")),
        ("local_size", "a file whose own header says another size", dict(size=5)),
        ("local_packed", "a file whose own header says another packed size", dict(packed=5)),
        ("local_crc", "a file whose own header says another checksum", dict(crc=1)),
        ("local_method", "a file whose own header says another method", dict(method=8)),
        ("local_flags", "a file that is encrypted by its own header", dict(flags=0x801)),
    ]:
        yield file, what, zipped(good, Zipped("a", local=lie))
    yield "unlisted", "a file that the directory omits", zipped(good, Zipped("a"), good, listed=[good])
    yield "overlap", "one content under two names", zipped(
        Zipped("a"), listed=[Zipped("a"), Zipped("b")], starts=[0, 0]
    )
    inner = Zipped("b", HELLO)
    outer = Zipped("a", inner.before())
    start = len(outer.before()) - len(inner.before())
    yield "overlap_quoted", "a file whose content is another file's header and content", zipped(
        outer, listed=[outer, inner], starts=[0, start]
    )
    yield "start_beyond", "a file that begins behind the archive", zipped(good, listed=[good, Zipped("a")], starts=[0, 10**6])
    yield "in_directory", "a file that reaches into the directory", zipped(Zipped("a", packed=60, size=60))


def zip_sizes():
    good = Zipped("good")
    data = b"0123456789" * 10
    yield "crc", "a checksum that is wrong", zipped(good, Zipped("a", crc=1))
    yield "packed_crc", "a checksum that is wrong, compressed", zipped(good, Zipped("a", data, pack=True, crc=1))
    yield "size_more", "a file that is shorter than it says", zipped(good, Zipped("a", data, pack=True, size=200))
    yield "size_less", "a file that is longer than it says", zipped(good, Zipped("a", data, pack=True, size=50))
    stored = Zipped("a", size=5)
    yield "stored_sizes", "a stored file with two sizes", zipped(good, stored)
    short = Zipped("a", data, pack=True)
    short.content += b"hidden"
    short.fields["packed"] += 6
    yield "packed_more", "bytes behind a file's compressed stream", zipped(good, short)
    cut = Zipped("a", data, pack=True)
    cut.content = cut.content[:-3]
    cut.fields["packed"] -= 3
    yield "packed_less", "a compressed stream that is cut off", zipped(good, cut)
    noise = Zipped("a", data, pack=True)
    noise.content = b"\x07" + noise.content[1:]
    yield "block_type", "a deflate block of the reserved type", zipped(good, noise)
    yield "bomb", "a file of 4 MB in an archive of 4 kB", zipped(Zipped("a", bytes(4 << 20), pack=True))
    yield "size_huge", "a file of 4 GB in an archive of 200 bytes", zipped(Zipped("a", pack=True, size=2**32 - 2))


def zip_ends():
    good = zipped(Zipped("good"))
    yield "cut", "the first half of a good archive", good[: len(good) // 2]
    yield "no_end", "a good archive without its last record", good[:-22]
    yield "prepended", "text before the archive's first entry", zipped(Zipped("good"), before=b"PK\3\4 and more text ")
    yield "shifted", "text before an archive that does not know of it", b"PK\3\4 and more text " + good
    yield "trailing", "text behind the archive", good + b"more"
    yield "count_more", "a directory that says it has one entry more", zipped(Zipped("good"), count=2)
    yield "count_less", "a directory that says it has one entry less", zipped(Zipped("good"), Zipped("b"), count=1)
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 2**40, 2**40, 2**45, 0)
    body = len(Zipped("good").before() + Zipped("good").listed(0))
    locator = b"PK\6\7" + struct.pack("<IQI", 0, body, 1)
    yield "count_huge", "a zip64 directory of 2^40 entries", zipped(Zipped("good"), count=0xFFFF, tail=record + locator)
    yield "zip64_missing", "a zip64 directory that is not there", zipped(Zipped("good"), count=0xFFFF)
    yield "comment_end", "a comment that holds another end of an archive", zipped(
        Zipped("good"), comment=b"PK\5\6" + bytes(18)
    )
    yield "no_entries", "an archive without entries", b"PK\5\6" + bytes(18)
    yield "only_folder", "a folder and no file", zipped(Zipped("a/", b"", mode=0o40755))


def zips():
    for group in (zip_names, zip_kinds, zip_headers, zip_sizes, zip_ends):
        for file, what, data in group():
            yield f"{file}.zip", what, data
    yield "page.zip", "the web page that came instead of the download", b"<!DOCTYPE html>\n<html>quota</html>\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Hostile and broken archives\n",
        "Written by `python reference/archives/attacks.py --out fixtures/attacks/archives`; each has a test in",
        "`tests/archives.rs`. Do not unpack them with other programs: some would write outside the folder.\n",
        "| file | what it is |",
        "|---|---|",
    ]
    for group in (tars, zips):
        for file, what, data in group():
            (out / file).write_bytes(data)
            lines.append(f"| `{file}` | {what} |")
    (out / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
