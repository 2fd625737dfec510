"""A second pass: source positions of some heads, and what the best neurons and these heads read.

What attention reads lies at source positions.  A source position is the last token of a prompt that
is cut there (`cut_at`), so its stream is read and taken apart like any other.

Shapes: N prompts, C chosen heads, T columns, L layers, K neurons, D model width, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headloc.heads import HeadId
from headloc.lm.batch import TokenBatch
from headloc.lm.projection import output_weights

from .attribution_read import Array, Best, chunks_of, sources_of
from .candidates import mlp_candidates
from .log_increase import head_position_parts, part_increase
from .queries import attention_subkeys, feed_forward_subkeys
from .query_shares import Shares, shared_out
from .stream_rows import cut_at
from .unembedding import Readout
from .value_maps import ValueMap, value_maps

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

Progress = Callable[[int], None]


@dataclass(slots=True)
class Sources:
    """What the second pass found.

    Attributes:
        heads: the C chosen heads.
        increase_NCT: log-probability increase of a head's part from one source column.
        attention_NCT: attention to it.
        written_CD: what each head adds to the stream, averaged over prompts.
        value_queries: shares behind the best feed-forward neurons, by kind of subkey.
        attention_queries: shares behind the best attention neurons, at their source positions.
        read_by: shares behind each chosen head's part from the source that helps the most.
        reason: why what attention reads is not known; empty when it is.
    """

    heads: tuple[HeadId, ...]
    increase_NCT: Array
    attention_NCT: Array
    written_CD: Tensor
    value_queries: dict[str, Shares] = field(default_factory=dict)
    attention_queries: Shares = field(default_factory=Shares)
    read_by: dict[HeadId, Shares] = field(default_factory=dict)
    reason: str = ""


@torch.no_grad()
def source_parts(
    lm: FrozenLM, batch: TokenBatch, chosen: Sequence[HeadId], rows: int, progress: Progress
) -> Sources:
    """Score the parts that chosen heads take from every source column.

    Args:
        lm: the frozen model.
        batch: the prompts.
        chosen: heads.
        rows: prompts of a chunk.
        progress: called with the number of prompts done.
    """
    shape = (len(batch), len(chosen), batch.prompt_columns)
    found = Sources(tuple(chosen), np.zeros(shape), np.zeros(shape), torch.zeros(0))
    written_CD = torch.zeros(len(chosen), lm.width, dtype=torch.float64)
    for part, reading, readout in chunks_of(lm, batch, rows):
        heads, _ = sources_of(lm, batch.rows(part))
        for place, head in enumerate(chosen):
            layer = next(p for p in reading.layers if p.layer == head.layer)
            written_CD[place] += layer.heads_BHD[:, head.head].sum(0).cpu()
            if heads is None or layer.position is None:
                continue
            read = heads[layer.position]
            one = slice(head.head, head.head + 1)
            weight_HdD = output_weights(lm, layer.position)[one]
            parts_BTD = head_position_parts(
                layer, read.attention_BHT[:, one], read.values_BHTd[:, one], weight_HdD
            )[:, 0]
            scores_BT = part_increase(readout, layer.input_BD, parts_BTD)
            # Padding gets no attention, and its score is nothing but rounding.
            mask_BT = batch.mask_BT[part, : batch.prompt_columns].to(scores_BT)
            found.increase_NCT[part, place] = (scores_BT * mask_BT).cpu().numpy()
            found.attention_NCT[part, place] = read.attention_BHT[:, head.head].double().cpu()
        progress(part.stop)
    found.written_CD = written_CD / len(batch)
    return found


@torch.no_grad()
def value_queries(
    lm: FrozenLM, batch: TokenBatch, best: Best, count: int, rows: int, progress: Progress
) -> dict[str, Shares]:
    """Return what activates each prompt's best feed-forward neurons, by kind of subkey.

    A prompt's neurons are weighted by their log-probability increase; every prompt counts the same.
    """
    found: dict[str, Shares] = {}
    for part, reading, _ in chunks_of(lm, batch, rows):
        banks = mlp_candidates(lm, reading)
        for row, prompt in enumerate(range(part.start, part.stop)):
            layers, neurons, scores = (
                torch.from_numpy(np.asarray(a[prompt, :count]))
                for a in (best.layer_NK, best.neuron_NK, best.score_NK)
            )
            weights = scores.clamp(min=0) / scores.clamp(min=0).sum().clamp(min=1e-300)
            for layer in reading.layers:
                mine = (layers == layer.layer) & (weights > 0)
                if not bool(mine.any()) or layer.mlp_norm is None:
                    continue
                keys = feed_forward_subkeys(lm, layer, row, neurons[mine])
                for kind, subkeys in keys.items():
                    shares = found.setdefault(kind, Shares())
                    shares.add(shared_out(reading, row, subkeys, banks), weights[mine])
        progress(part.stop)
    return found


@dataclass(frozen=True, slots=True)
class _Request:
    """One subkey at one source position; `shares` collects what is found."""

    layer: int
    key_D: Tensor
    bias: Tensor
    weight: float
    shares: Shares


@torch.no_grad()
def source_queries(
    lm: FrozenLM,
    batch: TokenBatch,
    best: Best,
    count: int,
    found: Sources,
    rows: int,
    progress: Progress,
) -> None:
    """Fill in what attention neurons and chosen heads read at their source positions.

    Args:
        lm: the frozen model.
        batch: the prompts.
        best: the best attention neurons.
        count: how many of them per prompt.
        found: result of `source_parts`, which is added to.
        rows: positions of a chunk.
        progress: called with the number of positions done.
    """
    known = {layer.layer: position for position, layer in enumerate(lm.layout.layers)}
    maps = value_maps(lm, range(len(lm.sites)))
    requests: dict[tuple[int, int], list[_Request]] = {}
    for prompt in range(len(batch)):
        shares = found.attention_queries
        _of_neurons(lm, batch, maps, known, best, prompt, count, shares, requests)
    _of_heads(lm, batch, maps, known, found, rows, requests)
    places = sorted(requests)
    for start in range(0, len(places), rows):
        part = places[start : start + rows]
        cut = cut_at(lm, batch, [row for row, _ in part], [column for _, column in part])
        ((_, reading, _),) = chunks_of(lm, cut, len(part))
        banks = mlp_candidates(lm, reading)
        for row, place in enumerate(part):
            by_layer: dict[int, list[_Request]] = {}
            for ask in requests[place]:
                by_layer.setdefault(ask.layer, []).append(ask)
            for number, asked in by_layer.items():
                layer = next(p for p in reading.layers if p.layer == number)
                if layer.attention_norm is None:
                    continue
                # Together: every earlier neuron is met once.
                key_KD = torch.stack([ask.key_D.double() for ask in asked])
                bias_K = torch.stack([ask.bias.double() for ask in asked])
                keys = attention_subkeys(layer, row, maps[known[number]], key_KD, bias_K)
                out = shared_out(reading, row, keys, banks)
                for k, ask in enumerate(asked):
                    weight_K = torch.zeros(len(asked), dtype=torch.float64)
                    weight_K[k] = ask.weight
                    ask.shares.add(out, weight_K)
        progress(start + len(part))


def _of_neurons(
    lm: FrozenLM,
    batch: TokenBatch,
    maps: Mapping[int, ValueMap],
    known: Mapping[int, int],
    best: Best,
    prompt: int,
    count: int,
    shares: Shares,
    requests: dict[tuple[int, int], list[_Request]],
) -> None:
    inside_K = batch.mask_BT[prompt].cpu().numpy()[best.column_NK[prompt, :count]] > 0
    score_K = np.where(inside_K, np.maximum(best.score_NK[prompt, :count], 0.0), 0.0)
    for k in np.flatnonzero(score_K):
        layer, number = int(best.layer_NK[prompt, k]), int(best.neuron_NK[prompt, k])
        heads = lm.layout.layers[known[layer]]
        head, dimension = divmod(number, heads.width)
        value_dD, bias_d = maps[known[layer]].of_head(head, heads.heads)
        weight = float(score_K[k] / score_K.sum())
        place = (prompt, int(best.column_NK[prompt, k]))
        ask = _Request(layer, value_dD[dimension], bias_d[dimension], weight, shares)
        requests.setdefault(place, []).append(ask)


def _of_heads(
    lm: FrozenLM,
    batch: TokenBatch,
    maps: Mapping[int, ValueMap],
    known: Mapping[int, int],
    found: Sources,
    rows: int,
    requests: dict[tuple[int, int], list[_Request]],
) -> None:
    """Ask for what moves each head's part along the gradient of the answer's log-probability."""
    for part, reading, readout in chunks_of(lm, batch, rows):
        for place, head in enumerate(found.heads):
            layer = next(p for p in reading.layers if p.layer == head.layer)
            position = known[head.layer]
            value_dD, bias_d = maps[position].of_head(head.head, lm.layout.layers[position].heads)
            pulled_BD = layer.attention_scale_BD * _gradient(readout, layer.input_BD)
            out_dD = output_weights(lm, position)[head.head].double()
            along_Bd = pulled_BD @ out_dD.T
            shares = found.read_by.setdefault(head, Shares())
            for row, prompt in enumerate(range(part.start, part.stop)):
                column = int(found.increase_NCT[prompt, place].argmax())
                if found.increase_NCT[prompt, place, column] <= 0:
                    continue
                along_d = along_Bd[row]
                ask = _Request(head.layer, along_d @ value_dD.double(), along_d @ bias_d.double(),
                               1.0, shares)  # fmt: skip
                requests.setdefault((prompt, column), []).append(ask)


def _gradient(readout: Readout, base_BD: Tensor) -> Tensor:
    """Return the direction of the stream along which log p(w) rises the fastest, [B, D]."""
    p_BV = readout.base(base_BD).softmax(-1)
    ones_B1 = torch.ones_like(p_BV[:, :1])
    return readout.pull((-p_BV).scatter_add(1, readout.target_B[:, None], ones_B1))
