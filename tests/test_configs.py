"""The files in configs/ are the paper's experiments, and `extends` does what it says."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from fpdm import cli
from fpdm.config import DiffusionConfig, ExperimentConfig
from fpdm.models import Denoiser, build_model
from fpdm.training.sjfb import Exit, Work, plan_step

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix().removesuffix(".yaml") for path in CONFIGS.rglob("*.yaml"))
UNCONDITIONAL = ("ffhq256", "celebahq256", "lsun-church256")
BASE = "ablations/base"
MEMORY = {"optim.micro_batch_size", "run.gradient_checkpointing"}  # what fits a GPU; the result is the same
PAPER = ("imagenet256", "ablations", *UNCONDITIONAL)

# Each ablation: what it changes in the base.
ABLATIONS = {
    "tab3-dit-xl-2-3-blocks": {"model.name": "DiT-XL/2", "model.depth": 3},
    "tab3-dit-b-2-11-blocks": {"model.name": "DiT-B/2", "model.depth": 11},
    **{f"tab4-iterations-{k}": {"sjfb.no_grad": k, "sjfb.grad": k} for k in (3, 6, 24)},
    "tab5-jfb-6": {"sjfb.variant": "jfb", "sjfb.no_grad": 6, "sjfb.grad": 1},
    "tab5-jfb-12": {"sjfb.variant": "jfb", "sjfb.grad": 1},
    "tab5-multi-step-6": {"sjfb.variant": "multi-step", "sjfb.no_grad": 6, "sjfb.grad": 6},
    "tab5-multi-step-12": {"sjfb.variant": "multi-step"},
    **{f"fig7-pre-post-{k}": {"model.pre_depth": k, "model.post_depth": k} for k in (0, 2, 4)},
}

PAIRS = [(f"{folder}/fpdm-xl-2", f"{folder}/dit-xl-2") for folder in ("imagenet256", *UNCONDITIONAL)]
PAIRS += [("cifar10/fpdm-s-2", "cifar10/dit-s-2"), ("digits/fpdm", "digits/dit")]
OURS = [name for pair in PAIRS for name in pair] + [BASE, *(f"ablations/{name}" for name in ABLATIONS)]

# The paper's Tab. 3 says 86M for DiT-XL/2 with 3 blocks and 130M for DiT-B/2 with 11; these are what they have.
PARAMETERS = {
    "imagenet256/fpdm-xl-2": 86_500_256,
    "imagenet256/dit-xl-2": 674_834_720,
    "ffhq256/fpdm-xl-2": 85_349_408,
    "ffhq256/dit-xl-2": 673_683_872,
    "ablations/tab3-dit-xl-2-3-blocks": 77_205_920,
    "ablations/tab3-dit-b-2-11-blocks": 119_687_456,
    "ablations/fig7-pre-post-0": 38_689_952,
    "ablations/fig7-pre-post-2": 134_310_560,
    "ablations/fig7-pre-post-4": 229_931_168,
    "cifar10/fpdm-s-2": 9_574_296,
    "cifar10/dit-s-2": 32_480_280,
}


def read(*paths: str | Path) -> ExperimentConfig:
    words = [word for path in paths for word in ("--config", str(path))]
    return cli.parse(ExperimentConfig, cli.make_parser(ExperimentConfig, "train"), words)


def load(name: str) -> ExperimentConfig:
    return read(CONFIGS / f"{name}.yaml")


def changes(before: ExperimentConfig, after: ExperimentConfig) -> dict:
    """Settings of `after` that differ from `before`."""
    first, second = asdict(before), asdict(after)
    return {
        f"{section}.{name}": value
        for section, values in second.items()
        for name, value in values.items()
        if value != first[section][name]
    }


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_an_experiment_and_says_what(name, tmp_path):
    config = load(name)
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert text.startswith("# ") and max(map(len, text.splitlines())) <= 120
    assert config.data.latents
    resolved = tmp_path / "config.yaml"  # as a run keeps it
    resolved.write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    assert read(resolved) == config


def test_none_of_ours_is_missing():
    """A fork may have others, which the general tests alone are about."""
    assert set(OURS) <= set(FILES)


@pytest.mark.parametrize(("fpdm", "dit"), PAIRS)
def test_pairs_differ_under_model_alone(fpdm, dit):
    assert changes(load(fpdm), load(dit)).keys() - MEMORY == {"model.name"}
    assert load(fpdm).model.name == load(dit).model.name.replace("DiT", "FPDM")


@pytest.mark.parametrize("name", [name for name in OURS if name.split("/")[0] in PAPER])
def test_what_the_paper_holds_equal(name):
    """Sec. 4.1."""
    config = load(name)
    assert (config.optim.batch_size, config.optim.lr, config.optim.lr_schedule) == (512, 1e-4, "constant")
    assert (config.optim.weight_decay, config.optim.warmup, config.optim.ema_decay) == (0, 0, 0.9999)
    assert config.optim.steps == (400_000 if name.startswith("imagenet256") else 100_000)
    assert config.run.mixed_precision == "fp16"
    assert (config.data.vae, config.data.shape, config.data.scale) == (
        "stabilityai/sd-vae-ft-ema",
        [4, 32, 32],
        0.18215,
    )
    one_class = name.startswith(UNCONDITIONAL)
    assert (config.data.classes, config.model.class_dropout) == ((1, 0) if one_class else (1000, 0.1))
    diffusion = config.diffusion
    assert diffusion == DiffusionConfig()
    assert (diffusion.schedule, diffusion.beta_start, diffusion.beta_end) == ("linear", 1e-4, 0.02)
    assert diffusion.zero_terminal_snr and diffusion.learn_sigma and diffusion.parametrisation == "v"


def test_the_main_pair_and_the_other_data_sets():
    main = load("imagenet256/fpdm-xl-2")
    assert (main.sjfb.variant, main.sjfb.no_grad, main.sjfb.grad) == ("stochastic", 12, 12)
    assert (main.model.pre_depth, main.model.post_depth) == (None, None)  # 1 each, the model's own default
    for folder in UNCONDITIONAL:
        assert changes(main, load(f"{folder}/fpdm-xl-2")) == {
            "model.class_dropout": 0,
            "data.latents": f"data/{folder}",
            "data.classes": 1,
            "optim.steps": 100_000,
            "run.results": f"results/{folder}",
        }


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_it_is_about(name):
    """Base is Tab. 4 at 12, Tab. 5's stochastic at 12 and Fig. 7 at 1; tab4-iterations-6 is Tab. 5's at 6."""
    assert changes(load("imagenet256/fpdm-xl-2"), load(BASE)).keys() == {"optim.steps", "run.name", "run.results"}
    found = changes(load(BASE), load(f"ablations/{name}"))
    assert {key: value for key, value in found.items() if key not in MEMORY} == ABLATIONS[name] | {"run.name": name}


def network(name: str) -> Denoiser:
    config = load(name)
    with torch.device("meta"):
        return build_model(
            config.model.name,
            input_size=config.data.shape[1],
            in_channels=config.data.shape[0],
            num_classes=config.data.classes,
            **config.model.overrides(),
        )


def parameters(name: str) -> int:
    return sum(p.numel() for p in network(name).parameters() if p.requires_grad)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    assert parameters(name) == PARAMETERS[name]


def works(name: str) -> tuple[Callable[[int], Work], Callable[[int], int]]:
    """The work of a training step out of 1,000, and its block passes, without those of exits."""
    config, model = load(name), network(name)

    def work(step: int) -> Work:
        return plan_step(config.sjfb, model, 0, step, 1000)

    return work, lambda step: model.exit_after(work(step).n + work(step).m) + len(model.exit_stack())


def test_the_looped_ones_are_what_they_follow():
    """Numbers of the three papers."""
    work, passes = works("looped/elt-xl-2")
    (one,) = work(500).exits
    assert passes(500) == 32 and one.number in (8, 16, 24) and one.distilled == 0.5
    work, passes = works("looped/looped-dit-xl-2")
    assert passes(500) == 28 == network("imagenet256/dit-xl-2").explicit_blocks
    assert work(500).exits == tuple(Exit(number, 1 / 3) for number in (7, 14, 21))
    work, _ = works("looped/cofre-xl-2")
    assert network("looped/cofre-xl-2").explicit_blocks == 4 + 4
    assert {(work(step).n, work(step).m) for step in range(400)} == {(n, m) for n in range(5) for m in range(1, 7)}
    assert [work(step).consistency for step in (0, 970, 985)] == [0, 0, pytest.approx(0.05)]
    assert load("looped/cofre-xl-2").sjfb.consistency_gap == [0.05, 0.3]


@pytest.mark.parametrize(
    ("size", "dit", "blocks"), [("s-2", "cifar10/dit-s-2", 3), ("xl-2", "imagenet256/dit-xl-2", 8)]
)
def test_our_looped_ones_have_few_parameters_and_grow(size, dit, blocks):
    name = f"looped/fpdm-{size}"
    assert parameters(name) <= 0.3 * parameters(dit)
    work, passes = works(name)
    head = Exit(load(name).model.early_head, 0.1)
    assert (passes(749), passes(751)) == (blocks, 2 * blocks)
    assert work(749).exits == (head,) and work(751).exits == (Exit(blocks, 0.5), head)


def test_cifar10_runs_on_a_cpu():
    config = load("cifar10/fpdm-s-2")
    assert config.run.mixed_precision in ("no", "bf16")
    assert (config.data.vae, config.data.shape, config.data.scale, config.data.classes) == (
        "pixels",
        [3, 32, 32],
        1,
        10,
    )


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_child_goes_over_its_base_key_by_key(write):
    write("base.yaml", "optim: {steps: 5, lr: 1e-3, micro_batch_size: 4}\ndata: {shape: [3, 8, 8], vae: pixels}\n")
    write("sub/middle.yaml", "extends: ../base.yaml\noptim: {lr: 1e-5, clip_norm: null}\n")
    child = write("sub/child.yaml", "extends: middle.yaml\noptim: {micro_batch_size: null}\ndata: {shape: [2, 4, 4]}\n")
    config = read(child)
    assert (config.optim.steps, config.optim.lr, config.optim.micro_batch_size) == (5, 1e-5, None)
    assert (config.optim.clip_norm, config.data.shape, config.data.vae) == (None, [2, 4, 4], "pixels")


def test_of_several_configs_and_flags_the_later_wins(write):
    write("base.yaml", "optim: {steps: 5, lr: 1e-3}\nrun: {name: '1e-4'}\n")
    child, other = write("child.yaml", "extends: base.yaml\n"), write("other.yaml", "optim: {lr: 2e-3}\n")
    config = read(child, other)
    assert (config.optim.steps, config.optim.lr, config.run.name) == (5, 2e-3, "1e-4")
    assert read(other, child).optim.lr == 1e-3
    parser = cli.make_parser(ExperimentConfig, "train")
    words = ["--optim.steps=6", f"--config={child}", "--optim.lr", "4e-3"]
    config = cli.parse(ExperimentConfig, parser, words)
    assert (config.optim.steps, config.optim.lr) == (5, 4e-3)


@pytest.mark.parametrize(
    ("base", "child", "says"),
    [
        (
            "extends: child.yaml",
            "extends: base.yaml",
            r"child\.yaml extends .*base\.yaml extends .*child\.yaml: a cycle",
        ),
        ("", "extends: child.yaml", r"child\.yaml extends .*child\.yaml: a cycle"),
        ("", "extends: gone.yaml", r"gone\.yaml, which .*child\.yaml extends: no such file; give the path relative"),
        ("- 3", "extends: base.yaml", r"base\.yaml, which .*child\.yaml extends: holds no settings"),
        ("optim: [3", "extends: base.yaml", r"base\.yaml, which .*child\.yaml extends: not YAML"),
        ("", "extends: [base.yaml]", r"child\.yaml: extends=\['base\.yaml'\]: give the path of one file"),
        ("optim: {stepz: 3}", "extends: base.yaml", r"base\.yaml: section optim does not accept option 'stepz'"),
        ("optimm: {steps: 3}", "extends: base.yaml", r"base\.yaml: .* option 'optimm'; did you mean optim\?"),
        ("run:\noptim: {steps: 3}", "extends: base.yaml", r"base\.yaml: run=None: a section"),
        ("optim: {lr: fast}", "extends: base.yaml", r"base\.yaml: (?s:.*)optim\.lr(?s:.*)fast"),
    ],
)
def test_mistakes_name_the_file(write, base, child, says):
    write("base.yaml", base + "\n")
    with pytest.raises(ValueError, match=says):
        read(write("child.yaml", child + "\n"))


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config .*none\.yaml: no such file; check the path"):
        read(tmp_path / "none.yaml")
