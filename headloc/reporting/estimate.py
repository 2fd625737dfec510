"""How long a step still takes, from how it has gone so far.

The rate is that of the later half of what is done, so that a slow start (loading kernels, filling
caches) is forgotten; nothing is claimed from a single report or within the first second.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_FIRST_SECONDS = 1.0


class TimeLeft:
    """The time left of a step that reports (done, in all).

    Args:
        clock: seconds that only move forwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = 0
        self._reports = [(clock(), 0)]

    def report(self, done: int, total: int) -> None:
        """Take down how far the step is; one that starts over is timed anew."""
        now = self._clock()
        if done < self._reports[-1][1] or (self._total and total != self._total):
            self._reports = [(now, 0 if done < self._reports[-1][1] else done)]
        self._total = total
        if done > self._reports[-1][1]:
            self._reports.append((now, done))

    def seconds(self) -> float | None:
        """Return the seconds left, None where that is anybody's guess."""
        now, (latest, done) = self._clock(), self._reports[-1]
        if len(self._reports) < 3 or latest - self._reports[0][0] < _FIRST_SECONDS:
            return None
        middle = (self._reports[0][1] + done) / 2
        then, before = max(entry for entry in self._reports if entry[1] <= middle)
        if done == before or latest == then:
            return None
        left = (self._total - done) * (latest - then) / (done - before)
        # What has gone by since the last report counts as well.
        return max(0.0, left - (now - latest))

    def text(self) -> str:
        """Return the estimate as text, such as `about 3 min left`; empty where there is none."""
        seconds = self.seconds()
        return "" if seconds is None or self._reports[-1][1] >= self._total else in_words(seconds)


def in_words(seconds: float) -> str:
    """Return a time left, rounded to what an estimate can promise."""
    if seconds < 10:
        return "a few seconds left"
    if seconds < 55:
        return f"about {round(seconds, -1):.0f} s left"
    if seconds < 55 * 60:
        return f"about {max(1, round(seconds / 60))} min left"
    return f"about {seconds / 3600:.1f} h left"
