"""Planted sinusoids are recovered; noise and trends are not mistaken for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from headloc.analysis.linear import orthonormal, principal_angles, random_basis
from headloc.analysis.periodic import free_spectrum
from headloc.analysis.regression import (
    TARGETS,
    decoding_directions,
    encoding_planes,
    fit_period,
    inside_span,
    left_out,
    left_out_many,
    left_out_r_squared,
    quadratures,
    r_squared,
    readings,
    spectrum,
    target,
    trend,
)

K = torch.arange(1, 31, dtype=torch.float64)
PERIODS = (2.0, 5.0, 10.0, 25.0, 50.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(noise: float = 0.0) -> tuple[Tensor, dict[float, Tensor]]:
    """Points that move along circles of known periods in known planes of a space of 40."""
    drawn = generator(3)
    columns = random_basis(torch.eye(40, dtype=torch.float64), 9, drawn)
    planes: dict[float, Tensor] = {}
    points = torch.zeros(30, 40, dtype=torch.float64) + 5.0
    used = 0
    for period, size in zip(PERIODS, (1.0, 3.0, 2.0, 4.0, 2.5), strict=True):
        waves = quadratures(K, period)
        plane = columns[:, used : used + waves.shape[1]]
        used += waves.shape[1]
        planes[period] = plane
        points = points + size * waves @ plane.T
    return points + noise * torch.randn(30, 40, generator=drawn, dtype=torch.float64), planes


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_planted_planes_are_recovered_to_within_a_degree(noise: float) -> None:
    points, planes = planted(noise)
    found = encoding_planes(points, K, PERIODS)
    for (period, plane), basis in zip(planes.items(), found, strict=True):
        assert principal_angles(plane, basis).max() < 1.0, period


def test_planted_directions_are_read_out_to_within_a_degree() -> None:
    points, planes = planted()
    span = torch.cat(list(planes.values()), dim=1)
    coordinates = (points - points.mean(0)) @ span
    weights = decoding_directions(coordinates, K, [(10.0, 0.0), (10.0, -math.pi / 2)])
    assert principal_angles(span @ orthonormal(weights), planes[10.0]).max() < 1.0


@pytest.mark.parametrize("period", [5.0, 10.0, 25.0])
@pytest.mark.parametrize("phase", [0.3, 1.2, 2.9])
def test_a_planted_phase_is_found(period: float, phase: float) -> None:
    coordinates = torch.stack([target(K, period, phase), torch.randn(30, generator=generator())], 1)
    found = fit_period(coordinates, K, period)
    assert found.best == pytest.approx(1.0)
    assert found.phase == pytest.approx(phase, abs=1e-6)
    assert found.worst < 0.7


def test_the_best_phase_is_that_of_a_fine_grid() -> None:
    coordinates = torch.randn(30, 6, generator=generator(7), dtype=torch.float64)
    for period in (5.0, 25.0, 10 / 3):
        found = fit_period(coordinates, K, period)
        grid = [r_squared(coordinates, target(K, period, t)) for t in np.arange(0, math.pi, 0.01)]
        assert found.best == pytest.approx(max(grid), abs=1e-3)
        assert found.best >= max(grid) - 1e-12
        assert found.worst == pytest.approx(min(grid), abs=1e-3)
        assert r_squared(coordinates, target(K, period, found.phase)) == pytest.approx(found.best)
        assert found.cosine == pytest.approx(grid[0])


def test_many_sets_of_coordinates_are_fitted_as_one_is() -> None:
    many = torch.randn(5, 30, 6, generator=generator(19), dtype=torch.float64)
    many[2, :, 4:] = many[2, :, :2]
    mean = trend(K, 0)
    for period in (2.0, 10.0, 50.0):
        found = readings(inside_span(many, mean), K, period, mean)
        for values, one in zip(found, many, strict=True):
            fit = fit_period(one, K, period)
            expected = [fit.cosine, fit.sine, fit.best, fit.worst]
            assert values.tolist() == pytest.approx(expected, nan_ok=True)
            for kind, phase, value in zip(TARGETS, fit.phases, values, strict=True):
                if kind != "sin" or period != 2.0:
                    assert r_squared(one, target(K, period, phase)) == pytest.approx(float(value))


def test_one_coordinate_cannot_hold_both_quadratures() -> None:
    line, mean = target(K, 10.0, 0.0)[None, :, None], trend(K, 0)
    found = readings(inside_span(line, mean), K, 10.0, mean)[0]
    assert found[0] == pytest.approx(1.0)
    assert found[3] == pytest.approx(0.0, abs=1e-12)


def test_a_cubic_passes_for_a_long_period_until_it_is_taken_out() -> None:
    cubic, mean = trend(K, 3)[:, 1:], trend(K, 0)
    noise = 0.01 * torch.randn(30, 3, generator=generator(23), dtype=torch.float64)
    smooth, circle = (cubic + noise)[None], quadratures(K, 25.0)[None]
    plain = readings(inside_span(smooth, mean), K, 50.0, mean)[0, 2]
    rest = readings(inside_span(smooth, trend(K, 3)), K, 50.0, trend(K, 3))[0, 2]
    assert plain > 0.99
    assert rest < 0.6
    assert readings(inside_span(circle, trend(K, 3)), K, 25.0, trend(K, 3))[0, 2] > 0.99


def test_targets_are_centred_and_the_sine_of_period_two_is_left_out() -> None:
    for period in PERIODS:
        assert quadratures(K, period).mean(0).abs().max() < 1e-12
    assert quadratures(K, 2.0).shape == (30, 1)
    found = fit_period(quadratures(K, 2.0), K, 2.0)
    assert (found.best, found.worst) == pytest.approx((1.0, 1.0))
    assert math.isnan(found.sine)


def test_left_out_predictions_are_those_of_thirty_refits() -> None:
    coordinates = torch.randn(30, 4, generator=generator(9), dtype=torch.float64)
    wanted = target(K, 10.0, 0.4)
    design = torch.cat([torch.ones(30, 1, dtype=torch.float64), coordinates], 1)
    refitted = []
    for i in range(30):
        rest = torch.arange(30) != i
        weights = torch.linalg.lstsq(design[rest], wanted[rest]).solution
        refitted.append(design[i] @ weights)
    found = left_out(coordinates, wanted[:, None])[:, 0]
    torch.testing.assert_close(found, torch.stack(refitted))
    base = torch.stack([wanted[i] - wanted[torch.arange(30) != i].mean() for i in range(30)])
    error = wanted - found
    expected = 1 - error.square().sum() / base.square().sum()
    assert left_out_r_squared(coordinates, wanted) == pytest.approx(float(expected))
    many = torch.stack([coordinates, torch.randn_like(coordinates)])
    found = left_out_many(inside_span(many, trend(K, 0)), wanted)
    each = [left_out_r_squared(one, wanted) for one in many]
    assert found.tolist() == pytest.approx(each)


def test_noise_reaches_the_r_squared_that_the_null_says() -> None:
    """Six coordinates of noise on thirty points give .2 to .3 by chance."""
    drawn, mean = generator(11), trend(K, 0)
    values = []
    for seed in range(40):
        noise = torch.randn(30, 6, generator=drawn, dtype=torch.float64)
        order = [torch.randperm(30, generator=generator(200 * seed + i)) for i in range(200)]
        shuffled = noise[torch.stack(order)]
        null = readings(inside_span(shuffled, mean), K, 10.0, mean)[:, 2]
        assert 0.15 < null.median() < 0.45
        best = fit_period(noise, K, 10.0).best
        values.append(float((1 + (null >= best).sum()) / 201))
        assert left_out_r_squared(noise, target(K, 10.0, 0.0)) < 0.6
    assert 0.3 < np.mean(values) < 0.7
    assert np.mean(np.array(values) < 0.05) < 0.2


def test_the_free_spectrum_peaks_where_the_period_is() -> None:
    drawn = generator(13)
    plane = random_basis(torch.eye(10, dtype=torch.float64), 2, drawn)
    for period in (3.7, 6.0, 10.0):
        points = quadratures(K, period) @ plane.T
        points = points + 0.1 * torch.randn(30, 10, generator=drawn, dtype=torch.float64)
        found = free_spectrum(points, K, 200, drawn)
        assert found.peaks()[0][0] == pytest.approx(period, rel=0.03)
        assert found.peaks()[0][1] > 0.8


def test_a_straight_line_and_noise_have_no_period() -> None:
    drawn = generator(15)
    line = K[:, None] * torch.randn(1, 10, generator=drawn, dtype=torch.float64)
    noise = torch.randn(30, 10, generator=drawn, dtype=torch.float64)
    found = free_spectrum(line + 0.3 * noise, K, 200, drawn)
    assert max(found.power_F) > 0.7
    assert not found.peaks()
    hits = [bool(free_spectrum(torch.randn(30, 8, generator=drawn).double(), K, 100, drawn).peaks())
            for _ in range(20)]  # fmt: skip
    assert sum(hits) <= 4


def test_the_powers_of_resolved_frequencies_add_up_to_the_whole() -> None:
    points = torch.randn(30, 5, generator=generator(17), dtype=torch.float64)
    frequencies = [j / 30 for j in range(1, 16)]
    assert spectrum(points, K, frequencies, 0).sum() == pytest.approx(1.0)
    assert spectrum(points[None].repeat(2, 1, 1), K, frequencies, 0).shape == (2, 15)
