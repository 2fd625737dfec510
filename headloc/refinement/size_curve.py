"""Learned heads against those by average indirect effect at every size, prompt by prompt.

    v_k(n) = sum of zbar_k[h] over the first n heads of a ranking, all others at their off-value

Two rankings are read at the same sizes on the same zero-shot prompts: the one that training found,
and the signed average indirect effect (Todd et al. 2024).  Every size is tested by the
exact two-sided McNemar test, Benjamini-Hochberg over the sizes.  Selected sets that are large
enough answer everything whoever chose them, so one size alone can hide a difference.

Shapes: S sizes, N prompts, A heads, K tasks, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.evaluation.intervals import Estimate, bootstrap, mean_interval
from headloc.localizer.selection import Ranking
from headloc.objectives.prompts import Progress, PromptSet
from headloc.refinement.injection import score_vectors
from headloc.refinement.scorer import Scorer
from headloc.refinement.significance import (
    FALSE_DISCOVERY_RATE,
    benjamini_hochberg,
    mcnemar_two_sided,
)
from headloc.tasks import Example

_EVERY = 16
"""Up to here every size is scored, above it four sizes for each doubling."""


@dataclass(frozen=True, slots=True)
class SizePoint:
    """Both rankings at one size.

    Attributes:
        size: number of heads.
        learned: accuracy of the first heads of the learned ranking.
        aie: accuracy of as many by average indirect effect.
        difference: learned minus AIE, paired bootstrap interval.
        learned_only: prompts that only the learned heads answer correctly.
        aie_only: prompts that only AIE's heads answer correctly.
        p: exact two-sided p-value of McNemar's test.
        q: p adjusted over the sizes (Benjamini-Hochberg).
    """

    size: int
    learned: Estimate
    aie: Estimate
    difference: Estimate
    learned_only: int
    aie_only: int
    p: float
    q: float

    @property
    def verdict(self) -> str:
        """better or worse where the difference is significant, else empty."""
        if self.q > FALSE_DISCOVERY_RATE:
            return ""
        return "better" if self.learned_only > self.aie_only else "worse"


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """Outcomes of both rankings on the prompts of one split.

    Attributes:
        sizes: the S sizes.
        learned_SN: whether the first heads of the learned ranking answer each prompt.
        aie_SN: the same of as many heads by average indirect effect.
        points: figures and tests, one per size.
    """

    sizes: tuple[int, ...]
    learned_SN: NDArray[np.bool_]
    aie_SN: NDArray[np.bool_]
    points: tuple[SizePoint, ...]

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        learned_SN: NDArray[np.bool_],
        aie_SN: NDArray[np.bool_],
        seed: int,
    ) -> SizeCurve:
        """Test the outcomes of both rankings size by size."""
        only_SN = [learned_SN & ~aie_SN, aie_SN & ~learned_SN]
        ours_S, theirs_S = (only.sum(1).tolist() for only in only_SN)
        p_S = [
            mcnemar_two_sided(ours, theirs) for ours, theirs in zip(ours_S, theirs_S, strict=True)
        ]
        q_S = benjamini_hochberg(p_S)
        share = learned_SN.astype(np.float64), aie_SN.astype(np.float64)
        points = tuple(
            SizePoint(
                size,
                mean_interval(learned_SN[s], seed),
                mean_interval(aie_SN[s], seed),
                bootstrap(lambda a, b: a - b, share[0][s], share[1][s], seed=seed),
                ours_S[s],
                theirs_S[s],
                p_S[s],
                q_S[s],
            )
            for s, size in enumerate(sizes)
        )
        return cls(tuple(sizes), learned_SN, aie_SN, points)

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return self.learned_SN.shape[1]

    def sizes_where(self, verdict: str) -> list[int]:
        """Return the sizes at which the learned heads are significantly better, or worse."""
        return [point.size for point in self.points if point.verdict == verdict]


def learned_order(scores_A: Tensor) -> list[int]:
    """Return all heads by falling score, ties in flat order, as selection ranks them."""
    return Ranking(scores_A, scores_A).order()


def curve_sizes(scores_A: Tensor) -> list[int]:
    """Return the sizes to score: 1 to 16, then four for each doubling, up to all heads but one.

    A size that would part heads of equal scores, such as closed coefficients, is none of the
    ranking and left out.
    """
    sorted_A = scores_A.sort(descending=True).values
    ranked = (sorted_A[:-1] > sorted_A[1:]).tolist()
    sizes, step = [], 1
    size = 1
    while size < len(scores_A):
        if ranked[size - 1]:
            sizes.append(size)
        if size >= _EVERY:
            step = 2 ** (size.bit_length() - 1) // 4
        size += step
    return sizes


def distinct(examples: Sequence[Example]) -> list[Example]:
    """Return the examples whose zero-shot prompt and answer did not occur before.

    A repeated zero-shot prompt has the same outcome again: it would make intervals too narrow and
    p-values too small.
    """
    seen: dict[tuple[str, str, str], Example] = {}
    for example in examples:
        seen.setdefault((example.task, example.query, example.answer), example)
    return list(seen.values())


def score_sizes(
    scorer: Scorer,
    prompts: PromptSet,
    scores_A: Tensor,
    aie: Sequence[int],
    progress: Progress | None = None,
) -> SizeCurve | None:
    """Score the vectors of both rankings at every size; None where no size is ranked.

    Args:
        scorer: the model and the vectors.
        prompts: zero-shot prompts that know their tasks.
        scores_A: what the heads were ranked by in training.
        aie: all heads, the largest average indirect effect first.
        progress: called with (rows done, rows in all).

    Raises:
        HeadlocError: when the rankings are not of the same heads.
    """
    learned = learned_order(scores_A)
    if sorted(learned) != sorted(aie):
        raise HeadlocError(
            f"A ranking of {len(learned)} heads cannot be compared with one of {len(aie)}."
        )
    sizes = curve_sizes(scores_A)
    if not sizes:
        return None
    orders = [order[:size] for order in (learned, list(aie)) for size in sizes]
    table_SKD = torch.stack([scorer.vectors.unit(heads) for heads in orders])
    correct_SN = score_vectors(
        scorer.lm,
        prompts,
        scorer.insertion,
        len(table_SKD),
        lambda setting_B, task_B: table_SKD[setting_B, task_B],
        rows_per_pass=scorer.rows_per_pass,
        progress=progress,
    )
    return SizeCurve.of(sizes, correct_SN[: len(sizes)], correct_SN[len(sizes) :], scorer.seed)
