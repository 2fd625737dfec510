"""Split the residual stream of the last prompt token into everything that was added to it.

    x_final = embedding + sum over layers (attention + feed-forward)
    attention = sum over heads c * z W_O + rest,  feed-forward = sum over neurons c * m_n v_n + rest

c is what a norm behind the block multiplies with, frozen, and a constant of the family (granite).
The rest is biases.  Everything is read in one forward and summed in float64; a layer whose parts do
not add up to what leaves it is refused, so no architecture is taken for another.

Shapes: B rows, T columns, H heads of a layer, d head width, N neurons, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import UnsupportedModelError
from headloc.lm.mlp_tap import read_mlps
from headloc.lm.partial import reading_stream
from headloc.lm.projection import output_weights
from headloc.lm.taps import read_heads

from .frozen_norm import FrozenNorm, freeze_norm, identity_norm
from .identity import frozen_output_scale
from .module_calls import Calls, head_name, norms_of, outer_modules, recording
from .neurons import NeuronSite, neuron_sites, values_of
from .reading import prompt_only

if TYPE_CHECKING:
    from headloc.lm.batch import TokenBatch
    from headloc.lm.frozen import FrozenLM

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
_TOLERANCE_HALF = 3e-2


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What one decoder layer adds at the last prompt token; everything float64.

    Attributes:
        layer: index of the decoder layer.
        position: its position in `lm.layout.layers`, or None where it has no heads.
        input_BD: the stream that enters it.
        heads_BHD: what each head adds (H = 0 without heads).
        attention_BD: what its attention adds, biases included.
        attention_scale_BD: c of the attention: what z W_O is multiplied with.
        mlp_BD: what its feed-forward block adds.
        mlp_scale_BD: c of the block.
        coefficients_BN: coefficient of every neuron, or None where they cannot be told apart.
        neurons: where the neurons are, with the reason if they cannot be told apart.
        mlp_norm: the norm whose output the first projection reads, frozen; None if unknown.
        mlp_after_attention: whether that norm reads the stream with this layer's attention.
        attention_norm: the norm whose output the attention reads, frozen; None if unknown.
    """

    layer: int
    position: int | None
    input_BD: Tensor
    heads_BHD: Tensor
    attention_BD: Tensor
    attention_scale_BD: Tensor
    mlp_BD: Tensor
    mlp_scale_BD: Tensor
    coefficients_BN: Tensor | None
    neurons: NeuronSite
    mlp_norm: FrozenNorm | None
    mlp_after_attention: bool
    attention_norm: FrozenNorm | None = None

    @property
    def middle_BD(self) -> Tensor:
        """The stream with this layer's attention: the base of its feed-forward parts."""
        return self.input_BD + self.attention_BD


@dataclass(frozen=True, slots=True)
class StreamReading:
    """The stream of B prompts at the last prompt token.

    Attributes:
        layers: its layers, in order.
        final_BD: the stream that leaves the last layer.
        normed_BD: what the unembedding was given.
        norm: the final norm, frozen.
        logits_BV: the model's logits.
    """

    layers: tuple[LayerParts, ...]
    final_BD: Tensor
    normed_BD: Tensor
    norm: FrozenNorm
    logits_BV: Tensor

    @property
    def embedding_BD(self) -> Tensor:
        """The stream that enters the first layer."""
        return self.layers[0].input_BD


