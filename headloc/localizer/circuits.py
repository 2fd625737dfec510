"""From what a run found to its circuit, and the figures of its size.

Shapes: A heads in flat order, M gated feed-forward blocks behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from headloc.circuit import Circuit
from headloc.circuit.feed_forward import FeedForward
from headloc.components import Components
from headloc.localizer.choice import Found
from headloc.localizer.history import GateHistory
from headloc.localizer.module import OPEN
from headloc.localizer.parts import Parts


def make_circuit(parts: Parts, found: Found, seed: int, metrics: Mapping[str, float]) -> Circuit:
    """Return the chosen heads, and feed-forward blocks where these were gated, as a circuit."""
    components = parts.objective.components(parts.lm)
    return Circuit(
        heads=components.heads_of(found.heads),
        gates=components.split(found.gates)[0].clone(),
        scores=components.split(found.scores)[0].clone(),
        model=parts.lm.source.to_dict(),
        objective=parts.objective.describe(),
        task=parts.task.describe(),
        selection=found.selection,
        seed=seed,
        metrics=dict(metrics),
        tensors=parts.objective.tensors(),
        feed_forward=_feed_forward(components, found),
    )


def _feed_forward(components: Components, found: Found) -> FeedForward | None:
    if not components.mlps:
        return None
    return FeedForward(
        kept=components.mlps_of(found.heads),
        layers=components.mlps,
        gates=components.split(found.gates)[1].clone(),
        scores=components.split(found.scores)[1].clone(),
    )


def size_metrics(parts: Parts, found: Found, history: GateHistory) -> dict[str, float]:
    """Return how many heads were found, and how many feed-forward blocks where these were gated.

    `gates/requested` counts both; without feed-forward gates it is `heads/requested`.
    """
    components = parts.objective.components(parts.lm)
    metrics: dict[str, float] = _counts("heads", len(components.heads_of(found.heads)),
                                        components.layout.total)  # fmt: skip
    if found.path is None:
        heads_A, mlps_M = components.split(found.gates)
        metrics["heads/open_hard"] = int((heads_A > OPEN).sum())
        expected = history.curves["gates/open_expected"][-1]
        metrics["gates/open_expected" if components.mlps else "heads/open_expected"] = expected
        if components.mlps:
            metrics["mlps/open_hard"] = int((mlps_M > OPEN).sum())
    if components.mlps:
        kept = len(components.mlps_of(found.heads))
        metrics |= _counts("mlps", kept, len(components.mlps))
    if parts.sparsity.target is not None:
        key = "gates/requested" if components.mlps else "heads/requested"
        metrics[key] = parts.sparsity.target
    return {key: value for key, value in metrics.items() if not math.isnan(value)}


def _counts(what: str, count: int, total: int) -> dict[str, float]:
    return {f"{what}/count": count, f"{what}/total": total, f"{what}/share": count / total}
