"""Mean off-values: what they average, on which prompts, and how a circuit carries them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headloc.circuit import Circuit
from headloc.errors import CircuitError, HeadlocError
from headloc.heads import HeadId
from headloc.lm.batch import Role
from headloc.lm.taps import gate_heads
from headloc.objectives import InPlace, RoleMeans
from headloc.objectives.off_values import role_means
from headloc.objectives.prompts import encode_examples
from headloc.randomness import stream
from headloc.tasks import Pairs
from tests.circuit.made import tiny_circuit
from tests.objectives.by_hand import (
    PROJECTIONS,
    TOTAL,
    ByHand,
    add_k,
    digit_lm,
    mixed_examples,
    prepared,
    random_gates,
)
from tests.tiny import tiny_lm

SEED = 3
PROMPTS = 30


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("family", sorted(PROJECTIONS))
def test_role_means_are_plain_averages_over_tokens(family: str, positions: str) -> None:
    lm, task = digit_lm(family), add_k()
    objective = InPlace("mean", positions=positions)
    objective.prepare(lm, task, seed=SEED, prompts=PROMPTS)
    means = objective.means
    assert means is not None
    examples = task.draw(PROMPTS, stream(SEED, "means"), split="train", items="fit")
    tables = ByHand(lm, family).role_means(examples, task)
    seen = {Role.LAST, Role.ANSWER} if positions == "last" else set(tables[0])
    assert {Role(int(r)) for r in torch.nonzero(means.counts_R).flatten()} == seen
    for mean_RHd, table in zip(means.means, tables, strict=True):
        for role in seen:
            torch.testing.assert_close(mean_RHd[role], table[role], rtol=1e-4, atol=1e-5)
    assert int(means.counts_R[Role.LAST]) == PROMPTS


def test_means_come_from_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import headloc.objectives.in_place as module

    lm, task = digit_lm("llama"), add_k()
    drawn: list[tuple[object, ...]] = []
    encode = module.encode_examples

    def spy(model: object, examples: object, *rest: object) -> object:
        drawn.append(tuple(examples))  # type: ignore[arg-type]
        return encode(model, examples, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "encode_examples", spy)
    InPlace("mean").prepare(lm, task, seed=SEED, prompts=PROMPTS)
    (means,) = drawn
    for use in ("train", "selection", "test"):
        scored = task.draw(PROMPTS, stream(SEED, use, "train"), split="train", items="fit")
        assert set(scored) != set(means)
        assert scored[0] != means[0]
    assert {example.task for example in means} <= set(task.train)  # type: ignore[attr-defined]


def test_means_and_scored_prompts_share_no_item_where_items_come_from_data(
    tmp_path: Path,
) -> None:
    items = [{"input": f"w{i}", "output": f"v{i}"} for i in range(40)]
    (tmp_path / "words.json").write_text(json.dumps(items))
    task = Pairs(path=str(tmp_path / "words.json"), shots=2)
    fit = task.draw(200, stream(0, "means"), split="train", items="fit")
    score = task.draw(200, stream(0, "test", "train"), split="train", items="score")
    assert not {e.query for e in fit} & {e.query for e in score}


def test_means_do_not_depend_on_how_prompts_are_cut_into_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import headloc.objectives.off_values as module

    lm, task = digit_lm("gpt2"), add_k()
    objectives = [InPlace("mean", positions="all") for _ in range(2)]
    objectives[0].prepare(lm, task, seed=SEED, prompts=PROMPTS)
    monkeypatch.setattr(module, "ROWS_PER_PASS", 7)
    steps: list[tuple[int, int]] = []
    objectives[1].prepare(
        lm, task, seed=SEED, prompts=PROMPTS, progress=lambda done, of: steps.append((done, of))
    )
    assert steps == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]
    one, other = (objective.tensors() for objective in objectives)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["last", "all"])
def test_off_values_survive_a_saved_circuit_bit_for_bit(positions: str, tmp_path: Path) -> None:
    lm, task = digit_lm("qwen3"), add_k()
    objective = InPlace("mean", positions=positions)
    prompts = prepared(objective, lm, task, mixed_examples(task))
    circuit = Circuit(
        heads=(HeadId(0, 1),),
        gates=torch.zeros(TOTAL),
        scores=torch.zeros(TOTAL),
        model=lm.source.to_dict(),
        objective=objective.describe(),
        task=task.describe(),
        selection={},
        seed=0,
        tensors=objective.tensors(),
    )
    loaded = Circuit.load(circuit.save(tmp_path / "circuit"))
    settings = dict(loaded.objective)
    settings.pop("name")
    again = InPlace(**settings)
    again.load_tensors(loaded.tensors, lm, task)
    gates = random_gates()
    assert torch.equal(
        again.logits(lm, prompts, slice(None), gates),
        objective.logits(lm, prompts, slice(None), gates),
    )


def test_tensors_without_means_are_refused() -> None:
    with pytest.raises(CircuitError, match="does not hold them"):
        InPlace("mean").load_tensors({}, digit_lm("llama"), add_k())
    lm = tiny_lm("llama")
    with pytest.raises(CircuitError, match="does not hold them"):
        RoleMeans.from_tensors({"off/000": torch.zeros(10, 4, 8)}, lm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("off/001"), "'off/001' should have 10 rows and is not there"),
        (lambda held: held.pop("off_mlp/001"), "'off_mlp/001' should have"),
        (lambda held: held.update({"off/000": held["off/000"][:2]}), "has shape"),
        (lambda held: held.update({"off/000": held["off/000"][:, :1]}), "another model"),
        (lambda held: held.update({"off_mlp/000": held["off_mlp/000"][:, :1]}), "another model"),
        (lambda held: held.update({"off/000": held["off/000"].int()}), "finite floats"),
        (lambda held: held["off/000"].fill_(float("nan")), "finite floats"),
        (lambda held: held.update({"off/counts": torch.zeros(2)}), "does not hold them"),
    ],
    ids=["layer", "block", "rows", "heads", "width", "type", "NaN", "counts"],
)
def test_broken_means_are_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    lm = tiny_lm("llama")
    held = dict(tiny_circuit(lm, mlps=True).tensors)
    RoleMeans.from_tensors(held, lm, mlps=True)
    change(held)
    with pytest.raises(CircuitError, match=message):
        RoleMeans.from_tensors(held, lm, mlps=True)


@pytest.mark.parametrize("off_value", ["zero", "resample"])
def test_other_off_values_estimate_and_store_nothing(off_value: str) -> None:
    objective = InPlace(off_value)
    objective.prepare(digit_lm("llama"), add_k(), seed=0, prompts=4)
    assert objective.tensors() == {}


def test_counterfactuals_ask_another_task_and_keep_the_answer_tokens() -> None:
    lm, task = digit_lm("llama"), add_k()
    objective = InPlace("resample")
    examples = mixed_examples(task)
    prompts = objective.prompt_set(lm, task, examples, seed=SEED, use="test")
    assert prompts.counterfactual is not None
    assert torch.equal(prompts.counterfactual.target_BJ, prompts.batch.target_BJ)
    rng = stream(SEED, "test", "counterfactual")
    others = [task.counterfactual(example, rng) for example in examples]
    encoded, _ = encode_examples(lm, others, task.template)
    for row, (item, other, example) in enumerate(zip(encoded, others, examples, strict=True)):
        assert other.task != example.task
        real = prompts.counterfactual.mask_BT[row].bool()
        ids = prompts.counterfactual.ids_BT[row][real].tolist()
        assert ids[: len(item.prompt.prompt_ids)] == list(item.prompt.prompt_ids)


@pytest.mark.parametrize("stored", [False, True], ids=["prepared", "stored"])
def test_longer_answers_than_those_behind_the_means_are_not_ablated_to_zero(stored: bool) -> None:
    """Training tasks with answers of one token, a held-out task with answers of two."""
    lm = digit_lm("llama")
    task = add_k(k=[1, 2, 20], held_out_k=[20], x_min=1, x_max=6)
    objective = InPlace("mean")
    objective.prepare(lm, task, seed=SEED, prompts=PROMPTS)
    if stored:
        drawn = task.draw(8, stream(SEED, "means"), split="train")
        _, batch = encode_examples(lm, drawn, task.template)
        plain = role_means(lm, batch, predicting_only=True)
        assert not float(plain.means[0][Role.ANSWER].abs().sum())
        objective.load_tensors(plain.to_tensors(), lm, task)
    means = objective.means
    assert means is not None
    assert int(means.counts_R[Role.ANSWER]) == 0
    examples = task.draw(6, stream(SEED, "test"), split="held_out")
    prompts = objective.prompt_set(lm, task, examples, seed=SEED, use="test")
    assert prompts.batch.target_BJ.shape[1] == 2
    closed_A = torch.zeros(lm.layout.total)
    found_BJV = objective.logits(lm, prompts, slice(None), closed_A)
    last = [mean_RHd[Role.LAST][None, None] for mean_RHd in means.means]
    with gate_heads(lm, closed_A, off=last):
        expected_BJV = lm.logits(prompts.batch, prompts.prefix)
    torch.testing.assert_close(found_BJV, expected_BJV)
    with gate_heads(lm, closed_A):
        zero_BJV = lm.logits(prompts.batch, prompts.prefix)
    assert not torch.allclose(found_BJV[:, 1], zero_BJV[:, 1], atol=1e-3)


def test_tokens_of_a_role_that_the_means_do_not_know_are_refused() -> None:
    lm = digit_lm("llama")
    plain, other = add_k(), add_k(template="question_answer")
    for positions in ("all", "last"):
        objective = InPlace("mean", positions=positions)
        objective.prepare(lm, plain, seed=SEED, prompts=8)
        examples = other.draw(2, stream(SEED, "test"), split="train")
        if positions == "last":
            objective.prompt_set(lm, other, examples, seed=SEED, use="test")
            continue
        with pytest.raises(HeadlocError, match="role PREFIX"):
            objective.prompt_set(lm, other, examples, seed=SEED, use="test")
