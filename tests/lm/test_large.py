"""What keeps large models affordable: float32 gates on a bfloat16 model, logits where scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headloc import localize
from headloc.gates import HardConcreteGates, L1Gates
from headloc.lm import FrozenLM, gate_heads, tap_heads
from headloc.objectives import InPlace
from tests.localizer.planted import OwnAnswers, planted_lm, small
from tests.tiny import FAMILIES, tiny_batch, tiny_lm, tiny_model


def test_gates_of_a_bfloat16_model_are_float32_and_train_as_such() -> None:
    known = planted_lm()
    model = tiny_model("llama", 0, vocab_size=known.vocab_size, num_hidden_layers=3)
    model.load_state_dict(known.model.state_dict())
    lm = FrozenLM(model.bfloat16(), known.tokenizer)
    found = {}
    for gates in (HardConcreteGates(), L1Gates()):
        settings = small(trainer={"max_epochs": 2})
        run = localize(
            lm, OwnAnswers(lm), objective=InPlace("zero"), gates=gates, seed=1, **settings
        )
        assert lm.dtype == torch.bfloat16
        assert run.circuit.gates.dtype == torch.float32
        # Steps far below what bfloat16 can tell apart are kept.
        rounded = run.circuit.scores.bfloat16().float()
        found[type(gates)] = float((run.circuit.scores - rounded).abs().max())
    assert min(found.values()) > 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_gate_acts_in_float32_and_is_rounded_once(family: str) -> None:
    lm, batch = tiny_lm(family, torch.bfloat16), tiny_batch()
    gates = torch.rand(lm.layout.total, generator=torch.Generator().manual_seed(1))
    gated: dict[int, Tensor] = {}
    own: dict[int, Tensor] = {}
    with (
        tap_heads(lm, lambda position, z: own.__setitem__(position, z)),
        gate_heads(lm, gates),
        tap_heads(lm, lambda position, z: gated.__setitem__(position, z)),
    ):
        lm.logits(batch)
    for position, part in enumerate(lm.layout.slices()):
        expected = (own[position].float() * gates[part][:, None]).bfloat16()
        assert torch.equal(gated[position], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_made_only_where_they_are_scored(family: str) -> None:
    lm, batch = tiny_lm(family), tiny_batch()
    columns: list[int] = []

    def count(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        columns.append(output.shape[1])

    handle = lm.model.get_output_embeddings().register_forward_hook(count)
    try:
        lm.logits(batch)
        if lm.supports_prefix_cache:
            columns.clear()
            prefix = lm.prefix(batch)
            assert columns == [1 if lm.keeps_logits else batch.prompt_columns - 1]
            columns.clear()
            lm.logits(batch, prefix)
    finally:
        handle.remove()
    answers = batch.target_BJ.shape[1]
    assert columns == [answers]
