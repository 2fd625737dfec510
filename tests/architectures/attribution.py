"""Direct logit attribution: the parts of the stream sum to the logits of the model.

Shapes: B rows, S parts, D model width, V vocabulary, N neurons of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headloc.analysis.candidates import mlp_candidates
from headloc.analysis.log_increase import head_position_parts
from headloc.analysis.neurons import values_of
from headloc.analysis.reading import read_heads_of
from headloc.analysis.stream_reading import StreamReading, read_parts
from headloc.analysis.unembedding import Readout, readout_of
from headloc.errors import UnsupportedModelError
from headloc.lm.batch import TokenBatch
from headloc.lm.frozen import FrozenLM
from headloc.lm.projection import output_weights
from tests.architectures.models import LOOSE, SINGLE, UNPADDED, double_lm
from tests.tiny import hook_count, tiny_batch

ROUNDED = LOOSE
"""A pass from a cache, which splits heads by token, differs from a whole one."""


def read(lm: FrozenLM, batch: TokenBatch) -> tuple[StreamReading, Readout]:
    """The stream's parts and the way from them to the logits."""
    reading = read_parts(lm, batch)
    return reading, readout_of(lm, reading, batch.target_BJ[:, 0])


def batch_for(family: str) -> TokenBatch:
    """Prompts that the family can run in float64."""
    return tiny_batch((6, 6, 6)) if family in UNPADDED else tiny_batch()


def gap(total_BV: Tensor, reading: StreamReading) -> float:
    """The largest difference from the model's logits, relative to the largest of these."""
    return float((total_BV - reading.logits_BV).abs().max() / reading.logits_BV.abs().max())


@torch.no_grad()
def attribution(family: str) -> None:
    """Embedding, heads and blocks sum to the logits; so do heads split by source token."""
    lm, batch = double_lm(family), batch_for(family)
    hooks = hook_count(lm.model)
    reading, readout = read(lm, batch)
    assert hook_count(lm.model) == hooks
    tolerance = 1e-5 if family in SINGLE else 1e-10
    by_head_BV = by_token_BV = readout.base(reading.embedding_BD)
    heads = read_heads_of(lm, batch, list(lm.layout))
    for layer in reading.layers:
        assert layer.position is not None
        own = heads[layer.position]
        assert layer.attention_norm is not None
        parts_BHTD = head_position_parts(
            layer, own.attention_BHT, own.values_BHTd, output_weights(lm, layer.position)
        )
        # What no head puts out: the projection's bias.
        rest_BD = layer.attention_BD - layer.heads_BHD.sum(1) + layer.mlp_BD
        rest_BV = readout.parts(rest_BD[:, None])[:, 0]
        by_head_BV = by_head_BV + readout.parts(layer.heads_BHD).sum(1) + rest_BV
        by_token_BV = by_token_BV + readout.parts(parts_BHTD.flatten(1, 2)).sum(1) + rest_BV
    assert gap(by_head_BV, reading) < tolerance
    assert gap(by_token_BV, reading) < (1e-6 if family in ROUNDED else tolerance)


@torch.no_grad()
def neurons(family: str) -> None:
    """Neurons, coefficient times subvalue, sum to what their block adds to the logits.

    Raises:
        UnsupportedModelError: with the reason that a layer gives.
    """
    lm, batch = double_lm(family), batch_for(family)
    reading, readout = read(lm, batch)
    untold = [layer for layer in reading.layers if layer.coefficients_BN is None]
    for layer in reading.layers:
        assert (layer.coefficients_BN is None) == bool(layer.neurons.reason)
    if untold:
        raise UnsupportedModelError(
            f"The neurons of layer {untold[0].layer} cannot be told apart: "
            f"{untold[0].neurons.reason}."
        )
    total_BV = readout.base(reading.embedding_BD)
    for layer in reading.layers:
        total_BV = total_BV + readout.parts(layer.attention_BD[:, None])[:, 0]
        for part_BSD in block_parts(lm, layer):
            total_BV = total_BV + readout.parts(part_BSD).sum(1)
        assert layer.mlp_norm is not None
    assert gap(total_BV, reading) < (1e-5 if family in SINGLE else 1e-10)
    assert len(mlp_candidates(lm, reading)) == len(reading.layers)


def block_parts(lm: FrozenLM, layer: object) -> list[Tensor]:
    """What each neuron of a block adds to the stream, and the block's bias."""
    values_ND, bias_D = values_of(lm, layer.neurons)  # type: ignore[attr-defined]
    coefficients_BN, scale_BD = layer.coefficients_BN, layer.mlp_scale_BD  # type: ignore[attr-defined]
    found = [scale_BD[:, None] * (coefficients_BN[..., None] * values_ND.double())]
    if bias_D is not None:
        found.append((scale_BD * bias_D)[:, None])
    return found
