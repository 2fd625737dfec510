"""Every way to reach into a running model, as context managers: read, gate, replace, add.

`tap_heads` is the primitive (`head_tap.py`), `gate_heads` has a file of its own (`gating.py`), and
`add_to_stream` acts on the residual stream (`stream.py`); all of them can be imported from here.

Shape legend: B rows, T columns of the current forward, A heads of the model in flat order, H heads
of a layer, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import HeadlocError, TapError
from headloc.heads import HeadId
from headloc.lm.gating import gate_heads
from headloc.lm.head_tap import HeadEdit, tap_heads
from headloc.lm.hooks import TapCount, check_columns, column_range, splice
from headloc.lm.stream import StreamSite, add_to_stream

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

__all__ = [
    "HeadEdit",
    "HeadReading",
    "StreamSite",
    "TapCount",
    "add_to_stream",
    "gate_heads",
    "read_heads",
    "replace_heads",
    "tap_heads",
]


class HeadReading:
    """Head outputs of the last forward that ran in the block.

    Attributes:
        z: z_BTHd per layer of the layout, only the columns asked for.
    """

    def __init__(self, layers: int) -> None:
        """Start empty; `z` is filled by the first forward."""
        self.z: list[Tensor] = [torch.empty(0)] * layers

    def flat(self) -> Tensor:
        """All heads side by side in flat order, `[B, T, A, d]`.

        Raises:
            TapError: when no forward has run yet.
            HeadlocError: when the layers' head widths differ.
        """
        if any(z.ndim < 4 for z in self.z):
            raise TapError("Nothing has been read yet: run the model inside the block first.")
        widths = sorted({z.shape[-1] for z in self.z})
        if len(widths) > 1:
            raise HeadlocError(
                f"Heads of this model have widths {widths} and cannot be stacked; use `z`."
            )
        return torch.cat([z.to(self.z[0].device) for z in self.z], dim=2)


@contextmanager
def read_heads(
    lm: FrozenLM, *, columns: slice | None = None, detach: bool = True
) -> Iterator[HeadReading]:
    """Read head outputs without changing them.

    Args:
        lm: the frozen model.
        columns: columns of the current forward to keep (all when None).
        detach: cut the reading from the graph, and copy it when it is a part of the columns, so
            that the full activation can be freed.

    Raises:
        TapError: as `tap_heads`; also when `columns` reaches beyond the forward.
    """
    check_columns(columns)
    reading = HeadReading(len(lm.layout.layers))

    def keep(position: int, z_BTHd: Tensor) -> None:
        start, stop = column_range(columns, z_BTHd.shape[1])
        part_BTHd = z_BTHd[:, start:stop]
        if detach:
            part_BTHd = part_BTHd.detach()
            part_BTHd = part_BTHd if columns is None else part_BTHd.clone()
        reading.z[position] = part_BTHd

    with tap_heads(lm, keep):
        yield reading


class _Replacement:
    """New outputs for some heads, grouped by layer."""

    def __init__(
        self, lm: FrozenLM, values: Mapping[HeadId, Tensor], columns: slice | None
    ) -> None:
        self._columns = columns
        self.by_layer: dict[int, dict[int, Tensor]] = {}
        self._layers = [heads.layer for heads in lm.layout.layers]
        widths = {heads.layer: heads.width for heads in lm.layout.layers}
        for head, value in values.items():
            lm.layout.index(head)  # raises for a head that the model does not have
            if value.ndim not in (1, 2, 3) or value.shape[-1] != widths[head.layer]:
                raise HeadlocError(
                    f"The value for {head} has shape {tuple(value.shape)}; expected [width], "
                    f"[rows, width] or [rows, columns, width] with width {widths[head.layer]}."
                )
            rows = value[:, None] if value.ndim == 2 else value
            self.by_layer.setdefault(head.layer, {})[head.head] = rows

    def edit(self, position: int, z_BTHd: Tensor) -> Tensor:
        start, stop = column_range(self._columns, z_BTHd.shape[1])
        heads = list(z_BTHd[:, start:stop].unbind(dim=2))
        for head, value in self.by_layer[self._layers[position]].items():
            heads[head] = value.to(z_BTHd).expand_as(heads[head])
        return splice(z_BTHd, torch.stack(heads, dim=2), start, stop)


def replace_heads(
    lm: FrozenLM, values: Mapping[HeadId, Tensor], *, columns: slice | None = None
) -> AbstractContextManager[TapCount]:
    """Put given outputs in the place of some heads'.

    Args:
        lm: the frozen model.
        values: per head `[d]`, one per row `[B, d]`, or `[B, T, d]` over the replaced columns.
        columns: columns of the current forward that are replaced (all when None).

    Raises:
        HeadlocError: when there is no such head, a width is wrong, or no value is given.
        TapError: as `tap_heads`; also when `columns` reaches beyond the forward.
    """
    check_columns(columns)
    if not values:
        raise HeadlocError("replace_heads was given no head to replace.")
    replacement = _Replacement(lm, values, columns)
    return tap_heads(lm, replacement.edit, layers=replacement.by_layer.keys())
