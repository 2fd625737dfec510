"""Tasks from lists of inputs and outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headloc.errors import TaskError
from headloc.randomness import stream
from headloc.tasks import Pairs, files
from headloc.tasks.pair_files import parse_pairs

UPPER = [{"input": f"w{i}", "output": f"W{i}"} for i in range(16)]
TWICE = [{"input": f"w{i}", "output": f"w{i}w{i}"} for i in range(16)]
OTHER = [{"input": f"v{i}", "output": "even" if i % 2 == 0 else "odd"} for i in range(14)]


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, items in (("upper", UPPER), ("twice", TWICE), ("parity", OTHER)):
        write(tmp_path / f"{name}.json", items)
    (tmp_path / "README.md").write_text("not a task")
    return tmp_path


def test_a_file_a_list_and_a_folder(folder: Path) -> None:
    assert Pairs(folder / "upper.json").train == ("upper",)
    assert Pairs([str(folder / "upper.json"), folder / "parity.json"]).train == ("upper", "parity")
    family = Pairs(folder, held_out=["upper"], shots=3)
    assert family.train == ("parity", "twice")
    assert family.held_out == ("upper",)
    for example in family.draw(30, stream(0), split="held_out"):
        assert example.task == "upper"
        pairs = [(p.input, p.output) for p in example.demonstrations]
        pairs.append((example.query, example.answer))
        assert all(text.upper() == label for text, label in pairs)
        assert len({text for text, _ in pairs}) == 4


def test_pools_share_no_item(folder: Path) -> None:
    family = Pairs(folder, shots=3)
    used: dict[str, set[str]] = {}
    for items in ("fit", "score"):
        examples = family.draw(300, stream(0), split="train", items=items)
        used[items] = {p.input for e in examples for p in e.demonstrations}
        used[items] |= {example.query for example in examples}
    assert not used["fit"] & used["score"]
    assert len(used["fit"]) == 15
    assert len(used["score"]) == 15
    # The pools do not depend on the order of the file.
    write(folder / "upper.json", UPPER[::-1])
    again = Pairs(folder / "upper.json", shots=3)
    examples = again.draw(100, stream(1), split="train", items="fit")
    assert not {example.query for example in examples} & used["score"]
    with pytest.raises(TaskError, match="'parity' has 7 items in its 'score' half"):
        family.check_items(items="score", shots=7)


def test_counterfactual_prefers_a_task_with_the_same_inputs(folder: Path) -> None:
    family = Pairs(folder, shots=3)
    rng = stream(0)
    example = family.example("upper", rng)
    other = family.counterfactual(example, rng)
    assert other.task == "twice"
    assert other.answer == example.query * 2
    assert [p.input for p in other.demonstrations] == [p.input for p in example.demonstrations]
    assert all(pair.output == pair.input * 2 for pair in other.demonstrations)


def test_counterfactual_falls_back_to_other_demonstrations(folder: Path) -> None:
    family = Pairs(folder, shots=3)
    rng = stream(0)
    for _ in range(20):
        example = family.example("parity", rng)
        other = family.counterfactual(example, rng)
        assert other.task in ("upper", "twice")
        assert (other.query, other.answer) == (example.query, example.answer)
        assert other.shots == 3
        assert all(pair.input.startswith("w") for pair in other.demonstrations)
    alone = Pairs(folder / "parity.json", shots=3)
    with pytest.raises(TaskError, match="No other training task of pairs"):
        alone.counterfactual(alone.example("parity", rng), rng)


def test_closed_answer_sets(folder: Path) -> None:
    family = Pairs(folder)
    assert family.answers("parity") == ("even", "odd")
    assert family.answers("upper") is None


def test_max_items_takes_a_stable_sample(folder: Path) -> None:
    family = Pairs(folder, max_items=8)
    assert family.provenance()["items"] == {"parity": 8, "twice": 8, "upper": 8}
    assert Pairs(folder, max_items=8).provenance() == family.provenance()
    with pytest.raises(TaskError, match="has 4 items, but 5 shots"):
        Pairs(folder, max_items=4)


def test_bundled_facts() -> None:
    family = Pairs()
    assert "capital" in family.train
    assert family.answers("capital") is None
    family.check_items(items="score")
    example = family.example("capital", stream(0))
    assert example.answer == example.answer.strip()
    other = family.counterfactual(example, stream(0))
    assert other.query == example.query
    assert other.answer != example.answer


def test_blanks_and_repetitions_are_dropped() -> None:
    items = [{"input": " a ", "output": "b\n"}, {"input": "a", "output": "b", "more": 1}]
    assert [(p.input, p.output) for p in parse_pairs(items, "f")] == [("a", "b")]


def test_conflicting_outputs(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", [*UPPER, {"input": "w3", "output": "other"}])
    message = r"c.json, item 16: input 'w3' has the output 'other', but 'W3' before"
    with pytest.raises(TaskError, match=message):
        Pairs(path)
    family = Pairs(path, on_conflict="drop")
    assert family.provenance()["items"] == {"c": 15}
    with pytest.raises(TaskError, match="give 'error' or 'drop'"):
        Pairs(path, on_conflict="first")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"input": "a"}, "holds an object, not a list"),
        (None, "holds null, not a list"),
        ([], "is an empty list"),
        (["a"], "item 0 is text, not an object"),
        ([{"input": "a"}], "item 0 has no 'output'; its keys: 'input'"),
        ([{"input": "a", "output": "b"}, {"output": "b"}], "item 1 has no 'input'"),
        ([{"input": "a", "output": 3}], "item 0: 'output' is 3, not text. Put it in quotes"),
        ([{"input": "a", "output": ["b"]}], r"'output' is \['b'\], not text"),
        ([{"input": " ", "output": "b"}], "item 0: 'input' is empty"),
        ([{"input": "\ud800", "output": "b"}], "'input' holds half of a surrogate pair"),
        ([{"input": "a", "output": "b"}], "'t' has 1 items, but 5 shots and a query need 6"),
        ('[\n{"input": "a",\n}]', "not valid JSON: line 3, column 1"),
        ("", "not valid JSON: line 1"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
    ],
)
def test_wrong_files(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "t.json", content)
    with pytest.raises(TaskError, match=message):
        Pairs(path)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match=r"Cannot read .*no.json: No such file"):
        Pairs(tmp_path / "no.json")
    with pytest.raises(TaskError, match=r"holds no .json file"):
        Pairs(tmp_path)
    latin = tmp_path / "latin.json"
    latin.write_bytes('[{"input": "é"}]'.encode("latin-1"))
    with pytest.raises(TaskError, match=r"latin.json is not UTF-8 text \(byte 12"):
        Pairs(latin)
    monkeypatch.setattr(files, "MAX_BYTES", 4)
    with pytest.raises(TaskError, match=r"latin.json has 0 MB"):
        Pairs(latin)


def test_options_that_make_no_sense(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"names 'uper', no task here. Did you mean 'upper'"):
        Pairs(folder, held_out=["uper"])
    with pytest.raises(TaskError, match="leaves nothing to train on"):
        Pairs(folder / "upper.json", held_out="upper")
    (tmp_path / "sub").mkdir()
    copy = write(tmp_path / "sub" / "upper.json", UPPER)
    with pytest.raises(TaskError, match="Two files are named 'upper'"):
        Pairs([folder / "upper.json", copy])
    for path in ([], 3, [3]):
        with pytest.raises(TaskError, match=r"task.path"):
            Pairs(path)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match=r"task.max_items=0 is too small"):
        Pairs(folder, max_items=0)
