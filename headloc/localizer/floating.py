"""Refine a ranking of heads into a set per size, by floating search (Pudil et al. 1994).

    descent   close the head whose loss costs least, from all heads down to none
    ascent    reopen the head that helps most, from small sets up; keep it where the set beats
              the one that the descent left at that size

Trained gates say which heads matter together; near the edge of a circuit their order is a matter of
little weight, and a direct trial is worth more.  To try every head at every size would cost
A (A + 1) / 2 passes a prompt.  Here one gradient at the current set ranks all changes to it at
once, by its first-order effect, and only a short list of them is tried; every step takes other
prompts, so that no set is fitted to a few of them.  The list is tried as a race (Maron and Moore
1994): what is clearly worse is dropped after a few prompts, and the rest of the step's share of the
budget goes into telling apart what is close.

Shapes: A heads in flat order, G gate vectors, N prompts, n of them in a round of a race.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.objectives.prompts import Progress

HeadSet = tuple[int, ...]

Trial = Callable[[Tensor, slice], Tensor]
"""(gates_GA, rows of the prompts) -> what each gate vector is worth on each of them [G, n]."""

Gradient = Callable[[Tensor, slice], Tensor]
"""(gates_A, rows of the prompts) -> the derivative of the worth to every gate [A]."""

_GRADIENT_COST = 3
"""Passes that a gradient costs: one forward and its backward."""

_CLEAR = 2.0
"""Standard errors of the paired difference from which on a set counts as worse than another."""

_BETTER = 1.0
"""Standard errors by which a set must beat the one that was chosen on the way down."""

_EQUAL = 2e-3
"""Difference of worth that is not looked for."""

_DOWN = 0.75
"""Share of the passes for the way down."""


@dataclass(frozen=True, slots=True)
class FloatingSettings:
    """How much a floating search tries.

    Attributes:
        prompts: prompts of a gradient, and of each round of a race.
        shortlist: changes that are tried in a step.
        reopened: sizes up to this multiple of the sufficient size are gone through upwards again.
        stride: far above the sufficient size, one in so many heads is closed at once.
    """

    prompts: int = 128
    shortlist: int = 4
    reopened: float = 2.0
    stride: int = 16

    def __post_init__(self) -> None:
        for name in ("prompts", "shortlist", "stride"):
            if getattr(self, name) < 1:
                raise HeadlocError(f"refine.{name}={getattr(self, name)} must be at least 1.")
        if self.reopened < 0:
            raise HeadlocError(f"refine.reopened={self.reopened} must not be negative.")


@dataclass
class FloatingSearch:
    """A floating search in progress.

    Attributes:
        score_A: the ranking it starts from, larger is more important.
        trial: what gate vectors are worth on some prompts.
        gradient: derivative of that.
        available: number of prompts there are.
        settings: how much is tried.
        limit: passes that the search may take; it goes down in any case, and up while it has some.
            None for one round a step.
        sets: the best set known of every size visited.
        worths: what it was worth when it was last tried.
    """

    score_A: Tensor
    trial: Trial
    gradient: Gradient
    available: int
    settings: FloatingSettings
    limit: int | None = None
    sets: dict[int, HeadSet] = field(default_factory=dict)
    worths: dict[int, float] = field(default_factory=dict)
    _down: dict[int, HeadSet] = field(default_factory=dict)
    _turn: int = 0
    _spent: int = 0

    def run(self, progress: Progress | None = None) -> dict[int, HeadSet]:
        """Go down and up once, and return a set for every size visited."""
        heads = len(self.score_A)
        self.sets[heads] = tuple(range(heads))
        self._descend(progress)
        self._ascend(progress)
        return dict(sorted(self.sets.items()))

    def order(self) -> list[int]:
        """Return all heads, the last to be closed on the way down first."""
        order: list[int] = []
        for size in sorted(self._down):
            new = [head for head in self._down[size] if head not in set(order)]
            order += sorted(new, key=lambda head: -float(self.score_A[head]))
        return order

    def _descend(self, progress: Progress | None) -> None:
        heads = len(self.score_A)
        current = self.sets[heads]
        self._down = {heads: current, 0: ()}
        self.sets[0] = ()
        while len(current) > 1:
            step = max(1, len(current) // self.settings.stride)
            left = max(1, _steps(len(current), self.settings))
            current = self._closed(current, step, self._allowance(_DOWN, left))
            self.sets[len(current)] = self._down[len(current)] = current
            if progress is not None:
                progress(heads - len(current), 2 * heads)

    def _allowance(self, share: float, steps: int) -> int:
        """Return the passes of the next of some steps that may take `share` of all passes."""
        if self.limit is None:
            return 0
        return int((share * self.limit - self._spent) / steps)

    def _closed(self, current: HeadSet, step: int, allowance: int) -> HeadSet:
        """Return the set with `step` heads closed."""
        if step > 1:
            gone = set(_ranked(current, self.score_A)[:step])
            return tuple(head for head in current if head not in gone)
        before, rows = self._spent, self._rows()
        listed: Sequence[int] = current
        if len(current) > self.settings.shortlist + _GRADIENT_COST:
            cost_A = self._changes(current, rows)
            listed = _shortlist(current, self.score_A, cost_A, self.settings.shortlist)
        trials = [tuple(head for head in current if head != out) for out in listed]
        return self._best(trials, rows, allowance - (self._spent - before))

    def _ascend(self, progress: Progress | None) -> None:
        """Open heads from small sets up, over the sizes that matter."""
        heads = len(self.score_A)
        top = min(heads - 1, round(self.settings.reopened * self._sufficient()))
        for size in range(1, top):
            current = self.sets.get(size)
            if current is None or size + 1 not in self.sets:
                continue
            step = (_GRADIENT_COST + self.settings.shortlist + 1) * self.settings.prompts
            if self.limit is not None and self._spent + step > self.limit:
                return
            before, rows = self._spent, self._rows()
            allowance = self._allowance(1.0, top - size)
            outside = [head for head in range(heads) if head not in set(current)]
            gain_A = self._changes(current, rows)
            listed = _shortlist(outside, -self.score_A, -gain_A, self.settings.shortlist)
            trials = [tuple(sorted((*current, head))) for head in listed]
            self.sets[size + 1] = self._best(
                [self.sets[size + 1], *trials],
                rows,
                allowance - (self._spent - before),
                defended=True,
            )
            if progress is not None:
                progress(heads + size * heads // max(1, top), 2 * heads)

    def _sufficient(self) -> int:
        """Return the smallest size that is worth nearly as much as the largest of the trials."""
        if not self.worths:
            return len(self.score_A)
        best, worst = max(self.worths.values()), min(self.worths.values())
        aim = best - 0.1 * (best - worst)
        return min(size for size, worth in self.worths.items() if worth >= aim)

    def _best(
        self, trials: Sequence[HeadSet], rows: slice, allowance: int, defended: bool = False
    ) -> HeadSet:
        """Return the best of some sets of one size, by a race; the first of equal ones.

        Args:
            trials: the sets.
            rows: prompts of the first round.
            allowance: passes of the race; the first round runs in any case.
            defended: whether the first set is kept unless another is clearly better.
        """
        left = list(dict.fromkeys(trials))
        worth_GN: Tensor | None = None
        while True:
            round_Gn = self.trial(torch.stack([self._mask(own) for own in left]), rows)
            cost = len(left) * (rows.stop - rows.start)
            self._spent, allowance = self._spent + cost, allowance - cost
            worth_GN = round_Gn if worth_GN is None else torch.cat([worth_GN, round_Gn], 1)
            kept = _in_the_race(worth_GN)
            left, worth_GN = [left[g] for g in kept], worth_GN[kept]
            full = worth_GN.shape[1] >= self.available
            if len(left) == 1 or full or allowance < len(left) * self.settings.prompts:
                break
            rows = self._rows()
        mean_G = worth_GN.mean(1)
        chosen = int(mean_G.argmax())
        if defended and left[0] == trials[0] and _lead(worth_GN[chosen], worth_GN[0]) < _BETTER:
            # It was chosen on other prompts: luck on these few is no reason to give it up.
            chosen = 0
        self.worths[len(left[chosen])] = float(mean_G[chosen])
        return left[chosen]

    def _changes(self, current: HeadSet, rows: slice) -> Tensor:
        """Return the first-order effect of opening every head at the current set [A]."""
        self._spent += _GRADIENT_COST * (rows.stop - rows.start)
        return self.gradient(self._mask(current), rows)

    def _mask(self, heads: HeadSet) -> Tensor:
        gates_A = torch.zeros(len(self.score_A))
        gates_A[list(heads)] = 1.0
        return gates_A

    def _rows(self) -> slice:
        """Return the prompts of the next step, going round."""
        count = min(self.settings.prompts, self.available)
        turns = max(1, self.available // count)
        start = (self._turn % turns) * count
        self._turn += 1
        return slice(start, start + count)


def descent_cost(heads: int, settings: FloatingSettings) -> int:
    """Return the passes per prompt of a step that the way down takes in all."""
    size, cost = heads, 0
    while size > 1:
        step = max(1, size // settings.stride)
        # Several at once are closed by their score, without a trial.
        if step == 1:
            cost += min(size, _GRADIENT_COST + settings.shortlist)
        size -= step
    return max(1, cost)


def _steps(size: int, settings: FloatingSettings) -> int:
    """Return how many steps of the way down from `size` try several sets."""
    steps = 0
    while size > 1:
        step = max(1, size // settings.stride)
        steps += step == 1
        size -= step
    return steps


def _lead(first_N: Tensor, second_N: Tensor) -> float:
    """Return the mean of a paired difference in its standard errors; 0 for no difference."""
    difference_N = first_N - second_N
    mean = float(difference_N.mean())
    error = float(difference_N.std()) / max(1, len(difference_N)) ** 0.5
    return mean / error if error > 0 else float("inf") if mean > 0 else 0.0


def _in_the_race(worth_GN: Tensor) -> list[int]:
    """Return the sets that may be the best, by paired differences to the one that leads."""
    leader = int(worth_GN.mean(1).argmax())
    behind_GN = worth_GN[leader] - worth_GN
    mean_G = behind_GN.mean(1)
    error_G = behind_GN.std(1) / max(1, worth_GN.shape[1]) ** 0.5
    close_G = (mean_G <= _CLEAR * error_G) & (mean_G + _CLEAR * error_G > _EQUAL)
    # What differs by next to nothing needs no further round.
    return [g for g in range(len(worth_GN)) if g == leader or bool(close_G[g])]


def _shortlist(heads: Sequence[int], score_A: Tensor, cost_A: Tensor, count: int) -> list[int]:
    """Return the lowest heads by score, and for the last third of the list by cost.

    Scores come from gates that were trained together; the first-order cost knows the current set,
    but misjudges saturated and redundant heads.
    """
    by_score, by_cost = _ranked(heads, score_A), _ranked(heads, cost_A)
    return list(dict.fromkeys([*by_score[: count - count // 3], *by_cost, *by_score]))[:count]


def _ranked(heads: Sequence[int], value_A: Tensor) -> list[int]:
    """Return the heads by rising value, ties by index."""
    return sorted(heads, key=lambda head: (float(value_A[head]), head))
