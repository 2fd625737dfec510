"""Word-pair families: some tasks or one alone, held-out tasks, splits by name, extractive tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from headloc.errors import TaskError
from headloc.randomness import stream
from headloc.tasks import Labels, Pairs, encode, render
from headloc.tasks.splits import split_tasks
from tests.tasks.zoo import byte_level, llama3, metaspace, qwen, word_level

WORDS = ("apple", "dog", "blue sky", "car", "lemon tea", "moon", "seven", "oak")
TASKS = {
    "upper": [(word, word.upper()) for word in WORDS],
    "twice": [(word, f"{word} {word}") for word in WORDS],
    "last": [(f"{a}, {b}, {c}", c) for a, b, c in zip(WORDS, WORDS[1:], WORDS[2:], strict=False)],
    "first": [(f"{a}, {b}, {c}", a) for a, b, c in zip(WORDS, WORDS[1:], WORDS[2:], strict=False)],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, pairs in TASKS.items():
        items = [{"input": x, "output": y} for x, y in pairs]
        (tmp_path / f"{name}.json").write_text(json.dumps(items))
    return tmp_path


def test_tasks_are_trained_jointly_or_one_alone(folder: Path) -> None:
    assert Pairs(folder, shots=1).train == ("first", "last", "twice", "upper")
    some = Pairs(folder, shots=1, tasks=["upper", "last"])
    assert (some.train, some.held_out) == (("last", "upper"), ())
    assert {e.task for e in some.draw(40, stream(0), split="train")} == {"last", "upper"}
    alone = Pairs(folder, shots=1, tasks="upper", held_out=["twice"])
    assert (alone.train, alone.held_out) == (("upper",), ("twice",))
    assert set(alone.provenance()["items"]) == {"upper", "twice"}
    with pytest.raises(TaskError, match="no task 'last'"):
        alone.example("last", stream(0))


def test_a_task_left_out_needs_no_items(folder: Path) -> None:
    (folder / "tiny.json").write_text('[{"input": "a", "output": "b"}]')
    with pytest.raises(TaskError, match="'tiny' has 1 items, but 3 shots"):
        Pairs(folder, shots=3)
    assert Pairs(folder, shots=3, tasks=["upper"]).train == ("upper",)


def test_a_split_follows_from_names_alone(folder: Path) -> None:
    names = [str(folder / f"{name}.json") for name in TASKS]
    options: dict[str, Any] = {"shots": 2, "tasks": ["first", "upper"], "held_out": ["last"]}
    families = [Pairs(names, **options), Pairs(names[::-1], **options), Pairs(folder, **options)]
    assert len({frozenset(family.train) for family in families}) == 1
    assert {family.held_out for family in families} == {("last",)}
    for items in ("fit", "score"):
        pools = [{p.input for p in f._pairs("upper", items)} for f in families]  # type: ignore[arg-type]
        assert pools[0] == pools[1] == pools[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["uper"]}, "task.tasks names 'uper', no task here. Did you mean 'upper'"),
        ({"held_out": ["lst"]}, "task.held_out names 'lst', no task here. Did you mean 'last'"),
        ({"tasks": ["upper", "last"], "held_out": ["last"]}, "last, also trained on"),
        ({"tasks": []}, "leaves nothing to train on"),
        ({"tasks": [3]}, "task.tasks contains 3"),
        ({"held_out": list(TASKS)}, "holds out every task"),
    ],
)
def test_choices_that_make_no_sense(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Pairs(folder, shots=1, **options)


def test_a_held_out_copy_of_a_trained_task_is_refused(folder: Path) -> None:
    copy = [{"input": x, "output": y} for x, y in reversed(TASKS["upper"])]
    (folder / "capitals.json").write_text(json.dumps(copy))
    with pytest.raises(TaskError, match=r"'capitals' has the items of 'upper'.*also trained on"):
        Pairs(folder, shots=1, held_out=["capitals"])
    assert Pairs(folder, shots=1, held_out=["capitals", "upper"]).train
    assert Pairs(folder, shots=1, tasks=["last"], held_out=["capitals"]).train == ("last",)


def test_an_empty_path_does_not_mean_the_current_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(TaskError, match=r"task.path is missing. Give it as task.path=DIR"):
        Pairs(" ", shots=1)
    with pytest.raises(TaskError, match=r"task.path is missing. Give it as task.path=FILE"):
        Labels("")


def test_all_tasks_but_the_held_out_ones_by_default() -> None:
    assert split_tasks(("b", "a", "c"), None, ("a",)) == (("b", "c"), ("a",))


@pytest.mark.parametrize("task", ["first", "last"])
@pytest.mark.parametrize("make", [byte_level, llama3, qwen, metaspace])
def test_inputs_with_commas_and_blanks(
    folder: Path, task: str, make: Callable[[], PreTrainedTokenizerFast]
) -> None:
    tokenizer = make()
    family = Pairs(folder, shots=1, tasks=[task])
    for example in family.draw(6, stream(0), split="train"):
        parts = example.query.split(", ")
        assert example.answer == (parts[0] if task == "first" else parts[-1])
        rendered = render(example, family.template)
        assert rendered.text.endswith(f"#{example.query}->")
        encoded = encode(tokenizer, rendered)
        assert tokenizer.decode(encoded.prompt.answer_ids).strip() == example.answer
        assert encoded.text.endswith(f"{example.query}->")


def test_a_zero_shot_prompt_without_any_token_is_refused() -> None:
    from headloc.tasks import Example

    family = Pairs(shots=1)
    with pytest.raises(TaskError, match="empty query"):
        render(Example("capital", (), "  ", "Paris"), family.template)
    with pytest.raises(TaskError, match="empty in_sep and an empty out_pre"):
        Pairs(template={"in_pre": "", "in_sep": "", "out_pre": "", "out_sep": "#"})
    assert encode(word_level(), render(Example("t", (), "7", "8"), family.template)).text == "7->"
