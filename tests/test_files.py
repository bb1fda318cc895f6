"""Files written whole or not at all."""

import ast
import errno
import os
import re
import resource
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from fpdm import locks
from fpdm.files import make_folder, new_folder, read_json, replaced, write_arrays, write_atomically, write_figure
from fpdm.locks import only_writer


def test_text_and_arrays(tmp_path):
    write_atomically(tmp_path / "a.json", "one")
    write_atomically(tmp_path / "a.json", "two")
    write_arrays(tmp_path / "b.npz", {"x": np.arange(3)})
    assert (tmp_path / "a.json").read_text() == "two"
    with np.load(tmp_path / "b.npz") as file:
        assert file["x"].tolist() == [0, 1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.npz"}


@pytest.mark.parametrize("sync", [True, False])
def test_a_full_disk_leaves_the_old_content_and_names_the_file(tmp_path, sync):
    path = tmp_path / "image.png"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as caught, replaced(path, sync) as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a", b"\x89PNG")])
def test_figures_have_the_format_of_their_name(tmp_path, name, begins):
    write_figure(tmp_path / name, Figure())
    assert (tmp_path / name).read_bytes().startswith(begins) and len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def small_files():
    """No file of this process may become larger than 100,000 bytes. To torch and safetensors, it is a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_libraries_that_cannot_write_name_the_file(tmp_path, small_files, save):
    tensors = {"x": torch.zeros(100_000)}
    with pytest.raises(OSError) as caught, replaced(tmp_path / "weights") as partial:
        save(tensors, partial)
    assert caught.value.filename == str(tmp_path / "weights") and caught.value.strerror
    with pytest.raises(OSError) as caught, new_folder(tmp_path / "model") as partial:
        save(tensors, partial / "weights")
    assert caught.value.filename == str(tmp_path / "model") and not any(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="of another kind"), replaced(tmp_path / "weights"):
        raise RuntimeError("of another kind")


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replaced(tmp_path / "a.npz"):
        (tmp_path / "absent.png").read_bytes()
    assert caught.value.filename == str(tmp_path / "absent.png")


def test_no_folder_to_write_to(tmp_path):
    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "absent" / "a.json", "text")
    assert caught.value.filename == str(tmp_path / "absent" / "a.json")


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe\x00"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "scores.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"scores\.json is damaged .*; remove it"):
        read_json(tmp_path / "scores.json")


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "above" / "made"
    with new_folder(path) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a.txt").write_text("a")
        assert not path.exists()
    assert (path / "sub" / "a.txt").read_text() == "a" and [p.name for p in path.parent.iterdir()] == ["made"]
    with pytest.raises(ValueError, match="already exists and is not empty"), new_folder(path):
        raise AssertionError
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyError), new_folder(tmp_path / "empty") as partial:
        raise KeyError
    (tmp_path / ".empty.partial").mkdir()
    (tmp_path / ".empty.partial" / "old").touch()  # what a kill has left
    with new_folder(tmp_path / "empty") as partial:
        (partial / "new").touch()
    assert [p.name for p in (tmp_path / "empty").iterdir()] == ["new"]
    assert {p.name for p in tmp_path.iterdir()} == {"above", "empty"}


def test_names_reach_the_disk_too(tmp_path, monkeypatch):
    """After the content, so that a name never stands for less than the whole."""
    synced, fsync = [], os.fsync

    def note(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    make_folder(tmp_path / "a" / "b")
    assert synced == [str(tmp_path / "a"), str(tmp_path)]
    synced.clear()
    write_atomically(tmp_path / "a" / "b" / "c.txt", "text")
    assert synced == [str(tmp_path / "a" / "b" / ".c.txt.partial"), str(tmp_path / "a" / "b")]


def test_two_that_make_the_same_folder(tmp_path):
    """The second waits and is refused; the first is whole. Neither waits for the folder above."""
    begun, refused = threading.Event(), []

    def second():
        begun.wait()
        try:
            with new_folder(tmp_path / "made") as partial:
                (partial / "second").touch()
        except (ValueError, OSError) as error:
            refused.append(str(error))

    other = threading.Thread(target=second)
    other.start()
    with only_writer(tmp_path), new_folder(tmp_path / "made") as partial:
        begun.set()
        time.sleep(0.3)
        (partial / "first").touch()
    other.join(10)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["first"]
    assert len(refused) == 1 and "already exists and is not empty" in refused[0]


def test_one_that_waited_for_a_failure_has_a_folder_of_its_own(tmp_path):
    """The first fails and removes what it had. Of the one that waits and one that comes then, one makes the folder."""
    first, go_on, inside, most, refused = threading.Event(), threading.Event(), [], [], []

    def make(name):
        try:
            with new_folder(tmp_path / "made") as partial:
                inside.append(name)
                most.append(len(inside))
                time.sleep(0.3)
                (partial / name).touch()
                inside.remove(name)
        except ValueError as error:
            refused.append(str(error))

    def fail():
        with suppress(KeyError), new_folder(tmp_path / "made"):
            first.set()
            go_on.wait()
            time.sleep(0.2)  # now the second waits
            raise KeyError

    threads = [threading.Thread(target=work) for work in (fail, lambda: make("second"), lambda: make("third"))]
    threads[0].start()
    first.wait()
    threads[1].start()
    go_on.set()
    threads[0].join()
    threads[2].start()
    for thread in threads:
        thread.join(10)
    assert most == [1] and len(refused) == 1 and "already exists and is not empty" in refused[0]
    assert len(list((tmp_path / "made").iterdir())) == 1 and [path.name for path in tmp_path.iterdir()] == ["made"]


def test_two_that_write_the_same_file(tmp_path):
    """The second waits for the first, so neither is seen half-written, and it begins with an empty file."""
    path, seen = tmp_path / "score.json", []
    with replaced(path) as partial:
        partial.write_text("the first, which is longer")
        other = threading.Thread(target=write_atomically, args=(path, "the second"))
        other.start()
        time.sleep(0.3)
        seen.append(partial.read_text())
    other.join(10)
    assert seen == ["the first, which is longer"] and path.read_text() == "the second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_another_program_goes_on_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    with replaced(tmp_path / "score.json") as partial:
        partial.write_text("first")
        with pytest.raises(ValueError, match=r"score\.json\.partial: another program is writing this file; wait until"):
            write_atomically(tmp_path / "score.json", "second")
        assert partial.read_text() == "first"
    assert (tmp_path / "score.json").read_text() == "first"


def test_what_a_kill_left_of_a_file_is_replaced(tmp_path):
    (tmp_path / ".score.json.partial").write_text("half, and longer than the whole")
    write_atomically(tmp_path / "score.json", "whole")
    assert (tmp_path / "score.json").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), replaced(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())


ROOT = Path(__file__).parents[1]
WRITERS = re.compile(r"\.(write_text|write_bytes|savefig)$|^(np\.savez?|torch\.save|json\.dump|save_file)$")


def writes(path: Path) -> list[str]:
    """The calls in a file that write a file."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if WRITERS.search(ast.unparse(call.func))]


def test_every_file_is_written_under_another_name_first():
    """In `replaced` or `new_folder`, whose paths are named so; a kill amid any other write leaves half a file."""
    files = [path for top in ("fpdm", "scripts") for path in (ROOT / top).rglob("*.py") if path.parent.name != "soak"]
    found = {path: writes(path) for path in files if writes(path)}
    assert len(found) > 5
    for path, calls in found.items():
        assert all("partial" in call or re.search(r"\(\w+, file\)|\(file, ", call) for call in calls), (path, calls)
