"""What the last prompt token takes from every earlier token: attention and values of some heads.

Values come from the keys-and-values cache.  Attention weights come *through* the values: with the
stored values of a head replaced by unit vectors, its output at the last token is its attention to
those tokens,

    z = sum_t alpha_t v_t,     v_t -> e_t     =>     z_j = alpha_j

d tokens at a time.  This needs one-token passes only, works with every attention kernel, mask and
head layout, and no T x T map is ever made.  While the unit vectors are in place the heads' true
outputs are handed on, so that layers above see what they always see.

Memory: a chunk of prompts at a time, attention of the chosen heads alone.

Shapes: B rows, T prompt columns, C = T - 1 cached columns, H chosen heads of a layer, K value heads
of the cache, d head width, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headloc.errors import UnsupportedModelError
from headloc.heads import HeadId
from headloc.lm.batch import IGNORE, TokenBatch
from headloc.lm.prefix import PrefixCache
from headloc.lm.taps import tap_heads

from .value_maps import attention_inputs, cache_values, expanded_values, expansion

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

ROWS_PER_PASS = 128
"""Prompts that are read together."""

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3}
_TOLERANCE_HALF = 0.1


@dataclass(frozen=True, slots=True)
class LayerReading:
    """Some heads of one layer on a chunk of prompts.

    Attributes:
        position: position of the layer in `lm.layout.layers`.
        heads: the H heads within the layer.
        z_BHd: outputs at the last prompt token, before W_O.
        attention_BHT: attention from the last prompt token to every column.
        values_BHTd: values of every column (zero where a sliding cache has dropped them).
        inputs_BTD: what entered the attention module, or None when it was not asked for.
    """

    position: int
    heads: tuple[int, ...]
    z_BHd: Tensor
    attention_BHT: Tensor
    values_BHTd: Tensor
    inputs_BTD: Tensor | None


def prompt_only(batch: TokenBatch) -> TokenBatch:
    """Return the prompts without their answers."""
    columns = batch.prompt_columns
    return TokenBatch(
        ids_BT=batch.ids_BT[:, :columns],
        mask_BT=batch.mask_BT[:, :columns],
        position_ids_BT=batch.position_ids_BT[:, :columns],
        role_BT=batch.role_BT[:, :columns],
        target_BJ=torch.full_like(batch.target_BJ[:, :1], IGNORE),
        prompt_columns=columns,
    )


def by_layer(lm: FrozenLM, heads: Sequence[HeadId]) -> dict[int, tuple[int, ...]]:
    """Return the chosen heads of each layer, by its position in the layout."""
    known = {layer.layer: position for position, layer in enumerate(lm.layout.layers)}
    chosen: dict[int, list[int]] = {}
    for head in sorted(heads):
        lm.layout.index(head)  # raises for a head that the model does not have
        chosen.setdefault(known[head.layer], []).append(head.head)
    return {position: tuple(found) for position, found in chosen.items()}


def read_chunks(
    lm: FrozenLM,
    batch: TokenBatch,
    heads: Sequence[HeadId],
    *,
    inputs: bool = False,
    rows_per_pass: int = ROWS_PER_PASS,
) -> Iterator[tuple[slice, dict[int, LayerReading]]]:
    """Read prompts chunk by chunk; yields (rows, reading by position of the layer).

    Args:
        lm: the frozen model.
        batch: the prompts.
        heads: heads to read.
        inputs: also keep what enters the attention modules.
        rows_per_pass: rows of a chunk; memory grows with it and not with the number of prompts.

    Raises:
        UnsupportedModelError: when a head's output is not the attention-weighted sum of its cached
            values.
    """
    for start in range(0, len(batch), rows_per_pass):
        rows = slice(start, min(start + rows_per_pass, len(batch)))
        yield rows, read_heads_of(lm, batch.rows(rows), heads, inputs=inputs)


@torch.no_grad()
def read_heads_of(
    lm: FrozenLM,
    batch: TokenBatch,
    heads: Sequence[HeadId],
    *,
    inputs: bool = False,
    attention: bool = True,
) -> dict[int, LayerReading]:
    """Read one chunk of prompts; see `read_chunks`.

    Without attention only values and outputs are read, and the weights are zero.
    """
    if not lm.supports_prefix_cache:
        raise UnsupportedModelError(
            f"The cache of {lm.source.name!r} cannot be reused, so the values that its heads read "
            "cannot be told apart by token. Use a model with a plain keys-and-values cache."
        )
    batch = prompt_only(batch).to(lm.device)
    chosen = by_layer(lm, heads)
    entered: dict[int, Tensor] = {}
    with attention_inputs(lm, list(chosen) if inputs else []) as seen:
        prefix = _Watched(lm.prefix(batch, rows_per_chunk=len(batch)))
        before = dict(seen)
        with expanded_values(lm, list(chosen)) as expanded:
            true = _outputs(lm, batch, prefix, chosen)
        entered = {p: torch.cat([before[p], seen[p]], dim=1) if before else seen[p] for p in seen}
    values = _values(lm, prefix, chosen, batch.prompt_columns, expanded)
    if attention:
        weights = _attention(lm, batch, prefix.base, chosen, true, values)
    else:
        weights = {p: torch.zeros_like(v_BHTd[..., 0]) for p, v_BHTd in values.items()}
    found = {
        position: LayerReading(
            position, which, true[position][:, 0, list(which)], weights[position],
            values[position], entered.get(position),
        )
        for position, which in chosen.items()
    }  # fmt: skip
    for reading in found.values() if attention else ():
        _check(lm, reading)
    return found


class _Watched(PrefixCache):
    """A prefix that remembers the cache which the latest forward has extended."""

    def __init__(self, base: PrefixCache) -> None:
        super().__init__(base._cache, base.mask_NC, base._index_N)
        self.base = base
        self.extended: Any = None

    def fresh(self) -> Any:
        self.extended = super().fresh()
        return self.extended


def _outputs(
    lm: FrozenLM, batch: TokenBatch, prefix: PrefixCache, chosen: dict[int, tuple[int, ...]]
) -> dict[int, Tensor]:
    """Return z_B1Hd of all heads of the chosen layers at the last prompt token."""
    seen: dict[int, Tensor] = {}

    def keep(position: int, z_BTHd: Tensor) -> None:
        seen[position] = z_BTHd.clone()

    with tap_heads(lm, keep, layers=[lm.layout.layers[p].layer for p in chosen]):
        lm.logits(batch, prefix)
    return seen


def _values(
    lm: FrozenLM,
    prefix: _Watched,
    chosen: dict[int, tuple[int, ...]],
    columns: int,
    expanded: dict[int, Tensor],
) -> dict[int, Tensor]:
    """Return values_BHTd of the chosen heads; the earlier columns of the prefix, then the last."""
    found = {}
    for position, which in chosen.items():
        layer = lm.layout.layers[position]
        if position in expanded:
            found[position] = expanded[position][:, list(which)]
            continue
        last = cache_values(prefix.extended, layer)[:, :, -1:]
        stored = cache_values(prefix.base.stored(), layer) if columns > 1 else last[:, :, :0]
        group = layer.heads // stored.shape[1]
        both_BHTd = torch.cat([stored, last], dim=2)[:, [head // group for head in which]]
        missing = columns - both_BHTd.shape[2]
        found[position] = torch.nn.functional.pad(both_BHTd, (0, 0, missing, 0))
    return found


def _attention(
    lm: FrozenLM,
    batch: TokenBatch,
    prefix: PrefixCache,
    chosen: dict[int, tuple[int, ...]],
    true: dict[int, Tensor],
    values: dict[int, Tensor],
) -> dict[int, Tensor]:
    """Return attention_BHT of the chosen heads, read through unit vectors in place of values."""
    columns = batch.prompt_columns
    if columns == 1:
        return {p: torch.ones_like(v_BHTd[..., 0]) for p, v_BHTd in values.items()}
    out = {p: torch.zeros_like(v_BHTd[..., 0]) for p, v_BHTd in values.items()}
    layers = {p: lm.layout.layers[p] for p in chosen}
    codes = {p: _blank(lm, prefix, p, len(batch), columns) for p in chosen}
    sizes = {p: code.shape[2] for p, code in codes.items()}
    width = min(layer.width for layer in layers.values())
    # What the last token's own value adds, where it is not in the cache and cannot be replaced.
    own = _coded(lm, batch, prefix, true, codes)
    for first in range(0, max(sizes.values()), width):
        spans = {p: (first, min(first + width, size)) for p, size in sizes.items() if first < size}
        units = {p: _units(code, *spans.get(p, (0, 0))) for p, code in codes.items()}
        coded = _coded(lm, batch, prefix, true, units)
        for position, (start, stop) in spans.items():
            z_BHd = (coded[position] - own[position])[:, 0, list(chosen[position])]
            # A sliding cache holds the last columns only; expanded latents hold all.
            latent = expansion(lm, position) is not None
            shift = 0 if latent else columns - 1 - sizes[position]
            out[position][:, :, shift + start : shift + stop] = z_BHd[..., : stop - start]
    for position, which in chosen.items():
        if expansion(lm, position) is None:
            last_BHd = values[position][:, :, -1]
            dot_BH = (own[position][:, 0, list(which)] * last_BHd).sum(-1)
            out[position][:, :, -1] = dot_BH / last_BHd.square().sum(-1).clamp(min=1e-30)
    return out


def _blank(lm: FrozenLM, prefix: PrefixCache, position: int, rows: int, columns: int) -> Tensor:
    """Return zeros in the shape of a layer's values."""
    layer = lm.layout.layers[position]
    if expansion(lm, position) is None:
        return torch.zeros_like(cache_values(prefix.stored(), layer))
    return torch.zeros(rows, layer.heads, columns, layer.width, dtype=lm.dtype, device=lm.device)


