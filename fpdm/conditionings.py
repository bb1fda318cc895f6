"""Conditionings: what a network is conditioned on besides the timestep. A new one is one more entry of CONDITIONINGS.

B batch, A attributes, D width. The conditions y of a batch are labels (B,), which are whole numbers, or attributes
(B, A), which are not. A null condition takes the place of some in training, and guidance compares with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LABELS, ATTRIBUTES = "labels", "attributes"  # what of a record is the condition, as a batch of a latent store names it
NULL_ATTRIBUTE = math.nan  # a null vector of attributes has it everywhere
STD = 0.02  # of initial weights


@dataclass(frozen=True)
class Conditions:
    """The conditions that a network can have. The constructors of both families take them one by one.

    num_classes: labels 0..num_classes-1; `num_classes` itself is the null label.
    class_dropout: probability that training replaces a condition with the null one. With 0 the null condition is never
        trained, so the model cannot be guided.
    conditioning: one of CONDITIONINGS. attribute_mean, attribute_std: of each attribute in the training data.
    """

    num_classes: int = 1000
    class_dropout: float = 0.1
    conditioning: str = "class"
    attribute_mean: Sequence[float] | None = None
    attribute_std: Sequence[float] | None = None

    def __post_init__(self):
        if self.num_classes < 1:
            raise ValueError(f"num_classes={self.num_classes}: at least 1 (unconditional data has one class)")
        if not 0 <= self.class_dropout < 1:
            raise ValueError(f"class_dropout={self.class_dropout}: a probability, 0 <= p < 1")
        if self.conditioning not in CONDITIONINGS:
            raise ValueError(f"conditioning={self.conditioning!r}: choose one of {', '.join(CONDITIONINGS)}")
        mean, std = self.attribute_mean, self.attribute_std
        if CONDITIONINGS[self.conditioning].of == LABELS:
            if mean is not None or std is not None:
                raise ValueError(f"attribute_mean with conditioning={self.conditioning}, which has no attributes")
        elif not mean or not std or len(mean) != len(std) or min(std) <= 0:
            raise ValueError(
                f"attribute_mean={mean}, attribute_std={std}: conditioning={self.conditioning} needs the mean and the "
                "standard deviation, above 0, of at least one attribute"
            )


class Conditioning(nn.Module):
    """Base class: the conditions y of a batch -> (B, D).

    of: what of a record is the condition, LABELS or ATTRIBUTES. null: the value of a null condition.
    """

    of: str
    null: float

    def __init__(self, conditions: Conditions, hidden_size: int):
        """hidden_size: D."""
        super().__init__()
        self.class_dropout = conditions.class_dropout

    def forward(self, y: Tensor, drop_labels: Tensor | None = None) -> Tensor:
        """`drop_labels` (B,) bool says which conditions become null. Without it,
        conditions are dropped at random while training (probability `class_dropout`)."""
        if drop_labels is None and self.training and self.class_dropout > 0:
            drop_labels = torch.rand(len(y), device=y.device) < self.class_dropout
        if drop_labels is not None:
            y = torch.where(drop_labels.reshape(-1, *[1] * (y.ndim - 1)), self.null, y)
        return self.embed(y)

    def embed(self, y: Tensor) -> Tensor:
        """Conditions y, some of them null -> (B, D)."""
        raise NotImplementedError

    def initialise(self) -> None:
        """Initial values that differ from the network's (Xavier for linear maps); called after those are set."""

    def example(self, count: int, device: torch.device | str | None = None) -> Tensor:
        """Conditions of `count` samples, for a call whose result does not matter."""
        raise NotImplementedError

    def take(self, source: "Conditioning", names: Sequence[str] | None, source_names: Sequence[str] | None) -> str:
        """Copy what a source of the same class has; returns what that is, in words.

        names, source_names: of the classes or the attributes, if known. What only this one has stays new.
        """
        raise NotImplementedError


