"""Whether the signals of demonstrations that stand together go together: plain functions on arrays.

    a_i = <Q^T s_i, u_k>    the signal of demonstration i along its task's direction

centred per task and position.  Correlations by lag, the cancellation ratio Var(sum a) / sum Var(a),
a null that shuffles demonstrations across prompts, and the share of a change at one demonstration
that another takes back,

    kappa_ij = - sum (change of a_j) (change of a_i) / sum (change of a_i)^2

Shapes: P prompts, N demonstrations, r dimensions, K tasks, H heads, n shuffles, O orders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate

from .resampling import Resamples

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pairing:
    """Correlation by lag 1, 2, ..., over all pairs, and the cancellation ratio."""

    by_lag: tuple[Estimate, ...]
    correlation: Estimate
    cancellation: Estimate


def along(signal_PNr: Array, direction_Kr: Array, task_P: Rows) -> Array:
    """Return a_PN: signals along the unit direction of each prompt's task."""
    size_K = np.maximum(np.linalg.norm(direction_Kr, axis=1, keepdims=True), 1e-300)
    return np.einsum("pnr,pr->pn", signal_PNr, (direction_Kr / size_K)[task_P])


def centred(a_PN: Array, task_P: Rows) -> Array:
    """Return signals without their mean over the prompts of a task, position by position."""
    out = a_PN.copy()
    for task in np.unique(task_P):
        rows = task_P == task
        out[rows] -= a_PN[rows].mean(0)
    return out


def statistics(a_PN: Array, resamples: Resamples) -> Pairing:
    """Return correlations by lag and the cancellation ratio of centred signals."""
    N = a_PN.shape[1]
    square_NP = (a_PN**2).T

    def at_lag(lag: int) -> Callable[..., Array]:
        def correlation(*means: Array) -> Array:
            products, variances = means[: N - lag], means[N - lag :]
            pairs = [
                product / np.sqrt(np.maximum(variances[i] * variances[i + lag], 1e-300))
                for i, product in enumerate(products)
            ]
            return np.mean(pairs, axis=0)

        return correlation

    lags = []
    for lag in range(1, N):
        products = [a_PN[:, i] * a_PN[:, i + lag] for i in range(N - lag)]
        lags.append(resamples.of(at_lag(lag), *products, *square_NP))
    ratio = resamples.ratio(a_PN.sum(1) ** 2, (a_PN**2).sum(1))
    return Pairing(tuple(lags), mean_correlation(a_PN, resamples), ratio)


def mean_correlation(a_PN: Array, resamples: Resamples) -> Estimate:
    """Return the mean correlation over all pairs, from one statistic so that it has an interval."""
    N = a_PN.shape[1]
    pairs = [(i, j) for i in range(N) for j in range(i + 1, N)]

    def correlation(*means: Array) -> Array:
        products, variances = means[: len(pairs)], means[len(pairs) :]
        return np.mean(
            [
                product / np.sqrt(np.maximum(variances[i] * variances[j], 1e-300))
                for product, (i, j) in zip(products, pairs, strict=True)
            ],
            axis=0,
        )

    return resamples.of(correlation, *(a_PN[:, i] * a_PN[:, j] for i, j in pairs), *(a_PN**2).T)


def shuffled_null(
    a_HPN: Array, task_P: Rows, shuffles: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return (mean correlation_nH, cancellation_nH) with demonstrations shuffled across prompts.

    Within a task and a position, so that nothing but the company of a demonstration changes; all
    heads are shuffled alike.
    """
    P, N = a_HPN.shape[1:]
    in_task_P = np.argsort(task_P, kind="stable")
    scale_HN = np.sqrt(np.maximum((a_HPN**2).mean(1), 1e-300))
    variance_H = (a_HPN**2).mean(1).sum(1)
    upper = np.triu_indices(N, 1)
    correlations, ratios = [], []
    for _ in range(shuffles):
        # Sorted by task, and by chance within a task.
        order_PN = np.argsort(task_P[:, None] + rng.random((P, N)), axis=0)
        mixed_HPN = np.empty_like(a_HPN)
        mixed_HPN[:, in_task_P] = np.take_along_axis(a_HPN, order_PN[None], axis=1)
        matrix_HNN = np.swapaxes(mixed_HPN, 1, 2) @ mixed_HPN / P
        scaled_HNN = matrix_HNN / (scale_HN[:, :, None] * scale_HN[:, None])
        correlations.append(scaled_HNN[:, upper[0], upper[1]].mean(1))
        ratios.append(matrix_HNN.sum((1, 2)) / variance_H)
    return np.array(correlations), np.array(ratios)


def taken_back(change_OPNr: Array, at: int, resamples: Resamples) -> tuple[Estimate, ...]:
    """Return kappa_ij for the corrupted demonstration i = `at` and every j.

        kappa_ij = - sum <change of s_j, change of s_i> / sum |change of s_i|^2

    Args:
        change_OPNr: change of every demonstration's signal, in O orders of the demonstrations of
            a prompt, which are resampled together; r is 1 for the signal along one direction.
        at: which one was corrupted.
        resamples: resamples of the prompts.
    """
    own_OPr = change_OPNr[:, :, at]
    size_P = (own_OPr**2).sum((0, -1))
    return tuple(
        resamples.ratio(-(change_OPNr[:, :, j] * own_OPr).sum((0, -1)), size_P)
        for j in range(change_OPNr.shape[2])
    )


def taken_back_by_all(change_OPNr: Array, at: int, resamples: Resamples) -> Estimate | None:
    """Return the sum of kappa_ij over all j > i; None for the last demonstration."""
    if at + 1 == change_OPNr.shape[2]:
        return None
    own_OPr = change_OPNr[:, :, at]
    later_OPr = change_OPNr[:, :, at + 1 :].sum(2)
    return resamples.ratio(-(later_OPr * own_OPr).sum((0, -1)), (own_OPr**2).sum((0, -1)))


def earlier_moved(change_OPNr: Array, at: int) -> float:
    """Return the largest change before the corrupted demonstration, relative to its own."""
    if at == 0:
        return 0.0
    own = np.abs(change_OPNr[:, :, at]).max()
    return float(np.abs(change_OPNr[:, :, :at]).max() / max(own, 1e-300))
