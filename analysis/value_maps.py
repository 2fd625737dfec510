"""What a head reads: its value projection V, whatever way an architecture stores it.

A head's values are an affine function of the inputs of its attention module (the normalised stream
in most families),

    v_t = s_t (V n_t + b),        s_t = 1

and for multi-head latent attention, which normalises a latent on the way, s_t = 1 / rms(A n_t):
that norm is taken as it is, a scale per token.  Every map is compared with the keys-and-values
cache of a trial forward before it is used, so that a wrong layout is an error and never a number.

Shapes: K value heads of a layer, d head width, D model width, C latent width, B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headloc.errors import UnsupportedModelError
from headloc.heads import LayerHeads

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

# The norm of a latent is taken in float32 whatever the model's precision.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_TOLERANCE_HALF = 5e-2


@dataclass(frozen=True, slots=True)
class Latent:
    """The latent of multi-head latent attention, as far as its norm needs it.

    Attributes:
        down_CD: projection onto the latent.
        bias_C: its bias.
        eps: constant of the norm.
    """

    down_CD: Tensor
    bias_C: Tensor
    eps: float

    def scale(self, n_BTD: Tensor) -> Tensor:
        """Return 1 / rms of the latent of each token, scale_BT."""
        c_BTC = n_BTD.to(self.down_CD) @ self.down_CD.T + self.bias_C
        return (c_BTC.square().mean(-1) + self.eps).rsqrt()


@dataclass(frozen=True, slots=True)
class ValueMap:
    """The value projections of one layer: v_t = s_t (V n_t + b).

    Attributes:
        weight_KdD: V of every value head.
        bias_Kd: b, zero where there is none.
        latent: what s_t depends on, or None for s_t = 1.
    """

    weight_KdD: Tensor
    bias_Kd: Tensor
    latent: Latent | None = None

    def scale(self, n_BTD: Tensor) -> Tensor:
        """Return s_BT."""
        if self.latent is None:
            return torch.ones(n_BTD.shape[:-1], dtype=n_BTD.dtype, device=n_BTD.device)
        return self.latent.scale(n_BTD)

    def values(self, n_BTD: Tensor) -> Tensor:
        """Return v_BTKd."""
        linear = torch.einsum("btm,kdm->btkd", n_BTD.to(self.weight_KdD), self.weight_KdD)
        return self.scale(n_BTD)[..., None, None] * (linear + self.bias_Kd)

    def of_head(self, head: int, heads: int) -> tuple[Tensor, Tensor]:
        """Return V_dD and b_d of a query head (grouped-query attention shares value heads)."""
        group = heads // self.weight_KdD.shape[0]
        return self.weight_KdD[head // group], self.bias_Kd[head // group]


@torch.no_grad()
def value_maps(lm: FrozenLM, positions: Sequence[int]) -> dict[int, ValueMap]:
    """Return the value maps of some layers, each checked on a trial forward.

    Args:
        lm: the frozen model.
        positions: positions in `lm.layout.layers`.

    Raises:
        UnsupportedModelError: when a layer's values are stored in a way that is not known, or are
            not the affine function that its weights say.
    """
    maps = {position: _read(lm, position) for position in positions}
    _check(lm, maps)
    return maps


@contextmanager
def attention_inputs(lm: FrozenLM, positions: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect what enters the attention modules of some layers, n_BTD of the latest forward."""
    seen: dict[int, Tensor] = {}
    handles = [
        lm.model.get_submodule(lm.sites[position].attention).register_forward_pre_hook(
            partial(_keep, seen, position), with_kwargs=True
        )
        for position in positions
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keep(
    seen: dict[int, Tensor], position: int, module: nn.Module, args: tuple[Any, ...], kwargs: Any
) -> None:
    seen[position] = (args[0] if args else kwargs["hidden_states"]).detach()


def _read(lm: FrozenLM, position: int) -> ValueMap:
    layer = lm.layout.layers[position]
    module = lm.model.get_submodule(lm.sites[position].attention)
    if getattr(lm.model.config.get_text_config(), "clip_qkv", None):
        raise _unknown(layer, "its values are clipped (clip_qkv), so they are not linear")
    if hasattr(module, "kv_b_proj"):
        return _latent(module, layer)
    for name, rows in _LAYOUTS.items():
        if isinstance(getattr(module, name, None), nn.Module):
            weight_OD, bias_O = _affine(getattr(module, name), layer)
            index_V = rows(lm, layer, weight_OD.shape[0])
            kept = weight_OD[index_V], bias_O[index_V]
            return ValueMap(*(part.unflatten(0, (-1, layer.width)) for part in kept))
    raise _unknown(layer, f"{type(module).__name__} has no value projection that headloc knows")


def _affine(module: nn.Module, layer: LayerHeads) -> tuple[Tensor, Tensor]:
    """Return weight [out, in] and bias [out] of a Linear or of GPT-2's Conv1D."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise _unknown(layer, f"{type(module).__name__} has no plain weight (quantised?)")
    weight_OD = weight.T if type(module).__name__ == "Conv1D" else weight
    bias = getattr(module, "bias", None)
    bias_O = weight_OD.new_zeros(weight_OD.shape[0]) if bias is None else bias
    return weight_OD, bias_O


def _latent(module: nn.Module, layer: LayerHeads) -> ValueMap:
    """Multi-head latent attention: V = U diag(gamma) A with the latent's norm as a scale."""
    up_OC, _ = _affine(module.get_submodule("kv_b_proj"), layer)
    down_OD, bias_O = _affine(module.get_submodule("kv_a_proj_with_mqa"), layer)
    norm = module.get_submodule("kv_a_layernorm")
    width = up_OC.shape[1]
    down_CD, bias_C = down_OD[:width], bias_O[:width]
    gamma_C = norm.get_parameter("weight")
    eps = float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6)))
    up_HdC = up_OC.unflatten(0, (layer.heads, -1))[:, -layer.width :] * gamma_C
    return ValueMap(up_HdC @ down_CD, up_HdC @ bias_C, Latent(down_CD, bias_C, eps))


