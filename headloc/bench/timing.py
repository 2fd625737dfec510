"""Time several ways of doing the same work, taking turns: A B A B ...

A ratio of two arms of one run means something even on a busy machine, because both arms meet the
same neighbours; two bare times of different runs do not.  Beside the wall clock the processor time
of this process is kept: where one thread computes, it tells how long the machine was away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from headloc.objectives.prompts import Progress
from headloc.randomness import stream

if TYPE_CHECKING:
    import torch

Arm = Callable[[], object]
"""One way of doing the work; what it returns is not looked at."""

_MOST_CALLS = 200
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call of one arm, one entry per turn.

    Attributes:
        wall: by the clock.
        processor: of this process, all threads together.
        calls: calls of a turn.
    """

    wall: tuple[float, ...]
    processor: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """Median seconds per call by the clock."""
        return median(self.wall)

    def to_dict(self) -> dict[str, object]:
        """Return everything, json-able."""
        return {
            "seconds": self.median,
            "seconds_smallest": min(self.wall),
            "seconds_largest": max(self.wall),
            "seconds_by_turn": list(self.wall),
            "processor_seconds": median(self.processor),
            "calls_per_turn": self.calls,
            "turns": len(self.wall),
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of one arm over that of another.

    Attributes:
        value: ratio of the medians by the clock.
        low, high: 95 % interval, turns resampled in pairs.
        smallest, largest: ratio of the turns that are closest together and furthest apart.
        processor: ratio of the medians of processor time.
        turns: turns of either arm.
    """

    value: float
    low: float
    high: float
    smallest: float
    largest: float
    processor: float
    turns: int


def take_turns(
    arms: Mapping[str, Arm],
    *,
    repetitions: int,
    turn_seconds: float,
    device: torch.device,
    first: int = 2,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Time the arms in turn; the first calls of each warm up and are not counted.

    Args:
        arms: what to time, by name.
        repetitions: turns of every arm.
        turn_seconds: an arm is called again within its turn until this long has passed.
        device: where it runs; the clock waits for an accelerator.
        first: calls of every arm before the turns. By default a second one tells how long a call
            takes: the first also pays for allocation and for choosing kernels.
        progress: called after every arm with (milliseconds done, milliseconds in all), both as
            long as the calls before the turns took.
        note: told once, after warming up, how long it will take.
    """
    wait = _waiting(device)
    warm = {name: [_once(arm, 1, wait)[0] for _ in range(first)][-1] for name, arm in arms.items()}
    calls = {name: _calls(turn_seconds, seconds) for name, seconds in warm.items()}
    expected = {name: warm[name] * calls[name] for name in arms}
    total = repetitions * sum(expected.values())
    if note is not None:
        note(f"  {repetitions} turns of {len(arms)} arms, about {total:.0f} s")
    done = 0.0
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(repetitions):
        for name, arm in arms.items():
            found[name].append(_once(arm, calls[name], wait))
            done += expected[name]
            if progress is not None:
                progress(round(1000 * done), round(1000 * total))
    return {
        name: Timing(tuple(wall for wall, _ in own), tuple(cpu for _, cpu in own), calls[name])
        for name, own in found.items()
    }


def ratio(slow: Timing, fast: Timing, seed: int) -> Ratio:
    """Return the time of `slow` over that of `fast`, with an interval over turns."""
    over, under = np.array(slow.wall), np.array(fast.wall)
    picked = stream(seed, "bench", "interval").integers(len(over), size=(_RESAMPLES, len(over)))
    resampled = np.median(over[picked], axis=1) / np.median(under[picked], axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    # A clock that is too coarse for the arm tells nothing.
    spent = median(fast.processor)
    processor = median(slow.processor) / spent if spent > 0 else math.inf
    by_turn = over / under
    return Ratio(
        slow.median / fast.median,
        float(low),
        float(high),
        float(by_turn.min()),
        float(by_turn.max()),
        processor,
        len(over),
    )


def busy(timings: Mapping[str, Timing], threads: int) -> float | None:
    """Return the share of the time in which the processor served others, if one thread computes."""
    if threads != 1:
        return None
    wall = sum(sum(own.wall) * own.calls for own in timings.values())
    processor = sum(sum(own.processor) * own.calls for own in timings.values())
    return max(0.0, 1.0 - processor / wall)


def _once(arm: Arm, calls: int, wait: Callable[[], None]) -> tuple[float, float]:
    wait()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(calls):
        arm()
    wait()
    return (
        (time.perf_counter() - wall) / calls,
        (time.process_time() - processor) / calls,
    )


def _calls(turn_seconds: float, seconds: float) -> int:
    return max(1, min(_MOST_CALLS, math.ceil(turn_seconds / max(seconds, 1e-9))))


def _waiting(device: torch.device) -> Callable[[], None]:
    import torch

    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None
