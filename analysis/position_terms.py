"""Where position enters a head's score, and the score split exactly into content and position.

    score = scale * q_c . k_c                           content
          + scale * (q . k - q_c . k_c)                 learned positions in the stream
          + scale * ((R_i q) . (R_t k) - q . k)         rotary embedding
          + bias_t                                      ALiBi

q_c and k_c are projected from the attention's input without the position embedding that the stream
carries from the first layer on (its norm frozen); without learned positions they are q and k.  What
lower layers have *computed* from positions counts as content: it is part of what they hand on.

Which rotation a family uses (halves or pairs, or none in some layers) and how its bias is scaled is
found out on a trial forward, by comparing with the stored keys and with the model's attention.

Shapes: B rows, T columns, C chosen columns (the last is the query's), H heads, K key heads, d head
width, r rotated dimensions, D model width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .frozen_norm import freeze_norm
from .query_key_maps import QueryKeyMap, unknown

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


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the last chosen column with each of them, in float64.

    Attributes:
        content_BHC: the content part.
        position_BHC: the position part.
    """

    content_BHC: Tensor
    position_BHC: Tensor

    @property
    def total_BHC(self) -> Tensor:
        """The logits of the model's attention, before mask and softmax."""
        return self.content_BHC + self.position_BHC


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a layer brings position into its scores.

    Attributes:
        rotation: a key of `ROTATIONS`.
        bias_scale: factor on its position bias.
    """

    rotation: str = "none"
    bias_scale: float = 1.0


def split_scores(maps: QueryKeyMap, scheme: Scheme, seen: Seen) -> Scores:
    """Return the scores of a layer's heads, split.

    Args:
        maps: projections of the layer.
        scheme: how position enters.
        seen: what the attention was given.
    """
    q_BHd, k_BCHd = _towers(maps, seen.n_BCD)
    plain_BHC = _product(q_BHd, k_BCHd, maps.scale)
    content_BHC, position_BHC = plain_BHC, torch.zeros_like(plain_BHC)
    if seen.learned_BCD is not None:
        content_BHC = _product(*_towers(maps, seen.content_BCD), maps.scale)
        position_BHC = plain_BHC - content_BHC
    if scheme.rotation != "none":
        turned = [rotated(scheme.rotation, x, seen, columns) for x, columns in
                  ((q_BHd[:, None], slice(-1, None)), (k_BCHd, slice(None)))]  # fmt: skip
        position_BHC = position_BHC + _product(turned[0][:, 0], turned[1], maps.scale) - plain_BHC
    if seen.bias_BHC is not None:
        position_BHC = position_BHC + scheme.bias_scale * seen.bias_BHC.double()
    return Scores(content_BHC, position_BHC)


def content_towers(maps: QueryKeyMap, seen: Seen) -> tuple[Tensor, Tensor]:
    """Return the query tower q_BHd of the last column and the key tower k_BCHd of all, content."""
    return _towers(maps, seen.content_BCD)


def _towers(maps: QueryKeyMap, n_BCD: Tensor) -> tuple[Tensor, Tensor]:
    q_BHd = maps.queries(n_BCD[:, -1:])[:, 0].double()
    return q_BHd, maps.keys(n_BCD).repeat_interleave(maps.group, dim=2).double()


def _product(q_BHd: Tensor, k_BCHd: Tensor, scale: float) -> Tensor:
    return scale * torch.einsum("bhd,bchd->bhc", q_BHd, k_BCHd)


def _halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Dimensions i and i + r/2 turn together (llama, gpt_neox)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Dimensions 2i and 2i + 1 turn together (cohere)."""
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + turned * sin


def _pairs_of_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same with angles stored for halves (glm, helium, ernie)."""
    cos, sin = (part[..., : part.shape[-1] // 2].repeat_interleave(2, -1) for part in (cos, sin))
    return _pairs(x, cos, sin)


Rotation = Callable[[Tensor, Tensor, Tensor], Tensor]

ROTATIONS: Mapping[str, Rotation] = {
    "none": lambda x, cos, sin: x,
    "halves": _halves,
    "pairs": _pairs,
    "pairs_of_halves": _pairs_of_halves,
}
"""How queries and keys [..., r] are turned by angles whose cosines and sines are [..., r]."""


def rotated(kind: str, x_BCHd: Tensor, seen: Seen, columns: slice) -> Tensor:
    """Return queries or keys turned by their positions; dimensions beyond r stay."""
    if kind == "none" or seen.cos_BCr is None or seen.sin_BCr is None:
        return x_BCHd
    cos, sin = (part[:, columns, None].to(x_BCHd) for part in (seen.cos_BCr, seen.sin_BCr))
    width = cos.shape[-1]
    turned = ROTATIONS[kind](x_BCHd[..., :width], cos, sin)
    return torch.cat([turned, x_BCHd[..., width:]], dim=-1)


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
