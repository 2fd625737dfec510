"""Bootstrap intervals: coverage, pairing, and the definition of faithfulness."""

from __future__ import annotations

import numpy as np
import pytest

from headloc.evaluation.intervals import bootstrap, faithfulness, mean_interval

PROMPTS = 120


def bernoulli(share: float, seed: int, prompts: int = PROMPTS) -> np.ndarray:
    return np.random.default_rng(seed).random(prompts) < share


@pytest.mark.parametrize("share", [0.5, 0.85])
def test_intervals_cover_the_truth_about_95_times_in_100(share: float) -> None:
    trials = 300
    intervals = [
        bootstrap(lambda mean: mean, bernoulli(share, seed), seed=seed, resamples=400)
        for seed in range(trials)
    ]
    covered = np.mean([interval.low <= share <= interval.high for interval in intervals])
    assert 0.91 <= covered <= 0.98
    outside = [interval.low > share for interval in intervals]
    assert 0.003 <= np.mean(outside) <= 0.06


def test_the_interval_of_a_mean_has_the_width_that_theory_gives() -> None:
    sample = bernoulli(0.3, 1, prompts=1000)
    interval = mean_interval(sample, seed=0)
    spread = 1.96 * np.sqrt(sample.mean() * (1 - sample.mean()) / len(sample))
    assert interval.value == pytest.approx(sample.mean())
    assert interval.high - interval.low == pytest.approx(2 * spread, rel=0.08)
    assert interval.n == 1000


def test_paired_samples_give_a_narrower_interval_of_their_difference() -> None:
    first = bernoulli(0.7, 2)
    second = first & (np.random.default_rng(3).random(PROMPTS) < 0.95)
    paired = bootstrap(lambda a, b: a - b, first, second, seed=0)
    shuffled = np.random.default_rng(4).permutation(second)
    unpaired = bootstrap(lambda a, b: a - b, first, shuffled, seed=0)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)


def test_intervals_follow_from_the_seed() -> None:
    sample = bernoulli(0.6, 5)
    assert mean_interval(sample, 1) == mean_interval(sample, 1)
    assert mean_interval(sample, 1) != mean_interval(sample, 2)


def test_figures_are_flat_and_named() -> None:
    figures = mean_interval(bernoulli(0.6, 5), 1).to_metrics("accuracy/full")
    assert list(figures) == [
        "accuracy/full", "accuracy/full/low", "accuracy/full/high", "accuracy/full/n"
    ]  # fmt: skip
    assert figures["accuracy/full/n"] == PROMPTS


def test_faithfulness_averages_before_it_divides() -> None:
    full = np.array([1.0, 1.0, 1.0, 1.0] * 25)
    off = np.array([1.0, 0.0, 0.0, 0.0] * 25)
    circuit = np.array([1.0, 1.0, 0.0, 1.0] * 25)
    # Prompt by prompt the first of every four would be 0 / 0.
    estimate = faithfulness(circuit, off, full, seed=0)
    assert estimate is not None
    assert estimate.value == pytest.approx((0.75 - 0.25) / (1.0 - 0.25))
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(("better", "beyond"), [(1.0, 1.25), (0.0, -0.25)])
def test_faithfulness_may_leave_the_unit_interval(better: float, beyond: float) -> None:
    full, off = np.full(50, 0.9), np.full(50, 0.1)
    estimate = faithfulness(np.full(50, 0.1 + 0.8 * beyond), off, full, seed=0)
    assert estimate is not None
    assert estimate.value == pytest.approx(beyond)
    assert (estimate.value > 1) == bool(better)


def test_faithfulness_is_undefined_where_the_heads_do_not_matter() -> None:
    alike = bernoulli(0.8, 0).astype(float)
    assert faithfulness(alike, alike, alike, seed=0) is None
    assert faithfulness(alike, alike + 0.5, alike, seed=0) is None
    assert faithfulness(alike, alike - 0.01, alike, seed=0) is None


def test_faithfulness_is_undefined_where_the_gap_may_be_chance() -> None:
    full = np.array([1.0] + [0.0] * 31)
    off = np.zeros(32)
    assert full.mean() - off.mean() > 0.02
    assert faithfulness(full, off, full, seed=0) is None


def test_rare_resamples_without_a_gap_do_not_spoil_the_interval() -> None:
    full = np.array([1.0] * 5 + [0.0] * 27)
    estimate = faithfulness(full, np.zeros(32), full, seed=0)
    assert estimate is not None
    assert np.isfinite([estimate.low, estimate.high]).all()
