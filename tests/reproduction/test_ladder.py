"""What the ladder keeps, what becomes of forms that diverge, and fronts: without training anything."""

from types import SimpleNamespace

import numpy as np
import pytest

from fpdm.chain.choices import Choice
from fpdm.cost import ForwardCost
from fpdm.evaluation.comparison import Score
from fpdm.evaluation.seeds import Results
from fpdm.reproduction import keep, ladder, ladder_asset, ladder_report, recipes
from fpdm.reproduction.forms import START, Form, Rung
from fpdm.reproduction.frontier import Measured, Point, frontier, pareto
from fpdm.reproduction.ladder import Entry, Ladder

FORMS = {"same": {}, "noisy": {"a": 1}, "clear": {"a": 2}, "bad": {"a": 3}}
SCORES = {"same": [2.0, 2.2, 2.1], "noisy": [1.0, 2.5, 2.1], "clear": [1.9, 2.1, 2.0]}


class Laboratory:
    """Every training of a form with a=3, and those at a rate above 0.003, diverge."""

    seeds, seconds, jobs, arguments = 3, 10.0, 2, ()
    data = SimpleNamespace(configs="digits")
    book = SimpleNamespace(images=100)

    def __init__(self, out):
        self.out, self.asked, self.early_head = out, [], 0

    def equal_time(self, name, arguments, known=None):
        return dict.fromkeys(arguments, 40)

    def attempted(self, trainings):
        self.asked += trainings
        return [self.model(training) for training in trainings]

    def model(self, training):
        words = dict(zip(training.arguments[::2], training.arguments[1::2], strict=True))
        if words.get("--a") == 3 or float(words["--optim.lr"]) > 0.003:
            return None
        label = next(name for name, options in FORMS.items() if options.get("a") == words.get("--a"))
        source = SimpleNamespace(iterative=True, reusable=True, cost=ForwardCost(0, 3), early_head=self.early_head)
        return SimpleNamespace(label=label, seed=words["--run.seed"], parameters=1000, steps=40, seconds=9.6,
                               run=self.out / training.name, contender=SimpleNamespace(source=source))  # fmt: skip

    def score_models(self, models, **settings):
        """The second number of iterations is best, and reuse is worse."""
        more = 0.1 * (settings["iterations"] != 2) + settings.get("reuse", False)
        more -= settings.get("internal_guidance") == 1.5
        return Results([Score(SCORES[model.label][model.seed] + more, 5, 30, 0.1, 2.0, 1.0, 0.02)
                        for model in models])  # fmt: skip


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "RUNGS", (Rung("first", FORMS), Rung("second", {"as before": {}, "bad": {"a": 3}})))
    return Laboratory(tmp_path)


def test_the_simpler_form_is_kept_unless_another_is_better_by_more_than_the_spread(lab):
    """`noisy` has the lowest mean, but not beyond the seeds' spread; `clear` is better with every seed."""
    ((_, entries, chosen), (_, later, last)), best = Ladder(lab).climb()
    assert [entry.form.label for entry in entries] == list(FORMS) and chosen.form.label == "clear"
    assert chosen.form.options == START.options | {"a": 2} == best.form.options
    assert later[0].models is chosen.models and last.form.label == "as before"
    climber = Ladder(lab)
    same, noisy, clear, bad = climber.entries([entry.form for entry in entries])
    assert climber.choice(noisy) < climber.choice(clear) < climber.choice(same) < climber.choice(bad) == float("inf")
    beats = {(a.form.label, b.form.label): climber.beats(a, b) for a in entries for b in entries}
    assert beats["clear", "same"] and not beats["noisy", "same"] and not beats["bad", "same"] and beats["same", "bad"]
    assert not beats["bad", "bad"]


def test_with_one_seed_the_better_one_is_kept(lab):
    lab.seeds = 1
    ((_, _, chosen), _), _ = Ladder(lab).climb()
    assert chosen.form.label == "noisy"


def test_the_mean_is_geometric_of_each_seed(lab):
    climber = Ladder(lab)
    (entry,) = climber.entries([START])
    assert climber.choices(entry) == pytest.approx(SCORES["same"])  # the same at both budgets
    found = np.array([1.0, 2.0])
    climber.best = lambda models, budget, samplers, variants: (SimpleNamespace(distances=found * budget), {})
    assert climber.choices(entry) == pytest.approx([(36 * 120) ** 0.5, 2 * (36 * 120) ** 0.5])


