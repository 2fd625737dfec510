"""From gates to a set of heads (Hu et al. 2025, selection).

    threshold    gates above a fixed value
    elbow        sort the gates above 1e-6 and behind them one of the closed ones, normalise rank
                 and value to [0, 1], cut at the point farthest from the diagonal y = 1 - x
    largest_gap  cut at the largest drop between consecutive sorted gates (ties: fewest heads)
    mass         fewest heads that hold a share of the sum of the gates
    top_n        a fixed number of heads
    kept         fewest heads of the ranking that keep a share of the full model's accuracy on
                 selection prompts

The rules but the last work on the gates alone.

Shapes: A heads in flat order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headloc.errors import HeadlocError

_NOTHING = 1e-6

AccuracyOf = Callable[[Tensor], float]
"""Accuracy on selection prompts under gates [A]."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Gates [A] and the scores [A] that order them; equal gates are told apart by their scores."""

    gates: Tensor
    scores: Tensor

    def order(self) -> list[int]:
        """Head indices by falling score, ties by index."""
        scores = self.scores.tolist()
        return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


class Selection:
    """A rule that turns a ranking into a set of head indices."""

    name = ""

    def select(self, ranking: Ranking, accuracy: AccuracyOf, full: float) -> list[int]:
        """Return the sorted indices of the chosen heads.

        Args:
            ranking: gates and scores.
            accuracy: scores gates [A] on the selection prompts.
            full: accuracy of the untouched model on the selection prompts.
        """
        raise NotImplementedError

    def begin(self, heads: int) -> None:
        """Check the settings against a model of `heads` heads, before any work is done."""

    def most_evaluations(self, heads: int) -> int:
        """Return how many head sets of a model of `heads` heads are scored at most."""
        return 0

    def describe(self) -> dict[str, object]:
        """Return the rule and its settings."""
        return {"rule": self.name, **vars(self)}


class Threshold(Selection):
    """Heads whose gate is above `value`."""

    name = "threshold"

    def __init__(self, value: float = 0.5) -> None:
        if not 0 <= value < 1:
            raise HeadlocError(f"selection.value={value} must lie in [0, 1).")
        self.value = value

    def select(self, ranking: Ranking, accuracy: AccuracyOf, full: float) -> list[int]:
        """Return the heads above the threshold."""
        return torch.nonzero(ranking.gates > self.value).flatten().tolist()


class Elbow(Selection):
    """Cut the sorted gates where they bend most."""

    name = "elbow"

    def select(self, ranking: Ranking, accuracy: AccuracyOf, full: float) -> list[int]:
        """Return the heads up to the point farthest from the diagonal."""
        order, value = _sorted_gates(ranking)
        if len(order) < len(ranking.gates):
            # Closed heads are where the curve ends; one stands for all of them, else a run that
            # closes all heads but the right ones would have them cut among themselves.
            value = torch.cat([value, value.new_zeros(1)])
        if len(value) < 3 or float(value[0] - value[-1]) <= _NOTHING:
            return sorted(order)
        rank = torch.linspace(0, 1, len(value), dtype=torch.float64)
        height = (value - value[-1]) / (value[0] - value[-1])
        below_diagonal = (1 - rank) - height
        bend = int(below_diagonal.abs().argmax())
        # A point below the diagonal is the first of the flat tail, one above it the last of the
        # plateau before the drop.
        keep = bend if below_diagonal[bend] > 0 else bend + 1
        return sorted(order[:keep])


class LargestGap(Selection):
    """Cut the sorted gates at their largest drop."""

    name = "largest_gap"

    def select(self, ranking: Ranking, accuracy: AccuracyOf, full: float) -> list[int]:
        """Return the heads before the largest drop, the last one to zero included."""
        order, value = _sorted_gates(ranking)
        if not order:
            return []
        drops = value - torch.cat([value[1:], value.new_zeros(1)])
        return sorted(order[: int(drops.argmax()) + 1])


