"""Regressions of periodic features of a number k on a head's coordinates (Hu et al. 2025).

Targets cos(2 pi k / T + theta) are centred over the k at hand (periods longer than their range do
not average to zero) and regressed with an intercept.  The best phase has a closed form: R^2 as a
function of theta is a ratio of quadratic forms, whose extremes are the squared canonical
correlations between the plane of cos and sin and the coordinates.

Shapes: K numbers, r coordinates, q quadratures (1 or 2), n permutations, F frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .linear import orthonormal

TARGETS = ("cos", "sin", "best phase", "worst phase")
"""What is regressed: both quadratures, and the phases with the largest and the smallest R^2."""

_RANK = 1e-10
_EMPTY = 1e-8
"""Relative size below which a quadrature counts as absent (the sine of period 2)."""


@dataclass(frozen=True, slots=True)
class PeriodFit:
    """How well coordinates predict one period.

    Attributes:
        cosine: R^2 of cos(2 pi k / T).
        sine: R^2 of sin(2 pi k / T), NaN where it vanishes.
        best: R^2 at the best phase.
        worst: R^2 at the worst phase; high only if a whole circle is there.
        phase: the best theta in cos(2 pi k / T + theta), radians in [0, pi).
        worst_phase: the worst theta.
    """

    cosine: float
    sine: float
    best: float
    worst: float
    phase: float
    worst_phase: float

    @property
    def phases(self) -> tuple[float, float, float, float]:
        """Theta of each of `TARGETS`."""
        return 0.0, -math.pi / 2, self.phase, self.worst_phase


def quadratures(k_K: Tensor, period: float) -> Tensor:
    """Return centred cos and sin of 2 pi k / T as [K, q]; a sine that vanishes is left out."""
    angle_K = 2 * math.pi * k_K.double() / period
    both_Kq = torch.stack([angle_K.cos(), angle_K.sin()], dim=1)
    both_Kq = both_Kq - both_Kq.mean(0)
    size_q = both_Kq.norm(dim=0)
    return both_Kq[:, size_q > _EMPTY * math.sqrt(len(k_K))]


def fit_period(coordinates_Kr: Tensor, k_K: Tensor, period: float) -> PeriodFit:
    """Regress both quadratures of a period on coordinates, and find the best phase."""
    targets_Kq = quadratures(k_K, period)
    inside_Kr = _inside(coordinates_Kr)
    explained_qq = (inside_Kr.T @ targets_Kq).T @ (inside_Kr.T @ targets_Kq)
    total_qq = targets_Kq.T @ targets_Kq
    each_q = explained_qq.diagonal() / total_qq.diagonal()
    if len(each_q) == 1:
        value = float(each_q[0])
        return PeriodFit(value, math.nan, value, value, 0.0, 0.0)
    # Whitened, the ratio of quadratic forms is an eigenvalue problem.
    lower_qq = torch.linalg.cholesky(total_qq)
    half_qq = torch.linalg.solve_triangular(lower_qq, explained_qq, upper=False)
    whitened_qq = torch.linalg.solve_triangular(lower_qq, half_qq.T, upper=False)
    values, vectors = torch.linalg.eigh((whitened_qq + whitened_qq.T) / 2)
    # cos(a + theta) = cos(theta) cos(a) - sin(theta) sin(a)
    weights_qq = torch.linalg.solve_triangular(lower_qq.T, vectors, upper=True)
    worst, best = (-torch.atan2(weights_qq[1], weights_qq[0]) % math.pi).tolist()
    return PeriodFit(
        float(each_q[0]), float(each_q[1]), float(values[-1]), float(values[0]), best, worst
    )


def target(k_K: Tensor, period: float, phase: float) -> Tensor:
    """Return the centred target cos(2 pi k / T + theta) [K]."""
    wave_K = (2 * math.pi * k_K.double() / period + phase).cos()
    return wave_K - wave_K.mean()


def r_squared(coordinates_Kr: Tensor, target_K: Tensor) -> float:
    """Return R^2 of a centred target on coordinates, with an intercept."""
    inside_Kr = _inside(coordinates_Kr)
    return float((inside_Kr.T @ target_K).square().sum() / target_K.square().sum())


def left_out(coordinates_Kr: Tensor, targets_Kq: Tensor) -> Tensor:
    """Return each k's prediction from the regression on all other k, prediction_Kq (PRESS)."""
    design_Kr = torch.cat(
        [torch.ones(len(coordinates_Kr), 1, dtype=torch.float64), coordinates_Kr.double()], dim=1
    )
    basis_Kr = orthonormal(design_Kr)
    fitted_Kq = basis_Kr @ (basis_Kr.T @ targets_Kq)
    leverage_K = basis_Kr.square().sum(1).clamp(max=1 - 1e-9)
    return targets_Kq - (targets_Kq - fitted_Kq) / (1 - leverage_K)[:, None]