def test_forms_are_compared_as_they_are_sampled(lab):
    """With internal guidance where they have an early head, which the rung's table says."""
    climber = Ladder(lab)
    (plain,) = climber.entries([START])
    lab.early_head = 1
    (headed,) = climber.entries([START.with_options("headed", {"b": 1})])
    assert climber.choices(headed) == pytest.approx(np.array(SCORES["same"]) - 1) and climber.beats(headed, plain)
    first, second = ladder_report._table(climber, "question", [plain, headed], headed).splitlines()[2:]
    assert "w = 1.5" not in first and second.count("1.10 ± 0.10, 2 it., w = 1.5") == 2


def test_forms_that_diverge_are_said_and_do_not_end_the_ladder(lab):
    climber = Ladder(lab)
    good, bad = climber.entries([START, START.with_options("bad", {"a": 3})])
    assert bad.diverged and bad.trials.keys() == {2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3} and bad.rate == 2.5e-4
    assert good.trials[4e-3] == float("inf") and len(good.models) == 3 and good.rate <= 2e-3
    names = [training.name for training in lab.asked]
    assert len(names) == len(set(names)) and not any("seed" in name and bad.form.key in name for name in names)
    table = ladder_report._table(climber, "question", [good, bad], good)
    first, second = table.splitlines()[2:]
    assert first.count("|") == second.count("|") == table.splitlines()[0].count("|")
    assert "(diverged: 0.004)" in first and "kept" in first and "| 10 |" in first and first.count("2.0%") == 2
    assert "| diverged |" in second and "nan" not in table and "inf" not in table


def test_one_seed_that_diverges_makes_a_form_the_worst(lab, monkeypatch):
    model = Laboratory.model
    monkeypatch.setattr(Laboratory, "model", lambda self, t: None if t.name.endswith("seed1") else model(self, t))
    climber = Ladder(lab)
    (entry,) = climber.entries([START])
    assert entry.diverged and climber.choice(entry) == float("inf") and min(entry.trials.values()) < 3


def test_recipes_say_what_diverged(lab, monkeypatch):
    monkeypatch.setattr(recipes, "CHOICES", {label: Choice(options) for label, options in FORMS.items()})
    text = recipes.recipes(lab).text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1 and sum("diverged" in row for row in rows) == 2


def test_a_choice_with_a_rate_of_its_own_keeps_the_papers_for_the_rest(lab, monkeypatch):
    own = Choice({"b": 1}, tuned="optim.muon_lr", rates=(0.005, 0.02))
    monkeypatch.setattr(recipes, "CHOICES", {"the paper's": Choice({}), "own": own, "cost": Choice({}, scored=False)})
    paper, found = recipes.trained(Ladder(lab), "dit")
    words = [dict(zip(one.arguments[::2], one.arguments[1::2], strict=True)) for one in lab.asked]
    tried = {(one["--optim.lr"], one["--optim.muon_lr"]) for one in words if "--optim.muon_lr" in one}
    assert {lr for lr, _ in tried} == {f"{paper.rate:g}"} and {"0.005", "0.02"} <= {rate for _, rate in tried}
    assert found.rate in found.trials and {0.005, 0.02} <= found.trials.keys() and 0.001 not in found.trials
    assert found.form.key != Form("", "dit", dict(found.form.options)).key


def test_reuse_is_scored_on_and_off(lab):
    entries = Ladder(lab).entries([START, START.with_options("bad", {"a": 3})])
    rows = ladder_report._reuse(Ladder(lab), entries).splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows] == ["off", "on"]
    assert "2.10 ± 0.10, 2 it." in rows[0] and "3.10 ± 0.10, 2 it." in rows[1]


@pytest.mark.parametrize(("early_head", "exit_"), [(0, 3), (1, 1)])
def test_internal_guidance_has_the_best_scale_and_an_exit_before_the_last(lab, early_head, exit_):
    lab.early_head = early_head
    asked, score = [], lab.score_models
    lab.score_models = lambda models, **settings: asked.append(settings) or score(models, **settings)
    entries = Ladder(lab).entries([START.with_options("bad", {"a": 3}), START])
    asked.clear()
    rows = ladder_report._guided(Ladder(lab), entries).splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows] == ["off", "on"]
    assert "2.10 ± 0.10, 2 it." in rows[0] and "1.10 ± 0.10, 2 it., w = 1.5" in rows[1]
    guided = [each for each in asked if "internal_guidance" in each]
    assert guided and {each["internal_exit"] for each in guided} == {exit_}
    assert min(each["iterations"] for each in guided) == (1 if early_head else 2)
    assert min(each["iterations"] for each in asked) == 1


