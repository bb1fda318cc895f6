"""Anderson acceleration of a fixed point iteration, for each sample by itself (Walker & Ni, 2011).

B batch, N tokens, D width, M memory.
"""

import torch
from torch import Tensor


def relative_residual(new: Tensor, old: Tensor) -> Tensor:
    """||new - old|| / ||new|| of each sample: (B, N, D) twice -> (B,), in float32."""
    new, old = new.detach().float().flatten(1), old.detach().float().flatten(1)
    return (new - old).norm(dim=1) / new.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)


class Anderson:
    """Chooses the next iterate of one solve from the updates made so far.

    With f_i = g(h_i) - h_i, the next iterate is g_k - sum_j gamma_j (g_{j+1} - g_j), over the last
    M differences, where gamma minimises |f_k - sum_j gamma_j (f_{j+1} - f_j)|^2 + r |gamma|^2: r is
    `regularisation` times the mean squared norm of the differences, so gamma shrinks towards
    plain iteration, h_{k+1} = g_k.

    An accelerated step is rejected if it leads to a larger residual or to one that is not finite. That sample
    then continues from the previous update, as plain iteration would, with an empty history. Each step is judged
    by the next update, so a solve ends with `settle`, which takes no accelerated step. The first update has no
    history either: up to two updates this is plain iteration.

    memory: M, at least 1; values above 5 rarely help. fallbacks: (B,) number of rejected steps per sample.
    """

    def __init__(self, memory: int, regularisation: float = 1e-4):
        if memory < 1:
            raise ValueError(f"anderson={memory}: at least 1, or 0 for plain iteration")
        self.memory, self.regularisation = memory, regularisation
        self.fallbacks: Tensor | None = None
        self._differences: list[tuple[Tensor, Tensor]] = []  # of f and g, (B, N * D) float32 each

    @torch.no_grad()
    def __call__(self, h: Tensor, new: Tensor) -> Tensor:
        """h (B, N, D) and new = g(h) -> the next iterate (B, N, D). Does not wait for the device."""
        worse = self._judge(h, new)
        if not self._differences:
            return new
        proposal = self._combine()
        self._accelerated = ~worse & proposal.isfinite().all(1)
        return torch.where(self._accelerated[:, None], proposal, self._g).to(new.dtype).view_as(new)

    @torch.no_grad()
    def settle(self, h: Tensor, new: Tensor) -> Tensor:
        """The last iterate: new = g(h), or the previous update where the step that led to h is rejected."""
        self._judge(h, new)
        return self.settled(new)

    def settled(self, like: Tensor) -> Tensor:
        """What `settle` would have returned for the latest update, in the type and shape of `like`."""
        return self._g.to(like.dtype).view_as(like)

    def _judge(self, h: Tensor, new: Tensor) -> Tensor:
        """Add the update to the history. Returns which samples' last steps are rejected, (B,) bool."""
        residual, g = relative_residual(new, h), new.float().flatten(1)
        f = g - h.float().flatten(1)
        if self.fallbacks is None:
            self.fallbacks = torch.zeros(len(h), dtype=torch.long, device=h.device)
            self._residual, self._f, self._g = residual, f, g
            self._accelerated = torch.zeros(len(h), dtype=torch.bool, device=h.device)
            return self._accelerated

        worse = self._accelerated & ~(residual <= self._residual)  # NaN counts as worse
        self.fallbacks += worse
        row = worse[:, None]
        self._differences.append((f - self._f, g - self._g))
        # A zero difference contributes nothing to the combination.
        self._differences = [
            (df.masked_fill(row, 0), dg.masked_fill(row, 0)) for df, dg in self._differences[-self.memory :]
        ]
        self._residual = torch.where(worse, self._residual, residual)
        self._f, self._g = torch.where(row, self._f, f), torch.where(row, self._g, g)
        return worse

    def rows(self, chosen: Tensor) -> None:
        """Keep only some samples; chosen (B,) bool."""
        self.fallbacks, self._residual, self._accelerated = (
            part[chosen] for part in (self.fallbacks, self._residual, self._accelerated)
        )
        self._f, self._g = self._f[chosen], self._g[chosen]
        self._differences = [(df[chosen], dg[chosen]) for df, dg in self._differences]

    def _combine(self) -> Tensor:
        with torch.autocast(self._f.device.type, enabled=False):
            df = torch.stack([df for df, _ in self._differences], dim=1)  # (B, M, N * D)
            gram = df @ df.mT
            scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            ridge = self.regularisation * scale + torch.finfo(torch.float32).tiny
            identity = torch.eye(df.shape[1], device=df.device)
            gamma = torch.linalg.solve_ex(gram + ridge * identity, df @ self._f[:, :, None]).result  # (B, M, 1)
            dg = torch.stack([dg for _, dg in self._differences], dim=1)
            return self._g - (dg.mT @ gamma)[:, :, 0]
