"""Figures, tables and pictures of `flow.py`.

Shapes: P prompts.
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
from .flow_edges import EDGES
from .label_prompts import LabelAnswers
from .resampling import Resamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Answered = Mapping[tuple[str, str], LabelAnswers]
"""By edge and window."""


def findings(
    subject: Subject,
    asked_P: NDArray[np.int64],
    base: LabelAnswers,
    answered: Answered,
    windows: Mapping[str, Sequence[int]],
    probes: Mapping[str, Sequence[Array]],
) -> Findings:
    """Return the findings."""
    resamples = Resamples(len(asked_P), subject.seed)
    rows: list[list[Any]] = []
    scalars: dict[str, float] = {}
    drops: dict[tuple[str, str], Estimate] = {}
    untouched = _measures(base, asked_P)
    for name, sample in untouched.items():
        e = resamples.mean(sample)
        rows.append(["none", "none", name, e.value, e.low, e.high, e.n])
        scalars |= e.to_metrics(f"untouched/{name.replace(' ', '_')}")
    for (edge, window), answers in answered.items():
        key = f"{edge}/{window}".replace(" ", "_")
        for name, sample in _measures(answers, asked_P).items():
            e = resamples.mean(sample)
            rows.append([edge, window, name, e.value, e.low, e.high, e.n])
            scalars |= e.to_metrics(f"{key}/{name.replace(' ', '_')}")
        drop = resamples.of(lambda a, b: a - b, untouched["log-odds"],
                            _measures(answers, asked_P)["log-odds"])  # fmt: skip
        drops[edge, window] = drop
        rows.append([edge, window, "loss of log-odds", drop.value, drop.low, drop.high, drop.n])
        scalars |= drop.to_metrics(f"{key}/loss_of_log-odds")
    read = {name: [resamples.mean(s) for s in samples] for name, samples in probes.items()}
    probed: list[list[Any]] = []
    for name, found in read.items():
        for layer, e in zip(subject.lm.layout.layers, found, strict=True):
            probed.append([name, layer.layer, e.value, e.low, e.high, e.n])
            scalars |= e.to_metrics(f"probe/{name.replace(' ', '_')}/layer_{layer.layer}")
    layers = [layer.layer for layer in subject.lm.layout.layers]
    return Findings(
        scalars,
        (
            Table("knock_outs", ("edge", "window", "measure", "value", "low", "high", "n"), rows,
                  "What the model answers with attention closed between spans in a window of "
                  "layers: accuracy in the full vocabulary and within the labels, log-odds of the "
                  "right label, and what it loses of them (paired)."),
            Table("probes", ("probe", "layer", "accuracy", "low", "high", "n"), probed,
                  "Class of a text read off the stream that enters a layer, by ridge probes "
                  "fitted on other prompts with other texts. With two classes in a prompt, the "
                  "class of the previous text can be guessed about every other time."),
        ),
        (
            Picture("flow", "Left: log-odds of the right label lost when an edge is cut in a "
                    "window of layers. Right: class of a text read off the stream.",
                    partial(draw_flow, drops, list(windows), layers, read)),
        ),
        _sentences(windows, drops, read, layers, resamples, answered, base),
    )  # fmt: skip


def _measures(answers: LabelAnswers, asked_P: NDArray[np.int64]) -> dict[str, Array]:
    return {
        "accuracy full vocabulary": answers.full_B.astype(np.float64),
        "accuracy within labels": answers.within_B.astype(np.float64),
        "log-odds": answers.contrast_BL[np.arange(len(asked_P)), asked_P],
    }


def _sentences(
    windows: Mapping[str, Sequence[int]],
    drops: Mapping[tuple[str, str], Estimate],
    read: Mapping[str, Sequence[Estimate]],
    layers: Sequence[int],
    resamples: Resamples,
    answered: Answered,
    base: LabelAnswers,
) -> tuple[str, ...]:
    parts = [name for name in windows if name != "all layers"]
    first, last = parts[0], parts[-1]
    lines = []
    for edge in EDGES:
        most = max(parts, key=lambda name: drops[edge, name].value)
        within = resamples.mean(answered[edge, most].within_B)
        full = resamples.mean(answered[edge, most].full_B)
        lines.append(
            f"{edge.capitalize()}: cut in {first} it costs {drops[edge, first]} nats of log-odds, "
            f"in {last} {drops[edge, last]}, in all layers {drops[edge, 'all layers']}; of the "
            f"windows the most in {most}, where the model still answers "
            f"{within} within the labels and {full} in the full vocabulary (untouched "
            f"{resamples.mean(base.within_B)} and {resamples.mean(base.full_B)})."
        )
    for name, found in read.items():
        best = int(np.argmax([e.value for e in found]))
        lines.append(
            f"Probe, {name}: {found[0]} before layer {layers[0]}, {found[best]} at its best before "
            f"layer {layers[best]} (n = {resamples.n})."
        )
    return tuple(lines)


def draw_flow(
    drops: Mapping[tuple[str, str], Estimate],
    windows: Sequence[str],
    layers: Sequence[int],
    read: Mapping[str, Sequence[Estimate]],
) -> Figure:
    """Draw losses by edge and window, and probes by layer."""
    figure = drawing.new_figure(10.4, 3.6)
    first, second = figure.subplots(1, 2, width_ratios=(1.15, 1))
    grid = np.array([[drops[edge, window].value for window in windows] for edge in EDGES])
    drawing.heat_map(figure, first, grid, EDGES, windows, label="log-odds lost (nats)",
                     diverging=True)  # fmt: skip
    for index, (name, found) in enumerate(read.items()):
        colour, dash, mark = drawing.LINES[index]
        second.plot(layers, [e.value for e in found], mark, ls=dash, color=colour, ms=4, label=name)
        second.fill_between(layers, [e.low for e in found], [e.high for e in found], color=colour,
                            alpha=0.15, lw=0)  # fmt: skip
    second.set_ylim(-0.03, 1.05)
    second.set_xlabel("stream that enters layer")
    second.set_ylabel("class read by a probe")
    second.legend(frameon=False, fontsize=8.5)
    if len(layers) <= 16:
        second.set_xticks(layers)
    drawing.finish(second)
    return figure
