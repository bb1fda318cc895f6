"""A file that cannot be read for want of memory is not called damaged."""

import pytest
import torch

from fpdm import cli
from fpdm.damage import damaged, is_out_of_memory
from fpdm.data.codec import open_codec
from fpdm.data.latent_formats import STATS, load_stats
from fpdm.evaluation.weights import read_weights
from fpdm.models.convert import read_published
from fpdm.training.checkpoint import TRAINER, load_trainer

ERRORS = [MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
          torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]  # fmt: skip


def refuse(error):
    def load(*args, **settings):
        raise error

    return load


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_no_memory_to_read_a_file(tmp_path, monkeypatch, error):
    monkeypatch.setattr(torch, "load", refuse(error))
    readers = {TRAINER: lambda path: load_trainer(path.parent), STATS: lambda path: load_stats(path.parent),
               "weights.pt": read_published, "weights.pth": lambda path: read_weights(path, "inception")}  # fmt: skip
    for name, reader in readers.items():
        (tmp_path / name).touch()
        with pytest.raises(MemoryError, match=f"{name} could not be read"):
            reader(tmp_path / name)


def test_no_memory_to_read_a_vae(tiny_vae, monkeypatch):
    """diffusers makes an OSError of it."""

    def load(*args, **settings):
        try:
            raise MemoryError
        except MemoryError as error:
            raise OSError("Unable to load weights from checkpoint file") from error

    monkeypatch.setattr("diffusers.AutoencoderKL.from_pretrained", load)
    with pytest.raises(MemoryError, match="could not be read"):
        open_codec(str(tiny_vae))


def test_all_else_is_damage():
    for error in (KeyError("a\nb"), RecursionError("too deep"), RuntimeError("invalid magic number")):
        assert not is_out_of_memory(error)
        with (
            pytest.raises(ValueError, match=r"^is damaged \([^\n]*\); remove it$"),
            damaged("", "is damaged", "remove it"),
        ):
            raise error


@pytest.mark.parametrize("error", [*ERRORS, MemoryError("a.pt could not be read")])
def test_one_line(capsys, error):
    def main():
        raise error

    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    said = capsys.readouterr().err
    assert exit.value.code == 2 and said.startswith("error: out of memory") and said.count("\n") == 1
    assert str(error)[:100] in said
