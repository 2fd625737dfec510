"""Subtraction and multiplication: arithmetic, splits, bounds, corruptions and their mistakes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headloc.errors import TaskError
from headloc.randomness import stream
from headloc.tasks import AddK, Arithmetic, MultiplyK, SubtractK, render

HELD_OUT = (2, 16, 20, 21, 27)
FAMILIES = {
    "subtract": (SubtractK, lambda x, k: x - k),
    "multiply": (MultiplyK, lambda x, k: x * k),
}


@pytest.mark.parametrize("verb", FAMILIES)
def test_labels_follow_from_inputs_and_the_split_is_that_of_add_k(verb: str) -> None:
    cls, label = FAMILIES[verb]
    family = cls()
    assert family.name == f"{verb}_k"
    assert family.held_out == tuple(f"{verb}_{k}" for k in HELD_OUT)
    assert [task.partition("_")[2] for task in family.train] == [
        task.partition("_")[2] for task in AddK().train
    ]
    for example in family.draw(300, stream(0), split="train"):
        k = int(example.task.rpartition("_")[2])
        assert family.offset(example.task) == k
        assert int(example.answer) == label(int(example.query), k)
        assert all(int(p.output) == label(int(p.input), k) for p in example.demonstrations)
        assert len({example.query, *(p.input for p in example.demonstrations)}) == 6


def test_subtraction_stays_at_zero_or_above_and_all_tasks_share_their_inputs() -> None:
    family = SubtractK()
    examples = family.draw(3000, stream(0), split="train")
    shown = [(e.task, p.input, p.output) for e in examples for p in e.demonstrations]
    assert min(int(output) for _, _, output in shown) == 0
    # Otherwise a small x would tell that k is small.
    for task in ("subtract_1", "subtract_30"):
        inputs = {int(x) for name, x, _ in shown if name == task}
        assert (min(inputs), max(inputs)) == (30, 100)
    below = SubtractK(y_min=None).draw(500, stream(0), split="train")
    assert any(example.answer.startswith("-") for example in below)


def test_subtract_k_is_add_k_of_minus_k() -> None:
    # The paper writes subtraction as y = x + k with k in -30..0.
    subtract = SubtractK(k_min=0, held_out_k=[3], y_min=None)
    add = AddK(k_min=-30, k_max=0, held_out_k=[-3])
    assert len(subtract.train) == len(add.train) == 30
    for k in range(31):
        ours, theirs = f"subtract_{k}", f"add_{-k}"
        drawn = subtract.example(ours, stream(k)), add.example(theirs, stream(k))
        assert drawn[0].demonstrations == drawn[1].demonstrations
        assert drawn[0].answer == drawn[1].answer


def test_prompt_text() -> None:
    family = MultiplyK(k=[3], x_min=12, x_max=13, held_out_k=[], shots=1)
    rendered = render(family.example("multiply_3", stream(0)), family.template)
    assert {"12->36#13->": "39", "13->39#12->": "36"}[rendered.text] == rendered.answer


@settings(max_examples=30, deadline=None)
@given(
    verb=st.sampled_from(sorted(FAMILIES)),
    k=st.lists(st.integers(-9, 20), min_size=2, max_size=5, unique=True),
    x_min=st.integers(-8, 3),
    low=st.integers(-60, 0),
    high=st.integers(60, 400),
)
def test_bounds_hold_for_every_task(
    verb: str, k: list[int], x_min: int, low: int, high: int
) -> None:
    cls, label = FAMILIES[verb]
    by_hand = [x for x in range(x_min, x_min + 30) if all(low <= label(x, n) <= high for n in k)]
    options: dict[str, Any] = {"x_min": x_min, "x_max": x_min + 29, "y_min": low, "y_max": high}
    if len(by_hand) < 3:
        with pytest.raises(TaskError, match="valid x"):
            cls(k=k, held_out_k=[], shots=2, **options)
        return
    family = cls(k=k, held_out_k=[], shots=2, **options)
    examples = family.draw(150, stream(0), split="train")
    used = {int(p.input) for e in examples for p in e.demonstrations}
    assert used <= set(by_hand)
    assert family.check_items(shots=len(by_hand) - 1) is None
    with pytest.raises(TaskError, match="need"):
        family.check_items(shots=len(by_hand))


@pytest.mark.parametrize("verb", FAMILIES)
def test_a_counterfactual_is_labelled_by_another_training_task(verb: str) -> None:
    cls, label = FAMILIES[verb]
    family: Arithmetic = cls(wrong_labels=0.3)
    rng = stream(0)
    for example in family.draw(40, rng, split="held_out"):
        other = family.counterfactual(example, rng)
        k = family.offset(other.task)
        assert other.task in family.train
        assert int(other.answer) == label(int(example.query), k) != int(example.answer)
        assert all(int(p.output) == label(int(p.input), k) for p in other.demonstrations)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (SubtractK, {"x_max": 20}, r"k=21 has 0 valid x .*task.y_min=0.*need 6.*drop a subtrahend"),
        (SubtractK, {"k": []}, "Give one subtrahend or more"),
        (SubtractK, {"k": [1, 2], "held_out_k": [3]}, "not among the subtrahends 1..2"),
        (MultiplyK, {"y_max": 100}, "k=26 has 3 valid x"),
        (MultiplyK, {"k": [2], "held_out_k": [2]}, "holds out every factor"),
        (MultiplyK, {"k": [2], "held_out_k": [], "wrong_labels": 0.1}, "two training factors"),
        (MultiplyK, {"k": "two"}, "task.k='two' is not an integer"),
        (AddK, {"y_max": 20}, "drop an offset, or use fewer"),
    ],
)
def test_options_that_make_no_sense(
    family: type[Arithmetic], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        family(**options)
