"""The two projections behind a head's score: W_Q and W_K, whatever way an architecture stores them.

Queries and keys are affine in the inputs of the attention module,

    q_i = W_Q n_i + b_Q,        k_t = W_K n_t + b_K,        content score = scale * q_i . k_t

before any rotation and without any position bias (`position_terms.py`).  Families that normalise
queries and keys (qwen3, olmo2, gemma3, cohere) do so here too, with the model's own norms.

Shapes: H query heads of a layer, K key heads, d head width, D model width, B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from headloc.errors import UnsupportedModelError
from headloc.heads import LayerHeads

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


@dataclass(frozen=True, slots=True)
class QueryKeyMap:
    """The query and key projections of one layer.

    Attributes:
        query_HdD: W_Q of every query head.
        query_bias_Hd: its bias, zero where there is none.
        key_KdD: W_K of every key head.
        key_bias_Kd: its bias.
        scale: constant that the inner product is multiplied with.
        query_norm: the norm on queries, or None.
        key_norm: the norm on keys, or None.
    """

    query_HdD: Tensor
    query_bias_Hd: Tensor
    key_KdD: Tensor
    key_bias_Kd: Tensor
    scale: float
    query_norm: nn.Module | None = None
    key_norm: nn.Module | None = None

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return len(self.query_HdD) // len(self.key_KdD)

    def queries(self, n_BTD: Tensor) -> Tensor:
        """Return q_BTHd before any rotation."""
        q_BTHd = torch.einsum("btm,hdm->bthd", n_BTD.to(self.query_HdD), self.query_HdD)
        return _normed(self.query_norm, q_BTHd + self.query_bias_Hd)

    def keys(self, n_BTD: Tensor) -> Tensor:
        """Return k_BTKd before any rotation."""
        k_BTKd = torch.einsum("btm,kdm->btkd", n_BTD.to(self.key_KdD), self.key_KdD)
        return _normed(self.key_norm, k_BTKd + self.key_bias_Kd)

    def of_head(self, head: int) -> tuple[Tensor, Tensor]:
        """Return W_Q and W_K of a query head, [d, D] each, the gains of their norms folded in."""
        gain_d = [_gain(norm, i) for norm, i in ((self.query_norm, head),
                                                 (self.key_norm, head // self.group))]  # fmt: skip
        found = self.query_HdD[head], self.key_KdD[head // self.group]
        width = found[0].shape[0]
        query_dD, key_dD = (
            weight_dD if gain is None else gain.flatten()[-width:, None].to(weight_dD) * weight_dD
            for weight_dD, gain in zip(found, gain_d, strict=True)
        )
        return query_dD, key_dD


def query_key_map(lm: FrozenLM, position: int) -> QueryKeyMap:
    """Return the projections of a layer as its weights say; `checked_maps` compares them.

    Args:
        lm: the frozen model.
        position: position of the layer in `lm.layout.layers`.

    Raises:
        UnsupportedModelError: when they are stored in a way that is not known.
    """
    layer = lm.layout.layers[position]
    module = lm.model.get_submodule(lm.sites[position].attention)
    if getattr(lm.model.config.get_text_config(), "attn_logit_softcapping", None):
        raise unknown(layer, "its scores go through a soft cap, so they are no inner product")
    if hasattr(module, "kv_b_proj"):
        raise unknown(layer, "multi-head latent attention has no query and key of one width")
    found = _separate(module, layer) or _fused(lm, module, layer)
    if found is None:
        raise unknown(layer, f"{type(module).__name__} has no projections that headloc knows")
    (query_OD, query_bias_O), (key_OD, key_bias_O) = found
    if query_OD.shape[0] % layer.heads or key_OD.shape[0] % (query_OD.shape[0] // layer.heads):
        raise unknown(layer, f"a query projection of {query_OD.shape[0]} rows does not fit")
    width = query_OD.shape[0] // layer.heads
    query_HdD, query_bias_Hd, key_KdD, key_bias_Kd = (
        part.unflatten(0, (-1, width)) for part in (query_OD, query_bias_O, key_OD, key_bias_O)
    )
    norms = (_norm(module, ("q_norm", "q_layernorm")), _norm(module, ("k_norm", "k_layernorm")))
    return QueryKeyMap(query_HdD, query_bias_Hd, key_KdD, key_bias_Kd, _scale(module), *norms)


def unknown(layer: LayerHeads, reason: str) -> UnsupportedModelError:
    """Return the error of a layer whose scores cannot be taken apart."""
    return UnsupportedModelError(
        f"The scores of layer {layer.layer} cannot be split into queries and keys: {reason}. "
        "Analyses of the two towers need an architecture whose query and key projections are known "
        "(`headloc/analysis/query_key_maps.py`)."
    )


Affine = tuple[Tensor, Tensor]
"""Weight [out, in] and bias [out]."""


def _separate(module: nn.Module, layer: LayerHeads) -> tuple[Affine, Affine] | None:
    if not all(isinstance(getattr(module, name, None), nn.Module) for name in ("q_proj", "k_proj")):
        return None
    return _affine(module.get_submodule("q_proj"), layer), _affine(
        module.get_submodule("k_proj"), layer
    )


def _fused(lm: FrozenLM, module: nn.Module, layer: LayerHeads) -> tuple[Affine, Affine] | None:
    for name, rows in _LAYOUTS.items():
        if isinstance(getattr(module, name, None), nn.Module):
            weight_OD, bias_O = _affine(module.get_submodule(name), layer)
            query_O, key_O = (part.to(weight_OD.device) for part in rows(lm, layer, len(weight_OD)))
            return (weight_OD[query_O], bias_O[query_O]), (weight_OD[key_O], bias_O[key_O])
    return None


def _affine(module: nn.Module, layer: LayerHeads) -> Affine:
    """Return weight and bias of a Linear or of GPT-2's Conv1D."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise unknown(layer, f"{type(module).__name__} has no plain weight (quantised?)")
    weight_OD = weight.T if type(module).__name__ == "Conv1D" else weight
    bias = getattr(module, "bias", None)
    return weight_OD, weight_OD.new_zeros(len(weight_OD)) if bias is None else bias