class Mass(Selection):
    """Fewest heads that hold `share` of the sum of the gates."""

    name = "mass"

    def __init__(self, share: float = 0.95) -> None:
        _check_share("share", share)
        self.share = share

    def select(self, ranking: Ranking, accuracy: AccuracyOf, full: float) -> list[int]:
        """Return the largest gates up to the share."""
        order, value = _sorted_gates(ranking)
        if not order:
            return []
        held = value.cumsum(0) / value.sum()
        return sorted(order[: int((held < self.share - 1e-9).sum()) + 1])


class TopN(Selection):
    """The `heads` best heads."""

    name = "top_n"

    def __init__(self, heads: int = 10) -> None:
        if heads < 1:
            raise HeadlocError(f"selection.heads={heads} must be at least 1.")
        self.heads = heads

    def begin(self, heads: int) -> None:
        """Refuse more heads than the model has."""
        if self.heads > heads:
            raise HeadlocError(
                f"selection.heads={self.heads} is more than the {heads} heads (and gated "
                "feed-forward blocks) of the model. "
                f"Ask for at most {heads}."
            )

    def select(self, ranking: Ranking, accuracy: AccuracyOf, full: float) -> list[int]:
        """Return the first heads of the ranking."""
        order = ranking.order()
        self.begin(len(order))
        return sorted(order[: self.heads])


class Kept(Selection):
    """Fewest heads of the ranking that keep `share` of the full accuracy on selection prompts.

    Sizes are tried from the smallest up, because the accuracy of a ranking need not grow with every
    head.
    """

    name = "kept"

    def __init__(self, share: float = 0.98) -> None:
        _check_share("share", share)
        self.share = share

    def select(self, ranking: Ranking, accuracy: AccuracyOf, full: float) -> list[int]:
        """Return the smallest sufficient set at the head of the ranking."""
        order, aim = ranking.order(), self.share * full

        def holds(size: int) -> bool:
            return accuracy(as_gates(order[:size], len(order))) >= aim

        size, previous = 0, -1
        while size < len(order) and not holds(size):
            size, previous = min(_next(size), len(order)), size
        # Strides above one occur beyond 32 heads only; look into the last one.
        smaller = (inside for inside in range(previous + 1, size) if holds(inside))
        return sorted(order[: next(smaller, size)])

    def most_evaluations(self, heads: int) -> int:
        """Return the sizes of all strides, and those inside the last."""
        strides, size, stride = 0, 0, 1
        while size < heads:
            strides, stride, size = strides + 1, _next(size) - size, _next(size)
        return strides + stride - 1


def _next(size: int) -> int:
    return size + 1 + size // 32


class Auto(Selection):
    """The target number of heads where the run has one, else `Kept`.

    `settled(target)` gives the rule that is really applied, and recorded.
    """

    name = "auto"

    def __init__(self, share: float = 0.98) -> None:
        _check_share("share", share)
        self.share = share

    def settled(self, target: int | None) -> Selection:
        """Return the rule for a run with a target number of heads, or without one."""
        return Kept(self.share) if target is None else TopN(target)


def as_gates(indices: list[int], heads: int) -> Tensor:
    """Return gates [A] of one at `indices` and zero elsewhere."""
    gates_A = torch.zeros(heads)
    gates_A[indices] = 1.0
    return gates_A


def _sorted_gates(ranking: Ranking) -> tuple[list[int], Tensor]:
    """Return the heads with a gate above 1e-6, largest first, and their gates."""
    gates = ranking.gates.double()
    order = [i for i in ranking.order() if float(gates[i]) > _NOTHING]
    order.sort(key=lambda i: -float(gates[i]))  # stable: equal gates keep the order of the scores
    return order, gates[order]


def _check_share(key: str, share: float) -> None:
    if not 0 < share <= 1:
        raise HeadlocError(f"selection.{key}={share} must lie in (0, 1].")
