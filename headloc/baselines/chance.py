"""Controls: heads in random order, and in random order with the layers of another ranking kept.

Shapes: A heads in flat order.
"""

from __future__ import annotations

from typing import ClassVar

from headloc.baselines.method import HeadRanking, Method, ranking_in
from headloc.baselines.problem import SearchProblem
from headloc.heads import HeadLayout
from headloc.objectives.prompts import Progress
from headloc.randomness import stream


class RandomOrder(Method):
    """Rank heads at random."""

    name: ClassVar[str] = "random"
    uses_off_values: ClassVar[bool] = False

    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Draw an order from the stream of the seed."""
        order = stream(problem.seed, "baselines", self.name).permutation(problem.total)
        return ranking_in(order.tolist())

    def prompts_used(self, problem: SearchProblem) -> int:
        """It looks at none."""
        return 0


def layer_matched(ranking: HeadRanking, layout: HeadLayout, seed: int) -> HeadRanking:
    """Return a random ranking whose set of every size has as many heads in each layer as another's.

    Args:
        ranking: the other ranking; its order is matched.
        layout: the heads.
        seed: seed of the control.
    """
    rng = stream(seed, "baselines", "random_layers")
    layer_of = {i: n for n, part in enumerate(layout.slices()) for i in range(*_span(part))}
    pools = [rng.permutation(list(range(*_span(part)))).tolist() for part in layout.slices()]
    return ranking_in([pools[layer_of[head]].pop() for head in ranking.order])


def _span(part: slice) -> tuple[int, int]:
    return part.start, part.stop
