"""A page in the browser: move a slider, and the model draws again. Needs the extra `demo`."""

import importlib.util
import logging
import os
import socket
import threading
from dataclasses import dataclass

from fpdm import cli
from fpdm.config import check_range, limits

logger = logging.getLogger("fpdm")
# A Space says in the environment where it expects the page.
HOST, PORT = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), int(os.environ.get("GRADIO_SERVER_PORT", "7860"))


@dataclass
class Settings:
    """Which models the page offers, where it is served, and how much one visitor may ask for.

    Args:
        ckpt: runs, checkpoints, exported folders or Hub ids; the models in assets/ if not given.
        host: address to listen on; 0.0.0.0 for all of this machine. A Space sets another default.
        port: port to listen on.
        share: also show the page at a public address of Gradio's, for a week.
        most_images: images in one drawing.
        most_passes: block passes per image, the end of the budget's slider.
        most_iterations: iterations per timestep, the end of their slider.
        queue: drawings that may wait; more are refused.
    """

    ckpt: tuple[str, ...] = ()
    host: str = HOST
    port: int = PORT
    share: bool = False
    most_images: int = 64
    most_passes: int = 480
    most_iterations: int = 32
    queue: int = 20

    def __post_init__(self):
        check_range(1, 65_535, port=self.port)
        check_range(1, limits.SAMPLES, most_images=self.most_images)
        check_range(1, limits.PASSES, most_passes=self.most_passes)
        check_range(1, limits.ITERATIONS, most_iterations=self.most_iterations)
        check_range(1, limits.SAMPLES, queue=self.queue)


def parser():
    return cli.make_parser(Settings, __doc__)


def check_address(host: str, port: int) -> None:
    """ValueError if nothing can listen there: Gradio's own message names other options than ours."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ValueError(
            f"host={host}, port={port}: cannot listen there ({error.strerror}); choose another --host or --port"
        ) from error


def main() -> None:
    settings = cli.parse(Settings, parser())
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('gradio is not installed; pip install -e ".[demo]"')
    check_address(settings.host, settings.port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported
    from fpdm.demo.models import open_models
    from fpdm.demo.page import build, serve
    from fpdm.demo.request import Bounds

    bounds = Bounds(settings.most_images, settings.most_passes, settings.most_iterations)
    page = build(open_models(settings.ckpt), bounds, settings.queue)
    logger.info(f"{serve(page, settings.host, settings.port, settings.share)} (Ctrl-C ends it)")
    try:
        threading.Event().wait()
    finally:
        page.close()


def run() -> None:
    cli.run(main)
