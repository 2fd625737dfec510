"""Figures, tables and pictures of `bias.py`.

Shapes: P drawn examples, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate

from . import drawing
from .base import Findings, Picture, Subject, Table
from .label_prompts import LabelAnswers
from .resampling import Resamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .bias import BiasMeasure

Array = NDArray[np.float64]
Answered = Mapping[str, Sequence[Mapping[str, LabelAnswers]]]
"""By arm, one entry per head set: answers by prompt set."""

PUBLISHED = {"majority": "value_boost", "recency": "position_free"}
"""Which intervention was published against which bias."""
CLAIMED = {"majority": 0.22, "recency": 0.17}
"""Published reductions (Yu & Ananiadou 2024)."""


def findings(
    subject: Subject, answered: Answered, asked_P: NDArray[np.int64], orders: Sequence[str]
) -> Findings:
    """Return the findings."""
    from .bias import bias_measures

    resamples = Resamples(len(asked_P), subject.seed)
    measures = bias_measures(orders)
    scalars: dict[str, float] = {}
    rows: list[list[Any]] = []
    reduced: list[list[Any]] = []
    found: dict[tuple[int, str], Estimate] = {}
    reductions: dict[tuple[int, str], Estimate] = {}
    for index, measure in enumerate(measures):
        key = f"{measure.name}/{measure.unit}".replace(" ", "_")
        for arm in answered:
            e = _bias(resamples, measure, answered[arm], asked_P)
            found[index, arm] = e
            rows.append([measure.kind, measure.name, measure.unit, *_arm(arm), e.value, e.low,
                         e.high, e.n])  # fmt: skip
            scalars |= e.to_metrics(f"{key}/{arm.replace(' ', '/')}")
            if arm != "none":
                r = _reduction(resamples, measure, answered["none"], answered[arm], asked_P)
                reductions[index, arm] = r
                reduced.append([measure.kind, measure.name, measure.unit, *_arm(arm), r.value,
                                r.low, r.high, r.n])  # fmt: skip
                scalars |= r.to_metrics(f"{key}/{arm.replace(' ', '/')}/reduction")
    accuracy = _accuracies(resamples, answered)
    for row in accuracy:
        key = f"accuracy_{row[3]}/{row[0]}/{row[1]}/{row[2]}".replace(" ", "_").replace("'", "")
        scalars |= Estimate(*row[4:]).to_metrics(key)
    return Findings(
        scalars,
        (
            Table("bias", ("kind", "measure", "unit", "intervention", "heads", "value", "low",
                           "high", "n"), rows,
                  "Majority gap: the right label commoner minus rarer by the removed "
                  "demonstrations. Spread: standard deviation over orders. Last minus first: "
                  "demonstrations of the right label behind or before all others. Accuracy is "
                  "within the labels; nats are mean log-odds of the right label."),
            Table("reduction", ("kind", "measure", "unit", "intervention", "heads", "value", "low",
                                "high", "n"), reduced,
                  "1 - |after| / |before|, paired over prompts; empty where there is no bias."),
            Table("accuracy", ("intervention", "heads", "prompts", "kind", "value", "low", "high",
                               "n"), accuracy,
                  "Accuracy in the full vocabulary and within the labels on every prompt set."),
        ),
        (
            Picture("bias", "Bias in log-odds of the right label, before and after each "
                    "intervention; circles: the circuit's heads, crosses: random heads.",
                    partial(draw_bias, measures, found)),
        ),
        _sentences(measures, found, reductions, len(asked_P)),
    )  # fmt: skip


def _arm(arm: str) -> tuple[str, str]:
    name, _, heads = arm.partition(" ")
    return name, heads or "-"


def _samples(
    measure: BiasMeasure, sets: Sequence[Mapping[str, LabelAnswers]], asked_P: NDArray[np.int64]
) -> list[Array]:
    from .bias import sample_of

    return [sample_of(one[key], measure.unit, asked_P) for one in sets for key in measure.sets]


def _mean_bias(measure: BiasMeasure, means: Sequence[Array], absolute: bool) -> Array:
    """Return the bias of each head set, averaged over sets."""
    size = len(measure.sets)
    each = [measure.statistic(*means[i : i + size]) for i in range(0, len(means), size)]
    return np.asarray(np.mean(np.abs(each) if absolute else each, axis=0))


def _bias(
    resamples: Resamples,
    measure: BiasMeasure,
    sets: Sequence[Mapping[str, LabelAnswers]],
    asked_P: NDArray[np.int64],
) -> Estimate:
    return resamples.of(
        lambda *means: _mean_bias(measure, means, False), *_samples(measure, sets, asked_P)
    )


def _reduction(
    resamples: Resamples,
    measure: BiasMeasure,
    before: Sequence[Mapping[str, LabelAnswers]],
    after: Sequence[Mapping[str, LabelAnswers]],
    asked_P: NDArray[np.int64],
) -> Estimate:
    first = _samples(measure, before, asked_P)

    def reduction(*means: Array) -> Array:
        was = _mean_bias(measure, means[: len(first)], True)
        now = _mean_bias(measure, means[len(first) :], True)
        return 1 - now / np.where(was < 1e-9, np.nan, was)

    return resamples.of(reduction, *first, *_samples(measure, after, asked_P))


def _accuracies(resamples: Resamples, answered: Answered) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for arm, sets in answered.items():
        for key in sets[0]:
            for kind, name in (("full vocabulary", "full_B"), ("within labels", "within_B")):
                sample = np.mean([getattr(one[key], name) for one in sets], axis=0)
                e = resamples.mean(sample)
                rows.append([*_arm(arm), key, kind, e.value, e.low, e.high, e.n])
    return rows


def _sentences(
    measures: Sequence[BiasMeasure],
    found: Mapping[tuple[int, str], Estimate],
    reductions: Mapping[tuple[int, str], Estimate],
    prompts: int,
) -> tuple[str, ...]:
    lines = []
    for index, measure in enumerate(measures):
        intervention = PUBLISHED[measure.kind]
        before, after = found[index, "none"], found[index, f"{intervention} circuit"]
        unit = "" if measure.unit == "accuracy" else " nats"
        head = f"{measure.kind.capitalize()} bias, {measure.name} of "
        head += "accuracy" if measure.unit == "accuracy" else "log-odds"
        reduction = reductions[index, f"{intervention} circuit"]
        if not np.isfinite(reduction.value) or before.low <= 0 <= before.high:
            lines.append(f"{head}: {before}{unit}, so there is no sure bias to lessen.")
            continue
        verdict = ("lessens it" if reduction.low > 0 else "makes it larger"
                   if reduction.high < 0 else "does not surely change it")  # fmt: skip
        random = reductions.get((index, f"{intervention} random"))
        beside = "" if random is None else f"; on random heads {random}"
        lines.append(
            f"{head}: {before}{unit} before, {after}{unit} after {intervention} on the circuit's "
            f"heads, a reduction of {reduction} that {verdict} (published: "
            f"{CLAIMED[measure.kind]:.2f}){beside} (n = {prompts})."
        )
    return tuple(lines)


def draw_bias(measures: Sequence[BiasMeasure], found: Mapping[tuple[int, str], Estimate]) -> Figure:
    """Draw the biases in nats by arm."""
    chosen = [i for i, measure in enumerate(measures) if measure.unit == "nats"]
    arms = ["none", *(f"{name} {heads}" for name in PUBLISHED.values()
                      for heads in ("circuit", "random"))]  # fmt: skip
    figure = drawing.new_figure(10.2, 2.9)
    axes = figure.subplots(1, len(chosen), sharey=True)
    for axis, index in zip(np.atleast_1d(axes), chosen, strict=True):
        for row, arm in enumerate(arms):
            if (index, arm) not in found:
                continue
            e = found[index, arm]
            colour = drawing.GREY if arm == "none" else drawing.BLUE
            colour = drawing.ORANGE if arm.endswith("random") else colour
            axis.plot([e.low, e.high], [row, row], color=colour, lw=2)
            axis.plot([e.value], [row], "x" if arm.endswith("random") else "o", color=colour, ms=6)
        axis.axvline(0, color=drawing.GREY, lw=0.9, ls=(0, (4, 3)))
        axis.set_title(f"{measures[index].kind}: {measures[index].name}", fontsize=9.5, loc="left")
        axis.set_xlabel("nats")
        drawing.finish(axis, grid="x")
    first = np.atleast_1d(axes)[0]
    first.set_yticks(range(len(arms)), [arm.replace("_", " ") for arm in arms])
    first.invert_yaxis()
    return figure
