"""The one primitive under every tap on heads: edit the input of the output projection.

A tap is a forward pre-hook on the attention output projection, whose input is `[B, T, H * d]` with
heads concatenated in order.  Nothing is edited in place; taps nest (the outer one acts first), work
in `generate()`, and are removed when their block ends, by exception too.

Shape legend: B rows, T columns of the current forward, A heads of the model in flat order, H heads
of a layer, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headloc.errors import HeadlocError
from headloc.lm.hooks import TapCount, attached

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

HeadEdit = Callable[[int, Tensor], Tensor | None]
"""(position in `lm.layout.layers`, z_BTHd) -> the new z_BTHd, or None to leave it unchanged."""


class _HeadTap:
    """The pre-hook on one output projection."""

    def __init__(self, lm: FrozenLM, position: int, edit: HeadEdit) -> None:
        heads = lm.layout.layers[position]
        self.layer = heads.layer
        self.fired = 0
        self._position = position
        self._shape = (heads.heads, heads.width)
        self._edit = edit
        self._module = lm.model.get_submodule(lm.sites[position].projection)

    def attach(self) -> RemovableHandle:
        return self._module.register_forward_pre_hook(self._before_projection)

    def _before_projection(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        self.fired += 1
        x_BTD = args[0]
        z_BTHd = x_BTD.unflatten(-1, self._shape)
        new_BTHd = self._edit(self._position, z_BTHd)
        if new_BTHd is None:
            return None
        if new_BTHd.shape != z_BTHd.shape:
            raise HeadlocError(
                f"The edit of layer {self.layer} returned shape {tuple(new_BTHd.shape)}; "
                f"expected {tuple(z_BTHd.shape)} (rows, columns, heads, width)."
            )
        # Conv1D views its input, which needs contiguous memory.
        return (new_BTHd.to(x_BTD.dtype).flatten(-2).contiguous(), *args[1:])


def tap_heads(
    lm: FrozenLM, edit: HeadEdit, *, layers: Collection[int] | None = None
) -> AbstractContextManager[TapCount]:
    """Pass the head outputs of each forward through `edit` while the block is open.

    Args:
        lm: the frozen model.
        edit: called once per tapped layer and forward.
        layers: model layers to tap; all layers with heads when None.

    Raises:
        HeadlocError: when a layer has no heads, or the edit changes the shape.
        TapError: on leaving the block, when a tapped layer did not fire like the others.
    """
    positions = _positions(lm, layers)
    return attached([_HeadTap(lm, position, edit) for position in positions])


def _positions(lm: FrozenLM, layers: Collection[int] | None) -> list[int]:
    known = {heads.layer: position for position, heads in enumerate(lm.layout.layers)}
    if layers is None:
        return list(known.values())
    unknown = sorted(set(layers) - set(known))
    if unknown or not layers:
        raise HeadlocError(
            f"Layers {unknown or 'none'} cannot be tapped. Layers with heads: "
            f"{', '.join(map(str, known))}."
        )
    return sorted(known[layer] for layer in set(layers))
