"""Permutations of labels that keep none in its place."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headloc.errors import TaskError
from headloc.tasks.shuffling import derange


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.integers(0, 2**32))
def test_no_fixed_point_by_value_or_a_clear_error(labels: list[str], seed: int) -> None:
    if 2 * max(Counter(labels).values()) > len(labels):
        with pytest.raises(TaskError, match="cannot be shuffled"):
            derange(labels, np.random.default_rng(seed))
        return
    shuffled = derange(labels, np.random.default_rng(seed))
    assert Counter(shuffled) == Counter(labels)
    assert all(new != old for new, old in zip(shuffled, labels, strict=True))


def test_every_derangement_of_distinct_labels_is_as_likely() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(tuple(derange("abcd", rng)) for _ in range(3600))
    assert len(counts) == 9
    assert all(300 < count < 500 for count in counts.values())


def test_rare_derangements_are_constructed() -> None:
    labels = ["a"] * 12 + ["b"] * 12
    assert derange(labels, np.random.default_rng(0)) == ["b"] * 12 + ["a"] * 12


def test_zero_shot_has_nothing_to_shuffle() -> None:
    with pytest.raises(TaskError, match="zero-shot"):
        derange([], np.random.default_rng(0))
