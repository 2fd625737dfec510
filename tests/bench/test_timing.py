"""Arms take turns, and a ratio is what the clock says: on a clock that only the arms move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headloc.bench import timing
from headloc.bench.timing import Timing, busy, ratio, take_turns

CPU = torch.device("cpu")


class Clock:
    """A clock that stands still between arms."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def arm(self, seconds: float, share: float = 1.0) -> Callable[[], None]:
        def run() -> None:
            self.wall += seconds
            self.processor += seconds * share

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.wall)
    monkeypatch.setattr(timing.time, "process_time", lambda: made.processor)
    return made


def test_the_ratio_is_that_of_the_arms_whatever_the_calls_of_a_turn(clock: Clock) -> None:
    arms = {"slow": clock.arm(3.0), "fast": clock.arm(0.25)}
    found = take_turns(arms, repetitions=4, turn_seconds=1.0, device=CPU)
    assert (found["slow"].calls, found["fast"].calls) == (1, 4)
    value = ratio(found["slow"], found["fast"], seed=0)
    assert value.value == pytest.approx(12.0)
    assert (value.low, value.high) == pytest.approx((12.0, 12.0))
    assert value.processor == pytest.approx(12.0)
    assert value.turns == 4


def test_arms_take_turns_after_warming_up(clock: Clock) -> None:
    order: list[str] = []

    def named(name: str) -> Callable[[], None]:
        move = clock.arm(1.0)
        return lambda: (order.append(name), move())[1]

    take_turns({n: named(n) for n in "abc"}, repetitions=2, turn_seconds=0.5, device=CPU)
    assert "".join(order) == "aabbcc" + "abc" * 2
    order.clear()
    arms = {n: named(n) for n in "ab"}
    take_turns(arms, repetitions=1, turn_seconds=0.5, device=CPU, first=1)
    assert "".join(order) == "ab" + "ab"


def test_the_time_left_is_told_and_right(clock: Clock) -> None:
    seen: list[tuple[int, int]] = []
    said: list[str] = []
    take_turns(
        {"a": clock.arm(2.0), "b": clock.arm(3.0)},
        repetitions=3,
        turn_seconds=0.0,
        device=CPU,
        progress=lambda done, total: seen.append((done, total)),
        note=said.append,
    )
    done = (2000, 5000, 7000, 10000, 12000, 15000)
    assert seen == [(milliseconds, 15000) for milliseconds in done]
    assert "about 15 s" in said[0]


def test_the_interval_covers_what_turns_vary_by() -> None:
    slow = Timing((2.0, 2.2, 1.8, 2.1, 1.9), (1.0,) * 5, 1)
    fast = Timing((1.0, 1.1, 0.9, 1.0, 1.0), (1.0,) * 5, 1)
    found = ratio(slow, fast, seed=3)
    by_turn = [a / b for a, b in zip(slow.wall, fast.wall, strict=True)]
    assert (found.smallest, found.largest) == (min(by_turn), max(by_turn))
    assert 1.6 <= found.low <= found.value <= found.high <= 2.5
    assert found.low < found.high
    assert found == ratio(slow, fast, seed=3)


def test_a_busy_machine_is_found_out_where_one_thread_computes(clock: Clock) -> None:
    arms = {"a": clock.arm(1.0, share=0.6), "b": clock.arm(1.0, share=0.6)}
    found = take_turns(arms, repetitions=2, turn_seconds=0.0, device=CPU)
    assert busy(found, threads=1) == pytest.approx(0.4)
    assert busy(found, threads=2) is None
