"""Rankings over a bank, the sizes they are scored at, and the elbow of the curve they give.

Scores of gate sets under different penalties have no common scale, so rankings are averaged by
rank: a head stands high when it survives many penalties in many seeds.

Shapes: G gate sets, A heads in flat order.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_STRIDE = 32


def relative_ranks(scores_GA: Tensor) -> Tensor:
    """Return ranks_GA from 1 (the best head of the gate set) down to 0 (the last); float64.

    Heads of equal score share the mean of their ranks.
    """
    scores = scores_GA.double()
    worse_GA = (scores[:, None, :] < scores[:, :, None]).sum(2)
    better_GA = (scores[:, None, :] > scores[:, :, None]).sum(2)
    span = max(1, scores.shape[1] - 1)
    return (worse_GA + span - better_GA).double() / (2 * span)


def order_of(score_A: Tensor) -> list[int]:
    """Return head indices by falling score, ties by index."""
    scores = score_A.tolist()
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def sizes_of(heads: int) -> list[int]:
    """Return the sizes a ranking is scored at: none, every size up to 64, then ever wider steps.

    The last is all heads; far above 64 the steps are about 3 % of the size.
    """
    sizes = [0]
    while sizes[-1] < heads:
        sizes.append(min(heads, sizes[-1] + max(1, sizes[-1] // _STRIDE)))
    return sizes


def elbow(sizes: Sequence[int], accuracies: Sequence[float]) -> int:
    """Return the position of the point farthest above the chord from the first to the last point.

    Sizes and accuracies are scaled to [0, 1] first, as for the elbow of a coefficient curve
    (Hu et al. 2025, selection); ties go to the fewest heads.
    """
    width = max(1, sizes[-1] - sizes[0])
    gain = accuracies[-1] - accuracies[0]
    if gain <= 0:
        return 0
    heights = [
        (accuracy - accuracies[0]) / gain - (size - sizes[0]) / width
        for size, accuracy in zip(sizes, accuracies, strict=True)
    ]
    return max(range(len(heights)), key=lambda position: (heights[position], -position))
