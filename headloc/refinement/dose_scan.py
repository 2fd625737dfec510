"""The dose scan: how far does one head alone carry the task, and in which dose?

Source: Hu et al. 2025, refinement.

    FV(c, h, k) = c zbar_k[h] + sum over the other selected heads of their cross-task mean

for every selected head h and c = 0 .. C, added to the same zero-shot prompts (Hu et al. 2025).  The
vectors are linear in precomputed contributions, and all (head, dose, prompt) triples are rows of
large batches above the insertion layer.

Shapes: H selected heads, C doses (zero included), N prompts, K tasks, D model width, J predicting
columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.objectives.prompts import Progress, PromptSet
from headloc.refinement.injection import ROWS_PER_PASS, Insertion, VectorOf, score_vectors
from headloc.refinement.vectors import HeadVectors

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


@dataclass(frozen=True, slots=True)
class DoseScan:
    """Outcomes of the scan, paired: the same prompts for every head and dose.

    Attributes:
        heads: the selected heads, H of them.
        doses: the doses 0 .. C - 1.
        correct_HCN: whether each prompt was answered correctly.
    """

    heads: tuple[HeadId, ...]
    doses: tuple[int, ...]
    correct_HCN: NDArray[np.bool_]

    @property
    def accuracy_HC(self) -> NDArray[np.float64]:
        """Accuracy by head and dose."""
        return self.correct_HCN.mean(2)

    @property
    def fixed_HC(self) -> NDArray[np.int64]:
        """Prompts that are right at a dose and wrong at dose 0."""
        return (self.correct_HCN & ~self.correct_HCN[:, :1]).sum(2)

    @property
    def broken_HC(self) -> NDArray[np.int64]:
        """Prompts that are wrong at a dose and right at dose 0."""
        return (~self.correct_HCN & self.correct_HCN[:, :1]).sum(2)

    def best_dose(self, position: int) -> int:
        """Return the dose above 0 with the best accuracy of a head, the smallest of equal ones."""
        accuracy_C = self.accuracy_HC[position]
        return self.doses[1 + int(accuracy_C[1:].argmax())]


@dataclass(frozen=True, slots=True)
class ScanCost:
    """Tokens that a dose scan runs, known before it starts.

    Attributes:
        setup_tokens: prefixes and streams of the zero-shot prompts, N (P - 1 + J).
        scan_tokens: tokens above the insertion layer, H C N J.
        depth_share: share of the layers that a scan token runs through.
    """

    setup_tokens: int
    scan_tokens: int
    depth_share: float

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.setup_tokens + self.scan_tokens

    @property
    def full_depth_tokens(self) -> float:
        """Tokens weighed by the share of the layers that they run through."""
        return self.setup_tokens + self.scan_tokens * self.depth_share


def scan_cost(
    *,
    heads: int,
    doses: int,
    prompts: int,
    prompt_columns: int,
    answer_columns: int = 1,
    layer: int = 0,
    layers: int = 1,
) -> ScanCost:
    """State the cost of a dose scan in token passes, in closed form.

    Args:
        heads: number of selected heads.
        doses: the largest dose; there are doses + 1 of them.
        prompts: number of prompts.
        prompt_columns: P, tokens of a zero-shot prompt.
        answer_columns: J, tokens of the longest answer.
        layer: insertion layer.
        layers: depth of the model.
    """
    return ScanCost(
        setup_tokens=prompts * (prompt_columns - 1 + answer_columns),
        scan_tokens=heads * (doses + 1) * prompts * answer_columns,
        depth_share=(layers - layer) / layers,
    )


def scan_doses(
    lm: FrozenLM,
    vectors: HeadVectors,
    insertion: Insertion,
    prompts: PromptSet,
    selected: Sequence[int],
    *,
    doses: int = 20,
    rows_per_pass: int = ROWS_PER_PASS,
    progress: Progress | None = None,
) -> DoseScan:
    """Scan the doses 0 .. `doses` of every selected head on the same prompts.

    Args:
        lm: the frozen model.
        vectors: head contributions.
        insertion: where the vectors are added.
        prompts: N zero-shot prompts, kept apart from those that are finally scored.
        selected: flat indices of the selected heads.
        doses: the largest dose.
        rows_per_pass: rows of a pass; only memory limits it.
        progress: called with (rows done, rows in all).

    Raises:
        HeadlocError: when there is no head or no dose to scan.
    """
    if not selected or doses < 1:
        raise HeadlocError(
            f"A dose scan needs a head and a dose above 0; given {len(selected)} heads and "
            f"doses={doses}."
        )
    correct_SN = score_vectors(
        lm,
        prompts,
        insertion,
        len(selected) * (doses + 1),
        _dosed(vectors, selected, doses + 1),
        rows_per_pass=rows_per_pass,
        progress=progress,
    )
    return DoseScan(
        heads=tuple(lm.layout.head(index) for index in selected),
        doses=tuple(range(doses + 1)),
        correct_HCN=correct_SN.reshape(len(selected), doses + 1, -1),
    )


def _dosed(vectors: HeadVectors, selected: Sequence[int], count: int) -> VectorOf:
    """Return the vectors of setting = head * count + dose."""
    chosen = list(selected)
    fill_AD = vectors.fill(chosen)
    others_HD = fill_AD.sum(0) - fill_AD[chosen]
    own_KHD = vectors.own_KAD[:, chosen]

    def vector_of(setting_B: Tensor, task_B: Tensor) -> Tensor:
        head_B = torch.div(setting_B, count, rounding_mode="floor")
        dose_B1 = (setting_B % count)[:, None].to(own_KHD.dtype)
        return others_HD[head_B] + dose_B1 * own_KHD[task_B, head_B]

    return vector_of
