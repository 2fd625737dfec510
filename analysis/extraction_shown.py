"""Figures, tables and pictures of `extraction.py`.

Shapes: P prompts, N demonstrations, L labels.
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
from .label_prompts import LabelSet
from .resampling import Resamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .extraction import ExtractionReading

Array = NDArray[np.float64]

MEASURES = ("contrast", "weighted contrast", "contrast elsewhere", "attention", "rank")


def label_samples(read: ExtractionReading, head: HeadId, label: int) -> dict[str, Array]:
    """Return a head's measures at the tokens of one label, [P] each.

    Contrast: M_l averaged over the label's tokens.  Weighted: attention times contrast, summed over
    them.  Elsewhere: M_l averaged over the tokens of the other labels.
    """
    own_PN = read.shown_PN == label
    contrast_PN = read.of("contrast", head)[:, label]
    attention_PN = read.of("attention", head)
    rank_PN = read.of("rank", head)
    few = len(rank_PN)
    return {
        "contrast": _mean(contrast_PN, own_PN),
        "weighted contrast": (attention_PN * contrast_PN * own_PN).sum(1),
        "contrast elsewhere": _mean(contrast_PN, ~own_PN),
        "attention": (attention_PN * own_PN).sum(1),
        "rank": _mean(rank_PN, own_PN[:few]),
    }


def _mean(sample_PN: Array, chosen_PN: NDArray[np.bool_]) -> Array:
    """Return the mean over chosen tokens, NaN where there are none."""
    count_P = chosen_PN.sum(1)
    return (sample_PN * chosen_PN).sum(1) / np.where(count_P == 0, np.nan, count_P)


def mean_estimate(sample_P: Array, seed: int) -> Estimate:
    """Return the mean with its interval over the prompts that have a figure."""
    kept = sample_P[np.isfinite(sample_P)]
    if not len(kept):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    return Resamples(len(kept), seed).mean(kept)


def head_type(weighted: Sequence[Estimate], names: Sequence[str]) -> str:
    """Return the labels that a head writes: those whose weighted contrast is surely positive."""
    written = [name for name, e in zip(names, weighted, strict=True) if e.low > 0]
    if len(written) == len(names):
        return "every label"
    return ", ".join(written) if written else "none"


def findings(
    subject: Subject,
    labels: LabelSet,
    read: ExtractionReading,
    copying: Mapping[HeadId, float],
    top: int,
) -> Findings:
    """Return the findings."""
    answers, seed = read.answered(), subject.seed
    resamples = Resamples(len(answers.full_B), seed)
    accuracy = {"accuracy/full_vocabulary": resamples.mean(answers.full_B),
                "accuracy/within_labels": resamples.mean(answers.within_B)}  # fmt: skip
    scalars: dict[str, float] = {}
    for key, e in accuracy.items():
        scalars |= e.to_metrics(key)
    rows: list[list[Any]] = []
    heads: list[list[Any]] = []
    tokens: list[list[Any]] = []
    kept = set(subject.heads)
    measured: dict[HeadId, list[dict[str, Estimate]]] = {}
    for head in read.heads:
        measured[head] = [
            {name: mean_estimate(sample, seed)
             for name, sample in label_samples(read, head, label).items()}
            for label in range(len(labels.names))
        ]  # fmt: skip
        for label, found in zip(labels.names, measured[head], strict=True):
            for name, e in found.items():
                rows.append([str(head), head in kept, label, name, e.value, e.low, e.high, e.n])
                if head in kept:
                    scalars |= e.to_metrics(f"{head}/{name.replace(' ', '_')}/{label}")
        weighted = [found["weighted contrast"] for found in measured[head]]
        kind = head_type(weighted, labels.names)
        heads.append([str(head), head in kept, kind, copying[head]])
        if head in kept:
            scalars[f"{head}/copying_score"] = copying[head]
        tokens += _top_tokens(subject, labels, read, head, top)
    return Findings(
        scalars,
        (
            Table("labels", ("head", "in circuit", "label", "measure", "value", "low", "high", "n"),
                  rows, "At the tokens of a label: its contrast in the value-output vector (mean "
                  "log-odds against each other label, final norm frozen), the same weighted by "
                  "attention and summed, the contrast at the tokens of other labels, attention, "
                  "and the label's rank among all tokens."),
            Table("heads", ("head", "in circuit", "writes", "copying score"), heads,
                  "Labels whose weighted contrast is positive with its interval; copying score "
                  "of the OV circuit's eigenvalues."),
            Table("tokens", ("head", "label", "rank", "token", "logit"), tokens,
                  "Tokens that the mean value-output vector behind each label raises the most."),
        ),
        (
            Picture("labels", "Contrast of its own label at each label token, and the same "
                    "weighted by attention (summed over the label's tokens).",
                    partial(draw_labels, [str(h) for h in subject.heads], labels.names,
                            [measured[h] for h in subject.heads],
                            _others_range(measured, kept))),
        ),
        _sentences(subject, labels, measured, heads, accuracy),
    )  # fmt: skip


def _top_tokens(
    subject: Subject, labels: LabelSet, read: ExtractionReading, head: HeadId, top: int
) -> list[list[Any]]:
    counts = np.maximum([(read.shown_PN[: len(read.of("rank", head))] == label).sum()
                         for label in range(len(labels.names))], 1)  # fmt: skip
    rows = []
    for label, (name, logits_V) in enumerate(zip(labels.names, read.logits[head], strict=True)):
        best = (logits_V / counts[label]).topk(min(top, len(logits_V)))
        for rank, (value, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(),
                                                  strict=True)):  # fmt: skip
            rows.append([str(head), name, rank + 1, _text(subject, token), value])
    return rows


def _text(subject: Subject, token: int) -> str:
    tokenizer = subject.lm.tokenizer
    return str(token) if tokenizer is None else str(tokenizer.decode([token]))


def _others_range(
    measured: Mapping[HeadId, Sequence[Mapping[str, Estimate]]], kept: set[HeadId]
) -> dict[str, list[float]]:
    """Return the contrasts of the other heads, for the background."""
    return {
        name: [found[name].value for head, labels in measured.items() if head not in kept
               for found in labels]
        for name in ("contrast", "weighted contrast")
    }  # fmt: skip


def _sentences(
    subject: Subject,
    labels: LabelSet,
    measured: Mapping[HeadId, Sequence[Mapping[str, Estimate]]],
    heads: Sequence[Sequence[Any]],
    accuracy: Mapping[str, Estimate],
) -> tuple[str, ...]:
    kept = [row for row in heads if row[1]]
    lines = []
    by_type: dict[str, list[str]] = {}
    for row in kept:
        by_type.setdefault(row[2], []).append(row[0])
    for kind, names in by_type.items():
        what = {"none": "write no label surely", "every label": "write every label"}
        lines.append(f"{', '.join(names)}: {what.get(kind, f'write {kind} alone')}.")

    def largest(head: HeadId) -> float:
        return max(e["weighted contrast"].value for e in measured[head])

    best = max(subject.heads, key=largest)
    told = "; ".join(
        f"{name} {e['contrast']} unweighted, {e['weighted contrast']} weighted by attention, "
        f"mean rank {e['rank'].value:.1f} of {subject.lm.vocab_size}"
        for name, e in zip(labels.names, measured[best], strict=True)
    )
    lines.append(f"The strongest, {best}, in nats of log-odds at its own label's tokens: {told}.")
    lines.append(
        "Copying scores of the circuit's heads: "
        + ", ".join(f"{row[0]} {row[3]:.2f}" for row in kept)
        + "; mean of other heads "
        + f"{np.mean([row[3] for row in heads if not row[1]] or [np.nan]):.2f}."
    )
    lines.append(
        f"The model answers {accuracy['accuracy/within_labels']} within the labels, "
        f"{accuracy['accuracy/full_vocabulary']} in the full vocabulary."
    )
    return tuple(lines)


def draw_labels(
    names: Sequence[str],
    labels: Sequence[str],
    measured: Sequence[Sequence[Mapping[str, Estimate]]],
    others: Mapping[str, Sequence[float]],
) -> Figure:
    """Draw both contrasts of every head by label; other heads are a grey line of dots."""
    figure = drawing.new_figure(9.0, 0.42 * len(names) + 2.0)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, measure in zip(axes, ("contrast", "weighted contrast"), strict=True):
        axis.axvline(0.0, color=drawing.GREY, lw=0.9)
        for index, label in enumerate(labels):
            colour, _, mark = drawing.LINES[index % len(drawing.LINES)]
            found = [head[index][measure] for head in measured]
            places = np.arange(len(names)) + (index - (len(labels) - 1) / 2) * 0.5 / len(labels)
            axis.hlines(places, [e.low for e in found], [e.high for e in found], color=colour, lw=2)
            axis.plot([e.value for e in found], places, mark, color=colour, ms=5, label=label)
        axis.plot(others[measure], [len(names)] * len(others[measure]), "|", color="#8d99ae", ms=9)
        unit = "weighted by attention" if measure == "weighted contrast" else "at full attention"
        axis.set_xlabel(f"contrast of the label, {unit} (nats)")
        drawing.finish(axis, grid="x")
    axes[0].set_yticks(range(len(names) + 1), [*names, "other heads"])
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, ncols=4, fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1.0),
                   title="at the tokens of", title_fontsize=8.5, alignment="left")  # fmt: skip
    return figure
