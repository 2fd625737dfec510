"""Everything that repeats a prompt, against its one-example-at-a-time form.

Activation patching over all heads, the dose scan, the search over subsets and random controls all
run the same prompt under many edits; headloc runs the edits as branches of one row.  Both forms
must give the same figures, or no ratio is told.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from headloc.bench.comparisons import Clock, sizes
from headloc.bench.one_at_a_time import Sizes, pairs
from headloc.bench.result import Bar, Measured
from headloc.bench.steps import Material
from headloc.bench.timing import ratio
from headloc.bundled import BUNDLED_NAME
from headloc.errors import HeadlocError
from headloc.stages import Stages

_LEAST = 20.0
_TURNS = 3
"""Turns of either form: one turn of the slow form takes seconds to minutes."""

_TOLERANCE = 1e-3
_TOLERANCE_HALF = 5e-2


def patching(
    made: Material, clock: Clock, stages: Stages, work: Sizes | None = None
) -> list[Measured]:
    """Compare every pair; the first result is the smallest of their ratios.

    Args:
        made: the model with its task.
        clock: how to time.
        stages: shows progress.
        work: how much both forms do.
    """
    found: list[Measured] = []
    bar = Bar("at least", _LEAST) if made.lm.source.name == BUNDLED_NAME else None
    for name, (fast, slow) in pairs(made.lm, made.task, made.seed, work).items():
        with stages(name.replace("_", " ")) as progress:
            results: dict[str, Tensor] = {}
            arms = {
                "branches": partial(_kept, results, "branches", fast),
                "one_at_a_time": partial(_kept, results, "one_at_a_time", slow),
            }
            # One call of the slow form is enough to warm up: it takes seconds to minutes.
            turns = min(_TURNS, clock.settings.repetitions)
            timings = clock.time(made, arms, progress, turns=turns, first=1)
            gap = largest_gap(made, name, results["branches"], results["one_at_a_time"])
        value = ratio(timings["one_at_a_time"], timings["branches"], clock.settings.seed)
        says = f"{name.replace('_', ' ')}: one example at a time over branches"
        more = {"largest_difference": gap, **sizes(made)}
        found.append(Measured.of_times(f"patching/{name}", value, says, timings, bar, **more))
    if not found:
        return []
    least = min(found, key=lambda measured: measured.value)
    inputs = {"smallest_of": {one.name: one.value for one in found}, **sizes(made)}
    says = "the smallest of: " + ", ".join(one.name.removeprefix("patching/") for one in found)
    return [Measured("patching", least.value, says, least.low, least.high, bar, inputs), *found]


def _kept(results: dict[str, Tensor], name: str, form: Callable[[], Tensor]) -> None:
    results[name] = form()


def largest_gap(made: Material, name: str, one: Tensor, other: Tensor) -> float:
    """Return how far the figures of the two forms are apart.

    Raises:
        HeadlocError: when it is more than rounding.
    """
    one, other = one.double().cpu(), other.double().cpu()
    half = made.lm.dtype in (torch.bfloat16, torch.float16)
    gap = float((one - other).abs().max()) if one.shape == other.shape else float("inf")
    limit = (_TOLERANCE_HALF if half else _TOLERANCE) * max(1.0, float(other.abs().max()))
    if not gap <= limit:
        raise HeadlocError(
            f"The two forms of {name} should give the same figures, but differ by {gap:.3g}, so "
            "their times cannot be compared. This is a fault of headloc: please report the model "
            "and the command."
        )
    return gap
