"""Add a vector to the residual stream at a layer: how function vectors are applied.

Shape legend: B rows, T columns of the current forward, D model width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headloc.errors import HeadlocError, suggest
from headloc.lm.hooks import (
    TapCount,
    attached,
    check_columns,
    column_range,
    compute_dtype,
    splice,
)

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

StreamSite = Literal["attention", "layer_input", "layer_output"]
"""Where a vector is added: attention output, decoder layer input, or decoder layer output."""


class _StreamTap:
    """The hook on one attention module or decoder layer."""

    def __init__(
        self, lm: FrozenLM, layer: int, vector: Tensor, site: StreamSite, columns: slice | None
    ) -> None:
        self.layer = layer
        self.fired = 0
        self._at_input = site == "layer_input"
        self._module = lm.model.get_submodule(_module_name(lm, layer, site))
        vector = vector.to(compute_dtype(lm.dtype))
        self._vector = vector[:, None] if vector.ndim == 2 else vector
        self._columns = columns

    def attach(self) -> RemovableHandle:
        if self._at_input:
            return self._module.register_forward_pre_hook(self._before, with_kwargs=True)
        return self._module.register_forward_hook(self._after)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.fired += 1
        if args:
            return (self._add(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._add(kwargs["hidden_states"])}

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self.fired += 1
        if isinstance(output, tuple):
            return (self._add(output[0]), *output[1:])
        return self._add(output)

    def _add(self, x_BTD: Tensor) -> Tensor:
        start, stop = column_range(self._columns, x_BTD.shape[1])
        vector = self._vector.to(x_BTD.device)
        if vector.ndim == 3 and vector.shape[0] not in (1, x_BTD.shape[0]):
            raise HeadlocError(
                f"The vector has {vector.shape[0]} rows, but {x_BTD.shape[0]} rows are running."
            )
        # The sum is taken in the vector's dtype and then rounded once to the model's.
        return splice(x_BTD, (x_BTD[:, start:stop] + vector).to(x_BTD.dtype), start, stop)


def add_to_stream(
    lm: FrozenLM,
    layer: int,
    vector: Tensor,
    *,
    site: StreamSite = "attention",
    columns: slice | None = None,
) -> AbstractContextManager[TapCount]:
    """Add a vector at one layer while the block is open.

    With `site="attention"` the vector joins the output of the attention module, where the heads'
    contributions are summed.  Families that normalise or scale that output before the residual add
    (gemma2, gemma3, olmo2, glm4, granite) do the same to the vector.  bloom adds the residual
    inside the module, which makes no difference to the sum.

    Args:
        lm: the frozen model.
        layer: decoder layer.
        vector: `[D]`, or one per row `[B, D]`.
        site: where it is added.
        columns: columns of the current forward it is added to (all when None).

    Raises:
        HeadlocError: when the layer, the site or the vector's shape does not fit the model.
        TapError: on leaving the block, when the layer did not fire.
    """
    check_columns(columns)
    if vector.ndim not in (1, 2) or vector.shape[-1] != lm.width:
        raise HeadlocError(
            f"A vector of shape {tuple(vector.shape)} does not fit a stream of width {lm.width}. "
            f"Give [{lm.width}], or [rows, {lm.width}]."
        )
    return attached([_StreamTap(lm, layer, vector, site, columns)])


def _module_name(lm: FrozenLM, layer: int, site: StreamSite) -> str:
    if site not in get_args(StreamSite):
        raise HeadlocError(f"{site!r} is not a site. {suggest(site, get_args(StreamSite))}")
    if site == "attention":
        names = {place.layer: place.attention for place in lm.sites}
    else:
        blocks = lm.model.get_submodule(lm.family.layers)
        names = {int(n): f"{lm.family.layers}.{n}" for n, _ in blocks.named_children()}
    if layer not in names:
        raise HeadlocError(f"There is no {site} at layer {layer}. Known: {_span(list(names))}.")
    return names[layer]


def _span(layers: list[int]) -> str:
    return ", ".join(map(str, layers))
