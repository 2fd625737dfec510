"""The contract of the tap site, on a tiny random model of every family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headloc.heads import HeadId
from headloc.lm import FrozenLM, gate_heads, read_heads, replace_heads
from headloc.lm.families import FAMILIES as TABLE
from headloc.lm.layout import locate_heads
from tests.tiny import (
    FAMILIES,
    HEADS,
    LAYERS,
    SPECS,
    hook_count,
    tiny_batch,
    tiny_lm,
    tiny_model,
    tiny_prompt,
)

NOT_STRUCTURAL = {"gpt_neo"}  # its attention module does not know its layer


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> FrozenLM:
    return tiny_lm(request.param)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def input_rows(projection: nn.Module) -> Tensor:
    """The weight with one row per input feature, for Linear and for transformers' Conv1D."""
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return weight if hasattr(projection, "nx") else weight.t()


def without_head(lm: FrozenLM, head: HeadId) -> Any:
    """A copy of the model in which the head's rows of the output projection are zero."""
    position = [layer.layer for layer in lm.layout.layers].index(head.layer)
    width = lm.layout.layers[position].width
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        rows = input_rows(model.get_submodule(lm.sites[position].projection))
        rows[head.head * width : (head.head + 1) * width] = 0
    return model


def forward(model: Any, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def test_every_entry_of_the_table_has_a_tiny_model() -> None:
    covered = {spec.model_type for spec in SPECS.values()}
    missing = {name for name in TABLE if name not in covered}
    # Same modelling code as a covered family, or a multimodal wrapper of one.
    assert missing == {"gemma3", "glm4_moe", "granitemoe", "ministral", "ministral3"}


def test_layout(family: str) -> None:
    spec, layout = SPECS[family], tiny_lm(family).layout
    found = [(heads.layer, heads.heads, heads.width, heads.kv_heads) for heads in layout.layers]
    assert found == [(layer, HEADS, spec.width, spec.kv_heads) for layer in range(LAYERS)]


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NOT_STRUCTURAL))
def test_the_structural_search_finds_what_the_table_says(family: str) -> None:
    lm, model = tiny_lm(family), tiny_model(family)
    model.config.model_type = "mystery"
    assert locate_heads(model) == lm.sites


def test_gates_of_one_leave_the_logits_bitwise_unchanged(lm: FrozenLM) -> None:
    batch = tiny_batch()
    before = lm.logits(batch)
    off = [torch.full((layer.heads, layer.width), 3.7) for layer in lm.layout.layers]
    for options in ({}, {"off": off}, {"columns": batch.predicting}):
        with gate_heads(lm, torch.ones(lm.layout.total), **options):  # type: ignore[arg-type]
            assert torch.equal(lm.logits(batch), before)
    assert hook_count(lm.model) == 0


def test_a_gate_of_zero_equals_a_head_cut_out_of_the_weights(lm: FrozenLM) -> None:
    ids = torch.tensor([tiny_prompt(7).prompt_ids])
    base = forward(lm.model, input_ids=ids)
    for head in (HeadId(0, 1), HeadId(LAYERS - 1, HEADS - 1)):
        gates = torch.ones(lm.layout.total)
        gates[lm.layout.index(head)] = 0
        with gate_heads(lm, gates):
            gated = forward(lm.model, input_ids=ids)
        torch.testing.assert_close(
            gated, forward(without_head(lm, head), input_ids=ids), rtol=1e-4, atol=1e-4
        )
        assert (gated - base).abs().max() > 1e-3


def test_heads_add_up_to_the_output_of_the_projection(lm: FrozenLM) -> None:
    batch = tiny_batch((6, 6))
    outputs: list[Tensor] = []
    projection = lm.model.get_submodule(lm.sites[-1].projection)
    handle = projection.register_forward_hook(lambda *call: outputs.append(call[2]))
    with read_heads(lm) as reading:
        lm.logits(batch)
    handle.remove()
    heads = lm.layout.layers[-1]
    weight_HdD = input_rows(projection).unflatten(0, (heads.heads, heads.width))
    total = torch.einsum("bthd,hde->bte", reading.z[-1], weight_HdD)
    bias = getattr(projection, "bias", None)
    torch.testing.assert_close(
        total + (0 if bias is None else bias), outputs[0], rtol=1e-4, atol=1e-4
    )


def test_every_gate_gets_a_gradient(lm: FrozenLM) -> None:
    batch = tiny_batch()
    gates = torch.full((lm.layout.total,), 0.9, requires_grad=True)
    with gate_heads(lm, gates, columns=batch.predicting):
        lm.logits(batch)[..., 3].sum().backward()
    assert gates.grad is not None
    assert gates.grad.isfinite().all()
    assert (gates.grad.abs() > 0).all()


def test_reading_and_putting_back_changes_nothing_and_a_transplant_moves_the_answer(
    lm: FrozenLM,
) -> None:
    batch, other = tiny_batch((6, 4)), tiny_batch((7, 9))
    before = lm.logits(batch)
    head = HeadId(1, 2)
    with read_heads(lm, columns=batch.predicting) as own:
        lm.logits(batch)
    with read_heads(lm, columns=other.predicting) as foreign:
        lm.logits(other)
    with replace_heads(lm, {head: own.z[1][:, :, 2]}, columns=batch.predicting):
        assert torch.equal(lm.logits(batch), before)
    with replace_heads(lm, {head: foreign.z[1][:, :, 2]}, columns=batch.predicting):
        assert (lm.logits(batch) - before).abs().max() > 1e-3


def test_left_padding_changes_nothing(lm: FrozenLM) -> None:
    padded = lm.logits(tiny_batch((5, 11, 1, 8)))
    for row, length in enumerate((5, 11, 1, 8)):
        alone = lm.logits(tiny_batch((length,)) if row != 1 else tiny_batch((3, 11)))
        answers = 1 if row == 1 else 2
        torch.testing.assert_close(padded[row, :answers], alone[-1, :answers], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "mixtral", "deepseek_v3", "gpt_oss"])
def test_half_precision_keeps_its_dtype_and_the_identity(name: str, dtype: torch.dtype) -> None:
    lm, batch = tiny_lm(name, dtype), tiny_batch()
    before = lm.logits(batch)
    assert before.dtype == dtype
    with gate_heads(lm, torch.ones(lm.layout.total)):
        assert torch.equal(lm.logits(batch), before)
    with gate_heads(lm, torch.zeros(lm.layout.total)):
        assert not torch.equal(lm.logits(batch), before)
    assert lm.supports_prefix_cache


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bloom", "falcon_new", "gptj"])
def test_generation_under_gates_equals_generation_without_the_head(name: str) -> None:
    lm = tiny_lm(name)
    ids = torch.tensor([tiny_prompt(8).prompt_ids])
    gates = torch.ones(lm.layout.total)
    gates[1] = 0
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with gate_heads(lm, gates) as count:
        gated = lm.model.generate(ids, **options)
    assert len(set(count.fired.values())) == 1
    cut = without_head(lm, HeadId(0, 1)).generate(ids, **options)
    assert torch.equal(gated, cut)
