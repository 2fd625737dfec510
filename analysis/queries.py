"""Which earlier components activate a neuron: signed inner products with its subkeys.

What a neuron computes from the stream is affine once the norm before it is frozen,

    pre-activation = <k, norm(x)> + b = sum over earlier parts v of <v, pull(k)>  +  <k, beta> + b

with k its subkey and beta the norm's bias, so every part that was added to the stream has a signed
share of it (Yu & Ananiadou 2024, arXiv 2312.12141: query neurons and query layers).  Gated blocks
have two subkeys per neuron, of the gate and of the up projection, each with shares of its own.  The
subkey of an attention neuron is a row of W_V of the value head that its query head reads, at the
source position.

Shares are divided by the sum of absolute contributions of their level, which cannot vanish where
contributions do not; divided by the signed sum they would explode near zero.

Shapes: K subkeys, A heads of a layer, N neurons, L earlier layers, D model width, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import UnsupportedModelError

from .candidates import Candidates
from .neurons import subkeys_of
from .stream_reading import LayerParts, StreamReading

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

    from .value_maps import ValueMap


@dataclass(frozen=True, slots=True)
class Subkeys:
    """What K neurons of one layer read from the stream of one row.

    Attributes:
        layer: their decoder layer.
        direction_KD: pulled back before the norm: its inner product with a part of the stream is
            what the part adds to the pre-activation.
        constant_K: what no part of the stream adds: biases of the norm and of the projection.
        after_attention: whether they read the stream with their own layer's attention.
    """

    layer: int
    direction_KD: Tensor
    constant_K: Tensor
    after_attention: bool


@dataclass(frozen=True, slots=True)
class Contributions:
    """What every earlier part of a row's stream adds to K pre-activations.

    Attributes:
        layers: the L decoder layers whose attention is part of it.
        embedding_K: from the embedding.
        attention_KL, mlp_KL: from the blocks; 0 for a block that comes too late.
        heads: [K, A] per layer.
        neurons: [K, N] per layer; None where neurons cannot be told apart, or were not asked for.
        constant_K: from no part.
    """

    layers: tuple[int, ...]
    embedding_K: Tensor
    attention_KL: Tensor
    mlp_KL: Tensor
    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor | None, ...]
    constant_K: Tensor

    @property
    def total_K(self) -> Tensor:
        """The pre-activations themselves."""
        blocks_K = self.attention_KL.sum(1) + self.mlp_KL.sum(1)
        return self.embedding_K + blocks_K + self.constant_K

    def block_shares(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return signed shares of embedding, attention and feed-forward blocks: [K], [K, L] x 2."""
        size_K = self.embedding_K.abs() + (self.attention_KL.abs() + self.mlp_KL.abs()).sum(1)
        size_K = size_K.clamp(min=1e-300)
        return (
            self.embedding_K / size_K,
            self.attention_KL / size_K[:, None],
            self.mlp_KL / size_K[:, None],
        )

    def neuron_shares(self) -> tuple[Tensor | None, ...]:
        """Return signed shares of the neurons, [K, N] per layer, among all neurons."""
        known = [part for part in self.neurons if part is not None]
        if not known:
            return self.neurons
        size_K1 = torch.stack([part.abs().sum(1) for part in known]).sum(0)[:, None]
        size_K1 = size_K1.clamp(min=1e-300)
        return tuple(None if part is None else part / size_K1 for part in self.neurons)


