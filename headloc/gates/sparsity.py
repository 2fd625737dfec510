"""How strongly gates are pressed towards few heads: a fixed penalty, or a target number of heads.

A control adds a term to the loss and may adapt after every step.  Its state is held in buffers, so
that a resumed run goes on where it stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from headloc.gates.base import HeadGates, require


class SparsityControl(nn.Module, ABC):
    """The pressure towards few open heads."""

    #: The number of heads asked for, or None when the size follows from the data.
    target: int | None = None

    def begin(self, heads: int) -> None:
        """Check the settings against a model of `heads` heads."""

    @abstractmethod
    def term(self, gates: HeadGates, progress: float) -> Tensor:
        """Return what is added to the loss (scalar). `progress` is the share of training done."""

    def shrinkage(self, learning_rate: float) -> float:
        """Return the proximal step's threshold for gates that apply their penalty themselves."""
        return 0.0

    def after_step(self, gates: HeadGates, progress: float) -> None:
        """Adapt to the gates after an optimizer step."""

    def readings(self) -> dict[str, float]:
        """Return what is worth logging."""
        return {}


class PenaltySparsity(SparsityControl):
    """weight * (expected number of open heads) (Hu et al. 2025; Louizos et al. 2018).

    Args:
        weight: loss per open head, in nats of the task loss.
    """

    def __init__(self, weight: float = 0.05) -> None:
        super().__init__()
        require(weight >= 0, f"sparsity.weight={weight} must not be negative.")
        self.weight = weight

    def term(self, gates: HeadGates, progress: float) -> Tensor:
        """Return the penalty, or zero for gates that apply it proximally."""
        open_heads = gates.expected_open()
        return self.weight * open_heads if gates.penalty_in_loss else 0.0 * open_heads

    def shrinkage(self, learning_rate: float) -> float:
        """Return weight * learning rate (Hu et al. 2025, localization)."""
        return self.weight * learning_rate


class TargetSparsity(SparsityControl):
    """A target number of heads through Lagrange multipliers (Edge Pruning, Bhaskar et al. 2024).

    With s the expected share of open heads, t the target share and A the number of heads, the loss
    gains A (lambda1 (s - t) + lambda2 (s - t)^2), and both multipliers climb by a step times
    s - t and its square.  The factor A makes lambda1 a price in nats per head, which does not
    depend on the size of the model.  The *expected* L0 stands in the constraint, not a sampled
    one, so that every step has a gradient.  t moves linearly from 1 to its end value over the
    first `warmup` share of training.

    Args:
        heads: the number of heads asked for.
        multiplier_lr: step of the ascent on the multipliers.
        stiffness: where lambda2 starts, in nats per head; from 0 the gates lag behind the target.
        warmup: share of training over which the target tightens.
        runaway: size of a multiplier at which it counts as run away.
    """

    first: Tensor
    second: Tensor
    gap: Tensor

    def __init__(
        self,
        heads: int = 12,
        multiplier_lr: float = 0.1,
        stiffness: float = 5.0,
        warmup: float = 0.5,
        runaway: float = 100.0,
    ) -> None:
        super().__init__()
        require(heads >= 1, f"sparsity.heads={heads} must be at least 1.")
        require(multiplier_lr > 0, f"sparsity.multiplier_lr={multiplier_lr} must be above 0.")
        require(stiffness >= 0, f"sparsity.stiffness={stiffness} must not be negative.")
        require(0 <= warmup < 1, f"sparsity.warmup={warmup} must lie in [0, 1).")
        self.target = int(heads)
        self.multiplier_lr, self.warmup, self.runaway = multiplier_lr, warmup, runaway
        for name in ("first", "second", "gap"):
            self.register_buffer(name, torch.zeros(()))
        self.second.fill_(stiffness)

    def begin(self, heads: int) -> None:
        """Refuse a target above the number of heads of the model."""
        target = self.target or 0
        require(
            target <= heads,
            f"sparsity.heads={target} is more than the {heads} heads (and gated feed-forward "
            "blocks) of the model. "
            f"Ask for at most {heads}.",
        )

    def term(self, gates: HeadGates, progress: float) -> Tensor:
        """Return A (lambda1 (s - t) + lambda2 (s - t)^2)."""
        gap = self._gap(gates, progress)
        return gates.heads * (self.first * gap + self.second * gap.square())

    @torch.no_grad()
    def after_step(self, gates: HeadGates, progress: float) -> None:
        """Let the multipliers climb; neither is allowed to reward open heads."""
        gap = self._gap(gates, progress)
        self.gap.copy_(gap)
        self.first.add_(self.multiplier_lr * gap).clamp_(min=0.0)
        self.second.add_(self.multiplier_lr * gap.square())

    def readings(self) -> dict[str, float]:
        """Return the multipliers and the gap to the current target share."""
        return {
            "sparsity/lambda1": float(self.first),
            "sparsity/lambda2": float(self.second),
            "sparsity/gap": float(self.gap),
        }

    def ran_away(self) -> bool:
        """Whether a multiplier has grown beyond `runaway`: the target is out of reach."""
        return max(float(self.first), float(self.second)) > self.runaway

    def _gap(self, gates: HeadGates, progress: float) -> Tensor:
        end = (self.target or 0) / gates.heads
        done = 1.0 if self.warmup == 0 else min(1.0, progress / self.warmup)
        return gates.expected_open() / gates.heads - (1.0 + (end - 1.0) * done)
