"""What a run is made of, and what is refused before any work is done."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headloc.bank.settings import PathSparsity
from headloc.errors import HeadlocError
from headloc.gates import HeadGates, SparsityControl
from headloc.lm.components import components_of
from headloc.lm.frozen import FrozenLM
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.selection import Auto, Selection
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives import Objective
from headloc.randomness import torch_generator
from headloc.tasks import TaskFamily


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of: the frozen model, the task, and how heads are gated and chosen."""

    lm: FrozenLM
    task: TaskFamily
    objective: Objective
    gates: HeadGates
    sparsity: SparsityControl | PathSparsity
    selection: Selection
    data: DataSettings
    optimizer: OptimizerSettings
    verdict: VerdictSettings
    trainer: Mapping[str, Any]
    seed: int


def check_parts(
    lm: FrozenLM,
    task: TaskFamily,
    gates: HeadGates,
    sparsity: SparsityControl | PathSparsity,
    selection: Selection,
) -> None:
    """Refuse settings that do not fit the model or the task.

    Raises:
        HeadlocError: naming the setting, what was given and what is possible.
    """
    total = components_of(lm, gates.mlps).total
    if isinstance(sparsity, PathSparsity):
        sparsity.check(gates, selection)
    else:
        sparsity.begin(total)
    settled(selection, sparsity).begin(total)
    copy.deepcopy(gates).allocate(total, torch_generator(0, "check"))
    task.check_items(items="fit")
    task.check_items(items="score")


def cover_mlps(objective: Objective, gates: HeadGates) -> None:
    """Have the objective gate feed-forward blocks where the gates are to cover them.

    Raises:
        HeadlocError: when it cannot, or when it expects gates that are not there.
    """
    if gates.mlps:
        objective.cover_mlps()
    elif objective.mlps:
        raise HeadlocError(
            "The objective gates feed-forward blocks (mlps=True), but the gates do not cover them. "
            "Set gates.mlps=true."
        )


def settled(selection: Selection, sparsity: SparsityControl | PathSparsity) -> Selection:
    # A path makes its own choice; Auto stays as it is there and is never asked.
    if isinstance(sparsity, PathSparsity) or not isinstance(selection, Auto):
        return selection
    return selection.settled(sparsity.target)