@torch.no_grad()
def feed_forward_subkeys(
    lm: FrozenLM, layer: LayerParts, row: int, neuron_K: Tensor
) -> dict[str, Subkeys]:
    """Return the subkeys of K neurons by kind: gate and up, or up alone.

    Raises:
        UnsupportedModelError: where neurons cannot be told apart or what they read is unknown.
    """
    norm = layer.mlp_norm
    if layer.coefficients_BN is None or norm is None:
        reason = layer.neurons.reason or "what its first projection reads is not known"
        raise UnsupportedModelError(f"Layer {layer.layer}: {reason}.")
    norm = norm.rows(slice(row, row + 1))
    found = {}
    for kind, (key_ND, bias_N) in subkeys_of(lm, layer.neurons).items():
        key_KD, bias_K = key_ND[neuron_K].double(), bias_N[neuron_K].double()
        found[kind] = Subkeys(
            layer.layer, norm.pull(key_KD[None])[0], key_KD @ norm.bias_D + bias_K,
            layer.mlp_after_attention,
        )  # fmt: skip
    return found


@torch.no_grad()
def attention_subkeys(
    layer: LayerParts, row: int, values: ValueMap, key_KD: Tensor, bias_K: Tensor
) -> Subkeys:
    """Return subkeys of attention neurons at a source position, which is the reading's last token.

    Args:
        layer: the layer at the source position.
        row: row of the reading.
        values: value map of the layer, for the frozen norm of a latent.
        key_KD: rows of W_V, or sums of such rows.
        bias_K: their value biases.

    Raises:
        UnsupportedModelError: where what the attention reads is unknown.
    """
    if layer.attention_norm is None:
        raise UnsupportedModelError(
            f"Layer {layer.layer}: the norm that its attention reads is not known."
        )
    norm = layer.attention_norm.rows(slice(row, row + 1))
    key_KD, bias_K = key_KD.double(), bias_K.double()
    scale = float(values.scale(norm.whole(layer.input_BD[row : row + 1])[:, None])[0, 0])
    return Subkeys(
        layer.layer, scale * norm.pull(key_KD[None])[0],
        scale * (key_KD @ norm.bias_D + bias_K), False,
    )  # fmt: skip


@torch.no_grad()
def contributions(
    reading: StreamReading,
    row: int,
    keys: Subkeys,
    banks: Sequence[Candidates] | None = None,
) -> Contributions:
    """Return what every part before some neurons adds to their pre-activations.

    Args:
        reading: the stream.
        row: the row of it.
        keys: what the neurons read.
        banks: feed-forward neurons, to be told apart as well (`mlp_candidates`).
    """
    known = {bank.layer: bank for bank in banks or ()}
    direction_KD = keys.direction_KD.to(reading.embedding_BD)
    earlier = [
        layer
        for layer in reading.layers
        if layer.layer < keys.layer or (layer.layer == keys.layer and keys.after_attention)
    ]
    attention, mlp, heads = [], [], []
    neurons: list[Tensor | None] = []
    for layer in earlier:
        own = layer.layer == keys.layer
        attention.append(direction_KD @ layer.attention_BD[row])
        heads.append(direction_KD @ layer.heads_BHD[row].T)
        mlp_K = direction_KD @ layer.mlp_BD[row]
        mlp.append(torch.zeros_like(mlp_K) if own else mlp_K)
        bank = known.get(layer.layer)
        neurons.append(None if bank is None or own else _of_neurons(bank, row, direction_KD))
    nothing_KL = direction_KD.new_zeros(len(direction_KD), 0)
    return Contributions(
        tuple(layer.layer for layer in earlier),
        direction_KD @ reading.embedding_BD[row],
        torch.stack(attention, 1) if attention else nothing_KL,
        torch.stack(mlp, 1) if mlp else nothing_KL,
        tuple(heads),
        tuple(neurons),
        keys.constant_K.to(direction_KD),
    )


def _of_neurons(bank: Candidates, row: int, direction_KD: Tensor) -> Tensor:
    """Return <m_n c v_n, d> of every neuron, [K, N]."""
    wide = torch.float64 if bank.values_ND.dtype == torch.float64 else torch.float32
    along_KN = (direction_KD * bank.scale_BD[row]).to(wide) @ bank.values_ND.to(wide).T
    return along_KN.double() * bank.coefficient_BNT[row, :, 0].double()
