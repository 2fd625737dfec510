"""What an intervention on a circuit's heads does to the answers, beside random heads.

Shapes: N prompts, B rows of a pass, A heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate, bootstrap, mean_interval
from headloc.evaluation.metrics import answer_log_probability, answered_correctly
from headloc.heads import HeadId
from headloc.interventions.base import Intervention, Prepared, intervened_logits
from headloc.objectives.prompts import Progress, chunks, encode_examples
from headloc.randomness import stream

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Example, Split, TaskFamily

ROWS_PER_PASS = 64
RANDOM_SETS = 5
"""Random sets of as many heads outside of the circuit."""

Answers = dict[str, NDArray[np.float64]]
"""accuracy, log_probability and, for closed sets of labels, accuracy_within_labels: [N] each."""


@dataclass(frozen=True)
class Intervened:
    """Answers before and after.

    Attributes:
        before: of the untouched model.
        after: with the intervention on the circuit's heads.
        random: with the same on random heads, averaged over sets; empty without other heads.
        seed: of the intervals.
    """

    before: Answers
    after: Answers
    random: Answers
    seed: int

    def to_metrics(self, prefix: str = "") -> dict[str, float]:
        """Return the flat figures, each with its interval."""
        metrics: dict[str, float] = {}
        for measure, before_N in self.before.items():
            key = f"{prefix}intervention/{measure}"
            found: dict[str, Estimate] = {
                "before": mean_interval(before_N, self.seed),
                "after": mean_interval(self.after[measure], self.seed),
                "change": self._change(self.after[measure], before_N),
            }
            if self.random:
                found["random"] = mean_interval(self.random[measure], self.seed)
                found["random_change"] = self._change(self.random[measure], before_N)
            for name, estimate in found.items():
                metrics |= estimate.to_metrics(f"{key}/{name}")
        return metrics

    def _change(self, after_N: NDArray[np.float64], before_N: NDArray[np.float64]) -> Estimate:
        return bootstrap(lambda a, b: a - b, after_N, before_N, seed=self.seed)


def judge_intervention(
    intervention: Intervention,
    lm: FrozenLM,
    task: TaskFamily,
    heads: Sequence[HeadId],
    *,
    seed: int,
    split: Split,
    prompts: int,
    progress: Progress | None = None,
) -> Intervened:
    """Score fresh prompts, the same as the verdict's, without and with an intervention.

    Args:
        intervention: what is done.
        lm: the frozen model.
        task: the task family.
        heads: the circuit's heads.
        seed: of prompts, random heads and intervals.
        split: of the tasks.
        prompts: number of prompts.
        progress: called with (passes done, passes in all).
    """
    examples = task.draw(prompts, stream(seed, "test", split), split=split, items="score")
    sets: list[Prepared | None] = [None, intervention.on(lm, heads)]
    sets += [intervention.on(lm, drawn) for drawn in random_heads(lm, heads, seed)]
    found = []
    for done, prepared in enumerate(sets):
        found.append(answers_under(lm, task, examples, prepared))
        if progress is not None:
            progress(done + 1, len(sets))
    random = {name: np.mean([one[name] for one in found[2:]], axis=0) for name in found[0]}
    return Intervened(found[0], found[1], random if found[2:] else {}, seed)


def random_heads(lm: FrozenLM, heads: Sequence[HeadId], seed: int) -> list[tuple[HeadId, ...]]:
    """Return random sets of as many other heads, none where there are too few."""
    others = [head for head in lm.layout if head not in set(heads)]
    if len(others) < len(heads):
        return []
    rng = stream(seed, "intervention", "random heads")
    return [
        tuple(sorted(others[i] for i in rng.permutation(len(others))[: len(heads)]))
        for _ in range(RANDOM_SETS)
    ]


def answers_under(
    lm: FrozenLM, task: TaskFamily, examples: Sequence[Example], prepared: Prepared | None
) -> Answers:
    """Return what the model answers to examples, with an intervention or without."""
    from headloc.analysis.base import NotApplicable
    from headloc.analysis.label_prompts import label_answers, label_set

    try:
        labels = label_set(lm, task, examples[0])
    except NotApplicable:
        labels = None
    parts: list[Mapping[str, NDArray[np.generic]]] = []
    for rows in chunks(len(examples), ROWS_PER_PASS):
        some = examples[rows]
        _, batch = encode_examples(lm, some, task.template)
        logits_BJV = intervened_logits(lm, batch, prepared)
        one: dict[str, NDArray[np.generic]] = {
            "accuracy": answered_correctly(logits_BJV, batch.target_BJ).cpu().numpy(),
            "log_probability": answer_log_probability(logits_BJV, batch.target_BJ).cpu().numpy(),
        }
        if labels is not None:
            asked_B = labels.asked(some)
            one["accuracy_within_labels"] = label_answers(
                labels, logits_BJV, batch, asked_B
            ).within_B
        parts.append(one)
    return {
        name: np.concatenate([part[name] for part in parts]).astype(np.float64) for name in parts[0]
    }
