"""Is a head's code for the number k periodic, and at which periods? (Hu et al. 2025)

Per head, on the coordinates of its task means in the aggregation subspace: R^2 of both quadratures
of every period and of its best and worst phase, each with a permutation null, an interval over the
prompts behind the means and the R^2 for numbers left out; the same at the best phase with a cubic
in k taken out of coordinates and target, because a smooth curve passes for a long period; a free
spectrum, so that periods are found and not presupposed; and the feature circles.

Shapes: K numbers, r coordinates, d head width, D model width, T periods, F frequencies, R
resamples, n permutations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.randomness import torch_generator
from headloc.refinement.significance import benjamini_hochberg
from headloc.tasks import Arithmetic

from . import periodic_shown as shown
from .base import Analysis, Findings, NotApplicable, Progress, Subject
from .head_spaces import HeadSpace, coordinates_of, head_spaces, resampled_means, telling_heads
from .periodic_values import BEYOND, HeadPeriods, LeftOut, Reading, Spectrum
from .regression import (
    TARGETS,
    fit_period,
    inside_span,
    left_out,
    left_out_many,
    quadratures,
    readings,
    spectrum,
    target,
    trend,
    trend_shares,
)

FEWEST_NUMBERS = 12
DEGREES = (1, 2, 3)
CUBIC = 3
_SMOOTH = 8
"""Points of the spectrum per resolvable frequency."""


def numbers_of(subject: Subject) -> Tensor:
    """Return the number k of every task, k_K, in the order of the subject's tasks.

    Raises:
        NotApplicable: for a task family without numbers, or with too few of them.
    """
    task = subject.task
    if not isinstance(task, Arithmetic):
        raise NotApplicable(
            f"Periodic features are features of a number k; the tasks of the family {task.name} "
            "have none. Use add_k, subtract_k or multiply_k."
        )
    if len(subject.tasks) < FEWEST_NUMBERS:
        raise NotApplicable(
            f"{len(subject.tasks)} numbers are too few to fit periods: give {FEWEST_NUMBERS} tasks "
            "or more."
        )
    return torch.tensor([task.offset(name) for name in subject.tasks], dtype=torch.float64)


@dataclass(frozen=True)
class Periodic(Analysis):
    """Options.

    Attributes:
        dimensions: coordinates r that features are regressed on.
        periods: periods to fit.
        controls: periods that the paper does not report.
        permutations: permutations of k of the null.
        resamples: bootstrap resamples of the prompts behind the means.
    """

    dimensions: int = 6
    periods: tuple[float, ...] | list[float] = (2, 5, 10, 25, 50)
    controls: tuple[float, ...] | list[float] = (10 / 3, 2.5)
    permutations: int = 1000
    resamples: int = 2000
    name: ClassVar[str] = "periodic"
    question: ClassVar[str] = "Is the heads' code for the number periodic?"

    def __post_init__(self) -> None:
        if min(self.dimensions, self.permutations, self.resamples) < 1:
            raise HeadlocError("The options of analysis=periodic must be 1 or more.")
        for period in (*self.periods, *self.controls):
            if isinstance(period, bool) or not isinstance(period, int | float) or period < 2:
                raise HeadlocError(
                    f"analysis.periods holds {period!r}. Periods of whole numbers are 2 or more."
                )

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        k_K = numbers_of(subject)
        spaces = head_spaces(subject)
        periods = tuple(float(period) for period in (*self.periods, *self.controls))
        found = []
        for done, space in enumerate(spaces, start=1):
            found.append(self._head(space, k_K, periods, subject.seed))
            progress(done, len(spaces))
        telling = {str(head) for head in telling_heads(subject)}
        return shown.findings(
            _corrected(found), k_K.numpy(), telling, dimensions=self.dimensions,
            permutations=self.permutations, prompts=subject.mean_prompts,
        )  # fmt: skip

    def _head(
        self, space: HeadSpace, k_K: Tensor, periods: Sequence[float], seed: int
    ) -> HeadPeriods:
        coordinates_Kr = coordinates_of(space, self.dimensions)
        generator = torch_generator(seed, "periodic", str(space.head))
        order_nK = torch.stack(
            [torch.randperm(len(k_K), generator=generator) for _ in range(self.permutations)]
        )
        means_RKd = resampled_means(space, self.resamples, generator)
        drawn_RKr = (means_RKd - space.center_d) @ space.readout(space.basis(self.dimensions))
        rows = []
        for degree in (0, CUBIC):
            trend_Kp = trend(k_K, degree)
            rest_Kr = coordinates_Kr - trend_Kp @ (trend_Kp.T @ coordinates_Kr)
            own_1Kr, shuffled_nKr, resampled_RKr = (
                inside_span(many, trend_Kp)
                for many in (coordinates_Kr[None], rest_Kr[order_nK], drawn_RKr)
            )
            for index, period in enumerate(periods):
                values_4 = readings(own_1Kr, k_K, period, trend_Kp)[0]
                null_n4 = readings(shuffled_nKr, k_K, period, trend_Kp)
                spread_R4 = readings(resampled_RKr, k_K, period, trend_Kp)
                fit = fit_period(coordinates_Kr, k_K, period)
                for column, kind in enumerate(TARGETS):
                    value = float(values_4[column])
                    if math.isnan(value) or (degree and kind != "best phase"):
                        continue
                    null_n = null_n4[:, column]
                    low, high = np.percentile(spread_R4[:, column].numpy(), (2.5, 97.5))
                    phase = fit.phases[column] if not degree else None
                    held = None
                    if phase is not None:
                        wave_K = target(k_K, period, phase)
                        held = _held(wave_K, own_1Kr, shuffled_nKr, resampled_RKr)
                    rows.append(
                        Reading(
                            period=period,
                            control=index >= len(self.periods),
                            target=BEYOND if degree else kind,
                            phase=phase,
                            r2=value,
                            low=float(low),
                            high=float(high),
                            left_out=held,
                            null_median=float(null_n.median()),
                            null_95=float(null_n.quantile(0.95)),
                            p=float((1 + (null_n >= value - 1e-12).sum()) / (1 + len(null_n))),
                        )
                    )
        circles = {
            period: left_out(coordinates_Kr, quadratures(k_K, period)).numpy() for period in periods
        }
        return HeadPeriods(
            head=str(space.head),
            rows=tuple(rows),
            trends=tuple(trend_shares(space.centred_KD, k_K, DEGREES)),
            spectrum=free_spectrum(space.centred_KD, k_K, self.permutations, generator),
            circles=circles,
            components_Kr=coordinates_Kr.numpy(),
        )


def _held(wave_K: Tensor, own_1Kr: Tensor, shuffled_nKr: Tensor, resampled_RKr: Tensor) -> LeftOut:
    own, null, spread = (
        left_out_many(many, wave_K).numpy() for many in (own_1Kr, shuffled_nKr, resampled_RKr)
    )
    low, high = np.percentile(spread, (2.5, 97.5))
    return LeftOut(float(own[0]), float(low), float(high), float(np.percentile(null, 95)))


def free_spectrum(
    points_KD: Tensor, k_K: Tensor, permutations: int, generator: torch.Generator
) -> Spectrum:
    """Return the power at every period, with and without a linear trend in k taken out.

    The null shuffles k among the points (what is left of them, without the trend); its 95th
    percentile is that of the largest power over all frequencies, so that one line holds for all.
    """
    span = float(k_K.max() - k_K.min()) + 1
    step = 1 / (span * _SMOOTH)
    frequencies = np.arange(1 / (2 * span), 0.5 + step / 2, step)
    frequencies[-1] = 0.5
    # Rotated to their own components the points are few-dimensional, and powers stay the same.
    centred_KD = points_KD - points_KD.mean(0)
    left, sizes, _ = torch.linalg.svd(centred_KD, full_matrices=False)
    points_KR = left * sizes
    found = {}
    for degree in (0, 1):
        basis_Kp = trend(k_K, degree)
        rest_KR = points_KR - basis_Kp @ (basis_Kp.T @ points_KR)
        order = [torch.randperm(len(k_K), generator=generator) for _ in range(permutations)]
        null_nF = spectrum(rest_KR[torch.stack(order)], k_K, frequencies.tolist(), degree)
        power_F = spectrum(points_KR, k_K, frequencies.tolist(), degree)
        found[degree] = (power_F.numpy(), float(null_nF.max(1).values.quantile(0.95)))
    return Spectrum(frequencies, found[0][0], found[0][1], found[1][0], found[1][1])


def _corrected(found: Sequence[HeadPeriods]) -> list[HeadPeriods]:
    """Add q-values: Benjamini-Hochberg over all heads and periods, target by target."""
    by_target: dict[str, list[float]] = {}
    for head in found:
        for row in head.rows:
            by_target.setdefault(row.target, []).append(row.p)
    adjusted = {kind: iter(benjamini_hochberg(values)) for kind, values in by_target.items()}
    return [head.with_q([next(adjusted[row.target]) for row in head.rows]) for head in found]
