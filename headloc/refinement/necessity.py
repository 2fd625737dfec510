"""Are the heads necessary?  Few-shot prompts with heads at their cross-task mean at the last token.

The controls of the main heads are drawn from the other selected heads, as published (Hu et al.
2025), where those are enough for different sets, and otherwise from all other heads.

Shapes: N prompts, A heads, R random sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.evaluation.many import score_many
from headloc.evaluation.scoring import score
from headloc.randomness import stream
from headloc.refinement.contexts import Contexts
from headloc.refinement.rows import Row
from headloc.refinement.scorer import HeadSets, Scorer


def necessity_rows(scorer: Scorer, contexts: Contexts, sets: HeadSets) -> list[Row]:
    """Score few-shot prompts with heads at their mean at the last token, against random sets."""
    rows = []
    for key, heads in (("main", sets.main), ("selected", sets.selected)):
        if not heads:
            continue
        rows.append(ablation_row(scorer, contexts, f"without_{key}", heads, key))
        pool, name = _pool(scorer, heads, sets.selected)
        if not scorer.random_sets or len(pool) < len(heads):
            continue
        row_key = f"without_random_{key}"
        drawn = random_sets(pool, len(heads), scorer.random_sets, scorer.seed, row_key)
        correct = ablated_many(scorer, contexts, drawn)
        label = f"at mean: {len(heads)} random {name}"
        rows.append(Row(row_key, label, "few_shot", correct, len(heads)))
    return rows


def _pool(scorer: Scorer, heads: Sequence[int], selected: Sequence[int]) -> tuple[list[int], str]:
    """Return what random controls are drawn from: the other selected heads, where they suffice."""
    others = sorted(set(selected) - set(heads))
    if comb(len(others), len(heads)) >= max(scorer.random_sets, 2):
        return others, "other selected"
    return sorted(set(range(scorer.lm.layout.total)) - set(heads)), "others"


def ablation_row(
    scorer: Scorer, contexts: Contexts, key: str, heads: Sequence[int] | None, what: str = ""
) -> Row:
    correct = ablated(scorer, contexts, heads)[None]
    if heads is None:
        return Row(key, "few-shot, untouched", "few_shot", correct)
    return Row(key, f"at mean: {len(heads)} {what}", "few_shot", correct, len(heads))


def ablated(scorer: Scorer, contexts: Contexts, heads: Sequence[int] | None) -> NDArray[np.bool_]:
    """Return correct_N of few-shot prompts with some heads at their mean; None: untouched."""
    gates_A = None if heads is None else _closing(scorer, heads)
    return score(scorer.in_place, scorer.lm, contexts.few_shot, gates_A).correct


def ablated_many(
    scorer: Scorer, contexts: Contexts, sets: Sequence[Sequence[int]]
) -> NDArray[np.bool_]:
    """Return correct_RN of few-shot prompts with the heads of each of R sets at their mean."""
    gates_RA = torch.stack([_closing(scorer, heads) for heads in sets])
    many = score_many(scorer.in_place, scorer.lm, contexts.few_shot, gates_RA)
    found: NDArray[np.bool_] = many.correct_GN.numpy()
    return found


def _closing(scorer: Scorer, heads: Sequence[int]) -> Tensor:
    """Return gates [A] that close some heads."""
    gates_A = torch.ones(scorer.lm.layout.total)
    gates_A[list(heads)] = 0.0
    return gates_A


def random_sets(pool: Sequence[int], size: int, sets: int, seed: int, use: str) -> list[list[int]]:
    """Draw random head sets of one size, each without replacement, of the stream "controls"."""
    rng = stream(seed, "controls", use)
    return [sorted(rng.choice(list(pool), size, replace=False).tolist()) for _ in range(sets)]
