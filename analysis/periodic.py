"""Is a head's code for the number k periodic, and at which periods? (Hu et al. 2025)

Per head, on the coordinates of its task means in the aggregation subspace: R^2 of every period at
its best phase with both quadratures, predictions for numbers left out, a permutation null, and an
interval over the prompts behind the means; a free spectrum, so that periods are found and not
presupposed, beside polynomial trends in k; and the feature circles.

Shapes: K numbers, r coordinates, d head width, D model width, T periods, F frequencies, R
resamples, n permutations.
"""

from __future__ import annotations

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
from .head_spaces import HeadSpace, head_spaces, resampled_means
from .regression import (
    best_r_squared,
    fit_period,
    left_out,
    left_out_r_squared,
    permuted_best,
    quadratures,
    spectrum,
    target,
    trend,
    trend_shares,
)

FEWEST_NUMBERS = 12
DEGREES = (1, 2, 3)
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
    resamples: int = 500
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
        return shown.findings(
            _corrected(found), k_K.numpy(), dimensions=self.dimensions,
            permutations=self.permutations, prompts=subject.mean_prompts,
        )  # fmt: skip

    def _head(
        self, space: HeadSpace, k_K: Tensor, periods: Sequence[float], seed: int
    ) -> shown.HeadPeriods:
        readout_dr = space.readout(space.basis(self.dimensions))
        coordinates_Kr = (space.z_Kd - space.center_d) @ readout_dr
        generator = torch_generator(seed, "periodic", str(space.head))
        null_nT = permuted_best(coordinates_Kr, k_K, periods, self.permutations, generator)
        means_RKd = resampled_means(space, self.resamples, generator)
        drawn_RKr = (means_RKd - space.center_d) @ readout_dr
        rows = []
        for index, period in enumerate(periods):
            fit = fit_period(coordinates_Kr, k_K, period)
            spread_R = best_r_squared(drawn_RKr, k_K, period).numpy()
            low, high = np.percentile(spread_R, (2.5, 97.5))
            null_n = null_nT[:, index]
            rows.append(
                shown.PeriodRow(
                    period=period,
                    control=index >= len(self.periods),
                    cosine=fit.cosine,
                    sine=fit.sine,
                    best=fit.best,
                    worst=fit.worst,
                    phase=fit.phase,
                    left_out=left_out_r_squared(coordinates_Kr, target(k_K, period, fit.phase)),
                    low=float(low),
                    high=float(high),
                    null_median=float(null_n.median()),
                    null_95=float(null_n.quantile(0.95)),
                    p=float((1 + (null_n >= fit.best - 1e-12).sum()) / (1 + len(null_n))),
                )
            )
        circles = {
            period: left_out(coordinates_Kr, quadratures(k_K, period)).numpy() for period in periods
        }
        return shown.HeadPeriods(
            head=str(space.head),
            rows=tuple(rows),
            trends=tuple(trend_shares(space.centred_KD, k_K, DEGREES)),
            spectrum=free_spectrum(space.centred_KD, k_K, self.permutations, generator),
            circles=circles,
            components_Kr=coordinates_Kr.numpy(),
        )


def free_spectrum(
    points_KD: Tensor, k_K: Tensor, permutations: int, generator: torch.Generator
) -> shown.Spectrum:
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
    return shown.Spectrum(frequencies, found[0][0], found[0][1], found[1][0], found[1][1])


def _corrected(found: Sequence[shown.HeadPeriods]) -> list[shown.HeadPeriods]:
    """Add q-values: Benjamini-Hochberg over all heads and periods."""
    adjusted = iter(benjamini_hochberg([row.p for head in found for row in head.rows]))
    return [head.with_q([next(adjusted) for _ in head.rows]) for head in found]
