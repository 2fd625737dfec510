"""What branches refuse; that they equal separate rows is in `tests/architectures`."""

from __future__ import annotations

import pytest
import torch

from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.lm.branches import branch_logits, require_branches, supports_branches
from headloc.lm.frozen import FrozenLM
from headloc.lm.keeping import PrefixKeeper
from headloc.lm.taps import gate_heads
from tests.tiny import tiny_batch, tiny_lm, tiny_model


def test_gates_per_column_must_fit_the_model() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(HeadlocError, match="columns"), gate_heads(lm, torch.ones(1, 1, 1, 1)):
        pass


def test_branches_without_their_prefix_are_refused() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(HeadlocError, match="prefix"):
        branch_logits(lm, tiny_batch(), None, 2)


def test_a_model_without_a_prefix_cache_takes_no_branches_and_is_told_why() -> None:
    lm = FrozenLM(tiny_model("llama"))
    require_branches(lm)
    lm.keeper = PrefixKeeper("none")
    with pytest.raises(UnsupportedModelError, match="without a prefix cache"):
        require_branches(lm)
    assert not supports_branches(lm)
