"""Bootstrap intervals of many figures over the same prompts, all paired.

The figures are those of `headloc.evaluation.intervals.bootstrap`, number for number; the resamples
are drawn once for all of them.

Shapes: N prompts, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import RESAMPLES, Estimate
from headloc.randomness import stream

Array = NDArray[np.float64]


class Resamples:
    """Resamples of N prompts."""

    def __init__(self, n: int, seed: int, resamples: int = RESAMPLES) -> None:
        """Draw them.

        Args:
            n: number of prompts N.
            seed: seed of the run; the resamples have the stream that all intervals have.
            resamples: number of resamples R.
        """
        drawn_RN = stream(seed, "bootstrap").multinomial(n, np.full(n, 1 / n), size=resamples)
        self._weight_NR = drawn_RN.T / n
        self.n = n

    def mean(self, sample_N: NDArray[np.generic]) -> Estimate:
        """Return the mean of a sample."""
        return self.of(lambda mean: mean, sample_N)

    def ratio(self, top_N: NDArray[np.generic], bottom_N: NDArray[np.generic]) -> Estimate:
        """Return the mean of one sample over the mean of another, NaN where that is 0."""
        return self.of(_ratio, top_N, bottom_N)

    def of(self, statistic: Callable[..., Array], *samples: NDArray[np.generic]) -> Estimate:
        """Return a statistic of the means of paired samples.

        Args:
            statistic: takes one array of means per sample (elementwise) and returns the figure.
            samples: arrays [N] over the same prompts.
        """
        values_SN = np.stack([np.asarray(sample, dtype=np.float64) for sample in samples])
        found_R = statistic(*(values_SN @ self._weight_NR))
        point = float(statistic(*values_SN.mean(1)[:, None])[0])
        if not np.isfinite(found_R).any():
            return Estimate(point, float("nan"), float("nan"), self.n)
        low, high = np.nanpercentile(found_R, (2.5, 97.5))
        return Estimate(point, float(low), float(high), self.n)


def _ratio(top: Array, bottom: Array) -> Array:
    return top / np.where(np.abs(bottom) < 1e-12, np.nan, bottom)
