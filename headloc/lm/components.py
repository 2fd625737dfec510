"""Heads and feed-forward blocks under one gate vector: gate them, read them.

Shape legend: B rows, T columns of the current forward, A heads, M feed-forward blocks, H heads of a
layer, d head width, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from headloc.components import Components
from headloc.lm.gating import gate_heads
from headloc.lm.mlp_tap import MlpReading, gate_mlps, read_mlps
from headloc.lm.taps import HeadReading, read_heads

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


@dataclass(frozen=True, slots=True)
class OffValues:
    """What closed components put out; None is zero.

    Attributes:
        heads: per layer of the layout, a tensor that broadcasts to the gated z_BTHd.
        mlps: per feed-forward block, a tensor that broadcasts to the gated m_BTD.
    """

    heads: Sequence[Tensor] | None = None
    mlps: Sequence[Tensor] | None = None

    def rows(self, index: Tensor | slice) -> OffValues:
        """Return the off-values of some rows."""
        return OffValues(
            None if self.heads is None else [z[_on(index, z)] for z in self.heads],
            None if self.mlps is None else [m[_on(index, m)] for m in self.mlps],
        )

    def tiled(self, branches: int) -> OffValues:
        """Return the off-values of the columns of all branches, which stand side by side."""
        return OffValues(
            None if self.heads is None else [z.repeat(1, branches, 1, 1) for z in self.heads],
            None if self.mlps is None else [m.repeat(1, branches, 1) for m in self.mlps],
        )


def _on(index: Tensor | slice, tensor: Tensor) -> Tensor | slice:
    """Return an index on the device of what it picks from: layers may lie on several devices."""
    return index if isinstance(index, slice) else index.to(tensor.device)


def components_of(lm: FrozenLM, mlps: bool) -> Components:
    """Return the heads of a model, with its feed-forward blocks if asked for.

    Raises:
        UnsupportedModelError: when these cannot be located.
    """
    return Components(lm.layout, tuple(site.layer for site in lm.mlps) if mlps else ())


@contextmanager
def gate_components(
    lm: FrozenLM,
    components: Components,
    gates: Tensor,
    *,
    off: OffValues | None = None,
    columns: slice | None = None,
) -> Iterator[None]:
    """Interpolate heads and feed-forward blocks between their own output and an off-value.

    Gates of one leave the logits bitwise unchanged.

    Args:
        lm: the frozen model.
        components: what the gates stand for.
        gates: `[A + M]`, one per row `[B, A + M]`, or per row and gated column `[B, T, A + M]`.
        off: the off-values; zero when None.
        columns: columns of the *current* forward that are gated (all when None).

    Raises:
        HeadlocError: when a shape does not fit the model.
        TapError: when a layer did not fire.
    """
    off = off or OffValues()
    heads, mlps = components.split(gates)
    if components.mlps:
        # Found by a forward of its own, which must not run under the taps on heads.
        _ = lm.mlps
    with ExitStack() as stack:
        stack.enter_context(gate_heads(lm, heads, off=off.heads, columns=columns))
        if components.mlps:
            stack.enter_context(gate_mlps(lm, mlps, off=off.mlps, columns=columns))
        yield


@dataclass(frozen=True, slots=True)
class ComponentReading:
    """Outputs of the last forward that ran in the block; `mlps` is None where only heads are read.

    Attributes:
        heads: z_BTHd per layer of the layout.
        mlps: m_BTD per feed-forward block.
    """

    heads: HeadReading
    mlps: MlpReading | None

    @property
    def z(self) -> list[Tensor]:
        """Head outputs, z_BTHd per layer of the layout."""
        return self.heads.z

    @property
    def m(self) -> list[Tensor]:
        """Feed-forward outputs, m_BTD per block; empty where they are not read."""
        return [] if self.mlps is None else self.mlps.m


@contextmanager
def read_components(
    lm: FrozenLM, *, mlps: bool, columns: slice | None = None
) -> Iterator[ComponentReading]:
    """Read head outputs and, if asked for, feed-forward outputs, detached.

    Raises:
        TapError: when a layer did not fire, or `columns` reaches beyond the forward.
    """
    if mlps:
        # Found by a forward of its own, which must not run under the taps on heads.
        _ = lm.mlps
    with ExitStack() as stack:
        heads = stack.enter_context(read_heads(lm, columns=columns))
        blocks = stack.enter_context(read_mlps(lm, columns=columns)) if mlps else None
        yield ComponentReading(heads, blocks)
