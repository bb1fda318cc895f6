"""Files read into typed records: what is wrong is named with file, field, value, and what it should be."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from fpdm.records import (
    check_fields,
    fits,
    read_arguments,
    read_fields,
    read_lines,
    read_record,
    read_records,
    read_sections,
    read_yaml,
    said,
)


@dataclass
class Example:
    name: str
    shape: list[int]
    scale: float | None
    pair: tuple[int, str] = (1, "a")
    settings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.name == "wrong":
            raise ValueError("name=wrong: choose another")


def write(folder, content) -> Any:
    path = folder / "example.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


WHOLE = {"name": "a", "shape": [1, 2], "scale": 1}


def test_a_whole_file_is_the_record(tmp_path):
    assert read_record(write(tmp_path, WHOLE), Example) == Example("a", [1, 2], 1)
    assert read_fields(write(tmp_path, WHOLE | {"more": 3}), Example) == WHOLE | {"more": 3}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": -1}, "shape=-1: expected a list, each a whole number"),
        ({"shape": [1, True]}, "shape=[1, True]: expected a list, each a whole number"),
        ({"name": None}, "name=None: expected a text"),
        ({"scale": {}}, "scale={}: expected a number or null"),
        ({"scale": float("nan")}, "scale=nan: expected a number or null"),
        ({"scale": 10**400}, "expected a number or null"),
        ({"pair": [1]}, "pair=[1]: expected a list"),
        ({"settings": {"a": "b"}}, "settings={'a': 'b'}: expected an object, each value a number"),
        ({"more": 3}, "more=3: no such field is known"),
        ({"name": "wrong"}, "name=wrong: choose another"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, says):
    path = write(tmp_path, WHOLE | change)
    with pytest.raises(ValueError) as caught:
        read_record(path, Example)
    assert str(caught.value).startswith(f"{path}: ") and says in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"'])
def test_another_thing_than_an_object(tmp_path, content):
    with pytest.raises(ValueError, match=r"example\.json: holds .*: expected an object"):
        read_record(write(tmp_path, content), Example)


@pytest.mark.parametrize("content", ["", "{", "\x00", "[" * 100_000, "1" * 5000])
def test_what_is_not_json(tmp_path, content):
    with pytest.raises(ValueError, match=r"example\.json"):
        read_record(write(tmp_path, content), Example)


def test_a_missing_field(tmp_path):
    with pytest.raises(ValueError, match=r"example\.json: shape is missing: expected a list, each a whole number"):
        read_record(write(tmp_path, {"name": "a", "scale": None}), Example)


def test_arguments_of_a_function(tmp_path):
    def function(a: int, b: str = "c"): ...

    assert read_arguments(write(tmp_path, {"a": 1, "more": 2}), function) == {"a": 1, "more": 2}
    with pytest.raises(ValueError, match="a='1': expected a whole number"):
        read_arguments(write(tmp_path, {"a": "1"}), function)


@pytest.mark.parametrize("content", ["a: [", "- 1", "text", "\x00", ""])
def test_yaml(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_yaml(path)
    path.write_text("a: {b: 1}")
    assert read_yaml(path) == {"a": {"b": 1}}


def test_long_values_are_cut():
    with pytest.raises(ValueError) as caught:
        check_fields("file", {"a": "x" * 10_000}, {"a": int}, [])
    assert len(str(caught.value)) < 300


def test_kinds():
    assert fits([[0, 1.5]], list[list[float]]) and not fits([[0, "1"]], list[list[float]])
    assert fits(None, int | None) and not fits(True, int) and not fits(1, bool) and fits({}, dict)
    assert said(list[int] | None) == "a list, each a whole number or null"


def test_a_list_of_records(tmp_path):
    assert read_records(write(tmp_path, [WHOLE, WHOLE]), Example) == [Example("a", [1, 2], 1)] * 2
    for content, says in (({}, "holds {}: expected a list"), ([WHOLE, 3], "expected a list, each an object"),
                          ([WHOLE, WHOLE | {"shape": 0}], "entry 2: shape=0: expected a list")):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(says)):
            read_records(write(tmp_path, content), Example)


def test_sections(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("optim: {steps: 3}\nrun: {}")
    assert read_sections(path, {"optim": {"steps": int}}) == {"optim": {"steps": 3}, "run": {}}
    for section, says in (
        ("sjfb", "sjfb is missing: expected an object"),
        ("optim", "optim: steps=3: expected a text"),
    ):
        with pytest.raises(ValueError, match=rf"config\.yaml: {says}"):
            read_sections(path, {section: {"steps": str}})


def test_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n\n{"step": 2}\n{"step": 3, "lo')  # what a kill has left
    assert [line["step"] for line in read_lines(path, {"step": int})] == [1, 2]
    for content, says in (('{"st\n{"step": 2}\n', "line 1 is damaged"), ('{"step": 1}\n[2]\n', "line 2 is damaged"),
                          ('{"step": "1"}\n', "line 1: step='1': expected a whole number"),
                          ('{"stop": 1}\n', "line 1: step is missing")):  # fmt: skip
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"log\.jsonl: {says}"):
            read_lines(path, {"step": int})
