"""Attribution over a data set: what is common to the prompts of a class, and what zeroing it costs.

A class is a task of the family: a relation of facts, an offset of add-k.  Heads are ranked by their
mean log-probability increase.  Neurons are ranked the same way among the candidates that are one of
the K best of at least one prompt of the class, each rescored exactly on all of its prompts.  The
ablation curve takes both from one half of each class's prompts and is scored on the other half.

Shapes: N prompts, A heads in flat order, C candidates, K best neurons per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from headloc.heads import HeadId
from headloc.lm.batch import TokenBatch
from headloc.randomness import stream

from .attribution_read import Array, Best, PromptScores, chunks_of
from .candidates import mlp_candidates
from .neuron_ablation import Neuron, Outcome, outcome, zeroed_heads, zeroed_neurons
from .top_neurons import numbered, scores_of

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RankedNeuron:
    """A neuron of a class.

    Attributes:
        layer, neuron: which it is.
        scores_n: its exact log-probability increase on every prompt of the class.
        coefficients_n: its coefficient there.
    """

    layer: int
    neuron: int
    scores_n: Array
    coefficients_n: Array

    @property
    def mean(self) -> float:
        """Mean log-probability increase."""
        return float(self.scores_n.mean())


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class.

    Attributes:
        name: its name.
        rows: its prompts.
        heads: all heads, the highest mean log-probability increase first.
        neurons: candidate neurons, likewise.
    """

    name: str
    rows: Rows
    heads: tuple[HeadId, ...]
    neurons: tuple[RankedNeuron, ...]


def ranked_heads(lm: FrozenLM, heads_NA: Array, rows: Rows) -> tuple[HeadId, ...]:
    """Return all heads by their mean score over some prompts, ties in flat order."""
    order = np.argsort(-heads_NA[rows].mean(0), kind="stable")
    return tuple(lm.layout.head(int(index)) for index in order)


@torch.no_grad()
def ranked_neurons(
    lm: FrozenLM, batch: TokenBatch, best: Best, rows: Rows, most: int, chunk: int
) -> tuple[RankedNeuron, ...]:
    """Return the candidates of some prompts by their exact mean score.

    Args:
        lm: the frozen model.
        batch: all prompts.
        best: the best neurons of each.
        rows: the prompts of the class.
        most: candidates that are rescored: those with the highest sums over the K best lists.
        chunk: prompts of a chunk.
    """
    sums: dict[Neuron, float] = {}
    for row in rows:
        for layer, neuron, score in zip(
            best.layer_NK[row], best.neuron_NK[row], best.score_NK[row], strict=True
        ):
            if score > 0:
                key = int(layer), int(neuron)
                sums[key] = sums.get(key, 0.0) + float(score)
    chosen = sorted(sums, key=lambda key: (-sums[key], key))[:most]
    if not chosen:
        return ()
    layer_C, neuron_C = (torch.tensor(column) for column in zip(*chosen, strict=True))
    scores, coefficients = [], []
    for _, reading, readout in chunks_of(lm, batch.rows(rows.tolist()), chunk):
        banks = mlp_candidates(lm, reading)
        index_C = numbered(banks, layer_C, neuron_C).to(reading.final_BD.device)
        index_BC = index_C.expand(len(reading.final_BD), -1)
        scores.append(scores_of(readout, banks, index_BC).cpu().numpy())
        m_BM = torch.cat([bank.coefficient_BNT[..., 0] for bank in banks], 1)
        coefficients.append(m_BM.gather(1, index_BC).double().cpu().numpy())
    score_nC, m_nC = np.concatenate(scores), np.concatenate(coefficients)
    found = [
        RankedNeuron(layer, neuron, score_nC[:, i], m_nC[:, i])
        for i, (layer, neuron) in enumerate(chosen)
    ]
    return tuple(sorted(found, key=lambda entry: (-entry.mean, entry.layer, entry.neuron)))


def shared(tops: Mapping[str, Sequence[object]]) -> dict[tuple[str, str], int]:
    """Return how many entries the top lists of every pair of classes have in common."""
    return {
        (one, other): len(set(tops[one]) & set(tops[other])) for one, other in combinations(tops, 2)
    }


def expected_shared(size: int, total: int) -> float:
    """Return how many entries two random lists of a size share on average."""
    return size * size / total


