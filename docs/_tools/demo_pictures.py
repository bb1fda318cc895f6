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
PICTURES = ROOT / "docs" / "images"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
COLOURS = 128  # of a picture; the page has few, and the file stays small
PATIENCE = 30_000  # milliseconds
# What is set on the page for each picture, in order, and what its second side says when it is there.
EXPERIMENTS = {
    "smoothing": ({"Iterations": 10, "Iterations (second)": 1}, "20 timesteps"),
    "reuse": ({"Iterations": 1, "Reuse solutions (second)": False}, "20 timesteps"),
    "budget-12": ({"Budget": 12, "Iterations": 1, "Sampler (second)": "ab2"}, "12 block passes"),
    "decreasing": ({"Iterations": 2, "Iterations (second)": 2, "Allocation (second)": "decreasing"}, "3 to 1 iter"),
    "dit": ({"Iterations": 1, "Sampler": "ab2", "Model (second)": "dit", "Sampler (second)": "ab2"}, "12 blocks each"),
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
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def take(chromium: Browser, url: str, names: list[str]) -> None:
    """Take the pictures of these experiments, and one of the whole page."""
    visitor = Visitor(chromium, url)
    save(visitor.page.screenshot(full_page=True), PICTURES / "demo.png")
    visitor.close()
    for name in names:
        visitor = Visitor(chromium, url, width=1180)
        controls, said = EXPERIMENTS[name]
        visitor.set("Compare with a second setting", True)
        visitor.until("20 timesteps")
        for label, value in controls.items():
            visitor.set(label, value)
        visitor.page.get_by_label("Second setting").get_by_text(said).wait_for()
        visitor.page.wait_for_timeout(1500)  # until the last of several drawings is there
        visitor.until(said)
        save(visitor.results.locator(".sides").screenshot(), PICTURES / f"demo-{name}.png")
        visitor.close()


def main() -> None:
    from fpdm.demo.models import open_models, released
    from fpdm.demo.page import build, serve
    from fpdm.demo.request import Bounds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dit", help="a trained DiT of the digits, for the last picture")
    dit = parser.parse_args().dit
    models = open_models([*released(), *([dit] if dit else [])])
    page = build(models, Bounds(64, 480, 32), queue=5)
    url = serve(page, "127.0.0.1", free_port())
    with browser() as chromium:
        take(chromium, url, [name for name in EXPERIMENTS if dit or name != "dit"])
    page.close()


if __name__ == "__main__":
    main()