def test_a_front_has_what_nothing_else_beats():
    points = [Point("a", 1, "", cost, distance) for cost, distance in
              ((1, 9), (2, 9), (2, 5), (2, 5), (3, 6), (4, 4), (5, 4), (6, 3.9))]  # fmt: skip
    front = pareto(points[::-1])
    assert [(point.cost, point.distance) for point in front] == [(1, 9), (2, 5), (2, 5), (4, 4), (6, 3.9)]
    for point in points:
        beaten = any(p.cost <= point.cost and p.distance <= point.distance
                     and (p.cost, p.distance) != (point.cost, point.distance) for p in points)  # fmt: skip
        assert (point not in front) == beaten


def test_fronts_are_by_flops_and_by_the_time_that_was_measured(tmp_path):
    def network(label, explicit, distance, gflops, took):
        results = [(Results([Score(distance / b, 5, 30, b * gflops, 99.0, 1.0, 0.0)]), "ab2") for b in (1, 2)]
        return Measured(label, explicit, 10, results, [took, 2 * took])

    networks = [network("cheap", True, 6.0, 1.0, 7.0), network("quick", False, 6.0, 3.0, 1.0)]
    text = frontier(networks, (1, 2), 1, "FD", tmp_path, "x")
    flops, times = text.split("| front over ")[1:]
    assert "cheap (ab2)" in flops and "quick" not in flops and "quick (ab2)" in times and "cheap" not in times
    assert "99" not in text  # the time beside other scores


def test_differences_are_to_plain_dits_and_to_those_with_aids(tmp_path):
    def network(label, explicit, distances, aided=False):
        scores = [Results([Score(d, 5, 30, 1.0, 2.0, 1.0, 0.0)]) for d in distances]
        return Measured(label, explicit, 10, [(found, "ab2") for found in scores], [1.0, 2.0], aided)

    ours, plain = network("ours", False, (5.0, 4.0)), network("plain", True, (7.0, 3.5))
    text = frontier([plain, ours], (1, 2), 1, "FD", tmp_path, "x")
    assert "minus the best plain DiT" in text and "minus the best DiT" not in text
    text = frontier([plain, ours, network("aided", True, (4.0, 9.0), aided=True)], (1, 2), 1, "FD", tmp_path, "x")
    (first,), (second,) = ([line for line in table.splitlines() if line.startswith("| ours")]
                           for table in text.split("minus the best")[1:])  # fmt: skip
    assert "-2.00" in first and "+0.50" in first and "+1.00" in second and "+0.50" in second
    assert "| aided" not in text.split("minus the best plain DiT")[1].split("Pareto")[0]


def test_options_are_taken_away():
    form = Form("x", "fpdm", {"a": 1, "b": 2}).with_options("y", {"a": None, "c": 3})
    assert form == Form("y", "fpdm", {"b": 2, "c": 3})
    assert Entry(form, [], 1e-3, {}).diverged


@pytest.mark.parametrize("early_head", [0, 1])
def test_the_model_to_keep_is_the_best_seed_of_the_best_form(lab, monkeypatch, early_head):
    """`clear` has 1.9, 2.1 and 2.0, less with guidance; the export is told which run, the card how to sample."""
    told, lab.early_head = [], early_head
    more = " --internal-guidance 1.5 --internal-exit 1" if early_head else ""
    first, all_ = ("0.90", "1.00") if early_head else ("1.90", "2.00")
    monkeypatch.setattr(keep, "run_script", lambda *words: told.append(words))
    section = ladder_asset.asset(lab)
    ((script, _, run, _, folder, *_),) = told
    card = (lab.out / "card.md").read_text()
    clear = START.with_options("", {"a": 2})
    assert script == "export.py" and run.name == f"{clear.key}-seed0" and folder == lab.out / "asset"
    assert f"    --budget 60 --sampler ab2 --iterations 2{more} \\\n" in card and "Form: first: clear (" in card
    assert f"{first} for this training seed (0), {all_} ± 0.10 over 3 seeds" in card and "for 10 s of one" in card
    assert "first: clear" in section.text and "second" not in section.text


def test_a_model_that_is_too_large_is_not_kept(lab, monkeypatch):
    def export(script, _ckpt, _run, _out, folder, *_):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(101))

    monkeypatch.setattr(keep, "run_script", export)
    monkeypatch.setattr(keep, "LIMIT", 100)
    with pytest.raises(ValueError, match="101 bytes; allowed are at most 100"):
        ladder_asset.asset(lab)
