"""The page in a real browser: opens, draws, obeys its controls, compares, cancels, refuses, gives away its images."""

import runpy
import shlex
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chromium(tools):
    if tools["browser_program"]() is None:
        pytest.skip("there is no Chromium on this machine (apt-get install chromium)")
    with tools["browser"]() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def visit(tools, chromium, server):
    return lambda **window: tools["Visitor"](chromium, server, **window)


ORDER = ("budget", "iterations", "allocation", "reuse", "reuse-weight", "sampler", "cfg-scale", "classes", "seed",
         "num-samples", "batch-size")  # fmt: skip
START = {"budget": 12, "iterations": 1, "num-samples": 4}


def command(ckpt="assets/fpdm-digits", **settings) -> str:
    """The command for these settings beside those that the visitor starts from; None removes one."""
    settings = START | {name.replace("_", "-"): value for name, value in settings.items()}
    settings["batch-size"] = settings["num-samples"]
    words = [f"--{name} {settings[name]}" for name in ORDER if settings.get(name) is not None]
    return " ".join(["python scripts/sample.py --ckpt", ckpt, *words])


@pytest.fixture
def visitor(visit):
    """Someone with a new tab, who has asked for few images, one control after the other."""
    visitor = visit()
    settings = {"num_samples": 16, "iterations": 4, "budget": 60}  # of the open page
    for label, value, name in (("Images", 4, "num_samples"), ("Iterations", 1, "iterations"), ("Budget", 12, "budget")):
        visitor.set(label, value)
        settings[name] = value
        visitor.until_command(command(**settings))
    yield visitor
    visitor.close()


def test_it_opens_draws_and_asks_nobody_else(visitor, server):
    assert len(set(visitor.pictures())) == 4
    assert "fpdm-digits: 4 timesteps (999..0), 2 explicit blocks + 1 iterations each: 12 block pass" in visitor.said()
    assert "GFLOPs per image; 4 images in" in visitor.said()
    assert visitor.results.locator(".strip").count() == 1 and visitor.results.locator("svg rect").count() == 4
    assert {url for url in visitor.asked if not url.startswith((server, "data:"))} == set()
    assert len(visitor.asked) > 10 and not visitor.errors


def test_each_control_changes_what_is_drawn(visitor):
    seen, settings = [visitor.pictures()], {}
    for label, value, name in (
        ("Seed", 1, "seed"),
        ("Class", "7", "classes"),
        ("Sampler", "ab2", "sampler"),
        ("Guidance", 3, "cfg_scale"),
        ("Budget", 24, "budget"),
        ("Reuse weight", 0.8, "reuse_weight"),
        ("Iterations", 2, "iterations"),
        ("Allocation", "decreasing", "allocation"),
        ("Images", 5, "num_samples"),
    ):
        visitor.set(label, value)
        settings[name] = value
        visitor.until_command(command(**settings))
        assert visitor.pictures() not in seen, label
        seen.append(visitor.pictures())
    names = [image.get_attribute("alt") for image in visitor.results.locator(".grid img").all()]
    assert names == [f"image {i}, class 7" for i in range(5)]


def test_what_is_not_possible_is_greyed_out_or_said(visitor):
    visitor.set("Allocation", "decreasing")
    visitor.until_status("allocation=decreasing with iterations=1: nothing to move; give at least 2")
    visitor.set("Allocation", "constant")
    visitor.until_status("Done.")
    visitor.set("Reuse solutions", False)
    visitor.until_command(command(reuse="false"))
    visitor.page.get_by_text("no earlier solution is kept").wait_for()
    assert visitor.slider("Reuse weight").is_disabled() and not visitor.slider("Iterations").is_disabled()
    visitor.set("Model", "dit")
    visitor.until_command(command("results/dit", iterations=None))
    visitor.page.get_by_text("an explicit model (DiT) has no iterations; leave it out").wait_for()
    assert visitor.slider("Iterations").is_disabled() and visitor.slider("Guidance").is_disabled()
    assert "A DiT has no iterations, so it has no residuals." in visitor.results.inner_text()
    visitor.set("Model", "fpdm")  # which reuses solutions
    visitor.until_command(command())
    assert not visitor.slider("Iterations").is_disabled()


