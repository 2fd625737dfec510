"""Search over insertion layers: where does a function vector work best?

Source: Hu et al. 2025, localization.

Hu et al. 2025 add the vector at about a third of the depth.  Here the same vector is added at
every layer and site, on zero-shot prompts of the selection stream, and the best place is
recommended.  The task means are estimated once; every prompt's prefix is run once.

Shapes: A heads in flat order, N prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.evaluation.intervals import Estimate, bootstrap, mean_interval
from headloc.evaluation.many import score_many
from headloc.evaluation.metrics import answered_correctly
from headloc.evaluation.scoring import score
from headloc.heads import HeadLayout
from headloc.lm.frozen import FrozenLM
from headloc.objectives.function_vector import FunctionVector
from headloc.objectives.prompts import Progress, PromptSet, chunks

ALL = "all heads"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a vector is added: a layer and a site within it."""

    layer: int
    site: str

    def __str__(self) -> str:
        return f"layer {self.layer}, {self.site}"


@dataclass(frozen=True, slots=True)
class PlaceScore:
    """What the function vector of some heads achieves at one place.

    Attributes:
        place: where it is added.
        heads: name of the head set.
        accuracy: on zero-shot prompts, with its interval.
        log_probability: mean log p(answer) in nats.
        correct: bool [N], which prompts were answered.
    """

    place: Place
    heads: str
    accuracy: Estimate
    log_probability: float
    correct: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LayerSearch:
    """Scores at every place, and what they are to be compared with.

    Attributes:
        scores: one per head set and place.
        few_shot: accuracy of the same queries behind their demonstrations.
        zero_shot: accuracy of the queries alone.
        seed: seed of the intervals.
    """

    scores: tuple[PlaceScore, ...]
    few_shot: Estimate
    zero_shot: Estimate
    seed: int

    def of(self, heads: str) -> tuple[PlaceScore, ...]:
        """Return the scores of one head set, place by place."""
        return tuple(found for found in self.scores if found.heads == heads)

    def best(self, heads: str) -> PlaceScore:
        """Return the most accurate place for a head set; log-probability breaks ties."""
        return max(self.of(heads), key=lambda found: (found.accuracy.value, found.log_probability))

    def alike(self, heads: str) -> tuple[PlaceScore, ...]:
        """Return the other places that the prompts do not tell apart from the best one.

        Their paired difference in accuracy has a 95 % interval that reaches zero.
        """
        best = self.best(heads)
        return tuple(
            found
            for found in self.of(heads)
            if found is not best and _difference(best, found, self.seed).low <= 0
        )


def search_layers(
    objective: FunctionVector,
    lm: FrozenLM,
    prompts: PromptSet,
    head_sets: Mapping[str, Tensor],
    places: Sequence[Place],
    *,
    seed: int,
    progress: Progress | None = None,
) -> LayerSearch:
    """Score the function vector of every head set at every place.

    Args:
        objective: a prepared function-vector objective; its own layer and site play no part.
        lm: the frozen model.
        prompts: prompts that `objective.prompt_set` made.
        head_sets: unit coefficients [A] by name.
        places: from `all_places`.
        seed: seed of the intervals.
        progress: called with (places done, places in all).

    Raises:
        HeadlocError: when the model has no such layer or site.
    """
    scores: list[PlaceScore] = []
    resumed_at, resumed = None, prompts
    for done, place in enumerate(places, start=1):
        here = objective.at(place.layer, place.site)
        if place.layer != resumed_at:
            resumed_at, resumed = place.layer, here.resumed(lm, prompts)
        many = score_many(here, lm, resumed, torch.stack(list(head_sets.values())))
        for number, name in enumerate(head_sets):
            correct_N = many.correct_GN[number].numpy()
            accuracy = mean_interval(correct_N, seed)
            log_p = float(many.log_probability_GN[number].mean())
            scores.append(PlaceScore(place, name, accuracy, log_p, correct_N))
        if progress is not None:
            progress(done, len(places))
    few_shot = mean_interval(score(objective, lm, prompts, None).correct, seed)
    zero_shot = mean_interval(_untouched(lm, prompts), seed)
    return LayerSearch(tuple(scores), few_shot, zero_shot, seed)


def all_places(
    layout: HeadLayout, sites: Sequence[str], layers: Sequence[int] | None = None
) -> list[Place]:
    """Return every place, layer by layer.

    Raises:
        HeadlocError: when a layer is not one of the model's layers with attention heads.
    """
    known = [layer.layer for layer in layout.layers]
    for layer in layers if layers is not None else ():
        if layer not in known:
            raise HeadlocError(
                f"layers={list(layers or ())} is out of range: {layer} is none of the model's "
                f"layers {known[0]}..{known[-1]}."
            )
    chosen = known if layers is None else sorted(set(layers))
    return [Place(layer, site) for layer in chosen for site in sites]


def layer_sets(layout: HeadLayout) -> dict[str, Tensor]:
    """Return, for each layer, coefficients [A] of one on its heads: `heads of layer 3`."""
    sets = {}
    for layer, place in zip(layout.layers, layout.slices(), strict=True):
        gates_A = torch.zeros(layout.total)
        gates_A[place] = 1.0
        sets[f"heads of layer {layer.layer}"] = gates_A
    return sets


@torch.no_grad()
def _untouched(lm: FrozenLM, prompts: PromptSet) -> NDArray[np.bool_]:
    """Return which zero-shot prompts the model answers without any vector, bool [N]."""
    correct = []
    for part in chunks(len(prompts)):
        batch = prompts.batch.rows(part)
        prefix = None if prompts.prefix is None else prompts.prefix.rows(part)
        correct.append(answered_correctly(lm.logits(batch, prefix), batch.target_BJ))
    return torch.cat(correct).cpu().numpy()


def _difference(best: PlaceScore, other: PlaceScore, seed: int) -> Estimate:
    samples = (found.correct.astype(np.float64) for found in (best, other))
    return bootstrap(lambda a, b: a - b, *samples, seed=seed)
