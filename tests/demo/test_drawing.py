"""Drawings: the images that fpdm.sample draws, stopped between timesteps, one after the other."""

import threading

import numpy as np
import pytest
import torch

import fpdm
from fpdm.demo.download import command_line
from fpdm.demo.drawing import FILM_ROWS, Drawing, Full, Stopped, Studio, draw, medians
from fpdm.demo.request import ask
from fpdm.sampling.allocation import ToTolerance


def nothing(done, of):
    pass


def test_images_and_film_are_those_of_sample(models, bounds, shared, way):
    """With DDIM, the image predicted at the last timestep is the sampled one."""
    asked = ask(models, shared._replace(images=6, label=3), way._replace(iterations=2), bounds)
    drawn = draw(asked, nothing)
    expected = fpdm.sample(asked.offered.source, 6, budget=12, iterations=2, classes=[3])
    assert torch.equal(drawn.images, expected) and drawn.captions() == [f"image {i}, class 3" for i in range(6)]
    without = drawn.asked._replace(offered=drawn.asked.offered._replace(class_names=[]))  # conditioned on attributes
    assert drawn._replace(asked=without).captions() == [f"image {i}" for i in range(6)]
    assert drawn.film.shape == (FILM_ROWS, 3, 3, 32, 32) and drawn.times == [999, 500, 0]
    assert torch.equal(drawn.film[:, -1], expected[:FILM_ROWS])
    assert drawn.residuals.shape == (3, 2) and (drawn.residuals > 0).all()
    assert drawn.passes == drawn.plan.block_passes == 12 and drawn.seconds > 0


def test_a_dit_has_no_residuals(models, bounds, shared, way):
    drawn = draw(ask(models, shared, way._replace(model="dit"), bounds), nothing)
    assert drawn.residuals is None and len(drawn.plan.steps) == 1


def test_adaptive_allocation_says_what_it_spent(models, bounds, shared, way, monkeypatch):
    """Counted by the allocation itself."""
    spent, observe = [], ToTolerance.observe
    monkeypatch.setattr(ToTolerance, "observe", lambda self, n: (spent.append(n.float().mean()), observe(self, n)))
    asked = ask(models, shared._replace(budget=60), way._replace(iterations=4, allocation="adaptive"), bounds)
    drawn = draw(asked, nothing)
    assert drawn.passes == pytest.approx(float(sum(spent)) + 2 * len(drawn.plan.steps))
    assert drawn.passes < drawn.plan.block_passes


def test_medians_leave_out_what_was_not_made():
    nan = np.nan
    found = medians(np.array([[[1, nan, nan]], [[3, 5, nan]], [[8, 7, nan]]], np.float32))
    np.testing.assert_array_equal(found, np.array([[3, 6, nan]], np.float32))


def test_a_drawing_stops_between_two_timesteps(models, bounds, shared, way):
    drawing = Drawing([ask(models, shared._replace(budget=30), way, bounds)])

    seen = []
    watch = drawing._watch(0)

    def stop_after_three(done, of):
        seen.append((done, of))
        if done == 3:
            drawing.stop()
        watch(done, of)

    with pytest.raises(Stopped):
        draw(drawing.sides[0], stop_after_three)
    assert seen == [(0, 10), (1, 10), (2, 10), (3, 10)]


def test_one_worker_draws_in_turn_and_survives_errors(models, bounds, shared, way, monkeypatch):
    studio, asked = Studio(queue=2), ask(models, shared, way, bounds)
    monkeypatch.setattr("fpdm.demo.drawing.sample_images", lambda *args, **kwargs: 1 / 0)
    failing = studio.begin([asked])
    with pytest.raises(ZeroDivisionError):
        failing.wait(60)
    monkeypatch.undo()
    first, stopped, last = (studio.begin([asked]) for _ in range(3))
    stopped.stop()
    assert len(last.wait(60)) == len(first.wait(0)) == 1
    with pytest.raises(Stopped):
        stopped.wait(0)
    assert stopped.progress.done == 0


def test_no_more_wait_than_were_allowed(models, bounds, shared, way, monkeypatch):
    """One is drawn and two wait; a place is free as soon as one of them is stopped, though none has finished."""
    drawn = threading.Event()
    monkeypatch.setattr("fpdm.demo.drawing.draw", lambda asked, watch: drawn.wait(60))
    studio, asked = Studio(queue=2), ask(models, shared, way, bounds)
    first, second, third = (studio.begin([asked]) for _ in range(3))
    with pytest.raises(Full, match="queue=2: as many drawings wait already"):
        studio.begin([asked])
    second.stop()
    with pytest.raises(Stopped):
        second.wait(60)
    last = studio.begin([asked])
    with pytest.raises(Full):
        studio.begin([asked])
    drawn.set()
    assert [drawing.wait(60) for drawing in (first, third, last)] == [[True]] * 3
    studio.begin([asked])


def test_the_command_names_what_was_changed_and_nothing_else(models, bounds, shared, way):
    asked = ask(models, shared._replace(label=7, seed=5), way._replace(reuse=False, sampler="ab2"), bounds)
    assert command_line(asked) == (
        "python scripts/sample.py --ckpt assets/fpdm-digits --budget 12 --iterations 1 --reuse false --sampler ab2 "
        "--classes 7 --seed 5 --num-samples 4 --batch-size 4"
    )
