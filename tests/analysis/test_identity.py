"""The aggregation and extraction identity on every attention layout, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headloc.analysis.identity import extraction_map, frozen_output_scale
from headloc.analysis.linear import principal_angles, random_basis
from headloc.analysis.prompting import Edit, edit_heads
from headloc.analysis.reading import prompt_only, read_chunks, read_heads_of
from headloc.analysis.value_maps import value_maps
from headloc.errors import UnsupportedModelError
from headloc.heads import HeadId
from headloc.lm.frozen import FrozenLM
from headloc.lm.projection import output_weights
from headloc.lm.taps import read_heads
from tests.architectures.models import double_batch, double_lm
from tests.tiny import tiny_batch, tiny_lm, tiny_model


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3", "mistral", "phi3", "opt"])
def test_attention_is_that_of_the_eager_maps(family: str) -> None:
    model = tiny_model(family)
    lm, batch = FrozenLM(model), tiny_batch((5, 11, 7, 8))
    found = read_heads_of(lm, batch, list(lm.layout))
    plain = prompt_only(batch)
    model.set_attn_implementation("eager")
    options = {"position_ids": plain.position_ids_BT} if lm.takes_positions else {}
    with torch.no_grad():
        maps = model(input_ids=plain.ids_BT, attention_mask=plain.mask_BT, output_attentions=True,
                     use_cache=False, **options).attentions  # fmt: skip
    for position, reading in found.items():
        torch.testing.assert_close(
            reading.attention_BHT, maps[position][:, :, -1], atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2", "glm4"])
def test_a_norm_behind_the_attention_is_one_frozen_scale(family: str) -> None:
    lm = double_lm(family)
    batch = prompt_only(double_batch(family))
    positions = list(range(len(lm.layout.layers)))
    outputs: list[Tensor] = []
    norm = lm.model.get_submodule(f"{lm.sites[1].block}." + (
        "post_self_attn_layernorm" if family == "glm4" else "post_attention_layernorm"
    ))  # fmt: skip
    handle = norm.register_forward_hook(lambda module, args, output: outputs.append(output))
    with frozen_output_scale(lm, positions) as scales, read_heads(lm) as reading:
        lm.logits(batch)
    handle.remove()
    assert set(scales) == set(positions)
    weight_HdD = output_weights(lm, 1)
    parts = torch.einsum("bthd,hdm->bthm", reading.z[1], weight_HdD)
    added = (scales[1][:, :, None] * parts).sum(2)
    real = batch.mask_BT.bool()
    torch.testing.assert_close(added[real], outputs[0][real], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2", "glm4"])
def test_the_identity_holds_behind_a_frozen_norm(family: str) -> None:
    """Along u the contribution to the stream is the sum of inputs along W^T (c * u)."""
    lm = double_lm(family)
    batch = double_batch(family)
    readings, maps = read_heads_of(lm, batch, list(lm.layout), inputs=True), value_maps(lm, [0, 1])
    with frozen_output_scale(lm, [0, 1]) as scales, read_heads(lm) as plain:
        lm.logits(prompt_only(batch))
    u_D = torch.randn(lm.width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for position, reading in readings.items():
        assert reading.inputs_BTD is not None
        heads = lm.layout.layers[position].heads
        weight_HdD, scale_BD = output_weights(lm, position), scales[position][:, -1]
        for head in reading.heads:
            added_BD = scale_BD * (plain.z[position][:, -1, head] @ weight_HdD[head])
            frozen_DB = (scale_BD * u_D).T
            found = extraction_map(maps[position], head, heads, weight_HdD[head], frozen_DB)
            attention_BT = reading.attention_BHT[:, head]
            ones_BT = torch.ones_like(attention_BT)
            summed_BB = found.aggregated(reading.inputs_BTD, ones_BT, attention_BT)
            torch.testing.assert_close(summed_BB.diagonal(), added_BD @ u_D, atol=1e-10, rtol=1e-10)


def test_families_without_such_a_norm_have_no_scale() -> None:
    lm = double_lm("llama")
    with frozen_output_scale(lm, [0, 1]) as scales:
        lm.logits(prompt_only(tiny_batch()))
    assert scales == {}


def test_a_head_built_by_hand_reads_the_subspace_it_was_given() -> None:
    """V reads two known directions, W_O writes them to two known others."""
    model = tiny_model("llama_mha", dtype=torch.float64)
    read_D2 = random_basis(torch.eye(32, dtype=torch.float64), 2, torch.Generator().manual_seed(1))
    written_D2 = random_basis(
        torch.eye(32, dtype=torch.float64), 2, torch.Generator().manual_seed(2)
    )
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        attention.v_proj.weight[16:24] = 0
        attention.v_proj.weight[16:18] = read_D2.T
        attention.o_proj.weight[:, 16:24] = 0
        attention.o_proj.weight[:, 16:18] = written_D2
    lm = FrozenLM(model)
    weight_dD = output_weights(lm, 1)[2]
    found = extraction_map(value_maps(lm, [1])[1], 2, 4, weight_dD, written_D2)
    assert found.basis_Dr.shape == (32, 2)
    assert principal_angles(found.basis_Dr, read_D2).max() < 1e-6
    one = extraction_map(value_maps(lm, [1])[1], 2, 4, weight_dD, written_D2[:, :1])
    assert principal_angles(one.basis_Dr, read_D2[:, :1]).max() < 1e-6


def test_chunks_of_any_size_read_the_same_and_no_pass_is_larger() -> None:
    lm, batch = tiny_lm("qwen3"), tiny_batch((5, 9, 3, 7, 9, 4, 8))
    rows: list[int] = []
    handle = lm.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    heads = [HeadId(0, 1), HeadId(1, 3)]
    whole = read_heads_of(lm, batch, heads)
    rows.clear()
    parts = list(read_chunks(lm, batch, heads, rows_per_pass=3))
    handle.remove()
    assert max(rows) == 3
    assert [part.stop - part.start for part, _ in parts] == [3, 3, 1]
    for position, reading in whole.items():
        assert reading.attention_BHT.shape == (7, 1, 9)
        for name in ("z_BHd", "attention_BHT", "values_BHTd"):
            joined = torch.cat([getattr(found[position], name) for _, found in parts])
            torch.testing.assert_close(joined, getattr(reading, name), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_read_is_refused_with_the_reason() -> None:
    clipped = tiny_model("olmo")
    clipped.config.clip_qkv = 1.0
    with pytest.raises(UnsupportedModelError, match="clip_qkv"):
        value_maps(FrozenLM(clipped), [0])
    model = tiny_model("llama")
    lm = FrozenLM(model)
    wrong = model.model.layers[0].self_attn
    forward = wrong.v_proj.forward
    wrong.v_proj.forward = lambda x: forward(x) ** 2
    with pytest.raises(UnsupportedModelError, match="not the affine function"):
        value_maps(lm, [0])
    lm = FrozenLM(tiny_model("llama"))
    gate = lm.model.model.layers[1].self_attn.o_proj
    handle = gate.register_forward_pre_hook(lambda module, args: (args[0] * 0.5 + 0.1,))
    with pytest.raises(UnsupportedModelError, match="more than weigh their values"):
        read_heads_of(lm, tiny_batch(), [HeadId(1, 0)])
    handle.remove()
    lm.__dict__["_prefix_is_exact"] = False
    with pytest.raises(UnsupportedModelError, match="cannot be reused"):
        read_heads_of(lm, tiny_batch(), [HeadId(1, 0)])


def test_an_edit_does_what_it_says_and_nothing_else() -> None:
    lm, batch = tiny_lm("llama"), prompt_only(tiny_batch())
    matrix = torch.randn(8, 8, dtype=torch.float64)
    shift = torch.randn(len(batch), 8, dtype=torch.float64)
    edits = {HeadId(0, 2): Edit(matrix, shift), HeadId(1, 1): Edit(None, shift[0])}
    with read_heads(lm) as before:
        lm.logits(batch)
    with edit_heads(lm, edits, slice(-1, None)), read_heads(lm) as after:
        lm.logits(batch)
    expected = before.z[0][:, -1, 2].double() @ matrix + shift
    torch.testing.assert_close(after.z[0][:, -1, 2].double(), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(after.z[0][:, :-1], before.z[0][:, :-1])
    others = [0, 1, 3]
    assert torch.equal(after.z[0][:, :, others], before.z[0][:, :, others])
