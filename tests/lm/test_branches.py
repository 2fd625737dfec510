"""What branches refuse; that they equal separate rows is in `tests/architectures`."""

from __future__ import annotations

import pytest
import torch

from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.lm.branches import (
    branch_logits,
    require_branches,
    supports_branches,
    within_window,
)
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


@pytest.mark.parametrize("family", ["mistral", "gemma3", "cohere2"])
def test_branches_stay_within_a_window_of_attention(family: str) -> None:
    window = 10
    lm = FrozenLM(tiny_model(family, dtype=torch.float64, sliding_window=window))
    assert supports_branches(lm)
    for columns in range(window - 3, window + 4):
        batch = tiny_batch((columns, 4), answers=2)
        real_BJ = batch.target_BJ >= 0
        with torch.no_grad():
            prefix, full_BJV = lm.prefix(batch), lm.logits(batch)
            # The prompt, and the answer's first token behind it.
            if columns + 1 > window:
                assert not within_window(prefix, 2)
                with pytest.raises(UnsupportedModelError, match="window"):
                    branch_logits(lm, batch, prefix, 3)
                continue
            assert within_window(prefix, 2)
            found_BGJV = branch_logits(lm, batch, prefix, 3)
        for own_BJV in found_BGJV.unbind(1):
            torch.testing.assert_close(own_BJV[real_BJ], full_BJV[real_BJ])


@pytest.mark.parametrize("window", [16, 256])
def test_layers_that_mask_by_column_take_no_branches_however_wide_their_window(window: int) -> None:
    """Branches of gpt_neo push one another, and the prompt, out of its local attention."""
    lm = FrozenLM(tiny_model("gpt_neo", window_size=window))
    assert not supports_branches(lm)
