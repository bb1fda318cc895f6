"""The server: where it listens, what it refuses, and what a program gets that asks it for too much."""

import http.client
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from fpdm.demo.request import Shared, Way

ROOT = Path(__file__).parents[2]
WEIGHTS = (ROOT / "assets" / "fpdm-digits" / "model.safetensors").as_posix()
FILES = ("/etc/passwd", WEIGHTS, "../../../../etc/passwd", "assets/fpdm-digits/config.json", "pyproject.toml")
WAYS_TO_FILES = ("/file={}", "/file/{}", "/gradio_api/file={}", "/gradio_api/file/{}", "/gradio_api/proxy=file://{}",
                 "/static/{}", "/assets/{}", "/svelte/{}", "/assets/../{}", "/assets/%2e%2e/{}", "/{}",
                 "//{}")  # fmt: skip
NOT_NEEDED = ("/gradio_api/deep_link?session_hash=a", "/monitoring", "/gradio_api/runs", "/gradio_api/openapi.json",
              "/docs", "/openapi.json", "/gradio_api/vibe-code", "/gradio_api/upload_progress?upload_id=a")  # fmt: skip


@pytest.fixture
def send(server):
    """Sends a request as it is written, which clients do not do with `..`; returns status and body."""
    address = urlsplit(server)

    def send(method, path, body=None, headers=None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()

    return send


def test_it_listens_where_it_was_told(server):
    ours = [c for c in psutil.net_connections("inet") if c.pid == os.getpid()]
    listening = [c.laddr for c in ours if c.status == psutil.CONN_LISTEN]
    assert [(one.ip, one.port) for one in listening] == [("127.0.0.1", urlsplit(server).port)]


def test_no_file_of_the_server_is_read(send):
    assert send("GET", "/")[0] == 200
    for way in WAYS_TO_FILES:
        for file in FILES:
            status, body = send("GET", way.format(file))
            assert status in (400, 403, 404, 405), (way, file, status)
            assert b"root:" not in body and b"hidden_size" not in body and b"build-backend" not in body


def test_no_file_is_written(send):
    form = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.txt"\r\n\r\nhello\r\n--x--\r\n'
    status, _ = send("POST", "/gradio_api/upload", form, {"content-type": "multipart/form-data; boundary=x"})
    assert status == 404
    assert [path for path in NOT_NEEDED if send("GET", path)[0] != 404] == []


def test_a_large_body_is_refused(send):
    body = json.dumps({"data": ["x" * 10**6]}).encode()
    assert send("POST", "/gradio_api/queue/join", body, {"content-type": "application/json"})[0] == 413
    assert send("POST", "/gradio_api/queue/join", iter([body]), {"content-type": "application/json"})[0] == 413


def test_a_program_that_asks_for_too_much_gets_one_line(server, shared, way):
    """A list, a file and nonsense in the place of numbers too; afterwards the same program gets its images."""
    from gradio_client import Client

    client = Client(server, verbose=False)

    def ask(shared: Shared, way: Way) -> tuple[str, str]:
        status = client.predict(*shared, False, *way, *way, api_name="/draw")
        return status, client.predict(api_name="/results")

    for wrong, said in (
        (shared._replace(images=10_000), "images=10000: at least 1, at most 64"),
        (shared._replace(budget=10**9), "budget=1000000000: at least 1, at most 480"),
        (shared._replace(seed=[1, 2]), "seed=[1, 2]: expected a number"),
        (shared._replace(label="<script>alert(1)</script>"), "class=&#x27;&lt;script&gt;"),
    ):
        status, results = ask(wrong, way)
        assert results == "" and said in status and status.count("\n") == 0 and "Traceback" not in status
    status, results = ask(shared, way)
    assert "Done." in status and results.count("<img") == 5


def test_an_overfull_queue_is_said(server, shared, way):
    """One drawing at work and two that wait are all; when they are cancelled, the next one is drawn."""
    from gradio_client import Client

    clients = [Client(server, verbose=False) for _ in range(4)]
    long, settings = shared._replace(images=64, budget=480), (False, *way, *way)
    jobs = []
    for client in clients[:3]:
        jobs.append(client.submit(*long, *settings, api_name="/draw"))
        next(jobs[-1])  # it has begun
    refused = clients[3].predict(*shared, *settings, api_name="/draw")
    assert "queue=2: as many drawings wait already; try again in a moment" in refused
    assert [job.cancel() for job in jobs] == [True] * 3
    assert "Done." in clients[3].predict(*shared, *settings, api_name="/draw")
