"""The rule by which a step fits a GPU, against what can be worked out by hand."""

from itertools import pairwise

import pytest
import torch

from fpdm.config import ExperimentConfig, ModelConfig, OptimConfig, RunConfig, SJFBConfig
from fpdm.models import build_model
from fpdm.training.describe import COUNTED_UPDATES, Phase, describe_share, expected_memory
from fpdm.training.fits import FIXED_GIB, FRAGMENTED, describe_fit, largest_fitting, needed_gib, reserve
from fpdm.training.step_memory import StepMemory, step_memory

GIB = 2**30


@pytest.fixture(scope="module")
def network():
    with torch.device("meta"):
        return build_model("FPDM-XS/2")


@pytest.fixture
def config():
    return ExperimentConfig(
        ModelConfig("FPDM-XS/2"), sjfb=SJFBConfig(no_grad=2, grad=4), optim=OptimConfig(batch_size=96),
        run=RunConfig(mixed_precision="fp16"),
    )  # fmt: skip


def test_the_reserve_by_hand():
    memory = StepMemory(weights=1 * GIB, gradients=1 * GIB, optimizer=2 * GIB, ema=1 * GIB, activations=0, peak=9 * GIB)
    assert reserve(memory) == pytest.approx((FIXED_GIB + FRAGMENTED * 4) * GIB)
    assert reserve(memory._replace(peak=4 * GIB)) == FIXED_GIB * GIB


def test_need_is_that_of_the_largest_step(config, network):
    memory = step_memory(network, 8, True, False, True, iterations=4, iterations_no_grad=2)
    assert needed_gib(config, network, 2, 8, False) == pytest.approx((memory.peak + reserve(memory)) / GIB)


def test_need_grows_with_the_micro_batch_and_shrinks_with_recomputation(config, network):
    needs = [needed_gib(config, network, 2, size, False) for size in (1, 8, 48)]
    assert all(small < large for small, large in pairwise(needs))
    assert needed_gib(config, network, 2, 48, True) < needs[-1]


@pytest.mark.parametrize("size", [1, 6, 48])
def test_the_largest_that_fits_is_found(config, network, size):
    """A GPU that holds exactly a micro-batch of `size`; the share of 2 processes is 48."""
    gpu = needed_gib(config, network, 2, size, False)
    assert largest_fitting(config, network, 2, False, gpu) == size
    assert largest_fitting(config, network, 2, False, needed_gib(config, network, 2, 1, False) - 1e-3) is None


@pytest.mark.parametrize("recompute", [False, True])
def test_many_updates_are_worked_out_as_they_would_be_counted(config, network, recompute):
    n, m = 5, COUNTED_UPDATES + 7
    config.run.gradient_checkpointing = recompute
    counted = step_memory(network, 4, True, recompute, True, iterations=m, iterations_no_grad=n)
    assert expected_memory(config, network, 4, True, Phase("", n, m)) == counted


def test_memory_counts_every_average_and_the_optimizers_state(config, network):
    """Three averages of the weights; AdamW's state beside them. A decay for matrices alone changes nothing."""
    config.optim.ema_extra, config.optim.ema_profiles, config.optim.decay = [0.9], [0.1], "matrices"
    plain = step_memory(network, 4, True, False, iterations=4, iterations_no_grad=1)
    counted = expected_memory(config, network, 4, False, Phase("", 2, 4))
    assert (counted.ema, counted.optimizer) == (3 * plain.weights, 2 * plain.weights)
    assert counted.peak == plain.peak + 2 * plain.weights


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_memory_of_muon_is_one_number_for_each_weight_of_a_matrix(config, network):
    """By hand, in bytes: a block has 12 D^2 in maps, the injection 1 + 2 + 2 + 2 times D^2."""
    config.optim.optimizer = "muon"
    plain = step_memory(network, 4, True, False, iterations=4, iterations_no_grad=1)
    counted = expected_memory(config, network, 4, False, Phase("", 2, 4))
    saved = 4 * 128**2 * (3 * 12 + 7)
    assert plain.optimizer - counted.optimizer == plain.peak - counted.peak == saved


def test_whose_memory_it_is(config):
    config.optim.micro_batch_size = 24
    assert "one of 2 processes. Each takes 48 of the 96 samples of a step, 24 at a time" in describe_share(config, 2)


def test_the_proposal_divides_the_share(config, network):
    gpu = needed_gib(config, network, 2, 32, False)  # 32 does not divide 48
    said = describe_fit(config, network, 2, gpu)
    assert "does not fit" in said and "--run.gradient_checkpointing false --optim.micro_batch_size 24 fits" in said
