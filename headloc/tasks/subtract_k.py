"""Subtract-k: `y = x - k` with a hidden k (Hu et al. 2025, later version).

The paper writes the family as `y = x + k` with k in -30..0.  Here k is what is subtracted, 1..30,
so that `subtract_7` is the paper's k = -7; its k = 0, the identity, is `task.k_min=0`.  Labels stay
at zero or above by default (`y_min=0`), which leaves x in k_max..x_max for every task; the paper's
range of x for this family is not known to us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from headloc.tasks.arithmetic import HELD_OUT_K, Arithmetic
from headloc.tasks.family import TemplateSpec


class SubtractK(Arithmetic):
    """The subtract-k tasks, named `subtract_<k>`.

    Arguments and errors are those of `Arithmetic`, but that labels below zero are left out by
    default; `y_min=None` lets them in.
    """

    name: ClassVar[str] = "subtract_k"
    verb: ClassVar[str] = "subtract"
    noun: ClassVar[str] = "subtrahend"

    def __init__(
        self,
        k: int | Sequence[int] | None = None,
        k_min: int = 1,
        k_max: int = 30,
        x_min: int = 1,
        x_max: int = 100,
        held_out_k: Sequence[int] = HELD_OUT_K,
        shots: int = 5,
        template: TemplateSpec = "arrow",
        wrong_labels: float = 0.0,
        y_min: int | None = 0,
        y_max: int | None = None,
    ) -> None:
        super().__init__(
            k=k,
            k_min=k_min,
            k_max=k_max,
            x_min=x_min,
            x_max=x_max,
            held_out_k=held_out_k,
            shots=shots,
            template=template,
            wrong_labels=wrong_labels,
            y_min=y_min,
            y_max=y_max,
        )

    def apply(self, x: int, k: int) -> int:
        """x - k."""
        return x - k
