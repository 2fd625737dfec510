"""Passes are halved until they fit, once and for all, and say so once."""

from __future__ import annotations

import logging

import pytest
import torch

from headloc.errors import HeadlocError
from headloc.lm.passes import PassSizes, in_passes


def pieces(sizes: PassSizes, rows: int, room: int, most: int | None = None) -> list[int]:
    ran: list[int] = []

    def run(part: slice) -> list[int]:
        if part.stop - part.start > room:
            raise torch.OutOfMemoryError
        ran.append(part.stop - part.start)
        return list(range(part.start, part.stop))

    found = in_passes(sizes, "test", rows, run, most=most)
    assert [row for part in found for row in part] == list(range(rows))
    return ran


@pytest.mark.parametrize(
    ("rows", "most", "room", "expected"),
    [
        (10, None, 99, [10]),
        (10, 4, 99, [4, 4, 2]),
        (10, None, 5, [5, 5]),
        (10, None, 4, [3, 3, 3, 1]),
        (7, 4, 1, [1] * 7),
        (0, 4, 1, []),
    ],
)
def test_every_row_runs_once_in_passes_that_fit(
    rows: int, most: int | None, room: int, expected: list[int]
) -> None:
    assert pieces(PassSizes(), rows, room, most) == expected


def test_what_fits_is_remembered_by_kind_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    sizes = PassSizes()
    with caplog.at_level(logging.WARNING):
        pieces(sizes, 16, 3)
        assert pieces(sizes, 16, 3) == [2] * 8
    assert len(caplog.records) == 1
    assert "16 rows" in caplog.text
    assert sizes["test"] == 2
    assert sizes["another"] is None


def test_a_row_that_does_not_fit_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(HeadlocError, match=r"single row does not fit.*model\.dtype"):
        pieces(PassSizes(), 4, 0)


def test_progress_counts_the_rows_that_are_done() -> None:
    seen: list[tuple[int, int]] = []
    in_passes(PassSizes(), "t", 5, lambda part: None, most=2, progress=lambda *s: seen.append(s))
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_an_error_that_is_not_about_memory_comes_through(kind: type[Exception]) -> None:
    def fail(part: slice) -> None:
        raise kind("other")

    with pytest.raises(kind, match="other"):
        in_passes(PassSizes(), "t", 5, fail)


def test_a_processor_without_memory_is_one_that_has_run_out() -> None:
    """The real error of torch, for more than any machine has."""

    def run(part: slice) -> int:
        if part.stop - part.start > 1:
            torch.empty(1 << 58)
        return part.start

    assert in_passes(PassSizes(), "t", 3, run) == [0, 1, 2]
