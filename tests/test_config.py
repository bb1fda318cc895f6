import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from fpdm import cli
from fpdm.config import (
    DataConfig,
    DiffusionConfig,
    EncodeConfig,
    ExperimentConfig,
    OptimConfig,
    RunConfig,
    ScoringConfig,
    VAEConfig,
    ValidationConfig,
)
from fpdm.models import build_model
from fpdm.sampling.allocation import ALLOCATIONS
from fpdm.sampling.settings import SamplingConfig
from fpdm.sampling.solvers import SOLVERS


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: build_model("DiT-XL/2", pre_depth=1), r"model\.pre_depth=1: DiT-XL/2 has no such setting"),
        (lambda: build_model("FPDM-XL/2", depth=3), r"model\.depth=3"),
        (lambda: DiffusionConfig(weighting="snr"), r"diffusion\.weighting='snr': choose one of v, .*, min-snr, p2"),
        (lambda: OptimConfig(steps=0), r"optim\.steps=0: at least 1"),
        (lambda: OptimConfig(lr=0), r"optim\.lr=0"),
        (lambda: OptimConfig(lr_schedule="step"), "constant, linear, cosine"),
        (lambda: OptimConfig(clip_norm=0), "null for no clipping"),
        (lambda: OptimConfig(ema_decay=1), r"optim\.ema_decay=1"),
        (lambda: OptimConfig(betas=[0.9]), r"optim\.betas=\[0\.9\]: two decays"),
        (lambda: OptimConfig(betas=[0.9, 1]), r"optim\.betas=1: 0 <= decay < 1"),
        (lambda: OptimConfig(eps=0), r"optim\.eps=0: must be positive"),
        (lambda: OptimConfig(decay="some"), r"optim\.decay='some': choose one of all, matrices"),
        (lambda: OptimConfig(mup_base_width=0), r"optim\.mup_base_width=0: at least 1"),
        (lambda: OptimConfig(optimizer="sgd"), r"optim\.optimizer='sgd': choose one of adamw, muon"),
        (lambda: OptimConfig(muon_lr=0.1), r"muon_lr=0\.1 with optim\.optimizer=adamw, which does not use it; set"),
        (lambda: OptimConfig(ema_extra=[0.9, 1.5]), r"optim\.ema_extra=1\.5: 0 <= decay < 1"),
        (lambda: OptimConfig(ema_extra=[0.9, 0.9]), r"optim\.ema_extra=\[0\.9, 0\.9\]: each number once"),
        (lambda: OptimConfig(ema_profiles=[0.05, 0.3]), r"optim\.ema_profiles=0\.3: must be positive, at most 0\.28"),
        (lambda: OptimConfig(ema_snapshot_every=9), r"ema_snapshot_every=9: .* set optim\.ema_profiles"),
        (lambda: RunConfig(mixed_precision="fp8"), "no, bf16, fp16"),
        (lambda: RunConfig(tracker="mlflow"), "none, tensorboard, wandb"),
        (lambda: RunConfig(seed=2**31), r"run\.seed=2147483648: at least 0, at most 2,147,483,647"),
        (lambda: RunConfig(keep_every=10), r"keep_every=10: not a multiple of run\.checkpoint_every=50000"),
        (lambda: RunConfig(keep_every=100_000), r"keep_every=100000 without run\.keep_last"),
        (lambda: OptimConfig(cooldown=3, lr_schedule="cosine"), r"cooldown=3 with optim\.lr_schedule=cosine, which"),
        (lambda: OptimConfig(steps=10, cooldown=11), r"optim\.cooldown=11: more than optim\.steps=10"),
        (lambda: ValidationConfig(iterations=[]), r"validation\.iterations=\[\]: give at least one"),
        (lambda: ValidationConfig(iterations=[2, 0]), r"validation\.iterations=0: at least 1"),
        (lambda: ValidationConfig(samples=1), r"validation\.samples=1: at least 2"),
        (
            lambda: ExperimentConfig(run=RunConfig(validate_every=10)),
            r"validate_every=10: there is nothing to measure; set validation\.latents .*, validation\.reference",
        ),
        (
            lambda: ExperimentConfig(run=RunConfig(keep_best=True), validation=ValidationConfig(latents="x")),
            r"keep_best=true without run\.validate_every",
        ),
        (lambda: DataConfig(shape=[4, 32]), r"data\.shape=\[4, 32\]: must be channels, height and width"),
        (
            lambda: EncodeConfig(resolution=[64]),
            r"resolution=\[64\]: give one number for a square, or height",
        ),
        (lambda: EncodeConfig(resolution=[64, 0]), r"resolution=0: at least 1"),
        (lambda: ScoringConfig(resolution=[8, 8, 8]), r"resolution=\[8, 8, 8\]: give one number for a square"),
        (
            lambda: VAEConfig(resolution=[32, 30]),
            r"resolution=32x30: not a multiple of 4, the downsampling of 3",
        ),
        (lambda: VAEConfig(widths=()), r"widths=\(\): give at least one level"),
        (lambda: SamplingConfig(), "give one of the two"),
        (lambda: SamplingConfig(budget=10, steps=2), "give one of the two"),
        (lambda: SamplingConfig(budget=0), "budget=0: at least 1"),
        (lambda: SamplingConfig(steps=3, sampler="ddpm", eta=0.5), "only ddim uses eta"),
        (lambda: SamplingConfig(steps=3, allocation="flat"), "constant, increasing, decreasing, adaptive"),
        (lambda: SamplingConfig(counts=[2, 0]), "at least 1 iteration at each"),
        (lambda: SamplingConfig(counts=[2, 3], budget=9), "leave out budget"),
        (lambda: SamplingConfig(counts=[2, 3], allocation="increasing"), "leave out allocation"),
        (lambda: SamplingConfig(steps=3, cfg_interval=[700, 100]), "lowest and the highest"),
        (lambda: SamplingConfig(steps=3, guidance_rescale=2), "guidance_rescale=2: at least 0, at most 1"),
    ],
)
def test_wrong_values_are_refused_by_name(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.fixture
def parser():
    return cli.make_parser(ExperimentConfig, "train")


def test_command_line_goes_over_the_file(parser, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {name: DiT-S/2}\noptim: {steps: 7, lr: 1.0e-3}\n")
    config = cli.parse(ExperimentConfig, parser, ["--config", str(path), "--optim.batch-size=12", "--optim.lr", "2e-3"])
    assert (config.model.name, config.optim.steps, config.optim.batch_size, config.optim.lr) == ("DiT-S/2", 7, 12, 2e-3)


@pytest.mark.parametrize("words", [["--optim.stepps=5"], ["--optim.step", "5"], ["--lr", "1"], ["--optim.steps=many"]])
def test_unknown_flags_and_wrong_types_are_refused(parser, words):
    with pytest.raises(ValueError, match="see --help"):
        cli.parse(ExperimentConfig, parser, words)


def test_mistyped_flag_is_answered_with_the_nearest(parser):
    with pytest.raises(ValueError, match=r"did you mean --data\.latents\?"):
        cli.parse(ExperimentConfig, parser, ["--data.latent", "x"])


@pytest.mark.parametrize("words", [["--classes", "0,2"], ["--classes=0,2"], ["--classes", "[0, 2]"]])
def test_lists_may_be_written_plainly(words):
    made = cli.make_parser(SamplingConfig, "sample")
    assert cli.parse(SamplingConfig, made, ["--steps", "3", *words]).classes == [0, 2]
    assert cli.parse(SamplingConfig, made, ["--steps", "3", "--classes", "5"]).classes == [5]


def test_lists_in_sections_and_lists_of_texts_too(parser):
    assert cli.parse(ExperimentConfig, parser, ["--data.shape", "4,32,32"]).data.shape == [4, 32, 32]

    @dataclass
    class Paths:
        """Args:
        paths: some.
        """

        paths: list[str]

    for word in ("a/0,b c", '["a/0", "b c"]'):
        assert cli.parse(Paths, cli.make_parser(Paths, ""), ["--paths", word]).paths == ["a/0", "b c"]


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--run.compile"], True), (["--run.compile", "--optim.steps", "3"], True), (["--run.compile", "false"], False)],
)
def test_switches_need_no_value(parser, words, value):
    assert cli.parse(ExperimentConfig, parser, words).run.compile is value


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/proc/none/file", "error: /proc/none/file: No such file or directory; check the path\n"),
        ("/proc", "error: /proc: Is a directory; check the path\n"),
        ("/dev/full", "error: No space left on device; free some space and run it again\n"),
    ],
)
def test_system_errors_name_the_path_and_the_remedy(capsys, path, said):
    with pytest.raises(SystemExit):
        cli.run(lambda: Path(path).write_text("text"))
    assert capsys.readouterr().err == said


