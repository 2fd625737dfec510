"""Areas of curves that can be integrated by hand, and paired comparison of curves."""

from __future__ import annotations

import numpy as np
import pytest

from headloc.compare.measures import SHARES, areas, difference, shared_sizes, smallest_keeping


def test_shares_are_rounded_down_as_in_the_benchmark() -> None:
    assert list(shared_sizes(144).values()) == [0, 0, 0, 1, 2, 7, 14, 28, 72, 144]
    assert list(shared_sizes(1000).values()) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


def test_a_perfect_curve_and_an_empty_one() -> None:
    width = SHARES[-1] - SHARES[0]
    whole = areas({k: 0.9 if k else 0.1 for k in range(1001)}, 0.9, 1000)
    assert whole.cpr == pytest.approx(width)
    assert whole.cmd == pytest.approx(0.0)
    assert whole.log_area == pytest.approx(0.9)
    # Nothing below the last size: one trapezoid of the widest step is left.
    late = areas({k: 0.9 if k == 1000 else 0.1 for k in range(1001)}, 0.9, 1000)
    assert late.cpr == pytest.approx(0.25)
    assert late.cmd == pytest.approx(width - 0.25)


def test_a_straight_line_has_half_the_area_and_overshoot_counts_in_cpr_alone() -> None:
    line = areas({k: k / 1000 for k in range(1001)}, 1.0, 1000)
    assert line.cpr == pytest.approx((1 - SHARES[0] ** 2) / 2)
    over = areas({k: 2.0 if k else 0.0 for k in range(1001)}, 1.0, 1000)
    assert over.cpr == pytest.approx(2 * over.cmd)  # type: ignore[operator]


def test_heads_that_do_not_matter_have_no_faithfulness() -> None:
    flat = areas(dict.fromkeys(range(9), 0.5), 0.5, 8)
    assert flat.cpr is None
    assert flat.cmd is None
    assert flat.log_area == pytest.approx(0.5)


def outcomes(rate: float, seeds: int = 3, sizes: int = 4, prompts: int = 300) -> np.ndarray:
    rng = np.random.default_rng(round(100 * rate))
    return (rng.random((seeds, sizes, prompts)) < rate).astype(np.float64)


def test_a_worse_curve_is_found_and_an_equal_one_is_not() -> None:
    good, bad = outcomes(0.9), outcomes(0.6)
    below = difference(bad, good, [1, 2, 3, 4], seed=0)
    assert below.below == below.below_band == [1, 2, 3, 4]
    assert below.worst[1] == pytest.approx(-0.3, abs=0.1)
    above = difference(good, bad, [1, 2, 3, 4], seed=0)
    assert above.below == []
    np.testing.assert_allclose(above.mean, -below.mean)
    same = difference(good, good, [1, 2, 3, 4], seed=0)
    assert same.below == same.below_band == []
    assert not same.mean.any()


def test_the_band_is_wider_than_the_interval_of_one_size_and_covers_chance() -> None:
    first, second = outcomes(0.7, sizes=40), outcomes(0.7001, sizes=40)[:, ::-1]
    found = difference(first, second, range(40), seed=0)
    assert (found.band_high > found.high).mean() > 0.9
    assert len(found.below_band) <= len(found.below)


def test_pairing_narrows_the_interval() -> None:
    hard = outcomes(0.5, sizes=1)
    close = hard.copy()
    close[:, :, :6] = 0.0
    paired = difference(close, hard, [1], seed=0)
    shuffled = difference(close[:, :, ::-1], hard, [1], seed=0)
    assert paired.high[0] - paired.low[0] < 0.5 * (shuffled.high[0] - shuffled.low[0])


def test_the_smallest_size_that_keeps_enough() -> None:
    curve = {0: 0.0, 1: 0.96, 2: 0.9, 3: 0.97}
    assert smallest_keeping(curve.__getitem__, [0, 1, 2, 3], 0.95) == 1
    assert smallest_keeping(curve.__getitem__, [0, 1, 2, 3], 0.99) == 3