Rows = Callable[["FrozenLM", LayerHeads, int], Tensor]
"""(model, layer, rows of the fused projection) -> the rows that are values, head by head."""


def _all_rows(lm: FrozenLM, layer: LayerHeads, rows: int) -> Tensor:
    return torch.arange(rows)


def _last_block(lm: FrozenLM, layer: LayerHeads, rows: int) -> Tensor:
    """[q of all heads, k of all, v of all]; one value head only in multi-query attention."""
    return torch.arange(rows)[-layer.kv_heads * layer.width :]


def _big_code(lm: FrozenLM, layer: LayerHeads, rows: int) -> Tensor:
    multi_query = getattr(lm.model.config, "multi_query", False)
    if type(lm.model).__name__.startswith("GPTBigCode") and not multi_query:
        return _interleaved(lm, layer, rows)
    return _last_block(lm, layer, rows)


def _interleaved(lm: FrozenLM, layer: LayerHeads, rows: int) -> Tensor:
    """Per key/value head [its queries, k, v]."""
    parts = rows // layer.width
    groups = layer.kv_heads if parts == layer.heads + 2 * layer.kv_heads else layer.heads
    return torch.arange(rows).view(groups, -1, layer.width)[:, -1].flatten()


def _code_gen(lm: FrozenLM, layer: LayerHeads, rows: int) -> Tensor:
    """Phi-3: blocks q, k, v.  CodeGen: four blocks, each of them [q, v, k]."""
    if lm.model.config.model_type != "codegen":
        return _last_block(lm, layer, rows)
    return torch.arange(rows).view(4, 3, -1)[:, 1].flatten()


_LAYOUTS: dict[str, Rows] = {
    "v_proj": _all_rows,
    "c_attn": _big_code,
    "query_key_value": _interleaved,
    "qkv_proj": _code_gen,
    "Wqkv": _last_block,
}
"""How the projections of these names store values."""


