"""The verdict table of a refined circuit (Hu et al. 2025), every row on the same fresh prompts.

    zero-shot   vectors of head sets, of single heads in their dose, of AIE's heads, of random
                sets, and the whole residual stream
    few-shot    the untouched model; main and selected heads at their mean, against random sets
    shuffled    vectors in few-shot prompts whose labels are permuted

Shapes: S settings, R random sets, N prompts, K tasks, A heads, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headloc.objectives.prompts import Progress, PromptSet
from headloc.refinement.contexts import Contexts
from headloc.refinement.injection import score_vectors
from headloc.refinement.necessity import ablation_row, necessity_rows, random_sets
from headloc.refinement.residual import score_residual
from headloc.refinement.rows import Context, Difference, Row, difference
from headloc.refinement.scorer import HeadSets, Scorer
from headloc.refinement.vectors import HeadVectors

COMPARED = (
    ("selected", "aie"),
    ("main_alone", "aie_main"),
    ("shuffled_selected", "shuffled_aie"),
)
"""Learned heads against AIE's: pairs of rows whose difference is tested."""
_AS_MAIN = ", main's size"


@dataclass(frozen=True, slots=True)
class SplitTable:
    """The table of one split.

    Attributes:
        contexts: the prompts.
        rows: the conditions, in the order in which they are shown.
        differences: learned heads against AIE's.
    """

    contexts: Contexts
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]

    def row(self, key: str) -> Row:
        """Return a row by its key."""
        return next(row for row in self.rows if row.key == key)


def score_split(
    scorer: Scorer, contexts: Contexts, sets: HeadSets, progress: Progress | None = None
) -> SplitTable:
    """Score every condition on one set of prompts.

    Args:
        scorer: the model and what it is changed by.
        contexts: fresh prompts.
        sets: the head sets.
        progress: called with (groups of rows done, in all).
    """
    report = progress or _unseen
    rows = [ablation_row(scorer, contexts, "clean", None)]
    report(1, 5)
    rows += _zero_shot(scorer, contexts.zero_shot, sets)
    report(2, 5)
    found = score_residual(scorer.lm, contexts.zero_shot, scorer.theta_KLD, scorer.residual_layer)
    label = f"residual stream after layer {scorer.residual_layer}"
    rows.append(Row("residual", label, "zero_shot", found[None]))
    report(3, 5)
    rows += necessity_rows(scorer, contexts, sets)
    report(4, 5)
    if contexts.shuffled is not None:
        rows += _shuffled(scorer, contexts.shuffled, sets)
    report(5, 5)
    by_key = {row.key: row for row in rows}
    compared = [pair for pair in COMPARED if pair[0] in by_key and pair[1] in by_key]
    differences = [difference(by_key[a], by_key[b], scorer.seed) for a, b in compared]
    return SplitTable(contexts, tuple(rows), tuple(differences))


@dataclass(frozen=True, slots=True)
class _Planned:
    """A row to be scored: the vectors v_KD of its head sets."""

    key: str
    label: str
    vectors: Sequence[Tensor]
    heads: int | None = None


def _zero_shot(scorer: Scorer, prompts: PromptSet, sets: HeadSets) -> list[Row]:
    planned = [
        _Planned("zero_shot", "zero-shot, untouched", [scorer.vectors.nothing()]),
        *_learned(scorer, sets),
        *_rivals(scorer, sets),
    ]
    return _scored(scorer, prompts, planned, "zero_shot")


def _learned(scorer: Scorer, sets: HeadSets) -> list[_Planned]:
    """Plan the vectors of the selected, significant and main heads."""
    vectors = scorer.vectors
    planned = [_unit(vectors, "selected", "vector: {} selected", sets.selected)]
    if sets.significant:
        planned.append(_unit(vectors, "significant", "vector: {} significant", sets.significant))
    if sets.main:
        among = vectors.among(sets.main, sets.selected)
        label = f"vector: {len(sets.main)} main, others at mean"
        planned.append(_Planned("main", label, [among], len(sets.main)))
        planned.append(_unit(vectors, "main_alone", "vector: {} main alone", sets.main))
    for head in sets.main:
        name, dose = scorer.lm.layout.head(head), sets.doses[head]
        scaled = vectors.scaled(head, dose, sets.selected)
        planned.append(_Planned(f"head/{name}", f"{name} x {dose}, others at mean", [scaled], 1))
    return planned


def _rivals(scorer: Scorer, sets: HeadSets) -> list[_Planned]:
    """Plan the vectors of AIE's heads and of random sets."""
    planned = []
    for key, heads, size in (("aie", sets.aie, ""), ("aie_main", sets.aie_main, _AS_MAIN)):
        if heads:
            planned.append(_unit(scorer.vectors, key, f"vector: {{}} by AIE{size}", heads))
    total = range(scorer.lm.layout.total)
    for key, heads, size in (("random", sets.selected, ""), ("random_main", sets.main, _AS_MAIN)):
        if heads and scorer.random_sets:
            drawn = random_sets(total, len(heads), scorer.random_sets, scorer.seed, key)
            unit = [scorer.vectors.unit(chosen) for chosen in drawn]
            label = f"vector: {len(heads)} random{size}"
            planned.append(_Planned(key, label, unit, len(heads)))
    return planned


def _shuffled(scorer: Scorer, prompts: PromptSet, sets: HeadSets) -> list[Row]:
    planned = [
        _Planned("shuffled", "labels shuffled, untouched", [scorer.vectors.nothing()]),
        _unit(scorer.vectors, "shuffled_selected", "vector: {} selected", sets.selected),
    ]
    if sets.aie:
        planned.append(_unit(scorer.vectors, "shuffled_aie", "vector: {} by AIE", sets.aie))
    return _scored(scorer, prompts, planned, "shuffled")


def _scored(
    scorer: Scorer, prompts: PromptSet, planned: Sequence[_Planned], context: Context
) -> list[Row]:
    """Score all vectors of some rows in one sequence of full batches."""
    table_SKD = torch.stack([vector for plan in planned for vector in plan.vectors])
    correct_SN = score_vectors(
        scorer.lm,
        prompts,
        scorer.insertion,
        len(table_SKD),
        lambda setting_B, task_B: table_SKD[setting_B, task_B],
        rows_per_pass=scorer.rows_per_pass,
    )
    rows, start = [], 0
    for plan in planned:
        stop = start + len(plan.vectors)
        rows.append(Row(plan.key, plan.label, context, correct_SN[start:stop], plan.heads))
        start = stop
    return rows


def _unit(vectors: HeadVectors, key: str, label: str, heads: Sequence[int]) -> _Planned:
    return _Planned(key, label.format(len(heads)), [vectors.unit(heads)], len(heads))


def _unseen(done: int, total: int) -> None:
    return None
