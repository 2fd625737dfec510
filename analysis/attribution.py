"""Where does a prediction come from? (Yu & Ananiadou 2024, arXiv 2312.12141)

The answer's first token (or its first few) is explained at the last prompt token: by layers, heads,
feed-forward neurons, and attention neurons by source position, all scored by how much they raise
its log-probability.  The analysis needs no circuit; with one it also reads the circuit's heads.

Shapes: N rows (a prompt, or a prompt and one of its answer tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.heads import HeadId
from headloc.lm.batch import TokenBatch

from .attribution_classes import (
    ClassScores,
    CurvePoint,
    RankedNeuron,
    Rows,
    ablation_curve,
    ranked_heads,
    ranked_neurons,
)
from .attribution_data import Explained, explain
from .attribution_read import PromptScores, read_prompts
from .attribution_sources import Sources, source_parts, source_queries, value_queries
from .attribution_text import read_texts
from .base import Analysis, Findings, Progress, Subject
from .score_comparison import Ablated, compare_scores
from .stream_rows import rows_that_fit

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


@dataclass(frozen=True)
class Attribution(Analysis):
    """Options.

    Attributes:
        prompts: prompts that are explained; facts are all taken, up to this many.
        prompt: one prompt to explain in place of the task's.
        target: what follows it; the model's own answer when None.
        answer_tokens: tokens of an answer that are explained, each as a row of its own.
        known_only: leave out prompts that the model does not answer correctly.
        top: neurons that are kept per prompt.
        shown: components of a list that tables and pictures show.
        queries: best neurons per prompt whose own causes are looked for.
        candidates: neurons of a class that are rescored on all its prompts.
        classes: most classes that are looked at one by one, those with the most prompts.
        ablated: neurons per prompt that the comparison of scores zeroes.
        comparison: prompts that the comparison of scores is made on; 0 leaves it out.
        random_sets: random sets beside every ablation.
        neuron_counts: points of the ablation curve of neurons; empty leaves it out.
        head_counts: points of that of heads.
        circuit_heads: heads of the circuit that is written out.
        rows_per_pass: prompts of a pass, fewer where memory asks for it.
        memory: GiB that the parts of a pass may take beside the model.
    """

    prompts: int = 256
    prompt: str | None = None
    target: str | None = None
    answer_tokens: int = 1
    known_only: bool = True
    top: int = 50
    shown: int = 10
    queries: int = 10
    candidates: int = 200
    classes: int = 8
    ablated: int = 10
    comparison: int = 256
    random_sets: int = 5
    neuron_counts: Sequence[int] = (0, 1, 2, 5, 10, 20, 50, 100)
    head_counts: Sequence[int] = (0, 1, 2, 3, 5, 8)
    circuit_heads: int = 10
    rows_per_pass: int = 32
    memory: float = 1.0
    name: ClassVar[str] = "attribution"
    question: ClassVar[str] = "Where does the prediction come from?"

    def __post_init__(self) -> None:
        positive = ("prompts", "answer_tokens", "top", "shown", "queries", "candidates", "classes",
                    "ablated", "random_sets", "circuit_heads", "rows_per_pass")  # fmt: skip
        for name in positive:
            if getattr(self, name) < 1:
                raise HeadlocError(f"analysis.{name}={getattr(self, name)} must be 1 or more.")
        if self.memory <= 0 or self.comparison < 0:
            raise HeadlocError("analysis.memory must be above 0, analysis.comparison 0 or above.")
        for name in ("neuron_counts", "head_counts"):
            if any(not isinstance(k, int) or k < 0 for k in getattr(self, name)):
                raise HeadlocError(f"analysis.{name} must be a list of whole numbers, 0 or above.")
        if self.target is not None and self.prompt is None:
            raise HeadlocError("analysis.target belongs to analysis.prompt; give that as well.")

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        from .attribution_found import Found
        from .attribution_shown import findings

        lm, steps = subject.lm, _Steps(progress)
        explained = explain(subject, self, self._rows)
        batch, chunk = explained.batch, self._rows(lm, explained.batch)
        count = len(batch)
        steps.expect(4 * count)
        scores = read_prompts(lm, batch, top=self.top, rows=chunk, progress=steps.to)
        steps.next(count)
        classes = self._class_scores(lm, explained, scores, chunk)
        everything = np.arange(count)
        ranked = ranked_heads(lm, scores.heads_NA, everything)
        chosen = tuple(dict.fromkeys((*subject.heads, *ranked[: self.shown])))
        sources = self._sources(lm, batch, chosen, scores, chunk, steps)
        steps.next(count)
        overall = ClassScores("all", everything, ranked, self._ranked(lm, explained, scores,
                              everything, chunk))  # fmt: skip
        texts = read_texts(lm, batch, classes, overall, sources, self.shown, chunk)
        compared = self._compared(subject, explained, scores, chunk, steps)
        curve = self._curve(subject, explained, scores, chunk, steps)
        steps.done()
        return findings(
            Found(self, subject, explained, scores, overall, tuple(classes), sources, texts,
                  compared, tuple(curve))
        )  # fmt: skip

    def _rows(self, lm: FrozenLM, batch: TokenBatch) -> int:
        fit = rows_that_fit(lm, batch.prompt_columns, self.memory * 2**30)
        return min(self.rows_per_pass, fit)

    def _class_scores(
        self, lm: FrozenLM, explained: Explained, scores: PromptScores, chunk: int
    ) -> tuple[ClassScores, ...]:
        return tuple(
            ClassScores(name, rows, ranked_heads(lm, scores.heads_NA, rows),
                        self._ranked(lm, explained, scores, rows, chunk))
            for name, rows in explained.classes(self.classes).items()
        )  # fmt: skip

    def _ranked(
        self,
        lm: FrozenLM,
        explained: Explained,
        scores: PromptScores,
        rows: Rows,
        chunk: int,
    ) -> tuple[RankedNeuron, ...]:
        if scores.neurons is None:
            return ()
        return ranked_neurons(lm, explained.batch, scores.neurons, rows, self.candidates, chunk)

    def _sources(
        self,
        lm: FrozenLM,
        batch: TokenBatch,
        chosen: Sequence[HeadId],
        scores: PromptScores,
        chunk: int,
        steps: _Steps,
    ) -> Sources:
        sources = source_parts(lm, batch, chosen, chunk, steps.to)
        steps.next(len(batch))
        if scores.neurons is not None:
            sources.value_queries = value_queries(
                lm, batch, scores.neurons, self.queries, chunk, steps.to
            )
        if scores.attention_neurons is not None:
            try:
                source_queries(lm, batch, scores.attention_neurons, self.queries, sources, chunk,
                               lambda done: None)  # fmt: skip
            except UnsupportedModelError as error:
                sources.reason = str(error)
        return sources

    def _compared(
        self,
        subject: Subject,
        explained: Explained,
        scores: PromptScores,
        chunk: int,
        steps: _Steps,
    ) -> dict[str, Ablated]:
        if not self.comparison or scores.neurons is None:
            return {}
        some = explained.batch.rows(slice(0, self.comparison))
        return compare_scores(
            subject.lm, some, count=self.ablated, random_sets=self.random_sets, rows=chunk,
            seed=subject.seed, progress=steps.to,
        )  # fmt: skip

    def _curve(
        self,
        subject: Subject,
        explained: Explained,
        scores: PromptScores,
        chunk: int,
        steps: _Steps,
    ) -> list[CurvePoint]:
        classes = {n: r for n, r in explained.classes(self.classes).items() if len(r) > 1}
        if not classes or not (self.neuron_counts or self.head_counts):
            return []
        total = subject.lm.layout.total
        return ablation_curve(
            subject.lm, explained.batch, scores, classes,
            neuron_counts=sorted(set(self.neuron_counts)),
            head_counts=sorted({k for k in self.head_counts if k <= total}),
            random_sets=self.random_sets, most=self.candidates, chunk=chunk, seed=subject.seed,
            progress=lambda done, total: None,
        )  # fmt: skip


class _Steps:
    """Progress over several passes of the same prompts."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._total, self._before = progress, 1, 0

    def expect(self, total: int) -> None:
        self._total = total

    def to(self, done: int) -> None:
        self._progress(min(self._before + done, self._total), self._total)

    def next(self, done: int) -> None:
        self._before += done

    def done(self) -> None:
        self._progress(self._total, self._total)
