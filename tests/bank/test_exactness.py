"""A bank trains every gate set as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headloc.bank.running import BankRunner, rows_per_training_pass
from headloc.bank.settings import Member
from headloc.gates import HardConcreteGates, HeadGates, L1Gates
from headloc.lm.branches import supports_branches
from headloc.objectives import FunctionVector, InPlace, Objective
from tests.bank.banks import MEMBERS, prompts_of, trained_alone, trained_bank
from tests.localizer.planted import OwnAnswers, planted_lm
from tests.objectives.by_hand import add_k, digit_lm

KINDS: dict[str, tuple[Objective, HeadGates]] = {
    "in place": (InPlace("mean"), HardConcreteGates()),
    "kl": (InPlace("resample", loss="kl"), HardConcreteGates()),
    "all positions": (InPlace("zero", positions="all"), HardConcreteGates()),
    "function vector": (FunctionVector(layer=1, prompts_per_task=4), L1Gates()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_of_one_is_the_plain_run_bit_for_bit(kind: str) -> None:
    objective, gates = KINDS[kind]
    member = Member(0.05, 3)
    bank_1A = trained_bank([member], objective, gates)
    assert torch.equal(bank_1A[0], trained_alone(member, objective, gates))


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_pass_each_every_member_is_its_plain_run_bit_for_bit(kind: str) -> None:
    objective, gates = KINDS[kind]
    bank_GA = trained_bank(MEMBERS, objective, gates, branched=False)
    for member, own_A in zip(MEMBERS, bank_GA, strict=True):
        assert torch.equal(own_A, trained_alone(member, objective, gates))


def test_as_branches_every_member_is_its_plain_run_to_rounding() -> None:
    assert supports_branches(planted_lm())
    bank_GA = trained_bank(MEMBERS)
    for member, own_A in zip(MEMBERS, bank_GA, strict=True):
        torch.testing.assert_close(own_A, trained_alone(member), rtol=0, atol=1e-5)
    assert (bank_GA[0] - bank_GA[1]).abs().max() > 1e-3
    assert (bank_GA[0] - bank_GA[2]).abs().max() > 1e-3


@pytest.mark.parametrize("branched", [True, False])
def test_permuting_the_bank_permutes_its_gates(branched: bool) -> None:
    order = [2, 0, 3, 1]
    whole_GA = trained_bank(MEMBERS, branched=branched)
    moved_GA = trained_bank([MEMBERS[i] for i in order], branched=branched)
    same(moved_GA, whole_GA[order], exact=not branched)


@pytest.mark.parametrize("branched", [True, False])
def test_dropping_members_leaves_the_others_alone(branched: bool) -> None:
    whole_GA = trained_bank(MEMBERS, branched=branched)
    fewer_GA = trained_bank([MEMBERS[i] for i in (0, 3)], branched=branched)
    same(fewer_GA, whole_GA[[0, 3]], exact=not branched)


def test_passes_that_suit_a_processors_cache_train_the_same_gates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole_GA = trained_bank(MEMBERS)
    monkeypatch.setattr("headloc.bank.running._CPU_LANES", 20)
    same(trained_bank(MEMBERS), whole_GA, exact=False)


@pytest.mark.parametrize(
    ("rows", "gate_sets", "expected"),
    [(128, 1, 128), (4096, 1, 4096), (64, 16, 64), (128, 16, 64), (128, 24, 43), (3, 5000, 1)],
)
def test_a_pass_takes_as_many_rows_as_stay_in_the_cache(
    rows: int, gate_sets: int, expected: int
) -> None:
    assert rows_per_training_pass(rows, gate_sets, torch.device("cpu")) == expected
    assert rows_per_training_pass(rows, gate_sets, torch.device("cuda")) == rows


@pytest.mark.parametrize("branched", [True, False])
def test_the_same_bank_gives_the_same_gates_bit_for_bit(branched: bool) -> None:
    first_GA = trained_bank(MEMBERS, branched=branched)
    assert torch.equal(first_GA, trained_bank(MEMBERS, branched=branched))


def same(found: Tensor, expected: Tensor, *, exact: bool) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if exact else 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"off_value": "mean"},
        {"off_value": "zero"},
        {"off_value": "resample"},
        {"off_value": "mean", "loss": "kl"},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_branches_give_the_losses_gradients_and_answers_of_a_pass_each(
    family: str, options: dict[str, Any]
) -> None:
    """On answers of one to three tokens behind prompts of different lengths."""
    lm, objective = digit_lm(family), InPlace(**options)
    _, prompts = prompts_of(objective, lm, add_k(), rows=6)
    assert prompts.batch.target_BJ.shape[1] > 1
    generator = torch.Generator().manual_seed(2)
    gates_BGA = torch.rand(6, 3, lm.layout.total, generator=generator).requires_grad_()
    weight_G = torch.tensor([1.0, -2.0, 0.5])
    found = []
    for branched in (True, False):
        runner = BankRunner(lm, objective, branched)
        loss_G = runner.losses(prompts, slice(None), gates_BGA)
        (gradient,) = torch.autograd.grad((loss_G * weight_G).sum(), gates_BGA)
        sets = [(0, 3), (1, 2, 6), ()]
        found.append((loss_G.detach(), gradient, runner.accuracies(prompts, sets)))
    (loss, gradient, right), (other_loss, other_gradient, other_right) = found
    torch.testing.assert_close(loss, other_loss, rtol=1e-5, atol=1e-6)
    assert (gradient - other_gradient).norm() <= 1e-5 * other_gradient.norm()
    assert right == other_right


def test_the_prefix_cache_is_shared_by_all_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, objective = planted_lm(), InPlace("mean")
    prompts, _ = prompts_of(objective, lm, OwnAnswers(lm))
    assert prompts.prefix is not None
    stored = {layer.keys.data_ptr() for layer in prompts.prefix.fresh().layers}
    seen: list[tuple[int, int, set[int]]] = []
    plain = lm.model.forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        layers = kwargs["past_key_values"].layers
        nbytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        pointers = {layer.keys.data_ptr() for layer in layers}
        seen.append((kwargs["input_ids"].numel(), nbytes, pointers))
        return plain(*args, **kwargs)

    monkeypatch.setattr(lm.model, "forward", watch)
    gates_BGA = torch.ones(len(prompts), 16, lm.layout.total)
    BankRunner(lm, objective, branched=True).losses(prompts, slice(None), gates_BGA)
    assert seen == [(16 * len(prompts), prompts.prefix.nbytes, stored)]
