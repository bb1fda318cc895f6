"""Odd images: of any mode, size and format, cut, animated, turned, or much larger than their files."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

from PIL import Image

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
SIZES = ((1, 1), (1, 2000), (2000, 1), (3, 5), (16, 16), (300, 200))
ORIENTATION = 0x0112  # in EXIF
PART = 2**20


def odd_image(path: Path, draw: Random) -> str:
    """An image of one of the ways below."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = draw.choice(list(WAYS))
    content, did = WAYS[name](draw)
    path.write_bytes(content)
    return f"{name}: {did}"


def _saved(mode: str, size: tuple[int, int], kind: str, **settings) -> bytes:
    """The content of a file; a PNG if the format does not have the mode."""
    content = io.BytesIO()
    try:
        Image.new(mode, size).save(content, kind, **settings)
    except (OSError, ValueError, KeyError, TypeError, SystemError):
        content = io.BytesIO()
        Image.new("RGB", size).save(content, "PNG")
    return content.getvalue()


def _any(draw: Random) -> tuple[bytes, str]:
    mode, size, kind = draw.choice(MODES), draw.choice(SIZES), draw.choice(FORMATS)
    return _saved(mode, size, kind), f"{mode} {size} {kind}"


def _sixteen_bit(draw: Random) -> tuple[bytes, str]:
    kind = draw.choice(("PNG", "TIFF"))
    return _saved("I;16", (20, 30), kind), kind


def _cmyk(draw: Random) -> tuple[bytes, str]:
    kind = draw.choice(("JPEG", "TIFF"))
    return _saved("CMYK", (20, 30), kind), kind


def _cut(draw: Random) -> tuple[bytes, str]:
    content, did = _any(draw)
    return content[: draw.randrange(len(content))], did


def _animated(draw: Random) -> tuple[bytes, str]:
    kind, size = draw.choice(("GIF", "WEBP", "TIFF", "PNG")), draw.choice(SIZES)
    frames = [Image.new("RGB", size, (60 * i, 0, 0)) for i in range(1, 4)]
    return _saved("RGB", size, kind, save_all=True, append_images=frames), f"{size} {kind}"


def _turned(draw: Random) -> tuple[bytes, str]:
    exif, turn = Image.Exif(), draw.randrange(0, 12)
    exif[ORIENTATION] = turn
    return _saved("RGB", draw.choice(SIZES), "JPEG", exif=exif), f"EXIF orientation {turn}"


def _declared(draw: Random) -> tuple[bytes, str]:
    side = draw.choice((20_000, 60_000, 2**31 - 1))
    return _png(side, zlib.compress(bytes(1000))), f"a PNG said to be of {side} x {side} pixels"


def _bomb(draw: Random) -> tuple[bytes, str]:
    """A whole PNG of zeros: 3 bytes a pixel when it is unpacked, a thousandth of that in the file."""
    side = draw.choice((9_000, 20_000))
    parts = -(-side * (1 + 3 * side) // PART)
    check = struct.pack(">I", parts * PART % 65521 << 16 | 1)  # Adler-32 of zeros
    return _png(side, b"\x78\x9c" + deflated_zeros(parts) + check), f"{side} x {side} pixels"


def _noise(draw: Random) -> tuple[bytes, str]:
    length = draw.choice((0, 10, 1000))
    return draw.randbytes(length), f"{length} bytes"


def deflated_zeros(parts: int) -> bytes:
    """So many times PART zeros, deflated 1:1000, which is the most that deflate can do; made in no time, because a part
    that is packed by itself can be repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (packer.compress(bytes(PART)) + packer.flush(zlib.Z_FULL_FLUSH)) * parts + packer.flush(zlib.Z_FINISH)


def _png(side: int, packed: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


WAYS: dict[str, Callable[[Random], tuple[bytes, str]]] = {
    "any": _any,
    "16 bit": _sixteen_bit,
    "CMYK": _cmyk,
    "cut": _cut,
    "animated": _animated,
    "turned": _turned,
    "declared bomb": _declared,
    "bomb": _bomb,
    "noise": _noise,
}
