"""The records of a comparison, one per method, seed, off-value and size, and their summary.

Shapes: S seeds, K sizes, N prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from headloc.baselines.method import HeadSet
from headloc.compare.measures import (
    Areas,
    Difference,
    areas,
    difference,
    shared_sizes,
    smallest_keeping,
)
from headloc.compare.outcomes import SetOutcomes, complement
from headloc.compare.run import Comparison, Found, UnderOffValue
from headloc.evaluation.intervals import mean_interval

OPTIMUM = "optimum"

COLUMNS = (
    "method", "off_value", "seed", "size", "chosen", "split", "accuracy", "low", "high", "n",
    "accuracy_kept", "accuracy_optimum", "gap_to_optimum", "necessity_accuracy",
    "log_probability", "overlap_with_optimum", "cost_forward_equivalents",
    "search_forward_equivalents", "selection_forward_equivalents", "seconds", "heads",
)  # fmt: skip
"""Fields of a record; `heads` are labels such as L3H5."""


def records(found: Comparison) -> list[dict[str, Any]]:
    """Return every record: all sizes of all methods and of the optimum on the test prompts."""
    rows = []
    for result in found.results:
        for size in found.sizes:
            if size in result.optimum.sets:
                rows.append(_optimum_record(found, result, size))
        for many in result.found.values():
            for own in many:
                rows += [_record(found, result, own, own.ranking.at(size), size == len(own.chosen))
                         for size in found.sizes]  # fmt: skip
                rows += _of_chosen(found, result, own)
    return rows


def _of_chosen(found: Comparison, result: UnderOffValue, own: Found) -> list[dict[str, Any]]:
    """Return the records of a chosen set that no size has: held-out tasks, emitted sets."""
    rows = []
    if own.chosen != own.ranking.at(len(own.chosen)) or len(own.chosen) not in found.sizes:
        rows.append(_record(found, result, own, own.chosen, True))
    if result.held_out is not None:
        row = _record(found, result, own, own.chosen, True)
        rows.append({**row, **_scored(result.held_out, own.chosen, found.seed),
                     "split": "held_out", "accuracy_optimum": None, "gap_to_optimum": None,
                     "necessity_accuracy": None})  # fmt: skip
    return rows


def _record(
    found: Comparison, result: UnderOffValue, own: Found, heads: HeadSet, chosen: bool
) -> dict[str, Any]:
    return {
        **_about(found, result, heads),
        "method": own.method,
        "seed": own.seed,
        "chosen": chosen and heads == own.chosen,
        "cost_forward_equivalents": own.cost,
        "search_forward_equivalents": own.search_cost,
        "selection_forward_equivalents": own.selection_cost,
        "seconds": own.seconds,
    }


def _optimum_record(found: Comparison, result: UnderOffValue, size: int) -> dict[str, Any]:
    return {
        **_about(found, result, result.optimum.sets[size]),
        "method": f"{OPTIMUM}_{result.optimum.search}",
        "seed": found.seed,
        "chosen": False,
        "cost_forward_equivalents": result.optimum_cost,
        "search_forward_equivalents": None,
        "selection_forward_equivalents": None,
        "seconds": None,
    }


def _about(found: Comparison, result: UnderOffValue, heads: HeadSet) -> dict[str, Any]:
    test, best = result.test, result.optimum.sets.get(len(heads))
    accuracy = test.accuracy(heads)
    optimum = None if best is None else test.accuracy(best)
    return {
        **_scored(test, heads, found.seed),
        "off_value": result.off_value,
        "split": "seen",
        "size": len(heads),
        "heads": [str(found.layout.head(index)) for index in heads],
        "accuracy_optimum": optimum,
        "gap_to_optimum": None if optimum is None else optimum - accuracy,
        "necessity_accuracy": test.accuracy(complement(heads, found.layout.total)),
        "overlap_with_optimum": None if best is None else jaccard(heads, best),
    }


def _scored(outcomes: SetOutcomes, heads: HeadSet, seed: int) -> dict[str, Any]:
    accuracy = mean_interval(outcomes.correct(heads), seed)
    return {
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "n": accuracy.n,
        "accuracy_kept": accuracy.value / outcomes.full if outcomes.full else None,
        "log_probability": float(outcomes.log_probability(heads).mean()),
    }


@dataclass(frozen=True)
class Summary:
    """One method under one off-value, over seeds.

    Attributes:
        method: its name.
        sizes: number of chosen heads by seed.
        kept: accuracy kept by the chosen sets on fresh prompts, by seed.
        crossing: smallest size that keeps enough on the test prompts, by seed.
        areas: by seed; of the accuracy.
        log_areas: the same of log p(answer).
        cost: mean forward-equivalents of all that the ranking takes.
        overlap: mean Jaccard index of the chosen sets of two seeds.
        against: the first method minus this one; None for the first itself.
        to_optimum: this method minus the optimum.
    """

    method: str
    sizes: tuple[int, ...]
    kept: tuple[float, ...]
    crossing: tuple[int, ...]
    areas: tuple[Areas, ...]
    log_areas: tuple[Areas, ...]
    cost: float
    overlap: float
    against: Difference | None
    to_optimum: Difference


def summaries(found: Comparison, result: UnderOffValue) -> list[Summary]:
    """Return one summary per method."""
    first = _outcomes(found, result, result.found[found.first])
    best = np.stack(
        [[result.test.correct(result.optimum.sets[size]) for size in _known(found, result)]]
    )
    rows = []
    for name, many in result.found.items():
        own = _outcomes(found, result, many)
        known = [found.sizes.index(size) for size in _known(found, result)]
        rows.append(
            Summary(
                name,
                tuple(len(one.chosen) for one in many),
                tuple(result.test.accuracy(one.chosen) / result.test.full for one in many),
                tuple(_crossing(found, result, one) for one in many),
                tuple(_areas(found, result, one, logs=False) for one in many),
                tuple(_areas(found, result, one, logs=True) for one in many),
                float(np.mean([one.cost for one in many])),
                _mean_jaccard([one.chosen for one in many]),
                None if name == found.first
                else difference(first, own, found.sizes, found.seed),
                difference(own[:, known], best, _known(found, result), found.seed),
            )
        )  # fmt: skip
    return rows


def optimum_crossing(found: Comparison, result: UnderOffValue) -> int:
    """Return the smallest size at which the best set keeps enough on the test prompts."""
    sets = result.optimum.sets
    aim = found.settings.keep * result.test.full
    return smallest_keeping(lambda k: result.test.accuracy(sets[k]), _known(found, result), aim)


def _known(found: Comparison, result: UnderOffValue) -> list[int]:
    return [size for size in found.sizes if size in result.optimum.sets]


def _outcomes(found: Comparison, result: UnderOffValue, many: tuple[Found, ...]) -> np.ndarray:
    """Return outcomes by seed, size and prompt, [S, K, N]."""
    return np.stack(
        [[result.test.correct(own.ranking.at(size)) for size in found.sizes] for own in many]
    )


def _crossing(found: Comparison, result: UnderOffValue, own: Found) -> int:
    aim = found.settings.keep * result.test.full
    return smallest_keeping(
        lambda size: result.test.accuracy(own.ranking.at(size)), found.sizes, aim
    )


def _areas(found: Comparison, result: UnderOffValue, own: Found, *, logs: bool) -> Areas:
    test = result.test
    total = found.layout.total
    sizes = {0, *found.sizes, *shared_sizes(total).values()}
    if logs:
        full = float(test.full_log_probability_N.mean())
        value = {k: float(test.log_probability(own.ranking.at(k)).mean()) for k in sizes}
        return areas(value, full, total)
    return areas({k: test.accuracy(own.ranking.at(k)) for k in sizes}, test.full, total)


def _mean_jaccard(sets: list[HeadSet]) -> float:
    pairs = [jaccard(a, b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
    return sum(pairs) / len(pairs) if pairs else 1.0


def jaccard(first: HeadSet, second: HeadSet) -> float:
    """Return shared heads over all heads of either; 1 for two empty sets."""
    a, b = set(first), set(second)
    return len(a & b) / len(a | b) if a | b else 1.0
