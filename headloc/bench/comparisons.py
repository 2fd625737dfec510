"""The ratios of single training steps: prefix cache, cost of gates, bank against one gate set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headloc.bench.memory import cache_bytes, peak_bytes, weight_bytes
from headloc.bench.result import Bar, Measured
from headloc.bench.settings import BenchSettings
from headloc.bench.steps import Material
from headloc.bench.timing import Arm, Timing, busy, ratio, take_turns
from headloc.bundled import BUNDLED_NAME
from headloc.errors import HeadlocError
from headloc.objectives import InPlace
from headloc.objectives.prompts import Progress

Note = Callable[[str], None]
WIDE = 512
"""Models at least this wide have bars of their own; overheads weigh less there."""

_TOLERANCE = 1e-3
_TOLERANCE_HALF = 5e-2
_GRADIENT_HALF = 0.2
"""A gradient is a sum of many half-precision numbers that nearly cancel."""

First = tuple[Tensor, Tensor]
"""Loss and gradient of a first step."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How arms are timed in this run.

    Attributes:
        settings: repetitions and length of a turn.
        threads: threads that torch computes with on the CPU.
        note: writes a line for the user.
    """

    settings: BenchSettings
    threads: int
    note: Note

    def time(
        self,
        made: Material,
        arms: Mapping[str, Arm],
        progress: Progress,
        *,
        turns: int = 0,
        first: int = 2,
    ) -> dict[str, Timing]:
        """Time arms in turn, and say so when the machine was busy with other things."""
        timings = take_turns(
            arms,
            repetitions=turns or self.settings.repetitions,
            turn_seconds=self.settings.turn_seconds,
            device=made.lm.device,
            first=first,
            progress=progress,
            note=self.note,
        )
        away = busy(timings, self.threads) if made.lm.device.type == "cpu" else None
        if away is not None and away > 0.1:
            self.note(f"  the machine was busy: {away:.0%} of the time went to other programs")
        return timings


def prefix_cache(made: Material, clock: Clock, progress: Progress) -> list[Measured]:
    """Compare last-token training behind the prefix cache with training by full passes.

    Two forms of full passes: the same gates at the last token, which give the same losses and
    gradients, and gates at every position, the usual gate training.
    """
    if made.prompts.prefix is None:
        clock.note("  skipped: this model cannot run from a prefix cache")
        return []
    everywhere = InPlace("mean", positions="all")
    everywhere.prepare(made.lm, made.task, seed=made.seed, prompts=made.batch_size)
    steps = {
        "prefix_cache": made.step(),
        "full_passes": made.step(cached=False),
        "all_positions": made.step(cached=False, objective=everywhere),
    }
    firsts = {name: step.first_gradient() for name, step in steps.items()}
    arms = ("prefix_cache", "full_passes")
    gap = check_same(made, arms, firsts["prefix_cache"], firsts["full_passes"])
    timings = clock.time(made, steps, progress)
    columns = made.prompts.batch.prompt_columns
    fast, seed = timings["prefix_cache"], clock.settings.seed
    says = "a training step by full passes over one behind the prefix cache, "
    shared: dict[str, Any] = {
        "losses_of_first_step": {name: float(loss) for name, (loss, _) in firsts.items()},
        "gradient_difference": gap,
        **sizes(made),
    }
    return [
        Measured.of_times(
            name,
            ratio(timings[arm], fast, seed),
            says + what,
            {arm: timings[arm], "prefix_cache": fast},
            _prefix_bar(made, columns),
            **shared,
        )
        for name, arm, what in (
            ("prefix_cache", "full_passes", "the same gates at the last token"),
            ("prefix_cache/all_positions", "all_positions", "gates at every position"),
        )
    ]


def gate_overhead(made: Material, clock: Clock, progress: Progress) -> list[Measured]:
    """Compare a gated step with the bare model's forward and backward on the same tokens."""
    found: list[Measured] = []
    kinds = [("gate_overhead", True), ("gate_overhead/full_passes", False)]
    arms: dict[str, Arm] = {}
    for name, cached in kinds:
        if cached and made.prompts.prefix is None:
            continue
        arms[f"{name}/gated"] = made.step(cached=cached)
        arms[f"{name}/bare"] = made.bare_step(cached=cached)
    timings = clock.time(made, arms, progress)
    bar = Bar("at most", 1.10) if made.lm.width >= WIDE else None
    for name, cached in kinds:
        if f"{name}/gated" not in timings:
            continue
        gated, bare = timings[f"{name}/gated"], timings[f"{name}/bare"]
        where = "the last token behind the prefix cache" if cached else "all tokens"
        says = f"a gated training step over the bare model's forward and backward, {where}"
        own = {"gated": gated, "bare": bare}
        value = ratio(gated, bare, clock.settings.seed)
        found.append(Measured.of_times(name, value, says, own, bar, **sizes(made)))
    return found


