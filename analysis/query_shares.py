"""Signed shares behind many neurons, summed over prompts.

Shapes: K neurons that read, L layers, N neurons that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .candidates import Candidates
from .queries import Subkeys, contributions
from .stream_reading import StreamReading


@dataclass(frozen=True, slots=True)
class QueryNeuron:
    """A neuron that others read: its signed mean share and its mean coefficient."""

    layer: int
    neuron: int
    share: float
    coefficient: float


@dataclass(frozen=True, slots=True)
class SharedOut:
    """Signed shares behind K neurons of one row.

    Attributes:
        layers: the L earlier layers.
        embedding_K, attention_KL, mlp_KL: of the blocks.
        neurons: of the feed-forward neurons, [K, N] by layer.
        coefficients: of all these neurons, [N] by layer.
    """

    layers: tuple[int, ...]
    embedding_K: Tensor
    attention_KL: Tensor
    mlp_KL: Tensor
    neurons: dict[int, Tensor]
    coefficients: dict[int, Tensor]


def shared_out(
    reading: StreamReading, row: int, keys: Subkeys, banks: Sequence[Candidates]
) -> SharedOut:
    """Return the shares of everything before K neurons in their pre-activations."""
    found = contributions(reading, row, keys, banks)
    neurons = zip(found.layers, found.neuron_shares(), strict=True)
    return SharedOut(
        found.layers,
        *found.block_shares(),
        {layer: share_KN for layer, share_KN in neurons if share_KN is not None},
        {bank.layer: bank.coefficient_BNT[row, :, 0].double() for bank in banks},
    )


class Shares:
    """Signed shares summed over prompts: of blocks by layer, and of every feed-forward neuron."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.weight = 0.0
        self.blocks: dict[tuple[str, int], float] = {}
        self.neurons: dict[int, Tensor] = {}
        self._coefficients: dict[int, Tensor] = {}

    def add(self, out: SharedOut, weight_K: Tensor) -> None:
        """Add the shares behind K neurons with weights."""
        weight_K = weight_K.to(out.embedding_K)
        self.weight += float(weight_K.sum())
        self._block("embedding", -1, out.embedding_K @ weight_K)
        for place, layer in enumerate(out.layers):
            self._block("attention", layer, out.attention_KL[:, place] @ weight_K)
            self._block("feed_forward", layer, out.mlp_KL[:, place] @ weight_K)
        for layer, share_KN in out.neurons.items():
            _add(self.neurons, layer, weight_K @ share_KN)
        for layer, m_N in out.coefficients.items():
            _add(self._coefficients, layer, weight_K.sum() * m_N)

    def best(self, k: int) -> list[QueryNeuron]:
        """Return the neurons with the largest mean shares, of either sign."""
        found = [
            QueryNeuron(layer, int(i), float(share_N[i]) / self.weight,
                        float(self._coefficients[layer][i]) / self.weight)
            for layer, share_N in self.neurons.items()
            for i in share_N.abs().topk(min(k, len(share_N))).indices
        ]  # fmt: skip
        return sorted(found, key=lambda entry: -abs(entry.share))[:k]

    def mean_blocks(self) -> dict[tuple[str, int], float]:
        """Return the mean shares of the blocks by kind and layer; the embedding's layer is -1."""
        return {key: value / self.weight for key, value in self.blocks.items()}

    def _block(self, kind: str, layer: int, value: Tensor) -> None:
        self.blocks[kind, layer] = self.blocks.get((kind, layer), 0.0) + float(value)


def _add(sums: dict[int, Tensor], layer: int, new: Tensor) -> None:
    known = sums.get(layer)
    sums[layer] = new if known is None else known + new