def test_unknown_key_in_a_file_is_refused(parser, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {name: DiT-S/2, depht: 3}\n")
    with pytest.raises(
        ValueError, match=r"c\.yaml: section model does not accept option 'depht'; did you mean model\.depth"
    ):
        cli.parse(ExperimentConfig, parser, ["--config", str(path)])


def test_mistakes_are_one_line_and_status_2(capsys, monkeypatch):
    def main():
        raise ValueError("budget=1 is\n  too small")

    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: budget=1 is too small\n"
    monkeypatch.setenv("FPDM_DEBUG", "1")
    with pytest.raises(ValueError, match="too small"):
        cli.run(main)


def test_help_explains_every_option(parser, capsys):
    """An option without an explanation is one that nobody thought about."""
    for section in fields(ExperimentConfig):
        documented = section.default_factory.__doc__
        for option in fields(section.default_factory):
            assert f"    {option.name}:" in documented, f"{section.name}.{option.name}"


def test_the_number_of_settings_is_watched():
    """Every option is one more thing to know: there is room for a few more, raise the limits only with thought."""
    counts = {section.name: len(fields(section.default_factory)) for section in fields(ExperimentConfig)}
    assert max(counts.values()) <= 22, counts
    assert len(fields(SamplingConfig)) <= 26


def test_a_protocol_settles_what_the_paper_settles():
    paper = SamplingConfig(protocol="paper", seed=3)
    assert paper.resolved(iterative=True) == SamplingConfig(budget=280, iterations=8, sampler="ddpm", seed=3)
    assert paper.resolved(iterative=False) == SamplingConfig(budget=280, sampler="ddpm", seed=3)
    guided = SamplingConfig(protocol="paper-cfg", classes=[1]).resolved(iterative=True)
    assert guided == SamplingConfig(budget=560, iterations=8, sampler="ddpm", cfg_scale=4.0, classes=[1])
    assert SamplingConfig(protocol="paper-ddim-140").resolved(False) == SamplingConfig(budget=140)
    assert SamplingConfig(budget=20).resolved(True) == SamplingConfig(budget=20)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"protocol": "papr"}, "protocol='papr': choose one of paper, paper-cfg, paper-ddpm-140"),
        ({"protocol": "paper", "cfg_scale": 2.0, "iterations": 3}, "protocol=paper already sets iterations, cfg_scale"),
        ({"steps": 3, "iterations": 2, "anderson": 1}, "anderson=1 with iterations=2: acceleration has no"),
        ({"counts": [2, 2], "anderson": 1}, "anderson=1 with iterations=2"),
        ({"steps": 3, "anderson": 6}, "anderson=6: a memory of 1 to 5"),
        ({"steps": 3, "reuse_weight": 0.0}, "reuse_weight=0.0: above 0"),
        ({"steps": 3, "reuse": False, "extrapolation": 0.5}, "extrapolation=0.5 with reuse=false"),
        ({"steps": 3, "reuse": False, "reuse_weight": 0.5}, "reuse_weight=0.5 with reuse=false"),
        ({"steps": 3, "extrapolation": -1.0}, "extrapolation=-1.0: at least 0, at most 1"),
        ({"steps": 3, "extrapolation": 1.5}, "extrapolation=1.5: at least 0"),
        ({"steps": 3, "eta": 2.0}, "eta=2.0: at least 0"),
        ({"steps": 3, "cfg_channels": 3}, "cfg_channels=3 with cfg_scale=1"),
        ({"steps": 3, "cfg_interval": [1, 5]}, r"cfg_interval=\[1, 5\] with cfg_scale=1"),
        ({"steps": 3, "guidance_rescale": 0.7}, "guidance_rescale=0.7 with cfg_scale=1"),
        ({"steps": 3, "ratio": 4.0}, "ratio=4.0 with allocation=constant"),
        ({"steps": 3, "tolerance": 0.1, "allocation": "decreasing"}, "tolerance=0.1 with allocation=decreasing"),
        ({"steps": 3, "iterations": 1, "allocation": "decreasing"}, "iterations=1: nothing to move"),
    ],
)
def test_sampling_settings_that_contradict_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        SamplingConfig(**settings)


