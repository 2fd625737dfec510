"""Memory that runs out while a model is tried says nothing about what it can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch

from headloc.errors import NoRoomError
from headloc.lm import FrozenLM
from headloc.lm.branches import supports_branches
from headloc.lm.partial import supports_partial
from tests.tiny import tiny_model

PROBES: dict[str, Callable[[FrozenLM], bool]] = {
    "prefix cache": lambda lm: lm.supports_prefix_cache,
    "branches": supports_branches,
    "partial": partial(supports_partial, layer=1),
}


@contextmanager
def failing(lm: FrozenLM, passed: int, error: Exception) -> Iterator[None]:
    """Let a number of forwards pass, then fail in the last layer: after keys were kept."""
    calls = 0

    def check(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > passed:
            raise error

    layers = lm.model.get_submodule(lm.family.layers)
    handle = list(layers.children())[-1].register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def fresh(probe: str) -> FrozenLM:
    lm = FrozenLM(tiny_model("llama"))
    if probe == "branches":
        assert lm.supports_prefix_cache
    return lm


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB"),
    RuntimeError("CUDA error: out of memory"),
    MemoryError(),
]


FORWARDS = [("prefix cache", 3), ("branches", 3), ("partial", 2)]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("probe", "passed"), [(probe, passed) for probe, most in FORWARDS for passed in range(most)]
)
def test_memory_that_runs_out_is_told_and_nothing_is_concluded(
    probe: str, passed: int, error: Exception
) -> None:
    lm = fresh(probe)
    with failing(lm, passed, error), pytest.raises(NoRoomError, match="does not fit"):
        PROBES[probe](lm)
    assert PROBES[probe](lm)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("mask"), TypeError()])
@pytest.mark.parametrize("probe", [probe for probe, _ in FORWARDS])
def test_any_other_error_of_what_is_tried_means_that_the_model_cannot(
    probe: str, error: Exception
) -> None:
    lm = fresh(probe)
    with failing(lm, dict(FORWARDS)[probe] - 1, error):
        assert not PROBES[probe](lm)


@pytest.mark.parametrize("probe", PROBES)
def test_an_error_of_the_plain_pass_is_not_hidden(probe: str) -> None:
    lm = fresh(probe)
    with failing(lm, 0, ZeroDivisionError("plain")), pytest.raises(ZeroDivisionError):
        PROBES[probe](lm)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_trial_forward_without_room_does_not_make_a_model_unsupported(error: Exception) -> None:
    lm = FrozenLM(tiny_model("llama"))
    with failing(lm, 0, error):
        with pytest.raises(NoRoomError, match="does not fit"):
            FrozenLM(lm.model)
        with pytest.raises(NoRoomError, match="does not fit"):
            _ = lm.mlps
    assert len(lm.mlps) == len(lm.sites)
