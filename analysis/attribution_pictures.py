"""Pictures of `attribution.py`: layer curve, head map, neuron table, source tokens, ablations.

Shapes: N rows, L layers, A heads in flat order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headloc.evaluation.intervals import Estimate
from headloc.heads import HeadLayout
from headloc.reporting.text import visible

from . import drawing
from .attribution_classes import ClassScores, CurvePoint
from .attribution_read import Array, PromptScores
from .attribution_text import Texts
from .resampling import Resamples
from .score_comparison import NOTHING, RANDOM, Ablated, order_by

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Strip = tuple[list[str], list[float], str, str]
_LEAST = 1e-12


def draw_layers(draws: Resamples, scores: PromptScores) -> Figure:
    """Draw the answer's log-probability along the stream, and what every block adds."""
    layers = scores.mlp_NL.shape[1]
    figure = drawing.new_figure(8.0 if layers <= 12 else drawing.WIDEST, 5.6)
    first, second = figure.subplots(2, 1, height_ratios=(1.1, 1))
    steps_NS = np.stack([scores.attention_NL, scores.mlp_NL], 2).reshape(len(scores.final_N), -1)
    path_NS = scores.embedding_N[:, None] + np.cumsum(steps_NS, 1)
    path = [draws.mean(scores.embedding_N), *(draws.mean(path) for path in path_NS.T)]
    places = [-0.5, *(layer + half for layer in range(layers) for half in (0.0, 0.5))]
    first.plot(places, [e.value for e in path], color=drawing.GREY, lw=1.5, zorder=1)
    for start, (colour, name, mark) in enumerate(
        ((drawing.GREY, "embedding", "D"), (drawing.BLUE, "after attention", "o"),
         (drawing.ORANGE, "after feed-forward", "s"))
    ):  # fmt: skip
        own = [0] if start == 0 else list(range(start, len(path), 2))
        first.errorbar(
            [places[i] for i in own], [path[i].value for i in own],
            yerr=_bars([path[i] for i in own]), fmt=mark, color=colour, ms=5, lw=1, label=name,
        )  # fmt: skip
    first.set_ylabel("log-probability of\nthe answer (nats)")
    first.legend(frameon=False, fontsize=9)
    for shift, score_NL, colour, name, hatch in (
        (-0.2, scores.attention_NL, drawing.BLUE, "attention", ""),
        (0.2, scores.mlp_NL, drawing.ORANGE, "feed-forward", "///"),
    ):
        found = [draws.mean(column) for column in score_NL.T]
        second.bar(np.arange(layers) + shift, [e.value for e in found], 0.38, color=colour,
                   yerr=_bars(found), ecolor="#2b2f38", hatch=hatch, edgecolor="white", lw=0,
                   label=name)  # fmt: skip
    second.axhline(0, color=drawing.GREY, lw=0.9)
    second.set_ylabel("log-probability\nincrease (nats)")
    second.set_xlabel("layer")
    second.legend(frameon=False, fontsize=9)
    every = -(-layers // 24)
    for axes in (first, second):
        axes.set_xticks(range(0, layers, every))
        axes.set_xlim(-0.9, layers - 0.1)
        drawing.finish(axes)
    return figure


def draw_heads(layout: HeadLayout, score_A: Array) -> Figure:
    """Draw the score of every head, layers upwards."""
    most = max(layer.heads for layer in layout.layers)
    grid = np.full((len(layout.layers), most), np.nan)
    for head, score in zip(layout, score_A, strict=True):
        row = next(i for i, layer in enumerate(layout.layers) if layer.layer == head.layer)
        grid[row, head.head] = score
    figure = drawing.new_figure(
        min(drawing.WIDEST, max(5.0, 0.55 * most + 2.2)), min(9.0, max(3.2, 0.42 * len(grid) + 1.2))
    )
    axes = figure.add_subplot()
    drawing.heat_map(
        figure, axes, grid, [str(layer.layer) for layer in layout.layers],
        [str(head) for head in range(most)], label="log-probability increase (nats)",
        diverging=True,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.tick_params(axis="x", rotation=0)
    return figure


def draw_neurons(draws: Resamples, overall: ClassScores, texts: Texts, k: int) -> Figure:
    """Draw the best neurons as bars, with what they read as in the vocabulary."""
    chosen = overall.neurons[:k]
    figure = drawing.new_figure(drawing.WIDEST, 0.36 * len(chosen) + 1.3)
    axes, rest = figure.subplots(1, 2, width_ratios=(1, 2.6), sharey=True)
    found = [draws.mean(n.scores_n) for n in chosen]
    axes.barh(range(len(chosen)), [e.value for e in found], 0.62, color=drawing.BLUE,
              xerr=_bars(found), ecolor="#2b2f38")  # fmt: skip
    axes.set_yticks(range(len(chosen)), [f"L{n.layer} neuron {n.neuron}" for n in chosen])
    axes.invert_yaxis()
    axes.set_xlabel("log-probability increase (nats)")
    drawing.finish(axes, grid="x")
    heads = ("coefficient", "promotes", "suppresses")
    places = (0.0, 0.15, 0.62)
    for place, head in zip(places, heads, strict=True):
        rest.text(place, -0.75, head, fontsize=9, fontweight="bold", color=drawing.GREY)
    for row, n in enumerate(chosen):
        reading = texts.neurons[overall.name, n.layer, n.neuron]
        cells = (f"{n.coefficients_n.mean():+.2f}", shown(reading.top, 38),
                 shown(reading.bottom, 30))  # fmt: skip
        for place, cell in zip(places, cells, strict=True):
            rest.text(place, row, cell, fontsize=8, va="center", color="#2b2f38")
    rest.set_xlim(0, 1)
    rest.set_axis_off()
    return figure


def shown(tokens: Sequence[str], width: int) -> str:
    """Return tokens for a picture: blanks in front are left out, as many as fit."""
    text = ""
    for token in tokens:
        longer = f"{text}, {visible(token).strip() or repr(token)}" if text else visible(token)
        if len(longer) > width:
            break
        text = longer.strip()
    return text


def draw_strips(strips: Sequence[Strip]) -> Figure:
    """Draw prompts token by token, coloured by what is taken from each token."""
    from matplotlib import colormaps

    most = max((abs(v) for _, values, _, _ in strips for v in values), default=0.0) or 1.0
    rows = [_cut(strip) for strip in strips]
    width = max(sum(_width(token) for token, _ in row) for row, _, _ in rows)
    fit = min(1.0, 95 / width)
    figure = drawing.new_figure(drawing.WIDEST, 0.6 * len(rows) + 1.2)
    axes = figure.add_subplot()
    colours = colormaps["RdBu_r"]
    for number, (row, _, answer) in enumerate(rows):
        start = 0.0
        for token, value in row:
            size = _width(token)
            shade = colours(0.5 + 0.5 * value / most)
            axes.barh(number, size * 0.97, 0.86, left=start, color=shade, edgecolor="#c9ced8",
                      lw=0.5)  # fmt: skip
            dark = abs(value) > 0.6 * most
            ink = "white" if dark else "#2b2f38"
            axes.text(start + size / 2, number - 0.13, token, ha="center", va="center",
                      fontsize=8 * fit, color=ink)  # fmt: skip
            axes.text(start + size / 2, number + 0.24, f"{value:+.2f}", ha="center", va="center",
                      fontsize=6.5 * fit, color=ink)  # fmt: skip
            start += size
        axes.text(start + 0.3, number, f"\u2192 {visible(answer).strip()}", va="center",
                  fontsize=8.5, color=drawing.GREY)  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for _, name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, width * 1.14)
    axes.set_xticks([])
    drawing.finish(axes, grid=None)
    for spine in axes.spines.values():
        spine.set_visible(False)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    mapped = ScalarMappable(Normalize(-most, most), colours)
    drawing.colour_bar(figure, mapped, axes, "increase (nats)")
    return figure


_MOST_TOKENS = 26


def _cut(strip: Strip) -> tuple[list[tuple[str, float]], str, str]:
    """Return the last tokens of a prompt, the earlier ones summed up."""
    tokens, values, name, answer = strip
    row = [(visible(t).strip() or "\u2423", v) for t, v in zip(tokens, values, strict=True)]
    if len(row) > _MOST_TOKENS:
        front = sum(value for _, value in row[:-_MOST_TOKENS])
        row = [(f"{len(row) - _MOST_TOKENS} more", front), *row[-_MOST_TOKENS:]]
    return row, name, answer


def _width(token: str) -> float:
    return max(5.0, len(token) + 1.6)


def draw_comparison(draws: Resamples, compared: Mapping[str, Ablated]) -> Figure:
    """Draw what is left of the answer, by score, the most harmful first."""
    names = order_by(compared)
    figure = drawing.new_figure(drawing.WIDEST, 0.34 * len(names) + 1.2)
    axes = figure.subplots(1, 2, sharey=True)
    samples = (
        ("mean reciprocal rank", [compared[n].reciprocal_rank_N for n in names]),
        ("log-probability (nats)", [compared[n].log_probability_N for n in names]),
    )
    for one, (label, values) in zip(axes, samples, strict=True):
        for row, (name, value_N) in enumerate(zip(names, values, strict=True)):
            e = draws.mean(value_N)
            control = name in (NOTHING, RANDOM)
            colour = drawing.GREY if control else drawing.BLUE
            one.plot([e.low, e.high], [row, row], color=colour, lw=2)
            one.plot([e.value], [row], "D" if control else "o", color=colour, ms=5.5)
        one.set_xlabel(label)
        drawing.finish(one, grid="x")
    axes[0].set_yticks(range(len(names)), [_SAID.get(n, n.replace("_", " ")) for n in names])
    axes[0].invert_yaxis()
    return figure


_SAID = {
    "nothing": "nothing zeroed",
    "norm": "norm of the subvalue",
    "coefficient": "|coefficient|",
    "coefficient_norm": "|coefficient| \u00d7 norm",
    "coefficient_rank": "|coefficient| / rank",
}
_ARMS = {"own": "of the prompt's class", "other": "of another class", "random": "random"}


def draw_curve(curve: Sequence[CurvePoint], seed: int) -> Figure:
    """Draw the ablation curves of neurons and heads."""
    kinds = [what for what in ("neurons", "heads") if any(p.what == what for p in curve)]
    figure = drawing.new_figure(4.5 * len(kinds), 3.6)
    for axes, what in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for (colour, dash, mark), (arm, name) in zip(drawing.LINES, _ARMS.items(), strict=False):
            points = sorted((p for p in curve if p.what == what and p.arm == arm),
                            key=lambda p: p.count)  # fmt: skip
            if not points:
                continue
            found = [Resamples(len(p.log_probability_n), seed).mean(p.log_probability_n)
                     for p in points]  # fmt: skip
            counts = [p.count for p in points]
            axes.plot(counts, [e.value for e in found], dash, marker=mark, color=colour, ms=4.5,
                      label=name)  # fmt: skip
            axes.fill_between(counts, [e.low for e in found], [e.high for e in found],
                              color=colour, alpha=0.15, lw=0)  # fmt: skip
        if max(p.count for p in curve if p.what == what) > 20:
            axes.set_xscale("symlog", linthresh=1)
            marks = sorted({p.count for p in curve if p.what == what})
            axes.set_xticks(marks, [str(k) for k in marks])
            axes.minorticks_off()
        axes.set_xlabel(f"{what} zeroed")
        axes.set_ylabel("log-probability of the answer (nats)")
        axes.legend(frameon=False, fontsize=8.5)
        drawing.finish(axes)
    return figure


def _bars(found: Sequence[Estimate]) -> Any:
    """Return lengths of error bars below and above."""
    return np.array(
        [[max(e.value - e.low, 0.0) for e in found], [max(e.high - e.value, 0.0) for e in found]]
    )
