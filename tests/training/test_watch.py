import torch
from accelerate import Accelerator

from fpdm.training.watch import Report, Watch

GOOD, BAD = torch.tensor(True), torch.tensor(False)


def test_a_step_is_told_of_one_step_later_or_at_once():
    watch = Watch(Accelerator(cpu=True))
    watch.post(0, GOOD, asked=False)
    watch.post(1, BAD, asked=True)
    assert watch.read(now=False) == Report(0, False, 0, 0, 0)
    assert watch.read(now=True) == Report(1, True, 1, 1, 1)
    watch.post(2, BAD, asked=False)
    assert watch.read(now=False) == Report(1, True, 1, 1, 1)
    watch.post(3, GOOD, asked=False)
    assert watch.read(now=False) == Report(2, False, 2, 2, 2) and watch.read(now=True) == Report(3, False, 2, 0, 2)


def test_the_first_step_has_none_before_it():
    watch = Watch(Accelerator(cpu=True))
    watch.post(7, GOOD, asked=False)
    assert watch.read(now=False) == watch.read(now=True) == Report(7, False, 0, 0, 0)


def test_counts_go_on_where_they_were():
    watch = Watch(Accelerator(cpu=True), skipped=5, in_a_row=2)
    watch.post(10, BAD, asked=False)
    assert watch.read(now=True) == Report(10, False, 6, 3, 3)
