"""Do texts reach their labels, and the query the last token, in the shallow layers?

Knock-outs close attention between named spans in a window of layers; probes read the class of a
text off the label token behind it, layer by layer (Yu & Ananiadou 2024, arXiv 2402.02872, hold that
shallow layers gather texts at their labels and deep layers compare).  The deep windows, and the
label of the next demonstration, are the controls.

Shapes: P prompts, N demonstrations, D model width, L layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.lm.partial import reading_stream
from headloc.objectives.prompts import chunks, encode_examples
from headloc.randomness import stream

from . import flow_shown as shown
from .base import Analysis, Findings, Progress, Subject, require_demonstrations
from .flow_edges import EDGES, blocked_edges
from .knock_out import knocked_out
from .label_prompts import LabelAnswers, LabelSet, classes_of, joined, label_answers, label_set
from .probes import fit_probe
from .prompting import Chunk, label_columns
from .reading import prompt_only

if TYPE_CHECKING:
    from headloc.tasks import Example

Array = NDArray[np.float64]

ROWS = 64


@dataclass(frozen=True)
class Flow(Analysis):
    """Options.

    Attributes:
        prompts: fresh prompts of the knock-outs, and prompts that probes are scored on.
        fit_prompts: prompts that probes are fitted on; their texts are others.
        windows: windows that the layers are parted into, from shallow to deep.
    """

    prompts: int = 128
    fit_prompts: int = 512
    windows: int = 3
    name: ClassVar[str] = "flow"
    question: ClassVar[str] = "In which layers do texts reach their labels, and labels the answer?"

    def __post_init__(self) -> None:
        if min(self.prompts, self.fit_prompts, self.windows) < 1:
            raise HeadlocError("The options of analysis=flow must be 1 or more.")

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        require_demonstrations(subject, 2)
        examples = subject.examples(self.prompts, "flow")
        labels = label_set(subject.lm, subject.task, examples[0])
        windows = layer_windows(len(subject.lm.layout.layers), self.windows)
        cases = [(edge, name) for edge in EDGES for name in windows]
        total = len(cases) + 3
        base = answers_without(subject, labels, examples, None, ())
        progress(1, total)
        answered: dict[tuple[str, str], LabelAnswers] = {}
        for done, (edge, name) in enumerate(cases):
            answered[edge, name] = answers_without(subject, labels, examples, edge, windows[name])
            progress(done + 2, total)
        probes = self._probes(subject, examples)
        progress(total, total)
        return shown.findings(subject, labels.asked(examples), base, answered, windows, probes)

    def _probes(self, subject: Subject, examples: Sequence[Example]) -> dict[str, list[Array]]:
        """Return the accuracy of every probe by name and layer, [P] each."""
        rng = stream(subject.seed, "analysis", "flow fit")
        fit = subject.task.draw(self.fit_prompts, rng, split="train", items="fit")
        names = sorted({name for e in (*fit, *examples) for name in classes_of(e).values()})
        fitted, scored = read_streams(subject, fit), read_streams(subject, examples)
        fit_classes, classes = (_classes(some, names) for some in (fit, examples))
        found: dict[str, list[Array]] = {}
        for name in PROBES:
            found[name] = [
                _probe_accuracy(name, one, fit_classes, two, classes, len(names))
                for one, two in zip(fitted, scored, strict=True)
            ]
        return found


PROBES = ("own text at label", "previous text at label", "query at last token")
"""What probes read: the class of its own text, or of the text before (a control), at a label token;
the class of the query at the last token."""


def layer_windows(layers: int, parts: int) -> dict[str, tuple[int, ...]]:
    """Return the layers in parts from shallow to deep, and all of them."""
    edges = [round(i * layers / parts) for i in range(parts + 1)]
    found = {}
    for start, stop in itertools.pairwise(edges):
        if start < stop:
            name = str(start) if stop == start + 1 else f"{start}-{stop - 1}"
            found[f"layers {name}"] = tuple(range(start, stop))
    found["all layers"] = tuple(range(layers))
    return found


@torch.no_grad()
def answers_without(
    subject: Subject,
    labels: LabelSet,
    examples: Sequence[Example],
    edge: str | None,
    positions: Sequence[int],
) -> LabelAnswers:
    """Return what the model answers with an edge cut in some layers, or untouched."""
    parts = []
    asked = labels.asked(examples)
    for rows in chunks(len(examples), ROWS):
        some = tuple(examples[rows])
        encoded, batch = encode_examples(subject.lm, some, subject.task.template)
        with ExitStack() as stack:
            if edge is not None:
                blocked_BTT = blocked_edges(Chunk(rows, some, encoded, batch, None), edge)
                stack.enter_context(knocked_out(subject.lm, batch, positions, blocked_BTT))
            logits_BJV = subject.lm.logits(batch)
        parts.append(label_answers(labels, logits_BJV, batch, asked[rows]))
    return joined(parts)


@torch.no_grad()
def read_streams(subject: Subject, examples: Sequence[Example]) -> list[Tensor]:
    """Return the stream that enters each layer at the label tokens and at the last token.

    Returns:
        one tensor x_P(N+1)D per decoder layer, the last token behind the labels.
    """
    lm = subject.lm
    found: list[list[Tensor]] = [[] for _ in lm.layout.layers]
    for rows in chunks(len(examples), ROWS):
        some = tuple(examples[rows])
        encoded, batch = encode_examples(lm, some, subject.task.template)
        columns_BN = label_columns(Chunk(rows, some, encoded, batch, None))
        batch = prompt_only(batch)
        last_B1 = torch.full_like(columns_BN[:, :1], batch.prompt_columns - 1)
        index = torch.cat([columns_BN, last_B1], 1)[..., None].expand(-1, -1, lm.width)
        with ExitStack() as stack:
            seen = [stack.enter_context(reading_stream(lm, one.layer)) for one in lm.layout.layers]
            lm.logits(batch)
        for layer, streams in enumerate(seen):
            found[layer].append(streams[0].gather(1, index).double().cpu())
    return [torch.cat(parts) for parts in found]


def _classes(examples: Sequence[Example], names: Sequence[str]) -> Tensor:
    """Return the class of every demonstration's text and of the query, [P, N + 1]."""
    rows = []
    for example in examples:
        of = classes_of(example)
        shown_labels = [*(d.output for d in example.demonstrations), example.answer]
        rows.append([names.index(of[label]) for label in shown_labels])
    return torch.tensor(rows)


def _probe_accuracy(
    name: str, fit_PCD: Tensor, fit_PC: Tensor, x_PCD: Tensor, class_PC: Tensor, classes: int
) -> Array:
    """Fit a probe on some prompts and score it on others, [P]."""

    def points(stream_PCD: Tensor, of_PC: Tensor) -> tuple[Tensor, Tensor]:
        if name == "query at last token":
            return stream_PCD[:, -1:], of_PC[:, -1:]
        if name == "previous text at label":
            return stream_PCD[:, 1:-1], of_PC[:, :-2]
        return stream_PCD[:, :-1], of_PC[:, :-1]

    fit_x, fit_c = points(fit_PCD, fit_PC)
    probe = fit_probe(fit_x.flatten(0, 1), fit_c.flatten(), classes)
    x, c = points(x_PCD, class_PC)
    hit = probe.predict(x.flatten(0, 1)).view_as(c) == c
    return hit.double().mean(1).numpy()
