"""The timesteps that sampling can visit, and how it spaces its model calls over them."""

from typing import NamedTuple

MOST_STEPS = 100_000


class Spacing(NamedTuple):
    """Where the model calls of a run lie, as a solver needs them.

    down_to_zero: whether the last timestep is 0, in a process that has noise left there. Solvers that extrapolate in
        log-SNR from step to step do without: the step to 0 would be far longer than the one before it.
    two_calls: at both ends of every step that ends where the model can be called.
    last: length of the last step in continuous time; None for that of the others.
    """

    down_to_zero: bool = True
    two_calls: bool = False
    last: float | None = None


TO_ZERO = Spacing()


class DiscreteTimes(NamedTuple):
    """Timesteps 0 (almost the image) to `most` - 1 (noise). The image itself, `clean`, is none of them, so a step to it
    never has two calls."""

    most: int = 1000

    clean = -1

    @property
    def largest(self) -> int:
        """The timestep of pure noise, where sampling starts."""
        return self.most - 1

    @property
    def example(self) -> str:
        """Lowest and highest timestep of an interval, for messages."""
        return f"{self.most // 10},{7 * self.most // 10}"

    def calls(self, steps: int, spacing: Spacing) -> int:
        """Model calls of so many steps."""
        return max(2 * steps - 1, 0) if spacing.two_calls else steps

    def steps(self, calls: int, spacing: Spacing) -> int:
        """Most steps that so many model calls are enough for."""
        return (calls + 1) // 2 if spacing.two_calls else calls

    def visits(self, steps: int, spacing: Spacing = TO_ZERO) -> list[int]:
        """The timestep of each model call, descending."""
        first, *later = self.spaced(steps, spacing)
        return [first, *(t for t in later for _ in range(2 if spacing.two_calls else 1))]

    def spaced(self, steps: int, spacing: Spacing = TO_ZERO) -> list[int]:
        """`steps` timesteps, evenly spaced, descending from the last one to 0, both included.

        Sampling must start at the last timestep, the only one that is pure noise. Without `down_to_zero`, they end one
        gap above 0, and the last step goes from there to the image.
        """
        if steps == 1:
            return [self.most - 1]
        if not spacing.down_to_zero and steps < self.most:
            return self.spaced(steps + 1)[:-1]
        gaps = steps - 1
        return [(2 * i * (self.most - 1) + gaps) // (2 * gaps) for i in reversed(range(steps))]  # halves round up


THOUSAND = DiscreteTimes()


class ContinuousTimes(NamedTuple):
    """Times t from 1 (noise) to 0, the image, where the model can be called too.

    shift: s in t <- s t / (1 + (s - 1) t); above 1, more of the calls are near the noise (Esser et al., 2024, Eq. 23).
    """

    shift: float = 1.0

    most = MOST_STEPS
    clean = 0.0
    largest = 1.0
    example = "0.1,0.7"

    def calls(self, steps: int, spacing: Spacing) -> int:
        """Model calls of so many steps."""
        return 2 * steps if spacing.two_calls else steps

    def steps(self, calls: int, spacing: Spacing) -> int:
        """Most steps that so many model calls are enough for."""
        return calls // 2 if spacing.two_calls else calls

    def visits(self, steps: int, spacing: Spacing = TO_ZERO) -> list[float]:
        """The time of each model call, descending."""
        starts = self.spaced(steps, spacing)
        if not spacing.two_calls:
            return starts
        return [t for step in zip(starts, [*starts[1:], self.clean], strict=True) for t in step]

    def spaced(self, steps: int, spacing: Spacing = TO_ZERO) -> list[float]:
        """The start of each step, descending from 1; even before the shift, with steps as long as the last one, which
        goes to 0, or with the given last step."""
        last = 1 / steps if spacing.last is None or steps == 1 else spacing.last
        even = [1 - i * (1 - last) / max(steps - 1, 1) for i in range(steps)]
        return [self.shift * t / (1 + (self.shift - 1) * t) for t in even]
