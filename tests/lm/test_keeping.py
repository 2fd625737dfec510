"""Prefix caches on the host, or nowhere, change where tensors lie and nothing else."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

import headloc.lm.keeping as keeping
from headloc.lm import FrozenLM, gate_heads
from headloc.lm.hosted import HostedPrefix
from headloc.lm.keeping import PrefixKeeper
from tests.lm.scarce import room_for
from tests.tiny import FAMILIES, tiny_batch, tiny_model

LENGTHS = (5, 11, 1, 8, 9)


def fresh(family: str = "llama", place: str = "auto") -> FrozenLM:
    lm = FrozenLM(tiny_model(family))
    lm.keeper = PrefixKeeper(place)
    return lm


def gradient(lm: FrozenLM, rows: Tensor | slice, place: str) -> tuple[Tensor, Tensor]:
    """Logits of some rows and their gradient to the gates, from a prefix that is kept."""
    lm.keeper = PrefixKeeper(place)
    batch = tiny_batch(LENGTHS)
    prefix = lm.kept_prefix(batch)
    assert isinstance(prefix, HostedPrefix) == (place == "host")
    assert prefix is not None
    gates = torch.full((lm.layout.total,), 0.7, requires_grad=True)
    with gate_heads(lm, gates):
        logits = lm.logits(batch.rows(rows), prefix.rows(rows))
    return logits.detach(), torch.autograd.grad(logits.float().logsumexp(-1).sum(), gates)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [torch.tensor([3, 0, 3]), slice(1, 4)], ids=["index", "slice"])
def test_a_prefix_on_the_host_gives_the_same(family: str, rows: Tensor | slice) -> None:
    lm = fresh(family)
    if not lm.supports_prefix_cache:
        pytest.skip("this model has no prefix cache")
    for hosted, expected in zip(
        gradient(lm, rows, "host"), gradient(lm, rows, "device"), strict=True
    ):
        torch.testing.assert_close(hosted, expected, rtol=1e-5, atol=1e-6)


def test_all_rows_of_a_hosted_prefix_run_and_rows_of_rows_are_those_rows() -> None:
    lm = fresh(place="host")
    batch = tiny_batch(LENGTHS)
    prefix = lm.kept_prefix(batch)
    assert prefix is not None
    expected = lm.logits(batch)
    torch.testing.assert_close(lm.logits(batch, prefix), expected, rtol=1e-4, atol=1e-5)
    twice = prefix.rows(torch.tensor([4, 2, 1])).rows([2, 0])
    torch.testing.assert_close(
        lm.logits(batch.rows([1, 4]), twice), expected[[1, 4]], rtol=1e-4, atol=1e-5
    )


def test_nowhere_means_whole_prompts_and_no_branches() -> None:
    lm = fresh(place="none")
    assert lm.kept_prefix(tiny_batch()) is None
    assert not lm.supports_prefix_cache


def scarce(monkeypatch: pytest.MonkeyPatch, device: int, host: int) -> None:
    """Let the model's device, which is really the processor, have so many bytes free."""
    monkeypatch.setattr(
        keeping, "_fits", lambda where, size: size <= (host if where.type == "cpu" else device)
    )
    monkeypatch.setattr(
        keeping, "_bytes_by_device", lambda chunk, times: {torch.device("cuda"): 1000 * times}
    )
    monkeypatch.setattr(keeping, "_free", lambda where: "little")


@pytest.mark.parametrize(("device", "host", "hosted"), [(10**6, 10**6, False), (10, 10**6, True)])
def test_auto_takes_the_device_where_it_fits_and_else_the_host(
    device: int, host: int, hosted: bool, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    scarce(monkeypatch, device, host)
    lm = fresh()
    with caplog.at_level(logging.WARNING):
        prefix = lm.kept_prefix(tiny_batch(LENGTHS))
    assert isinstance(prefix, HostedPrefix) == hosted
    assert ("host's memory" in caplog.text) == hosted


def test_auto_gives_up_where_even_the_host_has_no_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scarce(monkeypatch, 10, 10)
    lm = fresh()
    with caplog.at_level(logging.WARNING):
        assert lm.kept_prefix(tiny_batch(LENGTHS)) is None
    assert "whole prompts" in caplog.text
    assert not lm.supports_prefix_cache


def test_chunks_move_to_the_host_when_the_device_fills_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm = fresh()
    batch = tiny_batch(LENGTHS)
    expected = lm.logits(batch, lm.prefix(batch))
    monkeypatch.setattr("headloc.lm.frozen._ROWS_PER_CHUNK", 2)
    assert lm.supports_prefix_cache
    real = lm._prefix_chunk
    calls = iter([False, True, False, False])

    def fill_second_once(part, columns):  # type: ignore[no-untyped-def]
        if next(calls):
            raise torch.OutOfMemoryError
        return real(part, columns)

    monkeypatch.setattr(lm, "_prefix_chunk", fill_second_once)
    with caplog.at_level(logging.WARNING):
        prefix = lm.kept_prefix(batch)
    assert isinstance(prefix, HostedPrefix)
    assert "do not fit on the device" in caplog.text
    torch.testing.assert_close(lm.logits(batch, prefix), expected, rtol=1e-5, atol=1e-6)


def test_prefixes_are_filled_in_passes_that_fit() -> None:
    lm = fresh()
    batch = tiny_batch(LENGTHS)
    expected = lm.logits(batch, lm.prefix(batch))
    with room_for(lm, 2) as ran:
        prefix = lm.kept_prefix(batch)
    assert max(ran) <= 2
    torch.testing.assert_close(lm.logits(batch, prefix), expected, rtol=1e-5, atol=1e-6)
