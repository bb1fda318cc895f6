"""Checks for the values of the dataclasses."""

from collections.abc import Collection, Iterator

from fpdm.extent import Extent, height_width


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """ValueError for a value that is none of `choices`; the error lists them."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")


def check_one_of(**values: object) -> None:
    """Refuse two settings of which not exactly one is given."""
    if sum(value is not None for value in values.values()) != 1:
        raise ValueError(f"{', '.join(f'{name}={value}' for name, value in values.items())}: give one of the two")


def check_range(low: float, high: float, **values: float | list | tuple | None) -> None:
    """ValueError for numbers outside low..high and for NaN. In a list, every number is checked; None is allowed."""
    for name, number in _numbers(values):
        if not low <= number <= high:
            raise ValueError(f"{name}={number}: at least {low:,}, at most {high:,}")


def check_extent(high: int, **values: Extent | None) -> None:
    """ValueError for anything but a number 1..high, for a square, or two of them: height, width. None is allowed."""
    check_range(1, high, **values)
    for name, extent in values.items():
        if extent is not None:
            height_width(name, extent)


def check_positive(high: float, **values: float | list | tuple | None) -> None:
    """ValueError for numbers that are not above 0 and at most `high`, and for NaN."""
    for name, number in _numbers(values):
        if not 0 < number <= high:
            raise ValueError(f"{name}={number}: must be positive, at most {high:,}")


def check_decay(**values: float | list) -> None:
    """ValueError for decays that are not at least 0 and below 1, and for NaN."""
    for name, number in _numbers(values):
        if not 0 <= number < 1:
            raise ValueError(f"{name}={number}: 0 <= decay < 1")


def _numbers(values: dict) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if number is not None:
                yield name, number
