"""The time left: exact for a steady step, blind to a slow start, silent where it would guess."""

from __future__ import annotations

import pytest

from headloc.reporting.console import LINE_SECONDS, Console, ProgressLines
from headloc.reporting.estimate import TimeLeft, in_words


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def after(times: list[float], total: int) -> TimeLeft:
    """An estimate after one report for each of some durations."""
    clock = Clock()
    estimate = TimeLeft(clock)
    for done, seconds in enumerate(times, start=1):
        clock.now += seconds
        estimate.report(done, total)
    return estimate


@pytest.mark.parametrize("seconds", [0.5, 4.0, 100.0])
@pytest.mark.parametrize("done", [4, 11, 40])
def test_a_steady_step_is_told_exactly(seconds: float, done: int) -> None:
    assert after([seconds] * done, 50).seconds() == pytest.approx(seconds * (50 - done))


def test_a_slow_start_is_forgotten() -> None:
    found = after([60.0, *[1.0] * 20], 50).seconds()
    assert found == pytest.approx(29.0)


def test_time_that_goes_by_without_a_report_counts() -> None:
    clock = Clock()
    estimate = TimeLeft(clock)
    for done in range(1, 6):
        clock.now += 10
        estimate.report(done, 10)
    clock.now += 7
    assert estimate.seconds() == pytest.approx(43.0)
    clock.now += 1000
    assert estimate.seconds() == 0.0


@pytest.mark.parametrize("times", [[], [5.0], [0.1, 0.1, 0.1]])
def test_nothing_is_claimed_from_next_to_nothing(times: list[float]) -> None:
    assert after(times, 10).seconds() is None
    assert after(times, 10).text() == ""


def test_a_step_that_starts_over_is_timed_anew() -> None:
    clock = Clock()
    estimate = TimeLeft(clock)
    for total, seconds in ((10, 100.0), (20, 2.0)):
        for done in range(1, 11):
            clock.now += seconds
            estimate.report(done, total)
    assert estimate.seconds() == pytest.approx(20.0)


def test_a_finished_step_says_nothing() -> None:
    assert after([5.0] * 10, 10).text() == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3, "a few seconds"), (44, "about 40 s"), (58, "about 1 min"), (840, "about 14 min"),
     (9000, "about 2.5 h")],
)  # fmt: skip
def test_estimates_are_rounded_to_what_they_can_promise(seconds: float, words: str) -> None:
    assert in_words(seconds) == f"{words} left"


def test_lines_are_sparse_and_tell_share_and_time_left() -> None:
    clock, said = Clock(), []
    lines = ProgressLines("means", said.append, clock)
    for done in range(1, 101):
        clock.now += 1.0
        lines(done, 100)
    assert len(said) == 100 // LINE_SECONDS
    assert said[0] == "  means: 15%, about 1 min left"
    assert all(text.startswith("  means: ") for text in said)


def test_a_quiet_console_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    with console.stage("means") as progress:
        progress(1, 2)
    console.say("a")
    console.note("b")
    options = {"enable_progress_bar": True}
    assert console.callbacks(options) == []
    assert options == {"enable_progress_bar": False}
    assert capfd.readouterr() == ("", "")
