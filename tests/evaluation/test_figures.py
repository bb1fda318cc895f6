"""Figures whose labels must be readable."""

import itertools

import pytest
from matplotlib.figure import Figure

from fpdm.evaluation.figures import Curve, Point, _label, plot_losses


@pytest.mark.parametrize("step", [0.0, 2.0, 60.0])
def test_labels_of_crowded_points_do_not_overlap(step):
    points = [Point(f"experiment-{i}", 500 + step * i, 5.0 + 0.1 * (i % 3), 0.1, False) for i in range(12)]
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([p.x for p in points], [p.score for p in points], "o")
    axes.set(xlim=(300, 1500), ylim=(2, 9))
    _label(axes, points)
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert boxes.keys() == {point.label for point in points}
    assert not [pair for pair in itertools.combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
    assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes.values())


def test_each_panel_of_losses_names_its_own_curves(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **kwargs: drawn.append(figure))
    steps = list(range(10, 410, 10))  # as many points as a training has validations

    def curve(label: str) -> Curve:
        return Curve(label, steps, [1 / step for step in steps], [0.1 / step for step in steps])

    plot_losses({"one": [curve("random"), curve("copy")], "two": [curve("random"), curve("deep")]}, "steps", "loss",
                tmp_path / "losses.png")  # fmt: skip
    panels = drawn[0].axes
    named = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in panels]
    assert named == [["random", "copy"], ["random", "deep"]]
    drawn[0].draw_without_rendering()
    for axes in panels:
        labels = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert not any(left.overlaps(right) for left, right in itertools.combinations(labels, 2))