def bank(made: Material, clock: Clock, progress: Progress) -> list[Measured]:
    """Compare a bank of gate sets with one gate set, in time and in peak memory.

    The gate set that runs alone is the first of the bank, and must get the same gradient there.
    """
    number = clock.settings.bank
    one, many = made.step(), made.bank_step(number)
    (_, alone), (_, among) = one.first_gradient(), many.first_gradient()
    no_loss = torch.zeros(())
    gap = check_same(made, ("one", "bank"), (no_loss, alone), (no_loss, among))
    timings = clock.time(made, {"one": one, "bank": many}, progress)
    shared = {
        "gate_sets": number,
        "branches_of_one_row": many.module.runner.branched,
        "gradient_difference": gap,
        **sizes(made),
    }
    tokens = made.batch_size * made.prompts.batch.target_BJ.shape[1]
    seconds = ratio(timings["bank"], timings["one"], clock.settings.seed)
    says = f"a step of {number} gate sets over a step of one ({number}x the tokens)"
    memory, inputs = _bank_memory(made, one, many)
    return [
        Measured.of_times(
            f"bank{number}_time",
            seconds,
            says,
            timings,
            tokens_of_a_step={"one": tokens, "bank": number * tokens},
            **shared,
        ),
        Measured(
            f"bank{number}_memory",
            memory,
            f"peak memory beside the weights of {number} gate sets over that of one",
            inputs={**inputs, **shared},
        ),
    ]


def _bank_memory(made: Material, one: Arm, many: Arm) -> tuple[float, dict[str, Any]]:
    """Return the ratio of peak memories, prefix cache included, and what it is made of."""
    device, stored = made.lm.device, _stored(made)
    peaks = {"one": peak_bytes(one, device), "bank": peak_bytes(many, device)}
    caches = {"one": cache_bytes(made.lm.model, one), "bank": cache_bytes(made.lm.model, many)}
    inputs = {
        "bytes_of_stored_prefixes": stored,
        "peak_bytes_of_a_step": peaks,
        "cache_bytes_of_a_step": caches,
        "ratio_of_cache_bytes": caches["bank"] / max(1, caches["one"]),
        "ratio_of_step_peaks": peaks["bank"] / peaks["one"],
        "bytes_of_weights": weight_bytes(made.lm.model),
    }
    return (stored + peaks["bank"]) / (stored + peaks["one"]), inputs


def sizes(made: Material) -> dict[str, Any]:
    """Return the sizes that a ratio depends on."""
    batch = made.prompts.batch
    return {
        "prompt_tokens": batch.prompt_columns,
        "answer_tokens": batch.target_BJ.shape[1],
        "batch_size": made.batch_size,
        "prompts": len(made.prompts),
        "width": made.lm.width,
        "heads": made.lm.layout.total,
    }


def check_same(made: Material, arms: tuple[str, str], one: First, other: First) -> float:
    """Make sure that two arms do the same work: the same loss, and the same gradient to the gates.

    Args:
        made: the model that runs.
        arms: their names.
        one, other: loss and flat gradient of their first steps.

    Returns:
        The norm of the difference of the gradients, relative to that of the second.

    Raises:
        HeadlocError: when losses or gradients differ by more than rounding.
    """
    half = made.lm.dtype in (torch.bfloat16, torch.float16)
    loss = _relative(one[0], other[0])
    gradient = _relative(one[1], other[1])
    limits = (_TOLERANCE_HALF, _GRADIENT_HALF) if half else (_TOLERANCE, _TOLERANCE)
    # Written so that a NaN is a difference.
    if not (loss <= limits[0] and gradient <= limits[1]):
        raise HeadlocError(
            f"{arms[0]} and {arms[1]} should compute the same, but their first losses differ by "
            f"{loss:.2g} and the gradients by {gradient:.2g} (relative), so their times cannot be "
            "compared. This is a fault of headloc: please report the model and the command."
        )
    return gradient


def _relative(one: Tensor, other: Tensor) -> float:
    one, other = one.double(), other.double()
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


def memory_of(made: Material, step: Arm) -> int:
    """Return the bytes of the stored prefixes and of a step's peak, together."""
    return _stored(made) + peak_bytes(step, made.lm.device)


def _stored(made: Material) -> int:
    return 0 if made.prompts.prefix is None else made.prompts.prefix.nbytes


def _prefix_bar(made: Material, columns: int) -> Bar | None:
    if made.lm.source.name == BUNDLED_NAME:
        return Bar("at least", 8.0)
    return Bar("at least", 0.6 * columns) if made.lm.width >= WIDE else None
