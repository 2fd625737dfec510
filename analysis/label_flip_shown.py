"""Figures, tables and pictures of `label_flip.py`.

Shapes: P drawn examples, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate
from headloc.heads import HeadId

from . import drawing
from .base import Findings, Picture, Subject, Table
from .flip_design import CELLS
from .flip_shares import PAIRINGS
from .label_prompts import LabelSet
from .rank_correlation import prompt_correlation
from .resampling import Resamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .label_flip import CellReading

Array = NDArray[np.float64]


def findings(subject: Subject, labels: LabelSet, cells: Sequence[CellReading]) -> Findings:
    """Return the findings; figures are means over the four cells of each drawn example."""
    n = len(cells[0].asked_P)
    resamples = Resamples(n, subject.seed)
    names = [str(head) for head in subject.heads]
    scalars: dict[str, float] = {}
    rows: list[list[Any]] = []
    split: list[dict[str, Estimate]] = []
    for head in subject.heads:
        found = _head(resamples, lambda measure, head=head: _mean(cells, head, measure))
        split.append(found)
        for measure, e in found.items():
            rows.append([str(head), measure, e.value, e.low, e.high, e.n])
            scalars |= e.to_metrics(f"{head}/{measure.replace(' ', '_')}")
    together = _head(
        resamples, lambda measure: sum(_mean(cells, head, measure) for head in subject.heads)
    )
    for measure in ("change", *(f"{part} share {p}" for p in PAIRINGS for part in ("QK", "OV"))):
        e = together[measure]
        rows.append(["all heads", measure, e.value, e.low, e.high, e.n])
        scalars |= e.to_metrics(f"all_heads/{measure.replace(' ', '_')}")
    correlations, points = _correlations(subject, labels, cells)
    related: list[list[Any]] = []
    for name, (pearson, ranked) in correlations.items():
        for kind, e in (("pearson", pearson), ("spearman", ranked)):
            related.append([name, kind, e.value, e.low, e.high, e.n])
            scalars |= e.to_metrics(f"correlation/{name.replace(' ', '_')}/{kind}")
    accuracy = _accuracies(resamples, cells)
    answered: list[list[Any]] = []
    for name, e in accuracy.items():
        answered.append([name, e.value, e.low, e.high, e.n])
        scalars |= e.to_metrics(f"accuracy/{name.replace(' ', '_')}")
    return Findings(
        scalars,
        (
            Table("heads", ("head", "measure", "value", "low", "high", "n"), rows,
                  "About the label that the prompt asks for, from a prompt to its twin with "
                  "reversed labels: attention on its tokens, mean contrast at them, relative "
                  "changes of both, the change of what the head writes, and its QK and OV shares "
                  "with label tokens paired by label or by place. Means over four "
                  "counterbalanced pairs; shares are ratios of means."),
            Table("correlation", ("heads", "kind", "value", "low", "high", "n"), related,
                  f"Attention on tokens of {labels.names[0]} minus the mean of the other labels "
                  "against the contrast of that label in the model's logits, over prompts."),
            Table("accuracy", ("prompts", "value", "low", "high", "n"), answered,
                  "What the model answers, in the full vocabulary and within the labels."),
        ),
        (
            Picture("shares", "QK and OV shares of the change of what each head writes about the "
                    "label asked for, when labels are reversed.",
                    partial(draw_shares, names, split)),
            Picture("correlation", "Attention on one label minus the other's, summed over the "
                    "circuit's heads, against the contrast in the logits; one dot a prompt.",
                    partial(draw_correlation, labels.names[0], *points)),
        ),
        _sentences(names, split, together, correlations, accuracy),
    )  # fmt: skip


def _mean(cells: Sequence[CellReading], head: HeadId, measure: str) -> Array:
    """Return a measure of each drawn example, averaged over its cells, [P]."""
    return np.asarray(np.mean([cell.of(head, measure) for cell in cells], axis=0))


def _head(resamples: Resamples, sample: Any) -> dict[str, Estimate]:
    """Return the figures of one head, or of several summed."""

    def relative(after: Array, before: Array) -> Array:
        return (after - before) / np.where(np.abs(before) < 1e-12, np.nan, before)

    found = {name: resamples.mean(sample(name)) for name in ("attention", "twin attention",
                                                             "value", "twin value")}  # fmt: skip
    found["attention change"] = resamples.of(relative, sample("twin attention"),
                                             sample("attention"))  # fmt: skip
    found["value change"] = resamples.of(relative, sample("twin value"), sample("value"))
    found["change"] = resamples.mean(sample("total"))
    for pairing in PAIRINGS:
        for part in ("QK", "OV"):
            found[f"{part} share {pairing}"] = resamples.ratio(
                sample(f"{part} {pairing}"), sample("total")
            )
    return found


def _correlations(
    subject: Subject, labels: LabelSet, cells: Sequence[CellReading]
) -> tuple[dict[str, tuple[Estimate, Estimate]], tuple[Array, Array]]:
    """Correlate attention with logits, one prompt per drawn example so that prompts differ."""
    n = len(cells[0].asked_P)
    cell_of = np.arange(n) % len(cells)
    count = len(labels.names)
    weights_L = np.where(np.arange(count) == 0, 1.0, -1 / (count - 1))

    def picked(stacked: Sequence[Array]) -> Array:
        return np.stack(stacked)[cell_of, np.arange(n)]

    logit_P = picked([cell.answers()[0].contrast_BL[:, 0] for cell in cells])
    looks = {
        str(head): picked([cell.attention_on_labels(head) @ weights_L for cell in cells])
        for head in subject.heads
    }
    summed_P = np.asarray(sum(looks.values()))
    found = {
        name: prompt_correlation(look_P, logit_P, subject.seed)
        for name, look_P in {**looks, "all heads": summed_P}.items()
    }
    return found, (summed_P, logit_P)


def _accuracies(resamples: Resamples, cells: Sequence[CellReading]) -> dict[str, Estimate]:
    found = {}
    for index, which in enumerate(("prompts", "twins")):
        answers = [cell.answers()[index] for cell in cells]
        found[f"{which} full vocabulary"] = resamples.mean(np.mean([a.full_B for a in answers], 0))
        found[f"{which} within labels"] = resamples.mean(np.mean([a.within_B for a in answers], 0))
    return found


def _sentences(
    names: Sequence[str],
    split: Sequence[Mapping[str, Estimate]],
    together: Mapping[str, Estimate],
    correlations: Mapping[str, tuple[Estimate, Estimate]],
    accuracy: Mapping[str, Estimate],
) -> tuple[str, ...]:
    most = max(range(len(names)), key=lambda i: abs(split[i]["change"].value))
    head = split[most]
    return (
        "Reversed labels change what all heads together write about the label asked for by "
        f"{together['change']} nats. By label, {together['QK share by label']} of it is a change "
        f"of attention and {together['OV share by label']} of values; by place (the same texts), "
        f"{together['QK share by place']} and {together['OV share by place']}.",
        f"{names[most]} changes the most: attention on that label by "
        f"{head['attention change']} (relative), the contrast of its value vectors by "
        f"{head['value change']} (n = {head['change'].n} examples in {len(CELLS)} "
        "counterbalanced pairs).",
        "Attention differences, summed over the heads, go with logit differences: Pearson "
        f"{correlations['all heads'][0]}, Spearman {correlations['all heads'][1]}.",
        f"The model answers {accuracy['prompts within labels']} of the prompts and "
        f"{accuracy['twins within labels']} of the twins within the labels "
        f"({accuracy['prompts full vocabulary']} and {accuracy['twins full vocabulary']} in the "
        "full vocabulary).",
    )


def draw_shares(names: Sequence[str], split: Sequence[Mapping[str, Estimate]]) -> Figure:
    """Draw the QK and OV parts of every head's change, by both pairings."""
    figure = drawing.new_figure(9.0, 0.42 * len(names) + 1.9)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, pairing in zip(axes, PAIRINGS, strict=True):
        left = np.zeros((2, len(names)))
        for part, colour, hatch in (("QK", drawing.BLUE, ""), ("OV", drawing.ORANGE, "///")):
            values = np.array([s["change"].value * s[f"{part} share {pairing}"].value
                               for s in split])  # fmt: skip
            side = (values < 0).astype(int)
            start = left[side, np.arange(len(names))]
            axis.barh(range(len(names)), values, 0.62, left=start, color=colour, hatch=hatch,
                      edgecolor="white", lw=0, label=f"{part}: {_WHAT[part]}")  # fmt: skip
            left[side, np.arange(len(names))] += values
        axis.axvline(0, color=drawing.GREY, lw=0.9)
        axis.set_xlabel("change of log-odds (nats)")
        axis.set_title(f"label tokens paired {pairing}", fontsize=9.5, loc="left")
        drawing.finish(axis, grid="x")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", frameon=False,
                  ncols=2, fontsize=8.5)  # fmt: skip
    return figure


_WHAT = {"QK": "attention", "OV": "values"}


def draw_correlation(label: str, look_P: Array, logit_P: Array) -> Figure:
    """Draw logits over attention, one dot a prompt."""
    figure = drawing.new_figure(5.6, 4.0)
    axes = figure.add_subplot()
    axes.axhline(0, color=drawing.GREY, lw=0.8)
    axes.axvline(0, color=drawing.GREY, lw=0.8)
    axes.plot(look_P, logit_P, "o", color=drawing.BLUE, ms=4, alpha=0.5, mew=0)
    axes.set_xlabel(f"attention on {label} minus that on the other labels")
    axes.set_ylabel(f"contrast of {label} in the logits (nats)")
    drawing.finish(axes)
    return figure