def halves_of(classes: Mapping[str, Rows]) -> dict[str, tuple[Rows, Rows]]:
    """Split each class's prompts in two, taking turns: one half to choose on, one to score."""
    return {name: (rows[0::2], rows[1::2]) for name, rows in classes.items()}


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What is left of the answers with k components zeroed.

    Attributes:
        what: heads or neurons.
        arm: own (of the prompt's class), other (of another class), or random.
        count: components zeroed.
        outcome: by prompt of the scored halves; means over random sets for arm random.
    """

    what: str
    arm: str
    count: int
    log_probability_n: Array
    correct_n: Array


@torch.no_grad()
def ablation_curve(
    lm: FrozenLM,
    batch: TokenBatch,
    scores: PromptScores,
    classes: Mapping[str, Rows],
    *,
    neuron_counts: Sequence[int],
    head_counts: Sequence[int],
    random_sets: int,
    most: int,
    chunk: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> list[CurvePoint]:
    """Zero the top components of each class, chosen on one half of its prompts, on the other half.

    Args:
        lm: the frozen model.
        batch: all prompts.
        scores: what attribution has found for each.
        classes: prompts of each class, two or more in each.
        neuron_counts, head_counts: how many are zeroed.
        random_sets: random sets per count.
        most: candidate neurons of a class that are rescored.
        chunk: prompts of a pass.
        seed: of the random sets.
        progress: called with (points done, points in all).
    """
    halves = halves_of(classes)
    names = list(halves)
    pools: dict[str, dict[str, list[Neuron | HeadId]]] = {"heads": {}, "neurons": {}}
    for name, (fit, _) in halves.items():
        pools["heads"][name] = list(ranked_heads(lm, scores.heads_NA, fit))
        if scores.neurons is not None:
            ranked = ranked_neurons(lm, batch, scores.neurons, fit, most, chunk)
            pools["neurons"][name] = [(one.layer, one.neuron) for one in ranked]
    owner = [name for name, (_, held) in halves.items() for _ in held]
    scored = batch.rows([int(row) for _, held in halves.values() for row in held])
    following = {name: names[(i + 1) % len(names)] for i, name in enumerate(names)}
    arms = {"own": {n: n for n in names}, **({"other": following} if len(names) > 1 else {})}
    counts = {"neurons": neuron_counts if scores.neurons is not None else (), "heads": head_counts}
    wanted = [(what, arm, k) for what in counts for arm in (*arms, "random") for k in counts[what]]
    every = _every(lm, scores)
    found = []
    for done, (what, arm, k) in enumerate(wanted, 1):
        outcomes = []
        for draw in range(random_sets if arm == "random" and k else 1):
            if arm == "random":
                rng = stream(seed, "attribution", what, str(k), str(draw))
                chosen = [_drawn(every[what], k, rng)] * len(owner)
            else:
                chosen = [pools[what][arms[arm][name]][:k] for name in owner]
            outcomes.append(_ablated(lm, scored, what, chosen, chunk))
        found.append(
            CurvePoint(
                what, arm, k,
                np.mean([o.log_probability_B.numpy() for o in outcomes], axis=0),
                np.mean([(o.rank_B == 1).double().numpy() for o in outcomes], axis=0),
            )
        )  # fmt: skip
        progress(done, len(wanted))
    return found


def _every(lm: FrozenLM, scores: PromptScores) -> dict[str, list[Neuron | HeadId]]:
    from .neurons import neuron_sites, values_of

    sites = [site for site in neuron_sites(lm) if site.layer not in scores.opaque]
    neurons: list[Neuron | HeadId] = [
        (site.layer, neuron)
        for site in sites
        if not site.reason
        for neuron in range(values_of(lm, site)[0].shape[0])
    ]
    return {"neurons": neurons, "heads": list(lm.layout)}


def _drawn(
    pool: Sequence[Neuron | HeadId], k: int, rng: np.random.Generator
) -> list[Neuron | HeadId]:
    return [pool[int(i)] for i in rng.choice(len(pool), size=min(k, len(pool)), replace=False)]


def _ablated(
    lm: FrozenLM, batch: TokenBatch, what: str, chosen: Sequence[Sequence[Any]], chunk: int
) -> Outcome:
    found = []
    for start in range(0, len(batch), chunk):
        part = slice(start, min(start + chunk, len(batch)))
        some = chosen[part]
        with zeroed_neurons(lm, some) if what == "neurons" else zeroed_heads(lm, some):
            found.append(outcome(lm, batch.rows(part)))
    return Outcome.joined(found)