class LabelEmbedder(Conditioning):
    """Class labels (B,) -> (B, D), the paper's. Row `num_classes` is the null label of classifier-free guidance."""

    of = LABELS

    def __init__(self, conditions: Conditions, hidden_size: int):
        super().__init__(conditions, hidden_size)
        self.null = conditions.num_classes
        self.embedding_table = nn.Embedding(conditions.num_classes + 1, hidden_size)

    def embed(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)

    def initialise(self) -> None:
        nn.init.normal_(self.embedding_table.weight, std=STD)

    def example(self, count: int, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(count, dtype=torch.long, device=device)

    def take(self, source: "LabelEmbedder", names: Sequence[str] | None, source_names: Sequence[str] | None) -> str:
        """The rows of the classes whose names are in both, and the null label's."""
        pairs = _pairs(names, source_names)
        ours, theirs = zip(*pairs, (self.null, source.null), strict=True)
        table = self.embedding_table.weight  # (classes + 1, D)
        table[list(ours)] = source.embedding_table.weight[list(theirs)].to(table.device)
        if names is None or source_names is None:
            return "the null label; classes by name where both sides name them"
        return f"{_counted(pairs, names, 'classes')}, by name, and the null label{_others(pairs, names)}"


class AttributeEmbedder(Conditioning):
    """Attributes (B, A) -> (B, D): standardised with mean and deviation of the data, then a two-layer MLP like that of
    the timestep. A row with a NaN is null, and has a learned vector of its own."""

    of = ATTRIBUTES
    null = NULL_ATTRIBUTE

    def __init__(self, conditions: Conditions, hidden_size: int):
        super().__init__(conditions, hidden_size)
        # Their bits, as whole numbers: a network in 16 bits would round them, and a year would become another one.
        self.register_buffer("mean_bits", _bits(conditions.attribute_mean), persistent=False)
        self.register_buffer("std_bits", _bits(conditions.attribute_std), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(len(self.mean_bits), hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )
        self.null_embedding = nn.Parameter(torch.zeros(hidden_size))

    @property
    def mean(self) -> Tensor:
        """(A,) float32."""
        return self.mean_bits.view(torch.float32)

    @property
    def std(self) -> Tensor:
        """(A,) float32."""
        return self.std_bits.view(torch.float32)

    def embed(self, y: Tensor) -> Tensor:
        count = len(self.mean_bits)
        if y.ndim != 2 or y.shape[1] != count:
            raise ValueError(f"y has shape {tuple(y.shape)}: this network is conditioned on attributes, (B, {count})")
        null = y.isnan().any(dim=1, keepdim=True)  # (B, 1)
        standardised = torch.where(null, 0.0, (y - self.mean) / self.std)
        return torch.where(null, self.null_embedding, self.mlp(standardised))

    def initialise(self) -> None:
        for weight in (self.mlp[0].weight, self.mlp[2].weight, self.null_embedding):
            nn.init.normal_(weight, std=STD)

    def example(self, count: int, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(count, len(self.mean_bits), device=device)

    def take(self, source: "AttributeEmbedder", names: Sequence[str] | None, source_names: Sequence[str] | None) -> str:
        """The columns of the attributes whose names are in both, and all that is not of one attribute.

        An attribute keeps its effect if its mean m and deviation s are others here:
        w (y - m) / s = w' (y - m') / s' + w (m' - m) / s with w' = w s' / s.
        """
        pairs = _pairs(names, source_names)
        ours, theirs = [own for own, _ in pairs], [other for _, other in pairs]
        first, known = self.mlp[0], source.mlp[0].weight[:, theirs].to(self.null_embedding.device)  # (D, pairs)
        mean, std = (value[theirs].to(known.device) for value in (source.mean, source.std))
        rest = [(self.mlp[2].weight, source.mlp[2].weight), (self.mlp[2].bias, source.mlp[2].bias)]
        rest += [(first.bias, source.mlp[0].bias), (self.null_embedding, source.null_embedding)]
        for own, other in rest:
            own.copy_(other)
        first.weight[:, ours] = known * (self.std[ours] / std)
        first.bias.add_(known @ ((self.mean[ours] - mean) / std))
        return f"{_counted(pairs, names, 'attributes')}, by name, and the null vector{_others(pairs, names)}"


def _bits(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(torch.int32)


def _pairs(names: Sequence[str] | None, source_names: Sequence[str] | None) -> list[tuple[int, int]]:
    """(number here, number in the source) of each name that is in both."""
    known = {name: number for number, name in enumerate(source_names or ())}
    return [(number, known[name]) for number, name in enumerate(names or ()) if name in known]


def _counted(pairs: list, names: Sequence[str] | None, what: str) -> str:
    return f"{len(pairs)} of {len(names or ())} {what}"


def _others(pairs: list, names: Sequence[str] | None) -> str:
    return "" if len(pairs) == len(names or ()) else "; the others as in a new network"


CONDITIONINGS = {
    "class": LabelEmbedder,
    "attributes": AttributeEmbedder,
}