def _units(blank: Tensor, start: int, stop: int) -> Tensor:
    """Return unit vectors as the values of columns start .. stop-1, zeros as all others."""
    code = blank.clone()
    steps = torch.arange(stop - start, device=code.device)
    code[:, :, start + steps, steps] = 1
    return code


def _coded(
    lm: FrozenLM,
    batch: TokenBatch,
    prefix: PrefixCache,
    true: dict[int, Tensor],
    codes: dict[int, Tensor],
) -> dict[int, Tensor]:
    """Run the last token with other values; returns the outputs that the heads would have had."""
    layers = {p: lm.layout.layers[p].layer for p in codes}
    cached = {layers[p]: code for p, code in codes.items() if expansion(lm, p) is None}
    seen: dict[int, Tensor] = {}

    def swap(position: int, z_BTHd: Tensor) -> Tensor:
        seen[position] = z_BTHd
        return true[position]

    with (
        tap_heads(lm, swap, layers=list(layers.values())),
        expanded_values(lm, list(codes), codes),
    ):
        lm.logits(batch, prefix.with_values(cached))
    return seen


def _check(lm: FrozenLM, reading: LayerReading) -> None:
    """Refuse heads whose output is not the sum that it is taken for."""
    summed_BHd = torch.einsum("bht,bhtd->bhd", reading.attention_BHT, reading.values_BHTd)
    gap = (summed_BHd - reading.z_BHd).norm()
    if gap > _TOLERANCE.get(lm.dtype, _TOLERANCE_HALF) * reading.z_BHd.norm():
        layer = lm.layout.layers[reading.position].layer
        raise UnsupportedModelError(
            f"The heads of layer {layer} do more than weigh their values by attention (relative "
            f"gap {float(gap / reading.z_BHd.norm()):.1g}): their output cannot be told apart by "
            "token. Gated attention is not supported by this analysis."
        )
