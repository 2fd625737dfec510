"""The verdict on a circuit: is it sufficient, is it necessary, is it better than chance?

What each condition leaves open stands in `conditions.py`.  All on prompts drawn for this purpose
alone, on the tasks that were trained on and on held-out tasks.  Every outcome of
every prompt is kept.

Shapes: N prompts, A heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from headloc.evaluation.conditions import CONDITIONS, plan_conditions
from headloc.evaluation.intervals import Estimate, faithfulness, mean_interval
from headloc.evaluation.many import score_many
from headloc.evaluation.scoring import Outcomes, score
from headloc.lm.frozen import FrozenLM
from headloc.objectives import Objective, PromptSet
from headloc.objectives.prompts import Progress

__all__ = ["CONDITIONS", "RANDOM", "SplitVerdict", "judge"]

RANDOM = ("random", "random_layers")
"""Conditions of many random head sets, which share passes."""


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
        for condition in RANDOM:
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


def pack_outcomes(outcomes: Mapping[str, tuple[Outcomes, ...]]) -> dict[str, Tensor]:
    """Return outcomes as tensors, by condition: correct_SN, log_probability_SN, predicted_SNJ."""
    packed = {}
    for condition, sets in outcomes.items():
        for name in ("correct", "log_probability", "predicted"):
            stacked = np.stack([getattr(one, name) for one in sets])
            packed[f"{condition}/{name}"] = torch.from_numpy(stacked)
    return packed


def unpack_outcomes(
    conditions: Sequence[str], packed: Mapping[str, Tensor]
) -> dict[str, tuple[Outcomes, ...]]:
    """Return what `pack_outcomes` packed, the conditions in their order."""
    return {
        condition: tuple(
            Outcomes(correct.numpy(), log_p.numpy(), predicted.numpy())
            for correct, log_p, predicted in zip(
                packed[f"{condition}/correct"],
                packed[f"{condition}/log_probability"],
                packed[f"{condition}/predicted"],
                strict=True,
            )
        )
        for condition in conditions
    }


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
    """Score a circuit and its controls on one set of prompts.

    Args:
        objective: the prepared intervention.
        lm: the frozen model.
        prompts: fresh prompts.
        heads: flat indices of the chosen heads, and feed-forward blocks where these are gated.
        seed: seed of the controls and intervals.
        random_sets: number of random sets of either kind.
        progress: called with ((gate vector, prompt) pairs scored, in all).
    """
    plan = plan_conditions(objective.components(lm), heads, seed=seed, random_sets=random_sets)
    controls = [mask for name in RANDOM for mask in plan.get(name, []) if mask is not None]
    total = sum(map(len, plan.values())) * len(prompts)
    done = 0

    def report(more: int) -> None:
        if progress is not None:
            progress(done + more, total)

    outcomes: dict[str, tuple[Outcomes, ...]] = {}
    for condition in [name for name in plan if name not in RANDOM]:
        # Scored alone: with all heads open the circuit is the untouched model bit for bit.
        outcomes[condition] = (score(objective, lm, prompts, plan[condition][0]),)
        done += len(prompts)
        report(0)
    if controls:
        many = score_many(
            objective,
            lm,
            prompts,
            torch.stack(controls),
            predicted=True,
            progress=lambda pairs, _: report(pairs),
        )
        found = iter(many.outcomes(index) for index in range(len(many)))
        outcomes |= {name: tuple(islice(found, len(plan[name]))) for name in RANDOM}
    return SplitVerdict(prompts, {name: outcomes[name] for name in plan}, seed)
