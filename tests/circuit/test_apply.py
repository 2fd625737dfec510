"""A circuit on a plain transformers model: which tokens it gates, and in `generate()`.

The reference is `gated_pass`: the whole text in one pass without a cache, gated from the last
prompt token on.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from headloc.circuit import Circuit
from headloc.errors import CircuitError, TapError
from headloc.objectives import InPlace
from headloc.objectives.prompts import PromptSet
from tests.architectures.generation import gated_pass, generated, prompt_of
from tests.circuit.made import tiny_circuit
from tests.tiny import hook_count, tiny_batch, tiny_lm, tiny_model

SOME = ("gpt2", "mistral")
NEW = 5


@pytest.mark.parametrize("mlps", [False, True], ids=["heads", "with_mlps"])
@pytest.mark.parametrize("off_value", ["zero", "mean"])
@pytest.mark.parametrize("family", SOME)
def test_generation_gates_every_token_that_predicts_the_answer(
    family: str, off_value: str, mlps: bool
) -> None:
    lm = tiny_lm(family)
    circuit = tiny_circuit(lm, off_value=off_value, mlps=mlps)
    prompt = prompt_of()
    with circuit.apply(lm.model):
        cached, cached_logits = generated(lm.model, prompt, use_cache=True)
        whole, whole_logits = generated(lm.model, prompt, use_cache=False)
    torch.testing.assert_close(cached_logits, whole_logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(cached, whole)
    expected = gated_pass(circuit, lm, whole[:, :-1], prompt.shape[1])
    torch.testing.assert_close(cached_logits, expected, rtol=1e-4, atol=1e-5)
    # The reference is not trivial: gating only the newest column gives something else.
    last_only = gated_pass(circuit, lm, whole[:, :-1], whole.shape[1] - 1)[:, -1]
    assert not torch.allclose(last_only, expected[:, -1], atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_position_is_gated_where_the_circuit_says_so(family: str) -> None:
    lm = tiny_lm(family)
    circuit = tiny_circuit(lm, off_value="zero", positions="all")
    prompt = prompt_of()
    with circuit.apply(lm.model):
        text, logits = generated(lm.model, prompt)
    expected = gated_pass(circuit, lm, text[:, :-1], prompt.shape[1])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"prefill_chunk_size": 3},
        {"prompt_lookup_num_tokens": 3},
        {"cache_implementation": "static"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_ways_to_generate_give_the_same(options: dict[str, Any]) -> None:
    lm = tiny_lm("llama")
    circuit = tiny_circuit(lm)
    prompt = prompt_of(columns=8).repeat(1, 2)
    with circuit.apply(lm.model):
        plain = lm.model.generate(prompt, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        other = lm.model.generate(
            prompt, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **options
        )
    assert torch.equal(plain, other)


def test_beams_and_prompts_as_embeddings_are_gated_alike() -> None:
    lm = tiny_lm("llama")
    circuit, prompt = tiny_circuit(lm), prompt_of(rows=2)
    beams = {"num_beams": 3, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    embedded = lm.model.get_input_embeddings()(prompt)
    mask = torch.ones_like(prompt)
    with circuit.apply(lm.model):
        cached = lm.model.generate(prompt, attention_mask=mask, **beams)
        whole = lm.model.generate(prompt, attention_mask=mask, use_cache=False, **beams)
        new = lm.model.generate(inputs_embeds=embedded, attention_mask=mask, **beams)
    assert torch.equal(cached, whole)
    assert torch.equal(cached[:, prompt.shape[1] :], new)


def test_left_padded_rows_generate_what_they_generate_alone() -> None:
    lm = tiny_lm("llama")
    circuit, rows = tiny_circuit(lm), [prompt_of(columns=n, seed=n) for n in (4, 7)]
    padded = torch.cat([torch.nn.functional.pad(row, (7 - row.shape[1], 0)) for row in rows])
    with circuit.apply(lm.model):
        _, together = generated(lm.model, padded, attention_mask=(padded != 0).long())
        alone = [generated(lm.model, row)[1] for row in rows]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_prompts_padded_on_the_right_are_refused() -> None:
    lm = tiny_lm("llama")
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, 5:] = 0
    with pytest.raises(CircuitError, match="left"), tiny_circuit(lm).apply(lm.model):
        lm.model(prompt_of(rows=2), attention_mask=mask)


@pytest.mark.parametrize("off_value", ["zero", "mean"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "llama"])
def test_a_direct_call_scores_an_answer_as_an_evaluation_does(family: str, off_value: str) -> None:
    lm = tiny_lm(family)
    circuit, batch = tiny_circuit(lm, off_value=off_value), tiny_batch()
    objective = InPlace(off_value=off_value, loss="kl")
    objective.load_tensors(circuit.tensors, lm, None)  # type: ignore[arg-type]
    prompts = PromptSet((), (), batch)
    expected = objective.logits(lm, prompts, slice(None), circuit.mask(lm))
    with circuit.apply(lm.model, answer_tokens=2):
        out = lm.model(
            batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.position_ids_BT
        )
    real = batch.target_BJ >= 0
    torch.testing.assert_close(out.logits[:, -2:][real], expected[real], rtol=1e-4, atol=1e-5)


def test_calls_that_go_on_from_a_cache_continue_the_answer() -> None:
    lm = tiny_lm("llama")
    circuit, text = tiny_circuit(lm), prompt_of(columns=9)
    expected = gated_pass(circuit, lm, text, 6)
    with circuit.apply(lm.model), torch.no_grad():
        first = lm.model(text[:, :6], use_cache=True)
        rest = lm.model(text[:, 6:], past_key_values=first.past_key_values)
    torch.testing.assert_close(first.logits[:, -1], expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rest.logits, expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_a_cache_made_outside_the_block_holds_the_beginning_of_a_prompt() -> None:
    lm = tiny_lm("llama")
    circuit, text = tiny_circuit(lm), prompt_of(columns=9)
    cache = DynamicCache(config=lm.model.config)
    with torch.no_grad():
        lm.model(text[:, :5], past_key_values=cache)
        with circuit.apply(lm.model):
            rest = lm.model(text[:, 5:], past_key_values=cache)
    expected = gated_pass(circuit, lm, text, 9)
    torch.testing.assert_close(rest.logits[:, -1:], expected, rtol=1e-4, atol=1e-5)


def test_new_tokens_take_the_mean_of_the_last_prompt_token_where_no_answer_was_seen() -> None:
    lm = tiny_lm("llama")
    circuit = tiny_circuit(lm, answers_seen=False)
    seen = dict(circuit.tensors)
    for name in ("off/000", "off/001"):
        seen[name] = seen[name].clone()
        seen[name][1] = seen[name][0]
    like_last = Circuit(**{**_fields(circuit), "tensors": seen})
    prompt = prompt_of()
    with circuit.apply(lm.model):
        text, logits = generated(lm.model, prompt)
    expected = gated_pass(like_last, lm, text[:, :-1], prompt.shape[1])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def _fields(circuit: Circuit) -> dict[str, Any]:
    return {name: getattr(circuit, name) for name in Circuit.__dataclass_fields__}


def state(model: nn.Module) -> tuple[Any, ...]:
    flags = [(module.training, "generate" in vars(module)) for module in model.modules()]
    return flags, [p.requires_grad for p in model.parameters()], hook_count(model)


@pytest.mark.parametrize("fails", [False, True], ids=["leaves", "fails"])
def test_a_plain_model_is_left_as_it_was(fails: bool) -> None:
    model = tiny_model("gpt2")
    model.train()
    model.transformer.h[0].eval()
    model.lm_head.weight.requires_grad_(False)
    before, circuit = state(model), tiny_circuit(tiny_lm("gpt2"))
    prompt = prompt_of()
    try:
        with circuit.apply(model):
            assert not model.training
            first, again = (model(prompt).logits for _ in range(2))
            assert torch.equal(first, again)
            assert first.requires_grad
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert state(model) == before


def test_a_plain_model_and_its_frozen_one_answer_alike() -> None:
    model, lm = tiny_model("gpt2"), tiny_lm("gpt2")
    circuit, prompt = tiny_circuit(lm), prompt_of()
    with circuit.apply(model), torch.no_grad():
        plain = model(prompt).logits
    with circuit.apply(lm):
        frozen = lm.model(prompt).logits
    assert torch.equal(plain, frozen)


def test_two_circuits_at_once_leave_what_both_keep() -> None:
    lm = tiny_lm("gpt2")
    first, second = (tiny_circuit(lm, off_value="zero", seed=seed) for seed in (1, 2))
    both = tuple(sorted(set(first.heads) & set(second.heads)))
    assert both not in (first.heads, second.heads)
    prompt = prompt_of()
    with first.apply(lm.model), second.apply(lm.model):
        nested = generated(lm.model, prompt)[1]
    with Circuit(**{**_fields(first), "heads": both}).apply(lm.model):
        assert torch.equal(nested, generated(lm.model, prompt)[1])


def test_models_that_do_not_fit_are_refused() -> None:
    lm = tiny_lm("gpt2")
    circuit = tiny_circuit(lm)
    refused: list[tuple[Circuit, Any, str]] = [
        (circuit, tiny_model("opt"), r"gpt2 model.*type opt"),
        (circuit, nn.Linear(2, 2), "not to Linear"),
    ]
    wrong = {**circuit.tensors, "off/000": torch.zeros(10, 4, 9)}
    refused.append((Circuit(**{**_fields(circuit), "tensors": wrong}), lm, "another model"))
    for one, model, message in refused:
        with pytest.raises(CircuitError, match=message), one.apply(model):
            pass
    with pytest.raises(TapError, match="No forward"), circuit.apply(lm):
        pass


def test_more_answer_tokens_than_a_pass_has_are_refused() -> None:
    lm = tiny_lm("gpt2")
    circuit = tiny_circuit(lm)
    with pytest.raises(CircuitError, match="leaves no prompt"), circuit.apply(lm, answer_tokens=8):
        lm.model(prompt_of())
    with pytest.raises(CircuitError, match="1 or more"), circuit.apply(lm, answer_tokens=0):
        pass


def test_means_of_other_weights_are_told() -> None:
    circuit, other = tiny_circuit(tiny_lm("gpt2")), tiny_model("gpt2", 1)
    with pytest.warns(UserWarning, match="other weights"), circuit.apply(other):
        other(prompt_of())
