"""Integrated measures of an accuracy-against-heads curve, and paired comparison of two curves.

    f(k)  = (m(C_k) - m(none)) / (m(full) - m(none)),       m accuracy or log p(answer)
    CPR   = area under f over the share of heads kept       (MIB benchmark, arXiv 2504.13151)
    CMD   = area under |1 - f|                              (0 is best)
    area over log k of the accuracy                         (weighs small sets)

CPR and CMD take MIB's shares .1, .2, .5, 1, 2, 5, 10, 20, 50 and 100 %, each rounded down to a
number of heads, and trapezoids between them.  Both follow the method's own signed order; MIB takes
the absolute order for CMD.

Shapes: S seeds, K sizes, N prompts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import RESAMPLES
from headloc.randomness import stream

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's shares of components that are kept."""


def shared_sizes(heads: int) -> dict[float, int]:
    """Return the number of heads at each of MIB's shares."""
    return {share: math.floor(share * heads + 1e-9) for share in SHARES}


@dataclass(frozen=True, slots=True)
class Areas:
    """Integrated measures of one curve; None where the denominator of f is near zero."""

    cpr: float | None
    cmd: float | None
    log_area: float


def areas(value: Mapping[int, float], full: float, heads: int) -> Areas:
    """Integrate a curve.

    Args:
        value: the metric by size; all sizes of `shared_sizes`, and 0.
        full: the metric of the untouched model.
        heads: number of heads A.
    """
    sizes = shared_sizes(heads)
    log_area = _log_area(value, heads)
    gap = full - value[0]
    if abs(gap) < 0.02:
        return Areas(None, None, log_area)
    f = np.array([(value[size] - value[0]) / gap for size in sizes.values()])
    x = np.array(list(sizes))
    return Areas(float(np.trapezoid(f, x)), float(np.trapezoid(np.abs(1.0 - f), x)), log_area)


def _log_area(value: Mapping[int, float], heads: int) -> float:
    """Return the mean of the metric over log k, from one head to all."""
    sizes = sorted(size for size in value if size >= 1)
    if heads == 1:
        return value[sizes[-1]]
    curve = np.array([value[size] for size in sizes])
    return float(np.trapezoid(curve, np.log(sizes)) / math.log(heads))


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of two curves by size, mean over seeds.

    Attributes:
        sizes: the sizes.
        mean: first minus second.
        low, high: 95 % interval at each size alone, bootstrap over prompts.
        band_low: lower end of the 95 % band that holds at all sizes together.
    """

    sizes: tuple[int, ...]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    band_low: NDArray[np.float64]
    band_high: NDArray[np.float64]

    @property
    def below(self) -> list[int]:
        """Sizes at which the first curve is below the second, each interval taken alone."""
        return [size for size, high in zip(self.sizes, self.high, strict=True) if high < -1e-12]

    @property
    def below_band(self) -> list[int]:
        """Sizes at which it is below by the band that holds at all sizes together."""
        pairs = zip(self.sizes, self.band_high, strict=True)
        return [size for size, high in pairs if high < -1e-12]

    @property
    def worst(self) -> tuple[int, float]:
        """The size of the largest shortfall, and the difference there."""
        position = int(self.mean.argmin())
        return self.sizes[position], float(self.mean[position])


def difference(
    first_SKN: NDArray[np.float64],
    second_SKN: NDArray[np.float64],
    sizes: Sequence[int],
    seed: int,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compare two curves on the same prompts.

    Outcomes are averaged over seeds and the prompts resampled, the same for both curves and all
    sizes.  The band is the bootstrap's largest studentised deviation over sizes.

    Args:
        first_SKN: outcomes of one method, by seed, size and prompt.
        second_SKN: outcomes of the other.
        sizes: the K sizes.
        seed: seed of the resamples.
        resamples: how many.
    """
    delta_KN = first_SKN.mean(0) - second_SKN.mean(0)
    n = delta_KN.shape[1]
    counts_RN = stream(seed, "bootstrap").multinomial(n, np.full(n, 1 / n), size=resamples)
    means_KR = delta_KN @ counts_RN.T / n
    mean = delta_KN.mean(1)
    low, high = np.percentile(means_KR, (2.5, 97.5), axis=1)
    spread = means_KR.std(1)
    deviation_KR = np.abs(means_KR - mean[:, None]) / np.where(spread > 0, spread, np.inf)[:, None]
    reach = float(np.percentile(deviation_KR.max(0), 95)) * spread
    return Difference(tuple(sizes), mean, low, high, mean - reach, mean + reach)


def smallest_keeping(accuracy: Callable[[int], float], sizes: Sequence[int], aim: float) -> int:
    """Return the smallest size whose accuracy reaches `aim`; the largest size if none does."""
    return next((size for size in sizes if accuracy(size) >= aim - 1e-9), sizes[-1])