@torch.no_grad()
def read_parts(lm: FrozenLM, batch: TokenBatch) -> StreamReading:
    """Read a chunk of prompts at their last token.

    Args:
        lm: the frozen model.
        batch: the prompts; answers are cut off.

    Raises:
        UnsupportedModelError: when a layer does more than add its attention and feed-forward
            block to the stream, or the final norm cannot be frozen.
    """
    batch = prompt_only(batch).to(lm.device)
    sites, last = neuron_sites(lm), batch.prompt_columns - 1
    blocks = [name for name, _ in lm.model.get_submodule(lm.family.layers).named_children()]
    stack_name = lm.family.layers
    outer = outer_modules(lm)
    norms = {site.block: norms_of(lm, site.block) for site in lm.mlps}
    names = [
        *outer,
        *(f"{stack_name}.{name}" for name in blocks),
        *(name for found in norms.values() for name in found),
        *(name for site in sites if not site.reason for name in (site.down, *site.up)),
        *(site.attention for site in lm.sites),
    ]
    calls = Calls(len(batch), last)
    with ExitStack() as stack:
        streams = [stack.enter_context(reading_stream(lm, int(name))) for name in blocks]
        scales = stack.enter_context(frozen_output_scale(lm, range(len(lm.sites))))
        heads = stack.enter_context(read_heads(lm, columns=slice(last, last + 1)))
        mlps = stack.enter_context(read_mlps(lm, columns=slice(last, last + 1)))
        stack.enter_context(recording(lm, names, calls))
        logits_BV = lm.logits(batch)[:, -1].double()
    inputs = [seen[-1][:, last].double() for seen in streams]
    final_BD = calls.seen[f"{stack_name}.{blocks[-1]}"][1].double()
    layers = []
    for i, name in enumerate(blocks):
        after_BD = inputs[i + 1] if i + 1 < len(blocks) else final_BD
        position = next((p for p, s in enumerate(lm.sites) if s.layer == int(name)), None)
        mlp = next((m for m, s in enumerate(lm.mlps) if s.layer == int(name)), None)
        if mlp is None:
            raise _not_additive(int(name), "has no feed-forward block that headloc knows")
        z_BHd = None if position is None else heads.z[position][:, 0]
        scale = None if position is None else scales.get(position)
        reader = _Layer(lm, inputs[i], calls, None if scale is None else scale[:, last].double())
        layers.append(
            reader.parts(position, z_BHd, mlp, mlps.m[mlp][:, 0].double(), sites[mlp],
                         norms[lm.mlps[mlp].block], after_BD)
        )  # fmt: skip
    head = calls.seen[head_name(lm)][0]
    norm = _final_norm(lm, calls, outer, final_BD, head)
    return StreamReading(tuple(layers), final_BD, head.double(), norm, logits_BV)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Takes one layer apart."""

    lm: FrozenLM
    input_BD: Tensor
    calls: Calls
    behind_attention_BD: Tensor | None

    def parts(
        self,
        position: int | None,
        z_BHd: Tensor | None,
        mlp: int,
        m_BD: Tensor,
        site: NeuronSite,
        norms: Sequence[str],
        after_BD: Tensor,
    ) -> LayerParts:
        times = residual_multiplier(self.lm)
        mlp_BD = times * m_BD
        # A norm that reads the attention's output is behind it, or is the next block's own (bloom,
        # whose attention returns the stream): the sum tells.
        gaps = []
        for scale_BD in self._scales():
            heads_BHD, attention_BD = self._attention(position, z_BHd, times * scale_BD)
            summed_BD = self.input_BD + attention_BD + mlp_BD
            gaps.append(float((summed_BD - after_BD).norm() / after_BD.norm()))
            if gaps[-1] <= _tolerance(self.lm):
                break
        else:
            raise _not_additive(
                site.layer,
                "does more to the stream than add its attention and its feed-forward block "
                f"(relative gap {min(gaps):.1g}; a norm on the stream itself?)",
            )
        # What the layer was seen to add, so that a stream's parts sum to it without drift.
        attention_BD = after_BD - self.input_BD - mlp_BD
        site, coefficients_BN, mlp_scale_BD = self._neurons(mlp, m_BD, site)
        first = site.up[0] if site.up else ""
        middle_BD = self.input_BD + attention_BD
        norm, after = self._norm_before(first, norms, {True: middle_BD, False: self.input_BD})
        attention = "" if position is None else self.lm.sites[position].attention
        own, _ = self._norm_before(attention, norms, {False: self.input_BD})
        return LayerParts(
            site.layer, position, self.input_BD, heads_BHD, attention_BD, times * scale_BD, mlp_BD,
            times * mlp_scale_BD, coefficients_BN, site, norm, after, own,
        )  # fmt: skip

    def _scales(self) -> list[Tensor]:
        ones_BD = torch.ones_like(self.input_BD)
        return (
            [ones_BD] if self.behind_attention_BD is None else [self.behind_attention_BD, ones_BD]
        )

    def _attention(
        self, position: int | None, z_BHd: Tensor | None, scale_BD: Tensor
    ) -> tuple[Tensor, Tensor]:
        if position is None or z_BHd is None:
            empty_BHD = self.input_BD[:, None][:, :0]
            return empty_BHD, torch.zeros_like(self.input_BD)
        weight_HdD = output_weights(self.lm, position).double()
        heads_BHD = scale_BD[:, None] * torch.einsum("bhd,hdm->bhm", z_BHd.double(), weight_HdD)
        bias = getattr(
            self.lm.model.get_submodule(self.lm.sites[position].projection), "bias", None
        )
        rest_BD = 0.0 if bias is None else scale_BD * bias.double()
        return heads_BHD, heads_BHD.sum(1) + rest_BD

    def _neurons(
        self, mlp: int, m_BD: Tensor, site: NeuronSite
    ) -> tuple[NeuronSite, Tensor | None, Tensor]:
        """Return the site, the coefficients and the scale behind the block."""
        ones_BD = torch.ones_like(m_BD)
        if site.reason:
            return site, None, ones_BD
        coefficients_BN = self.calls.seen[site.down][0].double()
        raw_BD = self.calls.seen[site.down][1].double()
        scale_BD = ones_BD
        if "norm" in self.lm.mlps[mlp].module.rpartition(".")[2]:
            scale_BD = m_BD / raw_BD.where(raw_BD != 0, 1.0)
        values_ND, bias_D = values_of(self.lm, site)
        summed_BD = coefficients_BN.to(values_ND) @ values_ND
        summed_BD = summed_BD.double() + (0.0 if bias_D is None else bias_D.double())
        gap = (scale_BD * summed_BD - m_BD).norm() / m_BD.norm().clamp(min=1e-300)
        if not gap <= _tolerance(self.lm):
            reason = f"its neurons do not sum to its output (relative gap {float(gap):.1g})"
            return NeuronSite(site.layer, reason=reason), None, ones_BD
        return site, coefficients_BN, scale_BD

    def _norm_before(
        self, module: str, norms: Sequence[str], streams: Mapping[bool, Tensor]
    ) -> tuple[FrozenNorm | None, bool]:
        """Return the norm whose output a module reads, and the key of the stream that it reads."""
        if module not in self.calls.seen:
            return None, False
        given_BD = self.calls.seen[module][0]
        near = _tolerance(self.lm)
        for name in norms:
            x_BD, y_BD = self.calls.seen.get(name, (None, None))
            if x_BD is None or y_BD is None or not torch.equal(y_BD, given_BD):
                continue
            for key, stream_BD in streams.items():
                if (x_BD.double() - stream_BD).norm() <= near * stream_BD.norm():
                    found = self.lm.model.get_submodule(name)
                    return freeze_norm(found, x_BD, y_BD, self.lm.dtype), key
        for key, stream_BD in streams.items():
            if (given_BD.double() - stream_BD).norm() <= near * stream_BD.norm():
                return identity_norm(given_BD), key
        return None, False


def residual_multiplier(lm: FrozenLM) -> float:
    """Return what a family multiplies every block's output with as it adds it (granite)."""
    value = getattr(lm.model.config.get_text_config(), "residual_multiplier", 1.0)
    return float(value) if value is not None else 1.0


def _tolerance(lm: FrozenLM) -> float:
    return _TOLERANCE.get(lm.dtype, _TOLERANCE_HALF)


def _final_norm(
    lm: FrozenLM, calls: Calls, outer: Sequence[str], final_BD: Tensor, head_BD: Tensor
) -> FrozenNorm:
    for name in outer[:-1]:
        x_BD, y_BD = calls.seen.get(name, (None, None))
        if x_BD is None or y_BD is None or not torch.equal(x_BD.double(), final_BD):
            continue
        if y_BD.shape == head_BD.shape and torch.equal(y_BD, head_BD):
            return freeze_norm(lm.model.get_submodule(name), x_BD, y_BD, lm.dtype)
    if head_BD.shape == final_BD.shape and torch.equal(head_BD.double(), final_BD):
        return identity_norm(final_BD)
    raise UnsupportedModelError(
        f"Between the last layer of {lm.source.name!r} and its unembedding lies more than one norm "
        "(a projection?), so the logits do not split into the parts of the stream. Attribution "
        "does not support this model."
    )


def _not_additive(layer: int, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Layer {layer} {reason}. Its parts do not sum to the logits, so attribution does not "
        "support this architecture."
    )
