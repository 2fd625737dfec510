"""Prompts that a random model answers by definition, and an objective that notes its gates.

Shapes: N prompts, A heads, J predicting columns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headloc.lm.frozen import FrozenLM
from headloc.objectives import InPlace, PromptSet
from tests.objectives.by_hand import add_k, mixed_examples, number_lm, prepared


class Recording(InPlace):
    """The in-place objective, with a note of every vector of gates it was scored under."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked: list[Tensor | None] = []

    def logits(self, lm: FrozenLM, prompts: PromptSet, rows: Any, gates: Tensor | None) -> Tensor:
        """Note the gates and go on."""
        self.asked.append(None if gates is None else gates.clone())
        return super().logits(lm, prompts, rows, gates)

    def branched_logits(
        self, lm: FrozenLM, prompts: PromptSet, rows: Any, gates_BGA: Tensor
    ) -> Tensor:
        """Note the gates of every branch and go on."""
        assert (gates_BGA == gates_BGA[:1]).all()
        self.asked += list(gates_BGA[0].clone())
        return super().branched_logits(lm, prompts, rows, gates_BGA)


def answered_by_definition(
    family: str, off_value: str = "mean", rows: int = 8
) -> tuple[FrozenLM, Recording, PromptSet]:
    """A model, an objective, and prompts whose answers are what the untouched model says."""
    lm, task = number_lm(family), add_k()
    objective = Recording(off_value)
    prompts = prepared(objective, lm, task, mixed_examples(task, rows=rows))
    with torch.no_grad():
        said = lm.logits(prompts.batch).argmax(-1)
    return lm, objective, replace(prompts, batch=replace(prompts.batch, target_BJ=said))
