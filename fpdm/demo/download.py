"""What can be taken away: the PNGs, and the command that makes them."""

import io
import shlex
import zipfile
from dataclasses import fields
from pathlib import Path

from fpdm.demo.drawing import Drawn
from fpdm.demo.request import Asked
from fpdm.sampling.images import encode_png, png_path
from fpdm.sampling.settings import SamplingConfig

COMMAND = "command.txt"


def command_line(asked: Asked) -> str:
    """The command of sample.py for these images: on the same kind of machine, its files have the same bytes.

    It names the checkpoint as it was given. The batch has to be the same, because rounding depends on its size.
    """
    words = ["--ckpt", asked.offered.ckpt]
    for field in fields(SamplingConfig):
        value = getattr(asked.config, field.name)
        if value != field.default:
            words += [f"--{field.name.replace('_', '-')}", _written(value)]
    count = str(asked.images)
    return shlex.join(["python", "scripts/sample.py", *words, "--num-samples", count, "--batch-size", count])


def _written(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def archive(drawn: Drawn) -> bytes:
    """A zip of the PNGs, named as sample.py names them, and the command."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as out:
        for index, image in enumerate(drawn.images):
            out.writestr(png_path(Path(), index).name, encode_png(image))
        out.writestr(COMMAND, command_line(drawn.asked) + "\n")
    return content.getvalue()
