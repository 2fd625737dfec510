"""One pass over the prompts: scores of blocks, heads and neurons of every prompt.

A chunk of prompts is read, scored and dropped; what is kept per prompt is a few numbers a layer,
one a head and the k best neurons, so memory follows the size of a chunk.

Shapes: N prompts, L layers, A heads in flat order, K best neurons, B rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.errors import UnsupportedModelError
from headloc.lm.batch import TokenBatch

from .candidates import attention_candidates, mlp_candidates
from .log_increase import layer_scores, log_probability
from .reading import read_heads_of
from .stream_reading import StreamReading, read_parts
from .top_neurons import TopNeurons, first_order, top_neurons
from .unembedding import Readout, readout_of

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

    from .reading import LayerReading

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Best:
    """The K best neurons of every prompt, best first.

    Attributes:
        layer_NK: decoder layer.
        neuron_NK: neuron within the layer; head * width + dimension for attention neurons.
        column_NK: source column of attention neurons.
        score_NK: log-probability increase in nats.
        coefficient_NK: coefficient.
    """

    layer_NK: Index
    neuron_NK: Index
    column_NK: Index
    score_NK: Array
    coefficient_NK: Array

    @classmethod
    def of(cls, found: TopNeurons) -> Best:
        """Take the result of a search off its device."""
        parts = (found.layer_Bk, found.neuron_Bk, found.column_Bk, found.score_Bk,
                 found.coefficient_Bk)  # fmt: skip
        return cls(*(part.cpu().numpy() for part in parts))


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Scores of N prompts, in nats.

    Attributes:
        final_N, embedding_N: log-probability of the answer at the end and in the embedding alone.
        attention_NL, mlp_NL: log-probability increase of the blocks.
        heads_NA: of the heads.
        up_NL, down_NL: first-order terms of a layer's neurons, those above and below 0 summed.
        neurons: the best feed-forward neurons.
        attention_neurons: the best attention neurons, None where sources cannot be told apart.
        rescored: share of the neurons that the exact search has rescored.
        reason: why sources cannot be told apart; empty when they can.
        opaque: why neurons cannot be told apart, by layer.
    """

    final_N: Array
    embedding_N: Array
    attention_NL: Array
    mlp_NL: Array
    heads_NA: Array
    up_NL: Array
    down_NL: Array
    neurons: Best | None
    attention_neurons: Best | None
    rescored: float
    reason: str
    opaque: dict[int, str]


def chunks_of(
    lm: FrozenLM, batch: TokenBatch, rows: int
) -> Iterator[tuple[slice, StreamReading, Readout]]:
    """Read prompts some rows at a time; yields (rows, streams, readout)."""
    for start in range(0, len(batch), rows):
        part = slice(start, min(start + rows, len(batch)))
        reading = read_parts(lm, batch.rows(part))
        yield part, reading, readout_of(lm, reading, batch.target_BJ[part, 0])


@torch.no_grad()
def read_prompts(
    lm: FrozenLM, batch: TokenBatch, *, top: int, rows: int, progress: Callable[[int], None]
) -> PromptScores:
    """Score every prompt.

    Args:
        lm: the frozen model.
        batch: prompts with the token that is explained as first target.
        top: neurons K that are kept per prompt.
        rows: prompts of a chunk.
        progress: called with the number of prompts done.

    Raises:
        UnsupportedModelError: for an architecture whose parts do not sum to its logits.
    """
    found: list[PromptScores] = []
    for part, reading, readout in chunks_of(lm, batch, rows):
        heads, reason = sources_of(lm, batch.rows(part))
        found.append(_scored(lm, reading, readout, heads, reason, top))
        progress(part.stop)
    return _joined(found)


def sources_of(lm: FrozenLM, batch: TokenBatch) -> tuple[dict[int, LayerReading] | None, str]:
    """Return attention and values of all heads, or None and why they cannot be told apart."""
    try:
        return read_heads_of(lm, batch, list(lm.layout)), ""
    except UnsupportedModelError as error:
        return None, str(error)


def _scored(
    lm: FrozenLM,
    reading: StreamReading,
    readout: Readout,
    heads: dict[int, LayerReading] | None,
    reason: str,
    top: int,
) -> PromptScores:
    blocks = layer_scores(reading, readout)
    banks = mlp_candidates(lm, reading)
    up, down = _both_signs(reading, readout, lm)
    best = top_neurons(readout, banks, top) if banks else None
    sources = None
    if heads is not None:
        sources = top_neurons(readout, attention_candidates(lm, reading, heads), top)
    return PromptScores(
        _array(log_probability(readout, reading.final_BD)),
        _array(blocks.embedding_B),
        _array(blocks.attention_BL),
        _array(blocks.mlp_BL),
        _array(torch.cat(blocks.heads, 1)),
        up,
        down,
        None if best is None else Best.of(best),
        None if sources is None else Best.of(sources),
        float("nan") if best is None else best.rescored / best.total,
        reason,
        {p.layer: p.neurons.reason for p in reading.layers if p.neurons.reason},
    )


def _both_signs(reading: StreamReading, readout: Readout, lm: FrozenLM) -> tuple[Array, Array]:
    """Return first-order terms of neurons, above and below zero, by layer."""
    shape = (len(reading.final_BD), len(reading.layers))
    up_BL, down_BL = np.full(shape, np.nan), np.full(shape, np.nan)
    places = [i for i, p in enumerate(reading.layers) if p.coefficients_BN is not None]
    terms = first_order(readout, mlp_candidates(lm, reading))
    for place, term_BM in zip(places, terms, strict=True):
        up_BL[:, place] = _array(term_BM.clamp(min=0).sum(1))
        down_BL[:, place] = _array(term_BM.clamp(max=0).sum(1))
    return up_BL, down_BL


def _array(value: Tensor) -> Array:
    return value.double().cpu().numpy()


def _joined(parts: list[PromptScores]) -> PromptScores:
    first = parts[0]
    joined: dict[str, Any] = {}
    for entry in fields(PromptScores):
        values = [getattr(part, entry.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            joined[entry.name] = np.concatenate(values)
        elif isinstance(values[0], Best):
            columns = (f.name for f in fields(Best))
            joined[entry.name] = Best(
                *(np.concatenate([getattr(v, name) for v in values]) for name in columns)
            )
    weights = [len(part.final_N) for part in parts]
    rescored = float(np.average([part.rescored for part in parts], weights=weights))
    joined |= {"rescored": rescored, "reason": first.reason, "opaque": first.opaque}
    joined.setdefault("neurons", None)
    joined.setdefault("attention_neurons", None)
    return PromptScores(**joined)
