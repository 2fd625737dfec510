"""Neurons as candidates: coefficient times subvalue, over the stream that they are added to.

Shapes: B rows, N neurons, T source columns (1 for feed-forward neurons), M = N T candidates of a
layer, S chosen ones, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.lm.projection import output_weights

from .neurons import values_of
from .stream_reading import StreamReading

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

    from .reading import LayerReading


@dataclass(frozen=True, slots=True)
class Candidates:
    """Neurons of one layer: part (n, t) is coefficient * scale * values[n].

    Attributes:
        layer: index of the decoder layer.
        base_BD: the stream they are added to.
        scale_BD: scale behind the block.
        coefficient_BNT: coefficients.
        values_ND: subvalues, a view of a weight.
    """

    layer: int
    base_BD: Tensor
    scale_BD: Tensor
    coefficient_BNT: Tensor
    values_ND: Tensor

    def parts(self, index_BS: Tensor) -> Tensor:
        """Return the vectors of some candidates of every row, parts_BSD in float64."""
        chosen_BS = index_BS // self.coefficient_BNT.shape[2]
        m_BS = self.coefficient_BNT.flatten(1).gather(1, index_BS)
        return (
            self.scale_BD[:, None] * m_BS[..., None].double() * self.values_ND[chosen_BS].double()
        )

    def bounds(self, direction_BD: Tensor) -> Tensor:
        """Return <part, d> of every candidate, bound_BM."""
        d_BD = (self.scale_BD * direction_BD).to(_wide(self.values_ND.dtype))
        along_BN = d_BD @ self.values_ND.to(d_BD).T
        return (self.coefficient_BNT.to(along_BN) * along_BN[..., None]).flatten(1)


def mlp_candidates(lm: FrozenLM, reading: StreamReading) -> list[Candidates]:
    """Return the feed-forward neurons of every layer in which they can be told apart."""
    return [
        Candidates(layer.layer, layer.middle_BD, layer.mlp_scale_BD,
                   layer.coefficients_BN[..., None], values_of(lm, layer.neurons)[0])
        for layer in reading.layers
        if layer.coefficients_BN is not None
    ]  # fmt: skip


def attention_candidates(
    lm: FrozenLM, reading: StreamReading, heads: dict[int, LayerReading]
) -> list[Candidates]:
    """Return the attention neurons: head h, value dimension i and source column t of every layer.

    Neuron h * d + i has subvalue c W_O[h, i] and coefficient alpha_t v_t[i].

    Args:
        lm: the frozen model.
        reading: the stream.
        heads: attention and values of all heads, by position of the layer.
    """
    found = []
    for layer in reading.layers:
        if layer.position is None:
            continue
        read = heads[layer.position]
        m_BHdT = (read.attention_BHT[..., None] * read.values_BHTd).transpose(2, 3)
        values_ND = output_weights(lm, layer.position).flatten(0, 1)
        found.append(Candidates(layer.layer, layer.input_BD, layer.attention_scale_BD,
                                m_BHdT.flatten(1, 2), values_ND))  # fmt: skip
    return found


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
