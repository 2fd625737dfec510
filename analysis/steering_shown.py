"""Tables and sentences of `steering.py`.

Shapes: P prompts, K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate
from headloc.heads import HeadId

from . import steering_picture as picture
from .arms import Arm
from .base import Findings, Picture, Table
from .resampling import Resamples

CONTEXT_NAMES = {
    "few_shot": "few-shot prompts, heads projected in place",
    "patch": "zero-shot prompts, heads' outputs replaced by task means",
    "vector": "zero-shot prompts, heads' task means added at one layer",
}


@dataclass(frozen=True, slots=True)
class Steered:
    """Every prompt rewritten to every task: hit_PK, the new answer is given."""

    kind: str
    from_P: NDArray[np.int64]
    hit_PK: NDArray[np.bool_]

    def success(self, resamples: Resamples) -> Estimate:
        """Return how often a prompt answers for a new task, other than its own."""
        return resamples.mean(self._elsewhere(self.hit_PK.astype(float)))

    def matrix(self) -> NDArray[np.float64]:
        """Return success from k to k', success_KK; NaN in rows without prompts."""
        K = self.hit_PK.shape[1]
        found = np.full((K, K), np.nan)
        for k in np.unique(self.from_P):
            found[k] = self.hit_PK[self.from_P == k].mean(0)
        return found

    def _elsewhere(self, value_PK: NDArray[np.float64]) -> NDArray[np.float64]:
        other_PK = np.arange(value_PK.shape[1]) != self.from_P[:, None]
        return (value_PK * other_PK).sum(1) / other_PK.sum(1)


def findings(
    arms: Sequence[Arm],
    moves: Sequence[Steered],
    singles: Sequence[tuple[HeadId, NDArray[np.bool_]]],
    k_K: NDArray[np.int64],
    *,
    size: int,
    layer: int,
    dose: float,
    seed: int,
) -> Findings:
    """Put everything together."""
    of_arms = Resamples(len(arms[0].right_P), seed)
    of_moves = Resamples(len(moves[0].from_P), seed)
    table: list[list[Any]] = [
        [arm.context, arm.mode, arm.group, measure, e.value, e.low, e.high, e.n, len(arm.said_SP)]
        for arm in arms
        for measure in picture.MEASURES
        for e in [of_arms.mean(arm.hits(measure).mean(0))]
    ]
    success = {move.kind: move.success(of_moves) for move in moves}
    alone = [(str(head), of_arms.mean(hits)) for head, hits in singles]
    order = np.argsort(k_K)
    scalars: dict[str, float] = {}
    for row in table:
        key = "/".join(str(part).replace(" ", "_") for part in row[:4] if part)
        scalars |= Estimate(*row[4:8]).to_metrics(key)
    for kind, e in success.items():
        scalars |= e.to_metrics(f"steering/{kind.replace(',', '').replace(' ', '_')}")
    for head, e in alone:
        scalars |= e.to_metrics(f"steering/{head}")
    return Findings(
        scalars,
        (
            Table("arms", ("context", "mode", "group", "measure", "accuracy", "low", "high", "n",
                           "sets"), table,
                  f"Answers with the edited heads projected onto feature groups within their "
                  f"{size} dimensions, onto what these hold beside the group (out of), or onto all "
                  f"but the group. Vector: at layer {layer}, times {dose:g}."),
            Table("errors", ("context", "mode", "group", "error", "share"), _error_rows(arms),
                  "Histogram of said minus right, over the answers that are numbers."),
            Table("steering", ("from_k", "to_k", "kind", "success"), _matrix_rows(moves, k_K),
                  "How often a few-shot prompt of k answers for k' once the heads' coordinates are "
                  "rewritten."),
            Table("steering_kinds", ("kind", "success", "low", "high", "n"),
                  [[kind, e.value, e.low, e.high, e.n] for kind, e in success.items()],
                  "Success over all k' other than k, by what of the heads' outputs is rewritten."),
            Table("single_heads", ("head", "success", "low", "high", "n"),
                  [[head, e.value, e.low, e.high, e.n] for head, e in alone],
                  "The subspace of one head alone rewritten, to one random other k'."),
        ),
        (
            Picture("arms", "What is right about the answer when the heads are projected onto a "
                    "feature group (onto), the rest of their subspace (out of), or all else that "
                    "they write (all but); hollow: random subspaces of the same sizes.",
                    partial(picture.draw_arms, arms, of_arms)),
            Picture("errors", "Errors of the answers in few-shot prompts, by arm.",
                    partial(picture.draw_errors, [a for a in arms if a.context == "few_shot"])),
            Picture("steering", "Success of rewriting the heads' coordinates from k to k', by what "
                    "of their outputs is rewritten; the diagonal is the task that was there.",
                    partial(picture.draw_steering, moves, k_K, order, success)),
        ),
        _sentences(arms, success, alone, of_arms),
    )  # fmt: skip


def _error_rows(arms: Sequence[Arm]) -> list[list[Any]]:
    rows = []
    for arm in arms:
        values, counts = np.unique(arm.errors, return_counts=True)
        rows += [
            [arm.context, arm.mode, arm.group, int(value), float(count / arm.said_SP.size)]
            for value, count in zip(values, counts, strict=True)
        ]
    return rows


def _matrix_rows(moves: Sequence[Steered], k_K: NDArray[np.int64]) -> list[list[Any]]:
    return [
        [int(k_K[i]), int(k_K[j]), move.kind, float(value)]
        for move in moves
        for (i, j), value in np.ndenumerate(move.matrix())
        if np.isfinite(value)
    ]


def _sentences(
    arms: Sequence[Arm],
    success: dict[str, Estimate],
    alone: Sequence[tuple[str, Estimate]],
    resamples: Resamples,
) -> tuple[str, ...]:
    def exact(context: str, mode: str, group: str, measure: str = "exact") -> Estimate | None:
        for arm in arms:
            if (arm.context, arm.mode, arm.group) == (context, mode, group):
                return resamples.mean(arm.hits(measure).mean(0))
        return None

    said = [
        f"Rewriting the coordinates of {len(alone)} heads from k to k' in few-shot prompts gives "
        f"the answer of k' in {success['subspace']} of the cases, and in "
        f"{success['subspace, circuit alone']} with the heads outside the circuit at their mean; "
        "as many random dimensions "
        f"{success['random subspace']}, everything but the subspace {success['complement']}, the "
        "whole outputs "
        f"{success['whole output']} (n = {success['subspace'].n} prompts, each to every other k')."
    ]
    if alone and max(e.value for _, e in alone) > 0:
        head, best = max(alone, key=lambda pair: pair[1].value)
        said.append(f"A single head is rewritten with the most effect in {head}: {best}.")
    for context, name in CONTEXT_NAMES.items():
        plain, whole = exact(context, "untouched", ""), exact(context, "onto", "all r")
        parts = [f"{name[0].upper()}{name[1:]}: untouched {plain}, all dimensions {whole}"]
        for group in ("unit digit", "magnitude"):
            measure = "unit digit" if group == "unit digit" else "tens"
            parts.append(
                f"onto {group} {exact(context, 'onto', group)} ({measure} right "
                f"{exact(context, 'onto', group, measure)}; onto as many random dimensions "
                f"{exact(context, 'onto random', group, measure)})"
            )
        said.append("; ".join(parts) + ".")
    return tuple(said)
