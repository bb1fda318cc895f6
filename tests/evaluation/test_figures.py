"""Figures whose labels must be readable."""

import itertools

import pytest
from matplotlib.figure import Figure

from fpdm.evaluation.figures import Point, _label


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
