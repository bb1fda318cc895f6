"""scripts/demo.py: where it serves by default and on a Space, and what it says when it cannot."""

import importlib.util
import re
import runpy
import socket
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(monkeypatch, capsys):
    """Runs the script up to where it would serve; returns where, its exit status and what it printed as an error."""
    pytest.importorskip("gradio")

    def start(*words, script=ROOT / "scripts" / "demo.py", **environment):
        served = []

        def serve(page, *where):
            served.extend(where)
            raise KeyboardInterrupt

        for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delitem(sys.modules, "fpdm.commands.demo", raising=False)
        monkeypatch.setattr("fpdm.demo.page.serve", serve)
        monkeypatch.setattr(sys, "argv", ["demo.py", *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
        return tuple(served), end.value.code, capsys.readouterr().err

    return start


def test_it_serves_this_machine_alone_unless_told_otherwise(start):
    assert start() == (("127.0.0.1", 7860, False), 130, "interrupted\n")
    assert start("--host", "0.0.0.0", "--port", "8000", "--share")[0] == ("0.0.0.0", 8000, True)


def test_on_a_space_it_serves_where_the_space_expects_it(start):
    assert start(GRADIO_SERVER_NAME="0.0.0.0", GRADIO_SERVER_PORT="7861")[0] == ("0.0.0.0", 7861, False)


def test_the_app_of_the_documentation_runs(start, monkeypatch, tmp_path):
    (app,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "demo.md").read_text(), re.DOTALL)
    script = tmp_path / "app.py"
    script.write_text(app.replace("you/model", "assets/fpdm-digits"))
    served, status, _ = start(script=script, GRADIO_SERVER_NAME="0.0.0.0")
    assert (served, status) == (("0.0.0.0", 7860, False), 130)


def test_mistakes_get_one_line(start, monkeypatch):
    for words, said in (
        (["--ckpt", "results/nowhere"], "results/nowhere"),
        (["--port", "0"], "port=0: at least 1"),
        (["--most-images", "0"], "most_images=0: at least 1"),
    ):
        served, status, error = start(*words)
        assert (served, status, error.count("\n")) == ((), 2, 1) and said in error
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    assert start()[2] == 'error: gradio is not installed; pip install -e ".[demo]"\n'


def test_an_address_where_nothing_can_listen_is_named():
    from fpdm.commands.demo import check_address

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"host=127\.0\.0\.1, port={port}: cannot listen there .*--host or --port"
        ):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(ValueError, match=r"host=999\.1\.1\.1, port=7860: cannot listen there"):
        check_address("999.1.1.1", 7860)
