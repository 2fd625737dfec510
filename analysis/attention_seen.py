"""What attention modules are given in a full forward: inputs, rotary angles, position bias, mask.

Shapes: B rows, T columns, C chosen columns (the last is the query's), H heads, r rotated
dimensions, D model width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .frozen_norm import freeze_norm
from .query_key_maps import unknown

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

_LEARNED = ("wpe", "embed_positions")
"""Names of modules beside the layers whose output is added to the token embeddings."""
_BIASES = ("alibi", "position_bias")


@dataclass(frozen=True, slots=True)
class Seen:
    """What one attention module was given, at the chosen columns.

    Attributes:
        n_BCD: its input.
        learned_BCD: the part of it that is position embedding, or None.
        cos_BCr: cosines of the rotation, or None.
        sin_BCr: sines.
        bias_BHC: position bias of the last column's scores, unscaled, or None.
        mask: the attention mask that the module was given, as it is.
    """

    n_BCD: Tensor
    learned_BCD: Tensor | None = None
    cos_BCr: Tensor | None = None
    sin_BCr: Tensor | None = None
    bias_BHC: Tensor | None = None
    mask: Any = None

    @property
    def content_BCD(self) -> Tensor:
        """The input without its position embedding."""
        return self.n_BCD if self.learned_BCD is None else self.n_BCD - self.learned_BCD


@contextmanager
def seeing(
    lm: FrozenLM, positions: Sequence[int], columns_BC: Tensor | None = None
) -> Iterator[dict[int, Seen]]:
    """Collect what some attention modules are given in a full forward.

    Args:
        lm: the frozen model.
        positions: layers by their positions in `lm.layout.layers`.
        columns_BC: columns to keep in each row, the query's last; all columns when None.
    """
    found: dict[int, Seen] = {}
    embedded: list[Tensor] = []
    with ExitStack() as stack:
        learned = _learned_module(lm)
        if learned is not None:
            stack.callback(learned.register_forward_hook(partial(_keep, embedded)).remove)
        for position in positions:
            site, normed = lm.sites[position], []  # type: ignore[var-annotated]
            if learned is not None:
                block = lm.model.get_submodule(site.block)
                for name, module in block.named_children():
                    if "ln" in name or "norm" in name.lower():
                        hook = partial(_keep_norm, normed)
                        stack.callback(module.register_forward_hook(hook).remove)
            look = _Look(lm, position, columns_BC, embedded, normed, found)
            attention = lm.model.get_submodule(site.attention)
            handle = attention.register_forward_pre_hook(look, with_kwargs=True)
            stack.callback(handle.remove)
        yield found


@dataclass(frozen=True, slots=True)
class _Look:
    """The pre-hook on one attention module."""

    lm: FrozenLM
    position: int
    columns_BC: Tensor | None
    embedded: list[Tensor]
    normed: list[tuple[nn.Module, Tensor, Tensor]]
    found: dict[int, Seen]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        n_BTD = next(iter(given.values())).detach()
        angles = given.get("position_embeddings")
        cos, sin = (None, None) if angles is None else (self._rows(part, n_BTD) for part in angles)
        learned = self._learned(n_BTD) if self.embedded else None
        self.found[self.position] = Seen(
            self._picked(n_BTD),
            None if learned is None else self._picked(learned),
            None if cos is None else self._picked(cos),
            None if sin is None else self._picked(sin),
            self._bias(given, n_BTD),
            given.get("attention_mask"),
        )

    def _picked(self, x_BTX: Tensor) -> Tensor:
        if self.columns_BC is None:
            return x_BTX
        index = self.columns_BC[..., None].to(x_BTX.device).expand(-1, -1, x_BTX.shape[-1])
        return x_BTX.gather(1, index)

    def _rows(self, part: Tensor, n_BTD: Tensor) -> Tensor:
        return part.expand(len(n_BTD), -1, -1)

    def _bias(self, given: Mapping[str, Any], n_BTD: Tensor) -> Tensor | None:
        bias = next((given[n] for n in _BIASES if isinstance(given.get(n), Tensor)), None)
        if bias is None:
            return None
        heads, (rows, columns) = self.lm.layout.layers[self.position].heads, n_BTD.shape[:2]
        # [B * H, 1, T] (bloom), [B, H, 1, T] (falcon) or [H, 1, more than T] (mpt).
        last_XHT = bias.reshape(-1, heads, *bias.shape[-2:])[:, :, -1, -columns:]
        bias_BHT = last_XHT.expand(rows, -1, -1)
        if self.columns_BC is None:
            return bias_BHT
        index = self.columns_BC[:, None].to(bias.device).expand(-1, heads, -1)
        return bias_BHT.gather(2, index)

    def _learned(self, n_BTD: Tensor) -> Tensor:
        """Return what of the attention's input is position embedding, the norm frozen."""
        layer = self.lm.layout.layers[self.position]
        match = next((item for item in self.normed if item[2] is n_BTD or
                      torch.equal(item[2], n_BTD)), None)  # fmt: skip
        if match is None:
            raise unknown(layer, "learned positions enter it other than through a norm before it")
        module, x_BTD, y_BTD = match
        norm = freeze_norm(module, x_BTD.flatten(0, 1), y_BTD.flatten(0, 1), self.lm.dtype)
        embedded_BTD = self.embedded[-1].expand_as(x_BTD)
        return norm.part(embedded_BTD.flatten(0, 1)[:, None]).view_as(x_BTD).to(x_BTD)


def _learned_module(lm: FrozenLM) -> nn.Module | None:
    inside = f"{lm.family.layers}."
    for name, module in lm.model.named_modules():
        if name.rpartition(".")[2] in _LEARNED and not name.startswith(inside):
            return module
    return None


def _keep(seen: list[Tensor], module: nn.Module, args: Any, output: Tensor) -> None:
    seen[:] = [output.detach()]


def _keep_norm(
    seen: list[tuple[nn.Module, Tensor, Tensor]], module: nn.Module, args: Any, output: Tensor
) -> None:
    seen[:] = [item for item in seen if item[0] is not module]
    seen.append((module, args[0].detach(), output.detach()))
