"""Query and key towers: content and position add up to the scores of the model's attention.

Shapes: B rows, T columns, H heads of a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headloc.analysis.attention_seen import seeing
from headloc.analysis.reading import prompt_only, read_heads_of
from headloc.analysis.tower_reading import towers_of
from headloc.lm.batch import TokenBatch
from headloc.lm.frozen import FrozenLM
from tests.architectures.models import SINGLE, UNPADDED, double_lm, double_model
from tests.tiny import tiny_batch, tiny_lm

THROUGH_VALUES = ("bloom", "falcon_alibi", "mpt", *SINGLE)
"""Families whose eager kernel is no reference: Falcon's adds its bias twice with
output_attentions, the others give no attention in float64.  It is read through the values, which
know nothing of queries and keys."""

NO_DOUBLE = ("bloom", *SINGLE)
"""Families that give NaN for the left-padded trial of `towers_of` in float64."""

EPS = torch.finfo(torch.float32).eps


def eager_attention(family: str, batch: TokenBatch) -> list[Tensor]:
    """Attention of the last token as the model's own eager kernel returns it, [B, H, T].

    Row by row without padding, which those kernels cannot take in float64.
    """
    lm = FrozenLM(double_model(family, attn_implementation="eager"))
    found = [
        torch.zeros(len(batch), layer.heads, batch.prompt_columns, dtype=torch.float64)
        for layer in lm.layout.layers
    ]
    for row, (ids_T, mask_T) in enumerate(zip(batch.ids_BT, batch.mask_BT, strict=True)):
        out = lm.model(input_ids=ids_T[mask_T.bool()][None], output_attentions=True)
        for whole, attention in zip(found, out.attentions, strict=True):
            whole[row, :, mask_T.bool()] = attention[0, :, -1].double()
    return found


@torch.no_grad()
def towers(family: str) -> None:
    """The softmax of content plus position is the model's own attention."""
    lm = tiny_lm(family) if family in NO_DOUBLE else double_lm(family)
    lengths = (9, 9, 9) if family in UNPADDED else (11, 7, 4)
    batch = prompt_only(tiny_batch(lengths))
    positions = range(len(lm.layout.layers))
    found = towers_of(lm, positions)
    with seeing(lm, positions) as seen:
        lm.logits(batch)
    if family in THROUGH_VALUES:
        read = read_heads_of(lm, batch, list(lm.layout))
        expected = [read[position].attention_BHT.double() for position in positions]
    else:
        expected = eager_attention(family, batch)
    moved = []
    for position, attention_BHT in enumerate(expected):
        scores = found[position].scores(seen[position])
        inside_BHT = attention_BHT > 0
        masked = scores.total_BHC.masked_fill(~inside_BHT, -math.inf)
        # Eager kernels take their softmax in float32, which rounds the scores that go into it.
        tolerance = EPS * float(scores.total_BHC[inside_BHT].abs().max().clamp(min=8))
        assert (masked.softmax(-1) - attention_BHT).abs().max() < tolerance
        summed = scores.content_BHC + scores.position_BHC
        assert torch.allclose(summed[inside_BHT], scores.total_BHC[inside_BHT], atol=1e-12)
        moved.append(float(scores.position_BHC[inside_BHT].abs().max()))
    # A layer may know no position (no rotation on every fourth); the model as a whole does.
    assert max(moved) > 1e-3
