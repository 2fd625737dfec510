"""The figures of a comparison as JSON: one entry per off-value and method, and the bar."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from headloc.compare.records import Summary, optimum_crossing, summaries
from headloc.compare.run import Comparison


def summary(found: Comparison) -> list[dict[str, Any]]:
    """Return the figures by off-value."""
    entries = []
    for result in found.results:
        rows = summaries(found, result)
        entries.append(
            {
                "off_value": result.off_value,
                "full": result.test.full,
                "all_closed": result.test.accuracy(()),
                "n": len(result.test.full_N),
                "optimum": result.optimum.search,
                "optimum_smallest": optimum_crossing(found, result),
                "keep": found.settings.keep,
                "optimum_cost": result.optimum_cost,
                "shared_cost": result.shared_cost,
                "patching_cost": result.patching_cost,
                "methods": [_entry(row) for row in rows],
            }
        )
    return entries


def _entry(row: Summary) -> dict[str, Any]:
    size, worst = row.to_optimum.worst
    return {
        "method": row.method,
        "chosen_sizes": list(row.sizes),
        "accuracy_kept": list(row.kept),
        "smallest_sizes": list(row.crossing),
        "accuracy": [asdict(own) for own in row.areas],
        "log_probability": [asdict(own) for own in row.log_areas],
        "cost_forward_equivalents": row.cost,
        "overlap_of_seeds": row.overlap,
        "largest_gap_to_optimum": {"size": size, "gap": -worst},
        "first_is_below_at": None if row.against is None else row.against.below,
        "first_is_below_at_by_band": None if row.against is None else row.against.below_band,
        "largest_shortfall_of_first": None
        if row.against is None
        else {"size": row.against.worst[0], "difference": row.against.worst[1]},
    }
