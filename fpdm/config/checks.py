"""What the dataclasses check their values with."""

PRECISIONS = ("no", "bf16", "fp16")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")


def check_at_least(low: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value < low:
            raise ValueError(f"{name}={value}: at least {low}")
