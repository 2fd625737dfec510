"""A bank whose gate sets cover feed-forward blocks trains each of them as if it were alone."""

from __future__ import annotations

import pytest
import torch

from headloc.bank.settings import Member
from headloc.gates import HardConcreteGates, HeadGates, L1Gates
from headloc.objectives import FunctionVector, InPlace, Objective
from tests.bank.banks import MEMBERS, trained_alone, trained_bank
from tests.localizer.planted import HEADS, LAYERS

KINDS: dict[str, tuple[Objective, HeadGates]] = {
    "in place": (InPlace("mean", mlps=True), HardConcreteGates(mlps=True)),
    "function vector": (
        FunctionVector(layer=1, prompts_per_task=4, mlps=True),
        L1Gates(mlps=True),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_of_one_is_the_plain_run_bit_for_bit(kind: str) -> None:
    objective, gates = KINDS[kind]
    member = Member(0.05, 3)
    bank_1A = trained_bank([member], objective, gates)
    assert bank_1A.shape == (1, HEADS * LAYERS + LAYERS)
    assert torch.equal(bank_1A[0], trained_alone(member, objective, gates))


def test_as_branches_every_member_is_its_plain_run_to_rounding() -> None:
    objective, gates = KINDS["in place"]
    bank_GA = trained_bank(MEMBERS, objective, gates)
    for member, own_A in zip(MEMBERS, bank_GA, strict=True):
        alone_A = trained_alone(member, objective, gates)
        torch.testing.assert_close(own_A, alone_A, rtol=0, atol=1e-5)
