"""What is measured of a head's periods.

Shapes: K numbers, F frequencies, r coordinates, q quadratures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.05
BEST, WORST, BEYOND = "best phase", "worst phase", "best phase beyond a cubic"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """R^2 for numbers left out of the fit, its 95 % interval, and its null's 95th percentile."""

    r2: float
    low: float
    high: float
    null_95: float


@dataclass(frozen=True, slots=True)
class Reading:
    """R^2 of one head at one period for one target, with its interval and permutation null.

    Attributes:
        period: the period.
        control: whether it is one that the paper does not report.
        target: cos, sin, best phase, worst phase, or the best phase beyond a cubic in k.
        phase: theta of the target, None beyond a cubic.
        r2: the figure.
        low: lower end of its 95 % interval over the prompts behind the means.
        high: upper end.
        left_out: the same for numbers left out of the fit, None beyond a cubic.
        null_median: median with k shuffled.
        null_95: 95th percentile with k shuffled.
        p: share of shuffles that reach it.
        q: after Benjamini-Hochberg.
    """

    period: float
    control: bool
    target: str
    phase: float | None
    r2: float
    low: float
    high: float
    left_out: LeftOut | None
    null_median: float
    null_95: float
    p: float
    q: float = math.nan

    @property
    def beyond_chance(self) -> bool:
        """Whether shuffled numbers do not reach it, and it holds for numbers left out."""
        held = self.left_out is None or self.left_out.low > 0
        return self.q <= LEVEL and held and self.low > self.null_95


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Power by frequency, raw and with the linear trend in k taken out.

    The limits are the 95th percentiles of the largest power of shuffled k.
    """

    frequencies_F: Array
    power_F: Array
    limit: float
    detrended_F: Array
    detrended_limit: float

    def share(self, period: float) -> float:
        """Return the share of the variance that waves of a period explain, trend taken out."""
        return float(np.interp(1 / period, self.frequencies_F, self.detrended_F))

    def peaks(self) -> list[tuple[float, float]]:
        """Return (period, power) of the local maxima above the limit, trend taken out."""
        power = self.detrended_F
        inner = range(1, len(power) - 1)
        tops = [i for i in inner if power[i] >= power[i - 1] and power[i] > power[i + 1]]
        if power[-1] > power[-2]:
            tops.append(len(power) - 1)
        found = [(1 / self.frequencies_F[i], float(power[i])) for i in tops]
        return sorted((p for p in found if p[1] > self.detrended_limit), key=lambda p: -p[1])


@dataclass(frozen=True, slots=True)
class HeadPeriods:
    """Everything about one head.

    Attributes:
        head: its name.
        rows: readings of every period and target.
        trends: share of the variance that polynomials in k of degree 1, 2 and 3 explain.
        spectrum: the free spectrum.
        circles: by period, cos and sin predicted for every k from the other k, [K, q].
        components_Kr: coordinates.
    """

    head: str
    rows: tuple[Reading, ...]
    trends: tuple[float, ...]
    spectrum: Spectrum
    circles: Mapping[float, Array] = field(default_factory=dict)
    components_Kr: Array = field(default_factory=lambda: np.zeros((0, 0)))

    def with_q(self, values: Sequence[float]) -> HeadPeriods:
        """Return the head with q-values."""
        rows = tuple(replace(row, q=q) for row, q in zip(self.rows, values, strict=True))
        return replace(self, rows=rows)

    def of(self, target: str) -> tuple[Reading, ...]:
        """Return the readings of one target, period by period."""
        return tuple(row for row in self.rows if row.target == target)

    def strength(self) -> float:
        """Return the mean left-out R^2 of the periods that are no controls."""
        own = [row.left_out.r2 for row in self.of(BEST) if row.left_out and not row.control]
        return float(np.mean(own)) if own else 0.0
