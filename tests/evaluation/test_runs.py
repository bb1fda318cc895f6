import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fpdm import cli
from fpdm.evaluation import runs
from fpdm.evaluation.runs import (
    PANELS,
    draw_panel,
    plot_runs,
    positions,
    read_run,
    read_runs,
    running_mean,
    with_iterations,
)

SCRIPT = Path(__file__).parents[2] / "scripts" / "plot_run.py"
FULL = {name: 0.5 for panel in PANELS for name in panel.columns} | {"images_per_s": 100.0}


@pytest.fixture
def make_run(tmp_path):
    def make_run(name: str, rows: list[dict], batch_size: int | None = 50, end: str = "") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
        if batch_size is not None:
            (folder / "config.yaml").write_text(f"optim: {{batch_size: {batch_size}}}\n")
        return folder

    return make_run


def test_a_log_becomes_columns(make_run):
    rows = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": float("nan"), "vb": 0.1}, {"step": 30, "loss": 1}]
    folder = make_run("000-a", rows, end='{"step": 40, "lo')
    run = read_run(folder)
    assert run.name == "000-a" and run.steps.tolist() == [10, 20, 30]
    np.testing.assert_equal(run.columns["loss"], [2, np.nan, 1])
    np.testing.assert_equal(run.columns["vb"], [np.nan, 0.1, np.nan])
    again = read_run(folder / "log.jsonl")
    assert again.name == "000-a" and again.steps.tolist() == run.steps.tolist()


def test_runs_of_one_name_are_told_apart(make_run):
    folders = [make_run(name, [{"step": 1, "loss": 1.0}]) for name in ("x/000-a", "y/000-a", "y/001-b")]
    assert [run.name for run in read_runs(folders)] == ["x/000-a", "y/000-a", "001-b"]
    with pytest.raises(ValueError, match="twice"):
        read_runs([folders[0], folders[0] / "log.jsonl"])


def test_images_and_hours_come_from_batch_size_and_rate(make_run):
    rates = [50.0, 25.0, 0.0, 100.0]  # 1, 2 and 0.5 s a step; the step without a rate counts as the median, 1 s
    rows = [{"step": 3600 * (i + 1), "images_per_s": rate} for i, rate in enumerate(rates)]
    run = read_run(make_run("000-a", rows))
    assert positions(run, "steps").tolist() == [3600, 7200, 10800, 14400]
    assert positions(run, "images")[-1] == 14400 * 50
    np.testing.assert_allclose(positions(run, "hours"), [1, 3, 4, 4.5])


def test_running_mean_keeps_constants_and_gaps():
    values = np.full(200, 3.0)
    np.testing.assert_allclose(running_mean(values), 3)
    values[7] = np.nan
    smooth = running_mean(values)
    assert np.isnan(smooth[7]) and np.nanmax(np.abs(smooth - 3)) < 1e-12
    ramp = np.arange(200.0)
    np.testing.assert_allclose(running_mean(ramp)[10:-10], ramp[10:-10])
    np.testing.assert_equal(running_mean(ramp[:5]), ramp[:5])


def drawn_panels(run_paths: list[Path], x: str, out: Path) -> list[str]:
    titles, draw = [], runs.draw_panel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            runs, "draw_panel", lambda axes, panel, *rest: (titles.append(panel.title), draw(axes, panel, *rest))
        )
        plot_runs(read_runs(run_paths), x, out)
    return titles


@pytest.mark.parametrize("x", ["steps", "images", "hours"])
def test_panels_are_those_with_data(make_run, tmp_path, x):
    old = make_run("000-old", [{"step": s, "loss": 1 / s, "vb": -0.1, "images_per_s": 9.0} for s in range(1, 90)])
    one = make_run("001-one", [{"step": 5, "loss": 0.2, "lr": None, "images_per_s": 0.0} | {"tflops": float("inf")}])
    titles = drawn_panels([old], x, tmp_path / "old.png")
    assert titles == ["loss", "parts of the loss", "images per second"]
    if x == "hours":
        with pytest.raises(ValueError, match="001-one: x=hours needs images_per_s"):
            plot_runs(read_runs([old, one]), x, tmp_path / "both.png")
    else:
        assert drawn_panels([old, one], x, tmp_path / "both.png") == titles
    full = make_run("002-full", [{"step": s} | FULL for s in (1, 2, 3)])
    assert len(drawn_panels([old, full], x, tmp_path / "all.png")) == len(PANELS)
    assert Image.open(tmp_path / "all.png").size > Image.open(tmp_path / "old.png").size


