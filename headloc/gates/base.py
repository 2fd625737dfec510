"""What every relaxation of "which heads stay open" offers to the localizer.

Shapes: B rows (prompts), A heads of the whole model in flat order; where feed-forward blocks are
gated as well, every [A] is an [A + M], the M blocks behind the heads (`headloc.components`).

A gate of one leaves its head alone, a gate of zero puts the head at the objective's off-value.
Gates are float32 whatever the dtype of the model, because an update of 1e-2 vanishes in bfloat16.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from headloc.errors import HeadlocError


class HeadGates(nn.Module, ABC):
    """A trainable vector of gates, one per head, and the noise with which it is trained.

    The constructor of a subclass takes its hyper-parameters only; `allocate` makes the parameters,
    once the model and so the number of heads is known.

    Args:
        mlps: gate every feed-forward block too.  Its gate weighs as much as a head's.
    """

    #: Whether the sparsity weight belongs into the loss. False where `after_step` applies it.
    penalty_in_loss: bool = True

    #: Learning rate that suits the parameters, used where none is asked for.
    default_lr: float = 0.1

    def __init__(self, mlps: bool = False) -> None:
        super().__init__()
        self.mlps = mlps
        self.heads = 0

    def allocate(self, heads: int, generator: torch.Generator) -> None:
        """Make the parameters, drawing initial values from `generator`.

        Args:
            heads: number of gates: heads, and feed-forward blocks where these are gated.
            generator: source of the initial values.
        """
        self.heads = heads
        self._allocate(heads, generator)

    @abstractmethod
    def _allocate(self, heads: int, generator: torch.Generator) -> None: ...

    @abstractmethod
    def sample(self, rows: int, generator: torch.Generator) -> Tensor:
        """Return gates_BA for a training step: an independent draw per row, with gradient."""

    @abstractmethod
    def values(self) -> Tensor:
        """Return the deterministic test-time gates [A] in [0, 1], without gradient."""

    @abstractmethod
    def expected_open(self) -> Tensor:
        """Return the expected number of open heads, a scalar with gradient."""

    def scores(self) -> Tensor:
        """Return what heads are ranked by [A], larger is more important, without gradient."""
        return self.values()

    def after_step(self, shrinkage: float) -> None:
        """Bring the parameters back into range after an optimizer step.

        Args:
            shrinkage: sparsity weight times learning rate, for gates that apply it proximally.
        """


def uniform_noise(rows: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise_BA in the open interval (0, 1), drawn on the generator's device."""
    noise = torch.rand(rows, like.numel(), generator=generator, device=generator.device)
    return noise.clamp(1e-6, 1 - 1e-6).to(like.device)


def require(condition: bool, message: str) -> None:
    """Raise a HeadlocError for a hyper-parameter out of range."""
    if not condition:
        raise HeadlocError(message)
