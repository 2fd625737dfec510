"""The add-k family: arithmetic, splits, streams, corruptions, and options that make no sense."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headloc.errors import TaskError
from headloc.randomness import stream
from headloc.tasks import AddK, Example, render


def correct(family: AddK, example: Example) -> list[bool]:
    k = family.offset(example.task)
    return [int(pair.output) == int(pair.input) + k for pair in example.demonstrations]


def test_defaults_are_the_papers() -> None:
    family = AddK()
    assert family.name == "add_k"
    assert len(family.train) == 25
    assert family.held_out == ("add_2", "add_16", "add_20", "add_21", "add_27")
    examples = family.draw(500, stream(0, "test"), split="train")
    for example in examples:
        assert example.shots == 5
        assert all(correct(family, example))
        assert int(example.answer) == int(example.query) + family.offset(example.task)
        inputs = [pair.input for pair in example.demonstrations]
        assert len({*inputs, example.query}) == 6
        assert all(1 <= int(x) <= 100 for x in (*inputs, example.query))
    queries = {int(example.query) for example in examples}
    assert min(queries) < 5
    assert max(queries) > 95


def test_prompt_text() -> None:
    family = AddK(k=[7], x_min=12, x_max=13, held_out_k=[], shots=1)
    example = family.example("add_7", stream(0))
    texts = {"12->19#13->": "20", "13->20#12->": "19"}
    rendered = render(example, family.template)
    assert texts[rendered.text] == rendered.answer
    assert render(example.zero_shot(), family.template).text == f"{example.query}->"


def test_splits_share_no_task_and_tasks_take_turns() -> None:
    family = AddK()
    train = Counter(e.task for e in family.draw(60, stream(0), split="train"))
    held_out = Counter(e.task for e in family.draw(60, stream(0), split="held_out"))
    assert set(train) == set(family.train)
    assert set(held_out) == set(family.held_out)
    assert set(train.values()) == {2, 3}
    assert set(held_out.values()) == {12}
    few = [example.task for example in family.draw(5, stream(1), split="train")]
    assert len(set(few)) == 5
    assert few != list(family.train[:5])


def test_drawing_is_deterministic_and_streams_differ() -> None:
    family = AddK()
    first = family.draw(40, stream(0, "train"), split="train")
    assert first == family.draw(40, stream(0, "train"), split="train")
    other = family.draw(40, stream(0, "test"), split="train")
    assert not set(first) & set(other)


@settings(max_examples=40, deadline=None)
@given(
    k=st.lists(st.integers(-20, 60), min_size=2, max_size=6, unique=True),
    x_min=st.integers(-5, 10),
    width=st.integers(6, 40),
    shots=st.integers(2, 5),
    seed=st.integers(0, 2**32),
)
def test_corruptions(k: list[int], x_min: int, width: int, shots: int, seed: int) -> None:
    family = AddK(k=k, x_min=x_min, x_max=x_min + width, shots=shots, held_out_k=[k[0]])
    held_out = family.train if len(family.train) > 1 else family.held_out
    example = family.example(held_out[0], stream(seed))
    shuffled = family.shuffled(example, stream(seed))
    assert [p.input for p in shuffled.demonstrations] == [p.input for p in example.demonstrations]
    pairs = zip(shuffled.demonstrations, example.demonstrations, strict=True)
    assert all(new.output != old.output for new, old in pairs)
    assert shuffled.answer == example.answer
    other = family.counterfactual(example, stream(seed))
    assert other.task in family.train
    assert other.task != example.task
    assert all(correct(family, other))
    assert other.query == example.query
    assert other.answer != example.answer
    assert [p.input for p in other.demonstrations] == [p.input for p in example.demonstrations]


def test_counterfactual_of_a_held_out_task_is_a_training_task() -> None:
    family = AddK()
    rng = stream(0)
    for example in family.draw(50, rng, split="held_out"):
        assert family.counterfactual(example, rng).task in family.train


def test_wrong_labels() -> None:
    family = AddK(wrong_labels=0.3)
    examples = family.draw(400, stream(0), split="held_out")
    right = [flag for example in examples for flag in correct(family, example)]
    assert 0.66 < sum(right) / len(right) < 0.74
    assert all(int(e.answer) == int(e.query) + family.offset(e.task) for e in examples)
    trained = {family.offset(task) for task in family.train}
    wrong = {
        int(pair.output) - int(pair.input)
        for example in examples
        for pair, flag in zip(example.demonstrations, correct(family, example), strict=True)
        if not flag
    }
    assert wrong <= trained


def test_label_bounds_restrict_the_inputs() -> None:
    family = AddK(k=[1, 5], held_out_k=[], x_max=20, y_max=10, y_min=4, wrong_labels=0.4, shots=2)
    examples = family.draw(100, stream(0), split="train")
    labels = [int(p.output) for e in examples for p in e.demonstrations]
    labels += [int(example.answer) for example in examples]
    assert (min(labels), max(labels)) == (4, 10)
    inputs = {int(p.input) for e in examples for p in e.demonstrations}
    assert inputs == {3, 4, 5}


def test_label_bounds_hold_for_counterfactuals() -> None:
    family = AddK(k=[1, 2, 50], held_out_k=[], x_max=60, y_max=61, shots=2)
    assert family.check_items(shots=10) is None
    rng = stream(0)
    for _ in range(50):
        example = family.example("add_1", rng)
        other = family.counterfactual(example, rng)
        assert max(int(p.output) for p in other.demonstrations) <= 61


def test_shots_of_a_call() -> None:
    family = AddK()
    assert family.example("add_3", stream(0), shots=0).demonstrations == ()
    assert {e.shots for e in family.draw(5, stream(0), split="train", shots=9)} == {9}
    assert family.draw(0, stream(0), split="train") == []
    with pytest.raises(TaskError, match="100 items, but 100 shots and a query need 101"):
        family.example("add_3", stream(0), shots=100)
    with pytest.raises(TaskError, match="shots=-1 is too small"):
        family.draw(1, stream(0), split="train", shots=-1)


def test_single_k_and_range() -> None:
    assert AddK(k=7, held_out_k=[]).train == ("add_7",)
    assert AddK(k_min=3, k_max=5).train == ("add_3", "add_4", "add_5")
    assert AddK(k=[2, 3, 3]).held_out == ("add_2",)
    assert AddK().answers("add_1") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": []}, "task.k is an empty list"),
        ({"k": [1, 2.5]}, "task.k=2.5 is not an integer"),
        ({"k": "seven"}, "task.k='seven' is not an integer"),
        ({"k": [True]}, "task.k=True is not an integer"),
        ({"k_min": 9, "k_max": 3}, "task.k_min=9 is above task.k_max=3"),
        ({"x_min": 5, "x_max": 4}, "task.x_min=5 is above task.x_max=4"),
        ({"x_min": "a"}, "task.x_min='a' is not an integer"),
        ({"x_max": 5}, r"k=1 has 5 valid x \(task.x_min=1, task.x_max=5\).*shots=5.*need 6"),
        ({"y_max": 20}, r"k=20 has 0 valid x .*task.y_max=20"),
        (
            {"k": [-9, 9], "held_out_k": [], "y_min": 1, "y_max": 20},
            "2 offsets have 2 valid x in c",
        ),
        ({"k": [2]}, r"held_out_k=\[2\] holds out every offset.*task.held_out_k=\[\]"),
        ({"k": [1, 2], "held_out_k": [3]}, r"names \[3\], not among the offsets 1..2"),
        ({"held_out_k": list(range(1, 31))}, "leaves nothing to train on"),
        ({"shots": -1}, "task.shots=-1 is too small"),
        ({"shots": None}, "task.shots=None is not an integer"),
        ({"wrong_labels": 1.0}, "task.wrong_labels=1.0 is not a share"),
        ({"wrong_labels": -0.1}, "not a share"),
        ({"wrong_labels": 0.1, "k": [1], "held_out_k": []}, "needs two training offsets"),
        ({"template": "arow"}, "Did you mean 'arrow'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        AddK(**options)


def test_calls_that_make_no_sense() -> None:
    family = AddK(k=[1, 5], held_out_k=[])
    with pytest.raises(TaskError, match="no held-out tasks"):
        family.draw(1, stream(0), split="held_out")
    with pytest.raises(TaskError, match="split='test' is not a split"):
        family.draw(1, stream(0), split="test")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="items='half' is not a pool"):
        family.draw(1, stream(0), split="train", items="half")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match=r"no task 'add_6'. Did you mean"):
        family.example("add_6", stream(0))
    with pytest.raises(TaskError, match="no demonstrations that another task could label"):
        family.counterfactual(family.example("add_1", stream(0), shots=0), stream(0))
    alone = AddK(k=[1], held_out_k=[])
    with pytest.raises(TaskError, match="No other training task of add_k"):
        alone.counterfactual(alone.example("add_1", stream(0)), stream(0))
