"""Where an architecture keeps its feed-forward neurons: subvalues and subkeys.

Source: Yu & Ananiadou 2024, arXiv 2312.12141.

A feed-forward block adds c * (sum_n m_n v_n + b) to the residual stream: m_n is the coefficient of
neuron n (the input of the second projection), v_n its subvalue (a row of `values_ND`), and c a norm
behind the block, taken as the scale that it was, or a constant of the family.  Its subkeys are the
rows of the first projection: one per neuron, or two (gate and up) in gated blocks.

Modules are found by name and structure, and what is found is compared with the block's output of
every forward that is read (`stream_reading.py`), so that a wrong guess is an error and no number.

Shapes: N neurons of a block, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

DOWN = ("down_proj", "dense_4h_to_h", "fc_out", "fc2", "c_proj")
"""Names of second projections."""

GATED = (("gate_proj", "up_proj"),)
FUSED = ("gate_up_proj",)
UP = ("up_proj", "dense_h_to_4h", "fc_in", "fc1", "c_fc")
"""Names of first projections of blocks without a gate."""

_EXPERTS = ("experts", "router", "gate_up_blocks")


@dataclass(frozen=True, slots=True)
class NeuronSite:
    """The neurons of one feed-forward block.

    Attributes:
        layer: index of the decoder layer.
        down: module name of the second projection.
        up: module names of the first projection: (gate, up), (gate and up in one,), or (up,).
        fused: whether the only first projection holds gates, then ups.
        reason: why the neurons cannot be told apart; empty when they can.
    """

    layer: int
    down: str = ""
    up: tuple[str, ...] = ()
    fused: bool = False
    reason: str = ""


def neuron_sites(lm: FrozenLM) -> list[NeuronSite]:
    """Return the neurons of every feed-forward block, in the order of `lm.mlps`.

    Raises:
        UnsupportedModelError: when the model's feed-forward blocks cannot be located.
    """
    attention = {site.layer: site.attention for site in lm.sites}
    return [_site(lm, site.layer, site.block, attention.get(site.layer, "")) for site in lm.mlps]


def _site(lm: FrozenLM, layer: int, block: str, attention: str) -> NeuronSite:
    inside = {
        f"{block}.{name}": module
        for name, module in lm.model.get_submodule(block).named_modules()
        if name and not (attention and f"{block}.{name}.".startswith(f"{attention}."))
    }
    if any(name.rpartition(".")[2] in _EXPERTS for name in inside):
        return NeuronSite(layer, reason="it is a mixture of experts")
    downs = [n for n in inside if n.rpartition(".")[2] in DOWN and plain(inside[n])]
    if len(downs) != 1:
        return NeuronSite(layer, reason=f"{len(downs)} second projections were found, not one")
    folder = downs[0].rpartition(".")[0]

    def found(*names: str) -> tuple[str, ...]:
        paths = tuple(f"{folder}.{name}" for name in names)
        return paths if all(p in inside and plain(inside[p]) for p in paths) else ()

    for pair in GATED:
        if found(*pair):
            return NeuronSite(layer, downs[0], found(*pair))
    for name in FUSED:
        if found(name):
            return NeuronSite(layer, downs[0], found(name), fused=True)
    up = next((found(name) for name in UP if found(name)), ())
    return NeuronSite(layer, downs[0], up)


def plain(module: nn.Module) -> bool:
    """Whether a module is a projection with a plain floating-point weight."""
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, Tensor)
        and weight.ndim == 2
        and weight.is_floating_point()
        and weight.device.type != "meta"
    )


def affine(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight [out, in] (a view) and bias [out] of a Linear or of GPT-2's Conv1D."""
    weight = module.get_parameter("weight")
    weight_OI = weight.T if type(module).__name__ == "Conv1D" else weight
    return weight_OI, getattr(module, "bias", None)


def values_of(lm: FrozenLM, site: NeuronSite) -> tuple[Tensor, Tensor | None]:
    """Return the subvalues values_ND (a view of the weight) and the bias b_D or None."""
    weight_DN, bias_D = affine(lm.model.get_submodule(site.down))
    return weight_DN.T, bias_D


@torch.no_grad()
def subkeys_of(lm: FrozenLM, site: NeuronSite) -> dict[str, tuple[Tensor, Tensor]]:
    """Return subkeys [N, D] and biases [N] by kind: gate and up, or up alone."""
    parts = [affine(lm.model.get_submodule(name)) for name in site.up]
    weights = [weight_ND for weight_ND, _ in parts]
    biases = [w.new_zeros(len(w)) if b is None else b for w, b in parts]
    if site.fused:
        weights, biases = list(weights[0].chunk(2)), list(biases[0].chunk(2))
    kinds = ("gate", "up") if len(weights) == 2 else ("up",)
    return {kind: (weight, bias) for kind, weight, bias in zip(kinds, weights, biases, strict=True)}
