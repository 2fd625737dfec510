"""Bootstrap intervals over prompts.

Every interval is the 2.5 to 97.5 percentile range over resamples of the prompts, paired where a
figure combines several outcomes of the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headloc.randomness import stream

RESAMPLES = 2000
_LEVELS = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval and sample size."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_metrics(self, key: str) -> dict[str, float]:
        """Return the flat entries KEY, KEY/low, KEY/high and KEY/n."""
        return {
            key: self.value,
            f"{key}/low": self.low,
            f"{key}/high": self.high,
            f"{key}/n": self.n,
        }


def bootstrap(
    statistic: Callable[..., NDArray[np.float64]],
    *samples: NDArray[np.float64],
    seed: int,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Bootstrap a statistic of the means of paired samples.

    Args:
        statistic: takes one array of means per sample (elementwise) and returns the figure.
        samples: float arrays [N] over the same N prompts.
        seed: seed of the run; the resamples have their own stream.
        resamples: number of resamples.
    """
    values_SN = np.stack([np.asarray(sample, dtype=np.float64) for sample in samples])
    n = values_SN.shape[1]
    # How often each prompt is drawn in a resample is multinomial: one matrix product per sample.
    counts_RN = stream(seed, "bootstrap").multinomial(n, np.full(n, 1 / n), size=resamples)
    means_SR = values_SN @ counts_RN.T / n
    # A statistic may be undefined (NaN) in a few resamples.
    low, high = np.nanpercentile(statistic(*means_SR), _LEVELS)
    point = float(statistic(*values_SN.mean(1)[:, None])[0])
    return Estimate(point, float(low), float(high), n)


def mean_interval(sample: NDArray[np.float64] | NDArray[np.bool_], seed: int) -> Estimate:
    """Return the mean of one sample [N] with its interval."""
    return bootstrap(lambda mean: mean, np.asarray(sample, dtype=np.float64), seed=seed)


def faithfulness(
    circuit: NDArray[np.float64],
    off: NDArray[np.float64],
    full: NDArray[np.float64],
    seed: int,
    smallest_denominator: float = 0.02,
) -> Estimate | None:
    """Return (m(circuit) - m(off)) / (m(full) - m(off)); None where it is undefined.

    Numerator and denominator are averaged over prompts before dividing.  A denominator that is near
    zero, or whose interval reaches zero, means that the heads may not matter for the task at all;
    then there is nothing to divide by.
    """
    gap = bootstrap(lambda full, off: full - off, full, off, seed=seed)
    if gap.value < smallest_denominator or gap.low <= 0:
        return None
    return bootstrap(_ratio, circuit, off, full, seed=seed)


def _ratio(
    circuit: NDArray[np.float64], off: NDArray[np.float64], full: NDArray[np.float64]
) -> NDArray[np.float64]:
    gap = full - off
    return (circuit - off) / np.where(np.abs(gap) < 1e-9, np.nan, gap)