def test_a_bad_value_is_said_and_the_page_goes_on(visitor):
    before = visitor.pictures()
    for label, value, said in (("Images", 65, "images=65: at least 1, at most 64"), ("Seed", "", "seed=None: expected"),
                               ("Budget", 2, "budget=2 does not hold one timestep")):  # fmt: skip
        field = visitor.number(label)
        kept = field.input_value()
        field.fill(str(value))
        visitor.until_status(said)
        assert visitor.pictures() == before
        field.fill(kept)
        visitor.until_status("Done.")


def test_the_keyboard_moves_the_dial(visitor):
    visitor.slider("Budget").focus()
    for _ in range(3):
        visitor.page.keyboard.press("ArrowRight")
    visitor.until_command(command(budget=15))


def test_two_settings_side_by_side(visitor):
    """Another model with its only setting, then the first one with other iterations."""
    visitor.set("Compare with a second setting", True)
    visitor.until_command(command(), side=1)
    visitor.set("Model (second)", "dit")
    visitor.until_command(command("results/dit", iterations=None), side=1)
    visitor.set("Model (second)", "fpdm")
    visitor.set("Iterations (second)", 4)
    visitor.until_command(command(iterations=4), side=1)
    first, second = (visitor.page.get_by_label(f"{which} setting", exact=True) for which in ("First", "Second"))
    assert "4 timesteps (999..0), 2 explicit blocks + 1 iterations each: 12 block passes" in first.inner_text()
    assert "2 timesteps (999..0), 2 explicit blocks + 4 iterations each: 12 block passes" in second.inner_text()
    assert [side.locator(".grid img").count() for side in (first, second)] == [4, 4]
    assert [side.get_by_text("4 images in").count() for side in (first, second)] == [1, 1]
    assert visitor.pictures()[:4] != visitor.pictures()[4:]
    visitor.set("Compare with a second setting", False)
    second.wait_for(state="detached")


def test_the_zip_and_its_command_have_the_same_files(visitor, tmp_path, monkeypatch):
    with visitor.page.expect_download() as waiting:
        visitor.page.get_by_role("link", name="Download the PNGs").click()
    with zipfile.ZipFile(waiting.value.path()) as given:
        files = {name: given.read(name) for name in given.namelist()}
    assert files.pop("command.txt").decode() == command() + "\n"
    monkeypatch.chdir(ROOT)
    _, script, *words = shlex.split(command())
    monkeypatch.setattr(sys, "argv", [script, *words, "--out", str(tmp_path)])
    runpy.run_path(script, run_name="__main__")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("0*.png")} == files and len(files) == 4


def test_a_drawing_is_cancelled(visitor):
    before = visitor.pictures()
    visitor.set("Budget", 480)
    visitor.until_status("of 160")
    visitor.set("Images", 64)  # is asked for when the drawing has ended, and cancelled with it
    visitor.page.get_by_role("button", name="Cancel").click()
    visitor.until_status("Cancelled.")
    visitor.page.wait_for_timeout(1500)
    assert visitor.status == "Cancelled." and visitor.pictures() == before
    visitor.set("Images", 2)
    visitor.set("Budget", 12)
    visitor.until_command(command(num_samples=2))


def test_two_tabs_do_not_mix(visit, visitor):
    """The other one on a small screen, which needs no scrolling to the side."""
    other = visit(width=390, scheme="dark")
    other.set("Images", 3)
    other.set("Budget", 90)
    visitor.set("Budget", 90)
    visitor.set("Seed", 11)
    other.set("Seed", 12)
    visitor.until_command(command(budget=90, seed=11))
    other.until_command(command(budget=90, iterations=4, seed=12, num_samples=3))
    assert (len(visitor.pictures()), len(other.pictures())) == (4, 3)
    assert not set(visitor.pictures()) & set(other.pictures())
    assert other.page.evaluate("document.documentElement.scrollWidth") <= 390
    other.close()
