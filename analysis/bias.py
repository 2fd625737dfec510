"""How much do labels that are common, or come last, win? And do two interventions lessen it?

Majority-label bias: one demonstration is removed, of the query's label or of another, and the
answers differ.  Recency bias: the same demonstrations in other orders.  Both are measured as
accuracy and as log-odds of the right label, before and after the published interventions (value
boost for the first, position-free attention for the second; Yu & Ananiadou 2024), on the circuit's
heads and on random ones.

Shapes: P drawn examples, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.interventions import PositionFree, ValueBoost
from headloc.interventions.base import Prepared, intervened_logits
from headloc.objectives.prompts import chunks, encode_examples
from headloc.randomness import stream

from . import bias_shown as shown
from .base import (
    Analysis,
    Findings,
    Progress,
    Subject,
    require_demonstrations,
    require_heads,
)
from .bias_design import COMMONER, RARER, leaning_counts, order_patterns, ordered, pattern_name
from .label_prompts import LabelAnswers, LabelSet, joined, label_answers, label_set

if TYPE_CHECKING:
    from headloc.tasks import Example

Array = NDArray[np.float64]
Statistic = Callable[..., Array]

ROWS = 64
INTERVENTIONS = ("value_boost", "position_free")


@dataclass(frozen=True)
class Bias(Analysis):
    """Options.

    Attributes:
        prompts: drawn examples.
        removed: demonstrations of a label that are taken out.
        orders: orders of the demonstrations, the two extreme ones among them.
        factor: of the value boost, times (majority count / minority count).
        random_sets: random sets of as many heads outside of the circuit.
    """

    prompts: int = 128
    removed: int = 1
    orders: int = 6
    factor: float = 0.03
    random_sets: int = 3
    name: ClassVar[str] = "bias"
    question: ClassVar[str] = "Do common and recent labels win, and do interventions lessen it?"

    def __post_init__(self) -> None:
        if self.prompts < 2 or self.removed < 1 or self.orders < 2 or self.random_sets < 0:
            raise HeadlocError(
                "The options of analysis=bias must be 1 or more, prompts and orders 2 or more."
            )

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        require_heads(subject)
        require_demonstrations(subject, 4)
        examples = subject.examples(self.prompts, "bias")
        labels = label_set(subject.lm, subject.task, examples[0])
        sets = self._prompt_sets(subject, labels, examples)
        arms = self._arms(subject)
        total = sum(len(prepared) for prepared in arms.values()) * len(sets)
        done = 0
        answered: dict[str, list[dict[str, LabelAnswers]]] = {}
        for name, prepared in arms.items():
            answered[name] = []
            for one in prepared:
                found = {}
                for key, prompts in sets.items():
                    found[key] = answer(subject, labels, prompts, one)
                    done += 1
                    progress(done, total)
                answered[name].append(found)
        orders = [key for key in sets if key.startswith("order ")]
        return shown.findings(subject, answered, labels.asked(examples), orders)

    def _prompt_sets(
        self, subject: Subject, labels: LabelSet, examples: Sequence[Example]
    ) -> dict[str, list[Example]]:
        rng = stream(subject.seed, "analysis", "bias", "design")
        sets = leaning_counts(examples, self.removed, rng)
        own = len(examples[0].demonstrations) // len(labels.names)
        others = len(examples[0].demonstrations) - own
        for pattern in order_patterns(own, others, self.orders, rng):
            sets[f"order {pattern_name(pattern)}"] = [ordered(e, pattern) for e in examples]
        return sets

    def _arms(self, subject: Subject) -> dict[str, list[Prepared | None]]:
        """Return prepared interventions by name, one or several head sets each."""
        lm, heads = subject.lm, subject.heads
        drawn = random_sets(subject, self.random_sets)
        arms: dict[str, list[Prepared | None]] = {"none": [None]}
        for intervention in (ValueBoost(self.factor), PositionFree()):
            arms[f"{intervention.name} circuit"] = [intervention.on(lm, heads)]
            if drawn:
                arms[f"{intervention.name} random"] = [intervention.on(lm, s) for s in drawn]
        return arms


def random_sets(subject: Subject, count: int) -> list[tuple[HeadId, ...]]:
    """Return random sets of as many heads outside of the circuit; none where there are too few."""
    others = [head for head in subject.lm.layout if head not in set(subject.heads)]
    if len(others) < len(subject.heads):
        return []
    rng = stream(subject.seed, "analysis", "bias", "random heads")
    size = len(subject.heads)
    return [tuple(sorted(others[i] for i in rng.permutation(len(others))[:size]))
            for _ in range(count)]  # fmt: skip


def answer(
    subject: Subject, labels: LabelSet, examples: Sequence[Example], prepared: Prepared | None
) -> LabelAnswers:
    """Return what the model answers to examples, with an intervention or without."""
    parts = []
    asked = labels.asked(examples)
    for rows in chunks(len(examples), ROWS):
        _, batch = encode_examples(subject.lm, examples[rows], subject.task.template)
        logits_BJV = intervened_logits(subject.lm, batch, prepared)
        parts.append(label_answers(labels, logits_BJV, batch, asked[rows]))
    return joined(parts)


@dataclass(frozen=True, slots=True)
class BiasMeasure:
    """A figure of bias from the means over prompt sets.

    Attributes:
        name: what is measured.
        kind: majority or recency.
        unit: accuracy or nats.
        sets: prompt sets whose means it takes, in order.
        statistic: means in, bias out (elementwise over resamples).
    """

    name: str
    kind: str
    unit: str
    sets: tuple[str, ...]
    statistic: Statistic


def bias_measures(orders: Sequence[str]) -> list[BiasMeasure]:
    """Return the measures; the first two orders are the query's label last and first."""

    def gap(high: Array, low: Array) -> Array:
        return high - low

    def spread(*means: Array) -> Array:
        return np.std(np.stack(means), axis=0)

    return [
        BiasMeasure("majority gap", "majority", unit, (COMMONER, RARER), gap)
        for unit in ("accuracy", "nats")
    ] + [
        BiasMeasure("spread over orders", "recency", unit, tuple(orders), spread)
        for unit in ("accuracy", "nats")
    ] + [
        BiasMeasure("last minus first", "recency", unit, tuple(orders[:2]), gap)
        for unit in ("accuracy", "nats")
    ]  # fmt: skip


def sample_of(answers: LabelAnswers, unit: str, asked_P: NDArray[np.int64]) -> Array:
    """Return what is averaged: right within the labels, or the log-odds of the right label, [P]."""
    if unit == "accuracy":
        return answers.within_B.astype(np.float64)
    return answers.contrast_BL[np.arange(len(asked_P)), asked_P]
