"""Classification into arbitrary label words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from headloc.errors import TaskError
from headloc.randomness import stream
from headloc.tasks import Example, Labels, render

CLASSES = {name: [f"{name}{i}" for i in range(9)] for name in ("animal", "fruit", "tool", "sport")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    items = [{"text": text, "class": name} for name, texts in CLASSES.items() for text in texts]
    return write(tmp_path / "data.json", items)


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def two_classes(path: Path) -> Path:
    return write(path, {name: CLASSES[name] for name in ("animal", "fruit")})


def class_of(text: str) -> str:
    return text.rstrip("0123456789")


def labels_agree(family: Labels, example: Example) -> bool:
    label_of = dict(part.split("=") for part in example.task.split(","))
    pairs = [(pair.input, pair.output) for pair in example.demonstrations]
    pairs.append((example.query, example.answer))
    return all(label_of[class_of(text)] == label for text, label in pairs)


def test_tasks_are_assignments_with_their_twins(data: Path) -> None:
    family = Labels(data)
    assert len(family.train) + len(family.held_out) == 12
    assert len(family.held_out) == 2
    every = {*family.train, *family.held_out}
    assert "animal=foo,fruit=bar" in every
    assert "fruit=foo,animal=bar" in every
    combination = {frozenset(map(class_of, name_classes(task))) for task in family.held_out}
    assert len(combination) == 1
    assert not combination & {frozenset(name_classes(task)) for task in family.train}
    assert Labels(data, held_out_share=0).held_out == ()
    assert Labels(data, seed=1).held_out != family.held_out


def name_classes(task: str) -> list[str]:
    return [part.split("=")[0] for part in task.split(",")]


def test_demonstrations_and_queries_are_balanced(data: Path) -> None:
    family = Labels(data, shots_per_label=3, template="colon")
    examples = family.draw(200, stream(0), split="train")
    orders = set()
    for example in examples:
        assert labels_agree(family, example)
        outputs = [pair.output for pair in example.demonstrations]
        assert Counter(outputs) == {"foo": 3, "bar": 3}
        assert len({example.query, *(pair.input for pair in example.demonstrations)}) == 7
        orders.add(tuple(outputs))
    assert len(orders) > 10
    assert Counter(example.answer for example in examples) == {"foo": 100, "bar": 100}
    counts = Counter(example.task for example in examples)
    assert max(counts.values()) - min(counts.values()) <= 1
    first = examples[0].demonstrations[0]
    text = render(examples[0], family.template).text
    assert text.startswith(f"{first.input} : {first.output} ")
    assert text.endswith(f"{examples[0].query} : ")


def test_uneven_shots_and_three_labels(data: Path) -> None:
    family = Labels(data, labels=["foo", "bar", "baz"], shots=5)
    assert len(family.train) + len(family.held_out) == 12
    for example in family.draw(30, stream(0), split="train"):
        counts = Counter(pair.output for pair in example.demonstrations)
        assert sorted(counts.values()) == [1, 2, 2]
        assert labels_agree(family, example)
        flipped = family.flipped(example)
        assert labels_agree(family, flipped)
        assert flipped.answer != example.answer
    assert family.answers(family.train[0]) == ("foo", "bar", "baz")
    assert family.example(family.train[0], stream(0), shots=0).shots == 0


def test_corruptions(data: Path) -> None:
    family = Labels(data)
    rng = stream(0)
    for example in family.draw(40, rng, split="held_out"):
        twin = family.flipped(example)
        assert labels_agree(family, twin)
        assert family.flipped(twin) == example
        assert twin.query == example.query
        swap = {"foo": "bar", "bar": "foo"}
        assert twin.answer == swap[example.answer]
        assert [p.output for p in twin.demonstrations] == [
            swap[p.output] for p in example.demonstrations
        ]
        assert family.counterfactual(example, rng) == twin
        assert family.shuffled(example, rng).answer == example.answer
    odd = family.example(family.train[0], rng, shots=3)
    with pytest.raises(TaskError, match="even number of shots"):
        family.shuffled(odd, rng)
    with pytest.raises(TaskError, match="not in this data"):
        family.flipped(Example(family.train[0], (), "stranger", "foo"))


def test_two_classes_split_texts_instead_of_tasks(tmp_path: Path) -> None:
    family = Labels(two_classes(tmp_path / "two.json"), shots=2)
    assert family.train == ("animal=foo,fruit=bar", "fruit=foo,animal=bar")
    assert family.held_out == ()
    used = {}
    for items in ("fit", "score"):
        examples = family.draw(60, stream(0), split="train", items=items)
        used[items] = {p.input for e in examples for p in e.demonstrations}
        used[items] |= {example.query for example in examples}
    assert not used["fit"] & used["score"]
    assert len(used["fit"] | used["score"]) == 18
    with pytest.raises(TaskError, match="no held-out tasks"):
        family.draw(1, stream(0), split="held_out")


def test_pools_too_small_are_found_before_a_run(tmp_path: Path) -> None:
    family = Labels(two_classes(tmp_path / "two.json"), shots=8)
    family.check_items()
    with pytest.raises(TaskError, match="has 4 texts in its 'score' half"):
        family.check_items(items="score")
    with pytest.raises(TaskError, match="in its 'score' half"):
        family.draw(9, stream(0), split="train", items="score")


def test_many_combinations_are_capped(tmp_path: Path) -> None:
    words = {f"c{i}x": [f"w{i}_{j}" for j in range(4)] for i in range(60)}
    few = Labels(write(tmp_path / "a.json", words), max_tasks=30, shots=2)
    assert len(few.train) + len(few.held_out) == 30
    many = Labels(tmp_path / "a.json", labels=["a", "b", "c", "d"], max_tasks=40, shots=4)
    assert len(many.train) + len(many.held_out) == 40
    assert many.train == Labels(tmp_path / "a.json", labels=list("abcd"), max_tasks=40).train


def test_csv_equals_json(data: Path, tmp_path: Path) -> None:
    rows = [f'"{text}",{name},x' for name, texts in CLASSES.items() for text in texts]
    table = write(tmp_path / "data.csv", "\ufefftext,class,other\r\n" + "\r\n".join(rows))
    assert Labels(table).provenance() == Labels(data).provenance()
    sentence = write(tmp_path / "s.csv", 'text,class\n"a, b\nc",p\nd,p\ne,q\nf,q\n')
    family = Labels(sentence, shots=2)
    texts = {e.query for e in family.draw(40, stream(0), split="train")}
    assert texts == {"a, b\nc", "d", "e", "f"}


def test_repeated_texts_count_once(tmp_path: Path) -> None:
    items = [{"text": text, "class": name} for name in "ab" for text in [f"{name}1"] * 3]
    with pytest.raises(TaskError, match="Class 'a' has 1 texts, but an example may need 3"):
        Labels(write(tmp_path / "a.json", items))


def test_words_that_ship_with_headloc() -> None:
    family = Labels()
    assert family.held_out
    family.check_items(items="score")
    assert len(family.draw(20, stream(0), split="held_out")) == 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[{", "not valid JSON: line 1"),
        ("a.json", "3", "neither a list nor an object"),
        ("a.json", [], "holds no items"),
        ("a.json", ["x"], "item 0 is 'x', not an object"),
        ("a.json", [{"text": "x"}], "item 0: 'class' is None"),
        ("a.json", [{"text": "x", "class": 1}], "item 0: 'class' is 1, but must be text"),
        ("a.json", {"p": "x"}, "class 'p' holds no list"),
        ("a.json", {"p": ["\ud800"]}, "'text' holds half of a surrogate pair"),
        ("a.json", {"p": ["x", " "], "q": ["y"]}, "class 'p', item 1: 'text' is ' '"),
        ("a.json", {"p": ["x"], "q": ["x"]}, "'x' has the class 'q', but 'p' before"),
        ("a.json", {"p": ["x", "y"]}, r"1 classes \(p\) for the 2 labels foo, bar"),
        ("a.csv", "", "no column text, class"),
        ("a.csv", "text,label\nx,p\n", "no column class; its first line names: text, label"),
        ("a.csv", "text,class\nx,p\ny\n", "line 3: 'class' is None"),
        ("a.csv", 'text,class\n"x,p\n', "not valid CSV: line 2"),
        ("a.csv", "text,class\n", "holds no items"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(TaskError, match=message) as caught:
        Labels(path)
    assert name in str(caught.value) or "classes (p)" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["foo"]}, "fewer than two labels"),
        ({"labels": ["foo", "foo"]}, "the same thing twice"),
        ({"labels": ["foo", ""]}, "contains ''"),
        ({"labels": [0, 1]}, "contains 0"),
        ({"shots": 4, "shots_per_label": 3}, "contradicts task.shots_per_label=3, which makes 6"),
        ({"held_out_share": 1}, "not a share"),
        ({"max_tasks": 1}, "task.max_tasks=1 is too small"),
        ({"seed": -1}, "task.seed=-1 is too small"),
        ({"path": 3}, "task.path=3 is not the name of a file"),
        ({"path": "missing.json"}, "Cannot read missing.json: No such file"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Labels(**options)