Rows = Callable[["FrozenLM", LayerHeads, int], tuple[Tensor, Tensor]]
"""(model, layer, rows of the fused projection) -> rows of the queries, rows of the keys."""


def _blocks(lm: FrozenLM, layer: LayerHeads, rows: int) -> tuple[Tensor, Tensor]:
    """[q of all heads, k of all, v of all]."""
    queries, keys = layer.heads * layer.width, layer.kv_heads * layer.width
    index = torch.arange(rows)
    return index[:queries], index[queries : queries + keys]


def _interleaved(lm: FrozenLM, layer: LayerHeads, rows: int) -> tuple[Tensor, Tensor]:
    """Per key head [its queries, k, v]."""
    parts = rows // layer.width
    groups = layer.kv_heads if parts == layer.heads + 2 * layer.kv_heads else layer.heads
    index = torch.arange(rows).view(groups, -1, layer.width)
    return index[:, :-2].flatten(), index[:, -2].flatten()


def _big_code(lm: FrozenLM, layer: LayerHeads, rows: int) -> tuple[Tensor, Tensor]:
    multi_query = getattr(lm.model.config, "multi_query", False)
    if type(lm.model).__name__.startswith("GPTBigCode") and not multi_query:
        return _interleaved(lm, layer, rows)
    return _blocks(lm, layer, rows)


_LAYOUTS: dict[str, Rows] = {
    "c_attn": _big_code,
    "query_key_value": _interleaved,
    "qkv_proj": _blocks,
    "Wqkv": _blocks,
}
"""How fused projections of these names store queries and keys."""


def _scale(module: nn.Module) -> float:
    """Return the constant on the inner product; gpt_neo has none."""
    for name in ("scaling", "inv_norm_factor", "softmax_scale"):
        value = getattr(module, name, None)
        if isinstance(value, (int, float)):
            return float(value)
    return 1.0


def _norm(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    found = (getattr(module, name, None) for name in names)
    return next((norm for norm in found if isinstance(norm, nn.Module)), None)


def _normed(norm: nn.Module | None, x_BTHd: Tensor) -> Tensor:
    """Apply a norm over each head, or over all heads at once where its weight spans them."""
    if norm is None:
        return x_BTHd
    weight = getattr(norm, "weight", None)
    spans_all = isinstance(weight, Tensor) and weight.ndim == 1 and len(weight) > x_BTHd.shape[-1]
    return norm(x_BTHd.flatten(-2)).view_as(x_BTHd) if spans_all else norm(x_BTHd)


def _gain(norm: nn.Module | None, head: int) -> Tensor | None:
    """Return the gain of a norm on one head, up to a factor, or None."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    return weight[head] if weight.ndim == 2 else weight
