"""Heights and widths of images and latents. In settings and files a square is one number, and all else [height, width].

An error or a table writes them as 256, or as 256x128 (height x width).
"""

Extent = int | list[int] | tuple[int, ...]


def height_width(name: str, extent: Extent) -> tuple[int, int]:
    """(height, width); ValueError, with the name of the setting, for anything but one positive number or two."""
    pair = tuple(extent) if isinstance(extent, (list, tuple)) else (extent, extent)
    if len(pair) != 2 or any(not isinstance(length, int) or length < 1 for length in pair):
        raise ValueError(f"{name}={extent}: give one number for a square, or height and width, as in 256,128")
    return pair


def plain(extent: Extent) -> int | list[int]:
    """The form of settings and files: one number for a square, else [height, width]."""
    height, width = height_width("extent", extent)
    return height if height == width else [height, width]


def said(extent: Extent) -> str:
    """256 for a square, else 256x128."""
    height, width = height_width("extent", extent)
    return str(height) if height == width else f"{height}x{width}"


def check_multiple(name: str, extent: Extent, factor: int, of: str) -> None:
    """ValueError, with the name of the setting, unless height and width are multiples of `factor`. of: what it is."""
    if any(length % factor for length in height_width(name, extent)):
        raise ValueError(f"{name}={said(extent)}: not a multiple of {factor}, {of}")
