"""Tables, sentences and pictures of `steering.py`.

Shapes: S random sets, P prompts, K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate
from headloc.heads import HeadId

from . import drawing
from .base import Findings, Picture, Table
from .resampling import Resamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS_PER_PASS = 512
"""(prompt, new task) pairs of a pass."""

MEASURES = ("exact", "unit digit", "parity", "tens")
CONTEXT_NAMES = {
    "few_shot": "few-shot prompts, heads projected in place",
    "patch": "zero-shot prompts, heads' outputs replaced by task means",
    "vector": "zero-shot prompts, heads' task means added at one layer",
}
LARGEST_ERROR = 15
"""Errors beyond it share a bar."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Answers of one arm: said_SP numbers of S sets (NaN for no number), right_P the answers."""

    context: str
    mode: str
    group: str
    said_SP: NDArray[np.float64]
    right_P: NDArray[np.int64]

    def hits(self, measure: str) -> NDArray[np.bool_]:
        """Return hit_SP: the answer agrees in the whole, its last digit, parity, or the tens."""
        said, right = self.said_SP, self.right_P.astype(float)
        if measure == "exact":
            return said == right
        if measure == "unit digit":
            return said % 10 == right % 10
        if measure == "parity":
            return said % 2 == right % 2
        return said // 10 == right // 10

    @property
    def errors(self) -> NDArray[np.float64]:
        """All errors that are numbers, said minus right."""
        errors = (self.said_SP - self.right_P).ravel()
        return errors[np.isfinite(errors)]

    @property
    def label(self) -> str:
        """What the pictures call it."""
        return f"{self.mode} {self.group}".strip()


@dataclass(frozen=True, slots=True)
class Steered:
    """Every prompt rewritten to every task: hit_PK the new answer is given, error_PK."""

    kind: str
    from_P: NDArray[np.int64]
    hit_PK: NDArray[np.bool_]
    error_PK: NDArray[np.float64]

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
        for measure in MEASURES
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
        scalars |= e.to_metrics(f"steering/{kind.replace(' ', '_')}")
    for head, e in alone:
        scalars |= e.to_metrics(f"steering/{head}")
    return Findings(
        scalars,
        (
            Table("arms", ("context", "mode", "group", "measure", "accuracy", "low", "high", "n",
                           "sets"), table,
                  f"Answers with the circuit's heads projected onto feature groups within their "
                  f"{size} dimensions, or onto what these hold beside the group. Vector: at layer "
                  f"{layer}, times {dose:g}."),
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
                    "feature group, onto the rest of their subspace, and onto random subspaces of "
                    "the same sizes.", partial(_draw_arms, arms, of_arms)),
            Picture("errors", "Errors of the answers in few-shot prompts, by arm.",
                    partial(_draw_errors, [a for a in arms if a.context == "few_shot"])),
            Picture("steering", "Success of rewriting the coordinates from k to k'; the diagonal "
                    "leaves them as they are.",
                    partial(_draw_steering, moves, k_K, order, success)),
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
        "Rewriting the heads' coordinates from k to k' in few-shot prompts gives x + k' in "
        f"{success['subspace']} of the cases; as many random dimensions "
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


def _draw_arms(arms: Sequence[Arm], resamples: Resamples) -> Figure:
    contexts = list(dict.fromkeys(arm.context for arm in arms))
    figure = drawing.new_figure(4.6 * len(contexts) + 1.4, 5.4)
    colours = (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.GREY)
    for axes, context in zip(drawing.panels(figure, len(contexts), 3), contexts, strict=True):
        own = [arm for arm in arms if arm.context == context]
        for index, measure in enumerate(MEASURES):
            for y, arm in enumerate(own):
                e = resamples.mean(arm.hits(measure).mean(0))
                place = y + (index - 1.5) * 0.19
                axes.plot([e.low, e.high], [place, place], color=colours[index], lw=1.6)
                axes.plot([e.value], [place], "osD^"[index], color=colours[index], ms=4,
                          label=measure if y == 0 else None)  # fmt: skip
        axes.set_yticks(range(len(own)), [arm.label for arm in own], fontsize=8.5)
        axes.set_ylim(len(own) - 0.4, -0.6)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("share right")
        axes.set_title(context.replace("_", "-"), loc="left")
        drawing.finish(axes, grid="x")
    figure.axes[0].legend(frameon=False, fontsize=8.5, ncols=4, loc="lower left",
                          bbox_to_anchor=(0, 1.06))  # fmt: skip
    return figure


def _draw_errors(arms: Sequence[Arm]) -> Figure:
    kept = [arm for arm in arms if "random" not in arm.mode]
    columns = min(3, len(kept))
    rows = -(-len(kept) // columns)
    figure = drawing.new_figure(3.3 * columns, 1.7 * rows + 0.4)
    edges = np.arange(-LARGEST_ERROR - 0.5, LARGEST_ERROR + 1)
    for axes, arm in zip(drawing.panels(figure, len(kept), columns), kept, strict=True):
        errors = np.clip(arm.errors, -LARGEST_ERROR, LARGEST_ERROR)
        weights = np.full(len(errors), 1 / arm.said_SP.size)
        axes.hist(errors, bins=edges, weights=weights, color=drawing.BLUE)
        axes.set_title(arm.label, loc="left", fontsize=9.5)
        axes.set_ylim(0, 1.02)
        drawing.finish(axes)
    figure.supxlabel(f"said minus right (beyond {LARGEST_ERROR} in the outer bars)", fontsize=10)
    figure.supylabel("share", fontsize=10)
    return figure


def _draw_steering(
    moves: Sequence[Steered],
    k_K: NDArray[np.int64],
    order: NDArray[np.int64],
    success: dict[str, Estimate],
) -> Figure:
    figure = drawing.new_figure(4.4 * len(moves), 4.5)
    labels = [str(k) for k in k_K[order]]
    for axes, move in zip(drawing.panels(figure, len(moves), len(moves)), moves, strict=True):
        grid = move.matrix()[np.ix_(order, order)]
        drawing.heat_map(figure, axes, grid, labels, labels, label="success", limit=1.0,
                         written=False)  # fmt: skip
        axes.tick_params(labelsize=6.5)
        axes.set_xlabel("to k'")
        axes.set_ylabel("from k")
        axes.set_title(f"{move.kind}: {success[move.kind].value:.2f}", loc="left")
    return figure
