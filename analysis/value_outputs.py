"""What a head would write from each label token, and which label that speaks for.

The value-output vector of a token is vo_t = c * W_O v_t, what the token would add to the last
token's residual stream at full attention (c: a norm behind the attention, frozen).  With the final
norm frozen its contrasts are linear,

    M_l(vo_t) = <vo_t, d_l>,       sum over t of alpha_t M_l(vo_t) = M_l(what the head adds)

(Yu & Ananiadou 2024, arXiv 2402.02872; `label_prompts.py` defines M_l).

Shapes: B rows, T columns, N label tokens, H heads of a layer, L labels, d head width, D model
width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.heads import HeadId
from headloc.lm.projection import output_weights

from .label_prompts import LabelSet
from .reading import LayerReading, read_heads_of
from .stream_reading import StreamReading, read_parts
from .unembedding import Readout, readout_of
from .value_maps import value_maps

if TYPE_CHECKING:
    from headloc.lm.batch import TokenBatch
    from headloc.lm.frozen import FrozenLM


@dataclass(frozen=True, slots=True)
class HeadContrasts:
    """One head on a chunk of prompts, in float64.

    Attributes:
        attention_BT: attention from the last prompt token to every column.
        contrast_LBT: M_l of every column's value-output vector.
    """

    attention_BT: Tensor
    contrast_LBT: Tensor

    @property
    def written_LB(self) -> Tensor:
        """M_l of what the head adds: the attention-weighted sum over columns."""
        return (self.attention_BT * self.contrast_LBT).sum(-1)

    def at(self, columns_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return attention_BN and contrast_LBN at some columns."""
        index_LBN = columns_BN.expand(len(self.contrast_LBT), -1, -1)
        return self.attention_BT.gather(1, columns_BN), self.contrast_LBT.gather(2, index_LBN)


@dataclass(frozen=True, slots=True)
class ChunkOutputs:
    """Some heads on a chunk of prompts.

    Attributes:
        readout: the frozen way to the logits.
        logits_BV: the model's logits.
        layers: readings of the heads by position of the layer.
        scales_BD: c by position of the layer.
        directions_LBD: d_l for the contrasts.
        heads: contrasts by head.
    """

    readout: Readout
    logits_BV: Tensor
    layers: dict[int, LayerReading]
    scales_BD: dict[int, Tensor]
    directions_LBD: Tensor
    heads: dict[HeadId, HeadContrasts]

    def vectors(self, lm: FrozenLM, head: HeadId, columns_BN: Tensor) -> Tensor:
        """Return the value-output vectors of a head at some columns, vo_BND in float64."""
        position, row = place(lm, self.layers, head)
        values_BTd = self.layers[position].values_BHTd[:, row].double()
        index = columns_BN[..., None].expand(-1, -1, values_BTd.shape[-1])
        weight_dD = output_weights(lm, position)[head.head].double()
        return self.scales_BD[position][:, None] * (values_BTd.gather(1, index) @ weight_dD)


@torch.no_grad()
def read_outputs(
    lm: FrozenLM,
    batch: TokenBatch,
    heads: Sequence[HeadId],
    labels: LabelSet,
    directions_LBD: Tensor | None = None,
) -> ChunkOutputs:
    """Read what some heads would write from every column of a chunk of prompts.

    Args:
        lm: the frozen model.
        batch: the prompts.
        heads: the heads.
        labels: the labels that are told apart.
        directions_LBD: d_l of other prompts, row by row, to read these with the same frozen norm;
            their own when None.

    Raises:
        UnsupportedModelError: when values or readout of the model cannot be taken apart.
    """
    stream = read_parts(lm, batch)
    readout = readout_of(lm, stream, batch.target_BJ[:, 0].clamp(min=0).to(lm.device))
    if directions_LBD is None:
        directions_LBD = contrast_directions(labels, readout, stream)
    layers = {
        position: _with_all_values(lm, reading)
        for position, reading in read_heads_of(lm, batch, heads, inputs=True).items()
    }
    scales = {part.position: part.attention_scale_BD for part in stream.layers
              if part.position is not None}  # fmt: skip
    found: dict[HeadId, HeadContrasts] = {}
    for position, reading in layers.items():
        weight_HdD = output_weights(lm, position)[list(reading.heads)].double()
        pulled_LBD = scales[position] * directions_LBD
        readout_LBHd = torch.einsum("lbm,hdm->lbhd", pulled_LBD, weight_HdD)
        values_BHTd = reading.values_BHTd.double()
        contrast_LBHT = torch.einsum("lbhd,bhtd->lbht", readout_LBHd, values_BHTd)
        for row, head in enumerate(reading.heads):
            name = HeadId(lm.layout.layers[position].layer, head)
            attention_BT = reading.attention_BHT[:, row].double()
            found[name] = HeadContrasts(attention_BT, contrast_LBHT[:, :, row])
    return ChunkOutputs(readout, stream.logits_BV, layers, scales, directions_LBD, found)


def _with_all_values(lm: FrozenLM, reading: LayerReading) -> LayerReading:
    """Fill in values that a sliding cache has dropped: without attention, but vectors they have."""
    dropped_BT = (reading.values_BHTd == 0).all(-1).all(1)
    if not dropped_BT.any() or reading.inputs_BTD is None:
        return reading
    found = value_maps(lm, [reading.position])[reading.position]
    layer = lm.layout.layers[reading.position]
    group = layer.heads // len(found.weight_KdD)
    all_BTKd = found.values(reading.inputs_BTD)
    values_BHTd = all_BTKd[:, :, [head // group for head in reading.heads]].transpose(1, 2)
    kept_BHTd = reading.values_BHTd.where(~dropped_BT[:, None, :, None], values_BHTd)
    return replace(reading, values_BHTd=kept_BHTd, inputs_BTD=None)


def contrast_directions(labels: LabelSet, readout: Readout, stream: StreamReading) -> Tensor:
    """Return d_LBD with <v, d_l> = M_l(v) for every part v of the stream."""
    rows, vocabulary = stream.logits_BV.shape
    contrasts_LBV = labels.over_vocabulary(rows, vocabulary)
    return torch.stack([readout.pull(c_BV) for c_BV in contrasts_LBV])


def place(lm: FrozenLM, layers: dict[int, LayerReading], head: HeadId) -> tuple[int, int]:
    """Return the position of a head's layer and its row among the layer's readings."""
    position = next(p for p in layers if lm.layout.layers[p].layer == head.layer)
    return position, layers[position].heads.index(head.head)