def left_out_r_squared(coordinates_Kr: Tensor, target_K: Tensor) -> float:
    """Return the R^2 of predictions for numbers that were left out; below 0 if worse than the mean

    The mean that it is compared with leaves the number out, too.
    """
    error_K = target_K - left_out(coordinates_Kr, target_K[:, None])[:, 0]
    count = len(target_K)
    base_K = (target_K - target_K.mean()) * count / (count - 1)
    return float(1 - error_K.square().sum() / base_K.square().sum())


def left_out_many(inside_RKr: Tensor, target_K: Tensor) -> Tensor:
    """Return `left_out_r_squared` of a centred target on many sets of coordinates, [R].

    Args:
        inside_RKr: the sets (`inside_span` with a trend of degree 0).
        target_K: the target.
    """
    count = len(target_K)
    fitted_RK = torch.einsum("rkc,rjc,j->rk", inside_RKr, inside_RKr, target_K)
    leverage_RK = (inside_RKr.square().sum(-1) + 1 / count).clamp(max=1 - 1e-9)
    error_RK = (target_K - fitted_RK) / (1 - leverage_RK)
    base_K = target_K * count / (count - 1)
    return 1 - error_RK.square().sum(1) / base_K.square().sum()


def inside_span(coordinates_RKr: Tensor, trend_Kp: Tensor) -> Tensor:
    """Return bases over the K points of what linear readouts of coordinates can be, [R, K, r].

    Args:
        coordinates_RKr: many sets of coordinates.
        trend_Kp: orthonormal trend that is taken out first (`trend`): of degree 0 the mean alone,
            which is a regression with an intercept.

    Returns:
        orthonormal columns; those of dependent coordinates are zero.
    """
    rest_RKr = coordinates_RKr - trend_Kp @ (trend_Kp.T @ coordinates_RKr)
    left_RKr, sizes_Rr, _ = torch.linalg.svd(rest_RKr, full_matrices=False)
    real_Rr = sizes_Rr > _RANK * sizes_Rr[:, :1].clamp(min=1e-300)
    return left_RKr * real_Rr[:, None]


def readings(inside_RKr: Tensor, k_K: Tensor, period: float, trend_Kp: Tensor) -> Tensor:
    """Return R^2 of a period on many sets of coordinates, as [R, 4] in the order of `TARGETS`.

    Args:
        inside_RKr: the sets (`inside_span` with the same trend).
        k_K: the number of each point.
        period: the period.
        trend_Kp: trend that is taken out of the targets, too.
    """
    waves_Kq = quadratures(k_K, period)
    waves_Kq = waves_Kq - trend_Kp @ (trend_Kp.T @ waves_Kq)
    each_Kq = waves_Kq / waves_Kq.norm(dim=0)
    each_Rq = torch.einsum("rkc,kq->rcq", inside_RKr, each_Kq).square().sum(1)
    inside_Rcq = torch.einsum("rkc,kq->rcq", inside_RKr, orthonormal(waves_Kq))
    if inside_Rcq.shape[1] < inside_Rcq.shape[2]:
        # Fewer coordinates than quadratures: some phase is not there at all.
        inside_Rcq = torch.nn.functional.pad(inside_Rcq, (0, 0, 0, 1))
    phases_Rq = torch.linalg.svdvals(inside_Rcq).square()
    sine_R = each_Rq[:, 1] if each_Rq.shape[1] > 1 else torch.full_like(each_Rq[:, 0], math.nan)
    return torch.stack([each_Rq[:, 0], sine_R, phases_Rq[:, 0], phases_Rq[:, -1]], dim=1)


