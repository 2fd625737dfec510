"""Add-k: `y = x + k` with a hidden offset k (Hu et al. 2025, section 2).

Defaults are the paper's: k in 1..30, x in 1..100, five shots, `12->19#`, and k in
{2, 16, 20, 21, 27} held out.
"""

from __future__ import annotations

from typing import ClassVar

from headloc.tasks.arithmetic import HELD_OUT_K, Arithmetic

__all__ = ["HELD_OUT_K", "AddK"]


class AddK(Arithmetic):
    """The add-k tasks, named `add_<k>`; arguments and errors are those of `Arithmetic`."""

    name: ClassVar[str] = "add_k"
    verb: ClassVar[str] = "add"
    noun: ClassVar[str] = "offset"

    def apply(self, x: int, k: int) -> int:
        """x + k."""
        return x + k
