"""Log-probability increase: how much a part of the stream raises the answer's log-probability.

    Imp(v) = log p(w | base + v) - log p(w | base)
           = logit_w(v) - log E_{j ~ p(.|base)} exp(logit_j(v))

with the final norm frozen (Yu & Ananiadou 2024, arXiv 2312.12141).  The base is the
layer's input for attention parts and the layer's input with its attention for feed-forward parts,
so that the scores of whole blocks telescope to log p(final) - log p(embedding).  The logarithm
matters: d log p / d logit = 1 - p, so that scores neither depend on how probable the answer already
is while p is small, nor go on growing once it is certain.

Shapes: B rows, S parts, L layers, H heads, T columns, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .stream_reading import LayerParts, StreamReading
from .unembedding import Readout

PARTS_PER_PASS = 256
"""Rows of logits that are held at once: memory is this times the vocabulary."""


def increase(readout: Readout, base_BV: Tensor, logits_BSV: Tensor) -> Tensor:
    """Return Imp_BS in closed form.

    Args:
        readout: the frozen readout; only its targets are used.
        base_BV: log-probabilities (or logits) of the base.
        logits_BSV: what the parts add to the logits.
    """
    target_BS1 = readout.target_B[:, None, None].expand(-1, logits_BSV.shape[1], 1)
    own_BS = logits_BSV.gather(2, target_BS1)[..., 0]
    base_B1V = base_BV.log_softmax(-1)[:, None]
    return own_BS - torch.logsumexp(base_B1V + logits_BSV, dim=-1)


def part_increase(
    readout: Readout, base_BD: Tensor, v_BSD: Tensor, parts_per_pass: int = PARTS_PER_PASS
) -> Tensor:
    """Return Imp_BS of parts v over a base, some parts at a time."""
    base_BV = readout.base(base_BD)
    step = max(1, parts_per_pass // max(1, len(v_BSD)))
    found = [
        increase(readout, base_BV, readout.parts(v_BSD[:, start : start + step]))
        for start in range(0, v_BSD.shape[1], step)
    ]
    return torch.cat(found, dim=1) if found else v_BSD.new_zeros(v_BSD.shape[:2])


def log_probability(readout: Readout, x_BD: Tensor) -> Tensor:
    """Return log p(w | x)_B of whole streams."""
    log_p_BV = readout.base(x_BD).log_softmax(-1)
    return log_p_BV.gather(1, readout.target_B[:, None])[:, 0]


@dataclass(frozen=True, slots=True)
class LayerScores:
    """Scores of whole blocks and of heads.

    Attributes:
        embedding_B: log p(w | embedding), where the telescope begins.
        attention_BL: Imp of each layer's attention.
        mlp_BL: Imp of each layer's feed-forward block.
        heads: Imp of each head, [B, H] per layer of the model.
    """

    embedding_B: Tensor
    attention_BL: Tensor
    mlp_BL: Tensor
    heads: tuple[Tensor, ...]


@torch.no_grad()
def layer_scores(reading: StreamReading, readout: Readout) -> LayerScores:
    """Score blocks and heads; blocks sum to log p(final) - log p(embedding)."""
    ends = [log_probability(readout, layer.input_BD) for layer in reading.layers]
    ends.append(log_probability(readout, reading.final_BD))
    middles = [log_probability(readout, layer.middle_BD) for layer in reading.layers]
    attention = [middle - start for middle, start in zip(middles, ends, strict=False)]
    mlp = [end - middle for middle, end in zip(middles, ends[1:], strict=True)]
    heads = [part_increase(readout, layer.input_BD, layer.heads_BHD) for layer in reading.layers]
    return LayerScores(ends[0], torch.stack(attention, 1), torch.stack(mlp, 1), tuple(heads))


def head_position_parts(
    layer: LayerParts, attention_BHT: Tensor, values_BHTd: Tensor, weight_HdD: Tensor
) -> Tensor:
    """Return what each head takes from each source position, [B, H, T, D].

    Args:
        layer: the layer's parts.
        attention_BHT: attention from the last prompt token, of all heads.
        values_BHTd: values of all heads.
        weight_HdD: W_O.
    """
    weighted_BHTd = (attention_BHT[..., None] * values_BHTd).double()
    moved_BHTD = torch.einsum("bhtd,hdm->bhtm", weighted_BHTd, weight_HdD.double())
    return layer.attention_scale_BD[:, None, None] * moved_BHTD
