"""What components write, in tokens: neurons times coefficients, heads, blocks, through heads.

Shapes: S directions, D model width, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import UnsupportedModelError
from headloc.heads import HeadId
from headloc.lm.batch import TokenBatch

from .attribution_classes import ClassScores
from .attribution_read import chunks_of
from .attribution_sources import Sources
from .neurons import values_of
from .query_shares import QueryNeuron, Shares
from .stream_reading import StreamReading
from .unembedding import Readout
from .value_maps import ValueMap, value_maps
from .vocabulary import Reading, prompt_free, read_directions, through_head

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


@dataclass(slots=True)
class Texts:
    """Vocabulary readings.

    Attributes:
        neurons: of a class's neurons times their mean coefficients, by (class, layer, neuron).
        heads: of what the chosen heads add on average.
        blocks: of what attention and feed-forward blocks add on average, by (kind, layer).
        queries: neurons behind the best value neurons, by kind of subkey.
        sources: neurons behind the best attention neurons, at their source positions.
        read_by: neurons that chosen heads read, with what the head makes of them.
    """

    neurons: dict[tuple[str, int, int], Reading] = field(default_factory=dict)
    heads: dict[HeadId, Reading] = field(default_factory=dict)
    blocks: dict[tuple[str, int], Reading] = field(default_factory=dict)
    queries: dict[str, list[tuple[QueryNeuron, Reading]]] = field(default_factory=dict)
    sources: list[tuple[QueryNeuron, Reading]] = field(default_factory=list)
    read_by: dict[HeadId, list[tuple[QueryNeuron, Reading, Reading | None]]] = field(
        default_factory=dict
    )


@torch.no_grad()
def read_texts(
    lm: FrozenLM,
    batch: TokenBatch,
    classes: Sequence[ClassScores],
    overall: ClassScores,
    sources: Sources,
    shown: int,
    chunk: int,
) -> Texts:
    """Read everything that is shown in vocabulary space.

    Args:
        lm: the frozen model.
        batch: the prompts; norms are taken at their mean scale over the first chunk.
        classes, overall: classes with their neurons.
        sources: what the second pass has found.
        shown: neurons of a list.
        chunk: prompts of a pass.
    """
    _, reading, full = next(chunks_of(lm, batch, chunk))
    readout = prompt_free(full)
    reader = _Reader(lm, reading, readout, _maps(lm, list(sources.read_by)))
    found = Texts()
    for one in (overall, *classes):
        for entry in one.neurons[:shown]:
            v_D = reader.value(entry.layer, entry.neuron, float(entry.coefficients_n.mean()))
            found.neurons[one.name, entry.layer, entry.neuron] = reader.tokens(v_D)
    for head, v_D in zip(sources.heads, sources.written_CD, strict=True):
        found.heads[head] = reader.tokens(v_D)
    for key, v_D in _mean_blocks(lm, batch, chunk).items():
        found.blocks[key] = reader.tokens(v_D)
    for kind, shares in sources.value_queries.items():
        found.queries[kind] = reader.queries(shares, shown)
    if sources.attention_queries.weight:
        found.sources = reader.queries(sources.attention_queries, shown)
    for head, shares in sources.read_by.items():
        if shares.weight:
            found.read_by[head] = [
                (query, own, reader.through(head, query))
                for query, own in reader.queries(shares, min(shown, 5))
            ]
    return found


@dataclass(frozen=True)
class _Reader:
    lm: FrozenLM
    reading: StreamReading
    readout: Readout
    maps: Mapping[int, ValueMap]

    def value(self, layer: int, neuron: int, coefficient: float) -> Tensor:
        """Return what a neuron adds to the stream with some coefficient, v_D."""
        parts = next(p for p in self.reading.layers if p.layer == layer)
        values_ND, _ = values_of(self.lm, parts.neurons)
        return coefficient * parts.mlp_scale_BD.mean(0) * values_ND[neuron].double()

    def tokens(self, v_D: Tensor) -> Reading:
        v_D = v_D.to(self.readout.norm.slope_BD)
        return read_directions(self.lm, self.readout, v_D[None], 6)[0]

    def queries(self, shares: Shares, k: int) -> list[tuple[QueryNeuron, Reading]]:
        return [
            (query, self.tokens(self.value(query.layer, query.neuron, query.coefficient)))
            for query in shares.best(k)
        ]

    def through(self, head: HeadId, query: QueryNeuron) -> Reading | None:
        parts = next(p for p in self.reading.layers if p.layer == head.layer)
        v_D = self.value(query.layer, query.neuron, query.coefficient)
        position = parts.position
        if position is None or position not in self.maps or parts.attention_norm is None:
            return None
        values = self.maps[position]
        return self.tokens(through_head(self.lm, parts, values, head.head, v_D[None])[0])


def _maps(lm: FrozenLM, heads: Sequence[HeadId]) -> dict[int, ValueMap]:
    """Return the value maps of some heads' layers, none where they are not known."""
    layers = {head.layer for head in heads}
    positions = [p for p, layer in enumerate(lm.layout.layers) if layer.layer in layers]
    try:
        return value_maps(lm, positions)
    except UnsupportedModelError:
        return {}


def _mean_blocks(lm: FrozenLM, batch: TokenBatch, chunk: int) -> dict[tuple[str, int], Tensor]:
    """Return what each block adds on average."""
    sums: dict[tuple[str, int], Tensor] = {}
    for _, reading, _ in chunks_of(lm, batch, chunk):
        for layer in reading.layers:
            for kind, v_BD in (("attention", layer.attention_BD), ("feed_forward", layer.mlp_BD)):
                known = sums.get((kind, layer.layer))
                new_D = v_BD.sum(0) / len(batch)
                sums[kind, layer.layer] = new_D if known is None else known + new_D
    return sums
