"""The flat figures of a path, as they stand in metrics.json.

    path/members                        gate sets in the bank
    path/penalties, path/seeds          penalties, and gate sets at each
    path/accuracy_full                  the untouched model on the selection prompts
    path/keep                           share of it that the recommended circuit had to keep
    path/recommended/heads              heads of the recommended circuit
    path/recommended/accuracy           its accuracy on the selection prompts
    path/recommended/kept               the same as a share of path/accuracy_full
    path/recommended/stability          smallest share of the seeds that choose one of its heads
    path/elbow/heads, /accuracy         the elbow of the curve
    path/penalty/WEIGHT/heads           mean number of heads over seeds, with /smallest and /largest
    path/penalty/WEIGHT/accuracy        mean accuracy over seeds, with /smallest and /largest
    path/penalty/WEIGHT/jaccard         mean overlap of two seeds
    path/penalty/WEIGHT/stable          heads that enough of the seeds emit
    path/size/N/accuracy                the averaged ranking cut at N heads
    path/size/N/accuracy/smallest, /largest   the rankings of single seeds, cut at N heads

Where feed-forward blocks are gated as well, heads here are heads and blocks together.

Figures of the recommended circuit on fresh prompts stand under the names of every run
(`accuracy/circuit`, `held_out/accuracy/circuit`, `faithfulness`).
"""

from __future__ import annotations

from headloc.bank.result import CurvePoint, PathResult, PenaltyPoint, Spread


def path_metrics(path: PathResult) -> dict[str, float]:
    """Return the figures named in the docstring of this module."""
    chosen, bend = path.recommended, path.curve[path.elbow]
    metrics: dict[str, float] = {
        "path/members": len(path.gate_sets),
        "path/penalties": len(path.weights),
        "path/seeds": path.seeds,
        "path/accuracy_full": path.full,
        "path/keep": path.keep,
        "path/recommended/heads": len(chosen.heads),
        "path/recommended/accuracy": chosen.accuracy,
        "path/recommended/kept": chosen.accuracy / path.full,
        "path/recommended/stability": chosen.stability,
        "path/elbow/heads": bend.size,
        "path/elbow/accuracy": bend.accuracy,
    }
    for penalty in path.penalties:
        metrics |= _penalty(penalty)
    for point in path.curve:
        metrics |= _point(point)
    return metrics


def _penalty(point: PenaltyPoint) -> dict[str, float]:
    key = f"path/penalty/{point.weight!r}"
    return {
        **_spread(f"{key}/heads", point.size),
        **_spread(f"{key}/accuracy", point.accuracy),
        f"{key}/jaccard": point.jaccard,
        f"{key}/stable": len(point.stable),
    }


def _point(point: CurvePoint) -> dict[str, float]:
    key = f"path/size/{point.size}/accuracy"
    return {**_spread(key, point.seeds), key: point.accuracy}


def _spread(key: str, spread: Spread) -> dict[str, float]:
    return {
        key: spread.mean,
        f"{key}/smallest": spread.smallest,
        f"{key}/largest": spread.largest,
    }
