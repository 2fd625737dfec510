"""Correlations with intervals: Pearson and Spearman over prompts, Spearman over heads.

Shapes: P prompts, A heads, R resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import RESAMPLES, Estimate
from headloc.randomness import stream

Array = NDArray[np.float64]


def ranks(sample: NDArray[np.generic]) -> Array:
    """Return ranks [n], equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(sample, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return ((2 * ends - counts - 1) / 2)[inverse.reshape(-1)]


def pearson(x: NDArray[np.generic], y: NDArray[np.generic]) -> float:
    """Return Pearson's correlation of two samples [n], NaN where one is constant."""
    x_c, y_c = (np.asarray(s, dtype=np.float64) for s in (x, y))
    x_c, y_c = x_c - x_c.mean(), y_c - y_c.mean()
    size = np.sqrt((x_c**2).sum() * (y_c**2).sum())
    return float((x_c * y_c).sum() / size) if size > 1e-300 else float("nan")


def spearman(x: NDArray[np.generic], y: NDArray[np.generic]) -> float:
    """Return Spearman's correlation of two samples [n]."""
    return pearson(ranks(x), ranks(y))


def prompt_correlation(
    x_P: NDArray[np.generic], y_P: NDArray[np.generic], seed: int, resamples: int = RESAMPLES
) -> tuple[Estimate, Estimate]:
    """Return Pearson's and Spearman's correlation over prompts, with bootstrap intervals.

    Spearman's interval resamples the ranks of the whole sample, which saves ranking anew.
    """
    return (
        _weighted(np.asarray(x_P, dtype=np.float64), np.asarray(y_P, dtype=np.float64), seed,
                  resamples),
        _weighted(ranks(x_P), ranks(y_P), seed, resamples),
    )  # fmt: skip


def head_correlation(
    x_A: NDArray[np.generic], y_A: NDArray[np.generic], seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Return Spearman's correlation over heads; the interval resamples heads and ranks anew."""
    n = len(x_A)
    rng = stream(seed, "bootstrap", "heads")
    drawn = [spearman(x_A[i], y_A[i]) for i in rng.integers(n, size=(resamples, n))]
    return _estimate(spearman(x_A, y_A), np.array(drawn), n)


def _weighted(x_P: Array, y_P: Array, seed: int, resamples: int) -> Estimate:
    n = len(x_P)
    counts_RP = stream(seed, "bootstrap").multinomial(n, np.full(n, 1 / n), size=resamples)
    w_RP = counts_RP / n
    x_P, y_P = x_P - x_P.mean(), y_P - y_P.mean()
    x_R, y_R = w_RP @ x_P, w_RP @ y_P
    top_R = w_RP @ (x_P * y_P) - x_R * y_R
    spread_R = (w_RP @ x_P**2 - x_R**2) * (w_RP @ y_P**2 - y_R**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        found_R = np.where(spread_R > 1e-300, top_R / np.sqrt(spread_R.clip(1e-300)), np.nan)
    return _estimate(pearson(x_P, y_P), found_R, n)


def _estimate(value: float, found_R: Array, n: int) -> Estimate:
    if not np.isfinite(found_R).any():
        return Estimate(value, float("nan"), float("nan"), n)
    low, high = np.nanpercentile(found_R, (2.5, 97.5))
    return Estimate(value, float(low), float(high), n)
