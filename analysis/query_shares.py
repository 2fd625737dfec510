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


class Shares:
    """Signed shares summed over prompts: of blocks by layer, and of every feed-forward neuron."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.weight = 0.0
        self.blocks: dict[tuple[str, int], float] = {}
        self.neurons: dict[int, Tensor] = {}
        self._coefficients: dict[int, Tensor] = {}

    def add(
        self,
        reading: StreamReading,
        row: int,
        keys: Subkeys,
        weight_K: Tensor,
        banks: Sequence[Candidates],
    ) -> None:
        """Add the shares of K neurons with weights."""
        found = contributions(reading, row, keys, banks)
        embedding_K, attention_KL, mlp_KL = found.block_shares()
        weight_K = weight_K.to(embedding_K)
        self.weight += float(weight_K.sum())
        self._block("embedding", -1, embedding_K @ weight_K)
        for place, layer in enumerate(found.layers):
            self._block("attention", layer, attention_KL[:, place] @ weight_K)
            self._block("feed_forward", layer, mlp_KL[:, place] @ weight_K)
        for layer, share_KN in zip(found.layers, found.neuron_shares(), strict=True):
            if share_KN is not None:
                known = self.neurons.get(layer)
                new_N = weight_K @ share_KN
                self.neurons[layer] = new_N if known is None else known + new_N
        for bank in banks:
            m_N = weight_K.sum() * bank.coefficient_BNT[row, :, 0].double()
            known = self._coefficients.get(bank.layer)
            self._coefficients[bank.layer] = m_N if known is None else known + m_N

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