def _check(lm: FrozenLM, maps: dict[int, ValueMap]) -> None:
    ids_BT = (torch.arange(10, device=lm.device).reshape(2, 5) * 7 + 3) % lm.vocab_size
    with attention_inputs(lm, list(maps)) as inputs, expanded_values(lm, list(maps)) as expanded:
        cache = lm.model(input_ids=ids_BT, use_cache=True).past_key_values
    tolerance = _TOLERANCE.get(lm.dtype, _TOLERANCE_HALF)
    for position, found in maps.items():
        layer = lm.layout.layers[position]
        stored = expanded.get(position)
        if stored is None:
            stored = cache_values(cache, layer)
        kept_BKTd = found.values(inputs[position]).transpose(1, 2)[:, :, -stored.shape[2] :]
        if kept_BKTd.shape[1] != stored.shape[1]:
            kept_BKTd = kept_BKTd.repeat_interleave(stored.shape[1] // kept_BKTd.shape[1], dim=1)
        same_shape = kept_BKTd.shape == stored.shape
        if not same_shape or (kept_BKTd - stored).norm() > tolerance * stored.norm():
            raise _unknown(layer, "its values are not the affine function that its weights say")


def cache_values(cache: Any, layer: LayerHeads) -> Tensor:
    """Return the stored values [B, K, T, d] of a layer, its last columns only if it slides.

    Raises:
        UnsupportedModelError: when the cache does not keep them.
    """
    layers = getattr(cache, "layers", [])
    values = getattr(layers[layer.layer], "values", None) if layer.layer < len(layers) else None
    if not isinstance(values, Tensor) or values.ndim != 4 or values.shape[-1] != layer.width:
        raise _unknown(layer, "its cache keeps no values of the width of a head")
    return values


def expansion(lm: FrozenLM, position: int) -> nn.Module | None:
    """Return the projection that expands cached latents into values, None where values are cached.

    Multi-head latent attention caches the latent; older transformers cached what came of it.
    """
    module = lm.model.get_submodule(lm.sites[position].attention)
    return getattr(module, "kv_b_proj", None) if hasattr(module, "expand_kv") else None


@contextmanager
def expanded_values(
    lm: FrozenLM, positions: Sequence[int], code: Mapping[int, Tensor] | None = None
) -> Iterator[dict[int, Tensor]]:
    """Collect, or replace, the values that latents are expanded to, [B, H, T, d] per layer.

    Args:
        lm: the frozen model.
        positions: layers; those that cache values have no entry.
        code: values to put in their place.
    """
    seen: dict[int, Tensor] = {}
    handles = []
    for position in positions:
        module = expansion(lm, position)
        if module is not None:
            put = None if code is None else code.get(position)
            hook = partial(_expand, seen, position, lm.layout.layers[position], put)
            handles.append(module.register_forward_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _expand(
    seen: dict[int, Tensor],
    position: int,
    layer: LayerHeads,
    put_BHTd: Tensor | None,
    module: nn.Module,
    args: Any,
    output: Tensor,
) -> Tensor | None:
    # Per head [keys without position, values]; columns come as [B, 1, T, .] or [B, T, .].
    per_head = output.unflatten(-1, (layer.heads, -1))
    values = per_head[..., -layer.width :]
    seen[position] = values.reshape(len(values), -1, layer.heads, layer.width).transpose(1, 2)
    if put_BHTd is None:
        return None
    changed = per_head.clone()
    changed[..., -layer.width :] = put_BHTd.transpose(1, 2).reshape(values.shape)
    return changed.flatten(-2)


def _unknown(layer: LayerHeads, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"What the heads of layer {layer.layer} read cannot be told: {reason}. Analyses of values "
        "and extraction subspaces need an architecture whose value projection is known "
        "(`headloc/analysis/value_maps.py`)."
    )
