"""The files that are made to do harm would do it, if they were read carelessly."""

import io
import zipfile
from contextlib import suppress
from pickle import UnpicklingError
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from fpdm.soak import archives, images
from fpdm.soak.hostile import canary, hostile_npy, hostile_npz, plain_pickle, torch_archive


@pytest.mark.parametrize("make", [plain_pickle, torch_archive])
def test_hostile_pickles_run(tmp_path, make):
    path = tmp_path / "a.pt"
    make(path, Random(0))
    with pytest.raises(UnpicklingError, match="weights_only"):
        torch.load(path, weights_only=True)
    assert not canary(path).exists()
    with suppress(RuntimeError):  # of what has been unpickled, which is no number of a torch file
        torch.load(path, weights_only=False, mmap=make is torch_archive)
    assert canary(path).exists()


def test_hostile_arrays_run(tmp_path):
    path = tmp_path / "a.npy"
    hostile_npy(path, Random(0))
    np.load(path, allow_pickle=True)
    assert canary(path).exists()
    canary(path).rmdir()
    np.savez(tmp_path / "a.npz", x=np.zeros(2), y=np.ones(3))
    assert "objects in" in hostile_npz(tmp_path / "a.npz", Random(0))
    with np.load(tmp_path / "a.npz", allow_pickle=True) as file:
        assert {"x", "y"} == set(file.files)
        assert [file[name] for name in file.files]
    assert canary(path).exists()


def test_bombs(tmp_path):
    """A zip of 10 MB, and one of a kilobyte, that both say that they hold 10 GiB; the first one does."""
    for make, most in ((archives._bomb, 11e6), (archives._declared, 2000)):
        make(tmp_path / "a.zip", Random(0))
        assert (tmp_path / "a.zip").stat().st_size < most
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            (member,) = archive.infolist()
            assert member.file_size == archives.BOMB == 10 * 2**30
            with archive.open(member) as file:
                assert file.read(2**19) == bytes(2**19)


def test_a_bomb_of_an_image_is_a_whole_image():
    content, did = images._bomb(Random(1))
    side = int(did.split()[0])
    assert len(content) < 3 * side**2 / 900
    with Image.open(io.BytesIO(images._png(900, b"\x78\x9c" + images.deflated_zeros(3)))) as image:
        assert image.size == (900, 900)


def test_every_way_makes_a_file(tmp_path):
    for name, make in images.WAYS.items():
        assert isinstance(make(Random(0))[0], bytes), name
    for name, make in archives.ZIPS.items():
        make(tmp_path / "a.zip", Random(0))
        assert (tmp_path / "a.zip").exists(), name
