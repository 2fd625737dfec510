"""What a run costs, in forward-equivalents.

One forward pass of one prompt's tokens is 1, its backward pass 2; a pass behind a cached prefix
counts its own tokens only.  The ledger counts the tokens that the model is really run on, padding
included, by a hook on the model: no caller can forget to report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

    from headloc.lm.frozen import FrozenLM


@dataclass(slots=True)
class StageCost:
    """Tokens of one stage of a run."""

    forward_tokens: int = 0
    backward_tokens: int = 0
    passes: int = 0

    def __sub__(self, other: StageCost) -> StageCost:
        return StageCost(
            self.forward_tokens - other.forward_tokens,
            self.backward_tokens - other.backward_tokens,
            self.passes - other.passes,
        )


@dataclass(slots=True)
class TokenLedger:
    """Tokens run, by stage.

    Attributes:
        prompt_tokens: mean length of a few-shot prompt, the unit of a forward-equivalent.
        stages: cost by the name of the stage.
    """

    prompt_tokens: float = 0.0
    stages: dict[str, StageCost] = field(default_factory=dict)

    @contextmanager
    def counting(self, lm: FrozenLM, stage: str) -> Iterator[None]:
        """Count every pass of the model inside the block towards `stage`."""
        cost = self.stages.setdefault(stage, StageCost())
        handle = lm.model.register_forward_pre_hook(partial(_count, cost), with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def cost(self, stage: str) -> StageCost:
        """Return a copy of what a stage has cost so far."""
        return replace(self.stages.get(stage, StageCost()))

    def add(self, stage: str, cost: StageCost) -> None:
        """Add what a part of a stage cost elsewhere, such as in an interrupted run."""
        own = self.stages.setdefault(stage, StageCost())
        own.forward_tokens += cost.forward_tokens
        own.backward_tokens += cost.backward_tokens
        own.passes += cost.passes

    def add_processes(self, stage: str, processes: int) -> None:
        """Count a stage whose rows were shared out evenly over processes for all of them."""
        cost = self.stages[stage]
        cost.forward_tokens *= processes
        cost.backward_tokens *= processes
        cost.passes *= processes

    def tokens(self, stage: str | None = None) -> float:
        """Return the tokens of one stage, or of all, a backward counted twice."""
        chosen = self.stages.values() if stage is None else [self.stages.get(stage, StageCost())]
        return float(sum(cost.forward_tokens + 2 * cost.backward_tokens for cost in chosen))

    def forward_equivalents(self, stage: str | None = None) -> float:
        """Return the cost of one stage, or of all: prompts' worth of forward passes."""
        return self.tokens(stage) / self.prompt_tokens if self.prompt_tokens else 0.0

    def to_dict(self) -> dict[str, float]:
        """Return flat figures: cost/forward_equivalents and one entry per stage."""
        figures = {f"cost/{stage}": self.forward_equivalents(stage) for stage in self.stages}
        return {"cost/forward_equivalents": self.forward_equivalents(), **figures}


def _count(
    cost: StageCost, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    ids = kwargs.get("input_ids", args[0] if args else None)
    tokens = int(ids.numel()) if ids is not None else 0
    cost.passes += 1
    cost.forward_tokens += tokens
    if torch.is_grad_enabled():
        cost.backward_tokens += tokens
