"""The interface of interventions on some heads of a frozen model.

    with intervention.on(lm, heads).applied(batch):
        logits = lm.logits(batch)

An intervention acts on full passes (no prefix cache), because it may read every column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.heads import HeadId

if TYPE_CHECKING:
    from headloc.lm.batch import TokenBatch
    from headloc.lm.frozen import FrozenLM


class Prepared(Protocol):
    """An intervention on given heads of a given model."""

    def applied(self, batch: TokenBatch) -> AbstractContextManager[Any]:
        """Intervene in every full forward of this batch while the block is open."""


class Intervention(ABC):
    """A change of what some heads do at the last prompt token; subclasses hold the settings."""

    name: ClassVar[str]

    @abstractmethod
    def on(self, lm: FrozenLM, heads: Sequence[HeadId]) -> Prepared:
        """Prepare the intervention for some heads.

        Raises:
            HeadlocError: when there are none, or the model does not have one of them.
            UnsupportedModelError: when the model cannot be taken apart as it needs.
        """

    def options(self) -> dict[str, Any]:
        """Return the settings, json-able."""
        return asdict(self) if is_dataclass(self) else {}


def require_some(intervention: Intervention, lm: FrozenLM, heads: Sequence[HeadId]) -> None:
    """Refuse an intervention on no heads, or on heads that the model does not have.

    Raises:
        HeadlocError: saying so.
    """
    if not heads:
        raise HeadlocError(f"intervention={intervention.name} needs heads; the circuit has none.")
    for head in heads:
        lm.layout.index(head)


@torch.no_grad()
def intervened_logits(lm: FrozenLM, batch: TokenBatch, prepared: Prepared | None) -> Tensor:
    """Return logits at the predicting columns [B, J, V] under an intervention, or without one."""
    if prepared is None:
        return lm.logits(batch)
    with prepared.applied(batch):
        return lm.logits(batch)
