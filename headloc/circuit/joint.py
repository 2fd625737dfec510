"""What two circuits of one model answer together: their intersection and union on fresh prompts.

Shapes: A heads in flat order, behind them M feed-forward blocks where either circuit gates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.circuit.circuit import Circuit
from headloc.components import Components
from headloc.errors import CircuitError
from headloc.evaluation.intervals import Estimate, mean_interval
from headloc.evaluation.scoring import score
from headloc.randomness import stream
from headloc.tasks.different import draw_different

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives import Objective
    from headloc.stages import Stages
    from headloc.tasks import Split, TaskFamily


@dataclass(frozen=True, slots=True)
class JointAccuracy:
    """Accuracy of one set of components.

    Attributes:
        name: full, first, second, intersection, union or off.
        split: train or held_out, the tasks of the prompts.
        heads: number of open heads.
        mlps: number of open feed-forward blocks; None where none is gated.
        accuracy: share of fresh prompts answered correctly.
    """

    name: str
    split: str
    heads: int
    mlps: int | None
    accuracy: Estimate


def check_pair(first: Circuit, second: Circuit) -> None:
    """Refuse circuits that cannot be scored together.

    Raises:
        CircuitError: when they are of different models.
    """
    prints = [circuit.model.get("fingerprint") for circuit in (first, second)]
    if prints[0] != prints[1]:
        raise CircuitError(
            f"The circuits are of different weights: {first.model.get('name')!r} "
            f"({first.model.get('dtype')}) and {second.model.get('name')!r} "
            f"({second.model.get('dtype')}). Score circuits of one model together."
        )


def owner(first: Circuit, second: Circuit) -> Circuit:
    """Return the circuit whose intervention scores both: one that gates all that either gates."""
    return second if first.feed_forward is None and second.feed_forward is not None else first


def joint_accuracies(
    first: Circuit,
    second: Circuit,
    lm: FrozenLM,
    task: TaskFamily,
    objective: Objective,
    *,
    seed: int,
    prompts: int,
    stages: Stages,
) -> list[JointAccuracy]:
    """Score two circuits, their intersection and union, and for comparison the model with
    everything on and everything off.

    A circuit that gates no feed-forward blocks keeps them all.

    Args:
        first: a circuit.
        second: another of the same model.
        lm: the model.
        task: the task family, whose prompts are drawn for this purpose alone.
        objective: the prepared intervention.
        seed: seed of the prompts and intervals.
        prompts: prompts of the training tasks, and as many of the held-out tasks if there are any.
        stages: shows the progress.

    Raises:
        CircuitError: when one of the circuits does not fit the model.
    """
    check_pair(first, second)
    components = objective.components(lm)
    a, b = (_open(circuit, lm, components) for circuit in (first, second))
    sets = {
        "full": None,
        "first": a,
        "second": b,
        "intersection": a * b,
        "union": torch.maximum(a, b),
        "off": torch.zeros_like(a),
    }
    splits: Sequence[Split] = ("train", "held_out") if task.held_out else ("train",)
    found = []
    for split in splits:
        with stages(f"scoring on {split.replace('_', '-')} tasks") as progress:
            rng = stream(seed, "test", split)
            examples = draw_different(
                task, prompts, rng, split=split, items="score", key=objective.prompt_key
            )
            fresh = objective.prompt_set(
                lm, task, examples, seed=seed, use=f"test-{split}", progress=progress
            )
            for name, gates in sets.items():
                correct = score(objective, lm, fresh, gates).correct
                sizes = _sizes(torch.ones_like(a) if gates is None else gates, components)
                found.append(JointAccuracy(name, split, *sizes, mean_interval(correct, seed)))
    return found


def _open(circuit: Circuit, lm: FrozenLM, components: Components) -> Tensor:
    """Return gates of one on a circuit, also on blocks that it does not gate."""
    circuit.check_model(lm)
    mlps = components.mlps if circuit.mlps is None else circuit.mlps
    gates = torch.zeros(components.total)
    gates[components.indices(circuit.heads, mlps)] = 1.0
    return gates


def _sizes(gates: Tensor, components: Components) -> tuple[int, int | None]:
    heads_A, mlps_M = components.split(gates)
    return int(heads_A.sum()), int(mlps_M.sum()) if components.mlps else None