def test_choices_are_listed_once():
    """The help and the errors name the entries of the registries."""
    shown = "".join(cli.make_parser(SamplingConfig, "").format_help().split())  # lines also break after hyphens
    for registry in (SOLVERS, ALLOCATIONS):
        assert all(f"{name} ({entry.about})".replace(" ", "") in shown for name, entry in registry.items())
    with pytest.raises(ValueError, match=re.escape(", ".join(SOLVERS))):
        SamplingConfig(steps=3, sampler="rk4")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--classes", "1,a"], "classes=1,a: expected a list of whole numbers, as in 0,2,5"),
        (["--iterations", "2.5"], "iterations=2.5: expected a whole number"),
        (["--eta", "much"], "eta=much: expected a number"),
        (["--reuse", "maybe"], "reuse=maybe: expected true or false"),
    ],
)
def test_values_of_the_wrong_kind_get_one_clear_line(words, says):
    parser = cli.make_parser(SamplingConfig, "")
    with pytest.raises(ValueError, match=re.escape(says)):
        cli.parse(SamplingConfig, parser, ["--steps", "3", *words])


@pytest.mark.parametrize(
    ("word", "value"), [("64", 64), ("64,32", [64, 32]), ("[64,32]", [64, 32]), ("[64, 32]", [64, 32])]
)
def test_a_resolution_is_one_number_or_height_and_width(word, value, tmp_path):
    made = cli.make_parser(EncodeConfig, "")
    for words in (["--resolution", word], [f"--resolution={word}"]):
        assert cli.parse(EncodeConfig, made, words).resolution == value
    path = tmp_path / "c.yaml"
    path.write_text(f"resolution: {value}\n")
    assert cli.parse(EncodeConfig, made, ["--config", str(path)]).resolution == value
    made = cli.make_parser(ScoringConfig, "")  # where it may also be left out
    assert cli.parse(ScoringConfig, made, ["--resolution", word]).resolution == value
    assert cli.parse(ScoringConfig, made, []).resolution is None


@pytest.mark.parametrize("word", ["many", "64,b", "64x32", "2.5"])
def test_a_wrong_resolution_gets_one_clear_line(word):
    for settings in (EncodeConfig, ScoringConfig):
        with pytest.raises(
            ValueError, match=rf"^resolution={word}: expected a whole number, or two as in 256,128; see"
        ):
            cli.parse(settings, cli.make_parser(settings, ""), ["--resolution", word])


def test_a_list_that_is_too_short_says_how_many_numbers():
    @dataclass
    class Settings:
        latent: tuple[int, int, int] = (4, 32, 32)

    with pytest.raises(ValueError, match=re.escape("latent=4,32: expected 3 whole numbers, separated by commas")):
        cli.parse(Settings, cli.make_parser(Settings, ""), ["--latent", "4,32"])


def test_negative_numbers_in_lists():
    config = cli.parse(SamplingConfig, cli.make_parser(SamplingConfig, ""), ["--steps", "3", "--classes", "-1,2"])
    assert config.classes == [-1, 2]
