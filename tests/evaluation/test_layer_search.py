"""The search over insertion layers against bare hooks, identities between sites, planted places."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.evaluation.layer_search import (
    ALL,
    LayerSearch,
    Place,
    all_places,
    layer_sets,
    search_layers,
)
from headloc.lm.frozen import FrozenLM
from headloc.objectives import FunctionVector
from headloc.objectives.function_vector import SITES
from headloc.randomness import stream
from headloc.tasks import AddK, Example
from tests.localizer.planted import planted_lm
from tests.objectives.by_hand import ByHand, add_k, digit_lm, forced, random_gates

TASK = add_k(k=[1, 9, 30], held_out_k=[9])
LAYERS = {"llama": "model.layers.{}", "gpt2": "transformer.h.{}"}
ATTENTION = {"llama": "model.layers.{}.self_attn", "gpt2": "transformer.h.{}.attn"}


def prepared(lm: FrozenLM, task: AddK, **options: object) -> FunctionVector:
    objective = FunctionVector(prompts_per_task=4, **options)  # type: ignore[arg-type]
    objective.prepare(lm, task, seed=3)
    return objective


@torch.no_grad()
def by_hand(hand: ByHand, example: Example, task: AddK, place: Place, vector_D: Tensor) -> Tensor:
    """Logits at the predicting positions of one unpadded prompt, the vector added by bare hooks."""
    (prompt,) = hand.encoded([example.zero_shot()], task)
    last = len(prompt.prompt_ids) - 1

    def added(x_BTD: Tensor) -> Tensor:
        changed = x_BTD.clone()
        changed[0, last] += vector_D
        return changed

    def before(module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (added(args[0]), *args[1:])

    def after(module: object, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
        return (added(output[0]), *output[1:]) if isinstance(output, tuple) else added(output)

    name = ATTENTION if place.site == "attention" else LAYERS
    module = hand.lm.model.get_submodule(name[hand.family].format(place.layer))
    at_input = place.site == "layer_input"
    handle = (
        module.register_forward_pre_hook(before)
        if at_input
        else module.register_forward_hook(after)
    )
    try:
        ids = torch.tensor([forced(prompt)])
        return hand.lm.model(input_ids=ids, use_cache=False).logits[0, last:]
    finally:
        handle.remove()


def answer_log_p(hand: ByHand, example: Example, task: AddK, logits_JV: Tensor) -> float:
    (prompt,) = hand.encoded([example.zero_shot()], task)
    log_p = logits_JV.log_softmax(-1)
    return float(sum(log_p[j, token] for j, token in enumerate(prompt.answer_ids)))


@pytest.mark.parametrize("off_value", ["zero", "mean"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_place_agrees_with_bare_hooks(family: str, off_value: str) -> None:
    lm = digit_lm(family)
    objective = prepared(lm, TASK, off_value=off_value)
    hand = ByHand(lm, family)
    examples = TASK.draw(5, stream(8, "x"), split="train")
    prompts = objective.prompt_set(lm, TASK, examples, seed=0, use="x")
    gates_A = random_gates()
    assert prompts.task_rows is not None
    vectors_BD = objective.vectors(gates_A, prompts.task_rows)
    found = search_layers(
        objective, lm, prompts, {"some": gates_A}, all_places(lm.layout, SITES), seed=0
    )
    assert [score.place for score in found.scores] == [
        Place(layer, site) for layer in (0, 1) for site in SITES
    ]
    for score in found.scores:
        expected = [
            answer_log_p(hand, e, TASK, by_hand(hand, e, TASK, score.place, vector_D))
            for e, vector_D in zip(examples, vectors_BD, strict=True)
        ]
        assert score.log_probability == pytest.approx(sum(expected) / 5, rel=1e-4), score.place


def test_the_output_of_a_layer_is_the_input_of_the_next() -> None:
    lm = planted_lm()
    task = AddK(k_max=5, held_out_k=[], shots=2)
    objective = prepared(lm, task)
    prompts = objective.prompt_set(
        lm, task, task.draw(16, stream(0), split="train"), seed=0, use="x"
    )
    sets = {ALL: torch.ones(12)}
    found = search_layers(objective, lm, prompts, sets, all_places(lm.layout, SITES), seed=0)
    log_p = {str(score.place): score.log_probability for score in found.scores}
    for layer in (0, 1):
        entering, leaving = f"layer {layer + 1}, layer_input", f"layer {layer}, layer_output"
        assert log_p[entering] == pytest.approx(log_p[leaving], rel=1e-5)
    assert len({round(value, 3) for value in log_p.values()}) == 7


@pytest.mark.parametrize("planted", [Place(1, "attention"), Place(2, "layer_input")])
def test_the_place_where_the_answers_come_about_is_recommended(planted: Place) -> None:
    lm = planted_lm()
    task = AddK(k_max=9, held_out_k=[], shots=2)
    objective = prepared(lm, task)
    hand = ByHand(lm, "llama")
    gates_A = torch.ones(12)
    examples = task.draw(48, stream(1), split="train")
    rows = objective._known_means().index([example.task for example in examples])
    vectors_BD = objective.vectors(gates_A, rows)
    said = [
        by_hand(hand, example, task, planted, vector_D)[0].argmax()
        for example, vector_D in zip(examples, vectors_BD, strict=True)
    ]
    assert lm.tokenizer is not None
    right = [
        replace(example, answer=lm.tokenizer.decode([int(token)]))
        for example, token in zip(examples, said, strict=True)
    ]
    prompts = objective.prompt_set(lm, task, right, seed=0, use="x")
    places = all_places(lm.layout, ("attention", "layer_input"))
    found = search_layers(objective, lm, prompts, {ALL: gates_A}, places, seed=0)
    assert found.best(ALL).place == planted
    assert found.best(ALL).accuracy.value == 1.0
    assert found.zero_shot.value < 1.0
    for other in found.alike(ALL):
        assert other.accuracy.value > 0.8


def test_places_that_differ_by_chance_are_not_told_apart() -> None:
    found = made_up({0: 20 * [True] + 20 * [False], 1: 19 * [True] + 21 * [False], 2: 40 * [False]})
    assert found.best(ALL).place.layer == 0
    assert [score.place.layer for score in found.alike(ALL)] == [1]


def made_up(correct: dict[int, list[bool]]) -> LayerSearch:
    import numpy as np

    from headloc.evaluation.intervals import mean_interval
    from headloc.evaluation.layer_search import PlaceScore

    scores = []
    for layer, values in correct.items():
        array = np.array(values)
        accuracy = mean_interval(array, 0)
        scores.append(PlaceScore(Place(layer, "attention"), ALL, accuracy, -1.0, array))
    return LayerSearch(tuple(scores), scores[0].accuracy, scores[-1].accuracy, 0)


def test_the_heads_of_single_layers_part_the_heads() -> None:
    layout = planted_lm().layout
    sets = layer_sets(layout)
    assert list(sets) == [f"heads of layer {layer}" for layer in (0, 1, 2)]
    assert torch.equal(torch.stack(list(sets.values())).sum(0), torch.ones(12))
    assert sets["heads of layer 1"].nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_moving_an_objective_leaves_it_as_it_is_and_shares_its_means() -> None:
    lm = planted_lm()
    task = AddK(k_max=3, held_out_k=[], shots=2)
    objective = prepared(lm, task, layer=0)
    moved = objective.at(2, "layer_output")
    assert (objective.layer, objective.site) == (0, "attention")
    assert (moved.layer, moved.site) == (2, "layer_output")
    assert moved.means is objective.means
    with pytest.raises(HeadlocError, match=r"objective.site='atention' is unknown"):
        objective.at(1, "atention")
    with pytest.raises(HeadlocError, match=r"layers=\[0, 3\] is out of range: 3"):
        all_places(lm.layout, SITES, [0, 3])
    examples = task.draw(2, stream(0), split="train")
    with pytest.raises(HeadlocError, match=r"objective.layer=3 is out of range.*layers 0..2"):
        objective.at(3, "attention").prompt_set(lm, task, examples, seed=0, use="x")
