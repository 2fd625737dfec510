"""Multiply-k: `y = x * k` with a hidden factor k in 1..30 (Hu et al. 2025, later version).

Labels reach x_max * k_max: up to four digits by default, so several tokens for most models.
`y_max` bounds them, at the price of fewer x.
"""

from __future__ import annotations

from typing import ClassVar

from headloc.tasks.arithmetic import Arithmetic


class MultiplyK(Arithmetic):
    """The multiply-k tasks, named `multiply_<k>`; arguments and errors are `Arithmetic`'s."""

    name: ClassVar[str] = "multiply_k"
    verb: ClassVar[str] = "multiply"
    noun: ClassVar[str] = "factor"

    def apply(self, x: int, k: int) -> int:
        """x * k."""
        return x * k
