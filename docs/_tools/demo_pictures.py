"""The pictures of docs/demo.md, made by the page itself in a browser without a window.

    python docs/_tools/demo_pictures.py --dit results/quickstart/runs/001-dit

Without --dit, the picture that compares the two families stays as it is. Tests use the same browser and visitor.
"""

import argparse
import io
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
FPDM = "assets/fpdm-digits"
PICTURES = ROOT / "docs" / "images"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SAMPLE = "python scripts/sample.py"
COLOURS = 256  # of a picture, so that the file stays small
PATIENCE = 30_000  # milliseconds
# What is set on the page for each picture, and the settings in the command of each side when it is drawn.
EXPERIMENTS = {
    "smoothing": ({"Iterations": 10, "Iterations (second)": 1},
                  ("--budget 60 --iterations 10", "--budget 60 --iterations 1")),
    "reuse": ({"Iterations": 1, "Reuse solutions (second)": False},
              ("--budget 60 --iterations 1", "--budget 60 --iterations 1 --reuse false")),
    "budget-12": ({"Budget": 12, "Iterations": 1, "Sampler (second)": "ab2"},
                  ("--budget 12 --iterations 1", "--budget 12 --iterations 1 --sampler ab2")),
    "decreasing": ({"Iterations": 2, "Iterations (second)": 2, "Allocation (second)": "decreasing"},
                   ("--budget 60 --iterations 2", "--budget 60 --iterations 2 --allocation decreasing")),
    "dit": ({"Iterations": 1, "Sampler": "ab2", "Model (second)": "dit", "Sampler (second)": "ab2"},
            ("--budget 60 --iterations 1 --sampler ab2", "--budget 60 --sampler ab2")),
}  # fmt: skip


def browser_program() -> str | None:
    """A Chromium on this machine; None if there is none."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    with sync_playwright() as playwright:
        # Its sandbox cannot start as root, as in most containers; it sees no page but ours.
        chromium = playwright.chromium.launch(executable_path=browser_program(), args=["--no-sandbox"])
        yield chromium
        chromium.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Visitor:
    """One who uses the page: finds controls by their labels, as a screen reader does, and waits for what they cause."""

    def __init__(self, browser: Browser, url: str, width: int = 1280, scheme: str = "light"):
        """width: of the window, in pixels. scheme: of the colours, light or dark."""
        self.page: Page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.asked: list[str] = []  # addresses
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.goto(url)
        self.until("block passes")

    @property
    def status(self) -> str:
        return self.page.locator("#status").inner_text().strip()

    @property
    def results(self) -> Locator:
        return self.page.locator("#results")

    def said(self) -> str:
        """What the results say of the plan, the cost and the time."""
        return self.results.locator(".plan").first.inner_text()

    def until(self, text: str, status: str = "Done.") -> None:
        """Wait until the results have this text and the status is this one."""
        self.results.get_by_text(text).first.wait_for()
        self.page.locator("#status").get_by_text(status).wait_for()

    def until_command(self, command: str, side: int = 0) -> None:
        """Wait until a side shows what this command makes. It names every setting, so no earlier drawing has it."""
        expect(self.results.locator(".command").nth(side)).to_have_text(command, timeout=PATIENCE)

    def until_status(self, text: str) -> None:
        self.page.locator("#status").get_by_text(text).first.wait_for()

    def set(self, label: str, value: int | float | bool | str) -> None:
        """Set a control by its label: a checkbox, a choice, a number, or a slider by the number beside it."""
        if isinstance(value, bool):
            self.page.get_by_label(label, exact=True).set_checked(value)
        elif isinstance(value, str):
            self.page.get_by_label(label, exact=True).click()
            self.page.get_by_role("option").filter(has_text=value).first.click()
        else:
            self.number(label).fill(str(value))

    def number(self, label: str) -> Locator:
        """The field of a number, alone or beside a slider."""
        alone, beside = (self.page.get_by_role("spinbutton", name=name, exact=True)
                         for name in (label, f"number input for {label}"))  # fmt: skip
        return alone.or_(beside)

    def slider(self, label: str) -> Locator:
        return self.page.get_by_label(f"range slider for {label}", exact=True)

    def pictures(self) -> list[str | None]:
        """The drawn images of all sides, as URLs that hold them."""
        return [image.get_attribute("src") for image in self.results.locator(".grid img").all()]

    def close(self) -> None:
        self.page.context.close()


def save(picture: bytes, path: Path) -> None:
    """Write a screenshot with fewer colours."""
    whole = Image.open(io.BytesIO(picture)).convert("RGB")
    whole.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def take(chromium: Browser, url: str, names: list[str], checkpoints: list[str]) -> None:
    """Take the pictures of these experiments, and one of the whole page. checkpoints: of the FPDM, and of the DiT."""
    visitor = Visitor(chromium, url)
    save(visitor.page.screenshot(full_page=True), PICTURES / "demo.png")
    visitor.close()
    for name in names:
        visitor = Visitor(chromium, url, width=1180)
        controls, commands = EXPERIMENTS[name]
        for label, value in {"Compare with a second setting": True, **controls}.items():
            visitor.set(label, value)
        for side, settings in enumerate(commands):
            ckpt = checkpoints[side if name == "dit" else 0]
            visitor.until_command(f"{SAMPLE} --ckpt {ckpt} {settings} --num-samples 16 --batch-size 16", side)
        save(visitor.results.locator(".sides").screenshot(), PICTURES / f"demo-{name}.png")
        visitor.close()


def main() -> None:
    from fpdm.demo.models import open_models
    from fpdm.demo.page import build, serve
    from fpdm.demo.request import Bounds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dit", help="a trained DiT of the digits, for the last picture")
    dit = parser.parse_args().dit
    checkpoints = [FPDM, *([dit] if dit else [])]
    page = build(open_models(checkpoints), Bounds(64, 480, 32), queue=5)
    url = serve(page, "127.0.0.1", free_port())
    with browser() as chromium:
        take(chromium, url, [name for name in EXPERIMENTS if dit or name != "dit"], checkpoints)
    page.close()


if __name__ == "__main__":
    main()
