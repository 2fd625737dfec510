"""Directions of the residual stream in vocabulary space: what they promote and what they suppress.

    logits(v) = U (slope * centre(v)),    slope: the final norm's, averaged over the prompts at hand

so that logits of directions are comparable with those of parts; for RMSNorm and LayerNorm the order
of tokens does not depend on the prompts.  A coefficient below zero reverses what a subvalue
promotes, so readings are taken of coefficient times subvalue.  Logits are centred: a shift of all
of them changes no probability.

A direction can be read through a later head, W_O W_V norm(v), as well: what the head would write
where it attends to a token to whose stream the direction was added.

Shapes: S directions, D model width, V vocabulary, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import UnsupportedModelError
from headloc.lm.projection import output_weights

from .frozen_norm import FrozenNorm
from .stream_reading import LayerParts
from .unembedding import Readout

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

    from .value_maps import ValueMap


@dataclass(frozen=True, slots=True)
class Reading:
    """Tokens of one direction, the strongest first.

    Attributes:
        top: tokens whose logits it raises the most.
        bottom: tokens whose logits it lowers the most.
        top_logits, bottom_logits: by how much, against the mean over the vocabulary.
    """

    top: tuple[str, ...]
    bottom: tuple[str, ...]
    top_logits: tuple[float, ...]
    bottom_logits: tuple[float, ...]


def mean_norm(norm: FrozenNorm) -> FrozenNorm:
    """Return a norm at its mean scale over the rows, for directions without a prompt."""
    return FrozenNorm(norm.slope_BD.mean(0, keepdim=True), norm.bias_D, norm.centred)


def prompt_free(readout: Readout) -> Readout:
    """Return a readout for directions: the final norm at its mean scale, no soft cap."""
    return replace(
        readout, norm=mean_norm(readout.norm), cap_BV=None, target_B=readout.target_B[:1]
    )


@torch.no_grad()
def read_directions(lm: FrozenLM, readout: Readout, v_SD: Tensor, k: int = 8) -> list[Reading]:
    """Return top and bottom tokens of directions.

    Args:
        lm: the model, for its tokenizer; ids are shown where it has none.
        readout: what `prompt_free` gave.
        v_SD: directions, coefficients included.
        k: tokens on either side.
    """
    found = []
    for v_D in v_SD:
        logits_V = readout.parts(v_D[None, None])[0, 0]
        logits_V = logits_V - logits_V.mean()
        k = min(k, len(logits_V))
        top, bottom = logits_V.topk(k), (-logits_V).topk(k)
        found.append(
            Reading(
                tuple(token_text(lm, i) for i in top.indices.tolist()),
                tuple(token_text(lm, i) for i in bottom.indices.tolist()),
                tuple(top.values.tolist()), tuple((-bottom.values).tolist()),
            )
        )  # fmt: skip
    return found


@torch.no_grad()
def through_head(
    lm: FrozenLM, layer: LayerParts, values: ValueMap, head: int, v_SD: Tensor
) -> Tensor:
    """Return what a head writes where it attends to directions v, [S, D].

    Norms are taken at their mean scale over the reading's rows, and biases are left out.

    Args:
        lm: the frozen model.
        layer: the head's layer, of a reading.
        values: value map of that layer.
        head: the head within the layer.
        v_SD: directions that an earlier component adds to the stream.

    Raises:
        UnsupportedModelError: where what the attention reads is unknown.
    """
    if layer.attention_norm is None or layer.position is None:
        raise UnsupportedModelError(
            f"Layer {layer.layer}: the norm that its attention reads is not known."
        )
    heads = lm.layout.layers[layer.position].heads
    value_dD, _ = values.of_head(head, heads)
    n_SD = mean_norm(layer.attention_norm).part(v_SD[None])[0]
    out_dD = output_weights(lm, layer.position)[head].to(n_SD)
    written_SD = n_SD @ value_dD.to(n_SD).T @ out_dD
    return layer.attention_scale_BD.mean(0) * written_SD


def token_text(lm: FrozenLM, token: int) -> str:
    """Return a token as text, blanks included, or its number without a tokenizer."""
    if lm.tokenizer is None:
        return f"#{token}"
    # Bytes in the middle of a character have no text.
    return str(lm.tokenizer.decode([token])).replace("\ufffd", "?") or f"#{token}"


def words(tokens: Sequence[str]) -> str:
    """Return tokens as one text, each in quotes so that blanks can be seen."""
    return " ".join(repr(token) for token in tokens)
