"""The published comparison of scores: zero each prompt's ten best neurons by each of them.

Yu & Ananiadou 2024 (arXiv 2312.12141): a score is good when zeroing the neurons that it names costs
the answer the most.  Neurons are chosen and zeroed prompt by prompt, random ones beside them.

Shapes: B rows, M neurons of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from headloc.lm.batch import TokenBatch
from headloc.randomness import stream

from .attribution_read import Array, chunks_of
from .candidates import Candidates, mlp_candidates
from .neuron_ablation import Neuron, Outcome, outcome, zeroed_neurons
from .part_scores import SCORES, neuron_scores

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

NOTHING, RANDOM = "nothing", "random neurons"


@dataclass(frozen=True, slots=True)
class Ablated:
    """Outcomes on N prompts with the best neurons of one score zeroed.

    Attributes:
        reciprocal_rank_N: 1 over the rank of the answer's first token.
        probability_N: its probability.
        log_probability_N: in nats.
    """

    reciprocal_rank_N: Array
    probability_N: Array
    log_probability_N: Array


@torch.no_grad()
def compare_scores(
    lm: FrozenLM,
    batch: TokenBatch,
    *,
    count: int,
    random_sets: int,
    rows: int,
    seed: int,
    progress: Callable[[int], None],
) -> dict[str, Ablated]:
    """Return outcomes by score, with those of nothing and of random neurons.

    Args:
        lm: the frozen model.
        batch: the prompts.
        count: neurons that are zeroed per prompt.
        random_sets: draws of random neurons, whose outcomes are averaged.
        rows: prompts of a chunk.
        seed: of the random neurons.
        progress: called with the number of prompts done.
    """
    found: dict[str, list[list[Outcome]]] = {}
    for part, reading, readout in chunks_of(lm, batch, rows):
        own = batch.rows(part)
        banks = mlp_candidates(lm, reading)
        found.setdefault(NOTHING, []).append([outcome(lm, own)])
        for name, score_BM in neuron_scores(readout, banks).items():
            index = score_BM.topk(min(count, score_BM.shape[1]), dim=1).indices.tolist()
            chosen = [[_named(banks, i) for i in row] for row in index]
            found.setdefault(name, []).append([_zeroed(lm, own, chosen)])
        total = sum(bank.coefficient_BNT.shape[1] for bank in banks)
        draws = []
        for draw in range(random_sets):
            chosen = [
                [_named(banks, int(i)) for i in _drawn(seed, draw, row, total, count)]
                for row in range(part.start, part.stop)
            ]
            draws.append(_zeroed(lm, own, chosen))
        found.setdefault(RANDOM, []).append(draws)
        progress(part.stop)
    order = (NOTHING, *SCORES, RANDOM)
    return {name: _averaged(found[name]) for name in order}


def _zeroed(lm: FrozenLM, batch: TokenBatch, chosen: Sequence[Sequence[Neuron]]) -> Outcome:
    with zeroed_neurons(lm, chosen):
        return outcome(lm, batch)


def _drawn(seed: int, draw: int, row: int, total: int, count: int) -> list[int]:
    rng = stream(seed, "attribution", "random neurons", str(draw), str(row))
    return [int(i) for i in rng.choice(total, size=min(count, total), replace=False)]


def _named(banks: Sequence[Candidates], number: int) -> Neuron:
    for bank in banks:
        size = bank.coefficient_BNT.shape[1]
        if number < size:
            return bank.layer, number
        number -= size
    raise IndexError(number)


def _averaged(chunks: Sequence[Sequence[Outcome]]) -> Ablated:
    """Average over draws, join the chunks."""
    draws = [Outcome.joined([chunk[d] for chunk in chunks]) for d in range(len(chunks[0]))]
    log_p = np.stack([draw.log_probability_B.numpy() for draw in draws])
    ranks = np.stack([draw.rank_B.numpy() for draw in draws])
    return Ablated((1 / ranks).mean(0), np.exp(log_p).mean(0), log_p.mean(0))


def order_by(found: Mapping[str, Ablated]) -> list[str]:
    """Return the names by mean reciprocal rank, the most harmful first."""
    return sorted(found, key=lambda name: float(found[name].reciprocal_rank_N.mean()))
