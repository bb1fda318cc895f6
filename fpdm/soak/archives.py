"""Archives that are made to do harm: zips of images, and npz files of samples."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from fpdm.soak.hostile import hostile_npz
from fpdm.soak.images import PART, deflated_zeros, odd_image

BOMB = 10 * 2**30  # bytes that the 10 MB of `_bomb` unpack to
BOMB_CRC = 0xF41D912F  # of so many zeros, as zlib.crc32 computes it in some seconds
OUTSIDE = "soak-outside"  # begins the names that a zip must not give to a file outside of it


def odd_zip(path: Path, draw: Random) -> str:
    """A zip of one of the ways below."""
    name = draw.choice(list(ZIPS))
    return f"{name} {ZIPS[name](path, draw) or ''}".strip()


def _picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(content, "PNG")
    return content.getvalue()


def _write(path: Path, named: dict[str, bytes | str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in named.items():
            archive.writestr(name, content)


def _absolute(path: Path, draw: Random) -> None:
    _write(path, {str(path.parent / f"{OUTSIDE}-absolute" / "1.png"): _picture()})


def _above(path: Path, draw: Random) -> str:
    levels = draw.randrange(1, 5)
    _write(path, {f"{'../' * levels}{OUTSIDE}/1.png": _picture()})
    return f"{levels} levels"


def _link(path: Path, draw: Random) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("cat/1.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")


def _bomb(path: Path, draw: Random) -> None:
    """A real one: 10 GiB of zeros, deflated 1:1000, which is the most that deflate can do."""
    content = deflated_zeros(BOMB // PART)
    _raw_member(path, content, BOMB, BOMB_CRC)


def _declared(path: Path, draw: Random) -> None:
    """A kilobyte that is said to be 10 GiB."""
    _raw_member(path, deflated_zeros(1), BOMB, BOMB_CRC)


def _raw_member(path: Path, packed: bytes, size: int, crc: int) -> None:
    """A zip64 with one member, cat/1.png, from its packed bytes."""
    name, extra = b"cat/1.png", struct.pack("<HHQQ", 1, 16, size, len(packed))
    facts = (20, 0, zipfile.ZIP_DEFLATED, 0, 0, crc, 2**32 - 1, 2**32 - 1, len(name), len(extra))
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, *facts) + name + extra
    central = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, *facts, 0, 0, 0, 0, 0) + name + extra
    begin = len(local) + len(packed)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(central), begin, 0)
    path.write_bytes(local + packed + central + end)


def _deep(path: Path, draw: Random) -> None:
    _write(path, {"cat/" * 500 + "1.png": _picture()})


def _table(path: Path, draw: Random) -> str:
    labels = draw.choice(({"labels": 3}, {"labels": [["1.png"]]}, {"labels": [["1.png", "a"]]}, [], {"labels": {}},
                          {"labels": [[1, 2]]}, {"labels": [["1.png", 10**12]]}, {"labels": [["1.png", True]]},
                          {"labels": [None]}, 5, "text"))  # fmt: skip
    table = draw.choice((json.dumps(labels), "{", "", "[" * 5000))
    _write(path, {"1.png": _picture(), "dataset.json": table})
    return table[:60]


def _odd(path: Path, draw: Random) -> str:
    file = path.with_name("odd.png")
    did = odd_image(file, draw)
    _write(path, {"cat/1.png": file.read_bytes()})
    file.unlink()
    return did


def _twisted(twist: Callable[[bytearray, int, Random], None]) -> Callable[[Path, Random], None]:
    """A good zip, whose bytes are then changed; `twist` gets them and where the central directory begins."""

    def write(path: Path, draw: Random) -> None:
        _write(path, {"cat/1.png": _picture(), "dog/2.png": _picture()})
        content = bytearray(path.read_bytes())
        twist(content, content.find(b"PK\x01\x02"), draw)
        path.write_bytes(content)

    return write


def _wrong_size(content: bytearray, central: int, draw: Random) -> None:
    content[central + 24 : central + 28] = struct.pack("<I", draw.choice((0, 1, 2**32 - 2)))


def _encrypted(content: bytearray, central: int, draw: Random) -> None:
    content[central + 8] |= 1
    content[6] |= 1


def _cut(content: bytearray, central: int, draw: Random) -> None:
    del content[draw.randrange(len(content)) :]


ZIPS: dict[str, Callable[[Path, Random], str | None]] = {
    "absolute names": _absolute,
    "names above": _above,
    "a link": _link,
    "a bomb": _bomb,
    "a declared bomb": _declared,
    "a deep name": _deep,
    "a table": _table,
    "an odd image": _odd,
    "a wrong size": _twisted(_wrong_size),
    "encrypted": _twisted(_encrypted),
    "cut": _twisted(_cut),
    "empty": lambda path, draw: _write(path, {}),
}


def odd_npz(path: Path, draw: Random) -> str:
    """An npz of samples with another array than expected, with a pickle, or with a header that tells of more."""
    way = draw.choice(("kind", "shape", "pickle", "bomb", "header", "compressed", "none"))
    if way == "pickle":
        return hostile_npz(path, draw)
    arrays = {
        "kind": np.zeros((9, 8, 8, 3), draw.choice(("f4", "i8", "U3", "?"))),
        "shape": np.zeros(draw.choice(((0, 8, 8, 3), (9, 8, 8), (9, 8, 8, 4), (), (9, 0, 0, 3))), "u1"),
        "compressed": np.zeros((9, 16, 16, 3), "u1"),
    }
    if way in arrays:
        save = np.savez_compressed if way == "compressed" else np.savez
        with path.open("wb") as file:
            save(file, arr_0=arrays[way])
        return way
    shape = (10**6, 1024, 1024, 3) if way in ("bomb", "header") else (0,)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    packed = zipfile.ZIP_DEFLATED if way == "bomb" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", packed) as archive:
        archive.writestr("arr_0.npy" if way != "none" else "other.npy", header.getvalue() + bytes(1000))
    return way
