"""Splitting a step over passes and processes changes nothing but rounding."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from headloc import localize
from headloc.bank import PathSparsity
from headloc.errors import HeadlocError
from headloc.evaluation.scoring import score
from headloc.gates import HardConcreteGates, L1Gates, TargetSparsity
from headloc.lm import FrozenLM
from headloc.lm.passes import PassSizes
from headloc.localizer.microbatch import Share, step_loss
from headloc.objectives import FunctionVector, InPlace
from headloc.randomness import stream
from tests.lm.scarce import room_for
from tests.localizer.planted import OwnAnswers, planted_lm, small
from tests.objectives.by_hand import add_k, digit_lm, prepared

ROWS, HEADS = 7, 5


def loss(rows_B: Tensor, gates: Tensor) -> Tensor:
    """A mean over rows of something that is not linear in the gates; [G] for a bank."""
    worth = (gates * (rows_B + 1.0).view(-1, *[1] * (gates.ndim - 1))).sin().sum(-1)
    return worth.mean(0)


@pytest.mark.parametrize("sets", [None, 3], ids=["one set", "bank"])
@pytest.mark.parametrize("room", [7, 4, 1])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_loss_and_gradient_do_not_depend_on_passes_and_processes(
    processes: int, room: int, sets: int | None
) -> None:
    shape = (ROWS, HEADS) if sets is None else (ROWS, sets, HEADS)
    gates = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    rows_B = torch.arange(ROWS)
    weight = torch.rand(sets or 1, dtype=torch.float64).squeeze()
    whole = loss(rows_B, gates)
    (gradient,) = torch.autograd.grad((weight * whole).sum(), gates)

    def scarce(rows_B: Tensor, gates: Tensor) -> Tensor:
        if len(rows_B) > room:
            raise torch.OutOfMemoryError
        return loss(rows_B, gates)

    values, gradients = [], []
    for rank in range(processes):
        own = step_loss(scarce, rows_B, gates, PassSizes(), Share(rank, processes))
        gradients.append(torch.autograd.grad((weight * own).sum(), gates)[0])
        values.append(own.detach())
    # The mean over processes, as data-parallel training averages gradients.
    torch.testing.assert_close(torch.stack(values).mean(0), whole.detach())
    torch.testing.assert_close(torch.stack(gradients).mean(0), gradient)


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_cover_all_rows_once_and_evenly(rows: int, processes: int) -> None:
    shares = [list(range(rows))[Share(rank, processes).of(rows)] for rank in range(processes)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    """A model of its own: that of the task, which is asked for answers, has all the memory."""
    known = planted_lm()
    return FrozenLM(copy.deepcopy(known.model), known.tokenizer)


def trained(lm: FrozenLM, **changes: Any) -> Any:
    lm.passes = PassSizes()
    settings = small(trainer={"max_epochs": 2}, **changes)
    return localize(lm, OwnAnswers(planted_lm()), seed=3, objective=InPlace("zero"), **settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"sparsity": TargetSparsity(3)},
        {"gates": L1Gates(), "sparsity": PathSparsity([0.001, 0.01], seeds=2)},
        {"gates": HardConcreteGates(), "sparsity": PathSparsity([0.05], seeds=2)},
    ],
    ids=["target", "l1 path", "path"],
)
def test_a_run_on_a_small_device_finds_the_same_gates(
    changes: dict[str, Any], lm: FrozenLM, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained(lm, **changes)
    with room_for(lm, 5) as ran, caplog.at_level(logging.WARNING):
        found = trained(lm, **changes)
    assert max(ran) <= 5
    told = [record.getMessage() for record in caplog.records if "Out of memory" in record.msg]
    # Once for every kind of pass, not for every step.
    assert len(told) == len(set(told)) <= 6
    torch.testing.assert_close(found.circuit.gates, expected.circuit.gates, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.circuit.scores, expected.circuit.scores, rtol=1e-4, atol=1e-5)
    assert found.circuit.heads == expected.circuit.heads
    for name in ("accuracy/circuit", "accuracy/full", "accuracy/random"):
        assert found.metrics[name] == pytest.approx(expected.metrics[name])


@pytest.mark.parametrize("objective", [InPlace("mean", positions="all"), FunctionVector()])
def test_means_and_scores_do_not_depend_on_what_fits(objective: Any) -> None:
    lm, task = digit_lm("llama"), add_k()
    lm.passes = PassSizes()
    examples = task.draw(20, stream(0, "passes"), split="train")
    first = prepared(objective, lm, task, examples)
    gates = torch.full((lm.layout.total,), 0.5)
    expected, tensors = score(objective, lm, first, gates), objective.tensors()
    with room_for(lm, 3):
        again = prepared(objective, lm, task, examples)
        found = score(objective, lm, again, gates)
    lm.passes = PassSizes()
    for name, tensor in objective.tensors().items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-4, atol=1e-5)
    assert found.log_probability == pytest.approx(expected.log_probability, rel=1e-4)


def test_a_row_that_does_not_fit_ends_the_run_with_advice(lm: FrozenLM) -> None:
    with room_for(lm, 0), pytest.raises(HeadlocError, match="does not fit"):
        trained(lm)


@pytest.mark.parametrize("cache", ["host", "none"])
def test_where_prefixes_are_kept_changes_nothing_in_a_bank(cache: str, lm: FrozenLM) -> None:
    data, sparsity = small()["data"], PathSparsity([0.05], seeds=2)
    found = [
        trained(lm, sparsity=sparsity, data=replace(data, cache=place)).circuit
        for place in ("device", cache)
    ]
    torch.testing.assert_close(found[0].gates, found[1].gates, rtol=1e-4, atol=1e-5)
    assert found[0].heads == found[1].heads
