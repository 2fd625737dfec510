"""What a benchmark measures, and how often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from headloc.errors import HeadlocError, suggest

PARTS = (
    "prefix_cache", "gate_overhead", "bank", "scaling", "patching", "top_neurons",
    "head_attention", "localization",
)  # fmt: skip
"""Everything that can be measured, in the order in which it runs."""

USUAL = PARTS[:7]
"""What runs unless parts are named; a whole localization takes minutes to hours."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Sizes of the measurements of single steps.

    Attributes:
        parts: what is measured, of `PARTS`.
        repetitions: turns of every arm; a turn is one or several calls.
        turn_seconds: calls are repeated within a turn until it lasts about this long.
        shots: demonstrations of a prompt.
        prompts: prompts whose prefixes are cached.
        batch_size: prompts of a step (128 in Hu et al. 2025).
        bank: gate sets of the bank that is compared with one.
        scaling_repetitions: turns of every point of a scaling axis.
        seed: everything random follows from it.
    """

    parts: tuple[str, ...] = USUAL
    repetitions: int = 7
    turn_seconds: float = 0.25
    shots: int = 5
    prompts: int = 256
    batch_size: int = 128
    bank: int = 16
    scaling_repetitions: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        _check_parts(self.parts)
        for name in ("repetitions", "shots", "prompts", "batch_size", "scaling_repetitions"):
            _whole(name, getattr(self, name), least=1)
        _whole("bank", self.bank, least=2)
        if not math.isfinite(self.turn_seconds) or self.turn_seconds < 0:
            raise HeadlocError(f"turn_seconds={self.turn_seconds} must be 0 or above.")
        if self.batch_size > self.prompts:
            raise HeadlocError(
                f"batch_size={self.batch_size} is more than prompts={self.prompts}. Raise prompts."
            )


@dataclass(frozen=True, slots=True)
class LocalizationSizes:
    """Sizes of the whole localizations, by default those of Hu et al. 2025.

    Attributes:
        prompts_per_task: few-shot prompts behind the mean of a task.
        train_prompts, selection_prompts, test_prompts, held_out_prompts: as in `DataSettings`.
        batch_size: prompts of a step.
        epochs: 50 epochs of 2,048 prompts in batches of 128 are 800 steps.
        random_sets: random head sets of either control of the verdict.
        weights: penalties of the path; with two seeds each, eight of them are 16 gate sets.
        seeds: gate sets at every penalty.
    """

    prompts_per_task: int = 100
    train_prompts: int = 2048
    selection_prompts: int = 512
    test_prompts: int = 512
    held_out_prompts: int = 512
    batch_size: int = 128
    epochs: int = 50
    random_sets: int = 20
    weights: Sequence[float] = field(default=(0.005, 0.009, 0.016, 0.029, 0.052, 0.093, 0.167, 0.3))
    seeds: int = 2

    def __post_init__(self) -> None:
        for entry in fields(self):
            if entry.name != "weights":
                least = 0 if entry.name == "random_sets" else 1
                _whole(f"localization.{entry.name}", getattr(self, entry.name), least=least)


def _check_parts(parts: Sequence[str]) -> None:
    if not parts:
        raise HeadlocError(f"parts is empty. Name some of: {', '.join(PARTS)}.")
    for part in parts:
        if part not in PARTS:
            raise HeadlocError(f"parts names {part!r}, which is unknown. {suggest(part, PARTS)}")


def _whole(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise HeadlocError(f"{name}={value!r} must be a whole number of at least {least}.")
