"""The verdict on a head set: is it sufficient, is it necessary, is it better than chance?

    full             the untouched model
    circuit          the chosen heads, all others at their off-value      (sufficiency)
    without_circuit  all heads but the chosen ones                         (necessity)
    random           random head sets of the same size, all others off     (control)
    random_layers    random sets with as many heads in every layer         (control)
    off              every head at its off-value

All on prompts drawn for this purpose alone, on the tasks that were trained on and on held-out tasks
(METHODS 3.8, 7).  Every outcome of every prompt is kept.

Shapes: N prompts, A heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headloc.evaluation.intervals import Estimate, faithfulness, mean_interval
from headloc.evaluation.scoring import Outcomes, score
from headloc.heads import HeadLayout
from headloc.lm.frozen import FrozenLM
from headloc.objectives import Objective, PromptSet
from headloc.objectives.prompts import Progress
from headloc.randomness import stream

CONDITIONS = ("full", "circuit", "without_circuit", "random", "random_layers", "off")


@dataclass(frozen=True, slots=True)
class SplitVerdict:
    """Outcomes on one set of prompts.

    Attributes:
        prompts: the prompts.
        outcomes: per condition; the random conditions hold one entry per random set.
        seed: seed of the intervals.
    """

    prompts: PromptSet
    outcomes: Mapping[str, tuple[Outcomes, ...]]
    seed: int

    def accuracy(self, condition: str) -> Estimate:
        """Return the accuracy of a condition; over random sets, the mean over sets and prompts."""
        return mean_interval(self._mean(condition, "correct"), self.seed)

    def log_probability(self, condition: str) -> Estimate:
        """Return the mean log-probability of the answer, in nats."""
        return mean_interval(self._mean(condition, "log_probability"), self.seed)

    def faithfulness(self, measure: str = "correct") -> Estimate | None:
        """Return the faithfulness of the circuit under accuracy or log-probability."""
        circuit, off, full = (self._mean(name, measure) for name in ("circuit", "off", "full"))
        return faithfulness(circuit, off, full, self.seed)

    def random_range(self, condition: str = "random") -> tuple[float, float]:
        """Return the smallest and largest accuracy among the random sets."""
        accuracies = [outcome.accuracy for outcome in self.outcomes[condition]]
        return min(accuracies), max(accuracies)

    def to_metrics(self, prefix: str = "") -> dict[str, float]:
        """Return flat figures, their keys behind `prefix`."""
        flat: dict[str, float] = {}
        for condition in self.outcomes:
            flat |= self.accuracy(condition).to_metrics(f"{prefix}accuracy/{condition}")
            flat |= self.log_probability(condition).to_metrics(
                f"{prefix}log_probability/{condition}"
            )
        for condition in ("random", "random_layers"):
            if condition in self.outcomes:
                low, high = self.random_range(condition)
                flat[f"{prefix}accuracy/{condition}/smallest"] = low
                flat[f"{prefix}accuracy/{condition}/largest"] = high
        for key, measure in (
            ("faithfulness", "correct"),
            ("faithfulness/log_probability", "log_probability"),
        ):
            estimate = self.faithfulness(measure)
            if estimate is not None:
                flat |= estimate.to_metrics(f"{prefix}{key}")
        kept = self.accuracy("full").value
        if kept > 0:
            flat[f"{prefix}accuracy_kept"] = self.accuracy("circuit").value / kept
        return flat

    def _mean(self, condition: str, field: str) -> np.ndarray:
        values = [
            getattr(outcome, field).astype(np.float64) for outcome in self.outcomes[condition]
        ]
        return np.mean(values, axis=0)


def judge(
    objective: Objective,
    lm: FrozenLM,
    prompts: PromptSet,
    heads: Sequence[int],
    *,
    seed: int,
    random_sets: int = 20,
    progress: Progress | None = None,
) -> SplitVerdict:
    """Score a head set and its controls on one set of prompts.

    Args:
        objective: the prepared intervention.
        lm: the frozen model.
        prompts: fresh prompts.
        heads: flat indices of the chosen heads.
        seed: seed of the controls and intervals.
        random_sets: number of random sets of either kind.
        progress: called with (gate vectors scored, in all).
    """
    plan = _plan(lm.layout, heads, seed, random_sets)
    total = sum(len(masks) for masks in plan.values())
    outcomes: dict[str, tuple[Outcomes, ...]] = {}
    done = 0
    for condition, masks in plan.items():
        scored = []
        for mask_A in masks:
            scored.append(score(objective, lm, prompts, mask_A))
            done += 1
            if progress is not None:
                progress(done, total)
        outcomes[condition] = tuple(scored)
    return SplitVerdict(prompts, outcomes, seed)


def _plan(
    layout: HeadLayout, heads: Sequence[int], seed: int, random_sets: int
) -> dict[str, list[Tensor | None]]:
    rng = stream(seed, "controls")
    total = layout.total
    chosen_A = torch.zeros(total)
    chosen_A[list(heads)] = 1.0
    plan: dict[str, list[Tensor | None]] = {
        "full": [None],
        "circuit": [chosen_A],
        "without_circuit": [1.0 - chosen_A],
        "off": [torch.zeros(total)],
    }
    if random_sets > 0:
        plan["random"] = [_random_mask(rng, total, len(heads)) for _ in range(random_sets)]
        plan["random_layers"] = [_layer_matched(rng, layout, chosen_A) for _ in range(random_sets)]
    return {name: plan[name] for name in CONDITIONS if name in plan}


def _random_mask(rng: np.random.Generator, total: int, size: int) -> Tensor:
    mask_A = torch.zeros(total)
    mask_A[torch.from_numpy(rng.choice(total, size, replace=False))] = 1.0
    return mask_A


def _layer_matched(rng: np.random.Generator, layout: HeadLayout, chosen_A: Tensor) -> Tensor:
    """Return a random mask with as many open heads in every layer as `chosen_A`."""
    parts = [
        chosen_A[part][torch.from_numpy(rng.permutation(part.stop - part.start))]
        for part in layout.slices()
    ]
    return torch.cat(parts)