def spectrum(points_KD: Tensor, k_K: Tensor, frequencies: Sequence[float], degree: int) -> Tensor:
    """Return the power at every frequency: the share of the points' variance it explains, [F].

    A polynomial trend in k is taken out of points and waves first (degree 0: the mean alone), so
    that a slow drift does not pass for a long period.

    Args:
        points_KD: points, or several arrangements of them, `[n, K, D]` (then [n, F]).
        k_K: the number of each point.
        frequencies: cycles per unit of k, from above 0 to 1/2.
        degree: degree of the trend.
    """
    trend_Kp = trend(k_K, degree)
    rest = points_KD - trend_Kp @ (trend_Kp.T @ points_KD)
    total = rest.square().sum((-1, -2)).clamp(min=1e-300)
    bases = []
    for frequency in frequencies:
        wave_Kq = quadratures(k_K, 1 / frequency)
        bases.append(orthonormal(wave_Kq - trend_Kp @ (trend_Kp.T @ wave_Kq)))
    # One product for all frequencies and arrangements.
    wide_KX = rest.movedim(-2, 0).reshape(len(k_K), -1)
    inside_QX = torch.cat(bases, dim=1).T @ wide_KX
    power_QnD = inside_QX.square().reshape(len(inside_QX), *rest.shape[:-2], rest.shape[-1])
    sizes = [basis_Kq.shape[1] for basis_Kq in bases]
    powers = [part.sum((0, -1)) for part in power_QnD.split(sizes)]
    return torch.stack(powers, dim=-1) / total[..., None]


def trend(k_K: Tensor, degree: int) -> Tensor:
    """Return an orthonormal basis of the polynomials in k up to a degree, [K, degree + 1]."""
    centred_K = (k_K.double() - k_K.double().mean()) / k_K.double().std().clamp(min=1e-300)
    return orthonormal(torch.stack([centred_K**power for power in range(degree + 1)], dim=1))


def trend_shares(points_KD: Tensor, k_K: Tensor, degrees: Sequence[int]) -> list[float]:
    """Return the share of the points' variance that polynomials in k of each degree explain."""
    centred_KD = points_KD - points_KD.mean(0)
    total = centred_KD.square().sum().clamp(min=1e-300)
    return [float((trend(k_K, degree).T @ centred_KD).square().sum() / total) for degree in degrees]


def decoding_directions(
    coordinates_Kr: Tensor, k_K: Tensor, features: Sequence[tuple[float, float]]
) -> Tensor:
    """Return regression weights of features (period, phase) on coordinates, weight_rm.

    Their span is the feature group's subspace of the paper: unit digit (periods 2, 5, 10),
    magnitude (25, 50).
    """
    centred_Kr = coordinates_Kr - coordinates_Kr.mean(0)
    targets_Km = torch.stack([target(k_K, *feature) for feature in features], dim=1)
    return torch.linalg.lstsq(centred_Kr, targets_Km, driver="gelsd").solution


def encoding_planes(points_KD: Tensor, k_K: Tensor, periods: Sequence[float]) -> list[Tensor]:
    """Return a basis of the plane that each period moves the points in, basis_Dq.

    All periods are fitted together, because waves over a short range of k are not orthogonal.
    """
    waves = [quadratures(k_K, period) for period in periods]
    design_Km = torch.cat(waves, dim=1)
    centred_KD = points_KD - points_KD.mean(0)
    weight_mD = torch.linalg.lstsq(design_Km, centred_KD, driver="gelsd").solution
    parts = weight_mD.split([wave_Kq.shape[1] for wave_Kq in waves])
    return [orthonormal(part_qD.T) for part_qD in parts]


def _inside(coordinates_Kr: Tensor) -> Tensor:
    """Return a basis over the K points of what linear readouts of the coordinates can be."""
    centred_Kr = coordinates_Kr.double() - coordinates_Kr.double().mean(0)
    return orthonormal(centred_Kr)
