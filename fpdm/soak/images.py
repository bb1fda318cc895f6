"""Odd images, and archives that are made to do harm."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
SIZES = ((1, 1), (1, 2000), (2000, 1), (3, 5), (16, 16), (300, 200))
BOMB = 10 * 2**30  # bytes that 10 MB or fewer unpack to


def odd_image(path: Path, draw: Random) -> str:
    """An image of any mode, size and format: cut, animated, turned, or enormous."""
    path.parent.mkdir(parents=True, exist_ok=True)
    way = draw.choice(("mode", "mode", "cut", "animated", "turned", "enormous", "noise"))
    if way == "enormous":
        side = draw.choice((20_000, 60_000, 2**31 - 1))
        path.write_bytes(_png_header(side, side))
        return f"a PNG of {side} x {side} pixels in some bytes"
    mode, size = draw.choice(MODES), draw.choice(SIZES)
    image = Image.new(mode, size)
    settings, kind = {}, draw.choice(FORMATS)
    if way == "animated":
        kind, settings = draw.choice(("GIF", "WEBP", "TIFF", "PNG")), {
            "save_all": True, "append_images": [Image.new(mode, size) for _ in range(3)]}  # fmt: skip
    if way == "turned":
        exif = Image.Exif()
        exif[0x0112] = draw.randrange(0, 12)
        kind, settings = "JPEG", {"exif": exif}
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **settings)
    except (OSError, ValueError, KeyError, TypeError, SystemError):  # this format has no such mode
        Image.new("RGB", size).save(buffer, "PNG")
    content = buffer.getvalue()
    if way == "cut":
        content = content[: draw.randrange(len(content))]
    if way == "noise":
        content = draw.randbytes(draw.choice((0, 10, 1000)))
    path.write_bytes(content)
    return f"{way}: {mode} {size} {kind}"


def _png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def odd_zip(path: Path, draw: Random) -> str:
    """A zip with names outside of it, links, bombs, wrong tables, wrong sizes, or an image that is odd."""
    way = draw.choice(
        ("absolute", "above", "link", "bomb", "nested", "table", "sizes", "odd", "cut", "encrypted", "none")
    )
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(picture, "PNG")
    whole = picture.getvalue()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if way == "absolute":
            archive.writestr("/etc/cat/1.png", whole)
        elif way == "above":
            archive.writestr("../../../outside/1.png", whole)
        elif way == "link":
            info = zipfile.ZipInfo("cat/1.png")
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
        elif way == "bomb":
            with archive.open("cat/1.png", "w", force_zip64=True) as file:
                for _ in range(256):  # 256 MiB of zeros, which are told to be more below
                    file.write(bytes(2**20))
        elif way == "nested":
            archive.writestr("cat/" * 500 + "1.png", whole)
        elif way == "table":
            archive.writestr("1.png", whole)
            labels = draw.choice(({"labels": 3}, {"labels": [["1.png"]]}, {"labels": [["1.png", "a"]]}, [],
                                  {"labels": {}}, {"labels": [[1, 2]]}, {"labels": [["1.png", 10**12]]},
                                  {"labels": [["1.png", True]]}, {"labels": [None]}, 5, "text"))  # fmt: skip
            archive.writestr("dataset.json", draw.choice((json.dumps(labels), "{", "", "[" * 5000)))
            way = f"table {str(labels)[:60]}"
        elif way == "odd":
            file = path.with_name("odd.png")
            way = odd_image(file, draw)
            archive.writestr("cat/1.png", file.read_bytes())
            file.unlink()
        elif way != "none":
            archive.writestr("cat/1.png", whole)
            archive.writestr("dog/2.png", whole)
    content = bytearray(path.read_bytes())
    central = content.find(b"PK\x01\x02")
    if way == "sizes" and central > 0:
        content[central + 24 : central + 28] = struct.pack("<I", draw.choice((0, 1, 2**32 - 2)))
    if way == "encrypted" and central > 0:
        content[central + 8] |= 1
        content[6] |= 1
    if way == "cut":
        del content[draw.randrange(len(content)) :]
    path.write_bytes(content)
    return way


def odd_npz(path: Path, draw: Random) -> str:
    """An npz of samples with another array than expected, with a pickle, or with a header that tells of more."""
    way = draw.choice(("kind", "shape", "pickle", "bomb", "header", "compressed", "none"))
    arrays = {
        "kind": np.zeros((9, 8, 8, 3), draw.choice(("f4", "i8", "U3", "?"))),
        "shape": np.zeros(draw.choice(((0, 8, 8, 3), (9, 8, 8), (9, 8, 8, 4), (), (9, 0, 0, 3))), "u1"),
        "pickle": np.array([{"a": 1}], object),
        "compressed": np.zeros((9, 16, 16, 3), "u1"),
    }
    if way in arrays:
        save = np.savez_compressed if way == "compressed" else np.savez
        with path.open("wb") as file:
            save(file, arr_0=arrays[way], allow_pickle=True)
        return way
    shape = (10**6, 1024, 1024, 3) if way in ("bomb", "header") else (0,)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    packed = zipfile.ZIP_DEFLATED if way == "bomb" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", packed) as archive:
        archive.writestr("arr_0.npy" if way != "none" else "other.npy", header.getvalue() + bytes(1000))
    return way
