"""The rows of a training step: shared out over processes, and run in passes that fit into memory.

A step draws its gate noise for all B rows, whoever runs them, so that neither the number of
processes nor the size of a pass changes what is trained.  With W processes, of which this one runs
the rows of a share, in passes p of n_p rows,

    loss = sum_p (n_p W / B) loss_p

so that the mean of loss and gradient over the processes is that of all B rows.

Every pass is differentiated with respect to its gates at once, and its graph through the model
freed: memory holds one pass, and an out-of-memory error comes up where it can be answered.

Shapes: B rows, G gate sets, A heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headloc.lm.passes import PassSizes, in_passes

Loss = Callable[[Tensor, Tensor], Tensor]
"""(rows_B, gates) -> the mean loss of these rows, a scalar or one per gate set [G]."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which of the processes this is, and so which rows of a step are its own."""

    rank: int = 0
    processes: int = 1

    def of(self, rows: int) -> slice:
        """Return the rows of this process; shares differ by at most one row."""
        return slice(rows * self.rank // self.processes, rows * (self.rank + 1) // self.processes)


def step_loss(
    loss: Loss,
    rows_B: Tensor,
    gates: Tensor,
    sizes: PassSizes,
    share: Share | None = None,
    most: int | None = None,
) -> Tensor:
    """Return the loss of a step, with gradient to its gates.

    Args:
        loss: the loss of some rows under their gates.
        rows_B: the rows of the step, of all processes.
        gates: their gates, [B, A] or [B, G, A], with gradient.
        sizes: what the device has room for.
        share: the share of this process; everything when None.
        most: rows of a pass where memory sets no limit; all of them when None.

    Returns:
        The loss, a scalar or [G]; its mean over the processes is the loss of all rows.
    """
    share = share or Share()
    own = share.of(len(rows_B))

    def run(part: slice) -> tuple[Tensor, Tensor]:
        at = slice(own.start + part.start, own.start + part.stop)
        leaf = gates[at].detach().requires_grad_()
        value = loss(rows_B[at], leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        weight = (part.stop - part.start) * share.processes / len(rows_B)
        return value.detach() * weight, gradient * weight

    passes = in_passes(sizes, "training", own.stop - own.start, run, most=most)
    values, gradients = zip(*passes, strict=True)
    gradient = torch.zeros_like(gates)
    gradient[own] = torch.cat(gradients)
    return differentiated(gates, torch.stack(values).sum(0), gradient)


def differentiated(gates: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
    """Return a loss, a scalar or [G], whose gradient to gates [B, A] or [B, G, A] is known."""
    return _Differentiated.apply(gates, loss, gradient)


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # [G] broadcasts over the heads of each gate set.
        return upstream[0][..., None] * gradient, None, None