def validated_rows(counts: tuple[int, ...]) -> list[dict]:
    """Ninety lines of a log, of which every thirtieth has a validation."""
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 91)]
    for row in rows[29::30]:
        row |= {"val_loss": 1 / row["step"], "val_fd": 300 / row["step"]}
        row |= {f"val_loss_t{q}": q / row["step"] for q in (1, 2, 3, 4)}
        row |= {f"{name}_{k}it": k * row[name] for name in ("val_loss", "val_fd") for k in counts}
        row |= {f"val_loss_{k}it_t1": 1.0 for k in counts}
    return rows


def drawn_lines(title: str, paths: list[Path]) -> tuple[list, list[str]]:
    """The lines of one panel and the texts of its legend."""
    found = read_runs(paths)
    (panel,) = (with_iterations(panel, found) for panel in PANELS if panel.title == title)
    axes = Figure().add_subplot()
    draw_panel(axes, panel, found, "steps")
    legend = axes.get_legend()
    return list(axes.lines), [text.get_text() for text in legend.get_texts()] if legend else []


def test_validations_are_points_joined_by_lines(make_run, tmp_path):
    """The lines of the log between them have none."""
    folder = make_run("000-DiT", validated_rows(()))
    titles = drawn_panels([folder], "steps", tmp_path / "validated.png")
    assert titles == ["loss", "held-out loss", "held-out loss by quarter of the timesteps",
                      "Fréchet distance of samples"]  # fmt: skip
    (line,), legend = drawn_lines("Fréchet distance of samples", [folder])
    assert line.get_xdata().tolist() == [30, 60, 90] and line.get_ydata() == pytest.approx([10, 5, 300 / 90])
    assert line.get_marker() == "." and line.get_linestyle() == "-" and legend == []
    lines, legend = drawn_lines("held-out loss by quarter of the timesteps", [folder])
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([q / 30 for q in (1, 2, 3, 4)])
    assert legend == ["least noise", "second", "third", "most noise"]


def test_numbers_of_iterations_are_found_in_the_log(make_run, tmp_path):
    """In the order of the numbers; a DiT beside it has one line, and more numbers than styles are no hindrance."""
    fpdm = make_run("000-FPDM", validated_rows((1, 2, 4, 10, 20)))
    dit = make_run("001-DiT", validated_rows(()))
    for title, first in (("held-out loss", 1 / 30), ("Fréchet distance of samples", 10)):
        lines, legend = drawn_lines(title, [fpdm, dit])
        names = [f"{k} iteration{'s' if k > 1 else ''}" for k in (1, 2, 4, 10, 20)]
        assert legend == ["explicit model", *names]
        assert [line.get_ydata()[0] / first for line in lines] == pytest.approx([1, 2, 4, 10, 20, 1])
        alone, legend = drawn_lines(title, [fpdm])
        assert legend == names and [line.get_linestyle() for line in alone] == ["-", "--", "-.", ":", "-"]
    assert len(drawn_panels([fpdm, dit], "images", tmp_path / "both.png")) == 4


def test_what_cannot_be_drawn_is_said(make_run, tmp_path):
    row = {"step": 1, "loss": 1.0}
    cases = {
        "no line of a training step": make_run("000-empty", []),
        "none does not exist": tmp_path / "none",
        "log.jsonl does not exist; give a run's folder": tmp_path,
    }
    for says, path in cases.items():
        with pytest.raises(ValueError, match=says):
            read_run(path)
    with pytest.raises(ValueError, match=r"no optim\.batch_size in .*config\.yaml"):
        positions(read_run(make_run("001-a", [row], batch_size=None)), "images")
    with pytest.raises(ValueError, match="nothing logged that can be plotted"):
        plot_runs(read_runs([make_run("002-a", [{"step": 1, "n": 3}])]), "steps", tmp_path / "a.png")
    with pytest.raises(ValueError, match="11 runs: at most 10"):
        plot_runs(read_runs([make_run(f"x/{i:03d}-a", [row]) for i in range(11)]), "steps", tmp_path / "a.png")


def test_the_script_draws_several_runs(make_run, monkeypatch, tmp_path):
    folders = [make_run(f"{i:03d}-a", [{"step": s, "loss": 1 / s} for s in (1, 2, 3)]) for i in range(2)]
    out = tmp_path / "pictures" / "curves.png"
    module = runpy.run_path(str(SCRIPT))
    words = ["plot_run.py", "--runs", ",".join(map(str, folders)), "--out", str(out), "--x", "images"]
    monkeypatch.setattr("sys.argv", words)
    module["main"]()
    assert Image.open(out).format == "PNG"
    for words, says in ((["--x", "days"], "steps, images, hours"), ([], "runs is not set")):
        with pytest.raises(ValueError, match=says):
            cli.parse(module["Settings"], module["parser"](), words)
