"""What branches refuse; that they equal separate rows is in `tests/architectures`."""

from __future__ import annotations

import pytest
import torch

from headloc.errors import HeadlocError
from headloc.lm.branches import branch_logits
from headloc.lm.taps import gate_heads
from tests.tiny import tiny_batch, tiny_lm


def test_gates_per_column_must_fit_the_model() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(HeadlocError, match="columns"), gate_heads(lm, torch.ones(1, 1, 1, 1)):
        pass


def test_branches_without_their_prefix_are_refused() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(HeadlocError, match="prefix"):
        branch_logits(lm, tiny_batch(), None, 2)
