"""Make a selected set smaller by trial: leave heads out, and exchange two heads for one.

A ranking orders heads one by one, but what a head is worth depends on the others.  From the
smallest sufficient set of the ranking, the weakest heads are left out while the accuracy on
selection prompts stays at the aim; then one head from outside may take the place of two.

Shapes: A heads in flat order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from headloc.errors import HeadlocError
from headloc.localizer.selection import AccuracyOf, Kept, Ranking, Selection, as_gates


class Swap(Selection):
    """Fewest heads that keep `share` of the full accuracy, refined by trial.

    Args:
        share: share of the full accuracy to keep on selection prompts.
        shortlist: weakest heads inside, and strongest heads outside, that are tried.
    """

    name = "swap"

    def __init__(self, share: float = 0.98, shortlist: int = 4) -> None:
        if shortlist < 1:
            raise HeadlocError(f"selection.shortlist={shortlist} must be at least 1.")
        self.share, self.shortlist = Kept(share).share, shortlist

    def select(self, ranking: Ranking, accuracy: AccuracyOf, full: float) -> list[int]:
        """Return a set that no trial makes smaller."""
        order, aim = ranking.order(), self.share * full - 1e-9
        chosen = Kept(self.share).select(ranking, accuracy, full)
        while True:
            trials = [*self._smaller(order, chosen)]
            scored = [(accuracy(as_gates(own, len(order))), own) for own in trials]
            best = max(scored, default=(0.0, chosen))
            if best[0] < aim:
                exchanged = [*self._exchanged(order, chosen)]
                scored = [(accuracy(as_gates(own, len(order))), own) for own in exchanged]
                best = max(scored, default=(0.0, chosen))
            if not scored or best[0] < aim:
                return sorted(chosen)
            chosen = best[1]

    def _smaller(self, order: Sequence[int], chosen: Sequence[int]) -> list[list[int]]:
        """Return the set without each of its weakest heads."""
        weak = [head for head in reversed(order) if head in set(chosen)][: self.shortlist]
        return [[head for head in chosen if head != out] for out in weak]

    def _exchanged(self, order: Sequence[int], chosen: Sequence[int]) -> list[list[int]]:
        """Return the set with a strong head from outside in the place of two weak ones."""
        inside = set(chosen)
        weak = [head for head in reversed(order) if head in inside][: self.shortlist]
        strong = [head for head in order if head not in inside][: self.shortlist]
        return [
            [*(head for head in chosen if head not in pair), new]
            for pair in combinations(weak, 2)
            for new in strong
        ]
